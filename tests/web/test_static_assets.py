"""What the pages load and what their markup may hold: vendored files, the policy, weight, colours, behaviours."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from flask import Flask, flash, redirect, render_template_string, request
from flask.typing import ResponseReturnValue
from flask_wtf import CSRFProtect
from playwright.sync_api import Browser, Dialog, Page, expect
from pygments.token import STANDARD_TYPES
from werkzeug.serving import make_server

from kytecron.core import words
from kytecron.core.states import Status

PACKAGE = Path(__file__).resolve().parents[2] / "kytecron"
STATIC = PACKAGE / "static"
TEMPLATES = sorted((PACKAGE / "templates").rglob("*.html"))
OWN_FILES = {"app.css", "app.js", "theme.js", "favicon.svg", "vendored.json"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def read_template(path: Path) -> str:
    """A template without its comments, which may well name what is forbidden."""
    return re.sub(r"\{#.*?#\}", "", path.read_text(), flags=re.S)


def css() -> str:
    return (STATIC / "app.css").read_text()


# ------------------------------------------------------------------ what other people wrote


def test_vendored_files_are_the_ones_their_list_names() -> None:
    for entry in json.loads((STATIC / "vendored.json").read_text()):
        content = (STATIC / entry["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"], f"{entry['file']} was changed by hand"
        assert entry["name"]
        assert entry["version"]
        assert entry["licence"]
        assert (STATIC / entry["licence_file"]).read_text().strip()


def test_vendored_files_were_built_from_the_sources_and_versions_that_stand_in_frontend() -> None:
    frontend = PACKAGE.parent / "frontend"
    locked = json.loads((frontend / "package-lock.json").read_text())["packages"]
    for entry in json.loads((STATIC / "vendored.json").read_text()):
        versions = {entry["name"]: entry["version"], **entry.get("packages", {})}
        assert versions == {name: locked[f"node_modules/{name}"]["version"] for name in versions}
        for source, digest in entry.get("made_from", {}).items():
            same = hashlib.sha256((frontend / source).read_bytes()).hexdigest() == digest
            assert same, f"{source} has changed: run npm ci && npm run build in frontend/"


def test_every_static_file_is_ours_or_listed() -> None:
    listed = {entry["file"] for entry in json.loads((STATIC / "vendored.json").read_text())}
    present = {path.name for path in STATIC.iterdir() if path.is_file()}
    assert present == listed | OWN_FILES


def test_lockfile_names_no_package_host() -> None:
    lockfile = (PACKAGE.parent / "frontend" / "package-lock.json").read_text()
    assert '"resolved"' not in lockfile


# ------------------------------------------------------------------ the strict policy

FORBIDDEN = {
    "a style attribute or element": r"<style\b|(?<![\w-])style\s*=",
    "a script without src": r"<script\b(?![^>]*\ssrc=)",
    "a script with a body": r"<script\b[^>]*>(?!\s*</script>)",
    "an event handler attribute": (
        r"(?<![\w-])on(click|dblclick|change|input|submit|reset|load|error|key\w+|mouse\w+|pointer\w+|touch\w+"
        r"|focus\w*|blur|toggle|scroll|drag\w*|drop|wheel|paste|copy|cut)\s*="
    ),
    "hx-on": r"hx[-_]on\b",
    "a js: or javascript: value": r"\b(js|javascript):",
    "a trigger filter, which needs eval": r"hx[-_]trigger\s*=\s*(?:\"[^\"]*\[|'[^']*\[)",
    "something loaded from elsewhere": r"\b(src|srcset|href|action|data)\s*=\s*[\"'](https?:)?//(?!www\.w3\.org)",
}


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: str(path.relative_to(PACKAGE / "templates")))
def test_templates_hold_nothing_the_policy_forbids(path: Path) -> None:
    found = [what for what, pattern in FORBIDDEN.items() if re.search(pattern, read_template(path), re.I)]
    assert not found, f"{path.name} has {', '.join(found)} (see docs/pages.md)"


@pytest.mark.parametrize(
    "markup",
    [
        '<p style="color:red">',
        "<style>p{}</style>",
        "<script>x()</script>",
        '<script src="a.js">x()</script>',
        '<a onclick="x()">',
        '<a hx-on:click="x()">',
        '<a hx-vals="js:{a:1}">',
        '<p hx-trigger="load[x]">',
        '<script src="https://example.com/x.js"></script>',
    ],
)
def test_the_sweep_finds_what_it_is_for(markup: str) -> None:
    assert any(re.search(pattern, markup, re.I) for pattern in FORBIDDEN.values())


def test_static_files_name_no_other_host() -> None:
    for path in STATIC.iterdir():
        if path.suffix in {".js", ".css", ".svg"}:
            hosts = set(re.findall(r"https?://[\w.-]+", path.read_text())) - {"http://www.w3.org"}
            assert not hosts, f"{path.name} names {hosts}"
    assert set(re.findall(r'url\("([^"]{0,30})', css())) <= {"inter.woff2", "data:image/svg+xml,%3Csvg xmln"}


# ------------------------------------------------------------------ nothing that nobody uses

MADE_OF_DATA = {"ansi", "badge", "is", "notice", "rate", "run", "stat", "toast", "toc", "verdict"}
"""Classes whose last part is a status, a tone, a colour or a level."""
OF_LIBRARIES = {"htmx"}


def test_every_macro_is_used() -> None:
    templates = "".join(read_template(path) for path in TEMPLATES)
    macros = re.findall(r"\{%-? *macro +(\w+)", templates)
    called = {*re.findall(r"(?<!macro )\b(\w+)\(", templates), *re.findall(r"\b(\w+) as \w+", templates)}
    assert len(macros) > 30
    assert set(macros) - called == set()


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_template_imports_the_macros_that_it_uses(path: Path) -> None:
    text = read_template(path)
    imported = " ".join(re.findall(r"\{%-? *from \S+ import (.+?) *(?:with context *)?-?%\}", text, re.S))
    names = {name.split()[-1] for name in imported.split(",") if name.strip()}
    assert {name for name in names if len(re.findall(rf"\b{name}\b", text)) < 2} == set()


def test_every_class_of_the_style_sheet_is_used() -> None:
    rules = re.sub(r"/\*.*?\*/|@layer[^;{]*;", "", css(), flags=re.S)
    selectors = " ".join(re.findall(r"([^{}]+)\{", re.sub(r"url\([^)]*\)", "", rules)))
    styled = set(re.findall(r"\.([a-zA-Z][\w-]*)", selectors))
    scripts = (STATIC / name for name in ("app.js", "theme.js"))
    text = "".join(path.read_text() for path in (*TEMPLATES, *PACKAGE.rglob("*.py"), *scripts))
    named = set(re.findall(r"[a-zA-Z][\w-]*", text)) | set(STANDARD_TYPES.values())
    assert len(styled) > 200
    unused = {name for name in styled - named if name.partition("-")[0] not in MADE_OF_DATA | OF_LIBRARIES}
    assert unused == set()


# ------------------------------------------------------------------ weight, icons, colours


def test_what_every_page_loads_leaves_room_for_the_page() -> None:
    """The whole page may weigh 100 KB compressed, without the editor; a list of 25 jobs takes under 15."""
    loaded = ["app.css", "app.js", "theme.js", "htmx.min.js", "icons.svg", "favicon.svg", "inter.woff2"]
    sizes = {name: len(gzip.compress((STATIC / name).read_bytes(), 9)) for name in loaded}
    assert sum(sizes.values()) <= 80_000, sizes


def test_every_icon_named_in_a_template_is_in_the_sprite() -> None:
    sprite = set(re.findall(r'<symbol id="([\w-]+)"', (STATIC / "icons.svg").read_text()))
    calls = (
        r"\bicon\(\s*[\"']([\w-]+)|icon_name\s*=\s*[\"']([\w-]+)[\"']|icon_button\([^,]+,\s*[\"']([\w-]+)[\"']"
        r"|menu_post\((?:[^,()]|\([^)]*\))+,[^,]+,\s*[\"']([\w-]+)[\"']|empty_state\(\s*[\"']([\w-]+)[\"']"
    )
    for path in TEMPLATES:
        named = {name for match in re.findall(calls, read_template(path)) for name in match if name}
        assert named <= sprite, f"{path.name}: {named - sprite}; add to frontend/icons.json and rebuild"


@pytest.mark.parametrize("status", list(Status))
def test_every_status_has_its_looks(status: Status) -> None:
    for name in ("badge", "run"):
        assert re.search(rf"\.{name}-{status}\b", css()), f".{name}-{status} is missing"


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_are_readable(theme: int) -> None:
    """WCAG AA: 4.5 for text on what it stands on, 3 for the borders of controls and the focus ring."""
    pattern = r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)"
    token = {name: (light, dark)[theme] for name, light, dark in re.findall(pattern, css())}
    grounds = ["bg", "side", "surface", "surface-2", "raised", "hover"]
    tones = ["green", "red", "amber", "blue", "orange", "violet", "grey"]
    code = [name for name in token if name.startswith("hl-")]
    pairs = [
        *itertools.product(["text", "text-2", "text-3", "accent", "red"], grounds),
        *itertools.product(["text", "text-2"], ["surface-3", "accent-soft"]),
        *itertools.product(tones, ["surface"]),
        *((tone, f"{tone}-soft") for tone in tones),
        *(("text", f"{tone}-soft") for tone in tones),
        *itertools.product(code, ["surface"]),
        ("on-ink", "ink"),
        ("accent", "accent-soft"),
    ]
    bad = [
        (a, b, round(contrast(token[a], token[b]), 2)) for a, b in pairs if contrast(token[a], token[b]) < 4.5
    ]
    bad += [
        (a, b, round(contrast(token[a], token[b]), 2))
        for a, b in itertools.product(["control-border", "focus"], ["bg", "surface", "raised"])
        if contrast(token[a], token[b]) < 3
    ]
    assert not bad


# ------------------------------------------------------------------ in a real browser, under the strict policy

PARTS = """
{% extends "base.html" %}
{% from "_macros.html" import badge, columns, confirm_button, countdown, menu, menu_post, post_button %}
{% from "_macros.html" import relative_time %}
{% block title %}Parts{% endblock %}
{% block actions %}{{ confirm_button("/act", "Delete", "It stops at once.", title="Delete it?") }}{% endblock %}
{% block content %}
<input class="input" data-search aria-label="Search here">
<p>{{ relative_time(past) }} {{ countdown(future) }} {{ badge("running") }}</p>
{{ columns(buckets, "Runs") }}
{{ post_button("/act", "Trigger", hx_post="/act", hx_swap="none") }}
{{ post_button("/refused", "Refuse", hx_post="/refused") }}
{{ post_button("/broken", "Break", hx_post="/broken", hx_target="#region") }}
<div class="table-wrap"><table class="table cards"><tbody><tr><td><a class="cell-main" href="#">{{ long }}</a></td>
<td data-label="Status">{{ badge("failed") }}</td><td class="col-actions">
{% call menu("More") %}{{ menu_post("/act", "Disable", "pause") }}{% endcall %}</td></tr></tbody></table></div>
<div id="region" hx-get="/region/1" hx-trigger="every 100ms" hx-swap="outerMorph">seen 0</div>
{% endblock %}
"""

FORM = """
{% extends "base.html" %}
{% from "_macros.html" import csrf, field, segmented, textarea %}
{% block title %}Form{% endblock %}
{% block scripts %}<script src="{{ url_for('static', filename='editor.js') }}" defer></script>{% endblock %}
{% block content %}
<form method="post" action="/saved" class="form" data-guard>{{ csrf() }}
{{ segmented("kind", "Schedule", [("daily", "Daily"), ("manual", "Manual")], "daily") }}
<div data-show-if="kind=daily">{{ field("time_of_day", "Time of day", "02:30") }}</div>
{{ textarea("code", "Code", "class A:\n    pass\n", data_editor="python", data_check_url="/check") }}
<button class="btn btn-primary">Save</button></form>
{% endblock %}
"""

SAVED = '{% extends "base_bare.html" %}{% block content %}<pre>{{ request.form|tojson }}</pre>{% endblock %}'


def make_app() -> Flask:
    app = Flask("parts", template_folder=str(PACKAGE / "templates"), static_folder=str(STATIC))
    app.secret_key = "not a secret, only a test's"
    app.jinja_env.globals |= {
        "asset_version": "test",
        "once_key": lambda: "once",
        "seen": lambda value: value,
        "words": words,
    }
    CSRFProtect(app)
    app.after_request(lambda answer: (answer.headers.set("Content-Security-Policy", POLICY), answer)[1])

    @app.context_processor
    def frame() -> dict[str, object]:
        item = {"endpoint": "parts", "label": "Jobs", "icon": "list", "active": True}
        return {
            "nav": [item],
            "user_name": "ada",
            "user_role": "admin",
            "sign_out_url": "/out",
            "search_url": "/",
        }

    @app.get("/")
    def parts() -> str:
        now = datetime.now(UTC)
        return render_template_string(
            PARTS,
            past=now - timedelta(minutes=3),
            future=now + timedelta(minutes=5, seconds=30),
            buckets=[{"label": str(i), "completed": i, "failed": 1} for i in range(30)],
            long="a-job-with-a-very-long-name-" * 4,
        )

    @app.get("/form")
    def form() -> str:
        return render_template_string(FORM)

    @app.get("/region/<int:seen>")
    def region(seen: int) -> str:
        more = (
            f' hx-get="/region/{seen + 1}" hx-trigger="every 100ms" hx-swap="outerMorph"' if seen < 3 else ""
        )
        return f'<div id="region"{more}>seen {seen}</div>'

    @app.post("/act")
    def act() -> ResponseReturnValue:
        if "HX-Request" not in request.headers:
            return redirect("/form")
        return "", {"HX-Trigger": json.dumps({"kytecron:toast": {"message": "Done <b>", "tone": "success"}})}

    @app.post("/refused")
    def refused() -> ResponseReturnValue:
        return (
            "",
            409,
            {"HX-Trigger": json.dumps({"kytecron:toast": {"message": "Not now", "tone": "error"}})},
        )

    @app.post("/broken")
    def broken() -> tuple[str, int]:
        return "<h1>Internal Server Error</h1>", 500

    @app.post("/check")
    def check() -> dict[str, list[dict[str, object]]]:
        bad = "oops" in request.get_json()["code"]
        return {"problems": [{"line": 2, "column": 5, "message": "No execute"}] if bad else []}

    @app.post("/saved")
    def saved() -> str:
        flash("Saved.", "success")
        return render_template_string(SAVED)

    return app


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = make_server("127.0.0.1", 0, make_app(), threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A page under the strict policy; its test fails if the console tells of an error, a refused style among them."""
    context = browser.new_context(
        base_url=address, viewport={"width": 1280, "height": 800}, color_scheme="light"
    )
    page = context.new_page()
    complaints: list[str] = []
    page.on(
        "console", lambda said: complaints.append(said.text) if said.type in {"error", "warning"} else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    context.close()
    assert [text for text in complaints if "status of 500" not in text and "status of 409" not in text] == []


@pytest.mark.browser
def test_times_are_told_from_now_with_their_zone(page: Page) -> None:
    page.goto("/")
    expect(page.locator("[data-relative]")).to_have_text("3 min ago")
    expect(page.locator("[data-countdown]")).to_have_text(re.compile(r"in 5 min [012]\d s"))
    expect(page.locator("[data-relative]")).to_have_attribute("title", re.compile(r"\d\d:\d\d:\d\d .*UTC"))


@pytest.mark.browser
def test_a_region_stops_polling_when_its_markup_says_so(page: Page) -> None:
    page.goto("/")
    expect(page.locator("#region")).to_have_text("seen 3")
    with pytest.raises(Exception, match="Timeout"), page.expect_request("**/region", timeout=500):
        pass


@pytest.mark.browser
def test_actions_by_htmx_carry_the_token_and_tell_the_outcome_as_text(page: Page) -> None:
    page.goto("/")
    page.get_by_role("button", name="Trigger").click()
    expect(page.locator(".toast")).to_have_text("Done <b>")


@pytest.mark.browser
def test_a_failed_action_leaves_the_page_alone_and_says_so(page: Page) -> None:
    page.goto("/")
    page.get_by_role("button", name="Break").click()
    expect(page.locator(".toast-error")).to_contain_text("error 500")
    page.get_by_role("button", name="Refuse").click()
    expect(page.locator(".toast-error").last).to_have_text("Not now")
    expect(page.get_by_role("button", name="Refuse")).to_be_visible()
    expect(page.locator("#region")).to_contain_text("seen")


@pytest.mark.browser
def test_a_dangerous_action_asks_first(page: Page) -> None:
    page.goto("/")
    posted: list[str] = []
    page.on(
        "request",
        lambda sent: posted.append(sent.url) if sent.method == "POST" and "/act" in sent.url else None,
    )
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("dialog")).to_contain_text("Delete it?")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert posted == []
    page.get_by_role("button", name="Delete").click()
    page.locator("#confirm-ok").click()
    page.wait_for_url("**/form")
    assert len(posted) == 1


