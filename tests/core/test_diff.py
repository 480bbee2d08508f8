from __future__ import annotations

import random
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kytecron.core.diff import (
    DELTA_BYTES,
    WORD_STEPS,
    Counts,
    Diff,
    Row,
    _Budget,
    _search,
    line_delta,
    side_by_side,
    summary,
)

OLD = """\
class Import(CronJobBase):
    def execute(self):
        rows = fetch("orders")
        for row in rows:
            self.log(row)
        return len(rows)
"""
NEW = """\
class Import(CronJobBase):
    def execute(self):
        try:
            rows = fetch("orders", limit=10)
            for row in rows:
                self.log(row)
        finally:
            self.close()
        return len(rows)
"""


def text_of(segments) -> str:
    return "".join(segment.text for segment in segments)


def sides(diff: Diff) -> tuple[list[str], list[str]]:
    """Both texts, read back from the rows in the order of their line numbers."""
    old = [text_of(row.old) for row in diff.rows if row.old_line is not None]
    new = [text_of(row.new) for row in diff.rows if row.new_line is not None]
    return old, new


def drawn(diff: Diff) -> list[str]:
    """The rows as a person sees them, [marked words] in brackets."""

    def side(segments) -> str:
        return "".join(f"[{text}]" if marked else text for text, marked in segments)

    signs = {"equal": "=", "changed": "~", "added": "+", "removed": "-", "gap": ":"}
    return [
        f":{row.hidden}" if row.kind == "gap" else f"{signs[row.kind]} {side(row.old)}|{side(row.new)}"
        for row in diff.rows
    ]


# --- what is shown


def test_equal_texts_have_equal_rows_and_nothing_to_count():
    diff = side_by_side(OLD, OLD)
    assert {row.kind for row in diff.rows} == {"equal"}
    assert diff.counts == Counts(added=0, removed=0, changed=0, before=6, after=6)


def test_a_line_that_changed_stands_beside_what_it_became_with_its_words_marked():
    assert drawn(side_by_side("a\nx = fetch(1)\nc\n", "a\nx = fetch(22)\nc\n")) == [
        "= a|a",
        "~ x = fetch([1])|x = fetch([22])",
        "= c|c",
    ]


def test_a_replaced_line_counts_as_changed_without_marks_when_nothing_is_left_of_it():
    diff = side_by_side("a\nprint(1)\nc\n", "a\nreturn\nc\n")
    assert drawn(diff) == ["= a|a", "~ print(1)|return", "= c|c"]
    assert diff.counts == Counts(added=0, removed=0, changed=1, before=3, after=3)


def test_a_block_wrapped_in_try_lines_up_with_itself():
    diff = side_by_side(OLD, NEW)
    assert drawn(diff)[2:9] == [
        "+ |        try:",
        '~ [        ]rows = fetch("orders")|[            ]rows = fetch("orders"[, limit=10])',
        "~ [        ]for row in rows:|[            ]for row in rows:",
        "~ [            ]self.log(row)|[                ]self.log(row)",
        "+ |        finally:",
        "+ |            self.close()",
        "=         return len(rows)|        return len(rows)",
    ]
    assert diff.counts == Counts(added=3, removed=0, changed=3, before=6, after=9)


def test_a_line_put_before_a_changed_one_does_not_take_its_place():
    assert drawn(side_by_side("limit = 10\n", "# how many\nlimit = 20\n")) == [
        "+ |# how many",
        "~ limit = [10]|limit = [20]",
    ]


def test_a_moved_function_is_not_smeared_over_its_neighbours():
    one = "def one():\n    return 1\n\n"
    two = "def two():\n    return 2\n\n"
    three = "def three():\n    return 3\n\n"
    counts = side_by_side(one + two + three, two + three + one).counts
    assert (counts.removed, counts.added, counts.changed) == (3, 3, 0)


def test_a_mark_runs_over_the_blank_between_two_changed_words():
    (row,) = side_by_side("call(one, alpha beta)\n", "call(one, gamma delta)\n").rows
    assert [segment.text for segment in row.old if segment.marked] == ["alpha beta"]


def test_rows_carry_the_line_numbers_of_both_sides():
    numbers = [(row.old_line, row.new_line) for row in side_by_side("a\nb\nc\n", "b\nx\nc\nd\n").rows]
    assert numbers == [(1, None), (2, 1), (None, 2), (3, 3), (None, 4)]


def test_an_empty_text_is_all_added_or_all_removed():
    assert side_by_side("", "a\n\nb\n").counts == Counts(3, 0, 0, before=0, after=3)
    assert side_by_side("a\n\nb\n", "").counts == Counts(0, 3, 0, before=3, after=0)
    assert side_by_side("", "").rows == []


