"""If-Match and Idempotency-Key: never ignored, and they do what they promise, also between many callers at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from .conftest import CODE, Caller

KEY = "4a1f0e3c-one"


def keyed(api: Caller, rule: str, key: str = KEY, **options: object) -> TestResponse:
    return api(rule, headers={"Idempotency-Key": key}, **options)


def runs(api: Caller) -> list[int]:
    return [run["id"] for run in api("GET /executions").json["items"]]


# -- If-Match ------------------------------------------------------------------------------------------------


def test_every_answer_about_one_job_carries_its_etag_and_a_change_another(api: Caller) -> None:
    made = api("POST /jobs", json={"name": "greeter", "code": CODE})
    path = f"/jobs/{made.json['id']}"
    read = api(f"GET {path}")
    assert made.headers["ETag"] == read.headers["ETag"]
    changed = api(f"PATCH {path}", json={"priority": 7})
    coded = api(f"PATCH {path}", json={"code": CODE.replace("hello", "bye")})
    tags = [one.headers["ETag"] for one in (made, changed, coded)]
    assert len(set(tags)) == 3


@pytest.mark.parametrize(
    ("rule", "body"),
    [
        ("PATCH", {"priority": 1}),
        ("PATCH", {}),
        ("DELETE", None),
        ("POST /rollback", {"version": 1}),
        ("POST /disable", {}),
        ("POST /enable", None),
        ("POST /clone", {}),
        ("POST /trigger", {}),
        ("POST /versions/prune", {"keep": 1}),
        ("GET", None),
    ],
)
def test_a_stale_tag_stops_whatever_is_asked(everywhere: Caller, rule: str, body: object) -> None:
    api = everywhere
    job = api.job()
    tag = api(f"GET /jobs/{job['id']}").headers["ETag"]
    api(f"PATCH /jobs/{job['id']}", json={"priority": 9, "code": CODE.replace("hello", "bye")})
    before = api(f"GET /jobs/{job['id']}").json
    method, _, path = rule.partition(" ")
    answer = api(f"{method} /jobs/{job['id']}{path}", json=body, headers={"If-Match": tag})
    assert answer.status_code == 412
    assert answer.json["error"]["code"] == "precondition_failed"
    now = api(f"GET /jobs/{job['id']}")
    assert now.json == before
    assert answer.json["error"]["details"]["etag"] == now.headers["ETag"]
    assert runs(api) == []
    # With the present one it goes through.
    again = api(
        f"{method} /jobs/{job['id']}{path}", json=body, headers={"If-Match": f'"0-0", {now.headers["ETag"]}'}
    )
    assert again.status_code < 300, again.text


def test_a_stale_change_is_shown_both_sides(api: Caller) -> None:
    job = api.job()
    tag = api(f"GET /jobs/{job['id']}").headers["ETag"]
    theirs, yours = (CODE.replace("hello", word).strip() + "\n" for word in ("theirs", "yours"))
    api(f"PATCH /jobs/{job['id']}", json={"priority": 9, "code": theirs})
    mine = {"priority": 1, "description": "mine", "code": yours}
    error = api(f"PATCH /jobs/{job['id']}", json=mine, headers={"If-Match": tag}).json["error"]
    assert error["details"]["changed_by"] == "token:test admin"
    assert error["details"]["fields"] == {
        "priority": {"theirs": 9, "yours": 1},
        "description": {"theirs": "", "yours": "mine"},
        "code": {"theirs": theirs, "yours": yours},
    }


def test_of_many_changes_from_one_state_one_is_made(everywhere: Caller) -> None:
    api = everywhere
    job = api.job()
    tag = api(f"GET /jobs/{job['id']}").headers["ETag"]

    def change(number: int) -> int:
        caller = Caller(api.client.application.test_client(), api.token)
        body = {"description": f"by {number}"}
        return caller(f"PATCH /jobs/{job['id']}", json=body, headers={"If-Match": tag}).status_code

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(change, range(4))) == [200, 412, 412, 412]


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("*", 200),
        (" * ", 200),
        ('W/"{}"', 412),
        ('W/"{}", "{}"', 200),
        ('"a",,"{}",', 200),
        ('""', 412),
        ("{}", 400),
        ('"{}', 400),
        ('"{}" "b"', 400),
        ("", 412),
        ('*, "{}"', 400),
        ('w/"{}"', 400),
    ],
)
def test_if_match_is_read_as_the_standard_says(api: Caller, header: str, status: int) -> None:
    job = api.job()
    tag = api(f"GET /jobs/{job['id']}").headers["ETag"].strip('"')
    answer = api(
        f"PATCH /jobs/{job['id']}", json={"priority": 1}, headers={"If-Match": header.replace("{}", tag)}
    )
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize(
    ("name", "value"),
    [("If-None-Match", "*"), ("If-Unmodified-Since", "Wed, 21 Oct 2015 07:28:00 GMT")],
)
def test_a_condition_that_is_not_read_is_refused_where_something_changes(
    api: Caller, name: str, value: str
) -> None:
    job = api.job()["id"]
    answer = api(f"PATCH /jobs/{job}", json={"priority": 7}, headers={name: value})
    assert answer.status_code == 400
    assert f"{name} is not read here" in answer.json["error"]["message"]
    assert api(f"GET /jobs/{job}", headers={name: value}).json["priority"] == 5


def test_where_there_is_no_etag_a_tag_matches_nothing(api: Caller) -> None:
    assert (
        api("POST /jobs", json={"name": "a", "code": CODE}, headers={"If-Match": '"1-1"'}).status_code == 412
    )
    assert api("GET /jobs", headers={"If-Match": '"1-1"'}).status_code == 412
    assert api("GET /jobs", headers={"If-Match": "*"}).status_code == 200
    assert api("PATCH /jobs/4711", json={}, headers={"If-Match": '"1-1"'}).status_code == 404


# -- Idempotency-Key -----------------------------------------------------------------------------------------


def test_the_same_request_with_the_same_key_is_one(everywhere: Caller) -> None:
    api = everywhere
    body = {"name": "greeter", "code": CODE, "overlap_policy": "allow"}
    first, again = (keyed(api, "POST /jobs", json=body) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.data == again.data
    assert first.headers["Location"] == again.headers["Location"]
    assert first.headers["ETag"] == again.headers["ETag"]
    assert first.content_type == again.content_type
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"


CHANGES = (
    ("trigger", {"note": "x"}),
    ("clone", {}),
    ("backfill", {"start": "2026-01-01T00:00:00Z", "end": "2026-01-01T02:00:00Z"}),
    ("disable", {"reason": "x"}),
    ("versions/prune", {"keep": 1}),
)


@pytest.mark.parametrize(("what", "body"), CHANGES)
def test_every_change_of_a_job_keeps_its_answer(api: Caller, what: str, body: object) -> None:
    job = api.job(schedule_type="cron", cron_expression="0 * * * *", overlap_policy="allow")["id"]
    first, again = (keyed(api, f"POST /jobs/{job}/{what}", json=body) for _ in range(2))
    assert first.status_code < 300, first.text
    assert (first.status_code, first.data) == (again.status_code, again.data)
    assert again.headers["Idempotent-Replayed"] == "true"
    audit = [entry["action"] for entry in api("GET /audit?subject_type=job").json["items"]]
    assert len(audit) == len(set(audit))


def test_a_bulk_action_an_import_and_a_deletion_keep_their_answers(api: Caller) -> None:
    job = api.job(overlap_policy="allow")["id"]
    for rule, body in (
        ("POST /jobs/bulk", {"action": "trigger", "ids": [job]}),
        ("POST /jobs/import", {"jobs": [{"name": "new", "code": CODE}]}),
        (f"DELETE /jobs/{job}", None),
    ):
        first, again = (keyed(api, rule, key=rule.replace(" ", ""), json=body) for _ in range(2))
        assert first.status_code < 300, first.text
        assert (first.status_code, first.data) == (again.status_code, again.data)
        assert again.headers["Idempotent-Replayed"] == "true"
    assert len(runs(api)) == 1


def test_a_key_with_another_request_is_refused(api: Caller) -> None:
    job = api.job(overlap_policy="allow")["id"]
    keyed(api, f"POST /jobs/{job}/trigger", json={"note": "a"})
    for rule, body in (
        (f"POST /jobs/{job}/trigger", {"note": "b"}),
        (f"POST /jobs/{job}/trigger?wait=1", {"note": "a"}),
        (f"POST /jobs/{job}/clone", {}),
        ("POST /jobs/4711/trigger", {"note": "a"}),
    ):
        answer = keyed(api, rule, json=body)
        assert answer.status_code == 422
        assert "another request" in answer.json["error"]["fields"]["Idempotency-Key"]
    assert len(runs(api)) == 1


def test_each_caller_has_keys_of_its_own(callers: dict[str, Caller]) -> None:
    job = callers["editor"].job(overlap_policy="allow")["id"]
    for person in ("operator", "editor"):
        assert "Idempotent-Replayed" not in keyed(callers[person], f"POST /jobs/{job}/trigger").headers
    assert len(runs(callers["viewer"])) == 2


def test_many_at_once_with_one_key_trigger_once(everywhere: Caller) -> None:
    api = everywhere
    job = api.job(overlap_policy="allow")["id"]

    def ask(_: int) -> TestResponse:
        return keyed(Caller(api.client.application.test_client(), api.token), f"POST /jobs/{job}/trigger")

    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(ask, range(5)))
    assert {one.status_code for one in answers} == {202}
    assert len({one.data for one in answers}) == 1
    assert len(runs(api)) == 1


def test_what_was_refused_may_come_again_with_its_key(api: Caller) -> None:
    job = api.job(enabled=False)["id"]
    assert keyed(api, f"POST /jobs/{job}/trigger").status_code == 409
    api(f"POST /jobs/{job}/enable")
    assert keyed(api, f"POST /jobs/{job}/trigger").status_code == 202
    assert len(runs(api)) == 1


@pytest.mark.parametrize("key", ["", " ", "a b", "é", "x" * 256, '""'])
def test_a_key_that_is_none_is_malformed(api: Caller, key: str) -> None:
    job = api.job()["id"]
    answer = keyed(api, f"POST /jobs/{job}/trigger", key=key)
    if key == '""':  # two quotes are two printable characters
        assert answer.status_code == 202
        return
    assert (answer.status_code, answer.json["error"]["code"]) == (400, "malformed")
    assert runs(api) == []


def test_a_key_in_quotes_is_the_same_key(api: Caller) -> None:
    job = api.job()["id"]
    assert keyed(api, f"POST /jobs/{job}/trigger", key=f'"{KEY}"').status_code == 202
    assert "Idempotent-Replayed" in keyed(api, f"POST /jobs/{job}/trigger").headers


def test_addresses_carry_the_prefix_of_the_proxy(app: Flask, api: Caller) -> None:
    options = {"environ_overrides": {"SCRIPT_NAME": "/cron"}}
    made = api("POST /jobs", json={"name": "greeter", "code": CODE}, **options)
    assert made.headers["Location"] == f"/cron/api/v1/jobs/{made.json['id']}"
    run = api(f"POST /jobs/{made.json['id']}/trigger", **options)
    assert run.headers["Location"] == f"/cron/api/v1/executions/{run.json['id']}"
    assert api("GET /openapi.json", **options).json["servers"] == [{"url": "/cron"}]
    assert api("GET /openapi.json").json["servers"] == [{"url": "/"}]
