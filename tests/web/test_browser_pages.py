"""The product as a person uses it: a real browser, a real web server, a real worker."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect
from sqlalchemy.orm import Session

from kytecron.config import ROOT, Settings
from kytecron.services import accounts
from kytecron.services.audit import Actor
from kytecron.services.jobs import CronJobManager
from kytecron.store import db, queries, schema
from kytecron.store.models import CronJob
from tests.mariadb import free_port
from tests.pages import HELLO
from tests.workers import wait_for, working

pytestmark = pytest.mark.browser

SLOW = """import time


class Slow(CronJobBase):
    def execute(self):
        for number in range(600):
            self.log(f"\\x1b[32mstep {number}\\x1b[0m <b>")
            self.progress(number / 6, "counting")
            time.sleep(0.1)
"""
FAILING = """class Failing(CronJobBase):
    def execute(self):
        print("looking for the disk")
        raise OSError("no disk <i>")
"""


@dataclass
class Site:
    """A running kytecron."""

    url: str
    session: Session

    def job(self, name: str, code: str = HELLO, **fields: object) -> CronJob:
        self.session.rollback()
        values = {"name": name, "code": code, "schedule_type": "manual"} | fields
        return CronJobManager(self.session, Actor("test")).create_job(**values)

    def link(self, username: str = "maria") -> str:
        """The address of a one-time sign-in link."""
        self.session.rollback()
        return f"{self.url}/sign-in/{accounts.create_sign_in_link(self.session, Actor('test'), username)}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[Site]:
    """gunicorn and a worker on a database of their own."""
    settings = Settings(instance_path=tmp_path_factory.mktemp("site"))
    engine = db.make_engine(settings)
    schema.upgrade(engine)
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KYTECRON_")}
    log = (settings.instance_path / "web.log").open("wb")
    web = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--worker-class", "gthread",
         "--threads", "8", "wsgi:app"],
        cwd=ROOT, env=environment | {"KYTECRON_INSTANCE_PATH": str(settings.instance_path)}, stdout=log, stderr=log,
    )  # fmt: skip
    try:
        with db.make_sessions(engine)() as session, working(settings):
            site = Site(f"http://127.0.0.1:{port}", session)
            wait_for(lambda: answers(site.url), "gunicorn to answer")
            accounts.first_start_link(session)
            accounts.create_user(session, "maria", None, "admin", Actor("test"))
            yield site
    finally:
        web.terminate()
        web.wait(30)
        log.close()
        engine.dispose()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def signed_in(site: Site, browser: Browser) -> Iterator[BrowserContext]:
    """An administrator's browser."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(site.link())
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Your account")).to_be_visible()
    page.close()
    yield context
    context.close()


@pytest.fixture
def page(site: Site, signed_in: BrowserContext) -> Iterator[Page]:
    """A page of the administrator's; the test fails if the console told of an error or a refused style or script."""
    page = signed_in.new_page()
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    yield page
    page.close()
    # A form that came back with errors is a 422, which chromium notes as well.
    assert [text for text in troubles if "status of 422" not in text] == []


def overflow(page: Page) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def refresh(page: Page) -> None:
    """What happens every few seconds, now; returns when the answer is in the page."""
    with page.expect_response(lambda response: response.request.headers.get("hx-request") == "true"):
        page.evaluate("document.dispatchEvent(new CustomEvent('kytecron:refresh'))")


# -- the first visit -----------------------------------------------------------------------------------------


def test_a_visitor_signs_in_by_link_makes_a_job_and_sees_it_run(site: Site, browser: Browser) -> None:
    context = browser.new_context()
    page = context.new_page()
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.goto(site.link("admin"))
    page.reload()  # looking does not spend it
    page.get_by_role("button", name="Sign in").click()
    page.locator("#f-password").fill("a password of some length")
    page.get_by_label("Repeat the new password").fill("a password of some length")
    page.get_by_role("button", name="Save password").click()
    page.get_by_role("link", name="Create the first job").click()
    expect(page.get_by_role("heading", name="New job")).to_be_visible()
    page.locator("#f-name").fill("first of all")
    page.get_by_label("Every").fill("1")
    expect(page.locator("#preview")).to_contain_text("Every second")
    page.get_by_role("button", name="Create job").click()
    expect(page.get_by_role("status").first).to_contain_text("first of all is created. It runs next")
    row = page.locator("#overview tbody tr").first
    expect(row).to_contain_text("Completed", timeout=15_000)
    row.get_by_role("link").first.click()
    expect(page.locator("#log")).to_contain_text("Hello World")
    job = CronJobManager(site.session).find("first of all")
    CronJobManager(site.session).disable(job.id)
    assert not troubles
    context.close()


