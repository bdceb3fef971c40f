"""The failure policy: reports in, decisions out."""

import pytest

from memory_store.policy import Decision, Failure, Partial, ShardPolicy, ShardReport


def report(failure: Failure, *, failures: int = 1, remaining_s: float = 10.0) -> ShardReport:
    return ShardReport(shard=3, failures=failures, failure=failure, remaining_s=remaining_s)


@pytest.mark.parametrize("failures", [1, 5, 500])
def test_a_restarting_shard_is_waited_for_until_the_deadline(failures: int) -> None:
    policy = ShardPolicy()
    assert policy.decide(report(Failure.RESTARTING, failures=failures), Partial.REFUSE) is Decision.RETRY
    assert policy.decide(report(Failure.RESTARTING, remaining_s=0.0), Partial.REFUSE) is Decision.FAIL


def test_a_shard_that_is_gone_is_replaced_but_not_for_ever() -> None:
    policy = ShardPolicy(most_replacements=2)
    assert policy.decide(report(Failure.GONE, failures=2), Partial.REFUSE) is Decision.REPLACE
    assert policy.decide(report(Failure.GONE, failures=3), Partial.REFUSE) is Decision.FAIL


def test_a_late_answer_fails_the_call_because_asking_again_would_be_later_still() -> None:
    assert ShardPolicy().decide(report(Failure.TIMED_OUT, remaining_s=0.0), Partial.REFUSE) is Decision.FAIL


@pytest.mark.parametrize(
    ("failure", "decision"),
    [
        (Failure.RESTARTING, Decision.SKIP),
        (Failure.TIMED_OUT, Decision.SKIP),
        (Failure.GONE, Decision.SKIP_AND_REPLACE),
    ],
)
def test_where_partial_answers_are_allowed_nothing_waits(failure: Failure, decision: Decision) -> None:
    assert ShardPolicy().decide(report(failure), Partial.ALLOW) is decision


def test_pauses_double_up_to_a_bound_and_never_pass_the_deadline() -> None:
    policy = ShardPolicy(pause_s=0.1, longest_pause_s=0.4)
    pauses = [policy.pause_before_retry_s(report(Failure.RESTARTING, failures=n)) for n in (1, 2, 3, 4, 10_000)]
    assert pauses == [0.1, 0.2, 0.4, 0.4, 0.4]
    assert policy.pause_before_retry_s(report(Failure.RESTARTING, failures=3, remaining_s=0.03)) == 0.03
