"""Versions and the contents they share: numbers, counts, rollback, stale edits, pruning, damaged rows."""

from __future__ import annotations

import bz2
import multiprocessing
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from kytecron.config import Settings
from kytecron.core.errors import Conflict, Invalid, NotFound, Unreadable
from kytecron.services import lifecycle, versions
from kytecron.services.audit import Actor
from kytecron.services.jobs import CronJobManager
from kytecron.services.versions import CONTENT, VERSION, CronVersionControl
from kytecron.store import db
from kytecron.store.models import CronAudit, CronJob, KyteCronJobVersion
from tests.factories import add_job, fresh

ANNA = Actor("anna", "web")


def code(text: str) -> str:
    return f"class Report(CronJobBase):\n    def execute(self):\n        self.log({text!r})\n"


@pytest.fixture
def control(session: Session) -> CronVersionControl:
    return CronVersionControl(session, ANNA)


@pytest.fixture
def job(session: Session) -> CronJob:
    return CronJobManager(session, ANNA).create_job(name="report", code=code("one"))


def another(session: Session, name: str = "another", text: str = "one") -> CronJob:
    return CronJobManager(session, ANNA).create_job(name=name, code=code(text))


def numbers(control: CronVersionControl, job: CronJob) -> list[int]:
    return [version.version_number for version in control.history(job.id)]


def references(session: Session) -> dict[str, int]:
    """Reference counts by source, for contents that can be read."""
    rows = session.execute(sa.select(CONTENT)).all()
    return {versions.unpack(row.code, row.size_bytes, row.content_hash): row.reference_count for row in rows}


# -- saving --------------------------------------------------------------------------------------------------


def test_changed_code_is_the_next_version_and_the_current_one(
    session: Session, control: CronVersionControl, job: CronJob
) -> None:
    version = control.create_version(job.id, code("two") + "\n# done\n", "say two")
    assert version is not None
    assert (version.version_number, version.is_current, version.created_by) == (2, True, "anna")
    counts = ("lines_added", "lines_removed", "lines_changed", "lines_before", "lines_after")
    assert [getattr(version, name) for name in counts] == [2, 0, 1, 3, 5]
    assert version.changes_from_previous is not None
    assert "+        self.log('two')" in version.changes_from_previous
    assert fresh(session, job).current_version == 2
    assert [old.is_current for old in control.history(job.id)] == [True, False]
    assert (control.code(job.id, 1), control.code(job.id, 2)) == (code("one"), code("two") + "\n# done\n")
    entry = session.scalars(sa.select(CronAudit).order_by(CronAudit.id.desc())).first()
    assert entry is not None
    assert (entry.action, entry.subject_id, entry.actor) == ("new_version", str(job.id), "anna")
    assert (entry.before, entry.after) == ({"version": 1}, {"version": 2, "message": "say two"})


@pytest.mark.parametrize(
    "same", [code("one"), code("one").replace("\n", "\r\n"), "\ufeff" + code("one") + "\n\n"]
)
def test_unchanged_code_makes_no_version(
    session: Session, control: CronVersionControl, job: CronJob, same: str
) -> None:
    assert control.create_version(job.id, same, "nothing new") is None
    assert control.create_version(job.id, same, base_version=9) is None
    assert numbers(control, job) == [1]
    assert [entry.action for entry in session.scalars(sa.select(CronAudit))] == ["create"]


def test_one_source_is_stored_once_whoever_saves_it(
    session: Session, control: CronVersionControl, job: CronJob
) -> None:
    other = another(session)
    control.create_version(other.id, code("two"))
    control.create_version(other.id, code("one"))
    assert references(session) == {code("one"): 3, code("two"): 1}


def test_code_that_is_no_job_is_refused(session: Session, control: CronVersionControl, job: CronJob) -> None:
    with pytest.raises(Invalid) as caught:
        control.create_version(job.id, "x = 1", "m" * 501)
    assert set(caught.value.fields) == {"code", "message"}
    assert numbers(control, job) == [1]


def test_a_message_may_have_several_lines_and_any_script(control: CronVersionControl, job: CronJob) -> None:
    version = control.create_version(job.id, code("two"), "première ligne\nπρώτα")
    assert version is not None
    assert version.message == "première ligne\nπρώτα"


def test_a_stale_edit_is_refused_with_both_sides(session: Session, job: CronJob) -> None:
    CronVersionControl(session, Actor("ben")).create_version(job.id, code("theirs"), base_version=1)
    control = CronVersionControl(session, ANNA)
    with pytest.raises(Conflict, match="at version 2 by ben now; this edit started from version 1") as caught:
        control.create_version(job.id, code("yours"), base_version=1)
    details = caught.value.details
    assert (details["base_version"], details["current_version"], details["changed_by"]) == (1, 2, "ben")
    assert (details["base"], details["theirs"], details["yours"]) == (
        code("one"),
        code("theirs"),
        code("yours"),
    )
    # Who wrote the same meanwhile has lost nothing.
    assert control.create_version(job.id, code("theirs"), base_version=1) is None
    assert control.create_version(job.id, code("yours"), base_version=2) is not None


