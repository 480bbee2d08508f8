"""What a worker counts of itself."""

from __future__ import annotations

from kytecron.core.states import Status
from kytecron.engine.statistics import Statistics


def test_a_workers_success_rate_is_of_attempts_and_leaves_out_what_was_cancelled_or_skipped() -> None:
    statistics = Statistics()
    for status in (
        *(Status.COMPLETED, Status.FAILED, Status.TIMEOUT, Status.LOST),
        *(Status.CANCELLED, Status.CANCELLED, Status.SKIPPED),
    ):
        statistics.ended(status)
    told = statistics.as_dict()
    assert (told["completed"], told["failed"], told["cancelled"], told["skipped"]) == (1, 3, 2, 1)
    assert (told["success_rate"], told["success_rate_of"]) == (25.0, "attempts")
