"""Lists go from page to page without gaps and doubles, logs are read without loss, figures add up."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from kytecron.core.errors import Invalid, NotFound
from kytecron.core.statistics import bucket
from kytecron.services import versions
from kytecron.store import db, figures, queries
from kytecron.store.models import (
    CronAudit,
    CronJob,
    CronJobDailyStat,
    CronJobDependency,
    CronJobExecution,
    CronJobOutput,
)
from kytecron.store.queries import AuditFilter, ExecutionFilter, JobFilter
from tests.factories import add_worker

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def add_job(session: Session, name: str, **values: Any) -> CronJob:
    job = CronJob(name=name, **values)
    session.add(job)
    session.flush()
    return job


def add_run(session: Session, job: int, number: int, **values: Any) -> CronJobExecution:
    slot = NOON + timedelta(minutes=number)
    values = {"scheduled_time": slot, "due_time": slot, "status": "completed"} | values
    run = CronJobExecution(cron_job=job, **values)
    session.add(run)
    session.flush()
    return run


def all_pages(read: Callable[[str | None], Any]) -> list[Any]:
    items: list[Any] = []
    cursor = None
    for _ in range(1000):
        page = read(cursor)
        items += page.items
        cursor = page.next
        if cursor is None:
            return items
    raise AssertionError("the list never ends")


# -- jobs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def some_jobs(session: Session) -> list[CronJob]:
    made = [
        add_job(session, "alpha", tags=",etl,nightly,", last_status="completed", last_run_at=NOON),
        add_job(session, "beta", description="50% of Übung_1", enabled=False),
        add_job(session, "gamma", in_dead_letter_queue=True, enabled=False, last_status="failed"),
        add_job(session, "delta", schedule_type="daily", next_run_time=NOON, last_run_at=NOON),
        add_job(session, "epsilon", schedule_type="cron", next_run_time=NOON - timedelta(hours=1)),
        add_job(session, "gone", deleted_at=NOON, deleted_id=99),
    ]
    session.commit()
    return made


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (JobFilter(), ["alpha", "beta", "delta", "epsilon", "gamma"]),
        (JobFilter(q="ALPH"), ["alpha"]),
        (JobFilter(q="0% of"), ["beta"]),
        (JobFilter(q="Übung_1"), ["beta"]),
        (JobFilter(q="_"), ["beta"]),
        (JobFilter(status="enabled"), ["alpha", "delta", "epsilon"]),
        (JobFilter(status="disabled"), ["beta"]),
        (JobFilter(status="dead"), ["gamma"]),
        (JobFilter(tag="etl"), ["alpha"]),
        (JobFilter(tag="et"), []),
        (JobFilter(tag="%"), []),
        (JobFilter(schedule_type="cron"), ["epsilon"]),
        (JobFilter(last_result="failed"), ["gamma"]),
        (JobFilter(last_result="never"), ["beta", "delta", "epsilon"]),
    ],
)
def test_jobs_are_found_by_what_people_filter_by(
    session: Session, some_jobs: list[CronJob], wanted: JobFilter, names: list[str]
) -> None:
    assert [job.name for job in queries.jobs(session, wanted).items] == names


@pytest.mark.parametrize(
    ("sort", "names"),
    [
        ("name", "alpha beta delta epsilon gamma"),
        ("-name", "gamma epsilon delta beta alpha"),
        ("id", "alpha beta gamma delta epsilon"),
        ("-id", "epsilon delta gamma beta alpha"),
        ("next_run_time", "epsilon delta alpha beta gamma"),
        ("-next_run_time", "delta epsilon alpha beta gamma"),
        ("last_run", "alpha delta beta gamma epsilon"),
        ("-last_run", "alpha delta beta gamma epsilon"),
    ],
)
@pytest.mark.parametrize("limit", [1, 2, 5])
def test_pages_of_jobs_follow_each_other_in_every_order(
    session: Session, some_jobs: list[CronJob], sort: str, names: str, limit: int
) -> None:
    found = all_pages(lambda cursor: queries.jobs(session, sort=sort, cursor=cursor, limit=limit))
    assert [job.name for job in found] == names.split()


def test_an_unknown_status_or_sort_is_named(session: Session) -> None:
    with pytest.raises(Invalid) as refused:
        queries.jobs(session, JobFilter(status="asleep"))
    assert (
        refused.value.fields["status"]
        == "Invalid status. Must be one of: enabled, disabled, dead, failing, skipping"
    )
    with pytest.raises(Invalid) as refused:
        queries.jobs(session, sort="color")
    assert "sort" in refused.value.fields


def test_parents_children_and_tags_are_read(session: Session, some_jobs: list[CronJob]) -> None:
    alpha, beta, gamma = some_jobs[:3]
    session.add_all(
        [
            CronJobDependency(cron_job=beta.id, parent=alpha.id),
            CronJobDependency(cron_job=beta.id, parent=gamma.id),
        ]
    )
    session.commit()
    assert queries.parents(session, [alpha.id, beta.id]) == {alpha.id: [], beta.id: [alpha.id, gamma.id]}
    assert [job.name for job in queries.children(session, alpha.id)] == ["beta"]
    assert queries.tags(session) == ["etl", "nightly"]


# -- cursors -------------------------------------------------------------------------------------------------


def test_a_cursor_of_another_order_or_with_a_changed_letter_is_refused(
    session: Session, some_jobs: list[CronJob]
) -> None:
    cursor = queries.jobs(session, limit=1).next
    assert cursor is not None
    with pytest.raises(Invalid) as refused:
        queries.jobs(session, sort="-name", cursor=cursor)
    assert list(refused.value.fields) == ["cursor"]
    for place in range(len(cursor)):
        changed = cursor[:place] + ("B" if cursor[place] == "A" else "A") + cursor[place + 1 :]
        with pytest.raises(Invalid):
            queries.jobs(session, cursor=changed)


@pytest.mark.parametrize("nonsense", ["x", "é", "=", "A" * 9000, "\0", "W10", "....", "-_-_"])
def test_nonsense_is_no_cursor(session: Session, nonsense: str) -> None:
    with pytest.raises(Invalid):
        queries.executions(session, cursor=nonsense)


# -- executions ----------------------------------------------------------------------------------------------


def ids(page: Any) -> list[int]:
    return [row.execution.id for row in page.items]


def test_executions_are_found_by_what_people_filter_by(session: Session) -> None:
    job, other = add_job(session, "a"), add_job(session, "b")
    first = add_run(session, job.id, 1, status="failed", error="No route to host", version=3)
    second = add_run(session, job.id, 2, locked_by="host:1", output="All 50% done\n")
    third = add_run(session, other.id, 3, status="running", origin="manual")
    session.add(CronJobOutput(execution=third.id, seq=0, text="still half way"))
    session.commit()

    def found(**conditions: Any) -> list[int]:
        return ids(queries.executions(session, ExecutionFilter(**conditions)))

    assert found() == [third.id, second.id, first.id]
    assert found(job=job.id) == [second.id, first.id]
    assert found(statuses=["failed", "running"]) == [third.id, first.id]
    assert found(job=job.id, statuses=["failed", "running"]) == [first.id]
    assert found(slot_from=NOON + timedelta(minutes=2)) == [third.id, second.id]
    assert found(slot_to=NOON + timedelta(minutes=2)) == [first.id]
    assert found(origin="manual") == [third.id]
    assert found(worker="host:1") == [second.id]
    assert found(version=3) == [first.id]
    assert found(text="no route") == [first.id]
    assert found(text="50%") == [second.id]
    assert found(text="half") == [third.id]
    assert found(text="half", statuses=["completed", "running"], slot_from=NOON) == [third.id]
    assert queries.executions(session, ExecutionFilter(job=other.id)).items[0].job_name == "b"


@pytest.mark.parametrize(
    "wanted",
    [
        ExecutionFilter(),
        ExecutionFilter(statuses=["completed", "failed"]),
        ExecutionFilter(slot_from=NOON),
        ExecutionFilter(slot_from=NOON, statuses=["completed", "failed"]),
        ExecutionFilter(text="line"),
        ExecutionFilter(worker="w", statuses=["completed", "failed"], slot_from=NOON),
    ],
)
def test_pages_have_no_gaps_and_no_doubles_while_rows_come_in(
    session: Session, wanted: ExecutionFilter
) -> None:
    job = add_job(session, "busy")
    for number in range(20):
        add_run(
            session, job.id, number, status=("completed", "failed")[number % 2], output="line", locked_by="w"
        )
    session.commit()
    before = set(session.scalars(sa.select(CronJobExecution.id)))
    seen: list[int] = []
    cursor = None
    while True:
        page = queries.executions(session, wanted, cursor=cursor, limit=3)
        seen += ids(page)
        for _ in range(3):
            add_run(session, job.id, 100 + len(seen) * 10 + _, output="line", locked_by="w")
        session.commit()
        cursor = page.next
        if cursor is None:
            break
    assert len(seen) == len(set(seen))
    assert before <= set(seen)


def test_a_filter_without_index_looks_through_a_bounded_number_of_rows(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "SCANNED_FOR_TEXT", 5)
    job = add_job(session, "needle")
    needle = add_run(session, job.id, 0, output="a needle")
    for number in range(1, 17):
        add_run(session, job.id, number, output="hay")
    session.commit()
    wanted = ExecutionFilter(text="needle")
    first = queries.executions(session, wanted, limit=10)
    assert first.items == []
    assert first.next is not None
    found = all_pages(lambda cursor: queries.executions(session, wanted, cursor=cursor, limit=10))
    assert [row.execution.id for row in found] == [needle.id]


def test_active_runs_are_listed_apart(session: Session) -> None:
    job = add_job(session, "a")
    past, future = NOON - timedelta(days=3650), NOON + timedelta(days=3650)
    stale = add_run(session, job.id, 1, status="running", locked_by="w", locked_until=past)
    held = add_run(session, job.id, 2, status="running", locked_by="w", locked_until=future)
    waits = add_run(session, job.id, 3, status="pending", due_time=None, waiting_for="its parents")
    later = add_run(session, job.id, 5, status="pending")
    soon = add_run(session, job.id, 4, status="pending")
    add_run(session, job.id, 6)
    session.commit()
    assert ids(queries.running(session)) == [held.id, stale.id]
    assert ids(queries.stale_locks(session, NOON)) == [stale.id]
    assert ids(queries.pending(session)) == [soon.id, later.id, waits.id]
    one_by_one = all_pages(lambda cursor: queries.pending(session, cursor=cursor, limit=1))
    assert [row.execution.id for row in one_by_one] == [soon.id, later.id, waits.id]


def test_failed_runs_of_the_last_days_are_listed_latest_first(session: Session) -> None:
    job = add_job(session, "a")
    old = add_run(session, job.id, -60 * 24 * 3, status="failed")
    lost = add_run(session, job.id, 2, status="lost")
    timeout = add_run(session, job.id, 1, status="timeout")
    failed = add_run(session, job.id, 3, status="failed")
    add_run(session, job.id, 4)
    session.commit()
    since = NOON - timedelta(days=1)
    assert ids(queries.failed(session, since)) == [failed.id, lost.id, timeout.id]
    assert ids(queries.failed(session, since - timedelta(days=9)))[-1] == old.id


def test_an_execution_comes_with_every_attempt_of_its_chain(session: Session) -> None:
    job = add_job(session, "a")
    first = add_run(session, job.id, 1, status="failed", stack_trace="Traceback", result={"a": 1})
    second = add_run(
        session, job.id, 1, status="failed", retry_count=1, is_retry=True, parent_execution=first.id
    )
    add_run(session, job.id, 1, rerun=1)
    session.commit()
    detail = queries.execution(session, first.id)
    assert [attempt.id for attempt in detail.attempts] == [first.id, second.id]
    assert detail.job is not None
    assert (detail.job.name, detail.execution.stack_trace) == ("a", "Traceback")


@pytest.mark.parametrize("unknown", [0, -1, 17, 2**63, 10**40])
def test_an_execution_that_is_not_there_is_not_found(session: Session, unknown: int) -> None:
    for read in (queries.execution, queries.status, queries.read_log):
        with pytest.raises(NotFound):
            read(session, unknown)


# -- logs ----------------------------------------------------------------------------------------------------


def add_output(session: Session, run: CronJobExecution, seq: int, text: str, is_tail: bool = False) -> None:
    session.add(CronJobOutput(execution=run.id, seq=seq, text=text, is_tail=is_tail))
    session.commit()


@pytest.fixture
def run(session: Session) -> CronJobExecution:
    run = add_run(session, add_job(session, "talks").id, 0, status="running")
    session.commit()
    return run


def end(session: Session, run: CronJobExecution, output: str | None = None) -> None:
    run.status, run.output = "completed", output
    session.commit()


def test_a_follower_reads_every_word_once_and_learns_of_the_end(
    session: Session, run: CronJobExecution
) -> None:
    assert queries.read_log(session, run.id) == ("", "0", False)
    add_output(session, run, 0, "one ")
    text, cursor, finished = queries.read_log(session, run.id)
    assert (text, finished) == ("one ", False)
    assert queries.read_log(session, run.id, cursor).text == ""
    add_output(session, run, 1, "two ")
    add_output(session, run, 2, "three ")
    text, cursor, finished = queries.read_log(session, run.id, cursor)
    assert (text, finished) == ("two three ", False)
    end(session, run, "four")
    text, cursor, finished = queries.read_log(session, run.id, cursor)
    assert (text, finished) == ("four", True)
    assert queries.read_log(session, run.id, cursor) == ("", cursor, True)


def test_who_comes_after_the_end_reads_the_same(session: Session, run: CronJobExecution) -> None:
    add_output(session, run, 0, "one ")
    end(session, run, "two")
    first = queries.read_log(session, run.id)
    last = queries.read_log(session, run.id, first.cursor)
    assert (first.text + last.text, last.finished) == ("one two", True)


def test_the_live_tail_is_replaced_at_the_end_and_the_head_is_not_repeated(
    session: Session, run: CronJobExecution
) -> None:
    add_output(session, run, 0, "head\n")
    add_output(session, run, 1, "seen live\n", is_tail=True)
    live = queries.read_log(session, run.id)
    assert live.text == "head\nseen live\n"
    session.execute(sa.delete(CronJobOutput).where(CronJobOutput.is_tail.is_(True)))
    add_output(session, run, 1_000_000, "[... 5 bytes cut ...]\nkept tail\n")
    end(session, run)
    after = queries.read_log(session, run.id, live.cursor)
    assert "head" not in after.text
    assert after.text.endswith("follows ...]\n[... 5 bytes cut ...]\nkept tail\n")
    assert queries.read_log(session, run.id, after.cursor) == ("", "end", True)
    afresh = queries.read_log(session, run.id)
    assert afresh.text == "head\n[... 5 bytes cut ...]\nkept tail\n"


def test_a_lost_run_keeps_the_tail_that_was_seen(session: Session, run: CronJobExecution) -> None:
    add_output(session, run, 0, "head\n")
    add_output(session, run, 1, "seen live\n", is_tail=True)
    cursor = queries.read_log(session, run.id).cursor
    run.status = "lost"
    session.commit()
    assert queries.read_log(session, run.id, cursor) == ("", "end", True)


def test_a_long_log_comes_in_bounded_parts(
    session: Session, run: CronJobExecution, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "LOG_CHARACTERS", 10)
    for seq in range(7):
        add_output(session, run, seq, f"<{seq}>")
    add_output(session, run, 7, "a piece longer than a part")
    end(session, run)
    parts, cursor, finished = [], None, False
    while not finished:
        text, cursor, finished = queries.read_log(session, run.id, cursor)
        parts.append(text)
    assert parts[0] == "<0><1><2>"
    assert "".join(parts) == "<0><1><2><3><4><5><6>a piece longer than a part"


@pytest.mark.parametrize("after", ["x", "-1", "1e3", "t", "²", "99999999999999999999", "1 "])
def test_a_log_cursor_that_was_never_given_is_refused(
    session: Session, run: CronJobExecution, after: str
) -> None:
    with pytest.raises(Invalid) as refused:
        queries.read_log(session, run.id, after)
    assert list(refused.value.fields) == ["after"]


# -- figures -------------------------------------------------------------------------------------------------


def test_a_summary_is_read_from_the_rolled_up_counters(session: Session) -> None:
    job = add_job(
        session,
        "a",
        runs_total=11,  # one of them cancelled
        runs_completed=8,
        runs_failed=1,
        runs_timeout=1,
        duration_total_ms=1100,
        last_execution=7,
        last_status="completed",
        last_run_at=NOON,
    )
    assert figures.execution_summary(job) == {
        "total": 10,
        "successful": 8,
        "failed": 1,
        "timeouts": 1,
        "success_rate": 80.0,
        "attempts": 10,
        "recovered": 0,
        "skipped": 0,
        "avg_duration_ms": 100,
        "last_execution": {"id": 7, "status": "completed", "started_at": NOON},
    }
    never = figures.execution_summary(add_job(session, "b"))
    assert (never["success_rate"], never["avg_duration_ms"], never["last_execution"]) == (None, None, None)


def add_day(session: Session, job: int, day: date, durations: list[int], **counts: int) -> None:
    histogram: dict[str, int] = {}
    for duration in durations:
        histogram[bucket(duration)] = histogram.get(bucket(duration), 0) + 1
    session.add(
        CronJobDailyStat(cron_job=job, day=day, duration_ms=sum(durations), durations=histogram, **counts)
    )


def test_statistics_cover_each_day_and_add_up(session: Session) -> None:
    today = date(2026, 3, 1)
    add_day(session, 1, today, [100, 100, 1000], completed=2, failed=1, skipped=4)
    add_day(session, 1, today - timedelta(days=2), [300], timeout=1)
    add_day(session, 1, today - timedelta(days=3), [9], completed=1)
    add_day(session, 2, today, [500], completed=1)
    session.commit()
    one = figures.job_statistics(session, 1, 3, today)
    assert [day for day, _ in one.days] == [today - timedelta(days=2), today - timedelta(days=1), today]
    assert (one.total.total, one.total.completed, one.total.skipped) == (4, 2, 4)
    assert one.total.success_rate == 50.0
    assert one.total.avg_duration_ms == 375
    assert one.total.p50_duration_ms is not None
    assert 100 <= one.total.p50_duration_ms <= 125
    assert one.total.p95_duration_ms is not None
    assert 1000 / 1.25 <= one.total.p95_duration_ms <= 1000 * 1.25  # within the bucket of the longest
    assert one.days[1][1].success_rate is None
    everything = figures.global_statistics(session, 3, today)
    assert (everything.total.completed, everything.total.total) == (3, 5)
    assert everything.total.avg_duration_ms == 400


def test_counters_tell_how_things_stand(session: Session) -> None:
    job = add_job(session, "a")
    add_job(session, "b", enabled=False)
    add_job(session, "c", enabled=False, in_dead_letter_queue=True)
    add_job(session, "gone", deleted_id=9)
    past, future = NOON - timedelta(hours=1), NOON + timedelta(hours=1)
    add_run(session, job.id, 1, status="running", locked_until=past)
    add_run(session, job.id, 2, status="running", locked_until=future)
    add_run(session, job.id, 3, status="pending", due_time=past)
    add_run(session, job.id, 4, status="pending", due_time=future)
    add_run(session, job.id, 5, status="pending", due_time=None)
    add_day(session, job.id, NOON.date(), [5], completed=1)
    session.commit()
    now = figures.counters(session, NOON)
    assert (now.jobs, now.enabled, now.disabled, now.dead) == (3, 1, 1, 1)
    assert (now.running, now.pending, now.overdue, now.stale_locks) == (2, 3, 1, 1)
    assert now.today.completed == 1


# -- workers and audit ---------------------------------------------------------------------------------------


def test_workers_that_have_not_stopped_come_first(session: Session) -> None:
    stopped = add_worker(session, "stopped", last_seen_at=NOON, stopped_at=NOON)
    alive = add_worker(session, "alive", last_seen_at=NOON - timedelta(seconds=30))
    drains = add_worker(session, "drains", last_seen_at=NOON - timedelta(seconds=31), draining=True)
    silent = add_worker(session, "silent", last_seen_at=NOON - timedelta(days=2))
    session.commit()
    assert list(queries.workers(session)) == [alive, drains, silent, stopped]
    assert list(queries.workers(session, NOON - timedelta(hours=1))) == [alive, drains, stopped]


def test_changes_are_listed_newest_first(session: Session) -> None:
    for number in range(5):
        session.add(
            CronAudit(
                at=NOON + timedelta(hours=number),
                actor=("ann", "bob")[number % 2],
                action="enable",
                subject_type="job",
                subject_id=str(number),
            )
        )
    session.commit()
    found = all_pages(
        lambda cursor: queries.audit_log(session, AuditFilter(actor="ann"), cursor=cursor, limit=1)
    )
    assert [row.subject_id for row in found] == ["4", "2", "0"]
    some = queries.audit_log(
        session, AuditFilter(at_from=NOON + timedelta(hours=1), at_to=NOON + timedelta(hours=3))
    )
    assert [row.subject_id for row in some.items] == ["2", "1"]


@pytest.mark.parametrize(
    "database",
    [
        pytest.param("mariadb", marks=pytest.mark.mariadb),
        pytest.param("postgresql", marks=pytest.mark.postgresql),
    ],
)
def test_servers_find_letters_of_every_language_whatever_their_case(
    database: str, request: pytest.FixtureRequest
) -> None:
    """SQLite knows the case of A to Z alone."""
    engine = db.make_engine(request.getfixturevalue(f"{database}_settings"))
    with db.make_sessions(engine)() as session:
        job = add_job(session, "Grüße aus Łódź")
        for part in ("GRÜ", "łÓDŹ", "aus"):
            assert [found.id for found in queries.jobs(session, JobFilter(q=part)).items] == [job.id]
        assert queries.jobs(session, JobFilter(q="grue")).items == []
    engine.dispose()


@pytest.mark.parametrize("wanted", [ExecutionFilter(version=2**31), ExecutionFilter(job=2**63)])
def test_numbers_that_no_column_holds_find_nothing(session: Session, wanted: ExecutionFilter) -> None:
    assert queries.executions(session, wanted).items == []
    with pytest.raises(NotFound):
        versions.get_version(session, 1, 2**31)
    job = add_job(session, "a")
    assert list(versions.history(session, job.id, before=2**40)) == []
