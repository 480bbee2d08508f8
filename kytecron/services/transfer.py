"""Jobs as a file that people read and keep in git: export, and an import that changes only what differs.

The document is `{"kytecron": 1, "jobs": [{"name": ..., "schedule_type": ..., "code": ...}, ...]}`: the fields of
core.jobspec.JobFields that differ from their defaults, parents by name. Jobs are known by their names, so importing a
file twice changes nothing the second time. A field that a file leaves out has its default, with three exceptions for
a job that exists: without `code` its code stays; so does `enabled`, because whoever stopped a job at night must not
find it started by the next import; and so does `slack_webhook`, which is a credential and left out of an export unless
asked for. `to_yaml` and `from_yaml` turn it into text that people edit, and back.
"""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from graphlib import CycleError, TopologicalSorter
from typing import Any, ClassVar, NamedTuple, cast

import sqlalchemy as sa
import yaml
from sqlalchemy.orm import Session

from ..core import diff, source
from ..core.choices import ScheduleType
from ..core.errors import Conflict, Invalid, Unreadable
from ..core.fields import DEFAULTS, MAX_NAME, MAX_PARENTS, REPLANNED_BY, SCHEDULE_FIELDS, SECRET_FIELDS
from ..core.jobspec import TAG
from ..core.schedule import Schedule, next_slot
from ..core.untrusted import MAX_TOLD, first_repeated
from ..store import db
from ..store.db import transactional
from ..store.dialects import AT_ONCE
from ..store.models import CronJob, CronJobDependency, KyteCronJobVersion, KyteCronJobVersionContent
from . import audit, checking, jobs, versions
from .audit import Actor
from .jobs import CronJobManager

FORMAT = 1
MAX_JOBS = 5_000
STAYS = ("enabled", *SECRET_FIELDS)
"""What an existing job keeps where a file says nothing about it."""
CHECK_SECONDS = 30.0
"""For the code of all jobs of a file together."""
STEP = 25
"""Jobs written in one transaction of an import."""

JOB: Any = CronJob.__table__
EDGE: Any = CronJobDependency.__table__
VERSION: Any = KyteCronJobVersion.__table__
CONTENT: Any = KyteCronJobVersionContent.__table__


# -- export --------------------------------------------------------------------------------------------------


def export_jobs(
    session: Session, ids: Collection[int] | None = None, *, webhooks: bool = False
) -> dict[str, Any]:
    """The document of these jobs, or of all, by name. With `webhooks` it holds the addresses of Slack webhooks.

    Raises NotFound for an id without a job, and Unreadable, naming the job, for damaged code.
    """
    found = [versions.read_job(session, job_id) for job_id in dict.fromkeys(ids)] if ids is not None else None
    if found is None:
        found = list(session.scalars(sa.select(CronJob).where(CronJob.deleted_id == 0)))
    written: list[dict[str, Any]] = []
    for batch in _batches(sorted(found, key=lambda job: job.name)):
        parents, codes = _parents(session, batch), _codes(session, batch)
        written += [_exported(job, parents[job.id], codes.get(job.id), webhooks) for job in batch]
    return {"kytecron": FORMAT, "jobs": written}


def _exported(job: CronJob, parents: Sequence[_Parent], code: str | None, webhooks: bool) -> dict[str, Any]:
    values = jobs.configuration_of(job, []) | {"depends_on": sorted(parent.name for parent in parents)}
    if job.in_dead_letter_queue:
        values["enabled"] = True  # disabled by the queue, not by a person: that is no configuration
    if not webhooks:
        values = {name: value for name, value in values.items() if name not in SECRET_FIELDS}
    kept = {name: _plain(value) for name, value in values.items() if value != DEFAULTS.get(name)}
    return kept if code is None else kept | {"code": code}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return value


