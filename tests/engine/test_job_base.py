"""CronJobBase as job authors meet it, here without a worker, as in a unit test of theirs."""

from __future__ import annotations

import re

import pytest

import kytecron
from kytecron import CronJobBase, PermanentFailure, SkipRun
from kytecron.job import ApiError


class Report(CronJobBase):
    def __init__(self) -> None:
        self.lines: list[str] = []  # and no call of the base's

    def execute(self) -> str:
        self.log("building")
        self.progress(50, "half")
        self.state["built"] = True
        return f"{self.job.name} {self.execution.attempt} {self.heartbeat()}"


def test_a_job_can_be_tested_without_a_worker(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report()
    report.set_up()
    assert report.execute() == "Report 1 True"
    report.tear_down()
    assert report.state == {"built": True}
    assert dict(report.secrets) == {}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z building\n", capsys.readouterr().out)
    assert Report().state == {}
    with pytest.raises(ApiError, match="under a worker"):
        report.api.trigger("other")


def test_a_job_without_execute_says_so() -> None:
    class Empty(CronJobBase):
        pass

    with pytest.raises(NotImplementedError, match="Empty has no execute method"):
        Empty().execute()


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), 1e12])
def test_a_heartbeat_needs_a_sensible_time(seconds: float) -> None:
    with pytest.raises(ValueError, match="write a number of seconds above 0"):
        Report().heartbeat(seconds)


def test_the_public_names_are_there() -> None:
    assert {"CronJobBase", "CronJobManager", "CronVersionControl", "CronWorker"} <= set(dir(kytecron))
    assert kytecron.CronJobManager.__name__ == "CronJobManager"
    assert kytecron.CronVersionControl.__name__ == "CronVersionControl"
    assert kytecron.CronWorker.__name__ == "CronWorker"
    assert issubclass(PermanentFailure, Exception)
    assert SkipRun("nothing new").reason == "nothing new"
    with pytest.raises(AttributeError, match="no attribute 'CronJob'"):
        _ = kytecron.CronJob
