"""The list of jobs and the page of one: what they show, filter and do."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
import sqlalchemy as sa
from flask import Flask

from kytecron.core.states import Outcome, Status
from kytecron.services import deadletters, lifecycle
from kytecron.services.audit import Actor
from kytecron.services.jobs import CronJobManager
from kytecron.store import db, queries
from kytecron.store.models import CronJob, KyteCronJobVersionContent
from tests.factories import add_worker, claim_one, runs_of
from tests.pages import HELLO, Visitor, database, form_of, make_job, text_of, toast
from tests.rawsql import typed

EVIL = '<script>alert(1)</script>"onmouseover="x'


def run_once(app: Flask, job: CronJob, outcome: Outcome | None = None) -> int:
    """Let a job run to an ending; returns the execution's id."""
    with database(app) as session:
        run = lifecycle.trigger(session, job.id, actor=Actor("test"))
        claim = claim_one(session)
        lifecycle.settle(session, [(claim, outcome or Outcome(Status.COMPLETED, duration_ms=1200))])
        return run.id


def names(html: str) -> list[str]:
    """The names of the jobs in a list, in its order."""
    return [part.partition("</a>")[0] for part in html.split('class="cell-main" href="/jobs/')[1:]]


def listed(visitor: Visitor, query: str = "", *, part: bool = False) -> list[str]:
    return [name.partition(">")[2] for name in names(visitor.get(f"/jobs{query}", part=part).text)]


def serve_a_slot_late(app: Flask, job: CronJob) -> None:
    """Two failed attempts and a third that completes."""
    with database(app) as session:
        lifecycle.trigger(session, job.id, actor=Actor("test"))
        for status in (Status.FAILED, Status.TIMEOUT, Status.COMPLETED):
            lifecycle.settle(session, [(claim_one(session), Outcome(status, error="no", duration_ms=9))])


def test_attempts_recovered_and_skipped_stand_beside_the_rate(app: Flask, viewer: Visitor) -> None:
    job = make_job(app, "flaky", retry_strategy="immediate", max_retries=3)
    serve_a_slot_late(app, job)
    run_once(app, job, Outcome(Status.SKIPPED, skipped_reason="nothing to do"))
    for address in ("/", "/jobs", f"/jobs/{job.id}"):
        html = viewer.get(address).text
        assert "4 attempts, 1 recovered, 1 skipped" in html or "3 attempts, 1 recovered, 1 skipped" in html, (
            address
        )
        assert "100%" in html
        assert "each attempt is counted" not in html.lower()


def test_days_that_an_earlier_release_counted_are_told_as_attempts(app: Flask, viewer: Visitor) -> None:
    job = make_job(app, "old", retry_strategy="immediate", max_retries=3)
    serve_a_slot_late(app, job)
    with database(app) as session:
        today = db.now(session).date()
        session.execute(sa.update(CronJob).values(attempts_until=today))
        session.commit()
    page = viewer.get(f"/jobs/{job.id}").text
    assert f"Counted in attempts up to {today}, in slots since" in page
    assert "1 completed, 0 failed; 3 attempts, 1 recovered; each attempt is counted" in page
    assert "each attempt is counted" in viewer.get("/").text


# -- the list ------------------------------------------------------------------------------------------------


def test_an_empty_list_says_what_to_do_first(editor: Visitor, viewer: Visitor) -> None:
    assert "Create the first job" in editor.get("/jobs").text
    assert "No jobs yet" in viewer.get("/jobs").text
    assert "Create the first job" not in viewer.get("/jobs").text


def test_a_row_tells_how_a_job_is_doing(app: Flask, viewer: Visitor) -> None:
    job = make_job(
        app, "nightly", schedule_type="daily", time_of_day="02:30", timezone="Europe/Berlin", tags="etl"
    )
    for _ in range(3):
        run_once(app, job)
    run_once(app, job, Outcome(Status.FAILED, error="no"))
    text = text_of(viewer.get("/jobs").text)
    assert "nightly At 02:30 every day, Europe/Berlin time etl" in text
    assert "Enabled" in text
    assert "Failed" in text
    assert "Last 3 runs: 3 completed" in text
    assert "100%" in text, "a slot whose retry is still to come has not failed"


