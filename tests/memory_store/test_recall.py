"""The live recall meter: what it counts, its interval, and the effort that follows a target."""

import numpy as np
import pytest
from numpy.typing import NDArray

from memory_store.errors import ConfigError
from memory_store.mips.approximate import ApproximateIndex
from memory_store.mips.base import ShardVectors
from memory_store.mips.meter import RecallMeter
from memory_store.mips.oracle import exhaustive_search
from memory_store.mips.registry import build_index
from memory_store.opening import open_memory
from memory_store.recall import Checked, RecallReport, RecallWindow, compare, next_effort, pooled
from memory_store.topk import PartialTopK
from memory_store.writer import MemoryWriter

# B queries, D dimension, K slots


def answer(*rows: list[tuple[int, float]]) -> PartialTopK:
    return PartialTopK(
        fact_ids_BK=np.array([[fact_id for fact_id, _ in row] for row in rows], dtype=np.int64),
        scores_BK=np.array([[score for _, score in row] for row in rows]),
    )


def report(recall: float, low: float, high: float, queries: int = 100, effort: int = 10) -> RecallReport:
    return RecallReport(recall=recall, low=low, high=high, missed_mass=0.0, queries=queries, effort=effort)


def test_a_slot_is_right_if_its_score_reaches_the_last_exact_one_and_mass_is_what_is_missing() -> None:
    exact = answer([(1, 2.0), (2, 1.0), (3, 1.0)], [(1, 0.0), (-1, -np.inf), (-1, -np.inf)])
    found = answer([(1, 2.0), (9, 1.0), (8, 0.5)], [(1, 0.0), (-1, -np.inf), (-1, -np.inf)])
    first, second = compare(found, exact)
    assert (first.slots, first.right) == (3, 2), "a row of equal score is as good; a lower one is not"
    weights = np.exp([0.0, -1.0, -1.0])
    assert first.missed_mass == pytest.approx((np.exp(-1.0) - np.exp(-1.5)) / weights.sum())
    assert (second.slots, second.right, second.missed_mass) == (1, 1, 0.0)


def test_no_rows_say_nothing_and_scores_beyond_all_bounds_do_no_harm() -> None:
    nothing = answer([(-1, -np.inf)])
    assert compare(nothing, nothing) == []
    huge = answer([(1, 1e300), (2, -1e300)])
    assert compare(huge, huge) == [Checked(2, 2, 0.0)]


def test_the_interval_covers_the_recall_as_often_as_it_says_also_where_queries_differ(rng: np.random.Generator) -> None:
    covered = {"alike": 0, "all or nothing": 0}
    for _ in range(300):
        for kind in covered:
            chance_B = np.full(100, 0.8) if kind == "alike" else (rng.random(100) < 0.8).astype(float)
            window = RecallWindow()
            window.add(Checked(10, int(rng.binomial(10, chance)), 0.0) for chance in chance_B)
            found = window.report(effort=1)
            assert found is not None
            covered[kind] += found.low <= 0.8 <= found.high
    assert min(covered.values()) > 0.9 * 300


def test_shards_are_pooled_by_the_queries_they_checked() -> None:
    both = pooled([report(1.0, 0.9, 1.0, queries=30, effort=4), report(0.6, 0.5, 0.7, queries=10, effort=9)])
    assert both is not None
    assert (both.recall, both.queries, both.effort) == (pytest.approx(0.9), 40, 9)
    assert pooled([]) is None


@pytest.mark.parametrize(
    ("found", "too_little", "expected"),
    [
        (report(0.5, 0.4, 0.6), 0, 30),  # far below: a long step
        (report(0.93, 0.92, 0.94), 0, 15),
        (report(0.94, 0.90, 0.97), 0, 15),  # below, and enough queries to go by
        (report(0.94, 0.80, 0.97, queries=20), 0, 10),  # unclear: wait
        (report(0.97, 0.94, 0.99), 0, 10),
        (report(0.99, 0.98, 1.00), 0, 8),
        (report(0.98, 0.96, 0.99), 0, 10),  # above, but not by so much that less would do
        (report(0.99, 0.98, 1.00), 8, 10),  # 8 was too little before
        (report(0.99, 0.98, 1.00, effort=1), 0, 1),
        (report(0.2, 0.1, 0.3, effort=90), 0, 100),
    ],
)
def test_effort_follows_the_target(found: RecallReport, too_little: int, expected: int) -> None:
    assert next_effort(found, 0.95, most=100, too_little=too_little) == expected


