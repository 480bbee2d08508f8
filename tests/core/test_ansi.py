from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kytecron.core.ansi import CLASSES, LONGEST_OPEN, MAX_SEGMENTS, Segment, advance, segments, unfinished
from kytecron.core.untrusted import HIDDEN

ESC = "\x1b"


def plain(text: str) -> str:
    return "".join(piece for _, piece in segments(text))


def style(parameters: str) -> str:
    """The classes that one SGR sequence switches on."""
    found = segments(f"{ESC}[{parameters}mx")
    assert [piece for _, piece in found] == ["x"]
    return found[0][0]


def test_plain_text_is_one_plain_piece():
    assert segments("two\n\tlines – ünïcode 🐍") == [("", "two\n\tlines – ünïcode 🐍")]
    assert segments("") == []


def test_colours_begin_and_end_where_they_were_set():
    assert segments(f"a {ESC}[31mred{ESC}[0m b\n") == [("", "a "), ("ansi-red", "red"), ("", " b\n")]


def test_colours_run_on_over_lines_and_to_the_end():
    assert segments(f"{ESC}[32ma\nb") == [("ansi-green", "a\nb")]


def test_markup_is_left_for_the_template_to_escape():
    assert segments(f"{ESC}[31m<b>&{ESC}[m") == [("ansi-red", "<b>&")]


@pytest.mark.parametrize(
    ("parameters", "classes"),
    [
        ("30", "ansi-black"),
        ("37", "ansi-white"),
        ("90", "ansi-bright-black"),
        ("97", "ansi-bright-white"),
        ("41", "ansi-bg-red"),
        ("104", "ansi-bg-bright-blue"),
        ("1;4", "ansi-bold ansi-underline"),
        ("2;3;7;9", "ansi-dim ansi-inverse ansi-italic ansi-strike"),
        ("1;31;42", "ansi-bg-green ansi-bold ansi-red"),
        ("31;32", "ansi-green"),
        ("1;31;0", ""),
        ("1;31;", ""),
        ("1;22", ""),
        ("31;39;41;49;4;24;3;23;7;27;9;29", ""),
        ("4:3", "ansi-underline"),
        ("4;4:0", ""),
        ("38;5;1", "ansi-red"),
        ("38;5;9", "ansi-bright-red"),
        ("38;5;196", "ansi-bright-red"),
        ("38;5;16", "ansi-black"),
        ("38;5;244", "ansi-bright-black"),
        ("48;5;255", "ansi-bg-white"),
        ("38;2;200;10;5", "ansi-red"),
        ("48;2;0;0;0", "ansi-bg-black"),
        ("38:5:2", "ansi-green"),
        ("38:2:0:200:0", "ansi-green"),
        ("38:2::0:200:0", "ansi-green"),
        ("38;2;0;200;0;1", "ansi-bold ansi-green"),
        ("58;5;1;4", "ansi-underline"),
    ],
)
def test_every_usual_style_becomes_classes(parameters, classes):
    assert style(parameters) == classes


@pytest.mark.parametrize(
    "parameters", ["38", "38;5", "38;5;256", "38;2;1", "38;6;8", "999", "1" * 5000, "?1", ">4;1", ":"]
)
def test_senseless_styles_change_nothing(parameters):
    assert style(parameters) == ""


@pytest.mark.parametrize(
    "sequence",
    [
        "[2J",
        "[H",
        "[1A",
        "[?25l",
        "[?2004h",
        "[K",
        "[!p",
        "]0;title\x07",
        f"]8;;https://example.com{ESC}\\",
        f"Pq...{ESC}\\",
        f"_secret{ESC}\\",
        "(B",
        "=",
        "7",
        "c",
        "#8",
        "",
        "[",
        "[31;",
    ],
)
def test_other_sequences_leave_no_trace(sequence):
    assert plain(f"a{ESC}{sequence}\n") == "a\n"


def test_a_link_keeps_its_text():
    assert plain(f"{ESC}]8;;http://x{ESC}\\here{ESC}]8;;{ESC}\\!") == "here!"


def test_a_title_that_never_ends_costs_its_own_line_only():
    assert plain(f"{ESC}]0;no end\nnext\n") == "\nnext\n"


def test_control_characters_become_visible():
    assert plain("a\0b\x07c\x08d\x7fe\x9bf") == "a␀b␇c␈d␡e⟨U+009B⟩f"


def test_text_cannot_reorder_the_page():
    assert plain("abc\u202ecba\u2066") == "abc⟨U+202E⟩cba⟨U+2066⟩"


def test_half_a_character_can_be_encoded():
    assert plain("a\ud800b").encode() == "a\ufffdb".encode()


