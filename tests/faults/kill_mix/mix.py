"""The mix: one memory under load; in every round somebody is killed, and then the memory must be what was reported.

The victim is a process that writes, embeds anew, compacts, divides the shards anew or drives (which is where the
coordinator lives), a shard, the node beside the head with all that runs on it, or the whole cluster with its drivers.
The instant is a number of steps that the victim takes, or of reports heard from anybody; no clock says when. The load
goes on meanwhile, until everybody else has reported twice more. Then all is quiet for a moment.
"""

from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from kill_mix.child import Order, Report
from kill_mix.crew import Crew, Member
from kill_mix.facts import DIM, SCALES, encode, facts_table
from kill_mix.kills import Kill
from kill_mix.ledger import Ledger
from kill_mix.nodes import Nodes
from kill_mix.rows import read_rows
from kill_mix.writer import write

from memory_store import MemoryWriter
from memory_store.manifest import generations
from memory_store.storage import Storage
from memory_store.upkeep import inspect_memory, sweep, verify_memory

__all__ = ["Mix"]

_NAME = "mixed"
_BASE_ROWS = 300
_LATER_S = 1e12
_LOAD = {"writer-1": "writer", "writer-2": "writer", "driver-1": "driver", "driver-2": "driver"}
_UPKEEP = ("compactor", "reindexer", "redivider")
_ON_RAY = ("driver", "redivider")
_INDEXES = ("exact", "exact?scan=float32", "exact?scan=int8")
_MOST_BEHIND = 20  # reports of the load between two of who works on Ray, and is not only to be overtaken
_KEPT = (1, 5, 50)  # generations that a sweep leaves
_LONGEST_REST = 30  # reports of others between two orders to those that do upkeep
_REPORTS_AFTER = 2  # the first may be of what was done before the kill


