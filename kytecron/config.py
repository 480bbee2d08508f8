"""Settings: one list, each with a default and help. The only reader of the environment.

A setting named `lease_seconds` is read from `KYTECRON_LEASE_SECONDS`, from the process's environment first
and from the settings file second (see `settings_file`). `docs/settings.md` is made from this list by a test.
"""

from __future__ import annotations

import base64
import contextlib
import difflib
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from .core.errors import Invalid
from .core.untrusted import name_problem, visible

PACKAGE = Path(__file__).resolve().parent
INSTALLED = not (PACKAGE.parent / "pyproject.toml").is_file()
PARTS = PACKAGE if INSTALLED else PACKAGE.parent
"""Where migrations/ and docs/ are: beside the package in a checkout, inside it once installed."""
ROOT = Path.cwd() if INSTALLED else PACKAGE.parent
"""Where an installation keeps its own: the checkout; once installed, the directory in which it is started."""
WORKER = (
    *(sys.executable, "-s", "-P"),
    *(("-m", "kytecron", "worker") if INSTALLED else (str(ROOT / "worker.py"),)),
)
"""Starts a worker with this Python, in the directory ROOT. It imports nothing that a job can plant there or in HOME."""
SYSTEM_FILE = Path("/etc/kytecron/kytecron.env")
SAMPLE_KEYS = frozenset({"change-me", "changeme", "secret", "dev", "development", "test", "kytecron"})
MIN_KEY_LENGTH = 32
MIN_KEY_CHARACTERS = 8
"""Different ones; 32 random hexadecimal digits have fewer once in 30 million keys."""
MAX_WEB_THREADS = 64
MORE_THAN_NOTHING = (
    "web_processes",
    "concurrency",
    "poll_interval",
    "lease_seconds",
    "renew_seconds",
    "kill_grace_seconds",
    "session_hours",
    "session_days",
    "retention_days",
    "retention_per_job",
    "retention_versions",
)
NEVER_FOR_JOBS = ("KYTECRON_", "UV_")
"""Variables of these beginnings never reach a job, whatever is set."""
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
NEW_SECRETS_KEY = 'python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"'