def _codes(session: Session, found: Sequence[CronJob]) -> dict[int, str]:
    """The current code of jobs, by their ids."""
    rows = session.execute(
        sa.select(JOB.c.id, JOB.c.name, CONTENT.c.code, CONTENT.c.size_bytes, CONTENT.c.content_hash)
        .join(
            VERSION,
            sa.and_(VERSION.c.cron_job == JOB.c.id, VERSION.c.version_number == JOB.c.current_version),
        )
        .join(CONTENT, CONTENT.c.content_hash == VERSION.c.content_hash)
        .where(JOB.c.id.in_([job.id for job in found]))
    )
    return {row.id: _unpacked(row) for row in rows}


def _unpacked(row: Any) -> str:
    try:
        return versions.unpack(row.code, row.size_bytes, row.content_hash)
    except Unreadable as error:
        raise Unreadable(f"Job {row.name!r}: {error}") from None


class _Parent(NamedTuple):
    id: int
    name: str
    deleted: bool


def _parents(session: Session, found: Iterable[CronJob]) -> dict[int, list[_Parent]]:
    """The parents of jobs, by the jobs' ids. Deleted ones too: a job keeps waiting for them, and is skipped."""
    parents: dict[int, list[_Parent]] = {job.id: [] for job in found}
    for ids in _batches(list(parents)):
        rows = session.execute(
            sa.select(EDGE.c.cron_job, JOB.c.id, JOB.c.name, JOB.c.deleted_id)
            .join(JOB, JOB.c.id == EDGE.c.parent)
            .where(EDGE.c.cron_job.in_(ids))
        )
        for row in rows:
            parents[row.cron_job].append(_Parent(row.id, row.name, bool(row.deleted_id)))
    return parents


# -- reading a document --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Entry:
    """A job of a document, checked as far as it can be without the database."""

    name: str
    fields: dict[str, Any]
    """As the document has them, without the parents and the code."""
    parents: list[str]
    code: str | None
    """Normalised."""


class _Complaints:
    """What is wrong with a document, by job and field."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def add(self, job: str, field_name: str, message: str) -> None:
        if len(self.found) < MAX_TOLD:
            self.found[f"{job}.{field_name}"] = f"Job {job!r}: {message}"

    def add_all(self, job: str, invalid: Invalid) -> None:
        for field_name, message in invalid.fields.items():
            self.add(job, field_name, message)

    def raise_any(self) -> None:
        if self.found:
            raise Invalid(self.found)


class _Codes:
    """Checks the code of one job after another, in bounded time for all of them together."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self._ends = time.monotonic() + CHECK_SECONDS

    def problems_of(self, code: object) -> dict[str, str]:
        if code is not None and time.monotonic() > self._ends:
            return {"code": f"{checking.TOO_LONG} together with the jobs before: import fewer at once"}
        return versions.problems_of(self._actor, code)


def _entries(document: Any, actor: Actor) -> dict[str, _Entry]:
    """The jobs of a document by name. Raises Invalid that names each wrong job and field, and Busy."""
    if not isinstance(document, dict) or not isinstance(document.get("jobs"), list):
        raise Invalid(
            {"jobs": "jobs is required: a list of jobs, each with a name, such as the export writes"}
        )
    if unknown := sorted(map(str, document.keys() - {"kytecron", "jobs"})):
        raise Invalid(
            {unknown[0][:100]: f"{unknown[0][:100]} is not known; a job file has kytecron and jobs"}
        )
    if document.get("kytecron", FORMAT) != FORMAT:
        raise Invalid(
            {"kytecron": f"kytecron must be {FORMAT}: this version reads no other form of job files"}
        )
    if len(document["jobs"]) > MAX_JOBS:
        raise Invalid({"jobs": f"jobs must be at most {MAX_JOBS} in one file"})
    complaints, codes = _Complaints(), _Codes(actor)
    found: dict[str, _Entry] = {}
    for number, values in enumerate(document["jobs"], start=1):
        entry = _entry(number, values, codes, complaints)
        if entry is None:
            continue
        if entry.name in found:
            complaints.add(entry.name, "name", "the file has this name twice")
        found[entry.name] = entry
    complaints.raise_any()
    return found


