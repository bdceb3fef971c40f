"""The live benchmark runs in small, and finds no failed and no wrong answer."""

from pathlib import Path

from deploy.bench.live import run_live_bench


def test_the_live_benchmark_measures_what_it_says(tmp_path: Path) -> None:
    figures = run_live_bench(tmp_path, facts=3000, dim=8, upserted=200, seconds=0.3, shards=2)
    assert [(line.during, line.failed, line.wrong) for line in figures.searches] == [
        ("nothing else", 0, 0),
        ("1,000 upserts a second", 0, 0),
        ("a compaction", 0, 0),
        ("re-embeddings", 0, 0),
    ]
    assert all(line.searches for line in figures.searches)
    assert figures.compaction_rows >= 500
    assert figures.rebuild_s > 0
    assert figures.gain > 0
