"""Where the engines of a memory come from: started by it, or found where the jobs that share it have put them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from memory_store.editions import Edition, Editions
from memory_store.engine import Engine

__all__ = ["EngineSource", "OwnEngines", "SharedEngines"]


@dataclass(frozen=True)
class OwnEngines:
    """Of a memory that nobody else uses. start: (index, shards) -> shards that serve."""

    start: Callable[[str, int], Engine]

    def first(self, index: str, shards: int) -> Engine:
        return self.start(index, shards)

    def beside(self, serving: Engine, index: str, shards: int) -> Engine:
        """Other shards, beside those that serve."""
        return self.start(index, shards)

    def publish(self, engine: Engine) -> None:
        """Nobody else needs to know."""

    def newer(self, serving: Engine) -> Engine | None:
        """The engine that somebody else put in the place of this one; None if nobody did."""
        return None


@dataclass(frozen=True)
class SharedEngines:
    """Of a memory that jobs share by name: one of them re-divides it, all others follow.

    asked: what this job would share, if it is the first. start: an edition -> its shards, started or found.
    """

    editions: Editions
    asked: Edition
    start: Callable[[Edition], Engine]
    is_running: Callable[[], bool]

    def first(self, index: str, shards: int) -> Engine:
        return self._found(self.editions.begin(replace(self.asked, index=index, shards=shards), self.is_running))

    def beside(self, serving: Engine, index: str, shards: int) -> Engine:
        """Shards of an edition to come, which no other job sees until it is published."""
        assert serving.edition is not None, "every shared engine has its edition"
        return self.start(self.editions.after(serving.edition, index, shards))

    def publish(self, engine: Engine) -> None:
        """One step for all jobs. Raises ReindexRunning if another job was first."""
        assert engine.edition is not None, "every shared engine has its edition"
        self.editions.publish(engine.edition)

    def newer(self, serving: Engine) -> Engine | None:
        """The engine that another job put in the place of this one. Raises ShardUnavailable if it was stopped."""
        now = self.editions.now()
        if now is None:
            assert serving.edition is not None, "every shared engine has its edition"
            self.editions.require(serving.edition)
        return None if now is None or now == serving.edition else self._found(now)

    def _found(self, edition: Edition) -> Engine:
        while True:
            engine = self.start(edition)
            now = self.editions.now()
            if now == edition:
                return engine
            engine.backend.stop()  # replaced since we looked: these were started for nobody
            edition = now or self.editions.begin(self.asked, self.is_running)


EngineSource = OwnEngines | SharedEngines
