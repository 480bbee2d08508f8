"""Job files: what is exported comes back, an import changes only what differs, and no file can do harm."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import sqlalchemy as sa
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.orm import Session

from kytecron.core.errors import Conflict, Invalid, NotFound, Unreadable
from kytecron.core.states import Outcome, Status
from kytecron.services import deadletters, lifecycle, transfer
from kytecron.services.audit import Actor
from kytecron.services.jobs import CronJobManager, configuration
from kytecron.services.transfer import export_jobs, from_yaml, import_jobs, to_yaml
from kytecron.store.models import CronAudit, CronJob, KyteCronJobVersion, KyteCronJobVersionContent
from tests.command_line import CODE, CommandLine

TESTER = Actor("tester", "cli")
HOOK = "https://hooks.example.com/T0/B0/secret"


def document(*jobs: dict[str, Any]) -> dict[str, Any]:
    return {"kytecron": 1, "jobs": list(jobs)}


def entry(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "code": CODE} | fields


def actions(changes: list[transfer.Change]) -> dict[str, str]:
    return {change.name: change.action for change in changes}


def planned_by(session: Session, wanted: dict[str, Any]) -> list[transfer.Change]:
    return import_jobs(session, wanted, TESTER, dry_run=True)


def wrong(session: Session, *jobs: Any) -> dict[str, str]:
    """What is wrong with a document of these jobs; nothing of it is done."""
    before = session.scalar(sa.select(sa.func.count()).select_from(CronJob))
    with pytest.raises(Invalid) as caught:
        import_jobs(session, document(*jobs), TESTER)
    assert session.scalar(sa.select(sa.func.count()).select_from(CronJob)) == before
    return caught.value.fields


# --- there and back


EVERYTHING = {
    "description": "two lines:\n  the second\n",
    "tags": ["etl", "nightly"],
    "schedule_type": "weekly",
    "time_of_day": "12:30",
    "day_of_week": [1, 5],
    "timezone": "Europe/Berlin",
    "starts_at": "2026-01-01T00:00:00Z",
    "ends_at": "2999-12-31T23:59:59.5Z",
    "max_runs": 7,
    "parameters": {"no": "yes", "12:30": "1e3", "deep": [{"a": [None, 1.5, True]}], "": ""},
    "priority": 9,
    "overlap_policy": "queue",
    "queue_length": 3,
    "require_fresh": True,
    "notify_on_failure": False,
    "notification_email": "ops@example.com",
    "slack_webhook": HOOK,
    "enabled": False,
}


def test_what_is_exported_makes_the_same_jobs_elsewhere(session: Session):
    manager = CronJobManager(session)
    parent = manager.create_job(name="no", code=CODE)
    manager.create_job(
        name="all: of # it", code=CODE + "\n\n# tabs\there \n", depends_on=[parent.id], **EVERYTHING
    )
    before = {job.name: configuration(session, job) for job in session.scalars(sa.select(CronJob))}
    text = to_yaml(export_jobs(session, webhooks=True))
    for name in before:
        manager.delete(manager.find(name).id)
    assert set(actions(import_jobs(session, from_yaml(text), TESTER)).values()) == {"create"}
    for name, values in before.items():
        job = manager.find(name)
        assert configuration(session, job) | {"depends_on": None} == values | {"depends_on": None}
    assert configuration(session, manager.find("all: of # it"))["depends_on"] == [manager.find("no").id]
    assert to_yaml(export_jobs(session, webhooks=True)) == text


def test_an_import_of_what_is_there_changes_nothing(session: Session):
    manager = CronJobManager(session)
    parent = manager.create_job(name="parent", code=CODE)
    manager.create_job(name="child", code=CODE, depends_on=[parent.id], **EVERYTHING)
    rows = session.scalar(sa.select(sa.func.count()).select_from(CronAudit))
    exported = export_jobs(session)
    assert actions(import_jobs(session, exported, TESTER)) == {"parent": "unchanged", "child": "unchanged"}
    assert session.scalar(sa.select(sa.func.count()).select_from(CronAudit)) == rows
    assert export_jobs(session) == exported


def test_a_file_is_meant_to_be_read(session: Session):
    manager = CronJobManager(session)
    manager.create_job(name="Import orders", code=CODE)
    manager.create_job(
        name="Nightly report",
        code=CODE,
        tags=["etl", "nightly"],
        schedule_type="daily",
        time_of_day="12:30",
        depends_on=[manager.find("Import orders").id],
    )
    assert to_yaml(export_jobs(session)) == (
        "# Jobs of kytecron, known by their names. What a job leaves out has its default.\n"
        "# Compare with what is there: kytecron jobs import --dry-run FILE\n"
        "\n"
        "kytecron: 1\n"
        "jobs:\n"
        "- name: Import orders\n"
        "  code: |\n"
        "    class Greeter(CronJobBase):\n"
        "        def execute(self):\n"
        '            self.log("hello")\n'
        "- name: Nightly report\n"
        "  tags: [etl, nightly]\n"
        "  schedule_type: daily\n"
        "  time_of_day: '12:30'\n"
        "  depends_on:\n"
        "  - Import orders\n"
        "  code: |\n"
        "    class Greeter(CronJobBase):\n"
        "        def execute(self):\n"
        '            self.log("hello")\n'
    )


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
LINES = st.lists(st.sampled_from(["", " ", "a", "  b", "\tc", "d ", "# é \U0001f600", "- x", "---", "e: f"]))


@hypothesis.settings(deadline=None)
@given(name=TEXT, parameters=st.dictionaries(TEXT, VALUES, max_size=3), code=TEXT | LINES.map("\n".join))
def test_whatever_a_job_holds_comes_back_from_yaml(name: str, parameters: dict[str, Any], code: str):
    written = document(
        {"name": name, "parameters": parameters, "tags": ["a", "1"], "code": code},
        {"name": "next", "code": "x\n"},
    )
    text = to_yaml(written)
    assert from_yaml(text) == written
    # Other programs read it the same way.
    assert yaml.safe_load(text) == written


def test_code_stands_as_it_was_written_whatever_its_spaces():
    code = "class A:\n\tx = 1  \n\n\n    y = 'é'\n"
    text = to_yaml(document({"name": "a", "code": code}))
    assert text.endswith("  code: |\n    class A:\n    \tx = 1  \n\n\n        y = 'é'\n")
    assert from_yaml(text)["jobs"][0]["code"] == code


# --- what an import changes


def test_only_what_differs_is_changed(session: Session):
    manager = CronJobManager(session)
    job = manager.create_job(
        name="x", code=CODE, priority=7, tags=["a"], schedule_type="interval", interval_seconds=60
    )
    (change,) = import_jobs(
        session,
        document(
            entry("x", schedule_type="interval", interval_seconds=30, code=CODE.replace("hello", "bye"))
        ),
        TESTER,
        message="from git",
    )
    assert change.fields() == {
        "tags": {"from": ["a"], "to": []},
        "interval_seconds": {"from": 60, "to": 30},
        "priority": {"from": 7, "to": 5},
    }
    assert '+        self.log("bye")' in change.code_diff()
    job = manager.get(job.id)
    assert (job.interval_seconds, job.priority, job.tags, job.current_version) == (30, 5, "", 2)
    version = session.scalar(sa.select(KyteCronJobVersion).order_by(KyteCronJobVersion.id.desc()))
    assert version is not None
    assert (version.message, version.created_by) == ("from git", "tester")


def test_other_jobs_stay_as_they_are(session: Session):
    CronJobManager(session).create_job(name="other", code=CODE, priority=7)
    import_jobs(session, document(entry("x")), TESTER)
    assert CronJobManager(session).find("other").priority == 7


def test_a_plan_is_what_the_import_does_and_does_nothing(session: Session):
    CronJobManager(session).create_job(name="x", code=CODE)
    wanted = document(entry("x", priority=7), entry("y", depends_on=["x"]))
    planned = planned_by(session, wanted)
    assert import_jobs(session, wanted, TESTER, dry_run=True) == planned
    assert actions(planned_by(session, wanted)) == {"x": "update", "y": "create"}
    assert import_jobs(session, wanted, TESTER) == planned


def test_a_stopped_job_stays_stopped_unless_the_file_says_otherwise(session: Session):
    manager = CronJobManager(session)
    job = manager.create_job(name="x", code=CODE)
    manager.disable(job.id, "at night")
    assert actions(import_jobs(session, document(entry("x")), TESTER)) == {"x": "unchanged"}
    import_jobs(session, document(entry("x", enabled=True)), TESTER)
    assert manager.get(job.id).enabled
    import_jobs(session, document(entry("x", enabled=False)), TESTER)
    assert not manager.get(job.id).enabled


def test_a_dead_letter_is_recovered_by_people_not_by_files(session: Session):
    manager = CronJobManager(session)
    job = manager.create_job(name="x", code=CODE)
    lifecycle.trigger(session, job.id, actor=TESTER)
    (run,) = lifecycle.claim(session, "host:1:a", (), 1, 60.0)
    lifecycle.settle(session, [(run.claim, Outcome(Status.FAILED, permanent=True))])
    assert manager.get(job.id).in_dead_letter_queue
    exported = export_jobs(session)
    assert "enabled" not in exported["jobs"][0]
    assert actions(import_jobs(session, document(entry("x", enabled=True)), TESTER)) == {"x": "unchanged"}
    import_jobs(session, document(entry("x", priority=7)), TESTER)
    assert manager.get(job.id).in_dead_letter_queue
    deadletters.recover(session, job.id, TESTER)
    assert manager.get(job.id).priority == 7


def test_a_webhook_is_a_credential(session: Session):
    manager = CronJobManager(session)
    job = manager.create_job(name="x", code=CODE, slack_webhook=HOOK)
    assert HOOK not in to_yaml(export_jobs(session))
    assert HOOK in to_yaml(export_jobs(session, webhooks=True))
    import_jobs(session, export_jobs(session), TESTER)
    assert manager.get(job.id).slack_webhook == HOOK
    (change,) = planned_by(session, document(entry("x", slack_webhook="https://hooks.example.com/other")))
    assert "hooks" not in str(change.fields())
    import_jobs(session, document(entry("x", slack_webhook=None)), TESTER)
    assert manager.get(job.id).slack_webhook is None


def test_code_that_a_file_leaves_out_stays(session: Session):
    manager = CronJobManager(session)
    manager.create_job(name="x", code=CODE)
    import_jobs(session, document({"name": "x", "priority": 7}), TESTER)
    assert (manager.find("x").priority, manager.find("x").current_version) == (7, 1)
    assert wrong(session, {"name": "y"}) == {
        "y.code": "Job 'y': code is required for a job that does not exist yet"
    }


def test_many_jobs_are_written_in_several_steps(session: Session, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transfer, "STEP", 3)
    names = [f"job {number}" for number in range(8)]
    chain = [entry(name, depends_on=[parent]) for parent, name in pairwise(names)]
    import_jobs(session, document(*reversed(chain), entry(names[0])), TESTER)
    assert [one["name"] for one in export_jobs(session)["jobs"]] == names
    assert set(actions(planned_by(session, export_jobs(session))).values()) == {"unchanged"}


def test_some_jobs_can_be_exported(session: Session):
    manager = CronJobManager(session)
    ids = [manager.create_job(name=name, code=CODE).id for name in "abc"]
    assert [one["name"] for one in export_jobs(session, [ids[2], ids[0]])["jobs"]] == ["a", "c"]
    with pytest.raises(NotFound):
        export_jobs(session, [99])


def test_damaged_code_is_told_with_its_job(session: Session):
    CronJobManager(session).create_job(name="broken", code=CODE)
    session.execute(sa.update(KyteCronJobVersionContent).values(code=b"nonsense"))
    session.commit()
    with pytest.raises(Unreadable, match="Job 'broken': Content"):
        export_jobs(session)


def test_a_job_that_somebody_changes_meanwhile_is_left_alone(
    session: Session, monkeypatch: pytest.MonkeyPatch
):
    manager = CronJobManager(session)
    job = manager.create_job(name="x", code=CODE)
    planned = planned_by(session, document(entry("x", priority=7)))
    manager.update_job(job.id, priority=3)
    monkeypatch.setattr(transfer, "_plan", lambda *_: planned)
    with pytest.raises(Conflict, match="Job 'x': python has changed this job since revision 1"):
        import_jobs(session, document(entry("x", priority=7)), TESTER)
    assert manager.get(job.id).priority == 3


# --- parents


def test_parents_are_made_first_in_whatever_order_the_file_has_them(session: Session):
    changes = import_jobs(
        session, document(entry("c", depends_on=["b"]), entry("b", depends_on=["a"]), entry("a")), TESTER
    )
    assert [change.name for change in changes] == ["a", "b", "c"]


def test_a_dependency_can_be_turned_round(session: Session):
    import_jobs(session, document(entry("a"), entry("b", depends_on=["a"])), TESTER)
    import_jobs(session, document(entry("a", depends_on=["b"]), entry("b")), TESTER)
    assert [one.get("depends_on") for one in export_jobs(session)["jobs"]] == [["b"], None]


def test_a_dependency_can_be_turned_round_through_a_job_outside_of_the_file(session: Session):
    import_jobs(
        session, document(entry("a", depends_on=["b"]), entry("b", depends_on=["c"]), entry("c")), TESTER
    )
    import_jobs(
        session, document(entry("a"), entry("c", depends_on=["a"]), entry("d", depends_on=["b"])), TESTER
    )
    assert wrong(session, entry("a", depends_on=["b"]))["a.depends_on"].startswith(
        "Job 'a': depends_on makes a cycle"
    )


def test_a_cycle_is_refused_with_its_path(session: Session):
    found = wrong(
        session, entry("a", depends_on=["b"]), entry("b", depends_on=["c"]), entry("c", depends_on=["a"])
    )
    (message,) = found.values()
    assert message.partition("depends_on makes a cycle: ")[2] in (
        *("a → b → c → a", "b → c → a → b", "c → a → b → c"),
    )
    assert "depends_on makes a cycle: x → x" in wrong(session, entry("x", depends_on=["x"]))["x.depends_on"]


def test_unknown_parents_are_refused_by_name(session: Session):
    assert wrong(session, entry("a", depends_on=["nobody"]), entry("b", depends_on=[5])) == {
        "b.depends_on": "Job 'b': depends_on must be a list of the names of its parents"
    }
    assert wrong(session, entry("a", depends_on=["nobody"])) == {
        "a.depends_on": "Job 'a': depends_on: no job has the name 'nobody'"
    }


def test_a_deleted_parent_stays_until_somebody_has_its_name(session: Session):
    manager = CronJobManager(session)
    parent = manager.create_job(name="parent", code=CODE)
    child = manager.create_job(name="child", code=CODE, depends_on=[parent.id])
    manager.delete(parent.id)
    exported = export_jobs(session)
    assert exported["jobs"][0]["depends_on"] == ["parent"]
    assert actions(import_jobs(session, exported, TESTER)) == {"child": "unchanged"}
    other = manager.create_job(name="other", code=CODE)
    import_jobs(session, document(entry("child", depends_on=["other", "parent"])), TESTER)
    assert configuration(session, child)["depends_on"] == [parent.id, other.id]
    again = manager.create_job(name="parent", code=CODE)
    (change,) = import_jobs(session, document(entry("child", depends_on=["parent"])), TESTER)
    assert change.fields()["depends_on"] == {"from": ["other", "parent (deleted)"], "to": ["parent"]}
    assert configuration(session, child)["depends_on"] == [again.id]


# --- wrong files


def test_every_wrong_field_of_every_job_is_told(session: Session):
    found = wrong(
        session,
        entry("a", schedule_type="daily"),
        entry("b", priority=77, code="x ="),
        entry("c", colour="red", depends_on_job=5),
        {"code": CODE},
        entry("e", ends_at="1999-01-01", starts_at="1998-01-01"),
        "f",
        entry("g"),
        entry("g"),
    )
    assert found["a.time_of_day"].startswith("Job 'a': time_of_day is required for daily schedule type")
    assert found["b.priority"] == "Job 'b': priority must be at most 9"
    assert found["b.code"].startswith("Job 'b': line 1, column 4")
    assert found["c.colour"] == "Job 'c': colour is not a known field"
    assert found["c.depends_on"].startswith("Job 'c': depends_on must be a list of the names")
    assert found["number 4.name"] == "Job 'number 4': name is required"
    assert "mapping" in found["number 6.name"]
    assert found["g.name"] == "Job 'g': the file has this name twice"


def test_a_schedule_that_will_never_come_is_refused_before_anything_is_done(session: Session):
    over = {"schedule_type": "interval", "interval_seconds": 60, "ends_at": "1999-01-01"}
    assert "no slot is left" in wrong(session, entry("fine"), entry("over", **over))["over.ends_at"]
    import_jobs(session, document(entry("over", **over, enabled=False)), TESTER)


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (None, "jobs"),
        ([], "jobs"),
        ("text", "jobs"),
        ({"jobs": {"a": {}}}, "jobs"),
        ({"jobs": [], "extra": 1}, "extra"),
        ({"jobs": [], "kytecron": 2}, "kytecron"),
        ({"jobs": [{"name": f"{number}"} for number in range(transfer.MAX_JOBS + 1)]}, "jobs"),
    ],
)
def test_what_is_no_document_is_refused(session: Session, value: Any, field: str):
    with pytest.raises(Invalid) as caught:
        planned_by(session, value)
    assert caught.value.fields.keys() == {field}


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{n}: &{n} [*{m}, *{m}]\n" for m, n in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: !!python/object/apply:os.system [true]", "tags (!) are not read"),
        ("a: !!binary aGVsbG8=", "tags (!) are not read"),
        (LAUGHS, "anchors and aliases"),
        ("[" * 1_000_000, "nested deeper than 32 levels"),
        ("{a: " * 1_000_000, "nested deeper than 32 levels"),
        ("[" + "a," * 300_001, "more than 2,000 values"),
        ("a: 1\nb: 2\na: 3", "line 3, column 1: 'a' is here twice"),
        ("1: 2", "'1' is no name"),
        ("? [a]\n: b", "is no name"),
        ("a: [", "line 2, column 1"),
        ("a: 1\n---\nb: 2", "another document"),
        ("a: \0", "control characters"),
        (b"\xff\xfe", "not UTF-8"),
        ("a: \ud800", "half a character"),
        ("x" * (transfer.MAX_BYTES + 1), "at most 16 MB"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_hostile_yaml_is_refused_quickly(text: str | bytes, said: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transfer, "MAX_NODES", 2_000)
    started = time.monotonic()
    with pytest.raises(Invalid) as caught:
        from_yaml(text)
    assert said in caught.value.fields["file"]
    assert time.monotonic() - started < 10


def test_plain_words_and_times_stay_words():
    read = from_yaml(
        "a: 12:30\nb: no\nc: 2026-01-01\nd: 0123\ne: <<\nf: 1_000\ng: ~\nh: 1.5\ni: -3\nj: true\nk: 0x1F"
    )
    assert read == {
        "a": "12:30",
        "b": "no",
        "c": "2026-01-01",
        "d": "0123",
        "e": "<<",
        "f": "1_000",
        "g": None,
        "h": 1.5,
        "i": -3,
        "j": True,
        "k": "0x1F",
    }


# --- the commands


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "jobs.yaml"


def test_jobs_travel_through_a_file(cli: CommandLine, job: CronJob, file: Path):
    cli("jobs export greeter --output", file)
    assert file.read_text() == cli.output("jobs export")
    assert cli.output("jobs import", file) == "0 created, 0 changed, 1 unchanged.\n"
    cli("jobs delete greeter --yes")
    assert cli.output("jobs import -", text=file.read_text()).endswith("1 created, 0 changed, 0 unchanged.\n")
    assert cli.json("jobs export") == from_yaml(file.read_text())


def test_a_dry_run_prints_a_diff_and_does_nothing(cli: CommandLine, job: CronJob, file: Path):
    file.write_text(
        to_yaml(
            document(
                entry("greeter", priority=7, code=CODE.replace("hello", "bye")), entry("new", tags=["a"])
            )
        )
    )
    assert cli.output("jobs import --dry-run", file).splitlines() == [
        " job 'greeter' (1)",
        "-  priority: 5",
        "+  priority: 7",
        "@@ -3 +3 @@",
        '-        self.log("hello")',
        '+        self.log("bye")',
        "+job 'new'",
        "+  tags: a",
        "@@ -0,0 +1,3 @@",
        "+class Greeter(CronJobBase):",
        "+    def execute(self):",
        '+        self.log("hello")',
        "1 to create, 1 to change, 0 unchanged.",
    ]
    assert cli.json("jobs show greeter")["priority"] == 5
    planned = cli.json("jobs import --dry-run", file)
    assert [(one["name"], one["action"]) for one in planned["jobs"]] == [
        ("greeter", "update"),
        ("new", "create"),
    ]
    assert planned["jobs"][0]["fields"] == {"priority": {"before": 5, "after": 7}}
    done = cli.json("jobs import", file)
    assert done == planned | {"dry_run": False}


def test_a_file_may_be_json(cli: CommandLine, job: CronJob, file: Path):
    file.write_text(json.dumps(document(entry("greeter", priority=7))))
    assert "1 changed" in cli.output("jobs import", file)


def test_a_wrong_file_is_told_by_job_and_field(cli: CommandLine, file: Path):
    file.write_text("jobs:\n- name: x\n  schedule_type: daily\n  code: |\n    pass\n")
    said = cli.error("jobs import", file, status=2)
    assert "Error: Job 'x': time_of_day is required for daily schedule type" in said
    assert "Error: x.code: Job 'x': line 1, column 1: no class extends CronJobBase" in said
    file.write_text("jobs: [")
    assert "file is not a job file: line 2" in cli.error("jobs import", file, status=2)
    assert "No such file" in cli.error("jobs import /nowhere", status=2)
    assert "output: /nowhere/x: " in cli.error("jobs export --output /nowhere/x", status=2)
