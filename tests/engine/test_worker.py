"""The worker as its users run it: `python worker.py` on a real database."""

from __future__ import annotations

import dataclasses
import re
import signal
import textwrap
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography.fernet import Fernet
from sqlalchemy.orm import Session

from kytecron.config import Settings
from kytecron.services import deadletters, jobapi, lifecycle, secrets
from kytecron.services.audit import Actor
from kytecron.services.jobs import CronJobManager
from kytecron.store import db
from kytecron.store.models import CronAudit, CronJob, CronJobExecution, CronJobOutput, CronWorkerRecord
from tests.factories import add_worker
from tests.rawsql import typed
from tests.workers import (
    Journal,
    WorkerProcess,
    alive,
    executions,
    make_job,
    printed,
    wait_for,
    wait_for_statuses,
    working,
)

ANNA = Actor("anna")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


def test_a_job_runs_on_time_slot_after_slot(settings: Settings, session: Session, journal: Journal) -> None:
    job = make_job(session, journal.code(), schedule_type="interval", interval_seconds=1)
    with working(settings) as worker:
        wait_for(lambda: len(journal.entries("end")) >= 3, "three runs")
        statistics = worker.stop()
    assert statistics["completed"] >= 3
    assert statistics["failed"] == 0
    ran = [run for run in executions(session, job) if run.status == "completed"]
    assert len({run.scheduled_time for run in ran}) == len(ran)
    since_first = [(run.scheduled_time - ran[0].scheduled_time).total_seconds() for run in ran]
    assert all(seconds == int(seconds) for seconds in since_first), "slots lie on anchor + k * interval"


def test_slots_are_served_when_they_come_however_seldom_the_worker_looks(
    settings: Settings, session: Session, journal: Journal
) -> None:
    jobs = [make_job(session, journal.code(), schedule_type="interval", interval_seconds=1) for _ in range(3)]
    begin = db.now(session) + timedelta(seconds=1)
    for number, job in enumerate(jobs):  # one foreseen slot is followed by another job's
        job.schedule_anchor = job.next_run_time = begin + timedelta(seconds=0.1 * number)
    session.commit()
    with working(settings, poll_interval=60):
        for job in jobs:
            wait_for(lambda job=job: len(executions(session, job)) >= 3, "three slots of each job")


def hanging_workers(session: Session, number: int) -> None:
    """Workers elsewhere that have just reported, and do nothing."""
    for one in range(number):
        add_worker(session, f"hangs {one}", host="far")


def test_workers_that_are_known_and_do_nothing_hold_up_no_slot_and_no_trigger(
    settings: Settings, session: Session, journal: Journal
) -> None:
    hanging_workers(session, 9)
    regular = make_job(session, journal.code(), schedule_type="interval", interval_seconds=1)
    triggered = make_job(session, journal.code())
    with working(settings, poll_interval=0.4):
        wait_for(lambda: len(executions(session, regular)) >= 4, "slots, most of which were others' turn")
        for number in range(2):
            lifecycle.trigger(session, triggered.id, actor=ANNA)
            wait_for_statuses(session, triggered, *["completed"] * (number + 1))
    ran = [run.scheduled_time for run in executions(session, regular)]
    assert all(later - earlier == timedelta(seconds=1) for earlier, later in pairwise(ran)), (
        "no slot was lost"
    )


def test_a_triggered_run_starts_without_waiting_for_a_slot(
    settings: Settings, session: Session, journal: Journal
) -> None:
    job = make_job(session, journal.code())
    with working(settings):
        lifecycle.trigger(session, job.id, parameters={"n": 1}, actor=ANNA)
        (run,) = wait_for_statuses(session, job, "completed")
    assert run.duration_ms is not None
    assert run.memory_peak_mb
    assert run.exit_code == 0


