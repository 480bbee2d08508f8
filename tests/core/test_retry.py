from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kytecron.core.retry import LONGEST_DELAY, DeadLetter, Done, Policy, RetryAt, decide, delay
from kytecron.core.states import ACTIVE, UNSUCCESSFUL, Outcome, Status

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
FAILED = Outcome(Status.FAILED, error="exited with status 3")


def wait_after(policy: Policy, attempt: int) -> float:
    decision = decide(policy, attempt, FAILED, NOW)
    assert isinstance(decision, RetryAt)
    return (decision.when - NOW).total_seconds()


def test_the_default_waits_60_then_120_then_240_seconds_and_then_gives_up():
    assert [wait_after(Policy(), attempt) for attempt in range(3)] == [60, 120, 240]
    assert decide(Policy(), 3, FAILED, NOW) == DeadLetter("failed 4 times, the last: exited with status 3")


def test_a_retry_is_due_at_the_end_plus_the_delay_to_the_microsecond():
    assert decide(Policy(), 0, FAILED, NOW) == RetryAt(NOW + timedelta(seconds=60))


def test_exponential_stops_growing_at_its_ceiling_even_at_attempt_100_000():
    policy = Policy(max_retries=1_000_000, max_delay_seconds=3600)
    assert [wait_after(policy, attempt) for attempt in (5, 6, 100, 100_000)] == [1920, 3600, 3600, 3600]


def test_a_first_delay_above_the_ceiling_is_the_ceiling():
    assert wait_after(Policy(delay_seconds=7200, max_delay_seconds=3600), 0) == 3600


def test_fixed_waits_its_delay_every_time_and_knows_no_ceiling():
    policy = Policy("fixed", max_retries=50, delay_seconds=90, max_delay_seconds=10)
    assert {wait_after(policy, attempt) for attempt in range(50)} == {90}


def test_immediate_retries_at_once():
    assert wait_after(Policy("immediate"), 2) == 0


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.SKIPPED, Status.CANCELLED])
@pytest.mark.parametrize("attempt", [0, 3, 100])
def test_what_did_not_fail_is_done(status, attempt):
    assert decide(Policy(), attempt, Outcome(status), NOW) == Done()


@pytest.mark.parametrize("status", sorted(UNSUCCESSFUL))
def test_failed_timeout_and_lost_are_retried_alike_and_end_in_the_queue_alike(status):
    assert decide(Policy(), 0, Outcome(status), NOW) == RetryAt(NOW + timedelta(seconds=60))
    assert isinstance(decide(Policy(), 3, Outcome(status), NOW), DeadLetter)


def test_a_permanent_failure_is_not_retried():
    outcome = Outcome(Status.FAILED, error="no such account", permanent=True)
    assert decide(Policy(max_retries=100), 0, outcome, NOW) == DeadLetter(
        "permanent failure: no such account"
    )


def test_without_retries_the_first_failure_is_the_last():
    assert decide(Policy(max_retries=0), 0, FAILED, NOW) == DeadLetter(
        "failed once, with no retries: exited with status 3"
    )


@pytest.mark.parametrize("permanent", [False, True])
@pytest.mark.parametrize("status", sorted(UNSUCCESSFUL))
def test_a_run_cut_short_by_our_own_shutdown_starts_again_at_once_and_never_dead_letters(status, permanent):
    outcome = Outcome(status, interrupted=True, permanent=permanent)
    for policy in (Policy(), Policy(max_retries=0)):
        assert decide(policy, 0, outcome, NOW) == RetryAt(NOW)
        assert decide(policy, 10, outcome, NOW, interruptions=7) == RetryAt(NOW)


def test_attempts_cut_short_by_a_shutdown_use_up_no_retries_and_lengthen_no_delay():
    policy = Policy(max_retries=2, delay_seconds=60)
    assert decide(policy, 10, FAILED, NOW, interruptions=10) == RetryAt(NOW + timedelta(seconds=60))
    assert decide(policy, 11, FAILED, NOW, interruptions=10) == RetryAt(NOW + timedelta(seconds=120))
    assert decide(policy, 12, FAILED, NOW, interruptions=10) == DeadLetter(
        "failed 3 times, the last: exited with status 3"
    )


@pytest.mark.parametrize("status", sorted(ACTIVE))
def test_a_run_that_has_not_ended_cannot_be_decided(status):
    with pytest.raises(ValueError, match="not an ending"):
        decide(Policy(), 0, Outcome(status), NOW)


def test_an_unknown_strategy_is_taken_as_exponential_and_says_so():
    decision = decide(Policy("fibonacci"), 1, FAILED, NOW)
    assert isinstance(decision, RetryAt)
    assert decision.when == NOW + timedelta(seconds=120)
    assert "'fibonacci'" in (decision.note or "")
    assert "exponential" in (decision.note or "")


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (Outcome(Status.TIMEOUT), "ran longer than its time limit"),
        (Outcome(Status.LOST), "worker vanished"),
        (Outcome(Status.FAILED), "no message"),
        (Outcome(Status.FAILED, error="a\n  b\tc"), "the last: a b c"),
    ],
)
def test_the_reason_is_one_line_that_names_a_cause(outcome, said):
    decision = decide(Policy(), 3, outcome, NOW)
    assert isinstance(decision, DeadLetter)
    assert said in decision.reason
    assert "\n" not in decision.reason


def test_the_reason_is_short_however_long_the_error():
    decision = decide(Policy(), 3, Outcome(Status.FAILED, error="x" * 1_000_000), NOW)
    assert isinstance(decision, DeadLetter)
    assert len(decision.reason) == 500


wild = st.integers(-(10**18), 10**18)


@settings(deadline=None)
@given(
    strategy=st.sampled_from(["exponential", "fixed", "immediate", "", "nonsense"]),
    base=wild,
    ceiling=wild,
    attempt=st.integers(0, 10**6),
)
def test_waits_are_never_negative_never_endless_and_never_shrink_with_the_attempt(
    strategy, base, ceiling, attempt
):
    policy = Policy(strategy, max_retries=10**9, delay_seconds=base, max_delay_seconds=ceiling)
    now, later = delay(policy, attempt), delay(policy, attempt + 1)
    assert timedelta(0) <= now <= LONGEST_DELAY
    assert now <= later
    assert isinstance(decide(policy, attempt, FAILED, NOW), RetryAt)
