"""When a worker looks for work next, and who comes to it first: decided from values alone."""

from __future__ import annotations

import math
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from kytecron.engine.lookout import (
    FRESH_SECONDS,
    LAST_TURN_SECONDS,
    TURN_SECONDS,
    Lookout,
    Sight,
    Wants,
    place,
)

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
BEGAN, ENDED = 1000.0, 1000.25
POLL = 8.0
FREE = Wants(slots=True, runs=True)
FULL = Wants(slots=True, runs=False)
STOPPING = Wants(slots=False, runs=False)


def lookout(size: int = 1, **values: object) -> Lookout:
    """A worker of a crew, which has looked a second ago."""
    made = Lookout("worker 0", concurrency=4, poll_seconds=POLL, crew=[f"worker {n}" for n in range(size)])
    made.looked_at = BEGAN - 1
    for name, value in values.items():
        setattr(made, name, value)
    return made


def instant(seconds: float, wanted: int, size: int) -> datetime:
    """An instant about so many seconds from NOW at which the first worker of a crew has this place."""
    moment = NOW + timedelta(seconds=seconds)
    crew = [f"worker {n}" for n in range(size)]
    return next(
        found
        for n in range(1000)
        if place(crew, crew[0], found := moment + n * timedelta(seconds=1)) == wanted
    )


def ago(seconds: float, wanted: int, size: int) -> datetime:
    """The same for an instant at least so long ago."""
    crew = [f"worker {n}" for n in range(size)]
    moments = (NOW - timedelta(seconds=seconds + n) for n in range(1000))
    return next(found for found in moments if place(crew, crew[0], found) == wanted)


# -- what a look tells ---------------------------------------------------------------------------------------

SOON = NOW + timedelta(seconds=2)
LATER = NOW + timedelta(seconds=4)
FAR = NOW + timedelta(seconds=60)
PAST = NOW - timedelta(seconds=3)


@pytest.mark.parametrize(
    ("sight", "wants", "wakes_at", "due"),
    [
        pytest.param(Sight(NOW, None, None, 0), FREE, BEGAN + POLL, False, id="nothing in sight"),
        pytest.param(Sight(NOW, FAR, FAR, 0), FREE, BEGAN + POLL, False, id="nothing before the next poll"),
        pytest.param(Sight(NOW, SOON, LATER, 0), FREE, ENDED + 2, False, id="a slot is next"),
        pytest.param(Sight(NOW, LATER, SOON, 0), FREE, ENDED + 2, False, id="a run is next"),
        pytest.param(Sight(NOW, LATER, SOON, 0), FULL, ENDED + 4, False, id="no room for a run"),
        pytest.param(
            Sight(NOW, SOON, SOON, 0), STOPPING, BEGAN + POLL, False, id="stopping, runs are watched"
        ),
        pytest.param(Sight(NOW, PAST, None, 0), FREE, BEGAN, True, id="a slot is due"),
        pytest.param(
            Sight(NOW, PAST, None, 0), FULL, BEGAN, True, id="a slot is due, and put into the ledger"
        ),
        pytest.param(
            Sight(NOW, PAST, None, 0), STOPPING, BEGAN + POLL, False, id="a slot is due, not for it"
        ),
        pytest.param(
            Sight(NOW, None, PAST, 1), FREE, BEGAN + POLL, True, id="a run is due: taken before it sleeps"
        ),
        pytest.param(Sight(NOW, NOW, NOW, 1), FREE, BEGAN, True, id="both are due this moment"),
    ],
)
def test_a_worker_alone_wakes_for_what_it_saw(sight: Sight, wants: Wants, wakes_at: float, due: bool) -> None:
    worker = lookout()
    worker.saw(sight, BEGAN, ENDED)
    assert worker.wakes_at(wants) == pytest.approx(wakes_at)
    assert worker.is_due(ENDED, wants) is due


@pytest.mark.parametrize(
    ("size", "number", "after"),
    [
        (1, 0, 0.0),
        (3, 0, 0.0),
        (3, 1, TURN_SECONDS),
        (3, 2, 2 * TURN_SECONDS),
        (20, 1, LAST_TURN_SECONDS / 20),
        (20, 19, LAST_TURN_SECONDS * 19 / 20),
    ],
)
def test_each_of_a_crew_comes_to_a_slot_in_its_turn(size: int, number: int, after: float) -> None:
    worker = lookout(size, poll_seconds=2000.0)
    slot = instant(2, number, size)
    worker.saw(Sight(NOW, slot, None, 0), BEGAN, ENDED)
    assert worker.wakes_at(FREE) == pytest.approx(ENDED + (slot - NOW).total_seconds() + after)
    assert worker.place == number