def test_a_failing_job_is_retried_then_set_aside_then_recovered(settings: Settings, session: Session) -> None:
    code = """
class Fails(CronJobBase):
    def execute(self):
        print("trying")
        raise ValueError("no")
"""
    job = make_job(
        session, code, schedule_type="interval", interval_seconds=3600, max_retries=2, retry_delay_seconds=1
    )
    with working(settings):
        runs = wait_for_statuses(session, job, "failed", "failed", "failed")
        for before, after, delay in ((runs[0], runs[1], 1), (runs[1], runs[2], 2)):
            assert before.completed_at is not None
            assert after.due_time is not None
            assert after.started_at is not None
            assert (after.due_time - before.completed_at).total_seconds() == delay
            assert after.started_at >= after.due_time
        assert runs[2].error == "ValueError: no"
        assert printed(session, runs[2]) == "trying\n"
        session.refresh(job)
        assert job.in_dead_letter_queue
        deadletters.recover(session, job.id, ANNA)
        wait_for(lambda: len(executions(session, job)) > 3, "a run after the recovery")


def test_after_a_roll_back_the_next_run_uses_the_old_version(
    settings: Settings, session: Session, journal: Journal
) -> None:
    job = make_job(session, journal.code("first = True"))
    manager = CronJobManager(session)
    manager.update_code(job.id, journal.code("second = True"))
    with working(settings):
        lifecycle.trigger(session, job.id, actor=ANNA)
        wait_for_statuses(session, job, "completed")
        manager.rollback(job.id, 1)
        lifecycle.trigger(session, job.id, actor=ANNA)
        wait_for_statuses(session, job, "completed", "completed")
    assert [entry["version"] for entry in journal.entries("end")] == [2, 1]


def test_a_running_job_can_be_cancelled(settings: Settings, session: Session, journal: Journal) -> None:
    job = make_job(session, journal.code("time.sleep(60)"))
    with working(settings):
        run = lifecycle.trigger(session, job.id, actor=ANNA)
        (entry,) = wait_for(lambda: journal.entries("start"))
        lifecycle.cancel(session, run.id, ANNA, "wrong day")
        (run,) = wait_for_statuses(session, job, "cancelled")
        assert run.error == "cancelled by anna: wrong day"
        assert not alive(entry["pid"])


def test_a_sleeping_job_that_exceeds_its_time_is_stopped(
    settings: Settings, session: Session, journal: Journal
) -> None:
    job = make_job(session, journal.code("time.sleep(60)"), timeout_seconds=1, max_retries=0)
    with working(settings):
        lifecycle.trigger(session, job.id, actor=ANNA)
        (run,) = wait_for_statuses(session, job, "timeout")
    assert run.error is not None
    assert "1 s" in run.error


def test_output_can_be_read_while_the_job_runs(settings: Settings, session: Session) -> None:
    code = (
        "import time\nclass Talks(CronJobBase):\n    def execute(self):\n"
        "        print('early')\n        self.progress(50, 'half')\n        time.sleep(60)\n"
    )
    job = make_job(session, code)
    with working(settings):
        run = lifecycle.trigger(session, job.id, actor=ANNA)

        def seen() -> bool:
            (now,) = executions(session, job)
            text = session.scalar(sa.select(CronJobOutput.text).where(CronJobOutput.execution == run.id))
            return text == "early\n" and now.progress_percent == 50 and now.status == "running"

        wait_for(seen, "output and progress of a running job")


def test_a_job_keeps_state_triggers_another_and_reads_its_result(
    settings: Settings, session: Session
) -> None:
    child = make_job(
        session, "class C(CronJobBase):\n    def execute(self):\n        return 42\n", name="child"
    )
    code = """
class P(CronJobBase):
    def execute(self):
        self.state["n"] = self.state.get("n", 0) + 1
        if self.state["n"] == 1:
            self.api.trigger("child")
        else:
            return self.api.latest_result("child")["result"]
"""
    parent = make_job(session, code)
    with working(settings):
        lifecycle.trigger(session, parent.id, actor=ANNA)
        wait_for_statuses(session, parent, "completed")
        wait_for_statuses(session, child, "completed")
        lifecycle.trigger(session, parent.id, actor=ANNA)
        *_, run = wait_for_statuses(session, parent, "completed", "completed")
        assert run.result == 42


