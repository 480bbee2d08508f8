"""A private MariaDB server for tests: installed into a temporary directory, free to be killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pymysql
import pytest

from kytecron.config import Settings
from kytecron.store import db, schema

DATABASE = "kytecron"


def find_mariadbd() -> str | None:
    """The server's binary, or None."""
    return shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class MariaDB:
    """One server process. `stop` is clean, `kill` is not; `start` brings either back with the data it had."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.options = options
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mysql+pymysql://root@127.0.0.1:{self.port}/{DATABASE}"

    def start(self) -> None:
        """Start the server (and install it the first time) and wait until it answers."""
        data = self.directory / "data"
        if not data.exists():
            self._install(data)
        binary = find_mariadbd()
        assert binary
        with (self.directory / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    binary,
                    "--no-defaults",
                    f"--datadir={data}",
                    "--user=root",
                    "--bind-address=127.0.0.1",
                    f"--port={self.port}",
                    f"--socket={self.directory / 's'}",
                    # A server that starts removes the temporary tables it finds: not those of others.
                    f"--tmpdir={self.directory}",
                    "--skip-name-resolve",
                    "--skip-log-bin",
                    "--innodb-buffer-pool-size=64M",
                    # Tests kill the server process, never the machine: what the kernel holds is safe enough.
                    "--innodb-flush-log-at-trx-commit=2",
                    "--max-connections=300",
                    *self.options,
                ],
                stdout=log,
                stderr=log,
            )
        self._wait()

    def _install(self, data: Path) -> None:
        subprocess.run(
            [
                "mariadb-install-db",
                "--no-defaults",
                f"--datadir={data}",
                "--user=root",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ],
            env={**os.environ, "TMPDIR": str(self.directory)},
            check=True,
            capture_output=True,
        )

    def _wait(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                connection = pymysql.connect(host="127.0.0.1", port=self.port, user="root", ssl_disabled=True)
                break
            except pymysql.err.OperationalError:
                assert self.process is not None
                assert self.process.poll() is None, self._log()
                assert time.monotonic() < deadline, self._log()
                time.sleep(0.02)
        with connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE IF NOT EXISTS {DATABASE} CHARACTER SET utf8mb4")

    def make_database(self, name: str) -> None:
        """An empty database, in place of one of that name."""
        with pymysql.connect(host="127.0.0.1", port=self.port, user="root", ssl_disabled=True) as connection:
            cursor = connection.cursor()
            cursor.execute(f"DROP DATABASE IF EXISTS {name}")
            cursor.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")

    def _log(self) -> str:
        return (self.directory / "server.log").read_text()[-3000:]

    def freeze(self) -> None:
        """Stop the process where it stands: connections stay open and nothing answers."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        assert self.process
        self.process.terminate()
        self.process.wait(timeout=30)


@contextmanager
def serving(directory: Path, *options: str) -> Iterator[MariaDB]:
    """A server that has the tables, for the tests of one scope; skips them, or fails where nothing may be skipped."""
    if find_mariadbd() is None:
        if os.environ.get("KYTECRON_TEST_REQUIRE_ALL"):
            pytest.fail("mariadbd is required here (package mariadb-server)")
        pytest.skip("no mariadbd on this machine (package mariadb-server)")
    server = MariaDB(directory, *options)
    server.start()
    try:
        engine = db.make_engine(Settings(database_url=server.url))
        schema.upgrade(engine)
        engine.dispose()
        yield server
    finally:
        server.thaw()
        server.stop()
