"""`hmn bench recovery`: kill -9 of shards; how long until they answer again, and what replicas spare callers."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploy.bench.live import Searches, search_during
from deploy.console import Console
from deploy.options import examples, json_option
from memory_store.progress import Progress, silent

if TYPE_CHECKING:
    from memory_store.memory import Memory

__all__ = ["RecoveryFigures", "command", "run_recovery_bench"]

_K = 10
_QUERIES = 8
_LIMIT_S = 120.0
_IDLE_S = 3.0


@dataclass(frozen=True, kw_only=True)
class RecoveryFigures:
    """recoveries_s: from each kill -9 of the one copy of a shard to the next complete and right answer.

    back_s: with two copies, from each kill until the copy is asked again. searches: what one searcher saw with two
    copies, idle and during these kills.
    """

    facts: int
    dim: int
    shards: int
    index: str
    recoveries_s: tuple[float, ...]
    back_s: tuple[float, ...]
    searches: tuple[Searches, ...]


def run_recovery_bench(
    folder: Path,
    *,
    facts: int,
    dim: int,
    shards: int = 1,
    kills: int = 3,
    index: str = "exact",
    idle_s: float = _IDLE_S,
    seed: int = 0,
    progress: Progress = silent,
) -> RecoveryFigures:
    """Measure on Ray, in an empty folder."""
    import numpy as np
    import pyarrow as pa

    from memory_store.opening import open_memory
    from memory_store.writer import MemoryWriter

    rng = np.random.default_rng(seed)
    url = str(folder / "memory")
    vectors_ND = rng.standard_normal((facts, dim), dtype=np.float32)
    vectors_ND[0] = 0.0
    vectors_ND[0, 0] = 100.0  # the best answer to a query like it, whoever gives it
    with MemoryWriter(url, dim=dim) as writer:
        writer.append(pa.table({"fact_id": np.arange(facts)}), vectors_ND)
    queries_BD = np.concatenate([vectors_ND[:1], rng.standard_normal((_QUERIES - 1, dim), dtype=np.float32)])
    del vectors_ND
    with open_memory(url, shards, index, "ray") as memory:
        expected = memory.search(queries_BD, _K).fact_ids_BK
        recoveries_s = []
        for number in range(kills):
            pid = memory.stats().shards[number % shards].pid
            began_s = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            while memory.stats().shards[number % shards].pid == pid:  # until the signal has come through
                time.sleep(0.001)
            found = memory.search(queries_BD, _K, deadline_s=_LIMIT_S)
            recoveries_s.append(time.monotonic() - began_s)
            if found.coverage < 1.0 or not np.array_equal(found.fact_ids_BK, expected):
                raise click.ClickException("a restarted shard answers otherwise than before")
            progress("recovery", number + 1, 2 * kills, unit="kills")
    back_s: list[float] = []
    with open_memory(url, shards, index, "ray", replicas=2) as memory:
        memory.search(queries_BD, _K)
        watched = [search_during(memory, queries_BD, "nothing else", lambda: time.sleep(idle_s))]

        def kill_in_turn() -> None:
            for number in range(kills):
                back_s.append(_kill_copy(memory, number % shards, number // shards % 2))
                progress("recovery", kills + number + 1, 2 * kills, unit="kills")

        watched.append(search_during(memory, queries_BD, f"{kills} kills of one copy of two", kill_in_turn))
    return RecoveryFigures(
        facts=facts,
        dim=dim,
        shards=shards,
        index=index,
        recoveries_s=tuple(recoveries_s),
        back_s=tuple(back_s),
        searches=tuple(watched),
    )


def _kill_copy(memory: Memory, shard: int, replica: int) -> float:
    """Kill one copy; the seconds until it is asked again."""
    pid = memory.stats().shards[shard].copies[replica].pid
    assert pid is not None, "every copy was back before the next one is killed"
    began_s = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    while memory.stats().shards[shard].copies[replica].pid in (pid, None):
        if time.monotonic() - began_s > _LIMIT_S:
            raise click.ClickException(f"a copy that was killed did not come back within {_LIMIT_S:g} s")
        time.sleep(0.05)
    return time.monotonic() - began_s


@click.command(
    "recovery",
    short_help="kill -9 of shard processes, with and without replicas.",
    epilog=examples("hmn bench recovery", "hmn bench recovery --facts 100000 --kills 1 --json"),
)
@click.option("--facts", type=click.IntRange(min=100), default=1_000_000, show_default=True, help="Facts.")
@click.option("--dim", type=click.IntRange(min=1), default=128, show_default=True, help="Dimension of the vectors.")
@click.option("--shards", type=click.IntRange(min=1), default=1, show_default=True, help="Shards of the memory.")
@click.option("--kills", type=click.IntRange(min=1), default=3, show_default=True, help="Of each kind.")
@click.option("--index", default="exact", show_default=True, help="As `hmn indexes` lists them.")
@click.option("--seed", type=int, default=0, show_default=True)
@json_option
@click.pass_obj
def command(console: Console, facts: int, dim: int, shards: int, kills: int, index: str, seed: int) -> int:
    """Kill -9 shard processes on Ray: the time until a killed shard answers again, and what a searcher sees of it when
    each shard has two copies.

    Exit status 1 if a search failed or an answer was wrong.
    """
    with tempfile.TemporaryDirectory(prefix="hmn-bench-recovery-") as folder:
        figures = run_recovery_bench(
            Path(folder),
            facts=facts,
            dim=dim,
            shards=shards,
            kills=kills,
            index=index,
            seed=seed,
            progress=console.progress,
        )
    console.result(asdict(figures), lambda: _show(console, figures))
    return 1 if any(line.failed or line.wrong for line in figures.searches) else 0


def _show(console: Console, figures: RecoveryFigures) -> None:
    console.pairs(
        {
            "facts": f"{figures.facts:,} of dimension {figures.dim}, shards: {figures.shards}, index {figures.index}",
            "a killed shard answers again": ", ".join(f"{seconds:.2f} s" for seconds in figures.recoveries_s),
            "a killed copy is back": ", ".join(f"{seconds:.2f} s" for seconds in figures.back_s),
        }
    )
    console.write()
    console.table(
        ("searches, two copies, during", "searches", "failed", "wrong", "p50 ms", "p99 ms", "slowest ms"),
        [
            (line.during, line.searches, line.failed, line.wrong, line.p50_ms, line.p99_ms, line.slowest_ms)
            for line in figures.searches
        ],
    )