def test_a_missing_newline_at_the_end_makes_no_difference():
    assert summary("a\nb", "a\nb\n") == Counts(0, 0, 0, before=2, after=2)


def test_only_newlines_end_a_line():
    assert summary("a\x0cb\u2028c\rd\n", "a\n").before == 1


# --- context


def test_context_leaves_out_equal_lines_far_from_a_change_and_says_how_many():
    old = "".join(f"{n}\n" for n in range(1, 21))
    diff = side_by_side(old, old.replace("10\n", "ten\n"), context=2)
    assert drawn(diff) == [":7", "= 8|8", "= 9|9", "~ 10|ten", "= 11|11", "= 12|12", ":8"]
    assert diff.rows[0] == Row("gap", 1, (), 1, (), 7)
    assert diff.rows[-1] == Row("gap", 13, (), 13, (), 8)


def test_a_gap_of_one_line_shows_the_line_instead():
    old = "1\n2\n3\n4\n5\n"
    assert ":1" not in drawn(side_by_side(old, old.replace("3", "x"), context=1))


def test_context_of_equal_texts_is_one_gap():
    assert drawn(side_by_side(OLD, OLD, context=3)) == [":6"]


def test_context_zero_shows_the_changes_alone():
    assert drawn(side_by_side("1\n2\n3\n4\n5\n", "1\n2\n4\n5\n", context=0)) == [":2", "- 3|", ":2"]


# --- what is stored


def test_the_delta_holds_the_changed_lines_in_the_form_of_a_unified_diff():
    assert line_delta("a\nb\nc\nd\n", "a\nx\ny\nc\n").split("\n") == [
        "@@ -2 +2,2 @@",
        "-b",
        "+x",
        "+y",
        "@@ -4 +4,0 @@",
        "-d",
    ]
    assert line_delta("", "a\n") == "@@ -0,0 +1 @@\n+a"


def test_the_delta_of_equal_texts_is_empty():
    assert line_delta(OLD, OLD) == ""


def test_a_small_edit_of_a_long_text_is_stored_in_a_few_bytes():
    old = "".join(f"    value_{n} = compute({n})\n" for n in range(2_000))
    assert len(line_delta(old, old.replace("compute(77)", "compute(78)"))) < 100


def test_a_rewrite_is_cut_and_says_how_much_is_missing():
    old = "".join(f"línea antigua {n}\n" for n in range(2_000))
    new = "".join(f"línea nueva {n}\n" for n in range(2_000))
    delta = line_delta(old, new)
    assert len(delta.encode()) <= DELTA_BYTES
    lines = delta.split("\n")
    stored = sum(line.startswith(("+", "-")) for line in lines)
    assert lines[-1] == f"... {4_000 - stored:,} more changed lines left out"


def test_a_single_endless_line_does_not_fill_the_delta():
    delta = line_delta("x\n", "y" * 100_000 + "\n")
    assert len(delta) < 1_000
    assert "99,500 more characters" in delta


# --- truths about every input

LINES = st.lists(
    st.sampled_from(["", "a", "b", "  a", "if x:", "return rows", "return  row", "x = f(1)", "x = f(2)", "}"])
)
ANY_LINE = st.text(st.characters(blacklist_characters="\n", blacklist_categories=["Cs"]), max_size=12)


