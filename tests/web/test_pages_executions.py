"""Runs in the pages: lists, one run, its log as it grows, and what one may do to it."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta

import pytest
from flask import Flask
from markupsafe import Markup
from werkzeug.test import TestResponse

from kytecron.core.ansi import LONGEST_OPEN, segments
from kytecron.core.states import Claim, Outcome, Status
from kytecron.services import lifecycle
from kytecron.services.audit import Actor
from kytecron.services.jobs import CronJobManager
from kytecron.services.lifecycle import Progress
from kytecron.store import db, queries
from kytecron.store.models import CronJob, CronJobExecution
from kytecron.web.ansi import to_html
from kytecron.web.listing import Frame, Note, trace
from tests.factories import add_job, claim_one, runs_of
from tests.pages import HELLO, Visitor, database, make_job, text_of, toast

FAILING = """class Sync(CronJobBase):
    def execute(self):
        self.read("{")

    def read(self, text):
        return int(text)
"""
TRACE = """Traceback (most recent call last):
  File "<job 1 v1>", line 3, in execute
    self.read("{")
  File "<job 1 v1>", line 6, in read
    return int(text)
           ^^^^^^^^^
  File "/usr/lib/python3/x.py", line 7, in helper
    return <b>
ValueError: invalid literal for int() with base 10: '{'
"""


def trigger(app: Flask, job: CronJob) -> int:
    with database(app) as session:
        return lifecycle.trigger(session, job.id, actor=Actor("test")).id


def claim(app: Flask) -> Claim:
    with database(app) as session:
        return claim_one(session)


def settle(app: Flask, claim: Claim, status: Status = Status.COMPLETED, **outcome: object) -> None:
    with database(app) as session:
        assert lifecycle.settle(session, [(claim, Outcome(status, **outcome))])  # type: ignore[arg-type]


def run_once(app: Flask, job: CronJob, status: Status = Status.COMPLETED, **outcome: object) -> int:
    run_id = trigger(app, job)
    settle(app, claim(app), status, **outcome)
    return run_id


def say(app: Flask, claim: Claim, seq: int, text: str) -> None:
    with database(app) as session:
        stored = lifecycle.append_output(session, [Progress(claim, [(seq, text, False)])])
    assert not any(stored), "it is held, and nobody has locked it"


def ids(response: TestResponse) -> list[int]:
    return [int(number) for number in re.findall(r'<tr id="execution-(\d+)"', response.text)]


# -- lists ---------------------------------------------------------------------------------------------------


def test_an_empty_list_says_what_will_be_there(viewer: Visitor) -> None:
    assert "Nothing has run yet" in viewer.get("/executions").text


def test_the_list_filters_by_job_status_day_and_text(app: Flask, viewer: Visitor) -> None:
    good, bad = make_job(app, "good"), make_job(app, "bad")
    first = run_once(app, good, output="all is well")
    second = run_once(app, bad, Status.FAILED, error="disk full")
    third = run_once(app, good, Status.TIMEOUT, error="too slow")
    with database(app) as session:
        for job in (good, bad):
            lifecycle.abandon_pending(session, job.id, "no retries here")
    everything = ids(viewer.get("/executions"))
    assert everything == sorted(everything, reverse=True)
    assert len(everything) == 5
    assert ids(viewer.get("/executions?job=good")) == [third + 1, third, first]
    assert ids(viewer.get(f"/executions?job={bad.id}&status=failed")) == [second]
    assert ids(viewer.get("/executions?status=unsuccessful")) == [third, second]
    assert ids(viewer.get("/executions?text=well")) == [first]
    assert ids(viewer.get("/executions?text=DISK")) == [second]
    assert ids(viewer.get("/executions?from=2999-01-01")) == []
    assert len(ids(viewer.get("/executions?from=2020-01-01&to=2999-01-01"))) == 5
    assert ids(viewer.get("/executions?worker=tester:1:a&status=completed")) == [first]
    assert ids(viewer.get(f"/jobs/{good.id}/executions")) == [third + 1, third, first]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("from=yesterday", "is not a date; write it like 2026-03-29"),
        ("job=nobody", "No job has the name"),
        ("to=9999-12-31", "is not a date"),
    ],
)
def test_a_filter_that_makes_no_sense_is_told(viewer: Visitor, query: str, said: str) -> None:
    answer = viewer.get(f"/executions?{query}")
    assert answer.status_code == 200
    assert said in text_of(answer.text)


def test_older_runs_are_a_page_away_and_only_the_first_page_polls(app: Flask, viewer: Visitor) -> None:
    job = make_job(app, overlap_policy="allow")
    for _ in range(53):
        trigger(app, job)
    first = viewer.get("/executions?job=hello")
    assert len(ids(first)) == 50
    assert "every 5s" in first.text
    older = first.text.partition('rel="next" href="')[2].partition('"')[0].replace("&amp;", "&")
    second = viewer.get(older)
    assert len(ids(second)) == 3
    assert "every 5s" not in second.text
    assert "Newest" in second.text


# -- one run -------------------------------------------------------------------------------------------------


def test_a_run_polls_while_something_can_change_and_stops_when_it_ended(app: Flask, viewer: Visitor) -> None:
    job = make_job(app)
    run_id = trigger(app, job)
    path = f"/executions/{run_id}"
    waiting = viewer.get(path, part=True)
    assert waiting.text.strip().startswith('<div id="state"')
    assert "every 2s" in waiting.text
    assert "Pending" in waiting.text
    held = claim(app)
    with database(app) as session:
        lifecycle.append_output(session, [Progress(held, percent=40, note="row <4>")])
    running = viewer.get(path)
    assert "40% row <4>" in text_of(running.text)
    assert "every 1s" in running.text, "the log is followed"
    settle(app, held, duration_ms=1500, memory_peak_mb=12.5, cpu_ms=300, exit_code=0, result={"rows": 7})
    ended = viewer.get(path)
    assert "every" not in ended.text
    text = text_of(ended.text)
    for said in (
        "Completed",
        "after 1.5 s",
        "12.5 MiB at its peak",
        "300 ms",
        '"rows": 7',
        "It printed nothing.",
    ):
        assert said in text


def test_a_failed_run_shows_its_trace_with_the_lines_of_its_version(app: Flask, viewer: Visitor) -> None:
    job = make_job(app, code=FAILING)
    run_id = run_once(app, job, Status.FAILED, error="ValueError: no", stack_trace=TRACE, exit_code=1)
    with database(app) as session:
        CronJobManager(session, Actor("test")).update_code(job.id, HELLO)
    page = viewer.get(f"/executions/{run_id}").text
    assert f'href="/jobs/{job.id}/versions/1#L6"' in page
    text = text_of(page)
    assert "def read ( self , text ) : 6 return int ( text )" in re.sub(r"([(),:])", r" \1 ", text).replace(
        "  ", " "
    )
    assert "/usr/lib/python3/x.py, line 7, in helper" in text
    assert "ValueError: invalid literal" in text
    assert "<b>" not in page.replace("&lt;b&gt;", "")


def test_a_failed_run_shows_what_changed_since_it_last_worked(app: Flask, viewer: Visitor) -> None:
    job = make_job(app)
    good = run_once(app, job)
    again = run_once(app, job, Status.FAILED, error="no")
    assert "Nothing in the code: version 1 completed then." in text_of(
        viewer.get(f"/executions/{again}").text
    )
    with database(app) as session:
        CronJobManager(session, Actor("test")).update_code(job.id, HELLO.replace("World", "Mars"))
        lifecycle.abandon_pending(session, job.id, "test")
    bad = run_once(app, job, Status.FAILED, error="no")
    page = viewer.get(f"/executions/{bad}").text
    assert f"Execution {good}, version 1" in text_of(page)
    assert re.search(r"<del>.*World.*</del>", page)
    assert re.search(r"<ins>.*Mars.*</ins>", page)
    assert "What changed since" not in viewer.get(f"/executions/{good}").text


def test_the_attempts_of_a_chain_lead_to_each_other(app: Flask, viewer: Visitor) -> None:
    job = make_job(app, retry_delay_seconds=600)
    first = run_once(app, job, Status.FAILED, error="no")
    page = viewer.get(f"/executions/{first}").text
    assert "Attempt 1" in page
    assert f'href="/executions/{first + 1}">Attempt 2' in page
    assert "every 2s" in page, "the chain goes on"


def test_a_skipped_run_says_why(app: Flask, viewer: Visitor) -> None:
    job = make_job(app)
    run_id = run_once(app, job, Status.SKIPPED, skipped_reason="nothing to do")
    assert "Skipped nothing to do" in text_of(viewer.get(f"/executions/{run_id}").text)


def test_a_run_of_a_deleted_job_stays_readable(app: Flask, viewer: Visitor) -> None:
    job = make_job(app)
    run_id = run_once(app, job, output="kept")
    with database(app) as session:
        CronJobManager(session, Actor("test")).delete(job.id)
    page = viewer.get(f"/executions/{run_id}")
    assert page.status_code == 200
    assert "kept" in page.text
    assert viewer.get("/executions").status_code == 200


# -- the log -------------------------------------------------------------------------------------------------


def follow(visitor: Visitor, html: str) -> TestResponse:
    """What the page asks for next, as its markup says."""
    found = re.search(r'<span hx-get="([^"]+)" hx-trigger="every 1s" hx-swap="outerHTML">', html)
    assert found, html
    return visitor.get(found[1].replace("&amp;", "&"), part=True)


def test_the_log_grows_by_what_is_new_until_the_run_has_ended(app: Flask, viewer: Visitor) -> None:
    job = make_job(app)
    run_id = trigger(app, job)
    held = claim(app)
    say(app, held, 1, "one\n")
    page = viewer.get(f"/executions/{run_id}")
    assert "one\n" in page.text
    nothing = follow(viewer, page.text)
    assert nothing.status_code == 204, "nothing new: nothing is swapped"
    say(app, held, 2, "two <b>\n")
    second = follow(viewer, page.text)
    assert second.text.startswith("two &lt;b&gt;\n")
    assert "one" not in second.text
    settle(app, held, output="three\n")
    third = follow(viewer, second.text)
    assert third.text.strip() == "three"
    assert viewer.get(f"/executions/{run_id}/log").text == "one\ntwo <b>\nthree\n"


def test_colours_go_on_from_piece_to_piece(app: Flask, viewer: Visitor) -> None:
    job = make_job(app)
    trigger(app, job)
    held = claim(app)
    say(app, held, 1, "plain \x1b[1;31mred")
    page = viewer.get("/executions/1").text
    assert 'plain <span class="ansi-bold ansi-red">red</span>' in page
    say(app, held, 2, " still red\x1b[0m plain")
    second = follow(viewer, page).text
    assert 'plain <span class="ansi-bold ansi-red">red still red</span> plain' in second
    say(app, held, 3, "again\n")
    assert follow(viewer, second).text.startswith(
        'plain <span class="ansi-bold ansi-red">red still red</span> plainagain\n'
    )


def test_a_progress_bar_ends_as_one_line(app: Flask, viewer: Visitor) -> None:
    job = make_job(app)
    trigger(app, job)
    held = claim(app)
    say(app, held, 1, "start\n10%")
    page = viewer.get("/executions/1").text
    say(app, held, 2, "\r50%")
    second = follow(viewer, page).text
    settle(app, held, output="\r100%\n")
    last = follow(viewer, second)
    assert last.headers["HX-Retarget"] == "#log"
    assert last.headers["HX-Reswap"] == "innerHTML"
    assert last.text.strip() == "start\n100%"


class Screen:
    """What a reader of a log sees: what has come, and in the last element what the next piece replaces."""

    def __init__(self, visitor: Visitor, page: str) -> None:
        self.visitor = visitor
        self.done = ""
        self._take(page[page.index("data-follow>") + len("data-follow>") :].partition("</div>")[0])

    def _take(self, html: str) -> None:
        done, found, asking = html.partition('<span hx-get="')
        self.done += done
        self.asking = found + asking
        self.open = asking.partition('hx-swap="outerHTML">')[2].removesuffix("</span>") if found else ""

    def look(self) -> str:
        """All that is shown, after asking once for what is new."""
        if self.asking:
            answer = follow(self.visitor, self.asking)
            if answer.headers.get("HX-Retarget") == "#log":
                self.done = ""
            if answer.status_code == 200:
                self._take(answer.text.rstrip("\n") if not self.done else answer.text)
        return Markup(re.sub("<[^>]+>", "", self.done + self.open)).unescape()


LIVE_PIECES = {
    "a bar without an end of line": ["10%", "\r20%", "\r40%\r", "50%", "\r"],
    "a bar after lines": ["one\ntwo\n 1%", "\r 2%", "\r100%\nthree\n", "\r"],
    "a colour cut in two": ["a \x1b[3", "2mgreen\x1b", "[0m plain\n", "x"],
    "a colour that an overwritten part set": ["\x1b[31m10%", "\r20%", "\r30%\n", "red\x1b[0m\n"],
    "a title cut in two": ["\x1b]0;my ti", "tle\x07shown\n", "\x1b]8;;http://x\x1b", "\\link\n"],
    "an end of line cut in two": ["one\r", "\ntwo\r", "\n", "three"],
    "an erased line": ["working...", "\r\x1b[", "2Kdone", "\n"],
    "dots": [".", ".", ".", "\n", ".", "."],
    "markup": ["<b", ">&amp;", "\r<i>\n"],
}


@pytest.mark.parametrize("pieces", LIVE_PIECES.values(), ids=list(LIVE_PIECES))
@pytest.mark.parametrize("ends", [False, True], ids=["live", "ended"])
def test_a_log_in_pieces_looks_at_each_moment_as_the_whole_does(
    app: Flask, viewer: Visitor, pieces: list[str], ends: bool
) -> None:
    job = make_job(app)
    trigger(app, job)
    held = claim(app)
    screen = Screen(viewer, viewer.get("/executions/1").text)
    for number, piece in enumerate(pieces, start=1):
        if ends and number == len(pieces):
            settle(app, held, output=piece)
        else:
            say(app, held, number, piece)
        whole = "".join(text for _, text in segments("".join(pieces[:number])))
        assert screen.look().rstrip("\n") == whole.rstrip("\n")


def test_a_line_that_grows_for_minutes_is_not_sent_again_and_again(app: Flask, viewer: Visitor) -> None:
    job = make_job(app)
    trigger(app, job)
    held = claim(app)
    screen = Screen(viewer, viewer.get("/executions/1").text)
    for number in range(1, 200):
        say(app, held, number, f"\r{number:3}% " + "#" * 300)
    assert screen.look() == "199% " + "#" * 300
    assert "line=199" in screen.asking
    say(app, held, 200, "." * (LONGEST_OPEN + 1))
    assert screen.look() == "199% " + "#" * 300 + "." * (LONGEST_OPEN + 1)
    assert screen.open == ""


def test_of_a_very_long_log_the_end_is_shown_and_all_of_it_downloaded(
    app: Flask, viewer: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kytecron.web.executions.SHOWN_LOG", 200)
    monkeypatch.setattr("kytecron.web.executions.KEPT_LOG", 100)
    monkeypatch.setattr("kytecron.store.queries.LOG_CHARACTERS", 60)
    job = make_job(app)
    trigger(app, job)
    held = claim(app)

    def line(number: int) -> str:
        return f"{number}" * 49 + "\n"

    for seq in (1, 2, 3):
        say(app, held, seq, line(seq))
    page = viewer.get("/executions/1").text
    assert line(1) in page
    for seq in (4, 5):
        say(app, held, seq, line(seq))
    following = follow(viewer, page)
    assert following.headers["HX-Retarget"] == "#log", "the page does not grow for ever"
    assert "Only the last 100 characters are shown here." in following.text
    assert line(5) in following.text
    assert line(3) not in following.text
    for seq in range(6, 9):
        say(app, held, seq, line(seq))
    settle(app, held)
    assert line(8) in follow(viewer, following.text).text
    whole = viewer.get("/executions/1").text
    assert line(8) in whole
    assert line(1) not in whole
    assert "every 1s" not in whole
    assert viewer.get("/executions/1/log").text == "".join(line(number) for number in range(1, 9))


@pytest.mark.parametrize("query", ["after=nonsense", "after=-1", "after=" + "9" * 40])
def test_a_wrong_place_in_a_log_is_refused(app: Flask, viewer: Visitor, query: str) -> None:
    make_job(app)
    trigger(app, runs_job(app))
    assert viewer.get(f"/executions/1/log?{query}", part=True).status_code == 422


def runs_job(app: Flask) -> CronJob:
    with database(app) as session:
        return CronJobManager(session).get(1)


@pytest.mark.parametrize("style", ["31", "1;31", "", "<script>", "31m\x1b[0", "9" * 100])
def test_a_style_from_an_address_can_do_no_harm(style: str) -> None:
    html, _ = to_html("x", style)
    assert re.fullmatch(r'x|<span class="ansi-[a-z -]+">x</span>', html)


# -- what one may do -----------------------------------------------------------------------------------------


@pytest.fixture
def row(app: Flask) -> Callable[[int], CronJobExecution]:
    def read(run_id: int) -> CronJobExecution:
        with database(app) as session:
            return queries.execution(session, run_id).execution

    return read


def test_cancelling_calls_off_what_waits_and_asks_what_runs(
    app: Flask, operator: Visitor, row: Callable[[int], CronJobExecution]
) -> None:
    job = make_job(app, overlap_policy="allow")
    waiting = trigger(app, job)
    answer = operator.post(f"/executions/{waiting}/cancel", part=True)
    assert toast(answer) == f"Execution {waiting} is cancelled."
    assert row(waiting).status == Status.CANCELLED
    running = trigger(app, job)
    claim(app)
    answer = operator.post(f"/executions/{running}/cancel", part=True)
    assert toast(answer) == f"Execution {running} is being stopped."
    assert row(running).cancel_reason == "cancelled by the-operator"
    assert "being stopped" in operator.get(f"/executions/{running}").text
    assert operator.post(f"/executions/{waiting}/cancel").status_code == 409


def test_retrying_now_skips_the_delay(
    app: Flask, operator: Visitor, row: Callable[[int], CronJobExecution]
) -> None:
    job = make_job(app, retry_delay_seconds=3600)
    failed = run_once(app, job, Status.FAILED, error="no")
    answer = operator.post(f"/executions/{failed}/retry")
    assert answer.location == f"/executions/{failed + 1}"
    waiting = row(failed + 1)
    assert waiting.due_time is not None
    assert waiting.due_time - waiting.scheduled_time < timedelta(minutes=5)


def test_running_again_takes_the_current_version_or_the_one_it_had(app: Flask, operator: Visitor) -> None:
    job = make_job(app, overlap_policy="allow")
    old = run_once(app, job)
    with database(app) as session:
        CronJobManager(session, Actor("test")).update_code(job.id, HELLO + "# new\n")
    page = operator.get(f"/executions/{old}").text
    assert "Run version 1 again" in page
    assert operator.post(f"/executions/{old}/rerun").location == "/executions/2"
    assert operator.post(f"/executions/{old}/rerun", {"version": "same"}).location == "/executions/3"
    with database(app) as session:
        assert [run.requested_version for run in runs_of(session, job)] == [None, None, 1]


# -- stack traces --------------------------------------------------------------------------------------------


def test_a_trace_is_read_whatever_it_holds() -> None:
    steps = trace(TRACE, FAILING)
    assert [type(step) for step in steps] == [Frame, Frame, Frame, Note]
    chained = trace(
        TRACE + "\nDuring handling of the above exception, another exception occurred:\n\n" + TRACE, None
    )
    assert [type(step) for step in chained] == [Frame, Frame, Frame, Note, Frame, Frame, Frame, Note]
    assert all(isinstance(step, Note) for step in trace("something\nelse entirely", FAILING))
    beyond = trace('  File "<job 1 v1>", line 999, in gone\nE: x', FAILING)
    assert isinstance(beyond[0], Frame)
    assert beyond[0].lines == []


def test_a_run_that_waits_says_why(app: Flask, viewer: Visitor) -> None:
    run = trigger(app, make_job(app, worker_tag="gpu"))
    for part in (False, True):
        text = text_of(viewer.get(f"/executions/{run}", part=part).text)
        assert "Why does it wait?" in text
        assert "It waits for a worker" in text


def test_a_run_of_a_job_that_was_given_up_offers_to_recover_it(app: Flask, operator: Visitor) -> None:
    job = make_job(app, max_retries=0)
    run = run_once(app, job, Status.FAILED, error="no disk")
    page = operator.get(f"/executions/{run}").text
    assert "The job is in the dead letter queue." in page
    assert f'action="/jobs/{job.id}/recover"' in page
    operator.post(f"/jobs/{job.id}/recover")
    assert "Run again" in operator.get(f"/executions/{run}").text


def test_a_row_of_many_missed_slots_says_so_and_offers_no_run(app: Flask, operator: Visitor) -> None:
    with database(app) as session:
        first = db.now(session).replace(microsecond=0) - timedelta(days=2)
        job = add_job(session, interval_seconds=60, schedule_anchor=first, next_run_time=first)
        lifecycle.enqueue_due(session)
        summary = next(run for run in runs_of(session, job) if run.slots_count > 1)
    number = f"{summary.slots_count:,}"
    day = f"{first + timedelta(days=1):%Y-%m-%d}"
    listed = text_of(operator.get(f"/executions?job={job.id}&from={day}&to={day}").text)
    assert f"{number} slots, to" in listed
    page = operator.get(f"/executions/{summary.id}").text
    assert f"Last of {number} slots" in page
    assert "Run again" not in page