def test_a_stale_edit_is_told_even_when_its_base_was_pruned(
    control: CronVersionControl, job: CronJob
) -> None:
    control.create_version(job.id, code("two"))
    control.prune(job.id, 1)
    with pytest.raises(Conflict) as caught:
        control.create_version(job.id, code("three"), base_version=1)
    assert caught.value.details["base"] is None


def test_a_job_without_code_gets_its_first_version_from_base_zero(
    session: Session, control: CronVersionControl
) -> None:
    job = add_job(session)
    with pytest.raises(Conflict):
        control.create_version(job.id, code("one"), base_version=1)
    version = control.create_version(job.id, code("one"), base_version=0)
    assert version is not None
    assert (version.version_number, version.lines_added, version.lines_before) == (1, 3, 0)


# -- rollback ------------------------------------------------------------------------------------------------


def test_a_rollback_makes_an_old_version_current_again(
    session: Session, control: CronVersionControl, job: CronJob
) -> None:
    for text in ("two", "three"):
        control.create_version(job.id, code(text))
    assert control.rollback(job.id, 1).is_current
    assert fresh(session, job).current_version == 1
    assert [version.is_current for version in control.history(job.id)] == [False, False, True]
    entry = session.scalars(sa.select(CronAudit).order_by(CronAudit.id.desc())).first()
    assert entry is not None
    assert (entry.action, entry.before, entry.after) == ("rollback", {"version": 3}, {"version": 1})
    assert references(session) == {code("one"): 1, code("two"): 1, code("three"): 1}


def test_an_edit_after_a_rollback_takes_a_new_number_and_counts_from_what_was_edited(
    control: CronVersionControl, job: CronJob
) -> None:
    control.create_version(job.id, code("one") + "# more\n" * 5)
    control.rollback(job.id, 1)
    assert control.create_version(job.id, code("one")) is None
    version = control.create_version(job.id, code("one") + "# end\n")
    assert version is not None
    assert (version.version_number, version.lines_added, version.lines_removed) == (3, 1, 0)


def test_rollback_to_the_current_version_or_to_none_is_refused(
    control: CronVersionControl, job: CronJob
) -> None:
    for text in ("two", "three"):
        control.create_version(job.id, code(text))
    with pytest.raises(Conflict, match=r"^Already at version 3$"):
        control.rollback(job.id, 3)
    for number in (10, 0, -1, 2**80):
        with pytest.raises(NotFound, match=f"^Version {number} not found for job {job.id}$"):
            control.rollback(job.id, number)


# -- reading -------------------------------------------------------------------------------------------------


def test_history_comes_newest_first_in_pages(control: CronVersionControl, job: CronJob) -> None:
    for number in range(2, 8):
        control.create_version(job.id, code(str(number)))
    first = [version.version_number for version in control.history(job.id, 3)]
    assert first == [7, 6, 5]
    assert [version.version_number for version in control.history(job.id, 3, before=first[-1])] == [4, 3, 2]
    with pytest.raises(NotFound):
        control.history(999_999)


def test_the_code_of_a_deleted_job_can_still_be_read(
    session: Session, control: CronVersionControl, job: CronJob
) -> None:
    CronJobManager(session).delete(job.id)
    assert numbers(control, job) == [1]
    assert control.code(job.id, 1) == code("one")
    with pytest.raises(NotFound):
        control.create_version(job.id, code("two"))


def test_any_two_versions_compare(control: CronVersionControl, job: CronJob) -> None:
    control.create_version(job.id, code("two"))
    seen = control.compare(job.id, 1, 2)
    assert (seen.counts.changed, len(seen.rows)) == (1, 3)
    back = control.compare(job.id, 2, 1, context=0)
    assert [row.kind for row in back.rows] == ["gap", "changed"]
    with pytest.raises(NotFound, match=f"Version 3 not found for job {job.id}"):
        control.compare(job.id, 1, 3)


# -- pruning -------------------------------------------------------------------------------------------------


def test_prune_keeps_the_newest_the_current_and_what_a_waiting_run_asks_for(
    session: Session, control: CronVersionControl, job: CronJob
) -> None:
    for number in range(2, 9):
        control.create_version(job.id, code(str(number)))
    another(session, text="4")
    control.rollback(job.id, 2)
    lifecycle.trigger(session, job.id, version=3, actor=ANNA)
    assert control.prune(job.id, 2) == 4
    assert numbers(control, job) == [8, 7, 3, 2]
    # The content that another job shares stays; what nobody points at is gone.
    assert references(session) == {code(text): 1 for text in "23478"}
    assert control.prune(job.id, 2) == 0
    entries = session.scalars(sa.select(CronAudit).where(CronAudit.action == "prune_versions")).all()
    assert [entry.before for entry in entries] == [{"versions": [1, 4, 5, 6]}]