def test_filters_and_sorting_are_part_of_the_address(app: Flask, viewer: Visitor) -> None:
    make_job(app, "b-report", tags="reports", schedule_type="interval", interval_seconds=60)
    make_job(app, "a-backup", description="copies the report", enabled=False)
    failed = make_job(app, "c-failed")
    run_once(app, failed, Outcome(Status.FAILED, error="no"))
    assert listed(viewer) == ["a-backup", "b-report", "c-failed"]
    assert listed(viewer, "?q=report") == ["a-backup", "b-report"]
    assert listed(viewer, "?q=100%25") == []
    assert listed(viewer, "?status=disabled") == ["a-backup"]
    assert listed(viewer, "?tag=reports") == ["b-report"]
    assert listed(viewer, "?type=interval") == ["b-report"]
    assert listed(viewer, "?result=failed") == ["c-failed"]
    assert listed(viewer, "?result=never&sort=-id") == ["a-backup", "b-report"]
    assert listed(viewer, "?status=nonsense&sort=nonsense") == ["a-backup", "b-report", "c-failed"]
    assert "No job matches" in viewer.get("/jobs?q=nothing").text


def test_the_region_is_the_page_s_own_part_and_keeps_its_filters_when_it_refreshes(
    app: Flask, viewer: Visitor
) -> None:
    make_job(app, "one")
    whole = viewer.get("/jobs?q=one&sort=-id")
    part = viewer.get("/jobs?q=one&sort=-id", part=True)
    start = part.text.strip()
    assert start.startswith('<section id="jobs"')
    # Each answer has a CSRF token and a number of its own.
    own = re.compile(r'name="(csrf_token|once)" value="[^"]+"')
    assert own.sub("", start) in own.sub("", whole.text)
    assert 'hx-get="/jobs?q=one&amp;sort=-id"' in part.text
    assert set(part.vary) >= {"HX-Request", "HX-Request-Type"}
    assert "<html" in viewer.get("/jobs", headers={"HX-Request": "true", "HX-Request-Type": "full"}).text


def test_a_long_list_goes_on_page_by_page(app: Flask, viewer: Visitor) -> None:
    for number in range(30):
        make_job(app, f"job-{number:02}", schedule_type="interval", interval_seconds=60)
    first = viewer.get("/jobs?type=interval")
    assert listed(viewer, "?type=interval") == [f"job-{number:02}" for number in range(25)]
    older = first.text.partition('rel="next" href="')[2].partition('"')[0].replace("&amp;", "&")
    assert "type=interval" in older
    assert listed(viewer, older.removeprefix("/jobs")) == [f"job-{number:02}" for number in range(25, 30)]


def test_a_wrong_cursor_is_told_not_crashed_on(viewer: Visitor) -> None:
    assert viewer.get("/jobs?cursor=nonsense").status_code == 422


def test_a_job_written_into_the_table_by_hand_is_shown_with_what_is_wrong(
    app: Flask, viewer: Visitor
) -> None:
    with database(app) as session:
        session.add(
            CronJob(name="by hand", schedule_type="cron", cron_expression="99 * * * *", timezone="Mars/X")
        )
        session.commit()
        session.execute(typed(session, "UPDATE CronJob SET parameters = '{broken', state = '[1]'"))
        session.commit()
    assert "99" in viewer.get("/jobs").text
    assert viewer.get("/jobs/1").status_code == 200
    assert viewer.get("/jobs/1/executions").status_code == 200


# -- one job -------------------------------------------------------------------------------------------------


def test_the_overview_tells_what_a_job_does_and_how_it_is_doing(app: Flask, viewer: Visitor) -> None:
    parent = make_job(app, "extract")
    job = make_job(
        app, "load", schedule_type="weekly", day_of_week=[1, 3], time_of_day="08:00", timezone="America/New_York",
        depends_on=[parent.id], max_retries=2, retry_strategy="fixed", retry_delay_seconds=30,
        notification_email="ops@example.org", parameters={"region": "eu"}, description="Loads.",
    )  # fmt: skip
    with database(app) as session:
        lifecycle.trigger(session, job.id, actor=Actor("test"))
        lifecycle.settle(session, [(claim_one(session), Outcome(Status.COMPLETED, duration_ms=2000))])
    text = text_of(viewer.get(f"/jobs/{job.id}").text)
    for said in (
        "At 08:00 every Monday and Wednesday, America/New_York time",
        "up to 2 times, 30 seconds after each failure",
        "ops@example.org",
        '{ "region": "eu" }',
        "Loads.",
        "100%",
        "1 slot, all time",
        "extract",
    ):
        assert said in text
    assert text.count("08:00 E") == 5, "the next five slots in the job's zone"
    assert "load" in text_of(viewer.get(f"/jobs/{parent.id}").text), "a parent names its children"


