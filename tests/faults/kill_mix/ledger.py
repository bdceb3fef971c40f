"""What was ordered and what was reported, by owner of facts, and so what every generation must hold."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from kill_mix.child import Order

__all__ = ["FACTS_EACH", "Ledger"]

FACTS_EACH = 40
"""How many ids an owner has for its own: nobody else writes those."""


@dataclass(kw_only=True)
class _Write:
    """stamps: of the owner's facts after it, by id. generation: in which it is there; None while it may be there."""

    stamps: dict[int, int]
    generation: int | None = None


@dataclass(kw_only=True)
class _Owner:
    """settled: the stamps that the newest generation held when it was checked last. writes: those since, in order."""

    first_id: int
    settled: dict[int, int] = field(default_factory=dict)
    writes: list[_Write] = field(default_factory=list)

    @property
    def stamps(self) -> dict[int, int]:
        return self.writes[-1].stamps if self.writes else self.settled

    def allowed(self, generation: int) -> list[dict[int, int]]:
        """What this generation may hold: all writes reported for it and before, and with or without the open one."""
        done = [write for write in self.writes if write.generation is not None and write.generation <= generation]
        held = [done[-1].stamps if done else self.settled]
        later = self.writes[len(done) :]
        return held + [write.stamps for write in later[:1] if write.generation is None]


class Ledger:
    """base: facts that nobody ever writes again. done: where to count what was found."""

    def __init__(self, base: dict[int, int], done: Counter[str]) -> None:
        self.done = done
        self._base = base
        self._owners: dict[str, _Owner] = {}
        self._stamp = 0
        self._next_id = max(base) + 1

    def draw_write(self, owner: str, draw: np.random.Generator) -> Order:
        """An upsert or a delete that this owner has not done yet; it is open until it is reported or settled."""
        if owner not in self._owners:
            self._owners[owner] = _Owner(first_id=self._next_id)
            self._next_id += FACTS_EACH
        mine = self._owners[owner]
        assert not mine.writes or mine.writes[-1].generation is not None, f"a write of {owner} is open"
        self._stamp += 1
        held = sorted(mine.stamps)
        if held and draw.random() < 0.3:
            ids = draw.choice(held, int(draw.integers(1, len(held) + 1)), replace=False).tolist()
            kept = {fact_id: stamp for fact_id, stamp in mine.stamps.items() if fact_id not in ids}
            mine.writes.append(_Write(stamps=kept))
            return {"do": "delete", "ids": ids, "stamp": self._stamp}
        ids = (mine.first_id + draw.choice(FACTS_EACH, int(draw.integers(1, 13)), replace=False)).tolist()
        mine.writes.append(_Write(stamps=mine.stamps | dict.fromkeys(ids, self._stamp)))
        return {"do": "upsert", "ids": ids, "stamp": self._stamp}

    def report(self, owner: str, generation: int) -> None:
        """The open write of this owner is durable, says its process, in this generation."""
        writes = self._owners[owner].writes
        assert writes[-1].generation is None
        assert all(write.generation < generation for write in writes[:-1] if write.generation), "generations go on"
        writes[-1].generation = generation
        self.done["writes reported"] += 1

    def is_open(self, owner: str) -> bool:
        """Whether this owner was told to write and has not reported it."""
        writes = self._owners[owner].writes if owner in self._owners else []
        return bool(writes) and writes[-1].generation is None

    def held(self, owner: str) -> dict[int, int]:
        """The stamps of the facts of this owner once all of its writes are there, by id."""
        return self._owners[owner].stamps

    def check(self, generation: int, stamps: dict[int, int]) -> None:
        """Hold the rows of a generation against what was reported: all of it, none of what came later, nothing else.

        Generations are checked in order.
        """
        rest = dict(stamps)
        for name, owner in self._owners.items():
            held = {n: rest.pop(n) for n in range(owner.first_id, owner.first_id + FACTS_EACH) if n in rest}
            allowed = owner.allowed(generation)
            assert held in allowed, f"generation {generation}: expected of {name} one of {allowed}, found {held}"
            if len(allowed) == 2 and held == allowed[1]:
                owner.writes[-1].generation = generation  # it was never reported, but it is there, and has to stay
                self.done["unreported writes there"] += 1
        assert rest == self._base, f"generation {generation} holds others than the {len(self._base)} facts of the base"
        self.done["generations checked"] += 1

    def settle(self, newest: dict[int, int]) -> None:
        """The newest generation, which was checked, says which of the open writes are there."""
        for owner in self._owners.values():
            held = {n: stamp for n, stamp in newest.items() if 0 <= n - owner.first_id < FACTS_EACH}
            self.done["unreported writes not there"] += bool(owner.writes) and owner.writes[-1].generation is None
            owner.settled, owner.writes = held, []
