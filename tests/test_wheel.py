"""kytecron as a package: installed from its wheel into an empty environment, it runs in an empty directory."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from kytecron.config import ROOT
from tests.mariadb import free_port
from tests.workers import wait_for

WHEELS = ROOT / ".venv" / "wheels"
PATIENCE = 120
pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` directory of an environment that holds the wheel and what it needs, and nothing else."""
    if not WHEELS.is_dir():
        if os.environ.get("KYTECRON_TEST_REQUIRE_ALL"):
            pytest.fail("no .venv/wheels: make test downloads them")
        pytest.skip("no .venv/wheels: make test downloads them")
    built = tmp_path_factory.mktemp("wheel")
    place = tmp_path_factory.mktemp("installed")
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", built], cwd=ROOT)
    run([sys.executable, "-m", "venv", place])
    (wheel,) = built.glob("*.whl")
    run([place / "bin" / "pip", "install", "--no-index", "--find-links", WHEELS, wheel])
    return place / "bin"


def run(command: list[object], **options: object) -> str:
    """Its standard output; it must end well."""
    done = subprocess.run(  # type: ignore[call-overload]
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=clean_environment(),
        **options,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


def clean_environment() -> dict[str, str]:
    """Nothing that leads to the repository, and no settings."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("KYTECRON_", "PYTHON", "VIRTUAL_ENV", "PIP_"))
    }


@pytest.fixture
def up(installed: Path, tmp_path: Path) -> Iterator[tuple[Path, str, str]]:
    """`kytecron up` in an empty directory: the directory, the address and the link that it printed."""
    port = free_port()
    place = tmp_path / "empty"
    place.mkdir()
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [installed / "kytecron", "up", "--port", str(port)],
            cwd=place, env=clean_environment(), stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    try:
        said = ""
        assert process.stdout is not None
        while "/sign-in/" not in said:
            line = process.stdout.readline()
            assert line, said + (tmp_path / "log").read_text()
            said += line
        (link,) = re.findall(r"http://\S+/sign-in/\S+", said)
        yield place, f"http://localhost:{port}", link
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
        assert "Traceback" not in (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait()


def test_up_in_an_empty_directory_is_a_running_installation(
    installed: Path, up: tuple[Path, str, str]
) -> None:
    place, address, link = up
    open_page = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
    assert b"Sign in" in open_page(link, timeout=30).read()
    style = re.search(rb'href="(/static/app\.css[^"]*)"', open_page(link, timeout=30).read())
    assert style is not None
    assert open_page(f"{address}{style[1].decode()}", timeout=30).status == 200
    assert sorted(path.name for path in place.iterdir()) == ["instance"]

    def completed() -> bool:
        listed = run(
            [installed / "kytecron", "executions", "list", "--status", "completed", "--json"], cwd=place
        )
        return bool(json.loads(listed)["items"])

    wait_for(completed, "a run of an example to complete", PATIENCE)


def test_a_script_elsewhere_can_import_it(installed: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import kytecron; print(kytecron.CronJobManager.__name__, kytecron.__file__)")
    name, file = run([installed / "python", script], cwd=tmp_path).split()
    assert name == "CronJobManager"
    assert Path(file).is_relative_to(installed.parent)


def test_the_wheel_brings_its_documents_and_migrations(installed: Path) -> None:
    where = "import kytecron.config as c; print(c.PARTS)"
    parts = Path(run([installed / "python", "-c", where], cwd="/").strip())
    for folder, pattern in (("docs", "*.md"), ("migrations", "versions/*.py"), ("migrations", "*.ini")):
        ours = {path.name for path in (ROOT / folder).glob(pattern)}
        assert ours
        assert {path.name for path in (parts / folder).glob(pattern)} == ours
    read = (
        "from kytecron.web import docs; print(*(docs.document(name).title for name in docs.NAMES), sep='\\n')"
    )
    assert "Schedules" in run([installed / "python", "-c", read], cwd="/").splitlines()


def test_the_program_says_its_version(installed: Path) -> None:
    from kytecron import VERSION

    assert run([installed / "kytecron", "--version"], cwd="/").split() == ["kytecron,", "version", VERSION]
    assert run([installed / "kytecron", "worker", "--help"], cwd="/").startswith("usage: kytecron worker")