def _entry(number: int, values: Any, codes: _Codes, complaints: _Complaints) -> _Entry | None:
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        complaints.add(f"number {number}", "name", "must be a mapping of field names to values")
        return None
    fields = dict(values)
    given, code = fields.pop("depends_on", None), fields.pop("code", None)
    if "depends_on_job" in fields:
        given = fields.pop("depends_on_job")
    label = str(fields.get("name") or f"number {number}")[:MAX_NAME]
    parents = [given] if isinstance(given, str) else given or []
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        complaints.add(label, "depends_on", "depends_on must be a list of the names of its parents")
        parents = []
    if len(parents) > MAX_PARENTS:
        complaints.add(label, "depends_on", f"depends_on must be a list of at most {MAX_PARENTS}")
        parents = []
    try:
        name = jobs.checked(fields, codes.problems_of(code))["name"]
    except Invalid as invalid:
        complaints.add_all(label, invalid)
        return None
    text = None if code is None else source.normalise(code)
    return _Entry(name, fields, sorted({parent.strip() for parent in parents}), text)


# -- what an import changes ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Change:
    """What an import does to a job. Nothing, where both sides are empty and the code stays."""

    name: str
    job_id: int | None
    """None for a job that is made."""
    before: dict[str, Any]
    after: dict[str, Any]
    """The fields that differ, as they are and as they become; `depends_on` by names."""
    code_before: str | None = None
    code_after: str | None = None
    """None where the code stays as it is."""
    revision: int | None = None
    """The job's, when the change was planned."""
    deleted_parents: Mapping[str, int] = field(default_factory=dict)
    """Parents of the job that were deleted, and can be named because nobody else has their names."""

    @property
    def action(self) -> str:
        """`create`, `update` or `unchanged`."""
        if self.job_id is None:
            return "create"
        return "update" if self.after or self.code_after is not None else "unchanged"

    def fields(self) -> dict[str, dict[str, Any]]:
        """Each field that changes, `from` and `to`, as anybody may see it."""
        before, after = audit.plain(self.before), audit.plain(self.after)
        return {name: {"from": before.get(name), "to": value} for name, value in after.items()}

    def code_diff(self) -> str:
        """The changed lines of the code, in the form of a unified diff; empty where it stays."""
        return "" if self.code_after is None else diff.line_delta(self.code_before or "", self.code_after)


def import_jobs(
    session: Session, document: Any, actor: Actor, dry_run: bool = False, message: str = ""
) -> list[Change]:
    """Make and change jobs until they are as a document has them; others stay as they are. Returns what was done.

    Everything is checked first: a document with a mistake changes nothing. Then the jobs that differ are written, STEP
    to a transaction, parents first: a long one would keep the workers of an SQLite database from renewing their
    leases. What stops it in the middle, such as a job that somebody else changes at that moment, leaves the earlier
    steps done, and the same import goes on from there. `message` describes new versions of code. With `dry_run`
    only what would be done is returned.

    Raises Invalid that names each wrong job and field, Busy, and Conflict for a job that was changed since it was
    looked at.
    """
    entries = _entries(document, actor)
    if wrong := versions.problems_of(actor, None, message):
        raise Invalid(wrong)
    changes = _plan(session, entries)
    if not dry_run:
        ids = _living(session, {name for change in changes for name in change.after.get("depends_on", ())})
        for step in _batches([change for change in changes if change.action != "unchanged"], STEP):
            ids |= _write(session, step, ids, actor, message)
    return changes