@pytest.mark.browser
def test_the_theme_is_remembered_and_set_before_the_first_paint(page: Page) -> None:
    page.goto("/")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.locator("[data-theme-toggle]").click(click_count=2)
    assert page.locator("html").get_attribute("data-theme") == "dark"
    page.reload()
    assert page.locator("html").get_attribute("data-theme") == "dark"
    assert page.evaluate(background) != light


@pytest.mark.browser
def test_keys_work_outside_of_fields_only(page: Page) -> None:
    page.goto("/")
    page.keyboard.press("/")
    expect(page.get_by_label("Search here")).to_be_focused()
    page.keyboard.type("?g")
    expect(page.get_by_label("Search here")).to_have_value("?g")
    page.locator("#main").focus()
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.goto("/form")
    page.locator(".cm-content").click()
    page.keyboard.type("/?")
    expect(page.locator(".cm-content")).to_contain_text("/?")
    expect(page.locator("#help")).to_be_hidden()


@pytest.mark.browser
def test_the_editor_checks_and_feeds_its_form_and_lets_tab_out(page: Page) -> None:
    page.goto("/form")
    page.locator(".cm-content").click()
    page.keyboard.press("Control+End")
    page.keyboard.type("x = 'oops'")
    expect(page.locator(".editor-problems")).to_have_text("Line 2: No execute")
    expect(page.locator(".cm-lint-marker-error")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    expect(page.locator(".editor-problems button")).to_be_focused()
    page.get_by_role("button", name="Save").click()
    expect(page.locator("pre")).to_contain_text("oops")
    expect(page.locator(".notice-success")).to_have_text("Saved.")


@pytest.mark.browser
def test_fields_follow_the_choice_and_unsaved_changes_are_guarded(page: Page) -> None:
    page.goto("/form")
    asked: list[str] = []

    def leave(dialog: Dialog) -> None:
        asked.append(dialog.type)
        dialog.accept()

    page.on("dialog", leave)
    page.reload()
    assert asked == []
    page.get_by_label("Manual").check()
    expect(page.get_by_label("Time of day")).to_be_hidden()
    expect(page.locator("[name=time_of_day]")).to_be_disabled()
    page.reload()
    assert asked == ["beforeunload"]


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_sees_everything_without_scrolling_sideways(
    browser: Browser, address: str, theme: str
) -> None:
    context = browser.new_context(viewport={"width": 375, "height": 700}, color_scheme=theme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(f"{address}/form")
    page.locator(".cm-content").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.goto(address)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    expect(page.locator("#sidebar")).to_be_hidden()
    page.get_by_role("button", name="Menu").click()
    expect(page.get_by_role("link", name="Jobs")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#sidebar")).to_be_hidden()
    expect(page.get_by_role("button", name="Menu")).to_be_focused()
    context.close()


@pytest.mark.browser
def test_pages_work_without_scripts(browser: Browser, address: str) -> None:
    context = browser.new_context(viewport={"width": 375, "height": 700}, java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{address}/form")
    expect(page.get_by_role("link", name="Jobs")).to_be_visible()
    page.locator("[name=code]").fill("class B: pass")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("pre")).to_contain_text("class B: pass")
    context.close()


def test_code_can_be_read_where_a_comparison_marks_its_words() -> None:
    """4.5:1 for every colour of code, on both marks, in both themes; comments take the colour of text there."""
    style = (STATIC / "app.css").read_text()
    pair = r"light-dark\((#\w{6}), (#\w{6})\)"
    colours = _pairs(rf"--(hl-\w+|text): {pair}", style)
    marks = _pairs(rf"\.diff (del|ins) \{{ background: {pair}", style)
    assert len(marks) == 2
    assert len(colours) > 8
    del colours["hl-comment"]
    assert ":is(del, ins) :is(.c, .c1, .ch, .cm, .cp, .cpf, .cs) { color: inherit; }" in style
    weak = [
        (name, mark, theme)
        for name, colour in colours.items()
        for mark, behind in marks.items()
        for theme in (0, 1)
        if _contrast(colour[theme], behind[theme]) < 4.5
    ]
    assert weak == []


def _pairs(pattern: str, style: str) -> dict[str, tuple[str, str]]:
    return {name: (light, dark) for name, light, dark in re.findall(pattern, style)}


def _contrast(one: str, other: str) -> float:
    """As WCAG 2 has it."""
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
