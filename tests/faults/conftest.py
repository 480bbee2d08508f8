"""What the fault tests share: servers that may be harmed, a proxy before one, a journal, short leases."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from kytecron.config import Settings
from kytecron.store.models import Base
from tests import mariadb as mariadb_server
from tests import postgres
from tests.faults.harm import Harm, Server, harm
from tests.faults.proxy import Proxy
from tests.mariadb import MariaDB
from tests.workers import Journal

SERVERS = (
    pytest.param("mariadb", marks=pytest.mark.mariadb),
    pytest.param("postgresql", marks=[pytest.mark.postgresql, pytest.mark.thorough]),
)
"""Faults take minutes: `make test` has one server suffer, `make test-all` each."""


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture(params=["sqlite", *SERVERS])
def settings(request: pytest.FixtureRequest) -> Settings:
    """The same fault on each database."""
    chosen: Settings = request.getfixturevalue(f"{request.param}_settings")
    return chosen


@pytest.fixture(params=SERVERS)
def shared(request: pytest.FixtureRequest) -> Harm:
    """Each server of the test session, for tests that leave it alone and harm what is on the way to it."""
    return harm(request.getfixturevalue(request.param))


@pytest.fixture
def shared_settings(shared: Harm, request: pytest.FixtureRequest) -> Settings:
    """The emptied database of that server."""
    kind = "mariadb" if isinstance(shared.server, MariaDB) else "postgresql"
    chosen: Settings = request.getfixturevalue(f"{kind}_settings")
    return chosen


@pytest.fixture
def proxy(shared: Harm) -> Iterator[Proxy]:
    proxy = Proxy(shared.server.port, shared.client)
    yield proxy
    proxy.close()


@pytest.fixture
def proxied(shared_settings: Settings, shared: Harm, proxy: Proxy) -> Settings:
    """The emptied database behind the proxy; tests themselves look at it directly."""
    return dataclasses.replace(shared_settings, database_url=shared.through(proxy.port))


@pytest.fixture(scope="module", params=SERVERS)
def harmed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harm]:
    """A server of each kind, of this module alone: stopped, killed and frozen by its tests."""
    if request.param == "mariadb":
        with mariadb_server.serving(tmp_path_factory.mktemp("server")) as mariadb:
            yield _with_worker(mariadb)
    else:
        with postgres.serving() as postgresql:
            yield _with_worker(postgresql)


def _with_worker(server: Server) -> Harm:
    harmed = harm(server)
    harmed.execute(*harmed.make_worker)
    return harmed


@pytest.fixture
def server(harmed: Harm) -> Server:
    return harmed.server


@pytest.fixture
def server_settings(tmp_path: Path, harmed: Harm) -> Settings:
    """The module's own server, emptied, for a user without special rights."""
    harmed.execute(
        *(f"DELETE FROM {harmed.name(table.name)}" for table in reversed(Base.metadata.sorted_tables))
    )
    return Settings(instance_path=tmp_path / "instance", database_url=harmed.url)
