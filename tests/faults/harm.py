"""What a test does to a server besides starting and stopping it, in the words of each kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
import pymysql
from psycopg.types.json import Jsonb

from tests.faults.proxy import Client, MySQLClient, PostgreSQLClient
from tests.mariadb import DATABASE, MariaDB
from tests.postgres import USER, PostgreSQL

WORKER = "worker"
"""A user without special rights: some of what a server refuses it does not refuse to its administrator."""

Error = (pymysql.Error, psycopg.Error)
Server = MariaDB | PostgreSQL


@dataclass(frozen=True, kw_only=True)
class Harm:
    """A server, and what can be done to it."""

    server: Server
    client: Callable[[], Client]
    """How its clients speak."""
    connect: Callable[[], Any]
    """A connection of the driver that may do everything, in autocommit."""
    make_worker: tuple[str, ...]
    """Statements that make the user of the workers."""
    read_only: tuple[str, ...]
    writable: tuple[str, ...]
    says_read_only: str
    """What a driver says of a server that takes no writes."""
    sessions: str
    """A query for the ids of the workers' sessions."""
    end_session: str
    """A statement that ends the one of that id."""
    prefer_others: str
    """A statement that makes the one of two in a deadlock go on who has sent it, as far as that can be said."""
    grow: str
    """A statement that begins each of its transactions, for the same end."""
    says_deadlock: str | None
    """What a driver says of one; None where those who pass over locked rows do not get into any."""
    next_id: str
    """A statement after which a table goes on with that id."""
    as_json: Callable[[Any], Any]
    """A value of a JSON column as the driver gives it, as the driver takes it."""
    quote: str
    """What stands around names."""

    @property
    def url(self) -> str:
        """The address for the workers."""
        return self.server.url.replace("root@", f"{WORKER}@").replace(f"{USER}@", f"{WORKER}@")

    def through(self, port: int) -> str:
        """The address of a user who may do everything, by way of a proxy."""
        return self.server.url.replace(str(self.server.port), str(port))

    def execute(self, *statements: str) -> list[tuple[Any, ...]]:
        """Execute statements, each by itself; returns the rows of the last one."""
        with self.connect() as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []

    def name(self, name: str) -> str:
        """The name of a table as a statement has it."""
        return f"{self.quote}{name}{self.quote}"

    @contextmanager
    def locked(self, table: str, row: int) -> Iterator[None]:
        """Somebody holds the lock on a row."""
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.execute(f"SELECT id FROM {self.name(table)} WHERE id = %s FOR UPDATE", (row,))
            yield
            cursor.execute("ROLLBACK")


def harm(server: Server) -> Harm:
    """What can be done to this server."""
    return _harm_mariadb(server) if isinstance(server, MariaDB) else _harm_postgresql(server)


def _harm_mariadb(server: MariaDB) -> Harm:
    def connect() -> Any:
        return pymysql.connect(
            host="127.0.0.1",
            port=server.port,
            user="root",
            database=DATABASE,
            autocommit=True,
            ssl_disabled=True,
        )

    return Harm(
        server=server,
        client=MySQLClient,
        connect=connect,
        make_worker=(
            # `read_only` does not hold for root.
            f"CREATE USER IF NOT EXISTS {WORKER}@127.0.0.1",
            f"GRANT ALL ON {DATABASE}.* TO {WORKER}@127.0.0.1",
        ),
        read_only=("SET GLOBAL read_only = 1",),
        writable=("SET GLOBAL read_only = 0",),
        says_read_only="--read-only",
        sessions=f"SELECT id FROM information_schema.processlist WHERE user = '{WORKER}'",
        end_session="KILL %s",
        # Of two that wait for each other, the one that has changed more goes on.
        prefer_others="CREATE TEMPORARY TABLE weight (n INT) ENGINE=InnoDB",
        grow="INSERT INTO weight SELECT seq FROM seq_1_to_1000",
        says_deadlock="(1213",
        next_id="ALTER TABLE {table} AUTO_INCREMENT = {following}",
        as_json=lambda text: text,
        quote="`",
    )


def _harm_postgresql(server: PostgreSQL) -> Harm:
    def connect() -> Any:
        address = f"host=127.0.0.1 port={server.port} user={USER} dbname={DATABASE}"
        return psycopg.connect(address, autocommit=True)

    return Harm(
        server=server,
        client=PostgreSQLClient,
        connect=connect,
        make_worker=(
            f"DO $$ BEGIN CREATE ROLE {WORKER} LOGIN; EXCEPTION WHEN duplicate_object THEN END $$",
            f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {WORKER}",
            f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {WORKER}",
        ),
        read_only=("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"),
        writable=(
            "SET default_transaction_read_only = off",
            "ALTER SYSTEM RESET default_transaction_read_only",
            "SELECT pg_reload_conf()",
        ),
        says_read_only="read-only",
        sessions=f"SELECT pid FROM pg_stat_activity WHERE usename = '{WORKER}'",
        end_session="SELECT pg_terminate_backend(%s)",
        # Who has waited for so long looks whether there is a deadlock, and gives up if so: workers after one second.
        prefer_others="SET deadlock_timeout = '10s'",
        grow="SELECT 1",
        says_deadlock=None,
        next_id="SELECT setval(pg_get_serial_sequence('{table}', 'id'), {following}, false)",
        as_json=lambda value: None if value is None else Jsonb(value),
        quote='"',
    )