@transactional
def _write(
    session: Session, changes: Sequence[Change], ids: Mapping[str, int], actor: Actor, message: str
) -> dict[str, int]:
    """Make these changes; returns the ids of their jobs by name."""
    manager = CronJobManager(session, actor)
    written: dict[str, int] = {}
    for change in changes:
        written[change.name] = _apply(manager, change, {**ids, **written}, message)
    return written


def _apply(manager: CronJobManager, change: Change, ids: Mapping[str, int], message: str) -> int:
    values = dict(change.after)
    if "depends_on" in values:
        values["depends_on"] = [
            ids.get(name) or change.deleted_parents[name] for name in values["depends_on"]
        ]
    if change.code_after is not None:
        values |= {"code": change.code_after, "message": message or "Imported"}
    try:
        if change.job_id is None:
            return manager.create_job(name=change.name, **values).id
        return manager.update_job(change.job_id, revision=change.revision, **values).id
    except Invalid as invalid:
        complaints = _Complaints()
        complaints.add_all(change.name, invalid)
        raise Invalid(complaints.found) from None
    except Conflict as conflict:
        raise Conflict(f"Job {change.name!r}: {conflict}", conflict.details) from None


def _plan(session: Session, entries: Mapping[str, _Entry]) -> list[Change]:
    present = {job.name: job for job in _named(session, entries)}
    parents = _parents(session, present.values())
    named = {name for entry in entries.values() for name in entry.parents}
    known = entries.keys() | _living(session, named - entries.keys()).keys()
    complaints, now = _Complaints(), db.now(session)
    changes: list[Change] = []
    for names in _batches(_parents_first(session, entries)):
        codes = _codes(session, [present[name] for name in names if name in present])
        for name in names:
            job, entry = present.get(name), entries[name]
            had = _Had(parents[job.id] if job is not None else [], known)
            had.check(entry, known, complaints)
            change, wanted = _creation(entry) if job is None else _update(job, had, codes.get(job.id), entry)
            _check_change(change, wanted, now, complaints)
            changes.append(change)
    complaints.raise_any()
    return changes


def _creation(entry: _Entry) -> tuple[Change, dict[str, Any]]:
    wanted = jobs.checked(entry.fields, {}) | {"depends_on": entry.parents}
    chosen = {name: value for name, value in wanted.items() if name != "name" and value != DEFAULTS[name]}
    return Change(entry.name, None, {}, chosen, code_after=entry.code), wanted


def _update(job: CronJob, had: _Had, code: str | None, entry: _Entry) -> tuple[Change, dict[str, Any]]:
    present = jobs.configuration_of(job, []) | {"depends_on": had.names}
    kept = {name: present[name] for name in STAYS if name not in entry.fields}
    if job.in_dead_letter_queue:
        kept["enabled"] = False  # until somebody recovers it
    wanted = jobs.checked(entry.fields | kept, {}) | {"depends_on": entry.parents}
    before, after = audit.changes(present, wanted)
    changed = entry.code if entry.code != code else None
    return Change(entry.name, job.id, before, after, code, changed, job.revision, had.deleted), wanted


def _check_change(change: Change, wanted: Mapping[str, Any], now: datetime, complaints: _Complaints) -> None:
    """What the database must be known for: whether there is code, and a slot to come."""
    if change.job_id is None and change.code_after is None:
        complaints.add(change.name, "code", "code is required for a job that does not exist yet")
    planned = change.job_id is None or change.after.keys() & {*REPLANNED_BY, "enabled"}
    if not planned or not wanted["enabled"] or wanted["schedule_type"] == ScheduleType.MANUAL:
        return
    schedule = Schedule.from_fields(**{name: wanted[name] for name in SCHEDULE_FIELDS}, anchor=now)
    if next_slot(schedule, now, wanted["starts_at"], wanted["ends_at"]) is None:
        field_name = "schedule_type" if wanted["ends_at"] is None else "ends_at"
        complaints.add(
            change.name, field_name, f"{field_name}: no slot is left; change it, or write enabled: false"
        )