@pytest.mark.parametrize(
    ("size", "number", "due", "values", "left_to"),
    [
        pytest.param(1, 0, 1, {}, 0, id="alone"),
        pytest.param(3, 0, 1, {}, 0, id="the first"),
        pytest.param(3, 1, 4, {}, 1, id="the first has room for all"),
        pytest.param(3, 1, 5, {}, 0, id="the first has no room for all"),
        pytest.param(3, 2, 8, {}, 2, id="the first two have room for all"),
        pytest.param(3, 2, 9, {}, 0, id="the first two have no room for all"),
        pytest.param(3, 2, 1, {"drains": True}, 0, id="it works off what is due"),
        pytest.param(3, 2, 1, {"looked_at": BEGAN - POLL}, 0, id="nobody came while it slept"),
        pytest.param(7, 6, 1, {"left_to": 6}, 3, id="they were busy: half as many count"),
        pytest.param(7, 6, 1, {"left_to": 3}, 1, id="still busy"),
        pytest.param(7, 6, 1, {"left_to": 1}, 0, id="its own then"),
    ],
)
def test_due_runs_are_left_to_those_before_it_that_have_room_but_for_a_moment_only(
    size: int, number: int, due: int, values: dict[str, object], left_to: int
) -> None:
    worker = lookout(size, **values)
    worker.saw(Sight(NOW, None, ago(0, number, size), due), BEGAN, ENDED)
    assert (worker.left_to, worker.backlog) == (left_to, left_to == 0)
    if left_to:
        assert not worker.must_look(ENDED, FREE)
        back = ENDED + min(left_to * TURN_SECONDS, left_to * LAST_TURN_SECONDS / size)
        assert worker.wakes_at(FREE) == pytest.approx(back)
        assert worker.must_look(back + 1e-6, FREE)


@pytest.mark.parametrize(("size", "counted"), [(1, 1), (2, 8), (5, 20)])
def test_a_look_counts_no_more_than_keeps_the_crew_busy(size: int, counted: int) -> None:
    assert lookout(size).counts == counted


# -- whether to look again -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "values", "since", "wants", "must"),
    [
        pytest.param(1, {}, 0.5, FREE, False, id="nothing to expect"),
        pytest.param(1, {}, POLL, FREE, True, id="a poll later"),
        pytest.param(1, {}, POLL, STOPPING, True, id="a poll later, to hear of cancelled runs"),
        pytest.param(1, {"slot_in": 0.5}, 0.4, FREE, False, id="before the slot"),
        pytest.param(1, {"slot_in": 0.5}, 0.5, FREE, True, id="at the slot"),
        pytest.param(1, {"slot_in": 0.5}, 0.5, FULL, True, id="at the slot, without room"),
        pytest.param(1, {"slot_in": 0.5}, 0.5, STOPPING, False, id="at the slot, stopping"),
        pytest.param(1, {"run_in": 0.5}, 0.5, FREE, True, id="when the run is due"),
        pytest.param(1, {"run_in": 0.5}, 0.5, FULL, False, id="when the run is due, without room"),
        pytest.param(
            1, {"run_in": 0.0, "backlog": True}, 0.5, FREE, False, id="alone it knows what is left over"
        ),
        pytest.param(2, {"run_in": 0.0, "backlog": True}, 0.001, FREE, False, id="others had no time"),
        pytest.param(2, {"run_in": 0.0, "backlog": True}, 0.5, FREE, True, id="others may have taken it"),
        pytest.param(2, {"run_in": 0.0, "backlog": True}, 0.5, FULL, False, id="no room to take any"),
    ],
)
def test_when_the_last_look_is_too_old(
    size: int, values: dict[str, object], since: float, wants: Wants, must: bool
) -> None:
    worker = lookout(size, looked_at=BEGAN, look_by=BEGAN + POLL, **values)
    assert worker.must_look(BEGAN + since, wants) is must


