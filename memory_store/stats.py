"""MemoryStats: what a memory serves, and the state of each of its shards."""

from collections.abc import Iterator
from dataclasses import dataclass

from memory_store.notebook import html_table
from memory_store.recall import RecallReport
from memory_store.shard import ShardStats

__all__ = ["MemoryStats"]


@dataclass(frozen=True, kw_only=True)
class MemoryStats:
    """What `stats()` reports. recall: recall@K of the index against exact search; 1.0 for the exact index.

    For an approximate index it comes from live searches that were repeated exactly, each shard's answers against the
    exact answers of that shard; None before the first. recall_report: the same with its interval and the softmax mass
    that was missed. created_at: when the generation was made. drift: how far its vectors are from what their encoder
    makes of the facts now, as whoever trains it last noted; None where nobody has.
    """

    url: str
    generation: int
    dim: int
    facts: int
    encoder: str | None
    recall: float | None
    shards: tuple[ShardStats, ...]
    recall_report: RecallReport | None = None
    created_at: str = ""
    drift: float | None = None

    def __repr__(self) -> str:
        return f"MemoryStats({self.url!r}, {', '.join(f'{name}={value}' for name, value in self._said())})"

    def _repr_html_(self) -> str:
        title = f"{self.url}: {', '.join(f'{name} {value}' for name, value in self._said())}"
        columns = ("shard", "rows", "fresh rows", "MiB", "index", "device", "restarts", "pid")
        rows = [
            (
                line.shard,
                f"{line.rows:,}",
                f"{line.fresh_rows:,}",
                f"{line.bytes / 2**20:,.1f}",
                line.index,
                line.device,
                line.restarts,
                line.pid,
            )
            for line in self.shards
        ]
        return html_table(title, columns, rows)

    def _said(self) -> Iterator[tuple[str, object]]:
        yield "generation", self.generation
        yield "facts", f"{self.facts:,}"
        yield "dim", self.dim
        yield "shards", len(self.shards)
        if self.recall is not None:
            yield "recall", f"{self.recall:.3f}"
        if self.drift is not None:
            yield "drift", f"{self.drift:.3f}"
        if restarts := sum(line.restarts for line in self.shards):
            yield "restarts", restarts
