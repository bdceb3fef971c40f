"""Re-indexing as a state machine: build beside what serves, verify, switch, sweep; the steps are passed in."""

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from memory_store.errors import HmnError, ReindexFailed, ReindexRunning
from memory_store.topk import PartialTopK, TopK

# B sample queries, K slots

__all__ = ["ReindexPlan", "ReindexSteps", "State", "plan_reindex", "recall_of", "run_reindex"]


class State(Enum):
    """How far a re-index is."""

    PLANNED = "planned"
    BUILT = "built"
    VERIFIED = "verified"
    SWITCHED = "switched"
    DONE = "done"


@dataclass(frozen=True, kw_only=True)
class ReindexPlan:
    """What changes. embed: all vectors anew; rebuild: other shards beside those that serve, with this index."""

    embed: bool
    rebuild: bool
    index: str
    shards: int

    @property
    def is_nothing(self) -> bool:
        return not (self.embed or self.rebuild)


class ReindexSteps(Protocol):
    """What a re-index is made of. Until `switch` returns, nothing that a caller sees may change."""

    def build(self, plan: ReindexPlan) -> None:
        """Make everything beside what serves."""
        ...

    def verify(self, plan: ReindexPlan) -> None:
        """Raise an HmnError if what was built must not serve."""
        ...

    def switch(self, plan: ReindexPlan) -> None:
        """Serve it, in one step, with everything that was written meanwhile."""
        ...

    def sweep(self, plan: ReindexPlan) -> None:
        """Let go what served before."""
        ...

    def abandon(self) -> None:
        """Let go what was built; what serves goes on."""
        ...


def plan_reindex(
    *,
    embed: bool,
    index: str | None,
    shards: int | None,
    served: tuple[str, int],
    move: bool = False,
) -> ReindexPlan:
    """What has to be done; pure. None keeps what is served: an index and a number of shards.

    move: other shards even if they are to be as these are.
    """
    wanted = (served[0] if index is None else index, served[1] if shards is None else shards)
    return ReindexPlan(
        embed=embed,
        rebuild=move or wanted != served,
        index=wanted[0],
        shards=wanted[1],
    )


def run_reindex(plan: ReindexPlan, steps: ReindexSteps) -> State:
    """Take the steps in turn. ReindexFailed says at which one it ended and why; before the switch all is as it was.

    Raises ReindexRunning where another one is under way.
    """
    if plan.is_nothing:
        return State.DONE
    state = State.PLANNED
    try:
        steps.build(plan)
        state = State.BUILT
        steps.verify(plan)
        state = State.VERIFIED
        steps.switch(plan)
        state = State.SWITCHED
    except HmnError as error:
        steps.abandon()
        if state is State.PLANNED and isinstance(error, ReindexRunning):
            raise
        doing = {State.PLANNED: "building", State.BUILT: "verifying", State.VERIFIED: "switching"}[state]
        raise ReindexFailed(f"re-indexing failed while {doing}: {error}; what served before goes on serving") from error
    except BaseException:
        steps.abandon()
        raise
    steps.sweep(plan)
    return State.DONE


def recall_of(found: TopK, expected: PartialTopK) -> float:
    """The share of the expected facts that were found; a fact of equal score in place of another counts."""
    wanted_BK: NDArray[np.bool_] = expected.fact_ids_BK >= 0
    if not wanted_BK.any():
        return 1.0
    hits = 0
    for ids_K, wanted_K, expected_K in zip(found.fact_ids_BK, wanted_BK, expected.fact_ids_BK, strict=True):
        hits += len(np.intersect1d(ids_K[ids_K >= 0], expected_K[wanted_K]))
    return hits / int(wanted_BK.sum())