def _setting(default: Any, help_text: str, *, secret: bool = False, unit: str = "") -> Any:
    return field(default=default, metadata={"help": help_text, "secret": secret, "unit": unit})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be set from outside. Make one with `Settings.load()`."""

    settings: str = _setting(
        "",
        "File of further settings; empty reads /etc/kytecron/kytecron.env, or else .env in the installation",
    )
    environment: str = _setting(
        "development",
        "`production` wants a database address, refuses weak secret keys and sends cookies over TLS only",
    )
    database_url: str = _setting(
        "",
        "Database address (see below); empty means SQLite in the instance directory, and is refused in production",
        secret=True,
    )
    instance_path: Path = _setting(ROOT / "instance", "Directory of the SQLite file and the generated keys")
    secret_key: str = _setting(
        "", "Signs cookies; empty in development makes one in the instance directory", secret=True
    )
    secrets_keys: str = _setting(
        "", "Fernet keys that encrypt stored secrets, newest first, separated by commas", secret=True
    )
    public_url: str = _setting(
        "", "Address people use, for links in notifications, such as https://cron.example"
    )
    trusted_proxies: int = _setting(0, "Number of reverse proxies in front whose X-Forwarded-* headers count")
    web_processes: int = _setting(2, "Processes of the web server")
    web_threads: int = _setting(
        8, "Threads in each of them; at most half of these serve requests that wait or stream"
    )
    session_hours: int = _setting(12, "A sign-in ends after this long without use", unit="hours")
    session_days: int = _setting(30, "A sign-in ends this long after it was made, used or not", unit="days")
    hsts_subdomains: bool = _setting(
        False, "Over TLS, tell browsers to use it for all names below this one, too (HSTS includeSubDomains)"
    )

    concurrency: int = _setting((os.cpu_count() or 1) * 4, "Runs at once on one worker (default: 4 per core)")
    poll_interval: float = _setting(
        0.2, "Longest time between two looks for due work made elsewhere (triggers, edits)", unit="seconds"
    )
    lease_seconds: float = _setting(
        60.0,
        "How long a claim holds without renewal: a vanished worker's runs start again after it",
        unit="seconds",
    )
    renew_seconds: float = _setting(10.0, "Time between two renewals of a claim", unit="seconds")
    grace_seconds: float = _setting(
        30.0, "How long a stopping worker waits for its running jobs", unit="seconds"
    )
    kill_grace_seconds: float = _setting(
        10.0, "Time between SIGTERM and SIGKILL for a job that must end", unit="seconds"
    )
    worker_tags: str = _setting("", "Tags of this worker, separated by commas; jobs may ask for one")
    output_limit_bytes: int = _setting(
        10_000_000, "Output kept of one run: the first and the last half", unit="bytes"
    )

    job_directory: str = _setting(
        "",
        "Where runs have their scratch directories; empty means `jobs/` in the instance directory or, where a "
        "directory above that holds a `.env`, one in the system's temporary directory",
    )
    job_variables: str = _setting(
        "", "More variables of the worker's environment that jobs see, separated by commas"
    )
    job_modules: str = _setting("", "Directory of modules that jobs can import")

    retention_days: int = _setting(90, "Executions older than this are removed", unit="days")
    retention_per_job: int = _setting(10_000, "Executions kept for one job at most")
    retention_versions: int = _setting(50, "Versions kept for one job at least")

    smtp_host: str = _setting("", "Mail server; empty sends no mail")
    smtp_port: int = _setting(587, "Port of the mail server")
    smtp_user: str = _setting("", "User name at the mail server; empty signs in nowhere")
    smtp_password: str = _setting("", "Password at the mail server", secret=True)
    smtp_starttls: bool = _setting(True, "Refuse to send mail over an unencrypted connection")
    mail_from: str = _setting("kytecron@localhost", "Sender of the mails")
    allow_local_webhooks: bool = _setting(
        False, "Let webhooks go to this machine over plain http (for tests and local relays)"
    )

    log_format: str = _setting("text", "`text` for people or `json`, one event a line on standard error")
    log_level: str = _setting(
        "INFO",
        "DEBUG, INFO, WARNING or ERROR; `make run` and `kytecron up` begin at WARNING unless it is set",
    )

    @classmethod
    def load(
        cls, overrides: Mapping[str, Any] | None = None, *, unless_set: Mapping[str, Any] | None = None
    ) -> Settings:
        """Return the settings, each from the first that has it.

        These are: `overrides` (already typed, as is `unless_set`), the environment, the settings file, `unless_set`,
        the defaults.

        Raises Invalid naming each variable that cannot be understood, or the file where it cannot be read.
        """
        texts = {**_values_of_file(), **os.environ}
        values: dict[str, Any] = dict(unless_set or {})
        wrong: dict[str, str] = {}
        for item in fields(cls):
            variable = f"KYTECRON_{item.name.upper()}"
            text = texts.get(variable)
            if text is None:
                continue
            try:
                values[item.name] = _parse(text, item.default)
            except ValueError:
                wrong[variable] = f"{variable}={text!r} is not {_kind(item.default)}"
        values.update(overrides or {})
        settings = cls(**values)
        wrong |= settings._problems()
        if wrong:
            raise Invalid(wrong)
        return settings

    def _problems(self) -> dict[str, str]:
        wrong: dict[str, str] = {}
        if self.log_format not in ("text", "json"):
            wrong["KYTECRON_LOG_FORMAT"] = "KYTECRON_LOG_FORMAT must be text or json"
        if self.log_level.upper() not in LOG_LEVELS:
            wrong["KYTECRON_LOG_LEVEL"] = f"KYTECRON_LOG_LEVEL must be one of {', '.join(LOG_LEVELS)}"
        if self.environment not in ("development", "production"):
            wrong["KYTECRON_ENVIRONMENT"] = "KYTECRON_ENVIRONMENT must be development or production"
        if self.environment == "production" and not self.database_url.strip():
            wrong["KYTECRON_DATABASE_URL"] = (
                "KYTECRON_DATABASE_URL must be set in production, such as postgresql://user:password@host/database, "
                "or sqlite:////var/lib/kytecron/kytecron.db for one machine"
            )
        for name in MORE_THAN_NOTHING:
            if not getattr(self, name) > 0:
                wrong[f"KYTECRON_{name.upper()}"] = f"KYTECRON_{name.upper()} must be more than 0"
        if not 2 <= self.web_threads <= MAX_WEB_THREADS:
            wrong["KYTECRON_WEB_THREADS"] = (
                f"KYTECRON_WEB_THREADS must be 2 to {MAX_WEB_THREADS}; for more, raise KYTECRON_WEB_PROCESSES"
            )
        if self.renew_seconds > self.lease_seconds / 2:
            wrong["KYTECRON_RENEW_SECONDS"] = (
                "KYTECRON_RENEW_SECONDS must be at most half of KYTECRON_LEASE_SECONDS: "
                "one lost renewal must not end a lease"
            )
        for tag in self.tags:
            if problem := name_problem(tag):
                wrong["KYTECRON_WORKER_TAGS"] = f"KYTECRON_WORKER_TAGS: {visible(tag)!r} {problem}"
        if not all(_is_fernet_key(key) for key in _listed(self.secrets_keys)):
            wrong["KYTECRON_SECRETS_KEYS"] = (
                f"KYTECRON_SECRETS_KEYS must be Fernet keys separated by commas; make one with: {NEW_SECRETS_KEY}"
            )
        wrong |= self._problems_of_jobs()
        return wrong

    def _problems_of_jobs(self) -> dict[str, str]:
        wrong: dict[str, str] = {}
        for name in self.job_variable_names:
            if not name.isascii() or not name.isidentifier():
                problem = f"{name!r} is not the name of a variable; write names separated by commas"
            elif name.upper().startswith(NEVER_FOR_JOBS):
                problem = f"{name} cannot be given to jobs: variables of kytecron and uv stay with the worker"
            else:
                continue
            wrong["KYTECRON_JOB_VARIABLES"] = f"KYTECRON_JOB_VARIABLES: {problem}"
        if self.job_modules and not Path(self.job_modules).is_dir():
            wrong["KYTECRON_JOB_MODULES"] = f"KYTECRON_JOB_MODULES={self.job_modules} is no directory"
        elif os.pathsep in self.job_modules:
            wrong["KYTECRON_JOB_MODULES"] = (
                f"KYTECRON_JOB_MODULES must be one directory, without {os.pathsep!r}"
            )
        return wrong

    @property
    def job_variable_names(self) -> list[str]:
        """`job_variables` as a list."""
        return _listed(self.job_variables)

    def make_job_directory(self) -> Path:
        """The directory below which runs have their scratch directories, made for nobody but its owner.

        It is not below a directory that holds a `.env`: a job that looks for one of its own, as load_dotenv does,
        would find that, most likely kytecron's. Raises Invalid when no such directory can be used.
        """
        for path in self._job_directories():
            if self.instance_path.resolve() in path.parents:
                with contextlib.suppress(Invalid):  # told of the job directory, below
                    self.make_instance_directory()
            problem = _dotenv_problem(path) or _directory_problem(path)
            if not problem:
                return path
        text = f"KYTECRON_JOB_DIRECTORY={path} cannot be used: {problem}"
        raise Invalid({"KYTECRON_JOB_DIRECTORY": text})

    def _job_directories(self) -> list[Path]:
        """Where `make_job_directory` looks, the best place first."""
        if self.job_directory:
            return [Path(self.job_directory).resolve()]
        temporary = Path(tempfile.gettempdir()).resolve() / f"kytecron-{os.getuid()}"
        return [self.instance_path.resolve() / "jobs", temporary]

    def job_directory_here(self) -> Path | None:
        """The directory that `make_job_directory` has made for workers of this user on this machine, if it has."""
        for path in self._job_directories():
            with contextlib.suppress(OSError):  # of another user, who keeps it to himself
                if not _dotenv_problem(path):
                    return path if path.lstat().st_uid == os.getuid() and path.is_dir() else None
        return None

    @property
    def url(self) -> str:
        """The database's SQLAlchemy URL."""
        return self.database_url or f"sqlite:///{self.instance_path / 'kytecron.db'}"

    def make_instance_directory(self) -> None:
        """Make the instance directory where it is missing: for nobody but its owner, as it holds hashes and keys.

        Raises Invalid when it cannot be made or written to.
        """
        path = self.instance_path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=0o700, exist_ok=True)
            problem = "" if os.access(path, os.W_OK | os.X_OK) else "it is not writable"
        except OSError as error:
            problem = str(error.strerror)
        if problem:
            text = f"KYTECRON_INSTANCE_PATH={path} cannot be used: {problem}"
            raise Invalid({"KYTECRON_INSTANCE_PATH": text})

    @property
    def says_where(self) -> bool:
        """Whether somebody has chosen the database, rather than left it to the default."""
        return bool(self.database_url) or self.instance_path != ROOT / "instance"

    @property
    def tags(self) -> frozenset[str]:
        """`worker_tags` as a set."""
        return frozenset(_listed(self.worker_tags))

    def require_secret_key(self) -> str:
        """The key that signs cookies.

        In development an empty key is made once and kept in the instance directory. In production an empty,
        short or sample key raises Invalid: cookies signed with it could be forged.
        """
        if self.secret_key:
            key = self.secret_key
        elif self.environment == "production":
            key = ""
        else:
            key = self._kept_key("secret-key", lambda: secrets.token_hex(32))
        if self.environment == "production" and _is_weak(key):
            raise Invalid(
                {
                    "KYTECRON_SECRET_KEY": "KYTECRON_SECRET_KEY must be set to at least 32 random characters in "
                    'production, for example the output of: python -c "import secrets; print(secrets.token_hex(32))"'
                }
            )
        return key

    def secrets_key_list(self) -> list[str]:
        """The Fernet keys that encrypt stored secrets, newest first; empty when production has none set.

        In development a missing key is made once and kept in the instance directory.
        """
        keys = _listed(self.secrets_keys)
        if keys or self.environment == "production":
            return keys
        return [self._kept_key("secrets-key", _new_fernet_key)]

    def _kept_key(self, name: str, make: Callable[[], str]) -> str:
        """The key in this file, made on first use; processes that start at once all end with the same one."""
        path = self.instance_path / name
        if not path.exists():
            self.make_instance_directory()
            draft = path.with_name(f"{name}.{secrets.token_hex(8)}")
            draft.touch(mode=0o600)
            draft.write_text(make())
            try:
                # Fails where another process was first, and never shows a half-written key.
                os.link(draft, path)
            except FileExistsError:
                pass
            draft.unlink()
        return path.read_text()


