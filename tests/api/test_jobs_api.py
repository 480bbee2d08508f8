"""Jobs through the API: made, changed, run, found again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from sqlalchemy.orm import Session

from kytecron.core.states import Status
from kytecron.requestdb import db
from kytecron.services import lifecycle
from kytecron.store import db as database
from kytecron.store.models import CronJob
from tests.factories import add_worker
from tests.rawsql import typed

from .conftest import CODE, Caller

Finish = Callable[..., None]


def every_page(api: Caller, address: str, **between: Callable[[], object]) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    cursor = ""
    joint = "&" if "?" in address else "?"
    while True:
        answer = api(f"GET {address}{joint}limit=3{cursor and '&cursor='}{cursor}")
        assert answer.status_code == 200, answer.text
        items += answer.json["items"]
        cursor = answer.json["next_cursor"]
        if cursor is None:
            return items
        for step in between.values():
            step()


def test_a_job_lives_from_creation_to_deletion(everywhere: Caller) -> None:
    api = everywhere
    made = api(
        "POST /jobs",
        json={
            "name": "nightly",
            "code": CODE,
            "message": "first",
            "schedule_type": "weekly",
            "day_of_week": [1, 3],
            "time_of_day": "02:30",
            "timezone": "Europe/Berlin",
            "tags": ["etl", "night"],
            "parameters": {"region": "eu"},
        },
    )
    assert made.status_code == 201
    job = made.json
    assert made.headers["Location"].endswith(f"/api/v1/jobs/{job['id']}")
    assert job["schedule"] == "At 02:30 every Monday and Wednesday, Europe/Berlin time"
    assert job["next_run_time"].endswith("Z")
    assert job["version_info"]["version_number"] == 1
    assert job["version_info"]["message"] == "first"
    assert job["created_by"] == "token:test admin"
    assert job["execution_summary"]["total"] == 0
    assert job["execution_summary"]["success_rate"] is None
    assert api(f"GET /jobs/{job['id']}").json == job
    changed = api(f"PATCH /jobs/{job['id']}", json={"day_of_week": 5, "tags": []}).json
    assert (changed["day_of_week"], changed["tags"], changed["parameters"]) == (5, [], {"region": "eu"})
    assert changed["revision"] == job["revision"] + 1
    assert [item["name"] for item in api("GET /jobs").json["items"]] == ["nightly"]
    assert api(f"DELETE /jobs/{job['id']}").status_code == 204
    for address in ("", "/stats", "/upcoming", "/versions", "/versions/1", "/versions/1/code"):
        assert api(f"GET /jobs/{job['id']}{address}").status_code == 404
    assert api("GET /jobs").json["items"] == []
    assert api.job("nightly")["id"] != job["id"]
    actions = [entry["action"] for entry in api("GET /audit?subject_type=job").json["items"]]
    assert actions == ["create", "delete", "update", "create"]


def test_what_is_sent_back_as_it_was_read_changes_nothing(api: Caller) -> None:
    job = api.job(schedule_type="interval", interval_seconds=60, starts_at="2030-01-01T00:00:00Z")
    settable = api("GET /openapi.json").json["components"]["schemas"]["JobChanges"]["properties"]
    same = {name: value for name, value in job.items() if name in settable}
    answer = api(f"PATCH /jobs/{job['id']}", json=same)
    assert answer.status_code == 200, answer.text
    assert answer.json == job


def test_the_aliases_of_older_systems_are_understood(api: Caller) -> None:
    parent = api.job("parent")["id"]
    job = api.job("child", allow_concurrent=True, depends_on_job=parent)
    assert (job["overlap_policy"], job["depends_on"]) == ("allow", [parent])


def test_jobs_are_filtered_and_sorted(api: Caller) -> None:
    api.job("beta", tags=["x"], schedule_type="interval", interval_seconds=60)
    api.job("alpha", description="Nightly report", enabled=False)

    def names(query: str) -> list[str]:
        return [item["name"] for item in api(f"GET /jobs?{query}").json["items"]]

    assert names("") == ["alpha", "beta"]
    assert names("sort=-name") == ["beta", "alpha"]
    assert names("q=NIGHTLY") == ["alpha"]
    assert names("status=disabled") == ["alpha"]
    assert names("tag=x") == ["beta"]
    assert names("schedule_type=manual") == ["alpha"]
    assert names("last_result=never&status=enabled") == ["beta"]


@pytest.mark.parametrize("sort", ["name", "-id", "next_run_time", "last_run"])
def test_pages_of_jobs_have_no_gaps_and_no_doubles_while_jobs_are_made(everywhere: Caller, sort: str) -> None:
    api = everywhere
    before = {api.job(f"job {number:02}")["id"] for number in range(0, 16, 2)}
    between = iter(range(1, 100, 2))
    found = every_page(api, f"/jobs?sort={sort}", make=lambda: api.job(f"job {next(between):02}"))
    ids = [job["id"] for job in found]
    assert len(ids) == len(set(ids))
    assert before <= set(ids)


def test_a_job_is_triggered_and_its_run_is_found(api: Caller, finish: Finish) -> None:
    job = api.job(parameters={"a": 1})["id"]
    answer = api(f"POST /jobs/{job}/trigger", json={"parameters": {"b": 2}, "note": "by hand"})
    assert answer.status_code == 202
    run = answer.json
    assert answer.headers["Location"].endswith(f"/api/v1/executions/{run['id']}")
    assert (run["status"], run["origin"], run["note"], run["parameters"]) == (
        "pending",
        "manual",
        "by hand",
        {"b": 2},
    )
    assert [item["id"] for item in api("GET /executions/pending").json["items"]] == [run["id"]]
    finish(output="hello\n")
    detail = api(f"GET /executions/{run['id']}").json
    assert (detail["status"], detail["version"], detail["job_name"]) == ("completed", 1, "greeter")
    assert detail["attempts"][0]["id"] == run["id"]
    summary = api(f"GET /jobs/{job}").json["execution_summary"]
    assert (summary["total"], summary["successful"], summary["success_rate"]) == (1, 1, 100.0)
    assert summary["last_execution"]["id"] == run["id"]
    stats = api(f"GET /jobs/{job}/stats?days=2").json
    assert len(stats["by_day"]) == 2
    assert stats["total"]["completed"] == 1
    assert api("GET /executions/statistics?days=1").json["total"]["completed"] == 1


def test_days_that_an_earlier_release_counted_say_that_they_count_attempts(
    api: Caller, finish: Finish, app: Flask
) -> None:
    job = api.job()["id"]
    api(f"POST /jobs/{job}/trigger")
    finish()
    for address in (f"/jobs/{job}/stats?days=3", "/executions/statistics?days=3"):
        found = api(f"GET {address}").json
        assert {one["counted_as"] for one in [found["total"], *found["by_day"]]} == {"chains"}
    with app.app_context():
        today = database.now(db.session())
        db.session.execute(sa.update(CronJob).values(attempts_until=today.date()))
        db.session.commit()
    for address in (f"/jobs/{job}/stats?days=3", "/executions/statistics?days=3"):
        found = api(f"GET {address}").json
        assert [one["counted_as"] for one in found["by_day"]] == ["chains", "chains", "attempts"]
        assert found["total"]["counted_as"] == "attempts"
    assert api(f"GET /jobs/{job}").json["attempts_until"] == today.date().isoformat()
    assert api("GET /stats").json["today"]["counted_as"] == "attempts"


def test_trigger_waits_for_the_end_if_asked_to(api: Caller, finish: Finish) -> None:
    job = api.job()["id"]
    answers: list[Any] = []
    caller = threading.Thread(target=lambda: answers.append(api(f"POST /jobs/{job}/trigger?wait=30")))
    caller.start()
    while caller.is_alive():
        finish()
        caller.join(0.05)
    assert answers[0].status_code == 200
    assert answers[0].json["status"] == "completed"


def test_trigger_that_waited_long_enough_answers_with_what_there_is(api: Caller) -> None:
    answer = api(f"POST /jobs/{api.job()['id']}/trigger?wait=1")
    assert (answer.status_code, answer.json["status"]) == (202, "pending")
    assert api(f"POST /jobs/{api.job('b')['id']}/trigger?wait=61").status_code == 422


def test_a_dead_job_is_listed_and_recovered(api: Caller, finish: Finish) -> None:
    job = api.job(max_retries=0)["id"]
    api(f"POST /jobs/{job}/trigger")
    finish(Status.FAILED, error="no luck")
    (dead,) = api("GET /dead-letters").json["items"]
    assert dead["id"] == job
    assert dead["in_dead_letter_queue"]
    assert dead["dead_letter_reason"]
    refused = api(f"POST /jobs/{job}/trigger")
    assert refused.json["error"]["message"] == "Job is in dead letter queue. Recover it first."
    recovered = api(f"POST /jobs/{job}/recover").json
    assert (recovered["enabled"], recovered["consecutive_failures"]) == (True, 0)
    assert api("GET /dead-letters").json["items"] == []


def test_disabling_gives_a_reason_and_enabling_a_next_slot(api: Caller) -> None:
    job = api.job(schedule_type="interval", interval_seconds=60)["id"]
    off = api(f"POST /jobs/{job}/disable", json={"reason": "holidays"}).json
    assert (off["enabled"], off["disabled_reason"], off["next_run_time"]) == (False, "holidays", None)
    assert api(f"GET /jobs/{job}/upcoming").json["slots"] == []
    on = api(f"POST /jobs/{job}/enable").json
    assert on["enabled"]
    slots = api(f"GET /jobs/{job}/upcoming?count=3").json["slots"]
    assert slots[0] == on["next_run_time"]
    assert len(slots) == 3


def test_upcoming_slots_end_where_the_job_does(api: Caller, rows: Session) -> None:
    twice = api.job("twice", schedule_type="interval", interval_seconds=60, max_runs=2)["id"]
    assert len(api(f"GET /jobs/{twice}/upcoming").json["slots"]) == 2
    after = api.job("after", schedule_type="interval", interval_seconds=60, interval_anchor="completion")[
        "id"
    ]
    assert len(api(f"GET /jobs/{after}/upcoming").json["slots"]) == 1
    manual = api(f"GET /jobs/{api.job('manual')['id']}/upcoming").json
    assert (manual["slots"], manual["warnings"]) == ([], [])
    rows.add(CronJob(name="by hand", schedule_type="cron", cron_expression="whenever", day_of_week="?"))
    rows.flush()
    rows.execute(typed(rows, "UPDATE CronJob SET parameters = '[1]' WHERE name = 'by hand'"))
    rows.commit()
    odd = next(job for job in api("GET /jobs").json["items"] if job["name"] == "by hand")
    assert "cron_expression" in odd["schedule"]
    assert api(f"GET /jobs/{odd['id']}").json["day_of_week"] == "?"
    assert api(f"GET /jobs/{odd['id']}/upcoming").json["slots"] == []


def test_versions_are_listed_read_compared_rolled_back_and_pruned(api: Caller) -> None:
    job = api.job()["id"]
    for greeting in ("salut", "ciao"):
        api(f"PATCH /jobs/{job}", json={"code": CODE.replace("hello", greeting), "message": greeting})
    listed = every_page(api, f"/jobs/{job}/versions")
    assert [(one["version_number"], one["is_current"]) for one in listed] == [
        (3, True),
        (2, False),
        (1, False),
    ]
    one_by_one = api(f"GET /jobs/{job}/versions?limit=1").json
    following = api(f"GET /jobs/{job}/versions?limit=1&cursor={one_by_one['next_cursor']}").json
    assert following["items"][0]["version_number"] == 2
    assert "+" in api(f"GET /jobs/{job}/versions/2").json["changes_from_previous"]
    code = api(f"GET /jobs/{job}/versions/2/code")
    assert code.mimetype == "text/plain"
    assert "salut" in code.text
    compared = api(f"GET /jobs/{job}/versions/compare?from=1&to=3&context=0").json
    assert compared["counts"]["changed"] == 1
    changed = next(row for row in compared["rows"] if row["kind"] == "changed")
    assert [part["text"] for part in changed["new"] if part["marked"]] == ["ciao"]
    assert api(f"POST /jobs/{job}/rollback", json={"version": 1}).json["current_version"] == 1
    unknown = api(f"POST /jobs/{job}/rollback", json={"version": 9})
    assert unknown.status_code == 422, "the address is right, what the body names is not"
    assert unknown.json["error"]["fields"]["version"].startswith(f"Version 9 not found for job {job}.")
    assert api("POST /jobs/999/rollback", json={"version": 1}).status_code == 404
    assert api(f"POST /jobs/{job}/versions/prune", json={"keep": 1}).json == {"removed": 1}
    stats = api("GET /contents/stats").json
    assert (stats["contents"], stats["versions"]) == (2, 2)
    digest = api(f"GET /jobs/{job}").json["version_info"]["content_hash"]
    found = api(f"GET /contents?hash={digest[:8].upper()}").json["items"]
    assert [one["content_hash"] for one in found] == [digest]
    assert api("GET /contents/orphaned").json == {"items": []}


def test_a_copy_is_disabled_and_has_the_code(api: Caller) -> None:
    job = api.job(tags=["x"])["id"]
    copy = api(f"POST /jobs/{job}/clone")
    assert copy.status_code == 201
    assert (copy.json["name"], copy.json["enabled"], copy.json["tags"]) == ("greeter (copy)", False, ["x"])
    assert api(f"POST /jobs/{job}/clone", json={"name": "twin"}).json["name"] == "twin"
    assert list(api(f"POST /jobs/{job}/clone", json={"name": "twin"}).json["error"]["fields"]) == ["name"]


def test_a_backfill_shows_its_slots_before_it_makes_runs(api: Caller) -> None:
    job = api.job(schedule_type="cron", cron_expression="0 * * * *")["id"]
    end = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    body = {"start": (end - timedelta(hours=3)).isoformat(), "end": end.isoformat()}
    dry = api(f"POST /jobs/{job}/backfill", json=body | {"dry_run": True}).json
    assert (dry["dry_run"], dry["runs"], len(dry["slots"])) == (True, 3, 3)
    assert api("GET /executions").json["items"] == []
    assert api(f"POST /jobs/{job}/backfill", json=body).json["runs"] == 3
    assert {run["origin"] for run in api("GET /executions").json["items"]} == {"backfill"}
    wrong = api(f"POST /jobs/{job}/backfill", json={"start": body["end"], "end": body["start"]})
    assert list(wrong.json["error"]["fields"]) == ["to"]


def test_a_bulk_action_is_shown_first_and_then_done(api: Caller) -> None:
    on, off = api.job("on")["id"], api.job("off", enabled=False)["id"]
    body = {"action": "enable", "ids": [on, off, 4711]}
    for dry_run in (True, False):
        answer = api("POST /jobs/bulk", json=body | {"dry_run": dry_run}).json
        assert [one["id"] for one in answer["done"]] == [off]
        assert [one["message"] for one in answer["refused"]] == [
            "Job is enabled already",
            "Job 4711 does not exist",
        ]
        assert api(f"GET /jobs/{off}").json["enabled"] != dry_run
    tagged = api("POST /jobs/bulk", json={"action": "tag", "filter": {"q": "o"}, "tags": ["new"]}).json
    assert [one["name"] for one in tagged["done"]] == ["off", "on"]
    assert len(api("GET /jobs?tag=new").json["items"]) == 2
    api("POST /jobs/bulk", json={"action": "untag", "ids": [on], "tags": ["new"]})
    assert [job["name"] for job in api("GET /jobs?tag=new").json["items"]] == ["off"]
    triggered = api("POST /jobs/bulk", json={"action": "trigger", "filter": {"status": "enabled"}}).json
    assert len(triggered["done"]) == 2
    assert len(api("GET /executions").json["items"]) == 2
    api("POST /jobs/bulk", json={"action": "delete", "filter": {}})
    assert api("GET /jobs").json["items"] == []
    for wrong, field in (
        ({"action": "explode", "ids": [1]}, "action"),
        ({"action": "tag", "ids": [1]}, "tags"),
        ({"action": "enable"}, "ids"),
        ({"action": "enable", "ids": [1], "filter": {}}, "ids"),
        ({"action": "enable", "ids": []}, "ids"),
        ({"action": "enable", "filter": {"sort": "name"}}, "filter"),
    ):
        assert list(api("POST /jobs/bulk", json=wrong).json["error"]["fields"]) == [field]


def test_a_schedule_is_previewed_and_code_checked_without_a_job(api: Caller) -> None:
    preview = api(
        "POST /schedules/preview",
        json={"schedule_type": "daily", "time_of_day": "02:30", "timezone": "Europe/Berlin", "count": 3},
    ).json
    assert len(preview["slots"]) == len(preview["local_slots"]) == 3
    assert "T02:30:00+0" in preview["local_slots"][0]
    assert preview["schedule"] == "At 02:30 every day, Europe/Berlin time"
    wrong = api("POST /schedules/preview", json={"schedule_type": "daily"}).json["error"]["fields"]
    assert wrong["time_of_day"].startswith("time_of_day is required for daily schedule type")
    assert api("POST /jobs/validate-code", json={"code": CODE}).json == {"valid": True, "problems": []}
    found = api("POST /jobs/validate-code", json={"code": "x = (\n"}).json
    assert not found["valid"]
    assert found["problems"][0]["line"] == 1


def test_jobs_go_out_as_a_file_and_come_back(api: Caller) -> None:
    parent = api.job("parent", tags=["x"])["id"]
    api.job("child", depends_on=[parent], schedule_type="daily", time_of_day="12:30")
    for form, kind in (("json", "application/json"), ("yaml", "application/yaml")):
        file = api(f"GET /jobs/export?format={form}")
        assert file.mimetype == kind
        same = api("POST /jobs/import", data=file.data, content_type=kind)
        assert same.status_code == 200, same.text
        assert [job["action"] for job in same.json["jobs"]] == ["unchanged", "unchanged"]
    document = api("GET /jobs/export").json
    document["jobs"][1]["tags"] = ["y"]
    document["jobs"].append({"name": "new", "code": CODE})
    dry = api("POST /jobs/import?dry_run=true", json=document).json
    done = api("POST /jobs/import?message=from+git", json=document).json
    assert (dry["dry_run"], dry["jobs"]) == (True, done["jobs"])
    by_name = {job["name"]: job for job in done["jobs"]}
    assert [by_name[name]["action"] for name in ("child", "parent", "new")] == [
        "unchanged",
        "update",
        "create",
    ]
    assert by_name["parent"]["fields"] == {"tags": {"before": ["x"], "after": ["y"]}}
    assert by_name["new"]["code_diff"].startswith("@@")
    (new,) = api("GET /jobs?q=new").json["items"]
    assert api(f"GET /jobs/{new['id']}").json["version_info"]["message"] == "from git"
    (one,) = api(f"GET /jobs/export?id={parent}").json["jobs"]
    assert one["name"] == "parent"
    assert api("GET /jobs/export?id=4711").status_code == 404


def test_a_job_file_with_a_mistake_changes_nothing_and_is_told_where(api: Caller) -> None:
    wrong = {"jobs": [{"name": "a", "code": CODE}, {"name": "b", "schedule_type": "daily", "code": "x"}]}
    refused = api("POST /jobs/import", json=wrong)
    assert refused.status_code == 422
    assert refused.json["error"]["fields"].keys() == {"b.time_of_day", "b.code"}
    assert api("GET /jobs").json["items"] == []
    for text in (b"a: [", b"- a", b"!!python/object/apply:os.system [id]", b"a: &x 1\nb: *x", b"\xff"):
        assert api("POST /jobs/import", data=text, content_type="application/yaml").status_code == 400
    assert api("POST /jobs", data=b"name: a", content_type="application/yaml").status_code == 415


def test_workers_locks_and_standing_are_told(api: Caller, rows: Session, app: Flask) -> None:
    add_worker(rows, host="<b>host</b>", tags="gpu,")
    (worker,) = api("GET /workers").json["items"]
    assert (worker["host"], worker["state"], worker["tags"]) == ("<b>host</b>", "alive", ["gpu"])
    job = api.job(max_retries=0)["id"]
    run = api(f"POST /jobs/{job}/trigger").json["id"]
    with app.app_context():
        lifecycle.claim(db.session(), "gone:1:a", (), 1, 60.0)
    (lock,) = api("GET /locks").json["items"]
    assert (lock["execution_id"], lock["locked_by"], lock["stale"]) == (run, "gone:1:a", False)
    assert api("GET /locks/stale").json["items"] == []
    standing = api("GET /stats").json
    assert (standing["jobs"], standing["running"], standing["workers"]) == (1, 1, 1)
    assert api(f"POST /locks/{run}/release").json["status"] == "lost"
    assert api(f"POST /locks/{run}/release").status_code == 409
    assert api("GET /locks").json["items"] == []


def test_changes_are_found_by_who_made_them(api: Caller, callers: dict[str, Caller]) -> None:
    job = callers["editor"].job()["id"]
    callers["operator"](f"POST /jobs/{job}/disable")
    (entry,) = api("GET /audit?actor=token:test operator").json["items"]
    assert (entry["action"], entry["source"], entry["subject_id"], entry["ip"]) == (
        "disable",
        "api",
        str(job),
        "127.0.0.1",
    )
    assert api("GET /audit?to=2020-01-01T00:00:00Z").json["items"] == []


@pytest.mark.parametrize("path", ["/openapi.json", "/docs"])
def test_the_description_needs_no_token(callers: dict[str, Caller], path: str) -> None:
    assert callers["anonymous"](f"GET {path}").status_code == 200


def test_why_says_in_a_sentence_and_reasons_what_a_job_waits_for(everywhere: Caller) -> None:
    job = everywhere.job(schedule_type="daily", time_of_day="02:30")
    answer = everywhere(f"GET /jobs/{job['id']}/why").json
    assert answer["verdict"] == f'Job {job["id"]} "greeter" is not due yet.'
    assert [reason["code"] for reason in answer["reasons"]] == ["next_slot", "no_worker"]
    everywhere(f"POST /jobs/{job['id']}/disable", json={"reason": "holidays"})
    (reason,) = everywhere(f"GET /jobs/{job['id']}/why").json["reasons"]
    assert reason["code"] == "disabled"
    assert reason["text"].endswith(": holidays")
    assert datetime.fromisoformat(reason["since"]).tzinfo is not None
    everywhere(f"DELETE /jobs/{job['id']}")
    assert everywhere(f"GET /jobs/{job['id']}/why").json["reasons"][0]["code"] == "deleted"
    assert everywhere("GET /jobs/4711/why").status_code == 404
