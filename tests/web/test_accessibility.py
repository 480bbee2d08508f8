"""axe finds nothing, of any impact, on any page: in both themes, on a desk and on a phone."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from flask import Flask
from playwright.sync_api import Browser, Page
from werkzeug.serving import make_server

from kytecron.services import accounts
from kytecron.services.audit import Actor
from tests.pages import ASKED, database
from tests.security.test_access_table import PAGES

pytestmark = [pytest.mark.browser, pytest.mark.slow]

NO_PAGES = {
    "/sign-in",  # whoever is signed in is led on; it is looked at before
    "/sign-in/{token}",
    "/jobs/{job_id}/versions/{number}/code",
    "/executions/{execution_id}/log",
    "/jobs/preview",  # parts of the form
    "/jobs/parents",
}
ADDRESSES = [
    address
    for one in PAGES
    if one.startswith("GET ") and (address := one.removeprefix("GET ")) not in NO_PAGES
]
OTHERS = ["/nowhere", "/jobs?status=failing", "/executions?status=lost", "/executions?from=x", "/api/v1/docs"]
"""A page that does not exist, lists without rows, a mistake, the API's own page."""


@pytest.fixture
def url(app: Flask) -> Iterator[str]:
    """Where the app answers."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_page_puts_anybody_off(
    app: Flask, lived_in: dict[str, object], url: str, browser: Browser, theme: str, width: int
) -> None:
    with database(app) as session:
        accounts.create_user(session, "maria", None, "admin", Actor("test"))
        link = accounts.create_sign_in_link(session, Actor("test"), "maria")
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)  # type: ignore[arg-type]
    page = context.new_page()
    found: dict[str, list[str]] = {}
    for address in ("/sign-in", f"/sign-in/{link}"):
        page.goto(url + address)
        found[address] = _violations(page)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/account**")
    for address in [*ADDRESSES, *OTHERS]:
        page.goto(url + address.format(**lived_in) + ASKED.get(address, ""))
        page.wait_for_load_state("networkidle")
        found[address] = _violations(page)
    context.close()
    wrong = [f"{address}: {one}" for address, ones in found.items() for one in ones]
    assert not wrong, "\n" + "\n".join(wrong)


def _violations(page: Page) -> list[str]:
    """What axe says, each with where it is and what it saw."""
    return [
        f"{one['id']} ({one['impact']}): {node['target']} {node['html'][:160]} {_why(node)}"
        for one in Axe().run(page).response["violations"]
        for node in one["nodes"][:3]
    ]


def _why(node: dict[str, list[dict[str, str]]]) -> str:
    return "; ".join(check["message"] for kind in ("any", "all", "none") for check in node[kind])[:200]
