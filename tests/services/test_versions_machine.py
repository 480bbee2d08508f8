"""Whatever people do to jobs and versions, in whatever order: the counts, the numbers and the history stay true."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy.orm import Session

from kytecron.core.errors import Conflict, NotFound
from kytecron.core.source import normalise
from kytecron.services import lifecycle
from kytecron.services.audit import Actor
from kytecron.services.jobs import CronJobManager
from kytecron.services.versions import CONTENT, VERSION, CronVersionControl, unpack
from kytecron.store.models import Base, CronJob

ANNA = Actor("anna")
SOURCES = [
    f"class Job(CronJobBase):\n    def execute(self):\n        self.log({text!r})\n" for text in "abcdé"
]
# The same sources as browsers and editors send them.
CODES = st.sampled_from(
    [
        *SOURCES,
        *(source.replace("\n", "\r\n") for source in SOURCES),
        SOURCES[0].rstrip(),
        SOURCES[1] + "\n\n",
    ]
)

MOST_JOBS = 2
"""Alive at once: few, so that a run gets far with each."""


@dataclass
class Job:
    """What a job must look like."""

    id: int
    sources: dict[int, str]
    current: int = 1
    newest: int = 1
    asked_for: set[int] = field(default_factory=set)


class Versions(RuleBasedStateMachine):
    """Jobs and versions against a model of a few dictionaries. `session` is set by the test."""

    session: Session
    jobs = Bundle("jobs")

    @initialize(target=jobs)
    def a_job_with_some_history(self) -> Job:
        self.session.rollback()
        for table in reversed(Base.metadata.sorted_tables):
            self.session.execute(table.delete())
        self.session.commit()
        self.manager = CronJobManager(self.session, ANNA)
        self.control = CronVersionControl(self.session, ANNA)
        self.known: list[Job] = []
        self.living = 0
        job = self.create(SOURCES[0])
        for source in SOURCES[1:4]:
            self.save(job, source)
        return job

    def add(self, row: CronJob, source: str) -> Job:
        job = Job(row.id, {1: source})
        self.known.append(job)
        self.living += 1
        return job

    @precondition(lambda self: self.living < MOST_JOBS)
    @rule(target=jobs, code=CODES)
    def create(self, code: str) -> Job:
        return self.add(self.manager.create_job(name=f"job {len(self.known)}", code=code), normalise(code))

    @rule(job=jobs, code=CODES)
    def save(self, job: Job, code: str) -> None:
        version = self.control.create_version(job.id, code, base_version=job.current)
        if normalise(code) == job.sources[job.current]:
            assert version is None
            return
        assert version is not None
        job.newest += 1
        assert version.version_number == job.newest
        job.current = job.newest
        job.sources[job.newest] = normalise(code)

    @rule(job=jobs, data=st.data())
    def roll_back(self, job: Job, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(job.sources)))
        if number == job.current:
            with pytest.raises(Conflict):
                self.manager.rollback(job.id, number)
        else:
            self.manager.rollback(job.id, number)
            job.current = number

    @rule(job=jobs, number=st.integers(1, 8))
    def roll_back_to_what_is_not_there(self, job: Job, number: int) -> None:
        if number not in job.sources:
            with pytest.raises(NotFound):
                self.manager.rollback(job.id, number)

    @rule(job=jobs, keep=st.integers(1, 3))
    def prune(self, job: Job, keep: int) -> None:
        kept = {*sorted(job.sources)[-keep:], job.current, *job.asked_for}
        assert self.control.prune(job.id, keep) == len(job.sources.keys() - kept)
        job.sources = {number: source for number, source in job.sources.items() if number in kept}

    @precondition(lambda self: any(not job.asked_for for job in self.known))
    @rule(job=jobs, data=st.data())
    def ask_for_a_run_of(self, job: Job, data: st.DataObject) -> None:
        if not job.asked_for:
            number = data.draw(st.sampled_from(sorted(job.sources)))
            lifecycle.trigger(self.session, job.id, version=number, actor=ANNA)
            job.asked_for.add(number)

    @rule(job=consumes(jobs))
    def delete(self, job: Job) -> None:
        self.manager.delete(job.id)
        self.living -= 1

    @precondition(lambda self: self.living < MOST_JOBS)
    @rule(target=jobs, job=jobs)
    def clone(self, job: Job) -> Job:
        copy = self.manager.clone(job.id)
        self.manager.enable(copy.id)
        return self.add(copy, job.sources[job.current])

    @invariant()
    def every_version_is_there_and_reads_back(self) -> None:
        self.session.rollback()
        rows = self.session.execute(sa.select(VERSION).order_by(VERSION.c.version_number)).all()
        contents = {row.content_hash: row for row in self.session.execute(sa.select(CONTENT))}
        sources = {digest: unpack(row.code, row.size_bytes, digest) for digest, row in contents.items()}
        stored: dict[int, dict[int, str]] = {job.id: {} for job in self.known}
        for row in rows:
            stored[row.cron_job][row.version_number] = sources[row.content_hash]
        assert stored == {job.id: job.sources for job in self.known}
        counts = {digest: row.reference_count for digest, row in contents.items()}
        assert counts == Counter(row.content_hash for row in rows)

    @invariant()
    def exactly_one_version_of_each_job_is_current(self) -> None:
        flagged = self.session.execute(
            sa.select(VERSION.c.cron_job, VERSION.c.version_number).where(VERSION.c.is_current.is_(True))
        )
        pointed = self.session.execute(sa.select(CronJob.id, CronJob.current_version))
        expected = sorted((job.id, job.current) for job in self.known)
        assert sorted(map(tuple, flagged)) == sorted(map(tuple, pointed)) == expected


def test_any_sequence_of_changes_keeps_counts_numbers_and_history_true(session: Session) -> None:
    Versions.session = session
    run_state_machine_as_test(
        Versions,
        settings=settings(
            max_examples=10 if session.get_bind().dialect.name == "sqlite" else 5,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
