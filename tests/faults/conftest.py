"""What the fault tests share: a MariaDB that may be harmed, a proxy before it, a journal, short leases."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pymysql
import pytest

from kytecron.config import Settings
from kytecron.store.models import Base
from tests.faults.proxy import Proxy
from tests.mariadb import DATABASE, MariaDB, serving
from tests.workers import Journal


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
def proxy(mariadb: MariaDB) -> Iterator[Proxy]:
    proxy = Proxy(mariadb.port)
    yield proxy
    proxy.close()


@pytest.fixture
def proxied(mariadb_settings: Settings, proxy: Proxy) -> Settings:
    """The emptied MariaDB behind the proxy; tests themselves look at it directly."""
    url = f"mysql+pymysql://root@127.0.0.1:{proxy.port}/{DATABASE}"
    return dataclasses.replace(mariadb_settings, database_url=url)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDB]:
    """A MariaDB of this module alone: stopped, killed and frozen by its tests."""
    with serving(tmp_path_factory.mktemp("server")) as server:
        with root(server) as connection, connection.cursor() as cursor:
            # `read_only` does not hold for root.
            cursor.execute("CREATE USER worker@127.0.0.1")
            cursor.execute(f"GRANT ALL ON {DATABASE}.* TO worker@127.0.0.1")
        yield server


@pytest.fixture
def server_settings(tmp_path: Path, server: MariaDB) -> Settings:
    """The module's own MariaDB, emptied, for a user without special rights."""
    with root(server) as connection, connection.cursor() as cursor:
        cursor.execute("SET foreign_key_checks = 0")
        for table in Base.metadata.sorted_tables:
            cursor.execute(f"DELETE FROM {DATABASE}.`{table.name}`")
    url = f"mysql+pymysql://worker@127.0.0.1:{server.port}/{DATABASE}"
    return Settings(instance_path=tmp_path / "instance", database_url=url)


def root(server: MariaDB) -> pymysql.Connection[pymysql.cursors.Cursor]:
    """A connection that may do everything, in autocommit."""
    return pymysql.connect(
        host="127.0.0.1", port=server.port, user="root", database=DATABASE, autocommit=True, ssl_disabled=True
    )