def test_a_webhook_is_never_shown(app: Flask, viewer: Visitor) -> None:
    job = make_job(app, slack_webhook="https://hooks.slack.com/services/T0/B0/secret")
    page = viewer.get(f"/jobs/{job.id}").text
    assert "secret" not in page
    assert "Slack" in page


def test_names_descriptions_and_reasons_are_text(app: Flask, admin: Visitor) -> None:
    job = make_job(app, EVIL, description=EVIL, depends_on=[make_job(app, EVIL + "2").id])
    with database(app) as session:
        CronJobManager(session, Actor(EVIL)).disable(job.id, EVIL)
    run_once(
        app, make_job(app, EVIL + "3"), Outcome(Status.FAILED, error=EVIL, stack_trace=EVIL, output=EVIL)
    )
    for path in (
        "/", "/jobs", "/jobs/1", "/jobs/2", f"/jobs/{job.id}/edit", "/jobs/2/trigger", "/jobs/2/versions",
        "/jobs/2/code", "/executions", "/executions/1", "/audit", "/jobs/2/executions",
        "/jobs/preview?schedule_type=" + EVIL,
    ):  # fmt: skip
        page = admin.get(path)
        assert page.status_code in (200, 409), path
        assert "<script>alert" not in page.text, path
        assert '"onmouseover="' not in page.text, path


def test_the_code_of_a_job_has_colours_and_numbered_lines(app: Flask, viewer: Visitor) -> None:
    job = make_job(app)
    page = viewer.get(f"/jobs/{job.id}/code").text
    assert '<span class="k">class</span>' in page
    assert 'id="L3"' in page
    download = viewer.get(f"/jobs/{job.id}/versions/1/code")
    assert download.text.startswith("class Hello(CronJobBase):")
    assert "attachment" in download.headers["Content-Disposition"]


# -- actions -------------------------------------------------------------------------------------------------


def test_running_a_job_from_its_page_leads_to_the_run_and_from_the_list_stays_there(
    app: Flask, operator: Visitor
) -> None:
    job = make_job(app, overlap_policy="allow")
    answer = operator.post(f"/jobs/{job.id}/trigger")
    assert (answer.status_code, answer.location) == (303, "/executions/1")
    assert "Queued as run #1." in operator.get("/executions/1").text
    answer = operator.post(f"/jobs/{job.id}/trigger", part=True)
    assert answer.status_code == 204
    assert toast(answer) == "Queued as run #2."
    assert "kytecron:refresh" in answer.headers["HX-Trigger"]


def test_parameters_note_and_version_go_along_and_wrong_ones_come_back_to_the_form(
    app: Flask, operator: Visitor
) -> None:
    job = make_job(app)
    form = operator.get(f"/jobs/{job.id}/trigger")
    assert "Run now" in form.text
    for wrong in ("{", "[1]", '"x"', '{"a": NaN}'):
        answer = operator.post(f"/jobs/{job.id}/trigger", {"parameters": wrong, "note": "my note"})
        assert answer.status_code == 422, wrong
        assert "must be" in text_of(answer.text)
        assert 'value="my note"' in answer.text
    odd = operator.post(f"/jobs/{job.id}/trigger", {"parameters": '{"region": "\\u0000"}'})
    assert odd.status_code == 422
    assert "'region' holds a NUL or half a character, which cannot be stored" in text_of(odd.text)
    wrong_version = operator.post(f"/jobs/{job.id}/trigger", {"version": "7"})
    assert wrong_version.status_code == 422
    operator.post(
        f"/jobs/{job.id}/trigger", {"parameters": '{"region": "eu"}', "note": "by hand", "version": "1"}
    )
    with database(app) as session:
        run = queries.execution(session, 1).execution
    assert (run.parameters, run.note, run.requested_version) == ({"region": "eu"}, "by hand", 1)
    assert run.triggered_by == "the-operator"


