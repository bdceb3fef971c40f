"""The recovery benchmark runs in small: shards are killed and come back, and with two copies nobody notices."""

from pathlib import Path

import pytest

from deploy.bench.recovery import run_recovery_bench


@pytest.mark.usefixtures("ray_cluster")
def test_the_recovery_benchmark_measures_what_it_says(tmp_path: Path) -> None:
    figures = run_recovery_bench(tmp_path, facts=500, dim=8, kills=1, idle_s=0.1)
    assert [(line.failed, line.wrong) for line in figures.searches] == [(0, 0), (0, 0)]
    assert all(line.searches > 0 for line in figures.searches)
    assert len(figures.recoveries_s) == len(figures.back_s) == 1
    assert min(figures.recoveries_s) > 0
