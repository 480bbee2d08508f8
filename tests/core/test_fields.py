"""Every field of a job is told once, in core.fields; whatever is to follow from that follows, or is named here."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, assert_never, get_args, get_type_hints

import click
import pytest
from sqlalchemy.orm import Mapped

from kytecron.api.inputs import PreviewBody
from kytecron.cli import fields as options
from kytecron.core import jobspec
from kytecron.core.fields import (
    COLUMNS,
    DEFAULTS,
    FIELDS,
    PREVIEWED,
    REPLANNED_BY,
    SCHEDULE_FIELDS,
    Group,
    JobField,
    Kind,
    Reader,
    by_label,
    in_group,
    read_by,
)
from kytecron.core.schedule import unused_problems
from kytecron.store.claims import EndingJob
from kytecron.store.models import Configuration, CronJob, ShortText
from kytecron.views import facts

DOCUMENT = Path(__file__).parents[2] / "docs" / "fields.md"
JOB: Any = CronJob.__table__
EACH = pytest.mark.parametrize("one", FIELDS.values(), ids=FIELDS)


def another(one: JobField) -> Any:
    """Return a value that the field may have and that is not its default."""
    match one.kind:
        case Kind.NUMBER:
            return min((one.default or one.least or 0) + 1, one.most or 9)
        case Kind.FLAG:
            return not one.default
        case Kind.CHOICE:
            return next(word for word in reversed(list(one.choices)) if word != one.default)
        case Kind.MOMENT:
            return datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
        case Kind.WEEKDAYS:
            return "1"
        case Kind.OBJECT:
            return {"region": "eu"}
        case Kind.WORDS:
            return ["etl"]
        case Kind.JOBS:
            return [1]
        case Kind.LINE | Kind.PROSE:
            return "a@example.org"
        case never:
            assert_never(never)


# --- what it says of itself


@EACH
def test_it_has_a_label_and_a_help_that_reads_as_a_sentence_without_its_full_stop(one: JobField) -> None:
    assert one.label[:1].isupper()
    assert len(one.help) > 10
    assert not one.help.endswith((".", " "))
    assert one.help[0].isupper() or one.help[0].isdigit()
    assert [other.name for other in FIELDS.values() if other.label == one.label] == [one.name]


@EACH
def test_it_has_what_its_kind_needs(one: JobField) -> None:
    """Bounds for a number and a text, unless its schedule bounds it; words for every member of a choice's enum."""
    if one.kind is Kind.CHOICE:
        (kind,) = {type(word) for word in one.choices}
        assert list(one.choices) == list(kind)
        assert one.default in kind
    elif one.kind is Kind.NUMBER and not one.schedules:
        assert (one.least, one.most) != (None, None)
        assert one.default is None or one.least <= one.default <= one.most
    elif one.kind in (Kind.LINE, Kind.PROSE):
        assert one.longest or (one.schedules and one.width)
    assert one.unit == "" or one.kind is Kind.NUMBER


@EACH
def test_what_it_is_asked_with_is_a_choice_that_has_these_words(one: JobField) -> None:
    if one.asked_with:
        other, words = one.asked_with
        assert set(words) < set(FIELDS[other].choices)


def test_a_field_of_a_schedule_is_asked_with_the_types_that_need_it() -> None:
    for name in SCHEDULE_FIELDS:
        if FIELDS[name].asked_with is None or name == "timezone":
            continue
        _, types = FIELDS[name].asked_with or ("", ())
        nonsense = {name: "nonsense"}
        assert {
            kind for kind in FIELDS["schedule_type"].choices if not unused_problems(kind, nonsense)
        } == set(types)


# --- what follows from it


@pytest.mark.parametrize("name", COLUMNS)
def test_it_has_a_column_whose_type_the_model_tells(name: str) -> None:
    one, column = FIELDS[name], JOB.c[name]
    assert column.nullable == (one.optional or one.kind is Kind.OBJECT)
    assert one.required or column.nullable or column.server_default is not None
    if isinstance(column.type, ShortText) and one.longest and one.kind is not Kind.WORDS:
        assert column.type.length >= one.longest
    hint = get_type_hints(Configuration).get(name)
    assert hint is not None, f"store/models.py: Configuration lacks the type of {name}"
    assert hint.__origin__ is Mapped
    assert (type(None) in get_args(get_args(hint)[0])) == column.nullable