def test_a_plain_form_comes_back_to_the_page_it_was_on(app: Flask, operator: Visitor) -> None:
    job = make_job(app)
    here = {"Referer": "http://localhost/jobs?q=hel&status=enabled"}
    assert operator.post(f"/jobs/{job.id}/disable", headers=here).location == "/jobs?q=hel&status=enabled"
    elsewhere = {"Referer": "http://evil.example/jobs"}
    assert operator.post(f"/jobs/{job.id}/enable", headers=elsewhere).location == f"/jobs/{job.id}"


def test_disabling_enabling_and_recovering(app: Flask, operator: Visitor) -> None:
    job = make_job(app, schedule_type="interval", interval_seconds=60, max_retries=0)
    operator.post(f"/jobs/{job.id}/disable", {"reason": "maintenance"})
    assert "maintenance" in operator.get(f"/jobs/{job.id}").text
    operator.post(f"/jobs/{job.id}/enable")
    run_once(app, job, Outcome(Status.FAILED, error="no disk", permanent=True))
    page = text_of(operator.get(f"/jobs/{job.id}").text)
    assert "In the dead letter queue since" in page
    assert "no disk" in page
    refused = operator.post(f"/jobs/{job.id}/trigger")
    assert refused.status_code == 409
    assert "Job is in dead letter queue. Recover it first." in refused.text
    operator.post(f"/jobs/{job.id}/recover")
    with database(app) as session:
        row = session.get(CronJob, job.id)
        assert row is not None
        assert row.enabled
        assert row.next_run_time is not None
        assert row.next_run_time <= db.now(session) + timedelta(seconds=61)


def test_a_copy_opens_for_editing_and_a_deleted_job_is_gone(app: Flask, editor: Visitor) -> None:
    job = make_job(app)
    answer = editor.post(f"/jobs/{job.id}/clone")
    assert answer.location == "/jobs/2/edit"
    assert "hello (copy)" in editor.get("/jobs/2/edit").text
    assert editor.post(f"/jobs/{job.id}/delete").location == "/jobs"
    assert editor.get(f"/jobs/{job.id}").status_code == 404
    assert listed(editor) == ["hello (copy)"]


# -- the form ------------------------------------------------------------------------------------------------


def filled(visitor: Visitor, path: str, **typed: str) -> dict[str, object]:
    """The form at `path` as it stands, with some fields typed over."""
    form = form_of(visitor.get(path).text, path)
    for name, value in typed.items():
        form[name] = value
    return dict(form.lists())


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (
            {"schedule_type": "cron", "cron_expression": "30 2 * * 1-5"},
            "At 02:30, Monday through Friday, UTC",
        ),
        ({"schedule_type": "interval", "interval_seconds": "90"}, "Every 1 minute 30 seconds"),
        (
            {"schedule_type": "daily", "time_of_day": "02:30", "timezone": "Europe/Berlin"},
            "Europe/Berlin time",
        ),
        (
            {"schedule_type": "weekly", "time_of_day": "8:00", "day_of_week": "5"},
            "At 08:00 every Friday, UTC",
        ),
        (
            {"schedule_type": "monthly", "time_of_day": "03:00", "day_of_month": "31"},
            "on the last day of every month",
        ),
        ({"schedule_type": "manual"}, "Only when triggered"),
    ],
)
def test_a_job_of_each_type_is_made_in_the_page_and_saving_says_what_fires_next(
    app: Flask, editor: Visitor, typed: dict[str, str], sentence: str
) -> None:
    answer = editor.post("/jobs/new", filled(editor, "/jobs/new", name="made here", **typed))
    assert (answer.status_code, answer.location) == (303, "/jobs/1"), text_of(answer.text)
    page = text_of(editor.get("/jobs/1").text)
    assert sentence in page
    assert "made here is created. It runs " in page
    with database(app) as session:
        job = session.get(CronJob, 1)
        assert job is not None
        assert (job.enabled, job.current_version, job.created_by) == (True, 1, "the-editor")


