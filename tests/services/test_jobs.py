"""What people may do to a job, and what the database holds afterwards."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from kytecron.config import ROOT, Settings
from kytecron.core.errors import Conflict, Invalid, KytecronError, NotFound
from kytecron.core.states import Outcome, Status
from kytecron.services import base, jobs, lifecycle, versions
from kytecron.services.audit import MASK, Actor
from kytecron.services.jobs import CronJobManager, configuration
from kytecron.store import db
from kytecron.store.models import CronAudit, CronJob, CronJobDependency
from tests.factories import add_job, claim_one, fresh, runs_of
from tests.rawsql import typed

ANNA = Actor("anna", "web", "10.0.0.7")
CODE = """
class Report(CronJobBase):
    def execute(self):
        self.log("hello")
"""
HOOK = "https://hooks.slack.example/T000/B000/secret"


@pytest.fixture
def manager(session: Session) -> CronJobManager:
    return CronJobManager(session, ANNA)


def make(manager: CronJobManager, name: str = "report", **fields: Any) -> CronJob:
    return manager.create_job(**{"name": name, "code": CODE} | fields)


def hourly(manager: CronJobManager, name: str = "report", **fields: Any) -> CronJob:
    return make(manager, name, **{"schedule_type": "interval", "interval_seconds": 3600} | fields)


def due_now(session: Session, job: CronJob) -> datetime:
    """Make a job's next slot one that came a moment ago."""
    slot = db.now(session) - timedelta(milliseconds=5)
    job.next_run_time = slot
    session.commit()
    return slot


def trail(session: Session, job: CronJob) -> list[CronAudit]:
    query = sa.select(CronAudit).where(CronAudit.subject_type == "job", CronAudit.subject_id == str(job.id))
    return list(session.scalars(query.order_by(CronAudit.id)))


def dead_letter(session: Session, job: CronJob) -> None:
    job.enabled, job.next_run_time = False, None
    job.in_dead_letter_queue, job.dead_letter_reason = True, "failed 4 times"
    session.commit()


def at_once(*works: Callable[[], None]) -> list[str]:
    """Run each in a process of its own, all let go by one barrier; returns how each ended."""
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(len(works)), context.SimpleQueue()

    def run(work: Callable[[], None]) -> None:
        barrier.wait(30)
        try:
            work()
            answers.put("done")
        except KytecronError as error:
            answers.put(f"{error.code}: {error}")

    processes = [context.Process(target=run, args=(work,)) for work in works]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    return sorted(answers.get() for _ in works)


# -- a program's own session ---------------------------------------------------------------------------------

FIRST_PROGRAM = """
from kytecron import CronJobManager
job = CronJobManager().create_job(name="My first job", schedule_type="interval", interval_seconds=60, code='''
class MyJob(CronJobBase):
    def execute(self):
        self.log("Hello World")
''')
print(job.id, job.name, job.current_version)
"""


