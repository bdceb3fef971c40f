"""Calls to a shard actor, by doubles of Ray: what they wait for, and what they make of the state of the actor."""

import pytest

from memory_store import actors
from memory_store.actors import ActorTableData, RayShardHandle, wait_for_actors
from memory_store.calls import CallFailed
from memory_store.policy import Failure


class Actor:
    """In these states at one look after the other, at last for good."""

    def __init__(self, *states: int) -> None:
        self.states = list(states) or [ActorTableData.ALIVE]

    def _get_local_state(self) -> int:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]


class Ray:
    """References are the number of looks after which they are ready."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks = 0
        self.got_s: list[float] = []
        monkeypatch.setattr(actors.ray, "wait", self.wait)
        monkeypatch.setattr(actors.ray, "get", self.get)

    def wait(self, references: list[int], *, num_returns: int, timeout: float) -> tuple[list[int], list[int]]:
        self.looks += 1
        ready = [reference for reference in references if reference <= self.looks][:num_returns]
        return ready, [reference for reference in references if reference not in ready]

    def get(self, reference: int, *, timeout: float) -> str:
        self.got_s.append(timeout)
        if reference > self.looks:
            raise actors.GetTimeoutError
        return "the answer"


def test_a_reply_is_fetched_once_and_only_when_it_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Ray(monkeypatch)
    assert actors._RayCall(Actor(), 4).result(60.0) == "the answer"
    assert (ray.looks, ray.got_s) == (4, [0])


def test_a_call_without_a_reply_in_time_says_how_long_it_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    Ray(monkeypatch)
    with pytest.raises(CallFailed, match=r"no reply within 0\.05 s") as failed:
        actors._RayCall(Actor(), 10**9).result(0.05)
    assert failed.value.failure is Failure.TIMED_OUT


def test_a_call_to_an_actor_that_died_ends_with_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Ray(monkeypatch)
    died = Actor(ActorTableData.ALIVE, ActorTableData.RESTARTING)
    with pytest.raises(CallFailed, match="started again") as failed:
        actors._RayCall(died, 10**9).result(60.0)
    assert failed.value.failure is Failure.RESTARTING
    assert ray.looks == 2
    assert wait_for_actors([actors._RayCall(Actor(), 10**9), actors._RayCall(died, 10**9)], 60.0) == [1]


def test_a_reply_that_came_before_the_actor_died_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    Ray(monkeypatch)
    assert actors._RayCall(Actor(ActorTableData.RESTARTING), 1).result(60.0) == "the answer"


def test_a_call_goes_by_the_state_of_the_actor_that_it_was_made_to(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Ray(monkeypatch)
    handle = RayShardHandle.__new__(RayShardHandle)
    handle._actor = Actor()
    call = actors._RayCall(handle._actor, 3)
    handle._actor = Actor(ActorTableData.RESTARTING)  # replaced meanwhile, by another thread
    assert call.result(60.0) == "the answer"
    with pytest.raises(CallFailed, match="started again"):
        handle.start("search")
    assert ray.looks == 3