# -- every page ----------------------------------------------------------------------------------------------


def test_no_page_scrolls_sideways_or_breaks_the_policy(site: Site, page: Page, tmp_path: Path) -> None:
    """At the width of a phone and of a laptop; the fixture looks at the console."""
    long_name = "a-name-without-any-place-to-break-it-that-goes-on-and-on-" * 3
    job = site.job(
        long_name, FAILING, max_retries=0, tags="one,two", description="https://example.org/" + "x" * 200
    )
    CronJobManager(site.session).update_code(job.id, FAILING + "# " + "y" * 300 + "\n", message="z" * 400)
    run = CronJobManager(site.session).trigger(job.id, parameters={"key": "v" * 300}, note="n" * 300)
    page.goto(f"{site.url}/executions/{run.id}")
    expect(page.locator("#state")).to_contain_text("OSError")
    paths = [
        "/", "/jobs", f"/jobs/{job.id}", "/jobs/new", f"/jobs/{job.id}/edit", f"/jobs/{job.id}/trigger",
        f"/jobs/{job.id}/executions", f"/jobs/{job.id}/versions", f"/jobs/{job.id}/versions/1", f"/jobs/{job.id}/code",
        f"/jobs/{job.id}/versions/compare?from=1&to=2", "/executions", f"/executions/{run.id}", "/dead-letters",
        "/workers", "/storage", "/users", "/audit", "/account", "/secrets", "/settings",
    ]  # fmt: skip
    wide = []
    for path in paths:
        response = page.goto(site.url + path)
        assert response is not None
        assert response.status == 200, path
        for width in (375, 1280):
            page.set_viewport_size({"width": width, "height": 800})
            if overflow(page):
                wide.append((path, width, overflow(page)))
    assert not wide


def test_errors_and_signing_in_fit_a_phone_too(site: Site, browser: Browser) -> None:
    context = browser.new_context(viewport={"width": 375, "height": 700}, color_scheme="dark")
    page = context.new_page()
    for path in ("/sign-in", "/sign-in/spent", "/nothing/" + "x" * 200):
        page.goto(site.url + path)
        assert overflow(page) == 0, path
    context.close()


# -- the list ------------------------------------------------------------------------------------------------


def test_a_list_refreshes_without_losing_filters_focus_or_an_open_menu(site: Site, page: Page) -> None:
    for name in ("alpha", "alphabet", "beta"):
        site.job(name)
    page.goto(f"{site.url}/jobs")
    page.keyboard.press("/")
    page.keyboard.type("alph")
    expect(page.locator("#jobs tbody tr")).to_have_count(2)
    expect(page).to_have_url(re.compile(r"q=alph"))
    page.keyboard.type("abet")
    expect(page.locator("#jobs tbody tr")).to_have_count(1)
    menu = page.locator("#jobs details.menu")
    menu.locator("summary").click()
    page.locator("#jobs-q").focus()
    site.job("alphabetical")
    refresh(page)
    expect(page.locator("#jobs tbody tr")).to_have_count(2)
    expect(page.locator("#jobs-q")).to_be_focused()
    expect(page.locator("#jobs-q")).to_have_value("alphabet")
    expect(menu.first).to_have_attribute("open", "")
    page.reload()
    expect(page.locator("#jobs tbody tr")).to_have_count(2)


@pytest.mark.parametrize(("region", "field"), [("jobs", "q"), ("executions", "text")])
def test_a_refresh_that_comes_late_does_not_undo_a_filter(
    site: Site, page: Page, region: str, field: str
) -> None:
    job = site.job(f"late {region}")
    CronJobManager(site.session).trigger(job.id)
    rows = page.locator(f"#{region} tbody tr")
    page.goto(f"{site.url}/{region}")
    expect(rows).not_to_have_count(0)
    late: list[Route] = []

    def hold_back(route: Route) -> None:
        if "xyz" in route.request.url:
            route.continue_()
        else:
            late.append(route)

    page.route(re.compile(rf"/{region}"), hold_back)
    page.evaluate("document.dispatchEvent(new CustomEvent('kytecron:refresh'))")
    wait_for(lambda: page.wait_for_timeout(10) or late, "a refresh under way")
    page.locator(f"#{region}-{field}").fill("xyz")
    expect(rows).to_have_count(0)
    for route in late:
        route.continue_()
    page.wait_for_timeout(500)
    expect(rows).to_have_count(0)


