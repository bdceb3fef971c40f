"""hmn bench scale: the fit and the plan by arithmetic, and the whole of it on a few thousand facts."""

import json
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from deploy.bench.fit import fit_growth, fit_power_law
from deploy.bench.prediction import predicted
from deploy.bench.scale import command, plan_cases, run_scale_bench
from deploy.bench.scale_cases import CASES, Case, block_of, queries_of, run_case
from deploy.bench.scale_records import Record, points_of, read_records
from deploy.bench.scale_report import exponents, fill_page, tables, write_charts
from deploy.console import Console
from memory_store.errors import ConfigError


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.7])
def test_a_power_law_is_found_again(exponent: float) -> None:
    law = fit_power_law([(size, 3 * size**exponent) for size in (1e5, 1e6, 1e7)])
    assert law.exponent == pytest.approx(exponent)
    assert law.factor == pytest.approx(3)
    assert law.worst == pytest.approx(0, abs=1e-9)
    assert law.at(1e9) == pytest.approx(3 * 1e9**exponent)


def test_a_point_off_the_line_shows_in_the_worst_deviation() -> None:
    law = fit_power_law([(1, 1), (10, 20), (100, 100)])
    assert law.exponent == pytest.approx(1.0)
    assert law.worst > 0.3


@pytest.mark.parametrize("points", [[], [(1, 1)], [(5, 1), (5, 2)], [(1, 1), (2, 0)], [(0, 1), (2, 1)]])
def test_what_no_line_goes_through_is_refused(points: list[tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="expected"):
        fit_power_law(points)


@given(exponent=st.floats(0.3, 1.5), factor=st.floats(1e-9, 1e3), share=st.floats(0, 0.9), decades=st.integers(3, 5))
def test_what_grows_is_told_from_what_is_fixed(exponent: float, factor: float, share: float, decades: int) -> None:
    sizes = [10.0**decade for decade in range(4, 4 + decades)]
    least = factor * sizes[0] ** exponent
    fixed = share / (1 - share) * least
    growth = fit_growth([(size, fixed + factor * size**exponent) for size in sizes])
    assert growth.exponent == pytest.approx(exponent, abs=0.02)
    assert growth.fixed == pytest.approx(fixed, abs=0.02 * (fixed + least))
    assert growth.worst < 0.02


def test_two_sizes_do_not_tell_what_is_fixed() -> None:
    with pytest.raises(ValueError, match="three different sizes"):
        fit_growth([(1, 1), (2, 2), (2, 3)])


def test_every_case_comes_after_what_it_needs_and_smaller_sizes_come_first() -> None:
    cases = plan_cases([1000, 10], [1, 2], list(CASES), threads=2, dim=8, dtype="float32")
    seen: set[tuple[object, object]] = set()
    for case in cases:
        needed = CASES[str(case["kind"])][1]
        assert not needed or (needed, case["facts"]) in seen, case
        seen.add((case["kind"], case["facts"]))
    assert [case["facts"] for case in cases] == sorted(case["facts"] for case in cases)  # type: ignore[type-var]
    assert sum(case["kind"] == "exact" for case in cases) == 4
    assert sum(case["kind"] == "write" for case in cases) == 2


def test_made_vectors_are_the_same_in_every_process() -> None:
    assert (block_of(3, 50, 5000, 8) == block_of(3, 50, 5000, 8)).all()
    assert not (block_of(3, 50, 5000, 8) == block_of(4, 50, 5000, 8)).all()
    assert not (queries_of(0, 5000, 8) == queries_of(1, 5000, 8)).all()


def in_this_process(case: dict[str, Any], at: Path) -> tuple[list[dict[str, Any]], int]:
    return [asdict(stage) for stage in run_case(Case(**case), at)], 1


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    results = tmp_path / "scale.jsonl"
    cases = plan_cases([3000], [1], ["write", "exact", "ivf"], threads=1, dim=8, dtype="float32")
    records = run_scale_bench(results, cases, folder=tmp_path / "work", run=in_this_process)
    names = [[stage["name"] for stage in record.stages] for record in records]
    assert names == [
        ["write"],
        ["open, first time", "open", "first search", "exact search, one query", "exact search"],
        ["ivf build", "ivf open", "ivf search, one query", "ivf search"],
    ]
    assert records[2].stages[-1]["figures"]["recall"] >= 0.5
    assert records[0].stages[0]["figures"]["first_turn_cpu_s"] > 0, "a short stage is measured in turns"
    lines = results.read_text().splitlines()
    assert len(lines) == 3
    results.write_text("\n".join([*lines, lines[0][:20]]) + "\n")  # a line that was cut off

    def refuse(case: dict[str, Any], at: Path) -> tuple[list[dict[str, Any]], int]:
        raise AssertionError(f"{case} was measured already")

    assert run_scale_bench(results, cases, folder=tmp_path / "work", run=refuse) == read_records(results)
    assert "exact search" in tables(records)["time"]


def test_what_is_measured_again_counts_where_it_was_better(tmp_path: Path) -> None:
    results, seconds = tmp_path / "scale.jsonl", iter([(3.0, 1.0), (2.0, 1.5), (9.0, 9.0)])

    def run(case: dict[str, Any], at: Path) -> tuple[list[dict[str, Any]], int]:
        wall_s, cpu_s = next(seconds)
        return [{"name": "write", "wall_s": wall_s, "cpu_s": cpu_s, "peak_bytes": 1, "figures": {}}], int(wall_s)

    cases = plan_cases([100], [1], ["write"], threads=1, dim=8, dtype="float32")
    for again in (False, False, True, True):
        (record,) = run_scale_bench(results, cases, folder=tmp_path / "work", run=run, again=again)
    assert (record.stages[0]["wall_s"], record.stages[0]["cpu_s"], record.peak_bytes) == (2.0, 1.0, 9)
    assert read_records(results) == [record]
    assert len(results.read_text().splitlines()) == 3, "nothing that was measured is thrown away"


def test_what_a_case_needs_is_made_again_when_its_files_are_gone(tmp_path: Path) -> None:
    ran: list[object] = []

    def run(case: dict[str, Any], at: Path) -> tuple[list[dict[str, Any]], int]:
        ran.append(case["kind"])
        return [], 1

    cases = plan_cases([100, 10], [1, 2], ["write", "exact", "ivf"], threads=1, dim=8, dtype="float32")
    run_scale_bench(tmp_path / "a.jsonl", cases[:2], folder=tmp_path / "work", run=run)
    assert ran == ["write", "exact"]
    ran.clear()
    run_scale_bench(tmp_path / "a.jsonl", cases, run=run)
    assert ran == ["write", "exact", "ivf", "ivf", "write", "exact", "exact", "ivf", "ivf"]


def made(kind: str, facts: int, shards: int, name: str, cpu_s: float | None) -> Record:
    stage = {
        "name": name,
        "wall_s": (cpu_s or 1) / 2,
        "cpu_s": cpu_s,
        "peak_bytes": 2048,
        "figures": {"disk_bytes": 4096.0},
    }
    return Record(
        case={"kind": kind, "facts": facts, "shards": shards, "dim": 128}, stages=(stage,), peak_bytes=1 << 20
    )


def test_tables_and_charts_show_what_was_measured(tmp_path: Path) -> None:
    records = [made("embed", facts, 1, "embed", facts / 1e5) for facts in (10**5, 10**6, 10**7)]
    records += [made("exact", 10**6, shards, "exact search", None) for shards in (1, 2)]
    assert exponents(records)["embed"].exponent == pytest.approx(1)
    records.append(made("exact", 10**6, 1, "exact search, one query", 0.1))
    assert points_of(records, "exact search", "wall_s") == [(1e6, 0.5)]
    assert points_of(records, "exact search") == [], "the processor time of other processes is not known"
    shown = tables(records)
    assert "| embed | 500.0 ms (1.0 s) | 5.0 s (10.0 s) | 50.0 s (1 min 40 s) | 1.00 | 1.00 |" in shown["time"]
    assert "| 1.00 (0.0 ms) |" in shown["time"]
    assert "| embed | 50.0 s, was 50.0 s (+0%) | 1 min 40 s, was 1 min 40 s (+0%) | 2.0 KiB, was" in shown["plan"]
    assert "| exact search | 500.0 ms | 500.0 ms |" in shown["shards"]
    assert "1.0 MiB (2.0 KiB)" in shown["memory"]
    charts = write_charts(records, tmp_path)
    assert [path.name for path in charts] == ["scale-building.svg", "scale-searching.svg"]
    assert "logarithmic" in charts[0].read_text()


def test_a_plan_follows_what_was_measured_around_its_size(tmp_path: Path) -> None:
    records = [made("embed", facts, 1, "embed", 1.0) for facts in (10**5, 10**6, 10**7)]
    for record, wall_s in zip(records, (1.0, 10.0, 200.0), strict=True):
        record.case.update(dim=8, dtype="float32")  # type: ignore[attr-defined]
        record.stages[0].update(wall_s=wall_s, cpu_s=2 * wall_s)  # type: ignore[attr-defined]
    told = {facts: predicted(records, facts, 8, "float32")["embed"].cost for facts in (1000, 300_000, 10**7, 10**8)}
    assert told == pytest.approx({1000: 0.01, 300_000: 3, 10**7: 200, 10**8: 2000})
    with pytest.raises(
        ConfigError, match="expected measurements of two sizes with D = 16 and float32, found 8 float32"
    ):
        predicted(records, 1000, 16, "float32")


def test_tables_go_into_the_places_of_a_page_and_nothing_else_changes() -> None:
    page = "a\n<!-- scale: time -->\n\nold\n\n<!-- end -->\nb\n<!-- scale: memory -->\n<!-- end -->\n"
    filled = fill_page(page, {"time": "new", "other": "?"})
    assert filled == "a\n<!-- scale: time -->\n\nnew\n\n<!-- end -->\nb\n<!-- scale: memory -->\n<!-- end -->\n"
    assert fill_page(filled, {"time": "new"}) == filled


def test_a_case_can_be_written_down_and_read_again() -> None:
    (case,) = plan_cases([10], [1], ["write"], threads=1, dim=8, dtype="float16")
    assert json.loads(json.dumps(case)) == case


def test_tables_are_made_of_what_was_measured_without_measuring(tmp_path: Path) -> None:
    results, page = tmp_path / "scale.jsonl", tmp_path / "page.md"
    kept = [made(kind, facts, 1, kind, 1.0) for kind, facts in (("embed", 10**6), ("write", 10**5), ("embed", 10**5))]
    results.write_text("".join(json.dumps(asdict(record)) + "\n" for record in kept))
    page.write_text("<!-- scale: time -->\n<!-- end -->\n")
    options = ["--no-run", "--results", str(results), "--page", str(page)]
    out = StringIO()
    assert CliRunner().invoke(command, options, obj=Console(out=out)).exit_code == 0
    rows = [line.split(" | ")[0] for line in page.read_text().splitlines() if line.startswith("| ")]
    assert rows == ["| stage: wall (processor)", "| ---", "| write", "| embed"], "in the order of the cases"
    assert results.read_text().count("\n") == 3