def test_every_wrong_field_is_told_beside_it_and_nothing_typed_is_lost(editor: Visitor) -> None:
    typed = {
        "name": "",
        "description": "keep me",
        "code": "class Broken(CronJobBase):\n    def execute(self):\n  oops",
        "schedule_type": "cron",
        "cron_expression": "61 * * * *",
        "timezone": "Mars/Base",
        "tags": "fine, not fine!",
        "max_retries": "many",
        "parameters": "{nope",
        "notification_email": "nobody",
    }
    answer = editor.post("/jobs/new", filled(editor, "/jobs/new", **typed))
    assert answer.status_code == 422
    for name in typed.keys() - {"description", "schedule_type"}:
        assert f'id="f-{name}-error"' in answer.text, name
    again = form_of(answer.text, "/jobs/new")
    for name, value in typed.items():
        assert again[name].replace("\r\n", "\n").strip() == value.strip(), name
    assert "data-dirty" in answer.text
    assert "9 fields need another look" in text_of(answer.text) or "fields need another look" in text_of(
        answer.text
    )


def test_saving_a_form_unchanged_changes_nothing(app: Flask, editor: Visitor) -> None:
    parent = make_job(app, "parent")
    job = make_job(
        app, "all of it", description="two\nlines", tags="b,a", schedule_type="weekly", day_of_week=[0, 3, 6],
        time_of_day="23:59:30", timezone="Australia/Lord_Howe", starts_at="2026-03-01T10:00:05+00:00",
        ends_at="2199-01-01T00:00:00+00:00", max_runs=7, jitter_seconds=9, timeout_seconds=77, memory_limit_mb=512,
        cpu_limit_seconds=60, parameters={"a": ["ä", 1, None]}, priority=8, worker_tag="gpu", overlap_policy="queue",
        queue_length=3, misfire_policy="run_all", misfire_grace_seconds=120, on_lost_contact="continue",
        max_retries=5, retry_strategy="fixed", retry_delay_seconds=11, retry_max_delay_seconds=999,
        depends_on=[parent.id], dependency_mode="trigger", dependency_timeout_seconds=60, require_fresh=True,
        notify_on_failure=False, notify_after_failures=3, notify_on_dead_letter=False, notify_on_recovery=False,
        slack_webhook="https://hooks.slack.com/services/T/B/x", notification_email="a@example.org, b@example.org",
    )  # fmt: skip
    path = f"/jobs/{job.id}/edit"
    answer = editor.post(path, filled(editor, path))
    assert answer.status_code == 303, text_of(answer.text)
    with database(app) as session:
        after = session.get(CronJob, job.id)
        assert after is not None
        changes = queries.audit_log(
            session, queries.AuditFilter(actor="the-editor", subject_type="job")
        ).items
        assert [(change.action, change.after) for change in changes] == []
        assert (after.revision, after.current_version) == (1, 1)


def test_an_edit_changes_settings_and_code_together(app: Flask, editor: Visitor) -> None:
    job = make_job(app, notification_email="ops@example.org")
    code = 'class Hello(CronJobBase):\r\n    def execute(self):\r\n        self.log("Bye")\r\n'
    path = f"/jobs/{job.id}/edit"
    form = filled(
        editor, path, name="renamed", code=code, message="say bye", schedule_type="daily", time_of_day="04:05"
    )
    assert editor.post(path, form).location == f"/jobs/{job.id}"
    with database(app) as session:
        after = session.get(CronJob, job.id)
        assert after is not None
        assert (after.name, after.schedule_type, after.current_version) == ("renamed", "daily", 2)
        assert after.notification_email == "ops@example.org"
    versions = text_of(editor.get(f"/jobs/{job.id}/versions").text)
    assert "say bye" in versions


def test_damaged_code_can_be_written_anew(app: Flask, editor: Visitor) -> None:
    job = make_job(app)
    with database(app) as session:
        session.execute(sa.update(KyteCronJobVersionContent).values(code=b"damaged"))
        session.commit()
    path = f"/jobs/{job.id}/edit"
    assert 'id="f-code-error"' in editor.get(path).text
    assert editor.post(path, filled(editor, path, code=HELLO + "# anew")).status_code == 303


def test_boxes_that_are_unchecked_are_switched_off(app: Flask, editor: Visitor) -> None:
    job = make_job(app, notify_on_failure=True, require_fresh=True)
    path = f"/jobs/{job.id}/edit"
    form = filled(editor, path)
    del form["notify_on_failure"], form["require_fresh"]
    editor.post(path, form)
    with database(app) as session:
        after = session.get(CronJob, job.id)
        assert after is not None
        assert (after.notify_on_failure, after.require_fresh, after.notify_on_dead_letter) == (
            False,
            False,
            True,
        )


