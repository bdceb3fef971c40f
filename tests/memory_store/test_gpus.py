"""Shards on Ray reserve the GPUs that their index names, and no others; without any, one error or the processor."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from deploy.ray_cluster import read_cluster
from memory_store import MemoryWriter, open_memory
from memory_store.actors import NAMESPACE, named_shards
from memory_store.errors import DeviceUnavailable, UnknownIndex
from memory_store.gpus import reserve_gpus

DIM, ROWS = 8, 900


@pytest.mark.parametrize(
    ("index", "shards", "expected"),
    [
        ("exact", 3, (0.0, [])),
        ("exact?device=cpu", 3, (0.0, [])),
        ("ivf?nprobe=8", 3, (0.0, [])),
        ("exact?device=cuda", 3, (1.0, ["a", "b", "b"])),
        ("exact?device=cuda&gpus=0.5", 6, (0.5, ["a", "b", "a", "b", "b", "b"])),
        ("exact?device=cuda&gpus=0.1", 30, (0.1, ["a", "b"] * 10 + ["b"] * 10)),
        ("exact?device=auto", 3, (1.0, ["a", "b", "b"])),
        ("exact?device=auto", 4, (0.0, [])),
        ("exact?device=auto&gpus=0.75", 4, (0.0, [])),
    ],
)
def test_shards_are_dealt_to_nodes_in_turn_while_these_have_gpus(
    index: str, shards: int, expected: tuple[float, list[str]]
) -> None:
    reserved = reserve_gpus(index, shards, {"a": 1.0, "b": 2.0})
    assert (reserved.share, list(reserved.nodes)) == expected


def test_only_auto_does_without_gpus_that_others_have_reserved() -> None:
    assert reserve_gpus("exact?device=auto", 2, {"a": 2.0}).if_free
    assert not reserve_gpus("exact?device=cuda", 2, {"a": 2.0}).if_free


@pytest.mark.parametrize("gpus", [{}, {"a": 1.0}])
def test_more_gpus_than_there_are_is_one_error_that_says_what_to_do(gpus: dict[str, float]) -> None:
    with pytest.raises(DeviceUnavailable, match=rf"room for 2 shards .* found {len(gpus)} GPUs.*gpus=0\.25") as refused:
        reserve_gpus("exact?device=cuda", 2, gpus)
    assert refused.value.exit_status == 1
    with pytest.raises(UnknownIndex, match="at most 1"):
        reserve_gpus("exact?device=cuda&gpus=2", 2, gpus)


@pytest.fixture(scope="module")
def two_gpus(ray_ends: None) -> None:
    """A Ray that believes in two GPUs, whatever this machine has."""
    import ray

    ray.shutdown()
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
    )


@pytest.fixture
def url(tmp_path: Path, rng: np.random.Generator) -> Iterator[str]:
    with MemoryWriter(str(tmp_path / "kb"), dim=DIM) as writer:
        writer.append(pa.table({"fact_id": np.arange(ROWS)}), rng.standard_normal((ROWS, DIM)).astype(np.float32))
    return str(tmp_path / "kb")


def seen_by_shards() -> list[str]:
    """CUDA_VISIBLE_DEVICES of every shard that lives."""
    import ray

    def look(_: Any) -> str:
        return os.environ["CUDA_VISIBLE_DEVICES"]

    actors = [ray.get_actor(name, namespace=NAMESPACE) for name in named_shards()]
    return sorted(ray.get([actor.__ray_call__.remote(look) for actor in actors]))


@pytest.mark.usefixtures("two_gpus")
def test_shards_see_the_gpus_that_they_reserved_and_say_so(url: str, rng: np.random.Generator) -> None:
    queries_BD = rng.standard_normal((5, DIM)).astype(np.float32)
    with open_memory(url) as here:
        expected = here.search(queries_BD, 10)
    for index, seen, gpus in [
        ("exact", ["", ""], {""}),
        ("exact?device=auto", ["0", "1"], {"0 (not used)", "1 (not used)"}),  # few rows: no device is woken for them
    ]:
        with open_memory(url, 2, index, "ray") as memory:
            assert seen_by_shards() == seen
            assert {line.gpus for line in read_cluster().shards} == gpus
            assert {line.device for line in memory.stats().shards} == {"cpu"}
            np.testing.assert_array_equal(memory.search(queries_BD, 10).fact_ids_BK, expected.fact_ids_BK)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU here")
def test_a_gpu_that_torch_cannot_use_is_one_error_and_is_given_back(url: str) -> None:
    with pytest.raises(DeviceUnavailable, match=r"expected a GPU that torch .* can use, found none"):
        open_memory(url, 2, "exact?device=cuda", "ray")
    with pytest.raises(DeviceUnavailable, match="expected room for 3 shards with 1 GPU each, found 2 GPUs"):
        open_memory(url, 3, "exact?device=cuda", "ray")
    with open_memory(url, 1, "exact?device=auto&gpus=0.5", "ray"):
        (gpu,) = seen_by_shards()
        assert gpu in {"0", "1"}
        with open_memory(url, 2, "exact?device=auto", "ray"):  # too little is free
            assert seen_by_shards() == ["", "", gpu]