def test_actions_in_a_list_tell_their_outcome_and_show_it(site: Site, page: Page) -> None:
    job = site.job("press me")
    page.goto(f"{site.url}/jobs?q=press")
    page.get_by_role("button", name="Run now: press me").click()
    expect(page.locator(".toast")).to_contain_text("Queued as run")
    expect(page.locator(f"#job-{job.id}")).to_contain_text("Completed", timeout=10_000)
    page.locator(f"#job-{job.id} details.menu summary").click()
    page.get_by_role("button", name="Disable").click()
    expect(page.locator(f"#job-{job.id}")).to_contain_text("Disabled")


def test_a_double_click_starts_one_run_and_shows_one_message(site: Site, page: Page) -> None:
    job = site.job("pressed twice", overlap_policy="allow")
    page.goto(f"{site.url}/jobs?q=pressed")
    under_way: list[str] = []
    page.on("request", lambda sent: under_way.append(sent.url) if sent.method == "POST" else None)
    page.on("requestfinished", lambda sent: under_way.remove(sent.url) if sent.method == "POST" else None)
    page.get_by_role("button", name="Run now: pressed twice").dblclick()
    expect(page.locator(".toast").first).to_contain_text("Queued as run #")
    while under_way:
        page.wait_for_timeout(50)
    expect(page.locator(".toast")).to_have_count(1)
    site.session.rollback()
    wanted = queries.ExecutionFilter(job=job.id)
    assert len(queries.executions(site.session, wanted).items) == 1


@pytest.mark.parametrize(("zone", "told"), [("Europe/Berlin", 0), ("Europe/Paris", 0), ("Asia/Tokyo", 5)])
def test_a_slot_is_told_in_the_viewers_time_where_that_is_another(
    site: Site, browser: Browser, zone: str, told: int
) -> None:
    job = site.job(f"seen from {zone}", schedule_type="daily", time_of_day="02:30", timezone="Europe/Berlin")
    context = browser.new_context(timezone_id=zone)
    page = context.new_page()
    page.goto(site.link())
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/account")
    page.goto(f"{site.url}/jobs/{job.id}")
    expect(page.locator("time[data-beside]:not([hidden])")).to_have_count(told)
    context.close()


def test_keys_lead_everywhere(site: Site, page: Page) -> None:
    page.goto(site.url)
    for keys, heading in (
        (("g", "j"), "Jobs"),
        (("g", "e"), "Executions"),
        (("g", "l"), "Dead letters"),
        (("g", "d"), "Dashboard"),
    ):
        for key in keys:
            page.keyboard.press(key)
        expect(page.get_by_role("heading", level=1, name=heading)).to_be_visible()
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    expect(page.get_by_placeholder("Find a job")).to_be_focused()


# -- the form ------------------------------------------------------------------------------------------------


def test_the_form_follows_the_type_and_tells_what_will_happen_while_one_types(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/jobs/new")
    preview = page.locator("#preview")
    expect(preview).to_contain_text("Every minute")
    page.get_by_text("Daily", exact=True).click()
    expect(page.get_by_label("Every")).to_be_hidden()
    expect(preview).to_contain_text("Time of day is required")
    page.get_by_label("Time of day").fill("02:30")
    page.get_by_label("Time zone").fill("Europe/Berlin")
    expect(preview).to_contain_text("At 02:30 every day, Europe/Berlin time")
    expect(preview).to_contain_text("the clock goes from 02:00 to 03:00")
    page.get_by_text("Cron expression", exact=True).first.click()
    page.get_by_role("textbox", name="Cron expression").fill("61 * * * *")
    expect(preview).to_contain_text("61")
    page.get_by_role("textbox", name="Cron expression").fill("*/15 9-17 * * 1-5")
    expect(preview).to_contain_text("Every 15 minutes")
    page.locator("#f-name").fill("typed")
    page.get_by_role("button", name="Create job").click()
    expect(page.get_by_role("heading", level=1, name="typed")).to_be_visible()


def test_code_is_checked_in_the_margin_and_refused_with_its_line(site: Site, page: Page) -> None:
    job = site.job("to be edited")
    page.goto(f"{site.url}/jobs/{job.id}/edit")
    page.locator(".cm-content").click()
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")  # typed over a selection, chromium itself tries to write inline styles
    page.keyboard.type("class Wrong(CronJobBase):\n    pass")
    expect(page.locator(".editor-problems")).to_contain_text("execute")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("alert").first).to_contain_text("Not saved yet.")
    expect(page.locator(".cm-content")).to_contain_text("class Wrong")
    page.locator(".cm-content").click()
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    page.keyboard.type("class Right(CronJobBase):\ndef execute(self): print('right')")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status").first).to_contain_text("to be edited is saved.")
    page.get_by_role("link", name="Versions").click()
    expect(page.locator("#version-2")).to_contain_text("Current")


