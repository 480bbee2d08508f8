from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kytecron.core.dependencies import ParentState, Ready, Skip, Waiting, find_cycle, gate, trigger_ready
from kytecron.core.states import Status

SLOT = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOW = SLOT + timedelta(seconds=1)
DEADLINE = SLOT + timedelta(hours=1)
EARLIER = SLOT - timedelta(hours=2)

GOOD = ParentState(
    1, "Import", latest_status=Status.COMPLETED, latest_execution_id=11, latest_completed_at=EARLIER
)
OTHER = replace(GOOD, job_id=2, name="Prices", latest_execution_id=22)


def at_gate(*parents: ParentState, now: datetime = NOW, **rest):
    return gate(parents, slot=SLOT, deadline=DEADLINE, now=now, **rest)


# --- gate


def test_a_job_without_parents_runs():
    assert at_gate() == Ready()


def test_it_runs_when_each_parent_completed_and_names_the_executions_it_builds_on():
    assert at_gate(GOOD, OTHER) == Ready((11, 22))


def test_it_waits_for_a_parent_that_still_runs_and_says_for_which():
    assert at_gate(GOOD, replace(OTHER, active=True)) == Waiting('"Prices" to end')


def test_it_waits_for_a_parent_whose_slot_has_come_but_is_not_enqueued_yet():
    assert at_gate(replace(GOOD, due_at_or_before_slot=True)) == Waiting('"Import" to start')


def test_it_waits_for_all_that_are_busy():
    decision = at_gate(replace(GOOD, active=True), replace(OTHER, due_at_or_before_slot=True))
    assert decision == Waiting('"Import" to end, "Prices" to start')


def test_a_failed_parent_that_runs_again_is_waited_for_instead_of_being_judged():
    assert isinstance(at_gate(replace(GOOD, active=True, latest_status=Status.FAILED)), Waiting)


def test_waiting_ends_at_the_deadline_and_not_before():
    busy = replace(GOOD, active=True)
    assert isinstance(at_gate(busy, now=DEADLINE - timedelta(microseconds=1)), Waiting)
    assert at_gate(busy, now=DEADLINE) == Skip('waited too long for "Import"')


def test_a_parent_that_has_ended_by_the_deadline_is_judged_by_its_end():
    assert at_gate(GOOD, now=DEADLINE) == Ready((11,))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"latest_status": Status.FAILED}, '"Import" failed'),
        ({"latest_status": Status.TIMEOUT}, '"Import" ran into its time limit'),
        ({"latest_status": Status.LOST}, '"Import" was lost with its worker'),
        ({"latest_status": Status.CANCELLED}, '"Import" was cancelled'),
        ({"latest_status": Status.SKIPPED}, '"Import" was skipped'),
        (
            {"latest_status": None, "latest_execution_id": None, "latest_completed_at": None},
            '"Import" has never run',
        ),
        ({"enabled": False}, '"Import" is disabled'),
        ({"dead": True, "enabled": False}, '"Import" is in the dead letter queue'),
        ({"deleted": True, "enabled": False}, '"Import" was deleted'),
    ],
)
def test_it_is_skipped_with_the_reason_when_a_parent_did_not_complete(change, reason):
    assert at_gate(OTHER, replace(GOOD, **change)) == Skip(reason)


def test_every_parent_that_stands_in_the_way_is_named():
    decision = at_gate(replace(GOOD, enabled=False), replace(OTHER, latest_status=Status.FAILED))
    assert decision == Skip('"Import" is disabled, "Prices" failed')


def test_nobody_waits_for_a_slot_that_a_disabled_dead_or_deleted_parent_will_never_take():
    for change in ({"enabled": False}, {"dead": True}, {"deleted": True}):
        assert isinstance(at_gate(replace(GOOD, due_at_or_before_slot=True, **change)), Skip)


def test_the_last_run_of_a_parent_that_was_disabled_meanwhile_is_waited_for():
    assert isinstance(at_gate(replace(GOOD, enabled=False, active=True)), Waiting)


def test_a_parent_that_completed_for_this_slot_and_then_ended_its_schedule_counts():
    retired = replace(GOOD, enabled=False, latest_completed_at=SLOT + timedelta(minutes=1))
    assert at_gate(retired) == Ready((11,))