@EACH
def test_it_has_a_command_line_option_that_explains_it(one: JobField) -> None:
    @options.job_options
    def command(**_given: object) -> None: ...

    shown = click.Context(click.Command("create", params=command.__click_params__[::-1]))  # type: ignore[attr-defined]
    texts = {option.name: option.help for option in shown.command.params if isinstance(option, click.Option)}
    assert one.kind is Kind.JOBS or one.help in (texts[one.name] or "")


@EACH
def test_it_is_checked_and_described_with_its_label_and_help(one: JobField) -> None:
    described = jobspec.JobFields.model_json_schema()["properties"][one.name]
    assert described["title"] == one.label
    assert described["description"].startswith(one.help)
    given = {"name": "x", one.name: another(one)}
    assert getattr(jobspec.JobFields(**given), one.name) != DEFAULTS.get(one.name)
    if one.kind is Kind.NUMBER and one.most is not None:
        assert f"{one.name} must be at most {one.most}" in problems(one.name, one.most + 1)
    if one.kind is Kind.CHOICE:
        assert problems(one.name, "no such word").startswith(f"Invalid {one.name}. Must be one of: ")


def problems(name: str, value: object) -> str:
    with pytest.raises(jobspec.Invalid) as caught:
        jobspec.parse_job({"name": "x", name: value})
    return caught.value.fields[name]


def told(**changed: Any) -> tuple[facts.Facts, ...]:
    row = {**DEFAULTS, "name": "x", "runs_scheduled": 0, "notification_email": "b@example.org", **changed}
    return facts.facts(CronJob(**{name: value for name, value in row.items() if hasattr(CronJob, name)}))


TOLD_BY_THE_PAGE_ITSELF = {
    *(one.name for group in (Group.BASICS, Group.CODE) for one in in_group(group)),
    *SCHEDULE_FIELDS,
    *facts.SAID_BY_THE_PAGE,
}
"""tests/web/test_job_fields.py looks for each of these."""


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in TOLD_BY_THE_PAGE_ITSELF])
def test_a_value_of_its_own_is_told_among_the_facts_of_the_job(name: str) -> None:
    one = FIELDS[name]
    around: dict[str, Any] = {}
    if one.asked_with:
        around = {one.asked_with[0]: one.asked_with[1][0]}
    assert told(**around, **{name: another(one)}) != told(**around)


def test_the_facts_read_as_a_person_would_say_them() -> None:
    row = {
        "timeout_seconds": 90, "overlap_policy": "queue", "queue_length": 3, "memory_limit_mb": 512, "priority": 7,
        "max_retries": 2, "slack_webhook": "https://hooks.example/secret", "notify_after_failures": 2, "max_runs": 5,
    }  # fmt: skip
    said = {fact.label: fact.text for group in told(**row) for fact in group.rows}
    assert said["Time limit"] == "1 minute 30 seconds"
    assert said["If the previous run is still going"] == "wait for it to end; at most 3 runs wait"
    assert said["Memory limit"] == "512 MiB"
    assert said["Priority"] == "7 of 9"
    assert said["Number of runs"] == "5 (0 so far), then the job is disabled"
    assert said["Retries"].startswith("up to 2 times, after 1 minute at first, doubling to at most 1 hour")
    assert said["Notify on failure"] == "after 2 failures in a row"
    assert said["Slack webhook"] == "set"
    assert "secret" not in str(said)


# --- how errors are told


