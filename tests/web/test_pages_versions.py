"""Versions in the pages: history, one version, two side by side, rolling back."""

from __future__ import annotations

import re

import pytest
from flask import Flask

from kytecron.core import diff
from kytecron.services.audit import Actor
from kytecron.services.jobs import CronJobManager
from kytecron.store.models import CronJob
from kytecron.web.listing import coloured, diff_rows, listing
from tests.pages import HELLO, Visitor, database, make_job, text_of


@pytest.fixture
def job(app: Flask) -> CronJob:
    """A job with three versions, the last one longer."""
    job = make_job(app, message="first try")
    with database(app) as session:
        manager = CronJobManager(session, Actor("maria", "web"))
        manager.update_code(job.id, HELLO.replace("World", "<Mars>"), message="say <Mars>")
        manager.update_code(
            job.id, HELLO.replace("World", "<Mars>") + "".join(f"# line {n}\n" for n in range(40))
        )
    return job


def test_the_history_tells_who_changed_what_and_how_much(job: CronJob, viewer: Visitor) -> None:
    page = viewer.get(f"/jobs/{job.id}/versions")
    text = text_of(page.text)
    assert re.search(r"Version 3 Current .* \+40 −0 ~0 of 43 maria", text)
    assert re.search(r"Version 2 .* say <Mars> \+0 −0 ~1 of 3 maria", text)
    assert "Roll back" not in text, "a viewer only reads"
    assert "shared by" not in text


def test_the_history_tells_which_contents_are_shared(app: Flask, job: CronJob, viewer: Visitor) -> None:
    make_job(app, "twin")
    text = text_of(viewer.get(f"/jobs/{job.id}/versions").text)
    assert text.count("shared by 2 versions") == 1


def test_a_long_history_goes_on_page_by_page(app: Flask, viewer: Visitor) -> None:
    job = make_job(app)
    with database(app) as session:
        for number in range(34):
            CronJobManager(session).update_code(job.id, HELLO + f"# {number}\n")
    first = viewer.get(f"/jobs/{job.id}/versions").text
    assert first.count("<tr id=") == 30
    assert viewer.get(f"/jobs/{job.id}/versions?before=6").text.count("<tr id=") == 5
    assert "?before=6" in first


def test_two_versions_stand_side_by_side_with_changed_words_marked(job: CronJob, viewer: Visitor) -> None:
    page = viewer.get(f"/jobs/{job.id}/versions/compare?from=1&to=2").text
    assert re.search(r"<del>.*World.*</del>", page)
    assert re.search(r"<ins>.*&lt;Mars&gt;.*</ins>", page)
    assert '<span class="k">class</span>' in page
    assert "0 added 0 removed 1 changed" in text_of(page)


def test_equal_lines_are_left_out_unless_asked_for(job: CronJob, viewer: Visitor) -> None:
    with_gap = viewer.get(f"/jobs/{job.id}/versions/compare?from=3&to=2").text
    assert with_gap.count('class="line old-removed"') == 40
    code = HELLO + "".join(f"# line {n}\n" for n in range(40))
    changes = diff.side_by_side(code, code.replace("World", "Mars"), context=3)
    assert changes.rows[-1].kind == "gap"
    everything = viewer.get(f"/jobs/{job.id}/versions/compare?from=1&to=3&context=all").text
    assert "equal lines" not in everything


@pytest.mark.parametrize(
    ("query", "status"),
    [("", 422), ("from=1", 422), ("from=1&to=9", 404), ("from=2&to=2", 303), ("from=x&to=y", 422)],
)
def test_odd_comparisons_are_answered(job: CronJob, viewer: Visitor, query: str, status: int) -> None:
    assert viewer.get(f"/jobs/{job.id}/versions/compare?{query}").status_code == status


def test_rolling_back_makes_the_old_version_current_and_keeps_the_others(
    app: Flask, job: CronJob, editor: Visitor
) -> None:
    page = editor.get(f"/jobs/{job.id}/versions/1").text
    assert "Roll back to version 1?" in page, "it asks first"
    answer = editor.post(f"/jobs/{job.id}/rollback", {"version": "1"})
    assert answer.location == f"/jobs/{job.id}/versions"
    text = text_of(editor.get(answer.location).text)
    assert "Version 1 is current again. The next run uses it." in text
    assert "Version 1 Current" in text
    assert "Version 3" in text
    refused = editor.post(f"/jobs/{job.id}/rollback", {"version": "1"})
    assert (refused.status_code, "Already at version 1" in refused.text) == (409, True)
    assert editor.post(f"/jobs/{job.id}/rollback", {"version": "10"}).status_code == 404
    assert editor.post(f"/jobs/{job.id}/rollback", {"version": "x"}).status_code == 422
    assert editor.post(f"/jobs/{job.id}/rollback").status_code == 422


# -- colours -------------------------------------------------------------------------------------------------

CODES = [
    HELLO,
    "",
    "\n\n",
    "x = 1",
    'text = """a\nb\n\nc"""\n',
    "a\x0cb = 1\n",
    "def broken(:\n\t'unclosed\n",
    '<script>alert(1)</script> & "quotes"\n',
    "x = 'ä€😀'\n" * 3,
]


@pytest.mark.parametrize("code", CODES)
def test_colouring_keeps_every_character_and_every_line(code: str) -> None:
    lines = ["".join(text for _, text in line) for line in coloured(code)]
    assert lines == (code.removesuffix("\n").split("\n") if code else [])
    assert "<script>" not in "".join(listing(code))


@pytest.mark.parametrize("old", CODES)
@pytest.mark.parametrize("new", CODES)
def test_a_comparison_shows_both_texts_whole(old: str, new: str) -> None:
    rows = diff_rows(diff.side_by_side(old, new), old, new)
    for code, side in (
        (old, [row.old for row in rows if row.old_line]),
        (new, [row.new for row in rows if row.new_line]),
    ):
        assert [line.striptags() for line in side] == [" ".join(line.split()) for line in code_lines(code)]


def code_lines(code: str) -> list[str]:
    return code.removesuffix("\n").split("\n") if code else []


def test_code_too_long_to_colour_is_shown_plain() -> None:
    code = "x = 1  # <b>\n" * 20_000
    assert listing(code)[0] == "x = 1  # &lt;b&gt;"
