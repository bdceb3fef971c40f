"""The stages of a long command: what each took and held, shown as it ends and in one table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from deploy.bench.process_memory import FamilyMemory
from deploy.console import Console, duration, size

__all__ = ["Stage", "Stages"]


@dataclass(kw_only=True)
class Stage:
    """done: how many of `unit` it worked on; 0 where that says nothing. peak_bytes: as FamilyMemory counts."""

    name: str
    seconds: float = 0.0
    peak_bytes: int = 0
    done: int = 0
    unit: str = ""

    def did(self, done: int, unit: str) -> None:
        """Note what was worked on, for the rate."""
        self.done, self.unit = done, unit

    @property
    def rate(self) -> str:
        """`1,200 facts a second`; empty where nothing was counted."""
        return f"{self.done / self.seconds:,.0f} {self.unit} a second" if self.done and self.seconds else ""

    def __str__(self) -> str:
        return ", ".join(filter(None, [duration(self.seconds), self.rate, f"at most {size(self.peak_bytes)}"]))


class Stages:
    """Says on the console what goes on. With --json that is on stderr, and `story` is for stdout."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began_s = time.monotonic()
        self.ended: list[Stage] = []

    @property
    def seconds(self) -> float:
        """Since the first stage was to begin."""
        return time.monotonic() - self._began_s

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[Stage]:
        """Time a stage, and watch the memory of this process and all that it started."""
        stage = Stage(name=name)
        if not self._console.json:
            self._console.write(f"\n{title}")
        began_s = time.monotonic()
        with FamilyMemory(every_s=1.0) as memory:
            yield stage
            stage.seconds = time.monotonic() - began_s
        self._console.close_bars()
        stage.peak_bytes = memory.peak_bytes
        self.ended.append(stage)
        self.say(f"[{stage}]")

    def say(self, text: str) -> None:
        """One line about the stage that goes on, or ended last."""
        if self._console.json:
            self._console.say(text)
        else:
            self._console.write(f"  {text}")

    def story(self) -> dict[str, Any]:
        """Every stage's numbers, by its name."""
        return {stage.name: asdict(stage) for stage in self.ended}

    def show(self) -> None:
        """The table of all stages."""
        rows = [(stage.name, duration(stage.seconds), stage.rate, size(stage.peak_bytes)) for stage in self.ended]
        rows.append(("all", duration(self.seconds), "", size(max(stage.peak_bytes for stage in self.ended))))
        self._console.table(("stage", "time", "rate", "most memory"), rows)
