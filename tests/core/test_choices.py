"""Whoever adds a word that a column may hold is told of every place that has to be decided on.

Tables, which are dictionaries keyed by such words, are found here, whichever module they are in. Decisions end in
`assert_never`, which mypy checks; that none is left out of it is checked here.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import kytecron
from kytecron.core import choices, states
from kytecron.services import why

ENUMS: tuple[type[StrEnum], ...] = tuple(
    kind
    for module in (choices, states, why)
    for kind in vars(module).values()
    if isinstance(kind, type)
    and issubclass(kind, StrEnum)
    and kind.__module__ == module.__name__
    and len(kind)
)
PARTS = {states.ACTIVE, states.FINAL, states.UNSUCCESSFUL}
"""Sets of statuses that are spoken of by name: a table may be about one of them alone."""
NOT_IMPORTED = ("kytecron.__main__", "kytecron.wsgi", "kytecron.gunicorn_conf", "kytecron.engine.forkserver")
"""What does something when it is imported. None of these holds a table, as their source shows."""


def modules() -> Iterator[Any]:
    for found in pkgutil.walk_packages(kytecron.__path__, "kytecron."):
        if found.name not in NOT_IMPORTED:
            yield importlib.import_module(found.name)


def tables() -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Every dictionary on the top level of a module that is keyed by members of one of ENUMS."""
    for module in modules():
        for name, value in vars(module).items():
            if isinstance(value, Mapping) and value and {type(key) for key in value} <= {*ENUMS}:
                yield f"{module.__name__}.{name}", value


TABLES = dict(tables())


@pytest.mark.parametrize("name", TABLES)
def test_every_member_has_its_entry(name):
    """Fails for the new member of an enum, with the table that lacks it."""
    keys = set(TABLES[name])
    kinds = {type(key) for key in keys}
    assert len(kinds) == 1, f"{name} is keyed by {kinds}"
    whole = frozenset(kinds.pop())
    # Of the parts that it may be about the nearest: what differs is what is missing, or too much.
    nearest = min({whole, *(part for part in PARTS if part <= whole)}, key=lambda part: len(part ^ keys))
    assert keys == nearest, f"{name} lacks {sorted(nearest - keys)} or has too much: {sorted(keys - nearest)}"


def test_tables_are_found_and_are_many():
    assert {"kytecron.core.states.MOVES", "kytecron.services.endings.LETTERS"} <= TABLES.keys()
    assert len(TABLES) >= 12


@cache
def sources() -> list[tuple[Path, ast.Module]]:
    paths = sorted(Path(kytecron.__path__[0]).rglob("*.py"))
    return [(path, ast.parse(path.read_text())) for path in paths]


def test_no_table_is_keyed_by_the_bare_words():
    """A table keyed by "skip", "queue" ... would go unseen above: its keys are to be the members."""
    words = [{str(member) for member in kind} for kind in ENUMS]
    found = [
        f"{path.name}:{node.lineno} {sorted(keys)}"
        for path, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict) and len(node.keys) > 1
        if all(isinstance(key, ast.Constant) for key in node.keys)
        and (keys := {str(key.value) for key in node.keys if isinstance(key, ast.Constant)})
        and any(keys <= known for known in words)
    ]
    assert found == []


@cache
def decisions() -> list[tuple[str, ast.Match, set[str]]]:
    """Every `match` on members of ENUMS: where, what, and the names of the enums."""
    return list(_decisions())


def _decisions() -> Iterator[tuple[str, ast.Match, set[str]]]:
    for path, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Match):
                patterns = [inner for case in node.cases for inner in ast.walk(case.pattern)]
                names = {one.value.id for one in patterns if is_attribute_of_a_name(one)}
                if names := names & {kind.__name__ for kind in ENUMS}:
                    yield f"{path.name}:{node.lineno}", node, names


def is_attribute_of_a_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)


def test_every_match_on_a_word_ends_in_assert_never():
    open_ended = [
        where for where, node, _ in decisions() if "assert_never" not in ast.unparse(node.cases[-1])
    ]
    assert open_ended == []


ONLY_SHOWN_OR_COMPARED = {choices.Source, choices.TokenKind}
"""Nothing is decided on them but whether something is one of them."""


@pytest.mark.parametrize("kind", [kind for kind in ENUMS if kind not in ONLY_SHOWN_OR_COMPARED])
def test_every_enum_is_decided_on_where_a_new_member_is_missed(kind):
    in_tables = any(isinstance(next(iter(table)), kind) for table in TABLES.values())
    in_matches = any(kind.__name__ in names for _, _, names in decisions())
    in_the_docs = kind is choices.Role  # see the next one
    assert in_tables or in_matches or in_the_docs


def test_the_docs_say_what_each_role_may_do():
    text = (Path(kytecron.__path__[0]).parent / "docs" / "security.md").read_text()
    told = re.findall(r"^\| (\w+) \| [^|]+ \| [^|]+ \|$", text.split("## From whom")[1], re.MULTILINE)
    assert [name for name in told if name != "who"] == list(choices.Role)


@pytest.mark.parametrize("kind", [kind for kind in ENUMS if issubclass(kind, choices.Policy)])
def test_a_word_that_nobody_knows_means_the_first(kind):
    assert [kind.of(member.value) for member in kind] == list(kind)
    assert kind.of("as somebody wrote it by hand") is next(iter(kind))
    assert kind.of(None) is next(iter(kind))


def test_a_status_comes_from_where_the_moves_say():
    assert states.sources(states.Status.RUNNING) == (states.Status.PENDING,)
    assert states.sources(states.Status.PENDING) == (states.Status.RUNNING,)
    assert set(states.sources(states.Status.CANCELLED)) == {states.Status.PENDING, states.Status.RUNNING}
    assert {states.sources(final) for final in states.FINAL if final not in ("cancelled", "skipped")} == {
        (states.Status.RUNNING,)
    }
