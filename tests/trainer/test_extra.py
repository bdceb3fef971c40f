"""Facts drawn at random: with what chance, and what they do to the softmax; corrected, it is right on average."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from memory_store.errors import ConfigError
from memory_store.memory import Memory
from memory_store.opening import open_memory
from memory_store.writer import MemoryWriter
from trainer.attention import KMipsAttention
from trainer.config import RunConfig
from trainer.extra import Drawn, FactClusters, draw_clusters, draw_uniform
from trainer.loop import train
from trainer.loss import reading_loss
from trainer.metrics import read_metrics
from trainer.sources import EncodedFacts, ExtraFacts

MakeConfig = Callable[..., RunConfig]

# N facts, D dimension, B questions


def test_uniform_facts_are_distinct_and_each_is_drawn_with_the_chance_that_is_stated() -> None:
    fact_ids_N = np.arange(100, 120)
    rng = np.random.default_rng(0)
    drawn = [draw_uniform(fact_ids_N, 5, rng) for _ in range(4000)]
    assert all(len(np.unique(one.fact_ids_X)) == 5 for one in drawn)
    counts = np.bincount(np.concatenate([one.fact_ids_X for one in drawn]), minlength=120)[100:]
    assert drawn[0].chance == 0.25
    np.testing.assert_allclose(counts / 4000, 0.25, atol=0.04)


def test_more_facts_than_there_are_draws_all_of_them() -> None:
    drawn = draw_uniform(np.arange(3), 10, np.random.default_rng(0))
    assert sorted(drawn.fact_ids_X.tolist()) == [0, 1, 2]
    assert drawn.log_chance == 0


def _blobs() -> tuple[np.ndarray, np.ndarray]:
    """64 facts around 8 far directions: (ids, vectors)."""
    rng = np.random.default_rng(1)
    vectors_ND = np.repeat(np.eye(8), 8, axis=0) + 0.01 * rng.standard_normal((64, 8))
    return np.arange(64) * 3, vectors_ND.astype(np.float32)


def test_clusters_hold_every_fact_once_and_facts_of_one_direction_together() -> None:
    fact_ids_N, vectors_ND = _blobs()
    clusters = FactClusters.of(fact_ids_N, vectors_ND)
    assert sorted(clusters.fact_ids_N.tolist()) == fact_ids_N.tolist()
    pieces = np.split(clusters.fact_ids_N, clusters.bounds[1:-1])
    assert all(len(piece) > 0 for piece in pieces)
    for (
        piece
    ) in pieces:  # k-means may divide a direction, or leave two in one cluster, but it tears none apart at random
        assert len(np.unique(piece // 24)) <= 2
    again = FactClusters.of(fact_ids_N, vectors_ND)
    assert again.fact_ids_N.tolist() == clusters.fact_ids_N.tolist()


def test_clusters_are_drawn_whole_as_many_as_the_count_asks_for_and_at_least_one() -> None:
    clusters = FactClusters(fact_ids_N=np.arange(20), bounds=np.array([0, 5, 9, 15, 20]))
    rng = np.random.default_rng(0)
    one, half = draw_clusters(clusters, 1, rng), draw_clusters(clusters, 10, rng)
    assert (one.chance, half.chance) == (0.25, 0.5)
    for drawn, number in ((one, 1), (half, 2)):
        touched = {int(np.searchsorted(clusters.bounds, fact, side="right")) - 1 for fact in drawn.fact_ids_X}
        assert len(touched) == number
        assert len(drawn.fact_ids_X) == sum(int(np.diff(clusters.bounds)[at]) for at in touched)
    assert draw_clusters(clusters, 99, rng).chance == 1


def test_one_fact_is_a_cluster_of_its_own_and_a_zero_vector_does_no_harm() -> None:
    assert FactClusters.of(np.array([7]), np.zeros((1, 4), np.float32)).bounds.tolist() == [0, 1]


def _problem() -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    generator = torch.Generator().manual_seed(5)
    query_BD = torch.randn(2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    fact_ND = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    return query_BD, fact_ND, np.array([[0], [4]])


def test_the_corrected_denominator_is_that_of_the_full_softmax_on_average_over_all_draws() -> None:
    query_BD, fact_ND, gold = _problem()
    attention = KMipsAttention(1)
    full_B = torch.exp(query_BD @ fact_ND.T).sum(dim=1)
    found, uncorrected = [], []
    for facts in combinations(range(7), 3):
        reading = attention(query_BD, fact_ND, gold, drawn=Drawn(fact_ids_X=np.array(facts), chance=3 / 7))
        assert reading.log_chance_C is not None
        found.append(torch.exp(reading.logits_BC - reading.log_chance_C).sum(dim=1))
        uncorrected.append(torch.exp(reading.logits_BC).sum(dim=1))
    torch.testing.assert_close(torch.stack(found).mean(dim=0), full_B)
    assert (torch.stack(uncorrected).mean(dim=0) < full_B).all()


def test_when_every_fact_is_drawn_for_certain_the_loss_is_that_of_the_full_softmax() -> None:
    query_BD, fact_ND, gold = _problem()
    everything = Drawn(fact_ids_X=np.arange(7), chance=1.0)
    full = KMipsAttention(1, "full")(query_BD, fact_ND, gold)
    found = KMipsAttention(1)(query_BD, fact_ND, gold, drawn=everything)
    expected = reading_loss(full.logits_BC, full.gold_BC)
    torch.testing.assert_close(reading_loss(found.logits_BC, found.gold_BC, found.log_chance_C), expected)


@pytest.mark.parametrize("candidates", ["union", "per_question"])
def test_every_question_may_read_what_was_drawn_and_what_was_found_anyway_counts_once(candidates: str) -> None:
    query_BD, fact_ND, gold = _problem()
    attention = KMipsAttention(1, candidates)
    plain = attention(query_BD, fact_ND, gold)
    drawn = Drawn(fact_ids_X=np.array([6, 0, 2]), chance=0.5)  # 0 is a gold fact
    reading = attention(query_BD, fact_ND, gold, drawn=drawn)
    assert reading.log_chance_C is not None
    assert set(reading.fact_ids_C.tolist()) == set(plain.fact_ids_C.tolist()) | {6, 0, 2}
    only_drawn_C = ~np.isin(reading.fact_ids_C, plain.fact_ids_C)
    assert (reading.log_chance_C.numpy()[only_drawn_C] == np.log(0.5)).all()
    assert (reading.log_chance_C.numpy()[~only_drawn_C] == 0).all()
    assert (reading.weights_BC[:, torch.from_numpy(only_drawn_C)] > 0).all()
    assert (reading.softmax_size_B == plain.softmax_size_B + only_drawn_C.sum()).all()


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    """64 facts around 8 directions."""
    import pyarrow as pa

    fact_ids_N, vectors_ND = _blobs()
    with MemoryWriter(str(tmp_path / "memory"), dim=8) as writer:
        writer.append(pa.table({"fact_id": fact_ids_N}), vectors_ND)
    with open_memory(str(tmp_path / "memory")) as opened:
        yield opened


@pytest.mark.parametrize("rule", ["uniform", "clusters"])
def test_draws_follow_from_seed_and_step_and_see_facts_that_were_added_and_deleted(memory: Memory, rule: str) -> None:
    import pyarrow as pa

    extra = ExtraFacts(memory, rule, 16, seed=1)
    first, again, other = (extra.draw(step) for step in ((3, 0), (3, 0), (4, 0)))
    assert first is not None
    assert first.fact_ids_X.tolist() == again.fact_ids_X.tolist() != other.fact_ids_X.tolist()
    memory.upsert(pa.table({"fact_id": [1000]}), np.ones((1, 8), np.float32))
    memory.delete([0])
    every = ExtraFacts(memory, rule, 1000, seed=1).draw((0,))
    assert set(every.fact_ids_X.tolist()) == set(range(3, 192, 3)) | {1000}
    extra._count = 1000
    assert set(extra.draw((5, 0)).fact_ids_X.tolist()) == set(every.fact_ids_X.tolist())


def test_without_extra_facts_nothing_is_drawn(memory: Memory) -> None:
    assert ExtraFacts(memory, "none", 16, seed=1).draw((0,)) is None


def test_the_features_of_all_facts_are_fetched_once_while_the_facts_are_the_same(run_config: MakeConfig) -> None:
    from trainer.encoders.registry import make_encoder

    config = run_config(train={"max_steps": 1})
    train(config)
    with open_memory(config.memory.url) as opened:
        facts = EncodedFacts(opened, make_encoder(config.model, 0).eval())
        before = facts.encode(facts.all_ids())
        opened.fetch = None  # type: ignore[method-assign]  # a second fetch would fail
        torch.testing.assert_close(facts.encode(facts.all_ids()), before)


@pytest.mark.parametrize("rule", ["uniform", "clusters"])
@pytest.mark.parametrize("correction", ["none", "importance"])
def test_a_run_trains_with_facts_drawn_at_random(run_config: MakeConfig, rule: str, correction: str) -> None:
    drawing = run_config(train={"max_steps": 11, "extra": rule, "extra_facts": 100, "correction": correction})
    plain = run_config("plain", "other", train={"max_steps": 11})
    sizes = {}
    for config in (drawing, plain):
        result = train(config)
        assert np.isfinite(result.loss)
        lines = read_metrics(Path(config.run_dir))
        sizes[config.run_dir] = next(line["softmax_size"] for line in lines if line["kind"] == "train")
    assert sizes[drawing.run_dir] > sizes[plain.run_dir] + 10


@pytest.mark.parametrize(
    ("train_settings", "complaint"),
    [
        ({"extra": "uniform", "candidates": "full"}, "all are read"),
        ({"correction": "importance"}, "with a correction"),
        ({"extra": "uniform", "extra_facts": 0}, "extra_facts >= 1"),
        ({"extra": "unifrom"}, "did you mean 'uniform'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    run_config: MakeConfig, train_settings: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        run_config(train=train_settings)


def test_drawn_facts_beside_all_facts_and_a_chance_of_nothing_are_refused() -> None:
    query_BD, fact_ND, _ = _problem()
    with pytest.raises(ConfigError, match="reads all facts anyway"):
        KMipsAttention(1, "full")(query_BD, fact_ND, drawn=Drawn(fact_ids_X=np.array([1]), chance=0.5))
    with pytest.raises(ConfigError, match="chance above 0"):
        Drawn(fact_ids_X=np.array([1]), chance=0.0)
