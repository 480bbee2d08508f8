"""What is installed is what is imported, pinned and hashed."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DIRECT = {canonicalize_name(one.name): one for one in map(Requirement, PROJECT["project"]["dependencies"])}
LOCKS = ("requirements.txt", "requirements-dev.txt")


def pinned(lock: str) -> dict[str, str]:
    """The lines of a lock by the name of what they pin, hashes included."""
    text = (ROOT / lock).read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    return {canonicalize_name(line.partition("==")[0]): line for line in lines}


def test_every_direct_requirement_is_imported_and_every_import_is_one() -> None:
    homes = packages_distributions()
    modules = {
        name.partition(".")[0]
        for folder in ("kytecron", "migrations")
        for path in (ROOT / folder).rglob("*.py")
        for name in _imports(ast.parse(path.read_text()))
    } - {"kytecron", *sys.stdlib_module_names}
    imported = {canonicalize_name(home) for module in modules for home in homes[module][:1]}
    # pydantic's core, click and the like come with what is asked for, in a version that fits it.
    indirect = {"click", "pydantic-core", "werkzeug", "markupsafe", "jinja2", "annotated-types"}
    assert imported - indirect == DIRECT.keys()


def _imports(tree: ast.Module) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
    return names


@pytest.mark.parametrize("lock", LOCKS)
def test_everything_is_pinned_with_a_hash(lock: str) -> None:
    unsure = [
        line
        for line in pinned(lock).values()
        if not re.match(r"[\w.-]+==\S+", line) or "--hash=sha256:" not in line
    ]
    assert unsure == []
    assert "://" not in (ROOT / lock).read_text()


def test_the_lock_holds_what_the_project_asks_for() -> None:
    lines = pinned("requirements.txt")
    for name, requirement in DIRECT.items():
        found = lines[name].partition("==")[2].split()[0]
        assert requirement.specifier.contains(found), f"run `make lock`: {requirement} is pinned to {found}"
    development = pinned("requirements-dev.txt")
    assert {name: development.get(name) for name in lines} == lines


def test_the_tests_run_on_what_is_pinned() -> None:
    different = {
        name: version(name)
        for name in DIRECT
        if version(name) != pinned("requirements.txt")[name].partition("==")[2].split()[0]
    }
    assert different == {}
