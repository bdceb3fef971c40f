"""Editions of a memory that jobs share by name: how its shards are divided and indexed now, replaced in one step."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol
from uuid import uuid4

from memory_store.errors import ReindexRunning, ShardsReplaced, ShardUnavailable, VersionMismatch
from memory_store.redaction import redact

__all__ = ["Board", "Edition", "Editions", "Running"]


@dataclass(frozen=True, kw_only=True)
class Edition:
    """What every job that uses a shared memory must know of its shards.

    number: one more with every re-division. token: in the names of its shards, so that two editions may run side by
    side. code: the version of the code that started it. first_index, first_shards: what the memory was shared with at
    first; a job that asks for that gets what there is now.
    """

    code: str
    url: str
    index: str
    shards: int
    replicas: int
    threads: int
    shard_cpus: float
    recall_share: float
    target_recall: float | None
    first_index: str
    first_shards: int
    number: int = 1
    token: str = ""


@dataclass(frozen=True, kw_only=True)
class Running:
    """A shard of a shared memory that runs. actor: its name; token: of its edition.

    is_being_made: whether a job that lives makes that edition and has not published it. end: stops the shard.
    """

    actor: str
    token: str
    is_being_made: bool
    end: Callable[[], None]


class Board(Protocol):
    """Where the jobs of a cluster find editions: small notes under a name and a number, written once."""

    def notes(self) -> Sequence[tuple[str, int]]:
        """(name, number) of every note there is."""
        ...

    def read(self, name: str, number: int) -> bytes | None:
        """None if it is gone."""
        ...

    def create(self, name: str, number: int, data: bytes) -> bool:
        """Whether it was written: False if there is one of that name and number already."""
        ...

    def delete(self, name: str, number: int) -> None: ...


class Editions:
    """The editions of the memory shared under one name. The one with the highest number serves."""

    def __init__(self, name: str, board: Board) -> None:
        self.name = name
        self._board = board

    def now(self) -> Edition | None:
        """The edition that serves; None while nobody shares a memory under the name. Raises VersionMismatch."""
        while numbers := self._numbers():
            data = self._board.read(self.name, numbers[-1])
            if data is not None:  # else it ended since we looked
                return self._parsed(data)
        return None

    def begin(self, asked: Edition, is_running: Callable[[], bool]) -> Edition:
        """The edition that serves, or the one asked for, if the name is free.

        is_running: whether shards of the name live: where none does, what was noted is of a job that is long gone.
        Raises VersionMismatch for an index or number of shards that the memory never was shared with.
        """
        while True:
            found = self.now()
            if found is None:
                if self._board.create(self.name, asked.number, _data(asked)):
                    return asked
                continue
            differs = {
                key: (ours, theirs)
                for key, ours, theirs in (
                    ("url", asked.url, found.url),
                    ("index", asked.index, found.index),
                    ("shards", asked.shards, found.shards),
                )
                if ours != theirs
            }
            if "url" not in differs and (asked.index, asked.shards) == (found.first_index, found.first_shards):
                return found
            if not differs:
                return found
            if is_running():
                said = ", ".join(f"{key}={theirs!r} instead of {ours!r}" for key, (ours, theirs) in differs.items())
                raise VersionMismatch(
                    redact(
                        f"memory {self.name!r} is already running with {said}; open it with the same options, or stop "
                        f"it with `hmn cluster stop {self.name}` once nobody needs it, or open the memory under "
                        "another name"
                    )
                )
            self.end()

    def after(self, now: Edition, index: str, shards: int) -> Edition:
        """An edition to come after this one, with shards of its own."""
        return replace(now, number=now.number + 1, token=uuid4().hex[:8], index=index, shards=shards)

    def publish(self, edition: Edition) -> None:
        """The one step: from now on this edition serves. Raises ReindexRunning if another one took its place."""
        if edition.number - 1 not in self._numbers() or not self._board.create(
            self.name, edition.number, _data(edition)
        ):
            raise ReindexRunning(
                f"expected the memory {self.name!r} to be divided as it was when this began, found that another job "
                "re-divided or stopped it meanwhile; look with `hmn cluster status` and run again"
            )
        for number in self._numbers():
            if number < edition.number:
                self._board.delete(self.name, number)

    def require(self, edition: Edition) -> None:
        """Raise ShardsReplaced if another one serves in the place of this edition, ShardUnavailable if none does."""
        found = self.now()
        if found is None:
            raise ShardUnavailable(
                f"expected the memory that is shared as {self.name!r}, found that it was stopped; open it again"
            )
        if found != edition and found.number >= edition.number:  # else it is one to come
            raise ShardsReplaced(
                f"the memory {self.name!r} has {found.shards} other shards now ({found.index}); open it again"
            )

    def left_over(self, running: Sequence[Running]) -> Sequence[Running]:
        """Those of the shards that run whose edition neither serves nor is being made.

        A job that is killed while it re-divides the memory leaves the shards that it made, or those that they replaced.
        The shards must be looked at before this is called: what a shard runs for was noted before it was started.
        """
        serves = self.now()
        return [
            shard for shard in running if not shard.is_being_made and (serves is None or shard.token != serves.token)
        ]

    def end(self) -> None:
        """The name is free again."""
        for number in self._numbers():
            self._board.delete(self.name, number)

    def _numbers(self) -> list[int]:
        return sorted(number for name, number in self._board.notes() if name == self.name)

    def _parsed(self, data: bytes) -> Edition:
        fields = json.loads(data)
        try:
            return Edition(**fields)
        except TypeError:
            raise VersionMismatch(
                f"expected the memory {self.name!r} to be shared by the code of this job, found one shared by "
                f"{fields.get('code')}; submit the job from that code, or stop it with `hmn cluster stop {self.name}`"
            ) from None


def _data(edition: Edition) -> bytes:
    return json.dumps(asdict(edition)).encode()
