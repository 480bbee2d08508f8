"""Settings: one list, documented, checked."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from threading import Barrier

import pytest

from kytecron import config
from kytecron.config import ROOT, Settings, settings_file, unknown_variables
from kytecron.core.errors import Invalid

PRODUCTION = {"environment": "production", "database_url": "sqlite:////var/lib/kytecron/kytecron.db"}
DOCUMENT = ROOT / "docs" / "settings.md"


def rows() -> list[str]:
    """The table of docs/settings.md as the list of settings makes it."""
    made = []
    for item in fields(Settings):
        shown = {"instance_path": "`instance/`", "concurrency": "4 per core"}.get(
            item.name, f"`{item.default}`" if item.default != "" else "empty"
        )
        unit = f" ({item.metadata['unit']})" if item.metadata["unit"] else ""
        made.append(f"| `KYTECRON_{item.name.upper()}` | {shown} | {item.metadata['help']}{unit} |")
    return made


def test_every_setting_is_documented_with_its_default_and_help() -> None:
    missing = [row for row in rows() if row not in DOCUMENT.read_text().splitlines()]
    assert not missing, "docs/settings.md lacks:\n" + "\n".join(missing)


def test_a_setting_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYTECRON_CONCURRENCY", "3")
    monkeypatch.setenv("KYTECRON_SMTP_STARTTLS", "no")
    settings = Settings.load()
    assert (settings.concurrency, settings.smtp_starttls) == (3, False)


def test_a_setting_that_makes_no_sense_is_named_with_what_it_should_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KYTECRON_CONCURRENCY", "many")
    monkeypatch.setenv("KYTECRON_LEASE_SECONDS", "-1")
    with pytest.raises(Invalid) as caught:
        Settings.load()
    assert caught.value.fields["KYTECRON_CONCURRENCY"] == "KYTECRON_CONCURRENCY='many' is not a whole number"


def test_a_lease_shorter_than_two_renewals_is_refused() -> None:
    with pytest.raises(Invalid, match="at most half"):
        Settings.load({"lease_seconds": 15.0})


@pytest.mark.parametrize("key", ["", "short", "change-me"])
def test_production_refuses_a_weak_secret_key(key: str) -> None:
    with pytest.raises(Invalid, match="at least 32 random characters"):
        Settings.load(PRODUCTION | {"secret_key": key}).require_secret_key()


def test_production_refuses_to_do_without_a_database_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYTECRON_ENVIRONMENT", "production")
    for address in (None, "", " "):
        if address is not None:
            monkeypatch.setenv("KYTECRON_DATABASE_URL", address)
        with pytest.raises(Invalid, match="KYTECRON_DATABASE_URL must be set in production"):
            Settings.load()
    monkeypatch.setenv("KYTECRON_DATABASE_URL", PRODUCTION["database_url"])
    assert Settings.load().url == PRODUCTION["database_url"]


def test_development_makes_one_key_and_keeps_it_from_others(tmp_path: Path) -> None:
    settings = Settings(instance_path=tmp_path)
    key = settings.require_secret_key()
    assert len(key) == 64
    assert settings.require_secret_key() == key
    assert (tmp_path / "secret-key").stat().st_mode & 0o077 == 0


def test_threads_that_make_the_first_key_at_once_all_have_the_same(tmp_path: Path) -> None:
    together = Barrier(8)

    def ask(instance: Path) -> str:
        together.wait(10)
        return Settings(instance_path=instance).require_secret_key()

    with ThreadPoolExecutor(8) as threads:
        for attempt in range(20):
            assert len(set(threads.map(ask, [tmp_path / str(attempt)] * 8))) == 1


@pytest.mark.parametrize(("name", "value"), [("LOG_FORMAT", "xml"), ("LOG_LEVEL", "LOUD")])
def test_a_log_setting_that_is_none_of_the_choices_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"KYTECRON_{name}", value)
    with pytest.raises(Invalid, match=f"KYTECRON_{name} must be "):
        Settings.load()


def test_a_misspelt_variable_is_told_with_the_setting_that_comes_closest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KYTECRON_CONCURENCY", "3")
    monkeypatch.setenv("KYTECRON_COLOUR", "red")
    assert unknown_variables() == [
        "KYTECRON_COLOUR is no setting",
        "KYTECRON_CONCURENCY is no setting; perhaps KYTECRON_CONCURRENCY is meant",
    ]


def test_a_named_file_comes_before_the_machines_and_both_after_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machines, own = tmp_path / "kytecron.env", tmp_path / "own.env"
    machines.write_text("KYTECRON_CONCURRENCY=3\nKYTECRON_SMTP_PORT=26\nKYTECRON_MAIL_FROM='a b'\n")
    own.write_text("KYTECRON_CONCURRENCY=4\n")
    monkeypatch.setattr(config, "SYSTEM_FILE", machines)
    monkeypatch.setenv("KYTECRON_SMTP_PORT", "27")
    found = Settings.load()
    assert (found.concurrency, found.smtp_port, found.mail_from) == (3, 27, "a b")
    monkeypatch.setenv("KYTECRON_SETTINGS", str(own))
    assert Settings.load().concurrency == 4
    monkeypatch.setenv("KYTECRON_SETTINGS", str(tmp_path / "nowhere"))
    with pytest.raises(Invalid, match="nowhere cannot be read"):
        Settings.load()


def test_the_machines_file_that_only_root_may_read_is_asked_for_unless_its_content_was_handed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machines = tmp_path / "kytecron.env"
    machines.touch()
    monkeypatch.setattr(config, "SYSTEM_FILE", machines)
    # The tests may run as root, who may read everything.
    monkeypatch.setattr(config.os, "access", lambda path, mode: Path(path) != machines)
    with pytest.raises(Invalid, match="Use sudo"):
        settings_file()
    monkeypatch.setenv("KYTECRON_DATABASE_URL", "sqlite://")
    assert settings_file() is None