@pytest.mark.parametrize(
    "asked",
    [
        "find_job(10**40)",
        "trigger('\\ud800')",
        "latest_result('\\0')",
        "trigger(1, parameters=[5])",
        "trigger(1, parameters={'a': ['\\0']})",
        "trigger(1, note='\\0\\ud800')",
    ],
)
def test_a_job_that_asks_for_what_no_database_can_answer_is_told_and_harms_nobody(
    settings: Settings, session: Session, journal: Journal, asked: str
) -> None:
    body = f"try:\n    self.api.{asked}\nexcept Exception as error:\n    note(self, type(error).__name__)"
    job = make_job(session, journal.code(body), max_retries=0)
    with working(settings) as worker:
        lifecycle.trigger(session, job.id, actor=ANNA)
        wait_for_statuses(session, job, "completed")
        assert worker.stop()["completed"] == 1


def test_what_a_job_asks_for_gives_none_of_its_secrets_away(
    settings: Settings, session: Session, journal: Journal
) -> None:
    key = Fernet.generate_key().decode()
    keyed = dataclasses.replace(settings, secrets_keys=key)
    body = """
    key = self.secrets["KEY"]
    self.api.trigger("other", note="for " + key)
    address = "https://x/?k=" + urllib.parse.quote(key)
    for given in ({"k": key}, {key: 1}, {"deep": [{"url": address}]}, {"n": [7777777]}):
        try:
            self.api.trigger("other", parameters=given)
        except RuntimeError as error:
            note(self, str(error))
    """
    code = journal.code("import urllib.parse\n" + textwrap.dedent(body))
    job = make_job(session, code, name="asks", max_retries=0)
    make_job(session, journal.code(), name="other")
    for name, value in {"KEY": "swordfish/alpha", "PIN": "7777777"}.items():
        secrets.set_secret(session, name, value, ANNA, keyed)
        secrets.grant(session, job.id, name, ANNA)
    with working(settings, secrets_keys=key):
        lifecycle.trigger(session, job.id, actor=ANNA)
        wait_for_statuses(session, job, "completed")
    refusal = "parameters hold the value of a secret of this job"
    said = [entry["what"] for entry in journal.entries() if refusal in entry["what"]]
    assert len(said) == 4
    (run,) = [run for run in executions(session) if run.origin == "trigger"]
    assert run.note == "for ***"
    for row in session.scalars(sa.select(CronAudit)):
        assert "swordfish" not in f"{row.before} {row.after}"


def test_a_job_that_triggers_without_end_is_stopped_by_a_bound_that_is_named(
    settings: Settings, session: Session, journal: Journal
) -> None:
    body = """
    for number in range(1, 10_000):
        try:
            self.api.trigger("other")
        except RuntimeError as error:
            note(self, str(error))
            break
    """
    job = make_job(session, journal.code(textwrap.dedent(body)), name="asks", max_retries=0)
    make_job(session, journal.code(), name="other", worker_tag="nowhere", overlap_policy="allow")
    with working(settings):
        lifecycle.trigger(session, job.id, actor=ANNA)
        wait_for_statuses(session, job, "completed", seconds=120)
    (said,) = [entry["what"] for entry in journal.entries() if "minute" in entry["what"]]
    assert said.startswith(f"A job may trigger {jobapi.RUNS_PER_MINUTE} runs in a minute. Try again in ")
    asked = sum(run.origin == "trigger" for run in executions(session))
    assert asked >= jobapi.RUNS_PER_MINUTE, "a minute may have ended meanwhile"


