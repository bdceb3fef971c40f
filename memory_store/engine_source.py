"""Where the engines of a memory come from: started by it, or found where the jobs that share it have put them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from memory_store.editions import Edition, Editions, Running
from memory_store.engine import Engine
from memory_store.errors import ShardUnavailable

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

    def discard(self, engine: Engine) -> None:
        """Let go what was started beside, and will not serve."""
        engine.backend.stop()

    def newer(self, serving: Engine) -> Engine | None:
        """The engine that somebody else put in the place of this one; None if nobody did."""
        return None


@dataclass(frozen=True)
class SharedEngines:
    """Of a memory that jobs share by name: one of them re-divides it, all others follow.

    asked: what this job would share, if it is the first. start: an edition -> its shards, started or found.
    running: all shards of the memory, whatever their edition. mark: says that this process makes an edition, until the
    object that it returns is let go or the process ends.
    """

    editions: Editions
    asked: Edition
    start: Callable[[Edition], Engine]
    running: Callable[[], Sequence[Running]]
    mark: Callable[[Edition], object]
    _marks: dict[Edition, object] = field(default_factory=dict, init=False)

    def first(self, index: str, shards: int) -> Engine:
        return self._found(self._begin(replace(self.asked, index=index, shards=shards)))

    def beside(self, serving: Engine, index: str, shards: int) -> Engine:
        """Shards of an edition to come, which no other job sees until it is published."""
        assert serving.edition is not None, "every shared engine has its edition"
        edition = self.editions.after(serving.edition, index, shards)
        self._marks[edition] = self.mark(edition)
        try:
            return self.start(edition)
        except BaseException:
            del self._marks[edition]
            self._end_left_over()  # shards that did start
            raise

    def publish(self, engine: Engine) -> None:
        """One step for all jobs. Raises ReindexRunning if another job was first."""
        assert engine.edition is not None, "every shared engine has its edition"
        self.editions.publish(engine.edition)
        self._marks.pop(engine.edition, None)

    def discard(self, engine: Engine) -> None:
        """Let go what was started beside, and will not serve."""
        assert engine.edition is not None, "every shared engine has its edition"
        engine.backend.stop()
        self._marks.pop(engine.edition, None)

    def newer(self, serving: Engine) -> Engine | None:
        """The engine that another job put in the place of this one. Raises ShardUnavailable if it was stopped."""
        now = self.editions.now()
        if now is None:
            assert serving.edition is not None, "every shared engine has its edition"
            self.editions.require(serving.edition)
        return None if now is None or now == serving.edition else self._found(now)

    def _begin(self, asked: Edition) -> Edition:
        return self.editions.begin(asked, lambda: bool(self.running()))

    def _found(self, edition: Edition) -> Engine:
        while True:
            try:
                engine = self.start(edition)
            except ShardUnavailable:
                now = self.editions.now()
                if now is None or now == edition:
                    raise
                edition = now  # others took their place, and these ended while they were looked for
                continue
            now = self.editions.now()
            if now == edition:
                self._end_left_over()
                return engine
            engine.backend.stop()  # replaced since we looked: these were started for nobody
            edition = now or self._begin(self.asked)

    def _end_left_over(self) -> None:
        """End what a job left behind that was killed while it re-divided the memory."""
        for shard in self.editions.left_over(self.running()):
            shard.end()


EngineSource = OwnEngines | SharedEngines