class Mix:
    """A context manager: its processes end with it. done: where to count what happens."""

    def __init__(self, folder: Path, seed: int, done: Counter[str]) -> None:
        self.done = done
        self._draw = np.random.default_rng([seed, 1])
        self._storage = Storage(folder / "memory")
        base = facts_table(list(range(_BASE_ROWS)), 0)
        with MemoryWriter(self._storage, dim=DIM, part_rows=_BASE_ROWS // 3) as writer:
            writer.append(base, encode(base, SCALES[0]))
        self._ledger = Ledger(dict.fromkeys(range(_BASE_ROWS), 0), self.done)
        self._checked = 1
        self._crew = Crew(folder)
        self._nodes = Nodes()
        self._dividing = False  # whether shards are divided anew in this round: most of the work there is
        self._rest: Counter[str] = Counter()  # reports to wait for, by name
        self._behind: Counter[str] = Counter()  # reports of the load since their own, by name
        self._since: Counter[str] = Counter()  # reports since the kill, by name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._crew.close()
        finally:
            self._nodes.kill_all()

    def round(self, kill: Kill | None) -> None:
        """Load until the kill and for a while after it, then a check of everything. None: nobody is killed."""
        self._dividing = kill is not None and kill.victim == "redivider"
        self._staff()
        victim = None if kill is None else self._victim(kill)
        armed, heard, struck = False, 0, kill is None
        self._since.clear()
        while not (struck and self._all_went_on()):
            for name in self._idle(kill):
                order = self._order(name)
                if kill is not None and kill.steps and name == victim and not armed:
                    order["die_at"], armed = kill.steps, True
                self._crew.order(name, order)
            member, report = self._crew.hear()
            self._note(member, report)
            if kill is None or struck:
                continue
            if report is None:  # the victim itself has done it
                self._note_kill(kill)
                struck = True
            elif kill.reports:
                heard += kill.early or not self._crew.starting
                if heard >= kill.reports and self._strike(kill, victim):
                    self._note_kill(kill)
                    struck = True
        while self._crew.owing:
            self._note(*self._crew.hear())
        self._check()
        self.done["rounds"] += 1

    def end(self) -> None:
        """Once all processes have ended: what they left over is swept away, and nothing else is."""
        self._crew.close()
        self._check()
        sweep(self._storage, now_s=_LATER_S)
        self._check()
        report = inspect_memory(self._storage)
        assert (report.unnamed_files, [kept.readers for kept in report.generations]) == (0, [(), ()])

    # Who is there, and what they do

    def _staff(self) -> None:
        """Start, or start again, whoever is missing."""
        wanted = _LOAD | {name: name for name in _UPKEEP if name != "redivider" or self._dividing}
        missing = {name: kind for name, kind in wanted.items() if name not in self._crew.members}
        for name, kind in missing.items():
            if kind not in _ON_RAY:
                self._crew.start(kind, name, self._storage.url)
        self._nodes.restore()
        for name, kind in missing.items():
            if kind in _ON_RAY:
                address = {"RAY_ADDRESS": self._nodes.address}
                self._crew.start(kind, name, self._storage.url, _NAME, environment=address)

    def _victim(self, kill: Kill) -> str | None:
        """The name of the process to kill; None where it is not one of the crew."""
        names = sorted(name for name, member in self._crew.members.items() if member.kind == kill.victim)
        return names[kill.which % len(names)] if names else None

    def _idle(self, kill: Kill | None) -> list[str]:
        """Those that wait for an order and are to get one."""
        idle = []
        living = {name for name, member in self._crew.members.items() if not member.killed}
        slow = {name for name in living if self._behind[name] >= _MOST_BEHIND}
        for name, member in self._crew.members.items():
            rests = name in _UPKEEP and self._rest[name] > 0 and not (kill and kill.victim == member.kind)
            rests |= name in _LOAD and bool(slow - {name})
            if name == "redivider":  # after a cluster died nobody shares the memory until a driver opens it
                rests |= not (self._dividing and self._is_shared())
            if not member.owes and not rests:
                idle.append(name)
        return idle

    def _is_shared(self) -> bool:
        members = self._crew.members.values()
        return any(member.kind == "driver" and member.is_ready and not member.killed for member in members)

    def _order(self, name: str) -> Order:
        draw = self._draw
        self._rest[name] = int(draw.integers(_LONGEST_REST))
        match self._crew.members[name].kind:
            case "driver" if draw.random() < 0.75:
                return {"do": "search", "seed": int(draw.integers(1 << 32))}
            case "writer" | "driver":
                return self._ledger.draw_write(name, draw)
            case "reindexer":
                return {"scale": int(draw.choice(SCALES)), "keep_last": int(draw.choice(_KEPT))}
            case "redivider":
                return {"index": str(draw.choice(_INDEXES)), "shards": int(draw.integers(1, 3))}
        return {
            "dead_share": float(draw.choice([0.0, 0.2, 1.0])),
            "part_rows": int(draw.choice([50, 400])),
            "keep_last": int(draw.choice(_KEPT)),
        }

    def _note(self, member: Member, report: Report | None) -> None:
        self._rest.subtract(_UPKEEP)
        self._behind[member.name] = 0
        if report is None:
            return
        self._since[member.name] += 1
        if member.name in _LOAD:
            self._behind.update(
                name for name, other in self._crew.members.items() if other.owes and other.kind in _ON_RAY
            )
        if "generation" in report and self._ledger.is_open(member.name):
            self._ledger.report(member.name, report["generation"])
        self.done["answers checked"] += report.get("checked", 0)
        for said, what in (("compacted", "compactions"), ("embedded", "embeddings"), ("divided", "re-divisions")):
            self.done[what] += report.get(said) is not None

    def _is_at_work_on_ray(self, name: str) -> bool:
        member = self._crew.members[name]
        return member.owes and member.kind in _ON_RAY

    # The kill and what must hold after it

    def _strike(self, kill: Kill, victim: str | None) -> bool:
        """Kill from outside; False where nobody of the kind runs at this moment."""
        match kill.victim:
            case "shard":
                return self._nodes.kill_shard(kill.which)
            case "node" if not self._nodes.node_has_shards():
                self._dividing = True  # so that there is something to lose
                self._staff()
                return False
            case "node":
                self._nodes.kill_node()
            case "cluster":
                self._nodes.kill_all()
                for name in [name for name, member in self._crew.members.items() if member.kind in _ON_RAY]:
                    self._crew.kill(name)
            case _:
                assert victim is not None
                self._crew.kill(victim)
        return True

    def _note_kill(self, kill: Kill) -> None:
        self.done[f"{kill.victim}s killed"] += 1
        self._since.clear()

    def _all_went_on(self) -> bool:
        return all(
            self._since[name] >= _REPORTS_AFTER
            for name, member in self._crew.members.items()
            if name in _LOAD and not member.killed
        )

    def _check(self) -> None:
        """Everything reported is there, every byte verifies, and the next writer succeeds."""
        newest: dict[int, int] = {}
        for generation in generations(self._storage):
            if generation >= self._checked:
                newest = read_rows(self._storage, generation).stamps
                self._ledger.check(generation, newest)
                self._checked = generation
        self._ledger.settle(newest)
        report = verify_memory(self._storage)
        assert report.problems == (), report.problems
        order = self._ledger.draw_write("mix", self._draw)
        self._ledger.report("mix", write(self._storage, order)["generation"])
