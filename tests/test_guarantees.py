"""docs/guarantees.md names tests that exist, and every fault test is named there."""

from __future__ import annotations

import ast
import re

from kytecron.config import ROOT

TEXT = (ROOT / "docs" / "guarantees.md").read_text()
NAMED = set(re.findall(r"`(tests/[\w/]+\.py::\w+)`", TEXT))


def named_in(path: str) -> set[str]:
    """The tests of a file, as pytest names them."""
    tree = ast.parse((ROOT / path).read_text())
    names = (node.name for node in tree.body if isinstance(node, ast.FunctionDef))
    return {f"{path}::{name}" for name in names if name.startswith("test_")}


def test_every_test_that_is_named_exists() -> None:
    there = {name for path in {name.partition("::")[0] for name in NAMED} for name in named_in(path)}
    assert NAMED
    assert sorted(NAMED - there) == []


def test_every_fault_that_is_tested_is_named() -> None:
    paths = [
        path.relative_to(ROOT).as_posix() for path in (ROOT / "tests" / "faults").glob("test_faults_*.py")
    ]
    faults = {name for path in paths for name in named_in(path)}
    assert faults
    assert sorted(faults - NAMED) == []


def test_every_file_that_is_named_exists() -> None:
    for path in re.findall(r"`(tests/[\w/.]+)`", TEXT):
        assert (ROOT / path).exists(), path