def test_a_worker_starts_nothing_that_the_ledger_says_it_holds_and_it_did_not_claim(
    settings: Settings, session: Session, journal: Journal
) -> None:
    """As after a restored backup, and when the COMMIT of a claim that was read back as not done arrives late."""
    job = make_job(session, journal.code(), worker_tag="nowhere", max_retries=0)
    with working(settings) as worker:
        run = lifecycle.trigger(session, job.id, actor=ANNA)
        name = wait_for(lambda: session.scalar(sa.select(CronWorkerRecord.worker_id)) or session.rollback())
        now = db.now(session)
        claim = sa.update(CronJobExecution).where(CronJobExecution.id == run.id)
        session.execute(
            claim.values(
                status="running",
                locked_by=name,
                token=lifecycle.draw_token(),
                started_at=now,
                locked_until=now + timedelta(hours=1),
            )
        )
        session.commit()
        lost, _ = wait_for_statuses(session, job, "lost", "pending")
        assert "does not run it" in (lost.error or "")
        assert worker.stop()["executed"] == 0
    assert journal.entries() == []


def test_a_job_without_code_is_skipped_with_words_until_it_has_some(
    settings: Settings, session: Session, journal: Journal
) -> None:
    session.execute(
        typed(
            session,
            "INSERT INTO CronJob (name, schedule_type, interval_seconds) VALUES ('bare', 'interval', 3600)",
        )
    )
    session.commit()
    bare = session.scalars(sa.select(CronJob)).one()
    with working(settings):
        (run,) = wait_for_statuses(session, bare, "skipped")
        assert run.skipped_reason == "the job has no code yet"
        session.refresh(bare)
        assert (bare.enabled, bare.in_dead_letter_queue, bare.consecutive_failures) == (True, False, 0)
        assert bare.next_run_time is not None
        CronJobManager(session, ANNA).update_code(bare.id, journal.code())
        lifecycle.trigger(session, bare.id, actor=ANNA)
        wait_for_statuses(session, bare, "skipped", "completed")


@pytest.mark.parametrize("written", ["'[1, 2]'", "'{broken'"], ids=["no object", "no JSON"])
def test_a_row_whose_parameters_make_no_sense_holds_up_no_other(
    sqlite_settings: Settings, journal: Journal, written: str
) -> None:
    """SQLite takes any text; MariaDB at least asks for JSON."""
    engine = db.make_engine(sqlite_settings)
    with db.make_sessions(engine)() as session:
        bad, good = (
            make_job(session, journal.code(), schedule_type="interval", interval_seconds=1) for _ in "ab"
        )
        session.execute(typed(session, f"UPDATE CronJob SET parameters = {written} WHERE id = {bad.id}"))
        session.commit()

        def given_up() -> bool:
            session.rollback()
            session.refresh(bad)
            return bad.in_dead_letter_queue

        with working(sqlite_settings):
            wait_for(lambda: sum(entry["job"] == good.id for entry in journal.entries("end")) >= 2)
            wait_for(given_up)
        reason = bad.dead_letter_reason
    engine.dispose()
    assert "the parameters of the job must be a JSON object, such as {}" in (reason or "")


def test_sigterm_waits_for_a_running_job_and_claims_nothing_new(
    settings: Settings, session: Session, journal: Journal
) -> None:
    job = make_job(session, journal.code("time.sleep(1.5)"))
    other = make_job(session, journal.code())
    with working(settings) as worker:
        lifecycle.trigger(session, job.id, actor=ANNA)
        wait_for(lambda: journal.entries("start"))
        worker.signal(signal.SIGTERM)
        wait_for(lambda: "stopping" in worker.log())
        lifecycle.trigger(session, other.id, actor=ANNA)
        statistics = worker.ended()
    assert statistics["completed"] == 1
    wait_for_statuses(session, job, "completed")
    wait_for_statuses(session, other, "pending")


