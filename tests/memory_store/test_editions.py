"""Editions of a shared memory: one serves, one job at a time replaces it, the others learn of it."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from memory_store.editions import Edition, Editions
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
