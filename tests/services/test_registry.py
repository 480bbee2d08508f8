"""Which workers live, which of this machine are gone, seen with the real /proc, and whose turn it is."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.orm import Session

from kytecron.config import ROOT, Settings
from kytecron.services import registry
from kytecron.store import db
from tests.factories import add_worker

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
from kytecron.requestdb import db
from kytecron.store.models import CronWorkerRecord

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


def test_a_crew_is_who_lives_and_takes_the_same_work(session: Session) -> None:
    now = db.now(session)
    settings = Settings(worker_tags="gpu,big", lease_seconds=60)
    others: dict[str, dict[str, Any]] = {
        "b alike": {},
        "a alike": {},
        "without the tags": {"tags": ""},
        "stopped": {"stopped_at": now},
        "about to stop": {"draining": True},
        "not heard of": {"last_seen_at": now - timedelta(seconds=61)},
    }
    for name, values in others.items():
        add_worker(session, name, **{"tags": "big,gpu"} | values)
    assert registry.crew(session, settings) == ["a alike", "b alike"]


def test_who_has_no_descriptors_left_takes_nobody_for_gone(session: Session) -> None:
    here = registry.this_process()
    add_worker(
        session, "alive", host=here.host, boot_id=here.boot_id, pid=here.pid, process_started=here.started
    )
    add_worker(session, "ended", host=here.host, boot_id=here.boot_id, pid=2**22 + 1, process_started="1")
    assert registry.gone(session, ["alive", "ended"]) == {"ended"}
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/dev/null", os.O_RDONLY)  # what is free is filled up to the limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        assert registry.gone(session, ["alive", "ended"]) == set()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        os.close(lowest)