class FakeIndex:
    effort = 5
    most_effort = 100
    searches_all_rows = False

    def search_all_rows(self) -> None:
        self.searches_all_rows = True


def test_checks_keep_to_their_share_of_queries_and_of_time() -> None:
    now_s, checked = [0.0], []
    meter = RecallMeter(FakeIndex(), share=0.1, time_share=0.5, clock=lambda: now_s[0])
    found = answer(*[[(1, 1.0)]] * 20)

    def search_exactly(queries_bD: NDArray[np.float64]) -> PartialTopK:
        checked.append(len(queries_bD))
        now_s[0] += 1.0
        return answer(*[[(1, 1.0)]] * len(queries_bD))

    for _ in range(3):
        meter.offer(np.ones((20, 2)), found, search_exactly)
        meter.wait()
    assert checked == [3], "one query is due at once and a tenth of the batch; then the checks must rest as long"
    now_s[0] += 1.0
    meter.offer(np.ones((20, 2)), found, search_exactly)
    meter.wait()
    assert checked == [3, 6]
    measured = meter.report()
    assert measured is not None
    assert (measured.recall, measured.queries, measured.effort) == (1.0, 9, 5)


@pytest.mark.parametrize("text", ["ivf?nprobe=1", "pca_tree?leaves=1", "hnsw?ef=16"])
def test_a_target_is_reached_on_live_queries_and_the_meter_agrees_with_brute_force(text: str) -> None:
    rng = np.random.default_rng(8)
    rows_ND = rng.standard_normal((2500, 48), dtype=np.float32)
    vectors = ShardVectors(np.arange(2500), [rows_ND], 48)
    index = build_index(text, vectors)
    assert isinstance(index, ApproximateIndex)
    index.measure_recall(1.0, 0.9, time_share=1.0)
    assert index.meter is not None
    started = index.effort
    for _ in range(60):
        index.search(rng.standard_normal((16, 48), dtype=np.float32), 10)
        index.meter.wait()
    queries_BD = rng.standard_normal((60, 48), dtype=np.float32)
    found = index.search(queries_BD, 10)
    index.meter.wait()
    exact = exhaustive_search(vectors.fact_ids_N, rows_ND, queries_BD, 10)
    recall = float((found.scores_BK >= exact.scores_BK[:, -1:]).mean())
    assert index.effort > started
    assert recall > 0.85
    measured = index.meter.report()
    assert measured is not None
    assert abs(measured.recall - recall) < 0.08


def test_stats_report_the_recall_of_live_searches(tmp_path, facts_of, rng: np.random.Generator) -> None:
    vectors_ND = rng.standard_normal((900, 12), dtype=np.float32)
    with MemoryWriter(str(tmp_path), dim=12) as writer:
        writer.append(facts_of(range(900)), vectors_ND)
    with open_memory(str(tmp_path), shards=2, index="ivf", recall_share=1.0) as memory:
        assert memory.stats().recall is None
        memory.search(vectors_ND[:8], 5)
        deadline = 200
        while memory.stats().recall_report is None and deadline:
            memory.search(vectors_ND[:8], 5)
            deadline -= 1
        stats = memory.stats()
    assert stats.recall_report is not None
    assert stats.recall == stats.recall_report.recall > 0.3


@pytest.mark.parametrize(
    "wrong", [{"recall_share": 2.0}, {"target_recall": 1.0}, {"target_recall": 0.9, "recall_share": 0}]
)
def test_wrong_shares_and_targets_are_refused(tmp_path, wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        open_memory(str(tmp_path), index="ivf", **wrong)
