"""Editions of a shared memory: one serves, one job at a time replaces it, the others learn of it."""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest

from memory_store.editions import Edition, Editions, Running
from memory_store.engine import Engine
from memory_store.engine_source import SharedEngines
from memory_store.errors import ReindexRunning, ShardsReplaced, ShardUnavailable, VersionMismatch

FIRST = Edition(
    code="1.0+abc",
    url="/kb",
    index="exact",
    shards=2,
    first_index="exact",
    first_shards=2,
    replicas=1,
    threads=1,
    shard_cpus=0.0,
    recall_share=0.01,
    target_recall=None,
)


class Notes:
    """A board in this process. overtaken: what another job does right before the next note is written."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, int], bytes] = {}
        self.overtaken: list[Edition] = []

    def notes(self) -> Sequence[tuple[str, int]]:
        return list(self.held)

    def read(self, name: str, number: int) -> bytes | None:
        return self.held.get((name, number))

    def create(self, name: str, number: int, data: bytes) -> bool:
        if self.overtaken:
            Editions(name, self).publish(self.overtaken.pop())
        return self.held.setdefault((name, number), data) is data

    def delete(self, name: str, number: int) -> None:
        self.held.pop((name, number), None)


@pytest.fixture
def board() -> Notes:
    return Notes()


def begun(board: Notes) -> Editions:
    editions = Editions("kb", board)
    assert editions.begin(FIRST, lambda: False) == FIRST
    return editions


def test_the_first_job_chooses_and_the_next_ones_get_what_there_is(board: Notes) -> None:
    editions = begun(board)
    assert editions.begin(FIRST, lambda: True) == FIRST
    second = editions.after(FIRST, "ivf", 3)
    assert editions.now() == FIRST, "nobody sees it before it is published"
    editions.publish(second)
    assert (second.number, second.index, second.shards, second.first_shards) == (2, "ivf", 3, 2)
    asked_as_at_first = editions.begin(FIRST, lambda: True)
    asked_as_it_is = editions.begin(replace(FIRST, index="ivf", shards=3), lambda: True)
    assert asked_as_at_first == asked_as_it_is == editions.now() == second
    assert board.notes() == [("kb", 2)], "the note that it replaces is gone"


def test_other_options_are_refused_while_it_runs_and_taken_when_it_does_not(board: Notes) -> None:
    editions = begun(board)
    other = replace(FIRST, shards=5, first_shards=5)
    with pytest.raises(VersionMismatch, match=r"shards=2 instead of 5; .* `hmn cluster stop kb`"):
        editions.begin(other, lambda: True)
    with pytest.raises(VersionMismatch, match="url='/kb' instead of '/elsewhere'"):
        editions.begin(replace(FIRST, url="/elsewhere"), lambda: True)
    assert editions.begin(other, lambda: False) == other == editions.now()


def test_of_two_jobs_that_re_divide_at_once_one_is_refused(board: Notes) -> None:
    editions = begun(board)
    mine, theirs = editions.after(FIRST, "exact", 3), editions.after(FIRST, "exact", 4)
    board.overtaken = [theirs]
    with pytest.raises(ReindexRunning, match="another job re-divided"):
        editions.publish(mine)
    assert editions.now() == theirs
    with pytest.raises(ReindexRunning):
        editions.publish(mine)


def test_shards_that_were_replaced_or_stopped_say_so_and_those_to_come_do_not(board: Notes) -> None:
    editions = begun(board)
    second = editions.after(FIRST, "exact", 3)
    editions.require(FIRST)
    editions.require(second)
    editions.publish(second)
    editions.require(second)
    with pytest.raises(ShardsReplaced, match="3 other shards"):
        editions.require(FIRST)
    editions.end()
    with pytest.raises(ShardUnavailable, match="'kb', found that it was stopped"):
        editions.require(second)
    with pytest.raises(ReindexRunning, match="stopped it"):
        editions.publish(editions.after(second, "exact", 1))


def test_names_that_begin_alike_do_not_meet(board: Notes) -> None:
    begun(board)
    assert Editions("kb:2", board).now() is None
    Editions("kb:2", board).end()
    assert Editions("kb", board).now() == FIRST


def test_a_note_of_other_code_is_refused_by_name(board: Notes) -> None:
    board.create("kb", 1, b'{"code": "9.9+fff", "colour": "red"}')
    with pytest.raises(VersionMismatch, match=r"shared by 9\.9\+fff; .* `hmn cluster stop kb`"):
        Editions("kb", board).now()


class Mark:
    """Of a job that makes an edition; it goes with the job."""


class Cluster:
    """Shards in this process, by the tokens of their editions. dies: what happens instead of the start of some."""

    def __init__(self, board: Notes) -> None:
        self.board = board
        self.running: list[str] = []
        self.made: set[str] = set()
        self.dies: dict[str, Callable[[], None]] = {}

    def job(self, asked: Edition = FIRST) -> SharedEngines:
        return SharedEngines(
            editions=Editions("kb", self.board), asked=asked, start=self.start, running=self.look, mark=self.mark
        )

    def start(self, edition: Edition) -> Engine:
        self.running += [edition.token] * (edition.shards - self.running.count(edition.token))
        if edition.token in self.dies:
            self.dies.pop(edition.token)()
            raise ShardUnavailable("shard 0 of 2 did not start")
        backend = SimpleNamespace(stop=partial(self.end, edition.token))
        return Engine(cast(Any, SimpleNamespace()), cast(Any, backend), edition.index, edition)

    def end(self, token: str) -> None:
        self.running = [other for other in self.running if other != token]

    def look(self) -> list[Running]:
        return [
            Running(actor=token, token=token, is_being_made=token in self.made, end=partial(self.end, token))
            for token in self.running
        ]

    def mark(self, edition: Edition) -> object:
        self.made.add(edition.token)
        mark = Mark()
        weakref.finalize(mark, self.made.discard, edition.token)
        return mark


def test_a_division_whose_maker_was_killed_is_ended_by_whoever_opens_next_and_that_of_a_living_one_is_not(
    board: Notes,
) -> None:
    cluster = Cluster(board)
    serving = cluster.job().first("exact", 2)
    maker = cluster.job()
    new = maker.beside(serving, "exact", 3)
    assert new.edition is not None
    assert cluster.job().first("exact", 2).edition == FIRST
    assert cluster.running == [FIRST.token] * 2 + [new.edition.token] * 3, "it may take hours; its maker lives"
    del maker  # killed
    assert cluster.job().first("exact", 2).edition == FIRST
    assert cluster.running == [FIRST.token] * 2


def test_shards_that_were_replaced_by_a_job_that_was_killed_then_are_ended_by_whoever_follows(board: Notes) -> None:
    cluster = Cluster(board)
    follower = cluster.job()
    serving = follower.first("exact", 2)
    maker = cluster.job()
    new = maker.beside(serving, "exact", 3)
    maker.publish(new)
    assert len(cluster.running) == 5, "who replaced them ends them, after its last call on them"
    assert follower.newer(new) is None
    del maker  # killed
    found = follower.newer(serving)
    assert found is not None
    assert found.edition == new.edition
    assert cluster.running == [found.edition.token] * 3


def test_shards_that_no_note_names_end_with_their_maker_or_before_the_name_is_used_again(board: Notes) -> None:
    cluster = Cluster(board)
    maker = cluster.job()
    new = maker.beside(cluster.job().first("exact", 2), "exact", 3)
    Editions("kb", board).end()
    cluster.end(FIRST.token)  # `hmn cluster stop` while they were made
    with pytest.raises(ReindexRunning):
        maker.publish(new)
    maker.discard(new)
    assert cluster.running == []
    assert not cluster.made
    cluster.running = ["of-a-job-that-was-killed"] * 3
    assert cluster.job().first("exact", 2).edition == FIRST
    assert cluster.running == [FIRST.token] * 2


def test_a_division_that_cannot_be_started_leaves_nothing(board: Notes) -> None:
    cluster = Cluster(board)
    job = cluster.job()
    serving = job.first("exact", 2)
    start = cluster.start

    def fails(edition: Edition) -> Engine:
        start(edition)
        raise ShardUnavailable("shard 2 of 3 did not start within 120 s")

    failing = replace(job, start=fails)
    with pytest.raises(ShardUnavailable, match="shard 2 of 3"):
        failing.beside(serving, "exact", 3)
    assert cluster.running == [FIRST.token] * 2
    assert not cluster.made


def test_a_job_that_opens_while_another_one_re_divides_gets_the_new_shards(board: Notes) -> None:
    cluster = Cluster(board)
    maker = cluster.job()
    serving = maker.first("exact", 2)
    new = maker.beside(serving, "exact", 3)

    def replaced() -> None:
        maker.publish(new)
        cluster.end(FIRST.token)

    cluster.dies = {FIRST.token: replaced}
    assert cluster.job().first("exact", 2).edition == new.edition
    cluster.dies = {cast(Edition, new.edition).token: lambda: None}
    with pytest.raises(ShardUnavailable, match="did not start"):
        cluster.job().first("exact", 2)
    cluster.dies = {cast(Edition, new.edition).token: Editions("kb", board).end}
    with pytest.raises(ShardUnavailable, match="did not start"):
        cluster.job().first("exact", 2)
