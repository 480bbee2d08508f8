"""The API keeps what its OpenAPI document promises, whatever is sent: every operation, and chains of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from kytecron.api.routing import ROUTES
from kytecron.core.choices import PUBLIC
from kytecron.services import throttle
from kytecron.store.models import CronToken

from .conftest import Caller

HERE = Path(__file__).parent
EXAMPLES = 10
FAR_OFF = 3_141_592_653_589
LINKS = 5
"""That chains follow at least: how many examples get that far varies, 11 to 33 were seen."""


@pytest.fixture
def tester(api: Caller, rows: Session) -> Caller:
    """May do everything, by a token whose id nobody guesses: else its own requests would revoke it."""
    row = rows.scalars(sa.select(CronToken).where(CronToken.name == "test admin")).one()
    row.id = FAR_OFF
    rows.commit()
    return api


@pytest.fixture
def runs_end(finish: Callable[..., None]) -> Iterator[None]:
    """What is triggered runs and ends."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.2):
            finish(output="done\n", result={"rows": 1})

    worker = threading.Thread(target=work)
    worker.start()
    yield
    over.set()
    worker.join()


@pytest.mark.slow
@pytest.mark.usefixtures("runs_end")
def test_schemathesis_finds_nothing(
    live: str, tester: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttle, "TRIGGERS_PER_MINUTE", 1_000_000)
    for number in range(1, 4):  # small ids that are often tried
        tester(f"POST /jobs/{tester.job(f'job {number}')['id']}/trigger")
    found = subprocess.run(
        [
            *(Path(sys.executable).parent / "schemathesis", "--config-file", HERE / "schemathesis.toml"),
            *("run", f"{live}/api/v1/openapi.json", "-H", f"Authorization: Bearer {tester.token}"),
            *("--max-examples", str(EXAMPLES), "--generation-deterministic", "--no-color"),
            *("--suppress-health-check", "all", "--request-timeout", "30"),
        ],
        env={**os.environ, "SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(HERE)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert found.returncode == 0, found.stdout[-20_000:] + found.stderr
    described = sum(one.role != PUBLIC for one in ROUTES)
    assert f"Tested: {described}\n" in found.stdout
    # Chains went from what was made to what can be done with it.
    followed = re.search(r"API Links: +(\d+) covered", found.stdout)
    assert followed
    assert int(followed[1]) >= LINKS