def test_the_form_works_without_scripts(site: Site, browser: Browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(site.link())
    page.get_by_role("button", name="Sign in").click()
    page.goto(f"{site.url}/jobs/new")
    page.locator("#f-name").fill("without scripts")
    page.get_by_text("Daily", exact=True).click()
    page.get_by_label("Time of day").fill("04:05")
    page.get_by_role("button", name="Create job").click()
    expect(page.get_by_text("At 04:05 every day, UTC")).to_be_visible()
    page.goto(f"{site.url}/jobs?q=without")
    page.get_by_role("button", name="Run now: without scripts").click()
    expect(page.get_by_text("Queued as run")).to_be_visible()
    context.close()


# -- runs ----------------------------------------------------------------------------------------------------


def test_a_running_log_is_followed_and_the_run_can_be_stopped(site: Site, page: Page) -> None:
    job = site.job("slow one", SLOW)
    page.goto(f"{site.url}/jobs/{job.id}")
    page.get_by_role("button", name="Run now").click()
    log = page.locator("#log")
    expect(log).to_contain_text("step 3 <b>", timeout=15_000)
    expect(log.locator(".ansi-green").first).to_be_visible()
    lines = log.inner_text().count("step")
    expect(log).to_contain_text(f"step {lines + 8} ", timeout=10_000)
    assert log.inner_text().count("step 3 ") == 1, "nothing comes twice"
    expect(page.locator("#state progress")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    page.locator("#confirm").get_by_role("button", name="Stop the run").click()
    expect(page.locator("#state")).to_contain_text("Cancelled", timeout=15_000)
    expect(page.locator("#state")).to_contain_text("cancelled by maria")
    expect(page.locator("[hx-trigger='every 1s']")).to_have_count(0)


def test_a_failing_job_is_given_up_and_recovered_by_one_click(site: Site, page: Page) -> None:
    job = site.job("doomed", FAILING, max_retries=1, retry_delay_seconds=1, retry_strategy="fixed")
    page.goto(f"{site.url}/jobs/{job.id}")
    page.get_by_role("button", name="Run now").click()
    expect(page.locator("#state")).to_contain_text("Failed", timeout=10_000)
    page.get_by_role("link", name="Attempt 2").click(timeout=10_000)
    expect(page.locator("#state")).to_contain_text("OSError: no disk <i>", timeout=10_000)
    page.reload()
    expect(page.locator(".trace-hit")).to_contain_text('raise OSError("no disk <i>")')
    page.goto(f"{site.url}/jobs/{job.id}")
    expect(page.locator(".notice-error")).to_contain_text("In the dead letter queue")
    page.get_by_role("button", name="Recover").click()
    expect(page.get_by_role("status").first).to_contain_text("doomed is recovered and enabled.")
    expect(page.locator(".notice-error")).to_have_count(0)


def test_rolling_back_asks_and_the_next_run_uses_the_old_version(site: Site, page: Page) -> None:
    job = site.job("versioned")
    CronJobManager(site.session).update_code(job.id, HELLO.replace("World", "Mars"))
    page.goto(f"{site.url}/jobs/{job.id}/versions")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator(".diff del")).to_contain_text("World")
    page.get_by_role("button", name="Roll back to 1").click()
    page.locator("#confirm").get_by_role("button", name="Roll back").click()
    expect(page.locator("#version-1")).to_contain_text("Current")
    page.get_by_role("button", name="Run now").click()
    expect(page.locator("#log")).to_contain_text("Hello World", timeout=10_000)
