"""Runners for the tests of the engine, closed when the test ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runs import Runs


@pytest.fixture
def make_runs(tmp_path: Path) -> Iterator[Callable[..., Runs]]:
    made: list[Runs] = []

    def make(**settings: Any) -> Runs:
        made.append(Runs(tmp_path / f"jobs{len(made)}", **settings))
        return made[-1]

    yield make
    for runs in made:
        runs.runner.close()


@pytest.fixture
def runs(make_runs: Callable[..., Runs]) -> Runs:
    return make_runs(kill_grace_seconds=0.5)