@pytest.mark.parametrize("keep", [0, -1])
def test_prune_never_removes_the_newest(control: CronVersionControl, job: CronJob, keep: int) -> None:
    with pytest.raises(Invalid) as caught:
        control.prune(job.id, keep)
    assert set(caught.value.fields) == {"keep"}


def test_numbers_are_not_used_again_after_prune(control: CronVersionControl, job: CronJob) -> None:
    control.create_version(job.id, code("two"))
    control.rollback(job.id, 1)
    control.prune(job.id, 1)
    version = control.create_version(job.id, code("three"))
    assert version is not None
    assert version.version_number == 3


# -- contents ------------------------------------------------------------------------------------------------


def test_content_statistics_say_what_sharing_and_compression_save(
    session: Session, control: CronVersionControl, job: CronJob
) -> None:
    long = "\n".join(f"# step {number % 7}" for number in range(2000))
    for name in ("a", "b", "c"):
        shared = CronJobManager(session).create_job(name=name, code=code("long") + long)
    big = len((code("long") + long + "\n").encode())
    stats = control.content_stats()
    assert (stats["contents"], stats["versions"], stats["shared_contents"]) == (2, 4, 1)
    assert stats["bytes_of_contents"] == big + len(code("one"))
    assert stats["bytes_of_versions"] == 3 * big + len(code("one"))
    assert stats["dedup_rate"] == pytest.approx(66.4, abs=0.3)
    assert stats["compression_rate"] > 90
    assert stats["saved_rate"] > stats["compression_rate"]
    (top,) = stats["top_shared"]
    assert (top["content_hash"], top["reference_count"]) == (control.get(shared.id, 1).content_hash, 3)


def test_statistics_of_nothing_are_numbers_too(control: CronVersionControl) -> None:
    stats = control.content_stats()
    assert (stats["contents"], stats["versions"], stats["dedup_rate"], stats["top_shared"]) == (
        0,
        0,
        None,
        [],
    )


def test_a_content_is_found_by_the_beginning_of_its_hash(
    session: Session, control: CronVersionControl, job: CronJob
) -> None:
    digest = control.get(job.id, 1).content_hash
    for prefix in (digest, digest[:1], f" {digest[:8].upper()} "):
        assert [content.content_hash for content in control.find_content(prefix)] == [digest]
    assert control.find_content("0" * 64) == []
    for wrong in ("", "xyz", "%", digest + "0"):
        with pytest.raises(Invalid):
            control.find_content(wrong)


def test_wrong_reference_counts_are_found_and_repaired(
    session: Session, control: CronVersionControl, job: CronJob
) -> None:
    another(session, text="two")
    digest = control.get(job.id, 1).content_hash
    packed = versions.pack("left by hand")
    session.execute(CONTENT.update().where(CONTENT.c.content_hash == digest).values(reference_count=0))
    session.execute(
        CONTENT.insert().values(
            content_hash=packed.content_hash, code=packed.data, size_bytes=12, reference_count=2
        )
    )
    session.commit()
    wrong = {(found.content_hash, found.recorded, found.counted) for found in control.check_references()}
    assert wrong == {(digest, 0, 1), (packed.content_hash, 2, 0)}
    assert len(control.repair_references()) == 2
    assert control.check_references() == control.repair_references() == []
    assert [content.content_hash for content in control.orphaned()] == [packed.content_hash]


def test_a_wrong_count_does_not_stop_prune(
    session: Session, control: CronVersionControl, job: CronJob
) -> None:
    another(session)
    control.create_version(job.id, code("two"))
    session.execute(CONTENT.update().values(reference_count=1))
    session.commit()
    assert control.prune(job.id, 1) == 1
    assert control.repair_references() == [
        versions.Miscount(versions.pack(code("one")).content_hash, recorded=0, counted=1)
    ]


GOOD = versions.pack("print('x')\n" * 500)


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (GOOD.data[:-20], GOOD.size_bytes),
        (GOOD.data[:40] + b"\0" + GOOD.data[41:], GOOD.size_bytes),
        (b"not compressed at all", GOOD.size_bytes),
        (b"", GOOD.size_bytes),
        (GOOD.data, GOOD.size_bytes - 1),
        (GOOD.data, GOOD.size_bytes + 1),
        (GOOD.data, -1),
        (bz2.compress(b"print('y')\n" * 500), GOOD.size_bytes),
    ],
)
def test_damaged_content_is_named_and_never_returned(data: bytes, size: int) -> None:
    assert versions.unpack(GOOD.data, GOOD.size_bytes, GOOD.content_hash) == "print('x')\n" * 500
    with pytest.raises(Unreadable, match=f"Content {GOOD.content_hash[:12]} is damaged"):
        versions.unpack(data, size, GOOD.content_hash)


