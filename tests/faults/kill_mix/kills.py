"""Whom to kill and when, drawn from a seed; pure."""

from dataclasses import dataclass

import numpy as np

__all__ = ["VICTIMS", "Kill", "draw_kills"]

VICTIMS = ("node", "shard", "driver", "writer", "reindexer", "compactor", "redivider")
_AT_RANDOM = (*VICTIMS, "cluster")
_PROCESSES = ("writer", "driver", "reindexer", "compactor", "redivider")  # those that can be told when to die
_MOST_STEPS, _MOST_REPORTS = 25, 30
_MOST_STEPS_DIVIDING = 60  # of which one re-division takes about twenty


@dataclass(frozen=True, kw_only=True)
class Kill:
    """steps: of the victim (see child.py); reports: of anybody. One of the two is set.

    early: count reports from the beginning of the round, when those that were killed before may still be starting, and
    the victim with them. which: picks one where there are several of a kind.
    """

    victim: str
    steps: int | None
    reports: int | None
    early: bool
    which: int

    def __str__(self) -> str:
        at = f"before its step {self.steps}" if self.steps else f"after report {self.reports}"
        return f"kill -9 of a {self.victim} {at}"


def draw_kills(seed: int, rounds: int) -> list[Kill]:
    """Every one of VICTIMS once, the node first, for then it holds shards; then any, now and then the whole cluster.

    Fewer rounds are the beginning of more.
    """
    draw = np.random.default_rng(seed)
    kills = [_draw_kill(victim, draw) for victim in (VICTIMS[0], *draw.permutation(VICTIMS[1:]).tolist())]
    while len(kills) < rounds:
        kills.append(_draw_kill(str(draw.choice(_AT_RANDOM)), draw, early=draw.random() < 0.3))
    return kills


def _draw_kill(victim: str, draw: np.random.Generator, *, early: bool = False) -> Kill:
    most_steps = _MOST_STEPS_DIVIDING if victim == "redivider" else _MOST_STEPS
    by_steps = victim in _PROCESSES and draw.random() < 0.6
    return Kill(
        victim=victim,
        steps=int(draw.integers(1, most_steps + 1)) if by_steps else None,
        reports=None if by_steps else int(draw.integers(1, _MOST_REPORTS + 1)),
        early=early,
        which=int(draw.integers(1 << 16)),
    )
