"""A server that takes short statements only (max_allowed_packet): what is written together is cut to its measure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from kytecron.config import Settings
from kytecron.core.states import Outcome, Status
from kytecron.services import doctor, lifecycle
from kytecron.services.audit import Actor
from kytecron.store import db, dialects
from kytecron.store.claims import RUN
from kytecron.store.models import CronJob, CronJobExecution, CronThrottle
from kytecron.store.prepared import UpdateEach
from tests.conftest import empty
from tests.factories import LEASE, WORKER, add_job, fresh, runs_of
from tests.mariadb import MariaDB, serving
from tests.workers import executions, make_job, printed, wait_for, wait_for_statuses, working

pytestmark = pytest.mark.mariadb

ANNA = Actor("anna")
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
KEPT = 65_536
"""Characters that are kept of a result, a stack trace and a state."""
CLOCK = "\N{MANTELPIECE CLOCK}"  # four bytes of UTF-8, fourteen of a statement where it stands in JSON
AWKWARD = ["\n'\\", CLOCK, "x"]


@pytest.fixture(scope="module")
def narrow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDB]:
    """A MariaDB that takes no more than what kytecron asks for."""
    with serving(
        tmp_path_factory.mktemp("narrow"), f"--max-allowed-packet={dialects.LEAST_PACKET}"
    ) as server:
        yield server


@pytest.fixture
def settings(tmp_path: Path, narrow_server: MariaDB) -> Settings:
    settings = Settings(instance_path=tmp_path / "instance", database_url=narrow_server.url)
    empty(settings)
    return settings


@pytest.fixture
def too_narrow(settings: Settings) -> Iterator[Settings]:
    """The same server, once it takes even less, which long results do not fit in."""
    engine = db.make_engine(settings)
    with engine.connect() as connection:
        connection.exec_driver_sql("SET GLOBAL max_allowed_packet = 65536")
        try:
            yield settings
        finally:
            connection.exec_driver_sql(f"SET GLOBAL max_allowed_packet = {dialects.LEAST_PACKET}")
    engine.dispose()


def ready_runs(session: Session, count: int) -> list[lifecycle.ClaimedRun]:
    for _ in range(count):
        add_job(session, max_retries=0)
    lifecycle.enqueue_due(session, limit=count)
    return lifecycle.claim(session, WORKER, (), count, LEASE)


def test_the_longest_results_of_many_runs_are_written_together(session: Session) -> None:
    claims = [run.claim for run in ready_runs(session, 30)]
    outcomes = [
        Outcome(
            Status.COMPLETED,
            result=(text * KEPT)[:KEPT],
            state={"kept": CLOCK * 5_000},
            output=(text * 5_000_000)[: 16_384 if number % 2 else 5_000_000],
            duration_ms=1,
        )
        for number, text in enumerate(AWKWARD * 10)
    ]
    settled = lifecycle.settle(session, list(zip(claims, outcomes, strict=True)))
    assert settled.ended == {claim.execution_id for claim in claims}
    for claim, outcome in zip(claims, outcomes, strict=True):
        run = session.get_one(CronJobExecution, claim.execution_id)
        assert (run.status, run.result) == ("completed", outcome.result)
        assert printed(session, run) == outcome.output


def test_the_longest_stack_traces_of_many_runs_are_written_together(session: Session) -> None:
    claims = [run.claim for run in ready_runs(session, 30)]
    lost = Outcome(Status.FAILED, error=CLOCK * 2_000, stack_trace=CLOCK * 70_000, output=CLOCK * 16_384)
    assert len(lifecycle.settle(session, [(claim, lost) for claim in claims]).ended) == 30
    assert {run.stack_trace for run in executions(session)} == {CLOCK * 70_000}


def test_live_output_of_many_runs_is_stored_together(session: Session) -> None:
    claims = [run.claim for run in ready_runs(session, 20)]
    pieces = [(seq, text * 65_536, False) for seq, text in enumerate(AWKWARD)]
    pieces[0] = 0, "\n" * 262_144, False
    stored = lifecycle.append_output(session, [lifecycle.Progress(claim, pieces) for claim in claims])
    assert not stored.gone
    assert printed(session, executions(session)[-1]) == "".join(text for _, text, _ in pieces)


def test_values_find_their_rows_wherever_the_list_is_cut(session: Session) -> None:
    """Each row is written once, and one that is no longer as expected is not, in whichever part it comes."""
    ids = [run.claim.execution_id for run in ready_runs(session, 9)]
    session.execute(sa.update(RUN).where(RUN.c.id == ids[4]).values(retry_count=1))
    rows = [
        {"row_id": row_id, "stack_trace": CLOCK * size}
        for row_id, size in zip(ids, (1, 240_000, 5, 2, 240_000, 240_000, 3, 100_000, 120_000), strict=True)
    ]
    writer = UpdateEach(RUN, {"row_id": RUN.c.id}, ["stack_trace"], RUN.c.retry_count == 0)
    assert writer.run(session, rows) == 8
    session.commit()
    written = {run.id: run.stack_trace for run in executions(session)}
    assert written == {row["row_id"]: row["stack_trace"] for row in rows} | {ids[4]: None}


def test_many_rows_that_sqlalchemy_writes_are_not_one_statement(session: Session) -> None:
    jobs = [CronJob(name=f"job {number}", parameters={"k": CLOCK * 16_000}) for number in range(12)]
    session.add_all(jobs)
    session.commit()
    assert len({job.id for job in jobs}) == 12


def test_a_statement_that_is_too_long_is_refused_before_it_is_sent(session: Session) -> None:
    """The server would hang up, and be taken for one that is away."""
    query = sa.insert(CronThrottle).values(key="x" * (1 << 21), window=NOW, count=1)
    with pytest.raises(DBAPIError, match="max_allowed_packet") as caught:
        session.execute(query)
    assert not db.is_outage(caught.value)
    assert not caught.value.connection_invalidated
    session.rollback()
    add_job(session)  # the connection is as good as before


@pytest.mark.slow
def test_one_result_that_does_not_fit_fails_its_run_and_no_other(too_narrow: Settings) -> None:
    engine = db.make_engine(too_narrow)
    with db.make_sessions(engine)() as session:
        body = "class J(CronJobBase):\n    def execute(self):\n        "
        long = make_job(session, f"{body}return '{CLOCK}' * 60_000", max_retries=0)
        short = make_job(session, f"{body}return 'short'", max_retries=0)
        chatty = make_job(session, f"{body}print('{CLOCK}' * 30_000, flush=True)", max_retries=0)
        with working(too_narrow):
            for job in (long, short, chatty):
                lifecycle.trigger(session, job.id, actor=ANNA)
            (failed,) = wait_for_statuses(session, long, "failed")
            (told,) = wait_for_statuses(session, short, "completed")
            wait_for(lambda: all(run.completed_at for run in executions(session)), "all of them to end")
        assert "max_allowed_packet" in str(failed.error)
        assert told.result == "short"
        assert fresh(session, long).in_dead_letter_queue
        assert runs_of(session, short)[0].retry_count == 0
    engine.dispose()


def test_doctor_names_a_server_that_takes_less_than_a_result_may_need(too_narrow: Settings) -> None:
    engine = db.make_engine(too_narrow)
    (about,) = [one for one in doctor.examine(engine, too_narrow, ANNA) if one.check == "database"]
    engine.dispose()
    assert about.verdict == "warning"
    assert "65,536 bytes" in about.detail
    assert "max_allowed_packet" in about.advice