# -- parents -------------------------------------------------------------------------------------------------


class _Had:
    """The parents that a job has, by name.

    A deleted parent that nobody has taken the name of is still meant by that name. Where another job has the name
    now, that one is meant, and the deleted parent is told apart from it.
    """

    def __init__(self, parents: Iterable[_Parent], known: Collection[str]) -> None:
        self.deleted = {one.name: one.id for one in parents if one.deleted and one.name not in known}
        self.names = sorted(
            f"{one.name} (deleted)" if one.deleted and one.name in known else one.name for one in parents
        )

    def check(self, entry: _Entry, known: Collection[str], complaints: _Complaints) -> None:
        """Every parent is in the file, in the database, or a deleted one that the job has already."""
        for name in entry.parents:
            if name not in known and name not in self.deleted:
                complaints.add(entry.name, "depends_on", f"depends_on: no job has the name {name[:200]!r}")


def _parents_first(session: Session, entries: Mapping[str, _Entry]) -> list[str]:
    """The names of the file's jobs in an order in which no step closes a cycle. Raises Invalid for a cycle.

    What jobs outside of the file depend on counts, too: where one of them stands between two of the file.
    """
    graph: dict[str, Iterable[str]] = {name: entry.parents for name, entry in entries.items()}
    child = JOB.alias("child")
    edges = session.execute(
        sa.select(child.c.name.label("child"), JOB.c.name.label("parent"))
        .select_from(EDGE)
        .join(child, child.c.id == EDGE.c.cron_job)
        .join(JOB, JOB.c.id == EDGE.c.parent)
        .where(child.c.deleted_id == 0, JOB.c.deleted_id == 0)
        .order_by(EDGE.c.cron_job, EDGE.c.parent)
    )
    for row in edges:
        if row.child not in entries:
            graph[row.child] = [*graph.get(row.child, ()), row.parent]
    try:
        return [name for name in TopologicalSorter(graph).static_order() if name in entries]
    except CycleError as error:
        cycle = list(reversed(error.args[1]))
        complaints = _Complaints()
        inside = next((name for name in cycle if name in entries), cycle[0])
        complaints.add(inside, "depends_on", f"depends_on makes a cycle: {' → '.join(cycle)}")
        raise Invalid(complaints.found) from None


# -- reading -------------------------------------------------------------------------------------------------


def _named(session: Session, names: Iterable[str]) -> Iterator[CronJob]:
    """The living jobs of these names, as the database has them now."""
    for batch in _batches(list(names)):
        yield from session.scalars(
            sa.select(CronJob)
            .where(CronJob.name.in_(batch), CronJob.deleted_id == 0)
            .execution_options(populate_existing=True)
        )


def _living(session: Session, names: Iterable[str]) -> dict[str, int]:
    return {job.name: job.id for job in _named(session, names)}


def _batches(items: Sequence[Any], size: int = AT_ONCE) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


# -- as YAML -------------------------------------------------------------------------------------------------

MAX_BYTES = 16_000_000
MAX_NODES = 300_000
MAX_DEPTH = 32

HEADER = """\
# Jobs of kytecron, known by their names. What a job leaves out has its default.
# Compare with what is there: kytecron jobs import --dry-run FILE
"""
# What a literal block can hold unchanged. YAML ends a line at U+0085, U+2028 and U+2029, too.
_LITERAL = re.compile(r"[\t\n -~\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]+")

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SafeDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def to_yaml(document: Mapping[str, Any]) -> str:
    """A document as a file for people: code as it is written, short lists on one line. Raises Unreadable."""
    parts = [HEADER, f"kytecron: {document['kytecron']}\n", "jobs:\n" if document["jobs"] else "jobs: []\n"]
    for job in document["jobs"]:
        fields = {name: value for name, value in job.items() if name != "code"}
        try:
            parts.append(_dump([fields]))
        except UnicodeEncodeError:
            raise Unreadable(f"Job {job['name']!r}: its parameters hold half a character") from None
        if "code" in job:
            parts.append(_code(job["code"]))
    return "\n".join(parts[:2]) + "".join(parts[2:])


