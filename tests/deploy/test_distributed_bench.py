"""`hmn bench distributed` on a small memory: one process, shards and plain actors answer alike."""

from deploy.bench.distributed import run_distributed_bench


def test_shards_and_plain_actors_answer_as_one_process_does():
    found = run_distributed_bench(1200, 8, batch=6, k=4, shards=(1, 2), threads=1, repeats=1)
    assert [way["shards"] for way in found["ways"]] == [1, 2]
    for way in found["ways"]:
        assert way["different"] == {"shards": 0, "faiss_actors": 0}
        assert all(median_ms > 0 for median_ms in way["median_ms"].values())
        assert way["over_one_process"] > 0