def test_a_stale_edit_shows_both_sides_and_can_be_saved_over(app: Flask, editor: Visitor) -> None:
    job = make_job(app)
    path = f"/jobs/{job.id}/edit"
    mine = filled(
        editor, path, description="mine", code="class Mine(CronJobBase):\n    def execute(self): ...\n"
    )
    with database(app) as session:
        CronJobManager(session, Actor("olga", "web")).update_job(job.id, description="hers")
    answer = editor.post(path, mine)
    assert answer.status_code == 409
    text = text_of(answer.text)
    assert "Someone else saved this job while you were editing." in text
    assert "Description hers mine" in text
    assert "Saved by olga" in text
    again = form_of(answer.text, path)
    assert again["description"] == "mine", "what was typed is kept"
    with database(app) as session:
        CronJobManager(session, Actor("olga", "web")).update_code(
            job.id, "class Hers(CronJobBase):\n    def execute(self): ...\n"
        )
    code_conflict = editor.post(path, dict(again.lists()))
    assert code_conflict.status_code == 409
    assert "Hers" in code_conflict.text
    assert "<del>Hers</del>" in code_conflict.text.replace('<span class="nc">', "").replace("</span>", "")
    final = editor.post(path, dict(form_of(code_conflict.text, path).lists()))
    assert final.status_code == 303, text_of(final.text)
    with database(app) as session:
        after = session.get(CronJob, job.id)
        assert after is not None
        assert (after.description, after.current_version) == ("mine", 3)


def test_the_preview_tells_the_sentence_the_slots_and_what_may_surprise(viewer: Visitor) -> None:
    query = "schedule_type=daily&time_of_day=02:30&timezone=Europe/Berlin"
    text = text_of(viewer.get(f"/jobs/preview?{query}", part=True).text)
    assert text.startswith("At 02:30 every day, Europe/Berlin time")
    assert text.count("02:30 CE") == 5
    assert "the clock goes from 02:00 to 03:00" in text
    wrong = text_of(viewer.get("/jobs/preview?schedule_type=daily&time_of_day=25:00", part=True).text)
    assert "Invalid Time of day '25:00'" in wrong
    nothing = viewer.get("/jobs/preview", part=True)
    assert nothing.status_code == 200


def test_the_editor_asks_for_the_problems_of_its_code(editor: Visitor) -> None:
    answer = editor.post("/jobs/check-code", json={"code": "class A(CronJobBase):\n    def run(self): ...\n"})
    assert [problem["line"] for problem in answer.json["problems"]] == [1]
    assert editor.post("/jobs/check-code", json={"code": "x = ("}).json["problems"][0]["message"]
    assert editor.post("/jobs/check-code", json=["no"], part=True).status_code == 422


def test_parents_are_found_by_name_and_chosen_ones_stay(app: Flask, editor: Visitor) -> None:
    for number in range(12):
        make_job(app, f"parent-{number:02}")
    part = editor.get("/jobs/parents?parent_q=parent-1&depends_on=3&job=11", part=True)
    text = text_of(part.text)
    assert text == "parent-02 parent-11", "the chosen one first, the job itself (number 11) never"
    assert re.search(r'value="3"\s+checked', part.text)


def test_a_cycle_is_refused_with_its_path(app: Flask, editor: Visitor) -> None:
    first = make_job(app, "first")
    second = make_job(app, "second", depends_on=[first.id])
    path = f"/jobs/{first.id}/edit"
    form = filled(editor, path)
    form["depends_on"] = [str(second.id)]
    answer = editor.post(path, form)
    assert answer.status_code == 422
    assert "first → second → first" in text_of(answer.text)


# -- the start page ------------------------------------------------------------------------------------------