def settings_file() -> Path | None:
    """The file that settings are read from: the one that KYTECRON_SETTINGS names, the machine's, or `.env`.

    The machine's may be for root alone: a service was handed its content, and needs no second look. Raises Invalid
    for a file that is named and is not there, and for one that cannot be read and whose content was not handed over.
    """
    named = os.environ.get("KYTECRON_SETTINGS")
    if named:
        if not os.access(named, os.R_OK):
            raise Invalid({"KYTECRON_SETTINGS": f"KYTECRON_SETTINGS={named} cannot be read"})
        return Path(named)
    if os.access(SYSTEM_FILE, os.R_OK):
        return SYSTEM_FILE
    if SYSTEM_FILE.exists():
        if "KYTECRON_DATABASE_URL" in os.environ:
            return None
        raise Invalid(
            {
                "KYTECRON_SETTINGS": f"{SYSTEM_FILE} cannot be read by this user. Use sudo, "
                "or set KYTECRON_SETTINGS to a file of your own"
            }
        )
    own = ROOT / ".env"
    return own if own.is_file() else None


def _values_of_file() -> dict[str, str | None]:
    file = settings_file()
    return dotenv_values(file) if file else {}


def unknown_variables() -> list[str]:
    """A sentence for each KYTECRON_ variable that is no setting and therefore does nothing: most are misspelt."""
    known = [f"KYTECRON_{item.name.upper()}" for item in fields(Settings)]
    sentences = []
    for name in sorted({*_values_of_file(), *os.environ} - {*known}):
        if name.startswith("KYTECRON_") and not name.startswith("KYTECRON_TEST_"):
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            sentences.append(f"{name} is no setting" + (f"; perhaps {close[0]} is meant" if close else ""))
    return sentences