def as_text(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


@settings(max_examples=150, deadline=None)
@given(LINES, LINES, st.none() | st.integers(0, 3))
def test_the_rows_hold_both_texts_in_order_and_count_themselves(old, new, context):
    diff = side_by_side(as_text(old), as_text(new), context)
    whole = side_by_side(as_text(old), as_text(new))
    assert sides(whole) == (old, new)
    kinds = [row.kind for row in whole.rows]
    assert diff.counts == whole.counts == summary(as_text(old), as_text(new))
    assert diff.counts == Counts(
        kinds.count("added"), kinds.count("removed"), kinds.count("changed"), len(old), len(new)
    )
    for row in whole.rows:
        assert row.kind == "changed" or not any(segment.marked for segment in row.old + row.new)
        assert (row.kind == "equal") == (
            row.old_line is not None and row.new_line is not None and text_of(row.old) == text_of(row.new)
        )
    check_gaps(whole, diff)


def check_gaps(whole: Diff, folded: Diff) -> None:
    """The folded rows are the whole ones, with equal ones behind each gap."""
    at = 0
    for row in folded.rows:
        if row.kind == "gap":
            hidden = whole.rows[at : at + row.hidden]
            assert {each.kind for each in hidden} == {"equal"}
            assert (hidden[0].old_line, hidden[0].new_line) == (row.old_line, row.new_line)
            at += row.hidden
        else:
            assert row == whole.rows[at]
            at += 1
    assert at == len(whole.rows)


@settings(max_examples=100, deadline=None)
@given(st.lists(ANY_LINE, max_size=8), st.lists(ANY_LINE, max_size=8))
def test_any_characters_come_back_unharmed(old, new):
    assert sides(side_by_side(as_text(old), as_text(new))) == (old, new)


@settings(max_examples=150, deadline=None)
@given(LINES, LINES)
def test_the_delta_turns_the_old_text_into_the_new(old, new):
    rebuilt, at = [], 0
    for line in line_delta(as_text(old), as_text(new)).split("\n"):
        if line.startswith("@@"):
            start, _, size = line.split()[1][1:].partition(",")
            first = int(start) - 1 if size != "0" else int(start)
            rebuilt += old[at:first]
            at = first
        elif line.startswith("-"):
            assert old[at] == line[1:]
            at += 1
        elif line.startswith("+"):
            rebuilt.append(line[1:])
    assert rebuilt + old[at:] == new


@settings(max_examples=200, deadline=None)
@given(st.text("abc", max_size=12), st.text("abc", max_size=12))
def test_the_search_leaves_as_few_items_over_as_possible(old, new):
    blocks = _search(list(old), list(new), _Budget(1_000_000))
    assert blocks is not None
    in_order = sorted(block for block in blocks if block[2])
    for i, j, size in in_order:
        assert old[i : i + size] == new[j : j + size]
    for (i, j, size), (next_i, next_j, _) in pairwise(in_order):
        assert i + size <= next_i
        assert j + size <= next_j
    assert sum(size for *_, size in in_order) == longest_common(old, new)


def longest_common(old: str, new: str) -> int:
    row = [0] * (len(new) + 1)
    for a in old:
        previous = row[:]
        for j, b in enumerate(new):
            row[j + 1] = previous[j] + 1 if a == b else max(row[j], previous[j + 1])
    return row[-1]


# --- never slow


def processor_seconds(old: list[str], new: list[str]) -> float:
    began = time.process_time()
    diff = side_by_side(as_text(old), as_text(new))
    spent = time.process_time() - began
    assert sides(diff) == (old, new)
    return spent


CODE = [f"    value_{n} = compute({n * 7 % 99}, name='x{n % 50}')" for n in range(10_000)]


def test_400_changed_lines_take_a_moment():
    # About 30 ms on an idle machine; difflib.HtmlDiff takes 14 s.
    assert processor_seconds(CODE[:400], [f"{line}  # new" for line in CODE[:400]]) < 0.25


def letters(seed: int, alphabet: str, count: int) -> list[str]:
    return random.Random(seed).choices(alphabet, k=count)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(CODE, [*CODE[:5_000], "    new()", *CODE[5_000:]], id="one line added"),
        pytest.param(CODE, [f"{line}  # new" for line in CODE], id="every line changed"),
        pytest.param(CODE, ["try:", *(f"    {line}" for line in CODE)], id="all indented"),
        pytest.param(CODE, random.Random(1).sample(CODE, 10_000), id="shuffled"),
        pytest.param(CODE, CODE[::-1], id="reversed"),
        pytest.param(["a"] * 10_000, ["a"] * 7_000, id="all lines alike"),
        pytest.param(["a"] * 10_000, letters(1, "ab", 10_000), id="alike against two letters"),
        pytest.param(letters(2, "ab", 10_000), letters(3, "ab", 10_000), id="two letters"),
        pytest.param(letters(2, "abcdefghij", 10_000), letters(3, "abcdefghij", 10_000), id="ten letters"),
        pytest.param(
            [str(n // 2) for n in range(10_000)], [str((n + 1) // 2) for n in range(10_000)], id="twice"
        ),
        pytest.param(["a " * 50_000] * 10, ["b " * 50_000] * 10, id="lines of 100 KB"),
        pytest.param(["a, " * 600] * 500, ["b, " * 300 + "a, " * 300] * 500, id="many long lines"),
    ],
)
def test_no_input_of_10_000_lines_or_100_kb_a_line_is_slow(old, new):
    # Each takes less than half a second on an idle machine.
    assert processor_seconds(old, new) < 2


def test_marking_words_ends_with_its_budget_and_the_rows_stay_whole():
    old = [" ".join(letters(n, "abcd", 300)) for n in range(WORD_STEPS // 1_000)]
    new = [" ".join(letters(-n - 1, "abcd", 300)) for n in range(WORD_STEPS // 1_000)]
    diff = side_by_side(as_text(old), as_text(new))
    assert sides(diff) == (old, new)
    assert not any(segment.marked for segment in diff.rows[-1].old)