def test_the_first_program_runs_on_a_fresh_machine(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FIRST_PROGRAM],
        cwd=tmp_path,
        env={**os.environ, "KYTECRON_INSTANCE_PATH": str(tmp_path / "new"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.stdout, ended.stderr) == ("1 My first job 1\n", "")


def test_two_programs_may_be_the_first_at_once(tmp_path: Path) -> None:
    def create() -> None:
        engine = base.open_database(Settings(instance_path=tmp_path / "new"))
        with db.make_sessions(engine)() as session:
            make(CronJobManager(session), f"of process {os.getpid()}")

    assert at_once(create, create) == ["done", "done"]


@pytest.fixture
def own_manager(sqlite_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[CronJobManager]:
    monkeypatch.setattr(base, "default_settings", lambda: sqlite_settings)
    with CronJobManager() as manager:
        yield manager


def test_a_database_that_a_newer_version_made_is_refused(
    sqlite_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = db.make_engine(sqlite_settings)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'newer'")
    engine.dispose()
    monkeypatch.setattr(base, "default_settings", lambda: sqlite_settings)
    with pytest.raises(Conflict, match="a newer version of kytecron made it"):
        CronJobManager()


def test_a_manager_with_a_session_of_its_own_sees_what_others_wrote(
    own_manager: CronJobManager, sqlite_settings: Settings
) -> None:
    job = make(own_manager)
    assert own_manager.get(job.id).timeout_seconds == 300
    engine = db.make_engine(sqlite_settings)
    with engine.begin() as connection:
        connection.execute(typed(connection, "UPDATE CronJob SET timeout_seconds = 7"))
    engine.dispose()
    assert own_manager.get(job.id).timeout_seconds == 7


def test_leaving_the_with_block_closes_what_the_manager_opened(own_manager: CronJobManager) -> None:
    job = make(own_manager)
    assert own_manager.session.get_bind().pool.checkedin() == 1  # nothing is held between two calls
    own_manager.close()
    assert own_manager.session.get_bind().pool.checkedin() == 0
    assert job.name == "report"


def test_a_session_that_was_given_is_left_open(session: Session) -> None:
    with CronJobManager(session) as manager:
        make(manager)
    assert session.scalar(sa.select(sa.func.count()).select_from(CronJob)) == 1
    assert session.in_transaction()


# -- create --------------------------------------------------------------------------------------------------


def test_a_new_job_has_its_first_version_its_next_slot_and_an_audit_row(
    session: Session, manager: CronJobManager
) -> None:
    before = db.now(session)
    job = fresh(session, hourly(manager, tags=["night", "etl"], slack_webhook=HOOK, message="first"))
    assert (job.enabled, job.current_version, job.revision, job.created_by) == (True, 1, 1, "anna")
    assert before <= job.schedule_anchor <= db.now(session)
    assert job.next_run_time == job.schedule_anchor  # an interval begins when it is made
    assert job.tags == ",etl,night,"
    (entry,) = trail(session, job)
    assert (entry.action, entry.actor, entry.source, entry.ip) == ("create", "anna", "web", "10.0.0.7")
    assert entry.after is not None
    assert (entry.after["interval_seconds"], entry.after["slack_webhook"]) == (3600, MASK)


def test_every_wrong_field_is_named_at_once(manager: CronJobManager) -> None:
    with pytest.raises(Invalid) as caught:
        manager.create_job(
            name=" ",
            schedule_type="daily",
            timezone="Mars/Olympus",
            max_retries="many",
            colour="red",
            code="class Report(CronJobBase):\n    pass",
            message="bell \a",
        )
    fields = caught.value.fields
    assert set(fields) == {
        "name", "time_of_day", "timezone", "max_retries", "colour", "code", "message"
    }  # fmt: skip
    assert fields["time_of_day"].startswith("time_of_day is required for daily schedule type")
    assert fields["code"].startswith("line 1, column 1: Report has no execute method")


@pytest.mark.parametrize("code", [None, "", 7, b"class"])
def test_a_job_without_code_is_refused(manager: CronJobManager, code: Any) -> None:
    with pytest.raises(Invalid) as caught:
        make(manager, code=code)
    assert set(caught.value.fields) == {"code"}


def test_a_wrong_type_is_told_once_and_not_again_as_missing(manager: CronJobManager) -> None:
    with pytest.raises(Invalid) as caught:
        make(manager, schedule_type="interval", interval_seconds="soon")
    assert caught.value.fields == {"interval_seconds": "interval_seconds must be a whole number"}


def test_only_fields_that_the_schedule_uses_are_kept(session: Session, manager: CronJobManager) -> None:
    job = make(
        manager,
        schedule_type="weekly",
        day_of_week=[5, 1, 3, 1],
        time_of_day=" 02:30 ",
        timezone="Europe/Berlin",
        cron_expression="0 5 * * *",
        interval_seconds=5,
    )
    job = fresh(session, job)
    assert (job.day_of_week, job.time_of_day, job.timezone) == ("1,3,5", "02:30", "Europe/Berlin")
    assert (job.cron_expression, job.interval_seconds, job.schedule_anchor) == (None, None, None)
    assert configuration(session, job)["day_of_week"] == [1, 3, 5]


def test_texts_come_as_forms_send_them(manager: CronJobManager) -> None:
    job = make(manager, description="one\r\ntwo", message="first\r\nversion ")
    assert job.description == "one\ntwo"
    assert versions.get_version(manager.session, job.id, 1).message == "first\nversion"


def test_a_job_made_disabled_or_manual_has_no_next_slot(manager: CronJobManager) -> None:
    assert hourly(manager, enabled=False).next_run_time is None
    manual = make(manager, "by hand")
    assert (manual.enabled, manual.next_run_time) == (True, None)


def test_a_schedule_that_has_ended_is_refused(manager: CronJobManager) -> None:
    with pytest.raises(Invalid) as caught:
        make(manager, schedule_type="daily", time_of_day="02:00", ends_at=datetime(2020, 1, 1, tzinfo=UTC))
    assert set(caught.value.fields) == {"ends_at"}


def test_a_taken_name_is_refused_with_the_job_that_has_it(manager: CronJobManager) -> None:
    first = make(manager, "Report")
    make(manager, "report")  # names compare letter by letter on every database
    with pytest.raises(Invalid, match=f"'Report' is taken by job {first.id}"):
        make(manager, "Report")
    manager.delete(first.id)
    assert make(manager, "Report").id != first.id


def test_of_two_that_take_a_name_at_once_one_is_refused(settings: Settings) -> None:
    def create() -> None:
        engine = db.make_engine(settings)
        with db.make_sessions(engine)() as session:
            make(CronJobManager(session))

    done, refused = at_once(create, create)
    assert done == "done"
    assert refused.startswith("invalid: The name 'report' ")


def test_of_two_that_are_renamed_alike_at_once_one_is_refused(
    session: Session, settings: Settings, manager: CronJobManager
) -> None:
    ids = [make(manager, name).id for name in ("left", "right")]
    session.rollback()

    def rename(job_id: int) -> Callable[[], None]:
        def work() -> None:
            engine = db.make_engine(settings)
            with db.make_sessions(engine)() as own:
                CronJobManager(own).update_job(job_id, name="middle")

        return work

    done, refused = at_once(*(rename(job_id) for job_id in ids))
    assert done == "done"
    assert refused.startswith("invalid: The name 'middle' ")


# -- update --------------------------------------------------------------------------------------------------


def test_an_update_that_changes_nothing_leaves_no_trace(session: Session, manager: CronJobManager) -> None:
    job = hourly(manager, tags=["a", "b"], parameters={"n": 1}, notification_email="a@b.example")
    before = (job.next_run_time, job.updated_at)
    same = configuration(session, job)
    # As a form sends it: everything, as text.
    manager.update_job(
        job.id, **same | {"tags": "b, a", "interval_seconds": "3600", "day_of_week": ""}, code=CODE
    )
    job = fresh(session, job)
    assert (job.revision, len(trail(session, job))) == (1, 1)
    assert (job.next_run_time, job.updated_at) == before


def test_an_update_is_audited_with_both_sides_of_what_changed(
    session: Session, manager: CronJobManager
) -> None:
    job = make(manager)
    manager.update_job(job.id, max_retries=7, slack_webhook=HOOK, allow_concurrent=1)
    entry = trail(session, job)[-1]
    assert entry.action == "update"
    assert entry.before == {"max_retries": 3, "slack_webhook": None, "overlap_policy": "skip"}
    assert entry.after == {"max_retries": 7, "slack_webhook": MASK, "overlap_policy": "allow"}
    job = fresh(session, job)
    assert (job.revision, job.slack_webhook, job.updated_by) == (2, HOOK, "anna")


def test_a_refused_update_changes_nothing(session: Session, manager: CronJobManager) -> None:
    job = make(manager)
    with pytest.raises(Invalid) as caught:
        manager.update_job(job.id, max_retries=5, schedule_type="sometimes", code="x = ")
    assert set(caught.value.fields) == {"schedule_type", "code"}
    job = fresh(session, job)
    assert (job.max_retries, job.revision, job.current_version) == (3, 1, 1)


def test_another_schedule_gives_another_next_slot(session: Session, manager: CronJobManager) -> None:
    job = hourly(manager)
    job = manager.update_job(job.id, schedule_type="daily", time_of_day="12:00", timezone="Asia/Tokyo")
    assert job.next_run_time is not None
    assert (job.next_run_time.hour, job.next_run_time.minute) == (3, 0)
    assert job.next_run_time > db.now(session)
    assert (job.schedule_anchor, job.interval_seconds) == (None, None)
    assert manager.update_job(job.id, schedule_type="manual").next_run_time is None


def test_only_another_interval_moves_the_anchor(session: Session, manager: CronJobManager) -> None:
    job = hourly(manager)
    anchor = job.schedule_anchor
    job.next_run_time = anchor + timedelta(hours=1)
    session.commit()
    end = db.now(session) + timedelta(days=9)
    job = manager.update_job(job.id, timeout_seconds=9, ends_at=end)
    assert (job.schedule_anchor, job.next_run_time) == (anchor, anchor + timedelta(hours=1))
    job = manager.update_job(job.id, interval_seconds=60)
    assert job.schedule_anchor > anchor
    assert job.next_run_time == job.schedule_anchor + timedelta(seconds=60)


def test_a_slot_that_is_due_is_not_lost_by_an_edit(session: Session, manager: CronJobManager) -> None:
    job = make(manager, schedule_type="daily", time_of_day="02:00")
    slot = due_now(session, job)
    job = manager.update_job(job.id, schedule_type="weekly", day_of_week=1)
    assert job.next_run_time is not None
    assert job.next_run_time > db.now(session)
    (run,) = runs_of(session, job)
    assert (run.scheduled_time, run.status) == (slot, Status.PENDING)


def test_a_stale_edit_is_refused_with_who_changed_what(session: Session, manager: CronJobManager) -> None:
    job = make(manager, slack_webhook=HOOK)
    CronJobManager(session, Actor("ben")).update_job(job.id, revision=1, max_retries=9)
    with pytest.raises(
        Conflict, match=r"^ben has changed this job since revision 1.*\(max_retries, slack"
    ) as caught:
        manager.update_job(job.id, revision=1, max_retries=5, timeout_seconds=300, slack_webhook=None)
    assert caught.value.details["revision"] == 2
    assert caught.value.details["fields"] == {
        "max_retries": {"theirs": 9, "yours": 5},
        "slack_webhook": {"theirs": MASK, "yours": None},
    }
    # One that wants what is there already undoes nothing.
    assert manager.update_job(job.id, revision=1, max_retries=9).revision == 2


def test_settings_and_code_change_together_or_not_at_all(session: Session, manager: CronJobManager) -> None:
    job = make(manager)
    other = CODE.replace("hello", "goodbye")
    with pytest.raises(Conflict):
        manager.update_job(job.id, max_retries=5, code=other, base_version=4)
    assert fresh(session, job).max_retries == 3
    job = manager.update_job(job.id, max_retries=5, code=other, base_version=1, message="politer")
    assert (job.max_retries, job.current_version) == (5, 2)
    assert [entry.action for entry in trail(session, job)] == ["create", "update", "new_version"]


def test_a_deleted_or_unknown_job_is_not_found(manager: CronJobManager) -> None:
    job = make(manager)
    manager.delete(job.id)
    for job_id in (job.id, 999_999, -1, 0, 2**80):
        for act in (
            lambda i: manager.get(i),
            lambda i: manager.update_job(i, max_retries=1),
            lambda i: manager.update_code(i, CODE),
            lambda i: manager.rollback(i, 1),
            lambda i: manager.enable(i),
            lambda i: manager.disable(i),
            lambda i: manager.delete(i),
            lambda i: manager.clone(i),
        ):
            with pytest.raises(NotFound, match=f"Job {job_id} does not exist"):
                act(job_id)


def test_two_edits_at_once_do_not_undo_each_other(
    session: Session, settings: Settings, manager: CronJobManager
) -> None:
    job_id = make(manager).id
    session.rollback()

    def edit(field: str) -> Callable[[], None]:
        def work() -> None:
            engine = db.make_engine(settings)
            with db.make_sessions(engine)() as own:
                for value in range(10, 20):
                    CronJobManager(own).update_job(job_id, **{field: value})

        return work

    assert at_once(edit("max_retries"), edit("timeout_seconds")) == ["done", "done"]
    job = fresh(session, manager.get(job_id))
    assert (job.max_retries, job.timeout_seconds, job.revision) == (19, 19, 21)


# -- enable, disable -----------------------------------------------------------------------------------------


def test_disabling_cancels_what_is_pending_and_lets_what_runs_go_on(
    session: Session, manager: CronJobManager
) -> None:
    job = hourly(manager, overlap_policy="allow")
    manager.trigger(job.id)
    claim = claim_one(session)
    manager.trigger(job.id, note="waits")
    slot = due_now(session, job)
    job = manager.disable(job.id, "holidays")
    assert (job.enabled, job.next_run_time, job.disabled_reason) == (False, None, "holidays")
    running, waiting, due = runs_of(session, job)
    assert (running.status, waiting.status) == (Status.RUNNING, Status.CANCELLED)
    # What was due while it was enabled is in the ledger too.
    assert (due.scheduled_time, due.status, due.error) == (slot, Status.CANCELLED, "the job was disabled")
    assert lifecycle.settle(session, [(claim, Outcome(Status.COMPLETED))]).ended == {claim.execution_id}
    assert trail(session, job)[-1].action == "disable"


def test_enabling_owes_nothing_for_the_time_between(session: Session, manager: CronJobManager) -> None:
    job = hourly(manager)
    manager.disable(job.id, "holidays")
    job.schedule_anchor = db.now(session) - timedelta(days=3)
    session.commit()
    before = db.now(session)
    job = manager.enable(job.id)
    assert (job.enabled, job.disabled_reason) == (True, None)
    assert job.schedule_anchor is not None
    assert job.schedule_anchor >= before
    assert job.next_run_time == job.schedule_anchor
    assert [run.scheduled_time for run in runs_of(session, job) if run.scheduled_time > before] == []


def test_enabling_what_is_enabled_leaves_no_trace(session: Session, manager: CronJobManager) -> None:
    job = make(manager)
    manager.enable(job.id)
    manager.disable(job.id)
    manager.disable(job.id, "again")
    assert [entry.action for entry in trail(session, job)] == ["create", "disable"]


def test_enabled_in_an_update_enables_and_disables(session: Session, manager: CronJobManager) -> None:
    job = hourly(manager, overlap_policy="allow")
    manager.trigger(job.id)
    job = manager.update_job(job.id, enabled=False, interval_seconds=60)
    assert (job.enabled, job.next_run_time, job.interval_seconds) == (False, None, 60)
    assert {run.status for run in runs_of(session, job)} == {Status.CANCELLED}
    job = manager.update_job(job.id, enabled=True)
    assert (job.enabled, job.next_run_time) == (True, job.schedule_anchor)
    assert [entry.action for entry in trail(session, job)] == ["create", "trigger", "update", "enable"]


def test_a_job_in_the_dead_letter_queue_is_enabled_by_recovery_only(
    session: Session, manager: CronJobManager
) -> None:
    job = make(manager)
    dead_letter(session, job)
    for act in (
        lambda: manager.enable(job.id),
        lambda: manager.update_job(job.id, enabled=True),
        lambda: manager.trigger(job.id),
    ):
        with pytest.raises(Conflict, match=r"^Job is in dead letter queue\. Recover it first\.$"):
            act()
    assert manager.update_job(job.id, max_retries=1).in_dead_letter_queue


def test_enabling_a_job_that_had_all_its_runs_gives_it_as_many_again(
    session: Session, manager: CronJobManager
) -> None:
    job = hourly(manager, max_runs=1)
    lifecycle.enqueue_due(session)
    job = fresh(session, job)
    assert (job.enabled, job.disabled_reason, job.runs_scheduled) == (False, "max_runs reached", 1)
    job = manager.enable(job.id)
    assert (job.enabled, job.runs_scheduled) == (True, 0)


def test_a_job_whose_schedule_has_ended_cannot_be_enabled(session: Session, manager: CronJobManager) -> None:
    job = hourly(manager, enabled=False, ends_at=datetime(2020, 1, 1, tzinfo=UTC))
    with pytest.raises(Invalid) as caught:
        manager.enable(job.id)
    assert set(caught.value.fields) == {"ends_at"}
    assert not fresh(session, job).enabled


def test_a_job_with_a_bad_row_can_be_disabled(session: Session, manager: CronJobManager) -> None:
    job = add_job(session, schedule_type="cron", cron_expression="every now and then")
    assert not manager.disable(job.id).enabled


# -- delete, clone, find -------------------------------------------------------------------------------------


def test_a_deleted_job_keeps_its_history_and_runs_no_more(session: Session, manager: CronJobManager) -> None:
    job = hourly(manager, slack_webhook=HOOK)
    manager.trigger(job.id)
    dead_letter(session, job)
    job = manager.delete(job.id)
    assert (job.deleted_id, job.enabled, job.next_run_time) == (job.id, False, None)
    assert job.deleted_at is not None
    assert not job.in_dead_letter_queue
    (run,) = runs_of(session, job)
    assert (run.status, run.error) == (Status.CANCELLED, "the job was deleted")
    entry = trail(session, job)[-1]
    assert entry.action == "delete"
    assert entry.before is not None
    assert (entry.before["interval_seconds"], entry.before["slack_webhook"]) == (3600, MASK)


def test_a_clone_has_everything_but_its_own_name_and_is_disabled(
    session: Session, manager: CronJobManager
) -> None:
    parent = make(manager, "parent")
    job = hourly(manager, "report", tags="a", depends_on=[parent.id], max_retries=9, slack_webhook=HOOK)
    manager.delete(parent.id)  # a parent that is gone must not stand in the way
    copy = manager.clone(job.id)
    again = manager.clone(job.id)
    assert (copy.name, again.name, copy.current_version) == ("report (copy)", "report (copy 2)", 1)
    assert configuration(session, copy) == configuration(session, job) | {
        "name": "report (copy)",
        "enabled": False,
    }
    assert (copy.next_run_time, manager.clone(job.id, "mine").name) == (None, "mine")
    with pytest.raises(Invalid, match="'mine' is taken"):
        manager.clone(job.id, "mine")


def test_a_clone_of_a_long_name_fits(manager: CronJobManager) -> None:
    job = make(manager, "n" * 200)
    assert [len(manager.clone(job.id).name) for _ in range(2)] == [200, 200]


def test_a_job_is_found_by_name_before_id(manager: CronJobManager) -> None:
    first = make(manager, "report")
    second = make(manager, str(first.id))
    assert manager.find("report").id == first.id
    assert manager.find(str(first.id)).id == second.id
    assert manager.find(first.id).id == first.id
    assert manager.find(str(second.id)).id == second.id
    for unknown in ("nobody", "", 999_999, "-1", "9" * 40, "²"):
        with pytest.raises(NotFound):
            manager.find(unknown)


# -- dependencies --------------------------------------------------------------------------------------------


def test_parents_are_kept_once_each_and_can_be_taken_away(session: Session, manager: CronJobManager) -> None:
    first, second = make(manager, "first"), make(manager, "second")
    child = make(manager, "child", depends_on=[second.id, first.id, second.id])
    assert configuration(session, child)["depends_on"] == [first.id, second.id]
    manager.update_job(child.id, depends_on_job=second.id)
    assert jobs.parents_of(session, child.id) == [second.id]
    manager.update_job(child.id, depends_on=[])
    assert session.scalar(sa.select(sa.func.count()).select_from(CronJobDependency)) == 0


def test_parents_must_exist_when_they_are_added(manager: CronJobManager) -> None:
    parent, child = make(manager, "parent"), make(manager, "child")
    for unknown in (999_999, -1, 2**80):
        with pytest.raises(Invalid, match=f"depends_on: job {unknown} does not exist"):
            manager.update_job(child.id, depends_on=[unknown])
    manager.update_job(child.id, depends_on=[parent.id])
    manager.delete(parent.id)
    manager.update_job(child.id, max_retries=1)
    other = make(manager, "other")
    manager.update_job(child.id, depends_on=[parent.id, other.id])
    with pytest.raises(Invalid, match=f"job {parent.id} does not exist"):
        make(manager, "late", depends_on=[parent.id])


def test_a_deleted_job_closes_no_cycle(manager: CronJobManager) -> None:
    extract = make(manager, "Extract")
    transform = make(manager, "Transform", depends_on=[extract.id])
    load = make(manager, "Load", depends_on=[transform.id])
    manager.delete(transform.id)
    manager.update_job(extract.id, depends_on=[load.id])


def test_a_cycle_is_refused_with_its_path(session: Session, manager: CronJobManager) -> None:
    extract = make(manager, "Extract")
    transform = make(manager, "Transform", depends_on=[extract.id])
    load = make(manager, "Load", depends_on=[transform.id])
    with pytest.raises(Invalid, match="Extract → Load → Transform → Extract") as caught:
        manager.update_job(extract.id, depends_on=[load.id])
    assert set(caught.value.fields) == {"depends_on"}
    with pytest.raises(Invalid, match="Load → Load"):
        manager.update_job(load.id, depends_on=[load.id])
    assert jobs.parents_of(session, extract.id) == []


def test_two_edits_at_once_cannot_close_a_cycle_together(
    session: Session, settings: Settings, manager: CronJobManager
) -> None:
    rings = [[make(manager, f"{name} {number}").id for name in "abcd"] for number in range(8)]
    for a, b, c, d in rings:
        manager.update_job(b, depends_on=[c])
        manager.update_job(d, depends_on=[a])
    session.rollback()
    meeting = multiprocessing.get_context("fork").Barrier(2)

    def close(child: int, parent: int) -> Callable[[], None]:
        def work() -> None:
            engine = db.make_engine(settings)
            with db.make_sessions(engine)() as own:
                for ring in rings:
                    own.rollback()
                    CronJobManager(own).get(ring[child])
                    meeting.wait(30)
                    with suppress(Invalid):
                        CronJobManager(own).update_job(ring[child], depends_on=[ring[parent]])

        return work

    # a -> b and c -> d have no job in common, and close the ring only together.
    assert at_once(close(0, 1), close(2, 3)) == ["done", "done"]
    assert session.scalar(sa.select(sa.func.count()).select_from(CronJobDependency)) == 3 * len(rings)


# -- preview, rows by hand -----------------------------------------------------------------------------------

NOON = datetime(2026, 3, 28, 12, tzinfo=UTC)


def test_a_preview_needs_only_the_schedule(manager: CronJobManager) -> None:
    form = {
        "name": "",
        "schedule_type": "daily",
        "time_of_day": "02:30",
        "timezone": "Europe/Berlin",
        "code": "(",
    }
    seen = jobs.preview(form, NOON, 2)
    assert seen.slots == [datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 3, 30, 0, 30, tzinfo=UTC)]
    assert seen.sentence == "At 02:30 every day, Europe/Berlin time"
    assert any("2026-03-29" in warning for warning in seen.warnings)
    with pytest.raises(Invalid) as caught:
        jobs.preview(form | {"time_of_day": "", "ends_at": "soon"}, NOON)
    assert set(caught.value.fields) == {"time_of_day", "ends_at"}


def test_a_preview_of_an_interval_begins_with_the_instant_asked_about() -> None:
    seen = jobs.preview({"schedule_type": "interval", "interval_seconds": 60}, NOON, 2)
    assert seen.slots == [NOON, NOON + timedelta(seconds=60)]


def test_a_row_written_by_hand_is_a_job_that_can_be_edited(session: Session, manager: CronJobManager) -> None:
    session.execute(
        typed(
            session,
            "INSERT INTO CronJob (name, schedule_type, day_of_week, time_of_day, tags) "
            "VALUES ('by hand', 'weekly', '1', '08:00:00', 'a,b')",
        )
    )
    session.commit()
    job = manager.find("by hand")
    values = configuration(session, job)
    assert (values["tags"], values["day_of_week"], values["parameters"]) == (["a", "b"], 1, {})
    job = manager.update_job(job.id, max_retries=1, code=CODE)
    assert (job.current_version, job.tags, job.next_run_time) == (1, "a,b", None)


def test_configuration_shows_a_bad_row_as_it_is(engine: Engine, session: Session) -> None:
    job = add_job(session, schedule_type="weekly", day_of_week="tuesday", time_of_day="08:00")
    assert configuration(session, job)["day_of_week"] == "tuesday"
    with pytest.raises(Invalid) as caught:
        CronJobManager(session).update_job(job.id, max_retries=1)
    assert set(caught.value.fields) == {"day_of_week"}


def test_a_webhook_that_would_never_be_called_is_refused_at_once(session: Session) -> None:
    with pytest.raises(Invalid) as caught:
        CronJobManager(session).create_job(name="tells", slack_webhook="http://hooks.slack.com/services/x")
    assert "https" in caught.value.fields["slack_webhook"]


def test_a_preview_promises_no_more_slots_than_max_runs_leaves() -> None:
    form = {"schedule_type": "interval", "interval_seconds": 60, "max_runs": "3"}
    assert len(jobs.preview(form, NOON, 5).slots) == 3
    assert len(jobs.preview(form, NOON, 5, runs_scheduled=2).slots) == 1
    assert jobs.preview(form, NOON, 5, runs_scheduled=7).slots == []
