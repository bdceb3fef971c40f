"""`hmn bench ann` on few rows: every case is measured once, and tables and figures are made from what was written."""

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from deploy.bench import ann
from deploy.bench.ann import command, run_ann_bench
from deploy.bench.ann_case import _close_in, measure
from deploy.bench.ann_engines import ENGINES
from deploy.bench.ann_tables import BEGIN, END, best_at, page_text, pareto, verdict, write_pages
from deploy.bench.ann_vectors import KINDS, draw
from deploy.console import Console
from memory_store.errors import ConfigError


@pytest.fixture
def measured_here(monkeypatch):
    """Cases are measured in this process, which has loaded all that they need; returns the engines measured."""
    threads, seen = torch.get_num_threads(), []

    def measure_here(folder: Path, engine: str, **settings: int):
        seen.append(engine)
        return measure(folder, engine, **settings)

    monkeypatch.setattr(ann, "_measure", measure_here)
    yield seen
    torch.set_num_threads(threads)


def small(results: Path, **changed):
    settings = {"queries": 24, "batch": 8, "threads": 1, "turns": 1, "dim": 16, "results": results} | changed
    return run_ann_bench(["clustered", "trained"], [1500], ["exact", "ivf", "faiss-flat", "faiss-ivf"], **settings)


def test_every_case_is_measured_once_and_what_cannot_be_says_why(tmp_path, measured_here):
    found = small(tmp_path / "ann.jsonl")
    by_engine = {case["engine"]: case for case in found["cases"]}
    assert list(by_engine) == ["exact", "ivf", "faiss-flat", "faiss-ivf"]
    for name in ("exact", "faiss-flat"):
        assert by_engine[name]["points"][0]["recall"] == 1.0
    for case in found["cases"]:
        assert case["points"][-1]["recall"] > 0.9
        assert all(point["queries_per_s"] > 0 and point["times_exact"] > 0 for point in case["points"])
    assert {one["kind"] for one in found["skipped"]} == {"trained"}
    assert all("--memory URL and --run DIR" in one["reason"] for one in found["skipped"])
    assert measured_here == list(by_engine)
    with (tmp_path / "ann.jsonl").open("a") as file:
        file.write('{"half a li')
    again = small(tmp_path / "ann.jsonl")
    assert measured_here == list(by_engine)
    assert again["cases"] == found["cases"]
    with pytest.raises(ConfigError, match="k = 4, found 10 in line 1"):
        small(tmp_path / "ann.jsonl", k=4)


def test_searches_of_one_query_are_cases_of_their_own(tmp_path, measured_here):
    first = small(tmp_path / "ann.jsonl")
    again = small(tmp_path / "ann.jsonl", batch=1)
    assert [case["batch"] for case in again["cases"]] == len(first["cases"]) * [8] + len(first["cases"]) * [1]


def test_what_another_processor_did_stays_beside_and_spares_no_case(tmp_path, measured_here, monkeypatch):
    first = small(tmp_path / "ann.jsonl")
    monkeypatch.setattr(ann, "_processor", lambda: "8 x Q")
    again = small(tmp_path / "ann.jsonl")
    assert len(measured_here) == 2 * len(first["cases"])
    assert [case["engine"] for case in again["cases"]] == 2 * [case["engine"] for case in first["cases"]]
    assert {case["processor"] for case in again["cases"][: len(first["cases"])]} == {"8 x Q"}


def test_a_library_that_is_not_installed_is_left_out_and_so_is_a_case_that_ends_badly(tmp_path, monkeypatch):
    monkeypatch.setattr(ann, "find_spec", lambda name: None if name == "hnswlib" else name)
    monkeypatch.setattr(ann, "_measure", lambda *_args, **_settings: {"reason": "ended with exit status 9"})
    found = run_ann_bench(["sphere"], [300], ["hnswlib", "exact"], results=tmp_path / "ann.jsonl", queries=8, dim=4)
    assert found["cases"] == []
    reasons = {one["engine"]: one["reason"] for one in found["skipped"]}
    assert "pip install 'hmn[bench]'" in reasons["hnswlib"]
    assert "exit status 9" in reasons["exact"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "trained"])
