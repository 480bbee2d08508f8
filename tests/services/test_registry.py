"""Which workers of this machine are gone, seen with the real /proc."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kytecron.config import ROOT

# An in-memory database knows a worker that lives: this process's parent. Asked by root who sees all, and by
# somebody from whom other people's processes are hidden.
ASK = """
import os, subprocess, sys
from dataclasses import asdict
from pathlib import Path
import sqlalchemy as sa
from sqlalchemy.orm import Session
from kytecron.services import registry
from kytecron.store import db as database
from kytecron.store.models import CronWorkerRecord, db

pid = os.getppid()
here = registry.this_process()
engine = database.configure(sa.create_engine("sqlite://"))
CronWorkerRecord.__table__.create(engine)
with Session(engine) as session:
    for name, number in (("lives", pid), ("ended", 2**22 + 1)):
        session.add(CronWorkerRecord(
            worker_id=name, host=here.host, boot_id=here.boot_id, pid=number, version="", slots=1, tags="",
            process_started=registry._start_time(pid), started_at=database.now(session),
            last_seen_at=database.now(session), running=0, draining=False,
        ))
    session.commit()
    print(sorted(registry.gone(session, ["lives", "ended"])))
    subprocess.run(["mount", "-t", "proc", "-o", "hidepid=2", "proc", "/proc"], check=True)
    os.setgid(65534), os.setuid(65534)
    print(sorted(registry.gone(session, ["lives", "ended"])))
"""


@pytest.fixture
def own_mounts() -> list[str]:
    """What a command begins with to have mounts of its own."""
    prefix = ["unshare", "--mount"]
    if os.geteuid() != 0 or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("needs root that may unshare its mounts")
    return prefix


def test_a_worker_that_is_hidden_is_not_taken_for_gone(own_mounts: list[str]) -> None:
    asked = subprocess.run(
        [*own_mounts, sys.executable, "-c", ASK], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert asked.stdout.splitlines() == ["['ended']", "[]"], asked.stderr