def test_a_worker_that_has_never_looked_looks_now() -> None:
    assert Lookout("w", concurrency=1, poll_seconds=60).must_look(0.0, FREE)


@pytest.mark.parametrize(
    ("number", "since", "came"),
    [(0, 2.2, False), (0, 2.3, True), (1, 2.3, False)],
    ids=["too early", "the first, in time", "not the first"],
)
def test_a_foreseen_slot_is_served_before_another_look_by_the_first_alone(
    number: int, since: float, came: bool
) -> None:
    worker = lookout(2, slot_in=2.25, slot_late=5.0, looked_at=BEGAN, place=number)
    assert worker.slot_came(BEGAN + since) is came
    assert (worker.slot_in == 0) is came
    assert (worker.slot_late == 0) is came
    assert not worker.slot_came(BEGAN + since), "once"


# -- what came of it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("late", "number", "wakes_at"),
    [
        pytest.param(0.2, 0, 2000 + TURN_SECONDS, id="somebody serves it: look when they are done"),
        pytest.param(0.2, 2, 2000 + 2 * TURN_SECONDS, id="in its turn"),
        pytest.param(FRESH_SECONDS, 0, 2000 + POLL, id="somebody has forgotten a lock: no hurry"),
    ],
)
def test_a_slot_whose_job_is_locked_is_looked_at_again_without_spinning(
    late: float, number: int, wakes_at: float
) -> None:
    worker = lookout(3, slot_in=0, slot_late=late, place=number, looked_at=2000.0, look_by=2000 + POLL)
    worker.met_locked_slot(2000.0)
    assert worker.slot_in == math.inf
    assert worker.wakes_at(FREE) == pytest.approx(wakes_at)


def test_slots_that_are_for_others_wake_nobody() -> None:
    worker = lookout(slot_in=0, looked_at=BEGAN, look_by=BEGAN + POLL)
    worker.leaves_slots()
    assert worker.wakes_at(FREE) == BEGAN + POLL


@pytest.mark.parametrize(
    ("count", "backlog", "run_in"),
    [
        pytest.param(4, True, 0, id="all that it had room for: there may be more"),
        pytest.param(3, False, 0, id="fewer: those were all"),
        pytest.param(0, False, math.inf, id="none: somebody else has them"),
    ],
)
def test_a_claim_tells_whether_runs_are_left_over(count: int, backlog: bool, run_in: float) -> None:
    worker = lookout(run_in=0, backlog=True)
    worker.claimed(count, 4)
    assert (worker.backlog, worker.run_in) == (backlog, run_in)


def test_what_was_given_back_is_looked_for_when_it_may_be_claimed_again() -> None:
    worker = lookout(looked_at=BEGAN, look_by=BEGAN + POLL)
    worker.gave_back(BEGAN + 2)
    worker.gave_back(BEGAN + 3)
    assert worker.wakes_at(FREE) == BEGAN + 2
    worker.look_now()
    assert worker.must_look(BEGAN, STOPPING)


# -- turns ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10])
@pytest.mark.parametrize("step", [1, 60, 300, 3600, 86_400])
def test_workers_take_turns_and_each_is_first_equally_often(size: int, step: int) -> None:
    crew = [f"worker {number}" for number in range(size)]
    first: Counter[str] = Counter()
    for number in range(100 * size):
        moment = NOW + timedelta(seconds=step * number)
        places = {worker: place(crew, worker, moment) for worker in crew}
        assert sorted(places.values()) == list(range(size)), "every place is somebody's"
        first.update(worker for worker, found in places.items() if found == 0)
    assert all(90 <= first[worker] <= 110 for worker in crew)


@pytest.mark.parametrize("size", [2, 5, 40])
def test_a_crew_that_sees_one_slot_comes_to_it_one_after_another_and_soon(size: int) -> None:
    crew = [f"worker {number}" for number in range(size)]
    comings = []
    for worker_id in crew:
        worker = Lookout(worker_id, concurrency=4, poll_seconds=60, crew=crew)
        worker.saw(Sight(NOW, SOON, None, 0), BEGAN, BEGAN)
        comings.append(worker.wakes_at(FREE) - BEGAN - 2)
    assert min(comings) == pytest.approx(0)
    assert max(comings) < LAST_TURN_SECONDS
    assert len({round(coming, 6) for coming in comings}) == size
