"""What the service answers, as frozen dataclasses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = [
    "Answer",
    "AskResult",
    "Fact",
    "FactRead",
    "MemoryInfo",
    "RefreshResult",
    "SearchResult",
    "ShardInfo",
    "WriteResult",
]


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A fact to write. aliases: further names of the subject. objects: names of object_ids, none or one for each."""

    subject_id: str
    relation: str
    object_ids: Sequence[str]
    subject: str | None = None
    aliases: Sequence[str] = ()
    objects: Sequence[str | None] = ()


@dataclass(frozen=True, kw_only=True)
class FactRead:
    """A fact that was read. weight: its share of the attention. objects: names, or ids where there is no name."""

    fact_id: int
    subject_id: str | None
    subject: str | None
    relation: str | None
    objects: tuple[str, ...]
    object_ids: tuple[str, ...]
    score: float | None
    weight: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """answer: what the fact of largest weight leads to; empty where the memory holds no fact. facts: best first."""

    text: str
    answer: tuple[str, ...]
    facts: tuple[FactRead, ...]


@dataclass(frozen=True, kw_only=True)
class AskResult:
    """Answers in the order of the questions, of one generation and one model.

    coverage: share of the facts that was searched. latency_ms: inside the service, by stage.
    """

    answers: tuple[Answer, ...]
    generation: int
    coverage: float
    model: str
    latency_ms: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """Per vector the ids and inner products of its nearest facts, best first."""

    fact_ids: tuple[tuple[int, ...], ...]
    scores: tuple[tuple[float | None, ...], ...]
    generation: int
    coverage: float
    model: str
    latency_ms: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One shard of the memory that is served."""

    shard: int
    rows: int
    bytes: int
    restarts: int


@dataclass(frozen=True, kw_only=True)
class MemoryInfo:
    """What is served. limits: what one request may hold."""

    generation: int
    created_at: str
    facts: int
    dim: int
    model: str
    checkpoint_step: int
    index: str
    backend: str
    shards: tuple[ShardInfo, ...]
    limits: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class RefreshResult:
    """moved: "generation" or "model" where something newer was rolled out, else "stay"."""

    moved: str
    generation: int


@dataclass(frozen=True, kw_only=True)
class WriteResult:
    """generation: the one that shows the change. fact_ids: written or deleted.

    unknown: of the ids to delete, those that the memory did not hold.
    """

    generation: int
    fact_ids: tuple[int, ...]
    unknown: tuple[int, ...]