# --- carriage returns


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("10%\r50%\r100%\ndone\n", "100%\ndone\n"),
        ("10%\r50%", "50%"),
        ("10%\r50%\r", "50%"),
        ("10%\r50%\r\n", "50%\n"),
        ("a\r\nb\r\n", "a\nb\n"),
        ("a\r\r\nb", "a\nb"),
        ("\r\r\r", ""),
        (f"50%\r{ESC}[Kdone", "done"),
        (f"50%\r{ESC}[K\nnext", "\nnext"),
        (f"50%\r{ESC}[2K\rnext", "next"),
        (f"50%\r{ESC}[0m\n", "50%\n"),
    ],
)
def test_a_progress_bar_shows_its_last_state(printed, shown):
    assert plain(printed) == shown


def test_a_colour_set_in_an_overwritten_part_still_holds():
    assert segments(f"{ESC}[31m10%\r20%\nnext") == [("ansi-red", "20%\nnext")]


# --- truths about every text

SIGNS = [ESC, "[", "]", "m", "31", "0", ";", ":", "38;5;", "38;2;", "K", "\r", "\n", "\x07", "\\", "P", "\0"]
WHOLE = ["text", "é", "\t", f"{ESC}[31m", f"{ESC}[0m", f"{ESC}[2K", f"{ESC}]0;", "\u202e", "\ud800", "\x9b"]
NOISE = st.lists(st.sampled_from([*SIGNS, *WHOLE]), max_size=40).map("".join)


@settings(max_examples=200, deadline=None)
@given(NOISE)
def test_whatever_is_printed_only_harmless_text_and_known_classes_come_out(text):
    found = segments(text)
    shown = plain(text)
    assert not any(ord(character) < 32 and character not in "\n\t" for character in shown)
    assert not set(shown) & {"\x7f", "\x9b", "\u202e", "\ud800"}
    assert shown.count("\n") == text.count("\n")
    assert {name for classes, _ in found for name in classes.split()} <= set(CLASSES)
    assert all(piece for _, piece in found)
    assert all(one[0] != two[0] for one, two in pairwise(found))
    assert plain(shown) == shown


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]).filter(lambda sign: not HIDDEN.search(sign))))
def test_text_without_control_characters_is_kept_as_it_is(text):
    assert plain(text) == text
    assert plain(f"{ESC}[1;31m{text}{ESC}[0m") == text


def test_endless_changes_of_colour_end_in_plain_text():
    text = f"{ESC}[31ma{ESC}[32mb" * MAX_SEGMENTS + f"{ESC}[0mend"
    found = segments(text)
    assert len(found) == MAX_SEGMENTS + 1
    assert found[-1][0] == ""
    assert plain(text) == "ab" * MAX_SEGMENTS + "end"


@pytest.mark.parametrize(
    "unit",
    [
        ESC,
        f"{ESC}[",
        f"{ESC}[1;",
        f"{ESC}]",
        f"{ESC}]0;x",
        f"{ESC}[31m",
        f"{ESC}[31mx",
        f"a{ESC}[K",
        "\r",
        "50%\r",
        f"{ESC}[31m\r",
        "\0",
        "1;",
    ],
)
def test_a_quarter_megabyte_of_anything_takes_a_moment(unit):
    text = f"{ESC}[" + unit * (250_000 // len(unit))
    began = time.process_time()
    segments(text)
    # About a tenth of a second on an idle machine.
    assert time.process_time() - began < 2


# --- Text that comes in pieces

SPECIALS = [
    "\r",
    "\n",
    "\r\n",
    f"{ESC}[31m",
    f"{ESC}[0m",
    f"{ESC}[K",
    f"{ESC}[2K",
    f"{ESC}]0;t\a",
    f"{ESC}]8;;x{ESC}\\",
]


@given(
    st.lists(st.sampled_from([*SPECIALS, "a", "10%", "é", " ", "x" * 30, f"{ESC}[1;4", ESC]), max_size=30),
    st.lists(st.integers(0, 400), max_size=8),
)
def test_pieces_cut_anywhere_look_at_each_moment_as_the_whole_does(parts: list[str], cuts: list[int]):
    text = "".join(parts)
    places = sorted({min(cut, len(text)) for cut in cuts} | {len(text)})
    done, left, style, begin = [], "", "", 0
    for end in places:
        left += text[begin:end]
        shown = advance(left, style)
        done += shown.done
        left, style, begin = left[shown.taken :], shown.style, end
        assert by_character([*done, *shown.open]) == by_character(segments(text[:end]))


def by_character(pieces: list[Segment]) -> list[tuple[str, str]]:
    return [(classes, character) for classes, piece in pieces for character in piece]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a", 0),
        ("a\r", 1),
        ("a\r\n", 0),
        (ESC, 1),
        (f"a{ESC}[3", 3),
        (f"{ESC}[31m", 0),
        (f"{ESC}]0;t", 5),
        (f"{ESC}]0;t{ESC}", 6),
    ],
)
def test_what_means_nothing_without_what_follows_is_counted(text: str, count: int):
    assert unfinished(text) == count


def test_a_very_long_line_is_not_kept_open_for_ever():
    shown = advance("x" * (LONGEST_OPEN + 10) + f"{ESC}[3")
    assert shown.taken == LONGEST_OPEN + 10
    assert not any(piece for _, piece in shown.open)