def test_the_start_page_says_what_needs_a_person(app: Flask, operator: Visitor) -> None:
    assert "No jobs yet" in operator.get("/").text
    job = make_job(app, "doomed", max_retries=0)
    assert "No worker is running" in operator.get("/").text
    run_once(app, job, Outcome(Status.FAILED, error="no disk"))
    make_job(app, "later", schedule_type="interval", interval_seconds=600)
    text = text_of(operator.get("/").text)
    assert "doomed" in text
    assert "no disk" in text
    assert "later" in text
    assert "1 waiting for recovery" in text
    part = operator.get("/", part=True)
    assert part.text.strip().startswith('<div id="dashboard"')


def test_a_job_that_fails_often_does_not_hide_the_failures_of_others(app: Flask, viewer: Visitor) -> None:
    once, often = make_job(app, "once", max_retries=0), make_job(app, "often", max_retries=0)
    run_once(app, once, Outcome(Status.FAILED, error="no disk"))
    for _ in range(10):
        run_once(app, often, Outcome(Status.FAILED, error="no net"))
        with database(app) as session:
            deadletters.recover(session, often.id, Actor("test"))
    page = viewer.get("/").text
    assert "once" in text_of(page)
    assert "often 10 times" in text_of(page)
    assert page.count('id="failed-') == 2


def test_a_failure_that_a_retry_repaired_or_may_still_repair_is_none_on_the_start_page(
    app: Flask, viewer: Visitor
) -> None:
    repaired, waiting = make_job(app, "repaired", max_retries=3), make_job(app, "waiting", max_retries=3)
    for job in (repaired, waiting):
        run_once(app, job, Outcome(Status.FAILED, error="no net"))
    with database(app) as session:
        lifecycle.retry_now(session, runs_of(session, repaired)[-1].id, Actor("test"))
        assert lifecycle.settle(session, [(claim_one(session), Outcome(Status.COMPLETED))])
    page = viewer.get("/").text
    assert 'id="failed-' not in page
    assert "No failures" in text_of(page)


def test_the_verdict_leads_to_what_it_means(app: Flask, viewer: Visitor) -> None:
    make_job(app, "hello")
    assert re.search(r'(?s)class="verdict verdict-bad">.*href="/workers"', viewer.get("/").text)


def test_a_row_of_a_job_that_was_given_up_does_not_fade(app: Flask, viewer: Visitor) -> None:
    dead = make_job(app, "dead", max_retries=0)
    run_once(app, dead, Outcome(Status.FAILED, error="no disk"))
    off = make_job(app, "off", enabled=False)
    page = viewer.get("/jobs").text
    assert f'<tr id="job-{dead.id}">' in page
    assert f'<tr id="job-{off.id}" class="row-off">' in page


def test_a_start_that_is_refused_leaves_a_way_back(app: Flask, operator: Visitor) -> None:
    job = make_job(app)
    run = operator.post(f"/jobs/{job.id}/trigger", {"follow": "1"}, part=True)
    assert run.headers["HX-Redirect"] == "/executions/1"
    again = operator.post(f"/jobs/{job.id}/trigger", {"follow": "1"}, part=True)
    assert (again.status_code, "Not started" in toast(again)) == (409, True)
    plain = operator.post(f"/jobs/{job.id}/trigger", headers={"Referer": f"http://localhost/jobs/{job.id}"})
    assert (plain.status_code, f'href="/jobs/{job.id}"' in plain.text) == (409, True)


def test_nobody_asks_why_a_job_has_not_run_that_is_as_planned(app: Flask, viewer: Visitor) -> None:
    job = make_job(app, schedule_type="daily", time_of_day="02:30")
    question = "Why has it not run?"
    assert question in viewer.get(f"/jobs/{job.id}").text, "no worker is alive"
    with database(app) as session:
        add_worker(session)
    page = viewer.get(f"/jobs/{job.id}").text
    assert (question in page, "<h2>Status</h2>" in page, "is not due yet." in page) == (False, True, True)


def test_the_page_says_why_a_job_has_not_run(app: Flask, operator: Visitor, viewer: Visitor) -> None:
    job = make_job(app, EVIL, schedule_type="daily", time_of_day="02:30")
    page = viewer.get(f"/jobs/{job.id}").text
    assert "Why has it not run?" in page
    assert "is not due yet." in page
    assert "No worker is alive." in page
    assert "<script>alert" not in page
    operator.post(f"/jobs/{job.id}/disable", {"reason": "holidays"})
    assert "Disabled by the-operator (web) at" in viewer.get(f"/jobs/{job.id}", part=True).text
