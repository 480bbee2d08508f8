"""`make run`: the whole of kytecron on one machine, web pages and a worker, with nothing to set up.

Migrates the database, puts examples into an empty one, starts gunicorn and a worker, and prints where to go and
how to sign in. Ctrl-C stops both.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from http import HTTPStatus

import sqlalchemy as sa
from sqlalchemy.orm import Session

from .config import ROOT, Settings
from .core.errors import Invalid
from .examples import EXAMPLES
from .services import accounts
from .services.audit import Actor
from .services.jobs import CronJobManager
from .store import db, schema
from .store.models import CronJob

START_SECONDS = 30
STOP_SECONDS = 45


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until Ctrl-C. Exit status 0 after a clean stop, 1 when a part ended by itself, 2 for bad settings."""
    parser = argparse.ArgumentParser(description="Run kytecron's web pages and a worker on this machine.")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    options = parser.parse_args(arguments)
    try:
        settings = Settings.load()
        settings.require_secret_key()
    except Invalid as error:
        print("\n".join(error.fields.values()), file=sys.stderr)
        return 2
    link = _prepare(settings)
    address = f"http://{'localhost' if options.host == '127.0.0.1' else options.host}:{options.port}"
    # Groups of their own: Ctrl-C reaches this process alone, which then stops each of them once.
    web = subprocess.Popen(_web_command(options.host, options.port), cwd=ROOT, process_group=0)
    worker = subprocess.Popen([sys.executable, str(ROOT / "worker.py")], cwd=ROOT, process_group=0)
    try:
        if not _answers(web, options.port):
            print(
                f"The web pages did not start. Is port {options.port} taken? Try: make run PORT=8123",
                file=sys.stderr,
            )
            return 1
        _say_welcome(address, link)
        return _watch([web, worker])
    finally:
        _stop([web, worker])


def _prepare(settings: Settings) -> str | None:
    """Migrate, fill an empty database with examples; returns a one-time token for the first administrator."""
    engine = db.make_engine(settings)
    schema.upgrade(engine)
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


def _web_command(host: str, port: int) -> list[str]:
    return [
        sys.executable,
        "-m",
        "gunicorn",
        f"--bind={host}:{port}",
        "--workers=2",
        # A page that follows a log holds a thread, not a worker.
        "--worker-class=gthread",
        "--threads=8",
        "--log-level=warning",
        "wsgi:app",
    ]


def _answers(web: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and web.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
                return bool(answer.status == HTTPStatus.OK)
        except OSError:
            time.sleep(0.1)
    return False


def _say_welcome(address: str, link: str | None) -> None:
    lines = [f"kytecron is running at {address}"]
    if link:
        lines += ["Sign in as administrator with this link, once:", f"  {address}/sign-in/{link}"]
    else:
        lines += ["Sign in with your user name and password."]
    print("\n" + "\n".join(lines) + "\nCtrl-C stops it.\n", flush=True)


def _watch(processes: list[subprocess.Popen[bytes]]) -> int:
    """Wait for Ctrl-C, or for a part that ends by itself."""
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.append(1))
    while not stopped:
        if any(process.poll() is not None for process in processes):
            print("A part of kytecron ended by itself; see above.", file=sys.stderr)
            return 1
        time.sleep(0.2)
    return 0


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """End both parts; the worker lets running jobs finish within its grace. A second Ctrl-C ends the wait."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    try:
        for process in processes:
            process.wait(STOP_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        for process in processes:
            process.kill()


if __name__ == "__main__":
    sys.exit(main())
