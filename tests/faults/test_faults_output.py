"""Jobs that print what they should not: worker and ledger stay well."""

from __future__ import annotations

import psutil
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from kytecron.config import Settings
from kytecron.services import lifecycle
from kytecron.store.models import CronJobOutput
from tests.factories import fresh
from tests.faults.scene import ANNA, SHORT, clockwork, in_the_end, keeps_going
from tests.workers import Journal, executions, make_job, wait_for, wait_for_statuses, working

MEGABYTE = 1_000_000
KEPT = 1 * MEGABYTE


def _output(session: Session, execution_id: int) -> str:
    pieces = session.scalars(
        sa.select(CronJobOutput.text)
        .where(CronJobOutput.execution == execution_id)
        .order_by(CronJobOutput.seq)
    )
    (run,) = [run for run in executions(session) if run.id == execution_id]
    return "".join(pieces) + (run.output or "")


@pytest.mark.slow
def test_a_job_that_prints_200_megabytes_costs_neither_memory_nor_other_runs(
    settings: Settings, session: Session, journal: Journal
) -> None:
    body = "line = 'x' * 99_999 + chr(10)\nfor _ in range(2000):\n    print(line, end='')"
    loud = make_job(session, journal.code(body), max_retries=0)
    quiet = clockwork(session, journal)
    with working(settings, **SHORT, output_limit_bytes=KEPT) as worker:
        wait_for(lambda: journal.entries("end"), "a good start")
        process = psutil.Process(worker.pid)
        before = process.memory_info().rss
        run = lifecycle.trigger(session, loud.id, actor=ANNA)
        most = before

        def ended() -> bool:
            nonlocal most
            most = max(most, process.memory_info().rss)
            return executions(session, loud)[0].status == "completed"

        wait_for(ended, "the loud job to end", seconds=90)
        keeps_going(session, quiet)
        in_the_end(session, journal, [worker])
    assert executions(session, loud)[0].output_bytes == 200 * MEGABYTE
    assert len(_output(session, run.id)) < 1.1 * KEPT
    assert most - before < 60 * MEGABYTE


def test_nul_bytes_and_invalid_utf8_are_shown_and_harm_nothing(
    settings: Settings, session: Session, journal: Journal
) -> None:
    body = r"""
os.write(1, b"nul \x00 bad \xff\xfe half \xe2\x82\n")
print("surrogate \udc80")
self.state["odd"] = "\x00\ud800"
self.progress(50, "\x00\ud800")
"""
    job = make_job(
        session, journal.code(body).replace('note(self, "end")', 'note(self, "end"); return "\\x00\\ud800"')
    )
    with working(settings, **SHORT) as worker:
        run = lifecycle.trigger(session, job.id, actor=ANNA)
        (odd,) = wait_for_statuses(session, job, "completed")
        in_the_end(session, journal, [worker])
    assert (odd.result, fresh(session, job).state) == ("␀\\ud800", {"odd": "␀\\ud800"})
    assert _output(session, run.id) == "nul ␀ bad \\xff\\xfe half \\xe2\\x82\nsurrogate \\udc80\n"


def test_a_result_nested_deeper_than_a_database_keeps_harms_nothing(
    settings: Settings, session: Session, journal: Journal
) -> None:
    deep = "deep = []; [deep := [deep] for _ in range(200)]; return deep"
    job = make_job(session, journal.code().replace('note(self, "end")', f'note(self, "end"); {deep}'))
    quiet = clockwork(session, journal)
    with working(settings, **SHORT) as worker:
        lifecycle.trigger(session, job.id, actor=ANNA)
        (run,) = wait_for_statuses(session, job, "completed")
        keeps_going(session, quiet)
        in_the_end(session, journal, [worker])
        assert "database is not available" not in worker.log()
    assert "(nested too deeply)" in str(run.result)