def test_require_fresh_wants_a_success_newer_than_our_own():
    assert at_gate(GOOD, require_fresh=True, last_success=EARLIER - timedelta(seconds=1)) == Ready((11,))
    decision = at_gate(GOOD, require_fresh=True, last_success=EARLIER)
    assert isinstance(decision, Skip)
    assert decision.reason.startswith('"Import" has not completed again since 2026-03-01 10:00:00 UTC')


def test_require_fresh_asks_nothing_of_a_job_that_never_succeeded():
    assert at_gate(GOOD, require_fresh=True) == Ready((11,))


def test_without_require_fresh_an_old_success_is_good_enough():
    assert at_gate(GOOD, last_success=NOW) == Ready((11,))


# --- trigger


def test_a_triggered_job_starts_once_all_its_parents_completed_since_its_own_last_start():
    assert trigger_ready([GOOD, OTHER], EARLIER - timedelta(seconds=1)) == Ready((11, 22))
    assert trigger_ready([GOOD, OTHER], None) == Ready((11, 22))


def test_a_triggered_job_waits_for_the_parents_that_have_not():
    newer = replace(OTHER, latest_completed_at=NOW)
    assert trigger_ready([GOOD, newer], EARLIER) == Waiting('"Import" to complete')


@pytest.mark.parametrize(
    "change", [{"latest_status": Status.FAILED}, {"latest_status": None}, {"deleted": True}]
)
def test_a_triggered_job_does_not_start_on_a_parent_that_did_not_complete(change):
    assert trigger_ready([replace(GOOD, **change)], None) == Waiting('"Import" to complete')


def test_a_completion_counts_whatever_became_of_the_parent_afterwards():
    assert trigger_ready([replace(GOOD, enabled=False)], None) == Ready((11,))


# --- texts


def test_texts_fit_their_columns_whatever_parents_are_called():
    parents = [replace(GOOD, job_id=n, name="a\n" * 300, deleted=True) for n in range(50)]
    decision = at_gate(*parents)
    assert isinstance(decision, Skip)
    assert len(decision.reason) <= 500
    assert "\n" not in decision.reason
    assert decision.reason.endswith("and 47 more")


# --- cycles


def test_a_cycle_is_told_as_the_path_of_who_waits_for_whom():
    # 1 waits for 2, 2 for 3; now 3 shall wait for 1.
    assert find_cycle({1: [2], 2: [3]}, 3, [1]) == [3, 1, 2, 3]


def test_a_job_cannot_wait_for_itself():
    assert find_cycle({}, 7, [7]) == [7, 7]


def test_two_ways_to_one_parent_are_no_cycle():
    assert find_cycle({2: [4], 3: [4]}, 1, [2, 3]) is None


def test_what_is_stored_for_the_job_itself_is_replaced():
    assert find_cycle({1: [2], 2: [1]}, 1, [3]) is None


def test_a_cycle_among_others_does_not_hang_the_search():
    assert find_cycle({2: [3], 3: [2]}, 1, [2]) is None


def test_the_shortest_of_several_cycles_is_told():
    assert find_cycle({2: [3], 3: [1], 4: [1]}, 1, [2, 4]) == [1, 4, 1]


def test_a_chain_of_20_000_jobs_is_searched_without_recursion():
    chain = {n: [n + 1] for n in range(20_000)}
    cycle = find_cycle(chain, 20_000, [0])
    assert cycle is not None
    assert len(cycle) == 20_002
    assert find_cycle(chain, 20_001, [0]) is None


@settings(deadline=None)
@given(
    edges=st.dictionaries(st.integers(0, 7), st.sets(st.integers(0, 7), max_size=3), max_size=8),
    job=st.integers(0, 7),
    parents=st.sets(st.integers(0, 7), max_size=3),
)
def test_a_cycle_is_found_exactly_when_the_job_can_reach_itself(edges, job, parents):
    graph = {**edges, job: parents}
    reached, todo = set(), list(parents)
    while todo:
        node = todo.pop()
        if node not in reached:
            reached.add(node)
            todo.extend(graph.get(node, ()))
    cycle = find_cycle(edges, job, parents)
    assert (cycle is not None) == (job in reached)
    if cycle is not None:
        assert cycle[0] == cycle[-1] == job
        assert all(then in graph[first] for first, then in pairwise(cycle))
