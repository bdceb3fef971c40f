"""`hmn bench search` on a small memory: every engine is timed and checked."""

import json
from io import StringIO

from click.testing import CliRunner

from deploy.bench.search import command, run_search_bench
from deploy.console import Console


def test_every_engine_is_timed_for_a_batch_and_for_one_query_and_gives_the_exact_answer():
    result = run_search_bench(3000, 16, batch=8, k=5, threads=1, repeats=2, on_ray=False)
    assert [batch["queries"] for batch in result["batches"]] == [8, 1]
    for batch in result["batches"]:
        assert set(batch["median_ms"]) == {"exact", "exact_shards", "faiss_blas", "faiss_installed"}
        assert all(median_ms > 0 for median_ms in batch["median_ms"].values())
        assert batch["times_as_fast_as_faiss_blas"] > 0
    assert result["wrong"] == {"exact": 0, "exact_shards": 0, "faiss_blas": 0, "faiss_installed": 0}


def test_with_json_the_command_prints_one_object():
    out = StringIO()
    options = ["--facts", "500", "--dim", "8", "--repeats", "1", "--no-ray", "--json"]
    assert CliRunner().invoke(command, options, obj=Console(out=out)).exit_code == 0
    assert json.loads(out.getvalue())["facts"] == 500