@pytest.mark.parametrize(
    ("name", "text", "on_pages"),
    [
        ("timeout_seconds", "timeout_seconds must be at least 1", "Time limit must be at least 1 second"),
        ("jitter_seconds", "jitter_seconds must be at most 3600", "Jitter must be at most 3600 seconds"),
        ("memory_limit_mb", "memory_limit_mb must be at least 32", "Memory limit must be at least 32 MiB"),
        ("priority", "priority must be at most 9", "Priority must be at most 9"),
        ("timezone", "Invalid timezone 'Berlin'. Did you mean Europe/Berlin?", "Invalid Time zone 'Berlin'. Did you "
         "mean Europe/Berlin?"),
        ("name", "The name 'x' is taken by job 3: choose another", "The name 'x' is taken by job 3: choose another"),
        ("ends_at", "ends_at: no slot is left", "Not after: no slot is left"),
        ("code", "code is required", "Code is required"),
        ("unheard_of", "unheard_of is not a known field", "unheard_of is not a known field"),
    ],
)  # fmt: skip
def test_pages_name_a_wrong_field_by_its_label_and_count_in_its_unit(
    name: str, text: str, on_pages: str
) -> None:
    assert by_label({name: text}) == {name: on_pages}


# --- what statements read


def test_the_columns_that_statements_read_are_columns_of_the_job() -> None:
    for reader in Reader:
        assert set(read_by(reader)) <= set(COLUMNS)
    assert set(read_by(Reader.SLOTS)) >= REPLANNED_BY
    plain = (Kind.NUMBER, Kind.FLAG, Kind.CHOICE, Kind.LINE)  # what a job's process can be told as it is
    assert {FIELDS[name].kind for name in read_by(Reader.CLAIMS)} <= {*plain}


def test_an_ending_knows_the_settings_that_are_read_by_endings() -> None:
    known = {name: kind for name, kind in get_type_hints(EndingJob).items() if name in FIELDS}
    assert set(known) == set(read_by(Reader.ENDINGS)), "store/claims.py: EndingJob"
    for name, kind in known.items():
        assert Mapped[kind] == get_type_hints(Configuration)[name]  # type: ignore[valid-type]


def test_a_preview_is_asked_for_with_the_fields_that_say_which_slots_come() -> None:
    asked = set(PreviewBody.model_fields) - {"count", "job"}
    assert asked == set(PREVIEWED) == REPLANNED_BY | {"max_runs"}
    described = PreviewBody.model_json_schema()["properties"]
    for name in PREVIEWED:
        assert described[name]["description"].startswith(FIELDS[name].help)


# --- the document


def document() -> str:
    """docs/fields.md as the table makes it, below the line that says so."""
    lines: list[str] = []
    for group in Group:
        lines += [
            f"## {group}",
            "",
            "| field | on pages | default | values | meaning |",
            "|---|---|---|---|---|",
        ]
        lines += [_row(one) for one in in_group(group)]
        lines.append("")
    return "\n".join(lines)


def _row(one: JobField) -> str:
    default = one.a_default()
    shown = {True: "yes", False: "no"}.get(default) if one.kind is Kind.FLAG else default
    text = (
        "required"
        if one.required
        else "empty"
        if default in (None, "", [], {}) and shown != "no"
        else f"`{shown}`"
    )
    return f"| `{one.name}` | {one.label} | {text} | {_values(one)} | {one.help} |"


def _values(one: JobField) -> str:
    if one.kind is Kind.CHOICE:
        return "<br>".join(f"`{word}`: {said}" for word, said in one.choices.items())
    if one.kind is Kind.NUMBER:
        bounds = f"{one.least:,} to {one.most:,}" if one.most is not None else "whole number"
        return f"{bounds} {one.unit}".rstrip()
    if one.kind in (Kind.LINE, Kind.PROSE) and one.longest:
        return f"text, at most {one.longest:,} characters"
    if one.kind in (Kind.WORDS, Kind.JOBS):
        return f"at most {one.longest}"
    return {
        Kind.FLAG: "yes or no",
        Kind.MOMENT: "a time with its zone, or in UTC",
        Kind.OBJECT: "JSON object",
    }.get(one.kind, "text")


def test_the_document_says_what_the_table_says() -> None:
    head, _, rest = DOCUMENT.read_text().partition("## ")
    assert "a test compares the two" in head
    written, wanted = f"## {rest}".splitlines(), document().splitlines()
    missing = [line for line in wanted if line not in written]
    assert not missing, "docs/fields.md lacks:\n" + "\n".join(missing)
    assert [line for line in written if line not in wanted] == []
