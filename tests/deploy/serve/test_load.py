"""The load generator of `hmn bench serve`: it counts what happened, and nothing else."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from deploy.bench.serve_load import Load, drive, percentile_ms
from deploy.serve.settings import Limits
from memory_store.errors import ShardUnavailable

Converse = Callable[..., Any]


def test_every_answered_question_counts_once(converse: Converse, engine: Any) -> None:
    async def talk(client: httpx.AsyncClient) -> Load:
        return await drive(client, ["a", "b", "c"], clients=4, seconds=0.2, k=1)

    load: Load = converse(talk)
    assert load.questions_per_s > 0
    assert (load.refused, load.failed) == (0, 0)
    assert load.batched == len(load.latencies_s) == sum(engine.sizes)
    assert load.batches == len(engine.sizes)
    assert load.seconds >= 0.2


def test_backpressure_is_counted_apart_from_failures(converse: Converse) -> None:
    async def talk(client: httpx.AsyncClient) -> Load:
        return await drive(client, ["a"], clients=16, seconds=0.2, k=1)

    load: Load = converse(talk, limits=Limits(items=1, batch=1, waiting=1))
    assert load.refused > 0
    assert load.failed == 0
    assert load.latencies_s


def test_failures_are_counted_by_kind(converse: Converse, engine: Any) -> None:
    async def talk(client: httpx.AsyncClient) -> Load:
        engine.fail_with = ShardUnavailable("gone")
        return await drive(client, ["a"], clients=1, seconds=0.05, k=1)

    load: Load = converse(talk)
    assert load.latencies_s == []
    assert load.failures == {"status 503": load.failed}
    assert load.failed > 0


@pytest.mark.parametrize(
    ("latencies_s", "share", "expected"),
    [([], 0.5, None), ([0.003], 0.99, 3.0), ([0.001, 0.002, 0.003, 0.004], 0.5, 3.0), ([0.002, 0.001], 0.99, 2.0)],
)
def test_a_percentile_is_a_latency_that_happened(latencies_s: list[float], share: float, expected: float) -> None:
    assert percentile_ms(latencies_s, share) == expected
