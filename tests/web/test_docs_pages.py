"""The documents as pages: those of the list and nothing else, with links that lead somewhere."""

from __future__ import annotations

import re
from urllib.parse import urljoin

import pytest

from kytecron.config import ROOT
from kytecron.web import docs
from kytecron.web.docs import NAMES, document, read
from tests.pages import Visitor, make_job, text_of


def test_every_document_is_on_the_list() -> None:
    assert sorted(NAMES) == sorted(path.stem for path in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("name", NAMES)
def test_every_document_is_a_page_and_its_links_lead_to_headings(viewer: Visitor, name: str) -> None:
    page = viewer.get(f"/docs/{name}")
    assert page.status_code == 200
    assert f"<h1>{document(name).title}</h1>" in page.text
    ids = set(re.findall(r'id="([^"]+)"', page.text))
    for link in re.findall(r'href="([^"]+)"', str(document(name).html)):
        place, _, anchor = urljoin(f"/docs/{name}", link).partition("#")
        if not place.startswith("/docs/"):
            assert place.startswith("https://"), link
        elif anchor:
            assert anchor in document(place.removeprefix("/docs/")).anchors, link
    assert {one.anchor for one in document(name).headings} <= ids


def test_pages_link_to_places_that_the_documents_have(admin: Visitor) -> None:
    job = make_job(admin.app)
    found = set()
    for path in ("/jobs/new", f"/jobs/{job.id}/edit", "/settings", "/workers", "/dead-letters"):
        found |= set(re.findall(r'href="/docs/([^"]+)"', admin.get(path).text))
    assert len(found) >= 7
    for link in found:
        name, _, anchor = link.partition("#")
        assert name in NAMES
        assert not anchor or anchor in document(name).anchors, link


@pytest.mark.parametrize(
    "name", ["README", "../README", "..%2fREADME", "jobs.md", "screenshots", "%2e%2e/pyproject"]
)
def test_no_other_file_is_served(viewer: Visitor, name: str) -> None:
    assert viewer.get(f"/docs/{name}").status_code == 404


def test_all_that_there_is_to_read_is_listed(viewer: Visitor) -> None:
    text = text_of(viewer.get("/docs").text)
    assert [name for name in NAMES if document(name).title not in text] == []
    assert 'href="/docs"' in viewer.get("/").text


def test_raw_html_and_dangerous_links_are_text() -> None:
    shown = str(
        read(
            "# T\n\n<script>alert(1)</script> <b onclick=x>bold</b>\n\n[a](javascript:alert(1)) [b](data:text/html,x) "
            "[c](../README.md) [d](//elsewhere.example/x) [e](/jobs/1/delete) ![p](https://elsewhere.example/p.png)\n\n"
            "[ok](schedules.md#retries) [out](https://example.org)\n"
        ).html
    )
    assert "<script" not in shown
    assert "<b " not in shown
    assert "<img" not in shown
    assert re.findall(r'href="([^"]+)"', shown) == ["schedules#retries", "https://example.org"]
    assert ">c<" not in shown
    assert "[c]" not in shown


def test_code_is_coloured_and_nothing_has_a_style_of_its_own() -> None:
    shown = str(
        read("# T\n\n```python\nimport os\n```\n\n```sh\nls  # all\n```\n\n|a|b|\n|:-:|--:|\n|1|2|\n").html
    )
    assert '<span class="kn">import</span>' in shown
    assert '<span class="c1"># all' in shown
    assert '<table class="table">' in shown
    assert "style=" not in shown
    assert not any(re.search(r"<[^>]+ style=", str(docs.document(name).html)) for name in NAMES)


def test_headings_of_the_same_name_have_anchors_of_their_own() -> None:
    found = read("# T\n\n## A `b` c!\n\n## A b c\n")
    assert [one.anchor for one in found.headings] == ["a-b-c", "a-b-c-1"]
    assert 'id="a-b-c-1"' in found.html