def path_prefix() -> str:
    """The path below which gunicorn is told to serve the pages; empty for a site of their own."""
    return os.environ.get("SCRIPT_NAME", "")


def _dotenv_problem(path: Path) -> str:
    for directory in (path, *path.parents):
        if (directory / ".env").exists():
            return (
                f"{directory}/.env would be found by every job that calls load_dotenv(); "
                "choose a directory that has no .env above it"
            )
    return ""


def _directory_problem(path: Path) -> str:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        return str(error.strerror)
    if path.lstat().st_uid != os.getuid() or not path.is_dir() or path.is_symlink():
        return f"it is not a directory of this user, {os.getuid()}"
    return "" if os.access(path, os.W_OK | os.X_OK) else "it is not writable"


def _is_weak(key: str) -> bool:
    """Whether a key can be guessed: too short, one of a few characters, or a sample, also written several times."""
    if len(key) < MIN_KEY_LENGTH or len(set(key)) < MIN_KEY_CHARACTERS:
        return True
    return any(not key.lower().replace(sample, "") for sample in SAMPLE_KEYS)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _new_fernet_key() -> str:
    # As Fernet.generate_key does; importing cryptography would slow down every process that reads settings.
    return base64.urlsafe_b64encode(os.urandom(32)).decode()


def _is_fernet_key(key: str) -> bool:
    try:
        return len(base64.urlsafe_b64decode(key)) == 32
    except ValueError:
        return False


def _parse(text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text.lower() in ("1", "true", "yes", "on"):
            return True
        if text.lower() in ("", "0", "false", "no", "off"):
            return False
        raise ValueError(text)
    return type(default)(text) if not isinstance(default, Path) else Path(text).resolve()


def _kind(default: Any) -> str:
    if isinstance(default, bool):
        return "yes or no (1 or 0)"
    return {int: "a whole number", float: "a number"}.get(type(default), "text")


def environment(settings: Settings, *names: str) -> dict[str, str]:
    """Return the environment for a process that is to have these settings, or those of these names.

    It is this process's, with each of them written out.
    """
    written = names or [item.name for item in fields(settings)]
    return {**os.environ, **{f"KYTECRON_{name.upper()}": _text(settings, name) for name in written}}


def _text(settings: Settings, name: str) -> str:
    value = getattr(settings, name)
    return str(int(value)) if isinstance(value, bool) else str(value)


@lru_cache(maxsize=1)
def default_settings() -> Settings:
    """The settings of this process, read once."""
    return Settings.load()
