"""`make run` and `kytecron up`: the whole of kytecron on one machine, web pages and a worker, with nothing to set up.

Migrates the database, puts examples into an empty one, starts gunicorn and a worker, and prints where to go and
how to sign in. Ctrl-C stops both.
"""

from __future__ import annotations

import argparse
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from .config import ROOT, WORKER, Settings, environment
from .core.errors import Invalid, KytecronError
from .examples import EXAMPLES
from .services import accounts, upgrading
from .services.audit import Actor
from .services.jobs import CronJobManager
from .store import db
from .store.models import CronJob

QUIET = "WARNING"
"""The log level where none is set: whoever starts everything at a terminal needs the address, and what goes wrong."""
START_SECONDS = 60
WEB_GRACE_SECONDS = 5
SAME_SIGNAL_SECONDS = 0.5
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def main(arguments: Sequence[str] | None = None, prog: str = "make run") -> int:
    """Run until Ctrl-C. Exit status 0 after a clean stop, 1 when a part does not start or ends, 2 for bad settings."""
    options = _parser(prog).parse_args(arguments)
    try:
        settings = Settings.load(unless_set={"log_level": QUIET})
        settings.require_secret_key()
        listener = _listen(options.host, options.port)
        link = _prepare(settings)
    except Invalid as error:
        print("\n".join(error.fields.values()), file=sys.stderr)
        return 2
    except KytecronError as error:
        print(error.message, file=sys.stderr)
        return 1
    except SQLAlchemyError as error:
        print(db.trouble(error), file=sys.stderr)
        return 1
    asked: list[float] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the last comes when a terminal is closed
        # Whoever starts it with `nohup` or behind a shell's `&` has these ignored, and means it.
        if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: asked.append(time.monotonic()))
    # Groups of their own: Ctrl-C reaches this process alone, which then stops each of them.
    variables = environment(settings, "log_level")
    web = subprocess.Popen(
        _web_command(listener), cwd=ROOT, env=variables, process_group=0, pass_fds=(listener.fileno(),)
    )
    listener.close()
    processes = [web]
    try:
        if not _answers(web, asked, options.host, options.port):
            if not asked:
                print("The web pages did not start; see above.", file=sys.stderr)
            return 0 if asked else 1
        _say_welcome(_address(options.host, options.port), link)
        # After the welcome, or what goes wrong in the first runs would stand above the link. What a worker prints
        # when it ends, its statistics, is for whoever started it alone.
        processes.append(
            subprocess.Popen(WORKER, cwd=ROOT, env=variables, process_group=0, stdout=subprocess.DEVNULL)
        )
        return _watch(processes, asked)
    finally:
        if asked:
            grace = f"{settings.grace_seconds:g} s"
            print(f"Stopping: running jobs have {grace} to end. Ctrl-C again ends them at once.", flush=True)
        # The worker may need both: its runs have the first, a database that is away the second.
        _stop(processes, asked, settings.grace_seconds + settings.lease_seconds)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description="Run kytecron's web pages and a worker on this machine."
    )
    parser.add_argument("--port", type=_port, default=8000)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text} is no port: write a number from 1 to 65535")
    return int(text)


def _listen(host: str, port: int) -> socket.socket:
    """The socket that gunicorn inherits: who has it has the port, before anything else is started.

    Raises Invalid when the address cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (while")[0]
        raise Invalid(
            {"port": f"Cannot listen on {host} port {port}: {reason}. Choose another port, such as 8123"}
        ) from None


def _prepare(settings: Settings) -> str | None:
    """Migrate, fill an empty database with examples; returns a one-time token for the first administrator."""
    engine = db.make_engine(settings)
    upgrading.upgrade(engine, settings)
    with db.make_sessions(engine)() as session:
        if not session.scalar(sa.select(sa.func.count()).select_from(CronJob)):
            _create_examples(session)
        link = accounts.first_start_link(session)
    engine.dispose()
    return link


def _create_examples(session: Session) -> None:
    manager = CronJobManager(session, Actor("examples"))
    for fields in EXAMPLES:
        manager.create_job(**fields)


def _web_command(listener: socket.socket) -> list[str]:
    return [
        sys.executable,
        "-m",
        "gunicorn",
        "--config=python:kytecron.gunicorn_conf",
        f"--bind=fd://{listener.fileno()}",
        f"--graceful-timeout={WEB_GRACE_SECONDS}",
        "--log-level=warning",
        "kytecron.wsgi:app",
    ]


def _answers(web: subprocess.Popen[bytes], asked: list[float], host: str, port: int) -> bool:
    deadline = time.monotonic() + START_SECONDS
    here = EVERYWHERE.get(host, host)
    while time.monotonic() < deadline and web.poll() is None and not asked:
        # Not urllib: it would ask the proxy that the environment names.
        with closing(HTTPConnection(here, port, timeout=5)) as connection:
            try:
                connection.request("GET", "/readyz")
                if connection.getresponse().status == HTTPStatus.OK:
                    return True
            except (OSError, HTTPException):
                pass
        time.sleep(0.1)
    return False


def _address(host: str, port: int) -> str:
    if host in {*EVERYWHERE, "127.0.0.1"}:
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _say_welcome(address: str, link: str | None) -> None:
    lines = [f"kytecron is running at {address}"]
    if link:
        lines += [
            "Ctrl-C stops it.",
            "",
            "Sign in as administrator with this link, once:",
            "",
            f"    {address}/sign-in/{link}",
        ]
    else:
        lines += ["Sign in with your user name and password.", "Ctrl-C stops it."]
    print("\n" + "\n".join(lines) + "\n", flush=True)


def _watch(processes: list[subprocess.Popen[bytes]], asked: list[float]) -> int:
    """Wait for Ctrl-C, or for a part that ends by itself."""
    while not asked:
        if any(process.poll() is not None for process in processes):
            print("A part of kytecron ended by itself; see above.", file=sys.stderr)
            return 1
        time.sleep(0.2)
    return 0


def _stop(processes: list[subprocess.Popen[bytes]], asked: list[float], seconds: float) -> None:
    """End both parts; the worker lets running jobs finish within its grace. A second Ctrl-C ends them at once."""
    began = time.monotonic()
    told = 0
    _terminate(processes)
    while any(process.poll() is None for process in processes) and time.monotonic() < began + seconds:
        # make passes a SIGTERM on that this process may have had already: that is no second one.
        again = sum(moment > began + SAME_SIGNAL_SECONDS for moment in asked)
        if again > told:
            told = again
            _terminate(processes)
        time.sleep(0.05)
    for process in processes:
        if process.poll() is None:
            process.kill()


def _terminate(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()


if __name__ == "__main__":
    sys.exit(main())
