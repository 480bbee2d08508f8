"""The form and the page of a job have every field of core.fields, under its label."""

from __future__ import annotations

import re

import pytest
from flask import Flask

from kytecron.core.fields import FIELDS, LABELS, Group
from tests.core.test_fields import TOLD_BY_THE_PAGE_ITSELF
from tests.pages import Visitor, form_of, make_job, text_of

WHERE_IT_IS_CALLED_SOMETHING_ELSE = {"enabled": "Enable at once"}


@pytest.fixture
def form(app: Flask, editor: Visitor) -> str:
    return editor.get("/jobs/new").text


@pytest.mark.parametrize("name", FIELDS)
def test_the_form_has_a_control_for_each_field_under_its_label(
    app: Flask, editor: Visitor, name: str
) -> None:
    make_job(app, "a parent to choose")
    page = editor.get("/jobs/new").text
    assert re.search(rf'name="{name}"', page), f"no control named {name}"
    assert WHERE_IT_IS_CALLED_SOMETHING_ELSE.get(name, LABELS[name]) in text_of(page)
    if (unit := FIELDS[name].unit) and f'id="f-{name}"' in page:
        box = page[page.index(f'id="f-{name}"') :][:400]
        assert f'<span class="suffix">{unit}</span>' in box


def test_the_form_has_every_group_under_its_title(form: str) -> None:
    for group in Group:
        assert re.search(rf"<(h2|summary)>{group}</", form), group


def test_what_is_wrong_is_told_by_labels_and_once(editor: Visitor) -> None:
    typed = form_of(editor.get("/jobs/new").text, "/jobs/new")
    typed["name"] = "wrong"
    typed["timeout_seconds"] = "0"
    typed["timezone"] = "Berlin"
    typed["schedule_type"], typed["time_of_day"] = "daily", ""
    text = text_of(editor.post("/jobs/new", data=typed).text)
    assert text.count("Time limit must be at least 1 second") == 1
    assert "Time of day is required for daily schedule type" in text
    assert "Invalid Time zone 'Berlin'" in text
    assert "timeout_seconds" not in text
    assert "time_of_day" not in text


def test_what_is_no_fact_is_told_by_the_page_itself(app: Flask, viewer: Visitor) -> None:
    parent = make_job(app, "extract")
    common = {"description": "Loads what was extracted.", "tags": ["etl"], "parameters": {"region": "eu"}}
    told = {
        "name": (make_job(app, "load", **common), "load"),
        "description": (None, "Loads what was extracted."),
        "tags": (None, "etl"),
        "parameters": (None, '{ "region": "eu" }'),
        "enabled": (make_job(app, "off", enabled=False), "This job is disabled"),
        "depends_on": (make_job(app, "gated", depends_on=[parent.id]), "extract"),
        "dependency_mode": (
            make_job(app, "triggered", depends_on=[parent.id], dependency_mode="trigger"),
            "Runs as soon as all of these have completed",
        ),
        "schedule_type": (None, "Only when triggered"),
        "cron_expression": (
            make_job(app, "cron", schedule_type="cron", cron_expression="30 2 * * 1-5"),
            "At 02:30, Monday through Friday",
        ),
        "interval_seconds": (
            make_job(app, "every", schedule_type="interval", interval_seconds=90),
            "Every 1 minute 30 seconds",
        ),
        "day_of_week": (
            make_job(
                app,
                "week",
                schedule_type="weekly",
                day_of_week=[1, 3],
                time_of_day="08:00",
                timezone="Asia/Tokyo",
            ),
            "every Monday and Wednesday",
        ),
        "time_of_day": (None, "At 08:00"),
        "timezone": (None, "Asia/Tokyo time"),
        "day_of_month": (
            make_job(app, "month", schedule_type="monthly", day_of_month=3, time_of_day="08:00"),
            "on the 3rd of every month",
        ),
    }
    assert told.keys() == TOLD_BY_THE_PAGE_ITSELF
    shown = {job.id: text_of(viewer.get(f"/jobs/{job.id}").text) for job, _ in told.values() if job}
    for name, (job, said) in told.items():
        where = shown[job.id] if job else " ".join(shown.values())
        assert said in where, f"the page does not tell {name}"