@pytest.mark.parametrize("declared", [100, 2**40])
def test_a_bomb_is_not_unpacked(declared: int) -> None:
    bomb = bz2.compress(bytes(30_000_000))
    assert len(bomb) < 100
    tracemalloc.start()
    try:
        with pytest.raises(Unreadable):
            versions.unpack(bomb, declared, "0" * 64)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_code_can_be_saved_over_damaged_content(
    session: Session, control: CronVersionControl, job: CronJob
) -> None:
    session.execute(CONTENT.update().values(code=b"gone"))
    session.commit()
    with pytest.raises(Unreadable):
        control.code(job.id, 1)
    version = control.create_version(job.id, code("two"))
    assert version is not None
    assert (version.version_number, control.code(job.id, 2)) == (2, code("two"))
    with pytest.raises(Conflict) as caught:
        control.create_version(job.id, code("three"), base_version=1)
    assert caught.value.details["base"] is None


# -- two writers ---------------------------------------------------------------------------------------------


Meet = Callable[[], None]
"""Waits until every process has come to this point."""


def in_processes(settings: Settings, *works: Callable[[CronVersionControl, Meet], None]) -> None:
    """Run each in a process of its own with a session of its own."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(len(works))

    def meet() -> None:
        barrier.wait(30)

    def run(work: Callable[[CronVersionControl, Meet], None]) -> None:
        engine = db.make_engine(settings)
        with db.make_sessions(engine)() as own:
            work(CronVersionControl(own), meet)

    processes = [context.Process(target=run, args=(work,)) for work in works]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * len(works)


def assert_sound(session: Session) -> None:
    session.rollback()
    control = CronVersionControl(session)
    assert control.check_references() == []
    assert control.orphaned() == []
    current = sa.select(VERSION.c.cron_job, VERSION.c.version_number).where(VERSION.c.is_current)
    pointers = sa.select(CronJob.id, CronJob.current_version)
    as_pairs: Any = lambda query: sorted(map(tuple, session.execute(query)))  # noqa: E731
    assert as_pairs(current) == as_pairs(pointers)


def test_writers_of_the_same_sources_keep_the_counts_true(session: Session, settings: Settings) -> None:
    """Three jobs, three processes: each saves the same new sources as the others, rolls back and prunes."""
    job_ids = [another(session, f"job {number}").id for number in range(3)]
    session.rollback()

    def work(job_id: int) -> Callable[[CronVersionControl, Meet], None]:
        def write(control: CronVersionControl, meet: Meet) -> None:
            for number in range(12):
                control.session.connection()  # connecting takes longer than what is tested
                control.session.rollback()
                meet()
                control.create_version(job_id, code(f"shared {number}"))
                if number % 4 == 3:
                    control.rollback(job_id, number)
                    control.prune(job_id, 2)

        return write

    in_processes(settings, *(work(job_id) for job_id in job_ids))
    assert_sound(session)
    newest = session.execute(
        sa.select(VERSION.c.cron_job, sa.func.max(VERSION.c.version_number)).group_by(VERSION.c.cron_job)
    )
    assert sorted(map(tuple, newest)) == [(job_id, 13) for job_id in job_ids]


def test_writers_of_one_job_take_turns_and_lose_no_version(
    session: Session, settings: Settings, job: CronJob
) -> None:
    session.rollback()

    def work(name: str) -> Callable[[CronVersionControl, Meet], None]:
        def write(control: CronVersionControl, meet: Meet) -> None:
            meet()
            for number in range(15):
                control.create_version(job.id, code(f"{name} {number}"))

        return write

    in_processes(settings, work("left"), work("right"))
    assert_sound(session)
    query = sa.select(KyteCronJobVersion.version_number).order_by(KyteCronJobVersion.version_number)
    assert session.scalars(query).all() == list(range(1, 32))


def test_of_two_edits_from_one_version_the_second_is_refused(
    session: Session, settings: Settings, job: CronJob
) -> None:
    session.rollback()

    def work(name: str) -> Callable[[CronVersionControl, Meet], None]:
        def write(control: CronVersionControl, meet: Meet) -> None:
            meet()
            try:
                control.create_version(job.id, code(name), name, base_version=1)
            except Conflict:
                control.create_version(job.id, code(f"{name} merged"), f"{name} merged", base_version=2)

        return write

    in_processes(settings, work("left"), work("right"))
    assert_sound(session)
    messages = [version.message for version in CronVersionControl(session).history(job.id)]
    assert sorted(messages) in (["", "left", "right merged"], ["", "left merged", "right"])
