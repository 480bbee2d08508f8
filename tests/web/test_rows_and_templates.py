"""No template is given a row of a table: what a page says of one, a view says, as API and commands do.

The fixture `no_row_reaches_a_template` of tests/conftest.py watches in every test; here every page is rendered, with
something of everything in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from flask import Flask, render_template_string

from kytecron.store.models import CronJob, CronUser
from tests import rendered
from tests.pages import ASKED, Visitor, database
from tests.security.test_access_table import PAGES


@pytest.mark.parametrize("part", [False, True], ids=["page", "part"])
@pytest.mark.parametrize("address", [one.removeprefix("GET ") for one in PAGES if one.startswith("GET ")])
def test_no_page_is_given_a_row(
    admin: Visitor, lived_in: dict[str, object], address: str, part: bool
) -> None:
    rendered.rendered.clear()
    answer = admin.get(address.format(**lived_in) + ASKED.get(address, ""), part=part)
    assert answer.status_code in ((200, 204, 303) if part or address == "/sign-in" else (200,)), answer.text
    if answer.status_code == 200 and answer.mimetype == "text/html":
        assert rendered.rendered, "nothing was looked at"
    assert rendered.offences == []


def test_every_template_that_extends_another_was_looked_at(
    admin: Visitor, lived_in: dict[str, object]
) -> None:
    rendered.rendered.clear()
    for address in (one.removeprefix("GET ") for one in PAGES if one.startswith("GET ")):
        admin.get(address.format(**lived_in) + ASKED.get(address, ""))
    pages = {
        name for name in admin.app.jinja_env.list_templates() if not name.rpartition("/")[2].startswith("_")
    }
    assert pages - rendered.rendered <= {
        *("base.html", "base_bare.html", "api/docs.html", "errors/error.html"),
        "auth/sign_in.html",  # whoever is signed in is led on
    }


@dataclass(frozen=True)
class _Box:
    """A value that holds another."""

    inside: object


def test_a_row_is_found_wherever_it_hides(app: Flask) -> None:
    job, user = CronJob(name="x"), CronUser(username="x")
    for hidden in (job, [user], {"a": (user,)}, _Box(job), [{"deep": _Box({"er": [job]})}]):
        assert list(rendered.rows_in({"given": hidden}))
    with database(app) as session:
        row = session.connection().exec_driver_sql("SELECT 1 AS one").one()
        assert list(rendered.rows_in([row])) == ["[0] (Row)"]
    assert list(rendered.rows_in({"given": ["a", 1, None, {"b": _Box("c")}, b"d"]})) == []
    with app.test_request_context():
        render_template_string("{{ job.name }}", job=job)
    assert [one.partition(" is given ")[2] for one in rendered.offences] == ["job (CronJob)"]
    rendered.offences.clear()