def from_yaml(text: str | bytes) -> Any:
    """What a YAML file says, as plain values: no tags, no aliases, no key twice; `12:30` and `no` are words.

    Raises Invalid, with line and column, for anything else, and for what is too large or too deep.
    """
    if len(text) > MAX_BYTES:
        raise Invalid({"file": f"file must be at most {MAX_BYTES // 1_000_000} MB"})
    try:
        plain = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
        _check_events(plain)
        return yaml.load(plain, Loader=_Loader)
    except UnicodeDecodeError as error:
        raise Invalid({"file": f"file is not UTF-8: byte {error.start}"}) from None
    except UnicodeEncodeError:
        raise Invalid({"file": "file holds half a character"}) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise Invalid({"file": f"file is not a job file: {place}{error.problem}"}) from None
    except yaml.YAMLError as error:
        raise Invalid({"file": f"file is not a job file: {' '.join(str(error).split())[:200]}"}) from None


def _code(code: str) -> str:
    if not _LITERAL.fullmatch(code):
        return textwrap.indent(_dump({"code": code}), "  ")
    # The indentation must be told where the first line does not show it.
    hint = "2" if code[0] in " \t\n" else ""
    ending = "" if re.search(r"[^\n]\n\Z", code) else "+" if code.endswith("\n") else "-"
    lines = "".join(
        f"    {line}" if line.strip("\n") else line for line in re.findall(r"[^\n]*\n|[^\n]+", code)
    )
    return f"  code: |{hint}{ending}\n{lines}" + ("" if code.endswith("\n") else "\n")


def _dump(value: Any) -> str:
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text


class _Dumper(_SafeDumper):
    """Several lines as a block, lists of words on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: Any, text: str) -> Any:
    # libyaml ends the document behind a block that keeps several ends of line.
    block = re.fullmatch(r".*\n.*[^\n]\n?", text, re.DOTALL)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if block else None)


def _represent_list(dumper: Any, items: list[Any]) -> Any:
    short = all(isinstance(item, int) or (isinstance(item, str) and TAG.fullmatch(item)) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=short)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(list, _represent_list)


def _check_events(text: str) -> None:
    """Refuse what is dangerous to build, before anything is built."""
    depth = nodes = 0
    for event in yaml.parse(text, Loader=_SafeLoader):
        problem = ""
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            problem = "anchors and aliases (& and *) are not read: write the value out, or put it into quotes"
        elif getattr(event, "tag", None):
            problem = "tags (!) are not read: put the value into quotes"
        nodes += isinstance(event, yaml.NodeEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if nodes > MAX_NODES:
            problem = f"it holds more than {MAX_NODES:,} values"
        if depth > MAX_DEPTH:
            problem = f"it is nested deeper than {MAX_DEPTH} levels"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=cast(yaml.Mark, event.start_mark))


class _Loader(_SafeLoader):
    """The core schema of YAML 1.2.

    Left to YAML 1.1, `time_of_day: 12:30` would be the number 750, and a job named `no` false.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, name in enumerate(names):
            if not isinstance(name, str):
                problem = f"{str(name)[:100]!r} is no name: put it into quotes"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.value[place][0].start_mark)
        if (repeated := first_repeated(names)) is not None:
            problem = f"{names[repeated][:100]!r} is here twice"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.value[repeated][0].start_mark)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"-?(0|[1-9][0-9]{0,999})", list("-0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]{1,3})?|[-+]?[0-9]+[eE][-+]?[0-9]{1,3}",
        list("-+.0123456789"),
    ),
):
    for _side in (_Loader, _Dumper):  # what one reads as more than a word, the other puts into quotes
        _side.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"({_pattern})\\Z"), _first)