def test_a_second_signal_stops_now_and_gives_the_run_back(
    settings: Settings, session: Session, journal: Journal
) -> None:
    job = make_job(session, journal.code("time.sleep(60)"))
    with working(settings) as worker:
        lifecycle.trigger(session, job.id, actor=ANNA)
        (entry,) = wait_for(lambda: journal.entries("start"))
        worker.signal(signal.SIGTERM)
        wait_for(lambda: "stopping" in worker.log())
        worker.signal(signal.SIGTERM)
        worker.ended()
        assert not alive(entry["pid"])
        wait_for_statuses(session, job, "lost", "pending")
        session.refresh(job)
        assert (job.in_dead_letter_queue, job.consecutive_failures) == (False, 0)


def test_a_killed_workers_run_starts_again_on_the_same_machine_within_seconds(
    settings: Settings, session: Session, journal: Journal
) -> None:
    body = "time.sleep(60 if self.execution.attempt == 1 else 0)"
    job = make_job(session, journal.code(body), retry_strategy="immediate")
    with working(settings) as worker:
        lifecycle.trigger(session, job.id, actor=ANNA)
        (entry,) = wait_for(lambda: journal.entries("start"))
        worker.kill()
    wait_for(lambda: not alive(entry["pid"]), "the job to die with its worker")
    with working(settings):
        lost, _ = wait_for_statuses(session, job, "lost", "completed")
    assert lost.error is not None
    assert "process is gone" in lost.error


def test_a_drained_worker_ends_when_nothing_is_due(
    settings: Settings, session: Session, journal: Journal
) -> None:
    job = make_job(session, journal.code())
    lifecycle.trigger(session, job.id, actor=ANNA)
    assert WorkerProcess(settings, "--drain").ended()["completed"] == 1


def test_a_drained_worker_leaves_nothing_to_workers_that_do_nothing(
    settings: Settings, session: Session, journal: Journal
) -> None:
    hanging_workers(session, 9)
    for _ in range(5):
        job = make_job(session, journal.code("time.sleep(0.05)"))
        lifecycle.trigger(session, job.id, actor=ANNA)
    assert WorkerProcess(settings, "--drain", concurrency=1).ended()["completed"] == 5


def test_a_worker_that_has_run_jobs_has_loaded_nothing_of_the_web(
    sqlite_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # Python tells of each import on standard error
    engine = db.make_engine(sqlite_settings)
    with db.make_sessions(engine)() as session, working(sqlite_settings) as worker:
        other = make_job(session, "class O(CronJobBase):\n    def execute(self):\n        raise ValueError")
        code = f"class J(CronJobBase):\n    def execute(self):\n        self.api.trigger({other.id})"
        lifecycle.trigger(session, make_job(session, code).id, actor=ANNA)
        wait_for_statuses(session, other, "failed", "pending")
        worker.stop()
    engine.dispose()
    found = re.findall(r"^import time:.*\| +([\w.]+)$", worker.log(), re.M)
    assert "sqlalchemy" in found
    web = {"flask", "flask_migrate", "flask_sqlalchemy", "flask_wtf", "jinja2", "werkzeug", "wtforms"}
    assert not web & {name.partition(".")[0] for name in found}
    assert "cryptography.fernet" not in found, "7 MB that only secrets need"


def test_a_worker_is_known_while_it_works_and_signs_off(settings: Settings, session: Session) -> None:
    def record() -> CronWorkerRecord | None:
        session.rollback()
        return session.scalar(sa.select(CronWorkerRecord).execution_options(populate_existing=True))

    with working(settings, "--tags", "gpu,eu") as worker:
        known = wait_for(record)
        assert known is not None
        assert (known.pid, known.tags, known.stopped_at) == (worker.pid, "eu,gpu", None)
        worker.stop()
    known = record()
    assert known is not None
    assert known.stopped_at is not None


def test_an_unmigrated_database_is_told_with_the_command_to_run(tmp_path: Path) -> None:
    worker = WorkerProcess(Settings(instance_path=tmp_path / "fresh"))
    worker.process.communicate(timeout=30)
    assert worker.process.returncode == 2
    assert "kytecron db upgrade" in worker.log()
