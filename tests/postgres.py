"""A private PostgreSQL server for tests: made in a temporary directory, free to be killed, frozen and restarted."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import psutil
import psycopg
import pytest

from kytecron.config import Settings
from kytecron.store import db, schema

from .mariadb import free_port

DATABASE = "kytecron"
USER = "kytecron"
BINARIES = Path("/usr/lib/postgresql")
"""Where Debian puts the server's programs, of each version in a directory of its own: they are on nobody's path."""
NOBODY = "nobody"
"""The server refuses to run as root."""


def find_binaries() -> Path | None:
    """The directory of the newest server's programs, or None."""
    found = [path for path in BINARIES.glob("*/bin") if (path / "initdb").exists()]
    if found:
        return max(found, key=lambda path: float(path.parent.name))
    there = shutil.which("initdb")
    return Path(there).resolve().parent if there else None


class PostgreSQL:
    """One server: `stop` is clean, `kill` is not; `start` brings either back with the data it had."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.options = options
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://{USER}@127.0.0.1:{self.port}/{DATABASE}"

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def start(self) -> None:
        """Start the server (and make its cluster the first time) and wait until it answers."""
        if not self.data.exists():
            self._install()
        with (self.directory / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    self.program("postgres"),
                    *("-D", str(self.data), "-p", str(self.port), "-k", str(self.directory)),
                    *("-c", "listen_addresses=127.0.0.1", "-c", "max_connections=300"),
                    *("-c", "shared_buffers=64MB"),
                    # Tests kill the server's processes, never the machine: what the kernel holds is safe enough.
                    *("-c", "fsync=off", "-c", "full_page_writes=off"),
                    *(part for option in self.options for part in ("-c", option)),
                ],
                stdout=log,
                stderr=log,
                **as_nobody(),
            )
        self._wait()

    def _install(self) -> None:
        make_directory(self.directory)
        # In the order of a language, where the server knows any: names have to compare byte by byte all the same.
        words = ("--locale-provider=icu", "--icu-locale=en-US") if self.version() >= 15 else ()
        who = ("-U", USER, "-A", "trust")
        self.run("initdb", "-D", str(self.data), *who, "-N", "-E", "UTF8", "--locale=C.UTF-8", *words)

    def version(self) -> int:
        """The server's version, such as 15."""
        told = subprocess.run(
            [self.program("postgres"), "--version"], check=True, capture_output=True, text=True
        )
        return int(told.stdout.split()[2].partition(".")[0])

    def program(self, name: str) -> str:
        directory = find_binaries()
        assert directory
        return str(directory / name)

    def run(self, program: str, *arguments: str) -> None:
        """Run one of the server's programs to its end."""
        ended = subprocess.run(
            [self.program(program), *arguments], capture_output=True, text=True, **as_nobody()
        )
        assert ended.returncode == 0, ended.stderr[-3000:]

    def execute(self, *statements: str, database: str = DATABASE) -> list[Any]:
        """Execute statements, each by itself; returns the rows of the last one."""
        address = f"host=127.0.0.1 port={self.port} user={USER} dbname={database} connect_timeout=5"
        rows: list[Any] = []
        with psycopg.connect(address, autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
                rows = cursor.fetchall() if cursor.description else []
        return rows

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                there = self.execute(
                    f"SELECT 1 FROM pg_database WHERE datname = '{DATABASE}'", database="postgres"
                )
                break
            except psycopg.OperationalError:
                assert self.process is not None
                assert self.process.poll() is None, self._log()
                assert time.monotonic() < deadline, self._log()
                time.sleep(0.02)
        if not there:
            self.execute(f"CREATE DATABASE {DATABASE}", database="postgres")

    def make_database(self, name: str) -> None:
        """An empty database, in place of one of that name."""
        self.execute(
            f"DROP DATABASE IF EXISTS {name} WITH (FORCE)", f"CREATE DATABASE {name}", database="postgres"
        )

    def _log(self) -> str:
        return (self.directory / "server.log").read_text()[-3000:]

    def _processes(self) -> list[psutil.Process]:
        """The server and its children, each of which leads a group of its own."""
        assert self.process
        server = psutil.Process(self.process.pid)
        return [server, *server.children(recursive=True)]

    def freeze(self) -> None:
        """Stop its processes where they stand: connections stay open and nothing answers."""
        assert self.process
        psutil.Process(self.process.pid).suspend()  # it begins no more children
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):  # one that was just ending
                process.suspend()

    def thaw(self) -> None:
        assert self.process
        if self.process.poll() is None:
            for process in reversed(self._processes()):
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    def kill(self) -> None:
        assert self.process
        if self.process.poll() is None:
            self.freeze()
            processes = self._processes()
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(processes[1:], timeout=30)
        self.process.wait()

    def stop(self) -> None:
        assert self.process
        self.process.send_signal(2)  # the fast way: transactions are given up, nobody is waited for
        self.process.wait(timeout=30)


def as_nobody() -> dict[str, Any]:
    """Arguments of subprocess for programs that refuse to run as root."""
    if os.geteuid() != 0:
        return {}
    return {"user": NOBODY, "group": "nogroup", "extra_groups": [], "cwd": "/"}


def make_directory(path: Path) -> None:
    """A directory that belongs to the server's user."""
    path.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        shutil.chown(path, NOBODY, "nogroup")


@contextmanager
def directory() -> Iterator[Path]:
    """A directory that the server's user reaches, as it does not reach those of pytest."""
    path = Path(tempfile.mkdtemp(prefix="kytecron-postgres-"))
    make_directory(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def require() -> None:
    """Skip the test where there is no server, or fail where nothing may be skipped."""
    if find_binaries() is None:
        refuse("no PostgreSQL server on this machine (package postgresql)")


def refuse(lack: str) -> NoReturn:
    """Skip the test for what the machine lacks, or fail where nothing may be skipped."""
    if os.environ.get("KYTECRON_TEST_REQUIRE_ALL"):
        pytest.fail(lack)
    pytest.skip(lack)


@contextmanager
def serving(*options: str) -> Iterator[PostgreSQL]:
    """A server that has the tables, for the tests of one scope; skips them, or fails where nothing may be skipped."""
    require()
    with directory() as path:
        server = PostgreSQL(path, *options)
        server.start()
        try:
            engine = db.make_engine(Settings(database_url=server.url))
            schema.upgrade(engine)
            engine.dispose()
            yield server
        finally:
            server.kill()