def test_every_kind_that_is_drawn_has_its_rows_and_queries(kind):
    found = draw(kind, 500, 8, 20, 0, None)
    assert found.vectors_ND.shape == (500, 8)
    assert found.queries_BD.shape == (20, 8)
    assert found.vectors_ND.dtype == found.queries_BD.dtype == np.float32
    norms_N = np.linalg.norm(found.vectors_ND, axis=1)
    least, most = {"clustered": (2, 20), "sphere": (1, 1.001), "heavy tails": (50, 5000)}[kind]
    assert least <= norms_N.max() / norms_N.min() <= most


def case_of(engine: str, *points: tuple[float, float]):
    return {
        "kind": "sphere", "rows": 1000, "engine": engine, "dim": 8, "note": "drawn", "k": 10, "batch": 128,
        "threads": 2, "processor": "2 x P", "effort_name": "ef", "version": "1.0", "build_s": 2.0, "bytes": 3e6,
        "points": [
            {"effort": number + 1, "recall": recall, "queries_per_s": 100 * times, "times_exact": times}
            for number, (recall, times) in enumerate(points)
        ],
    }  # fmt: skip


def test_the_table_says_who_is_fastest_at_the_recall_whoever_it_is(tmp_path):
    ours, other = case_of("ivf", (0.9, 20.0), (0.96, 8.0), (0.99, 2.0)), case_of("hnswlib", (0.95, 16.0))
    assert best_at(ours)["times_exact"] == 8.0
    assert best_at(case_of("ivf", (0.9, 20.0))) is None
    assert verdict([ours, other]).endswith("it is 2.0 times as fast as ours.")
    text = page_text([ours, other], {("sphere", 1000, 128, "2 x P"): "figure.svg"})
    assert text.index("| `hnswlib 1.0` |") < text.index("| `ivf` |")
    assert "| `ivf` | 0.960 | 800 | 8 | ef 2 |" in text
    assert "stroke" in pareto([ours, other])
    (tmp_path / "indexes.md").write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_pages(tmp_path, [ours, other, ours | {"processor": "8 x Q(R)"}, other | {"batch": 1}])
    page = (tmp_path / "indexes.md").read_text()
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "old" not in page
    assert "### Sphere, 1,000 rows, one query at a time, 2 x P\n" in page
    for figure, indexes in (
        ("ann-sphere-1000-128-2-x-p.svg", 2),
        ("ann-sphere-1000-128-8-x-q-r.svg", 1),
        ("ann-sphere-1000-1-2-x-p.svg", 1),
    ):
        assert (tmp_path / figure).read_text().startswith("<svg ")
        assert page.split(f"({figure})")[0].split("### ")[-1].count("| `") == indexes


def test_with_json_the_command_prints_one_object(tmp_path, measured_here):
    out = StringIO()
    options = ["--results", str(tmp_path / "a.jsonl"), "--kinds", "sphere", "--sizes", "300", "--engines", "exact"]
    options += ["--dim", "8", "--queries", "8", "--batch", "4", "--turns", "1", "--threads", "1", "--json"]
    assert CliRunner().invoke(command, options, obj=Console(out=out)).exit_code == 0
    assert json.loads(out.getvalue())["cases"][0]["points"][0]["recall"] == 1.0


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="kind of vectors"):
        run_ann_bench(["cubes"], [10], ["exact"], results=tmp_path / "a")
    with pytest.raises(ConfigError, match="engine"):
        run_ann_bench(["sphere"], [10], ["annoy"], results=tmp_path / "a")
    assert {engine.package for engine in ENGINES.values()} == {"faiss", "hnswlib", "usearch", "svs"}


def test_the_least_effort_that_reaches_the_target_is_looked_for_between_the_powers_of_two() -> None:
    tried: list[int] = []

    def measure_at(effort: int) -> dict[str, float]:
        tried.append(effort)
        return {"effort": effort, "recall": effort / 100}

    _close_in([measure_at(effort) for effort in (32, 64, 128)], measure_at)
    assert tried[3:] == [96, 80, 88], "0.96, 0.80, 0.88: the least above is 96"
    tried.clear()
    _close_in([measure_at(effort) for effort in (94, 95)], measure_at)
    _close_in([measure_at(effort) for effort in (1, 2)], measure_at)
    assert len(tried) == 4, "there is nothing between, or nothing above"
