"""Names that people can read, and errors that stay short."""

from __future__ import annotations

import math

import pytest

from kytecron.core.errors import Invalid
from kytecron.core.untrusted import (
    MAX_TOLD,
    first_repeated,
    name_problem,
    storable,
    storable_json,
    unstorable,
    visible,
)

MISLEADING = {
    "right-to-left override": "\u202e",
    "isolate": "\u2066",
    "right-to-left mark": "\u200f",
    "Arabic letter mark": "\u061c",
    "zero-width space": "\u200b",
    "word joiner": "\u2060",
    "byte order mark": "\ufeff",
    "soft hyphen": "\u00ad",
    "interlinear annotation": "\ufff9",
    "tag": "\U000e0041",
    "private": "\ue000",
    "unassigned": "\U000e1234",
    "no character": "\uffff",
    "half a character": "\ud800",
    "line separator": "\u2028",
    "paragraph separator": "\u2029",
    "next line": "\x85",
    "escape": "\x1b",
    "delete": "\x7f",
    "tab": "\t",
    "end of line": "\n",
    "NUL": "\0",
    "filler of Hangul": "\u3164",
    "blank of Braille": "\u2800",
    "a joiner that joins nothing": " \u200d ",
    "a joiner between Latin letters": "\u200d",
    "a non-joiner between Latin letters": "\u200c",
    "a variation selector after a Latin letter": "\ufe0f",
    "a selector of ideographs after a Latin letter": "\U000e0100",
}


@pytest.mark.parametrize("text", MISLEADING.values(), ids=list(MISLEADING))
def test_a_name_holds_nothing_that_people_cannot_see(text):
    problem = name_problem(f"pay{text}roll")
    assert problem is not None
    assert f"U+{ord(text.strip(' ') or text):04X}" in problem
    assert problem.isprintable()


@pytest.mark.parametrize(
    "name",
    [
        "nightly",
        "Zahlläufe",
        "支払い",
        "حساب",
        "חשבון",
        "می\u200cخواهم",
        "👩\u200d💻 jobs",
        "❤️\u200d🔥",
        "a\u00a0b",
        "क्\u200dष",
        "র\u200d্যাব",
        "1\ufe0f\u20e3 first",
        "\u2764\ufe0f",
        "↔\ufe0f",
        "葛\U000e0100城",
    ],
)
def test_names_of_every_script_are_fine(name):
    assert name_problem(name) is None


def test_notes_may_have_several_lines():
    assert name_problem("one\n\ttwo", several_lines=True) is None
    assert name_problem("one\u2028two", several_lines=True)


def test_what_is_shown_shows_every_character():
    assert visible("a\u202eb\ud800") == "a⟨U+202E⟩b⟨U+D800⟩"
    assert visible("👩\u200d💻 é\n") == "👩\u200d💻 é\n"


def test_what_cannot_be_stored_is_made_visible_and_the_rest_stays_as_it_is():
    assert storable("nul \0, half a pair \ud800, fine ☃") == "nul ␀, half a pair \\ud800, fine ☃"
    fine = "\x01 \x7f é 🙂 \ufffe \\u0000"
    assert storable(fine) is fine
    assert storable_json({"a\0": [math.inf, 1, None, ("\udfff",)], 1: fine}) == {
        "a␀": ["Infinity", 1, None, ["\\udfff"]],
        1: fine,
    }


@pytest.mark.parametrize("value", ["\0", "\ud800", 2**63, -(2**63), math.nan, -math.inf])
def test_what_cannot_be_stored_is_told_wherever_it_stands(value):
    for holding in (value, [[], [value]], {"a": {"b": value}}):
        assert unstorable(holding)
    assert unstorable({"a": [2**63 - 1, "é🙂", 1e300, None, True]}) is None


def test_the_first_repetition_is_found():
    assert first_repeated(["a", "b", "a", "b"]) == 2
    assert first_repeated([]) is None


def test_very_many_errors_are_cut_with_their_number():
    invalid = Invalid({f"field {n}": f"message {n}" for n in range(380_000)})
    assert len(invalid.fields) == MAX_TOLD + 1
    assert "and 379,950 more" in invalid.message
    assert len(invalid.message) < 10_000
