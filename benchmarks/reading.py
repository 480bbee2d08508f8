"""How long the app takes for every page and every list of the API, on a filled database.

`measure` asks for each address that the app serves by GET, the lists with each of their filters too, as a browser or a
client would, and gives the server's time for it. `python -m benchmarks.reading` prints that for the database of the
settings: see `fill`.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from datetime import timedelta

import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy.orm import Session

from kytecron.app import create_app
from kytecron.config import Settings
from kytecron.core.states import Status
from kytecron.services import accounts
from kytecron.services.audit import Actor
from kytecron.store import db
from kytecron.store.models import Base, CronJob, CronJobExecution, CronToken, CronUser
from kytecron.store.queries import JOB_SORTS, JOB_STATUSES

from .bench import Bench, Figure, percentile
from .fill import fill

READ = Actor("reading")
TIMES = 12
SLOW = 0.5
"""Seconds after which an address is not asked for many times more."""
BY_TOKEN = ("/api/", "/metrics")
LEFT_OUT = (
    "/static/",
    "/healthz",
    "/readyz",
    "/sign-in",
    "/secrets/",
    "/api/v1/secrets/",
    "/api/v1/jobs/export",
)
"""What is no page and no list: a secret is not filled in, and the export of all jobs is as long as they are many."""
GOAL_MS = 50
GOAL_GROWTH = 1.5
FEW = 100_000
"""Runs that the time with many is held against."""
GROWN_MS = 5
"""What takes less grows by chance."""


def reads(bench: Bench, jobs: int = 5_000) -> list[Figure]:
    """P7: pages and lists with few runs, with `bench.runs`, and once the database has counted these."""
    app = create_app(bench.settings)
    fill(bench.engine, jobs, FEW)
    few = measure(app, bench.session)
    _empty(bench.session)
    fill(bench.engine, jobs, bench.runs)
    many = measure(app, bench.session)
    analyze(bench.session)
    counted = measure(app, bench.session)
    growth = {one: many[one] / max(few[one], GROWN_MS / 1000) for one in few.keys() & many.keys()}
    grown = max(growth, key=growth.__getitem__)
    runs = f"{bench.runs:,} runs"
    return [
        _slowest(bench, f"{runs}, slowest page or list, p95", many),
        _slowest(bench, f"{runs}, with statistics, slowest, p95", counted),
        bench.at_most(GOAL_GROWTH, "P7", f"{FEW:,} to {runs}, most grown", growth[grown], "", grown),
    ]


def _slowest(bench: Bench, what: str, taken: dict[str, float]) -> Figure:
    address = max(taken, key=taken.__getitem__)
    return bench.at_most(GOAL_MS, "P7", what, 1000 * taken[address], "ms", address)


def _empty(session: Session) -> None:
    for table in reversed(Base.metadata.sorted_tables):
        session.execute(sa.delete(table))
    session.commit()


def measure(app: Flask, session: Session, times: int = TIMES) -> dict[str, float]:
    """The 95th percentile of the seconds that the server takes for each address."""
    visitor, caller = _visitor(app, session), _caller(app, session)
    return {
        address: _taken(caller if address.startswith(BY_TOKEN) else visitor, address, times)
        for address in addresses(app, session)
    }


def addresses(app: Flask, session: Session) -> list[str]:
    """Every address that is served by GET, about the job with most runs, and lists with their filters."""
    values = _values(session)
    found = []
    for rule in app.url_map.iter_rules():
        if "GET" not in (rule.methods or ()):
            continue
        path = re.sub("<(?:[^<>]+:)?([^<>]+)>", lambda match: values.get(match[1], "none"), rule.rule)
        if not path.startswith(LEFT_OUT):
            found.append(path + _NEEDED.get(rule.rule, "").format(**values))
    return sorted({*found, *_filtered(session, values)})


_NEEDED = {
    "/jobs/<int:job_id>/versions/compare": "?from=1&to={number}",
    "/api/v1/jobs/<int:job_id>/versions/compare": "?from=1&to={number}",
    "/api/v1/contents": "?hash=00",
    "/jobs/preview": "?schedule_type=cron&cron_expression=*/5+*+*+*+*",
}


def _values(session: Session) -> dict[str, str]:
    """What stands in addresses: the job with most runs, its last failure, things that are there."""
    several = sa.select(CronJob.id).where(CronJob.current_version > 1)
    job = session.scalar(several.order_by(CronJob.runs_total.desc()).limit(1))
    failed = sa.select(sa.func.max(CronJobExecution.id)).where(
        CronJobExecution.cron_job == job, CronJobExecution.status == Status.FAILED
    )
    newest = sa.select(sa.func.max(CronJobExecution.id)).where(CronJobExecution.cron_job == job)
    versions = sa.select(CronJob.current_version).where(CronJob.id == job)
    return {
        "job_id": str(job),
        "execution_id": str(session.scalar(failed) or session.scalar(newest)),
        "number": str(session.scalar(versions)),
        "version": str(session.scalar(versions)),
        "user_id": str(session.scalar(sa.select(sa.func.min(CronUser.id)))),
        "token_id": str(session.scalar(sa.select(sa.func.min(CronToken.id)))),
        "secret_id": "1",
        "title": "schedules",
    }


def _filtered(session: Session, values: dict[str, str]) -> Iterator[str]:
    now = db.now(session)
    begin, end = (now - timedelta(days=3)).date(), (now - timedelta(days=2)).date()
    job = values["job_id"]
    yield from (f"/jobs?status={one}" for one in JOB_STATUSES)
    yield from (f"/jobs?sort={one}" for one in JOB_SORTS)
    yield from (f"/jobs?last_result={one}" for one in (*Status, "never") if one not in ("pending", "running"))
    yield from ("/jobs?q=import", "/jobs?tag=etl", "/jobs?schedule_type=monthly")
    for of in ("/executions?", f"/jobs/{job}/executions?"):
        yield from (f"{of}status={one}" for one in (*Status, "unsuccessful"))
        yield f"{of}from={begin}&to={end}"
        yield f"{of}from={begin}&to={end}&status=failed"
        yield f"{of}worker=worker-a"
        yield f"{of}text=refused"
    for api in ("/api/v1/executions?", f"/api/v1/executions?job={job}&"):
        yield from (f"{api}status={one}" for one in Status)
        yield from (f"{api}origin=manual", f"{api}version=1", f"{api}from={begin}T00:00:00Z")
    yield "/audit?actor=ada"
    yield "/audit?action=recover"
    yield f"/audit?subject_type=job&subject_id={job}"


def _visitor(app: Flask, session: Session) -> FlaskClient:
    """A browser of an administrator."""
    client = app.test_client()
    person = session.scalar(sa.select(CronUser.username).where(CronUser.role == "admin"))
    assert person, "fill the database first"
    link = accounts.create_sign_in_link(session, READ, person)
    found = re.search(r'name="csrf-token" content="([^"]+)"', client.get("/sign-in").text)
    assert found
    assert client.post(f"/sign-in/{link}", headers={"X-CSRFToken": found[1]}).status_code == 303
    return client


def _caller(app: Flask, session: Session) -> FlaskClient:
    """A client of the API with an administrator's token."""
    _, token = accounts.create_token(session, "reading", "admin", 1, READ)
    client = app.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {token}"
    return client


def _taken(client: FlaskClient, address: str, times: int) -> float:
    taken: list[float] = []
    for number in range(times + 1):
        begun = time.perf_counter()
        answer = client.get(address, buffered=True)
        taken.append(time.perf_counter() - begun)
        assert answer.status_code in (200, 404), (address, answer.status_code, answer.text[:200])
        if number and taken[-1] > SLOW:
            break
    return percentile(taken[1:], 0.95)  # the first compiles the template


def analyze(session: Session) -> None:
    """Have the database gather statistics, as some do by themselves."""
    if session.get_bind().dialect.name.startswith(("mysql", "mariadb")):
        for table in Base.metadata.sorted_tables:
            session.execute(sa.text(f"ANALYZE TABLE {table.name}"))
    else:
        session.execute(sa.text("ANALYZE"))
    session.commit()


def main() -> int:
    """Print the slowest last."""
    settings = Settings.load()
    engine = db.make_engine(settings, statement_seconds=300)
    with db.make_sessions(engine)() as session:
        if "--analyze" in sys.argv:
            analyze(session)
        found = measure(create_app(settings), session)
    for address, seconds in sorted(found.items(), key=lambda one: one[1]):
        print(f"{1000 * seconds:8.1f} ms  {address}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
