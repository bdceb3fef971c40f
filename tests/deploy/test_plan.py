"""hmn plan: arithmetic that must not promise too little, and refusals."""

import pytest

from deploy.plan import GIB, Machine, plan_memory
from memory_store.errors import ConfigError, UnknownIndex
from memory_store.mips.ivf import KMEANS_POINTS, default_nlist, default_nprobe
from memory_store.mips.registry import INDEXES

LAPTOP = Machine(cores=4, memory_bytes=16 * GIB, disk_bytes=100 * GIB)


def test_every_row_is_counted_on_the_largest_shard() -> None:
    plan = plan_memory(facts=1_000_001, dim=64, machine=LAPTOP, shards=4)
    assert plan.shard.rows == 250_001
    assert plan.shard.mapped_bytes == 250_001 * 64 * 4


def test_float16_halves_the_vectors_but_not_the_index() -> None:
    wide = plan_memory(facts=1_000_000, dim=128, machine=LAPTOP, dtype="float32")
    half = plan_memory(facts=1_000_000, dim=128, machine=LAPTOP, dtype="float16")
    assert half.shard.mapped_bytes * 2 == wide.shard.mapped_bytes
    assert half.shard.index_bytes == wide.shard.index_bytes


def test_an_index_on_a_gpu_says_what_it_needs_there_and_others_need_nothing() -> None:
    plan = plan_memory(facts=1_000_000, dim=128, machine=LAPTOP, index="exact?device=cuda&scan=int8", shards=1)
    assert 2 * 128 * 10**6 < plan.shard.gpu_bytes < 2 * GIB
    assert plan_memory(facts=1_000_000, dim=128, machine=LAPTOP, shards=1).shard.gpu_bytes == 0


def test_what_is_planned_is_what_was_measured() -> None:
    plan = plan_memory(facts=2_567_310, dim=256, machine=LAPTOP)
    # the peak of `hmn embed` over the facts of 3.2 million triples, as `hmn bench kb` tells it
    assert plan.embed_worker_bytes == pytest.approx(1_567_574_016, rel=0.2)
    plan = plan_memory(facts=10_000_000, dim=128, machine=LAPTOP, index="exact?scan=int8", shards=1)
    # what `hmn bench scale` saw a process hold that opened ten million vectors first, and one that re-indexed them
    assert plan.opening_bytes == pytest.approx(1_632_075_776, rel=0.2)
    assert plan.reindex_bytes == pytest.approx(3_375_202_304, rel=0.2)
    # what the index held after searches of 128 queries, as `hmn bench scale` tells it
    assert plan.shard.index_bytes == pytest.approx(1_650_338_272, rel=0.2)


def test_small_memories_are_advised_one_shard_and_large_ones_at_most_one_per_core() -> None:
    advised = [plan_memory(facts=facts, dim=8, machine=LAPTOP).shards_advised for facts in (1, 10**5, 10**6, 10**8)]
    assert advised == [1, 1, 4, 4]


def test_what_fits_has_no_problems_and_what_does_not_names_what_to_do() -> None:
    assert plan_memory(facts=1_000_000, dim=128, machine=LAPTOP).problems == ()
    problems = plan_memory(facts=10**9, dim=128, machine=LAPTOP, shards=8).problems
    assert len(problems) == 3
    assert all(";" in problem for problem in problems)


@pytest.mark.parametrize("rows", [1, 38, 39, 78, 1_000, 10**6, 10**9])
def test_nlist_is_a_power_of_two_that_k_means_can_learn(rows: int) -> None:
    nlist = default_nlist(rows)
    assert nlist >= 1
    assert nlist & (nlist - 1) == 0
    assert nlist == 1 or nlist * KMEANS_POINTS <= rows


@pytest.mark.parametrize("rows", [1, 1_000, 10**5, 10**6, 10**7, 10**8, 10**9])
def test_the_rows_that_ivf_scans_by_default_grow_as_the_root_of_all_from_a_million_on(rows: int) -> None:
    def scanned(rows: int) -> float:
        nlist = default_nlist(rows)
        return rows * default_nprobe(nlist) / nlist

    assert 1 <= default_nprobe(default_nlist(rows)) <= default_nlist(rows)
    if rows >= 10**6:
        assert scanned(100 * rows) <= 10 * scanned(rows) * 2**0.5 * 1.01, "lists come in powers of two"


@pytest.mark.parametrize("wrong", [{"facts": 0}, {"dim": 0}, {"shards": 0}, {"dtype": "float8"}])
def test_numbers_that_cannot_be_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        plan_memory(**{"facts": 1, "dim": 1, "machine": LAPTOP, **wrong})


@pytest.mark.parametrize("name", sorted(INDEXES))
def test_every_index_states_its_memory_and_more_rows_need_more(name: str) -> None:
    text = f"{name}:IVF256,PQ32" if INDEXES[name].argument else name
    sizes = [plan_memory(facts=facts, dim=128, machine=LAPTOP, index=text, shards=1) for facts in (10**5, 10**6)]
    assert 0 < sizes[0].shard.index_bytes < sizes[1].shard.index_bytes
    assert sizes[1].shard.index_bytes < 10**6 * 128 * 8


def test_an_index_that_is_not_known_is_refused() -> None:
    with pytest.raises(UnknownIndex, match="did you mean 'ivf'"):
        plan_memory(facts=1000, dim=8, machine=LAPTOP, index="ivff")
