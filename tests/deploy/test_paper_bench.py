"""`hmn bench paper` in small: cases are trained once, kept, compared question by question, and shown on a page."""

import gzip
import json
import re
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner

import deploy.bench.paper
from deploy.bench.paper import command, run_paper_bench
from deploy.bench.paper_cases import CASES, Source, chosen_cases, settings_key
from deploy.bench.paper_page import paired
from deploy.bench.paper_runs import Results, packed, unpacked
from deploy.console import Console
from memory_store.errors import ConfigError, InputError

ID = "www.freebase.com/"
RELATIONS = {"people/person/place_of_birth": "where was {} born", "people/person/profession": "what does {} do"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as of SimpleQuestions: 60 people, two facts and two questions each."""
    folder = tmp_path_factory.mktemp("simplequestions")
    facts, names, asked = [], [], {"train": [], "valid": []}
    for number in range(60):
        name = f"{'bcdfgh'[number % 6]}{'aeiou'[number % 5]}n {'klmprstvwz'[number // 6]}o{'aeiou'[number % 5]}t"
        names.append(f"m/{number}\t{name}")
        for relation, way in RELATIONS.items():
            facts.append(f"{ID}m/{number}\t{ID}{relation}\t{ID}m/o{number % 7}")
            row = f"{ID}m/{number}\t{ID}{relation}\t{ID}m/o{number % 7}\t{way.format(name)}"
            asked["valid" if number % 5 == 0 else "train"].append(row)
    for file, lines in (("freebase-SQ.txt.gz", facts), ("names.tsv.gz", names)):
        with gzip.open(folder / file, "wt", encoding="utf-8") as out:
            out.write("\n".join(lines) + "\n")
    for split, rows in asked.items():
        (folder / f"annotated_fb_data_{split}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def test_a_rerun_does_what_is_missing_and_the_page_shows_all_that_is_there(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    only = ("k10", "full", "uniform-corrected")
    run_paper_bench(data, out, steps=10, only=only[:1], threads=1)
    trained = []

    def counting(case, *args, **kwargs):  # type: ignore[no-untyped-def]
        trained.append(case.name)
        return original(case, *args, **kwargs)

    original = deploy.bench.paper.run_case
    monkeypatch.setattr(deploy.bench.paper, "run_case", counting)
    result = run_paper_bench(data, out, steps=10, only=(*only, "timing"), page=tmp_path / "page", threads=1)
    assert trained == ["full", "uniform-corrected"]
    lines = {line["case"]: line for line in result["results"]}
    assert set(lines) == {*only, "timing"}
    assert lines["full"]["softmax_size"] == lines["full"]["facts"] == 120
    assert set(lines["k10"]["tests"]) == {"exact", "split", "ivf", "pca_tree", "wta_hash", "ivf?nprobe=1"}
    assert [step for step, _ in lines["k10"]["curve"]] == list(range(11))
    assert lines["timing"]["ways"]["k10"]["ratio"] == 1
    assert all(way["step_cpu_ms"] > 0 for way in lines["timing"]["ways"].values())
    assert [path.name for path in (out / "runs").iterdir()] == ["k10-0"]
    page = (tmp_path / "page" / "results.md").read_text()
    assert "| full softmax | 1 |" in page
    assert "over more facts" not in page
    assert "hmn bench paper --data DIR --seeds 1 --steps 10" in page
    for figure in re.findall(r"\]\((convergence[^)]+)\)", page):
        ElementTree.fromstring((tmp_path / "page" / figure).read_text())


def test_the_steps_are_timed_over_more_facts_of_which_not_all_are_asked_about(data: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.tsv"
    with gzip.open(data / "freebase-SQ.txt.gz", "rt", encoding="utf-8") as known:
        held = known.read().splitlines()[:100]
    more.write_text("\n".join(held + [f"x{number}\tmade/of\tx{number + 1}" for number in range(400)]) + "\n")
    for _ in range(2):  # the second time, nothing is left to do
        result = run_paper_bench(data, tmp_path / "out", steps=4, only=("k10",), larger=(more,), threads=1)
    assert [line["case"] for line in result["results"]] == ["k10", "larger"]
    line = result["results"][1]
    assert line["facts"] == 500
    assert set(line["ways"]) == {"k10", *(case.name for case in CASES if case.group == "search")}
    assert line["ways"]["k10"]["recall"] == line["ways"]["k10"]["ratio"] == 1
    assert all(0 <= way["recall"] <= 1 < way["step_cpu_ms"] for way in line["ways"].values())
    assert "| 500 | exact |" in (tmp_path / "out" / "results.md").read_text()


def test_results_of_other_data_are_not_mixed_and_a_wrong_name_or_folder_is_said(data: Path, tmp_path: Path) -> None:
    Results(tmp_path).add({"case": "k10", "seed": 0, "settings": "x", "data": "GeoNames"})
    with pytest.raises(ConfigError, match="--out"):
        run_paper_bench(data, tmp_path, steps=1)
    with pytest.raises(ConfigError, match="did you mean 'full'"):
        run_paper_bench(data, tmp_path / "other", steps=1, only=("ful",))
    with pytest.raises(InputError, match="--data"):
        run_paper_bench(tmp_path, tmp_path / "other", steps=1)


def test_without_data_the_cases_are_those_of_geonames_and_names_and_groups_choose_among_them() -> None:
    assert Source.of(None).facts == ("builtin:geonames",)
    assert next(case.name for case in chosen_cases(("bias", "k10"))) == "k10"
    assert {case.group for case in chosen_cases(("bias",))} == {"bias"}
    assert chosen_cases(()) == list(CASES)


def test_results_of_other_settings_have_another_key() -> None:
    source = Source.of(None)
    keys = [settings_key(case, source, steps=steps) for case in CASES for steps in (10, 20)]
    assert len(set(keys)) == len(keys)


def test_a_result_is_found_by_case_seed_and_settings(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.add({"case": "k10", "seed": 0, "settings": "x", "data": "d"})
    results.add({"case": "k10", "seed": 1, "settings": "x", "data": "d"})
    assert results.find("k10", 1, "x") == results.lines()[1]
    assert results.find("k10", 2, "x") is None
    assert results.find("k10", 0, "y") is None


@pytest.mark.parametrize("questions", [1, 8, 13])
def test_which_questions_were_right_survives_packing(questions: int) -> None:
    right_Q = np.random.default_rng(questions).random(questions) < 0.5
    assert unpacked(packed(right_Q), questions).tolist() == right_Q.tolist()


def test_a_paired_interval_is_narrow_where_two_runs_err_alike_and_holds_zero_for_equal_runs() -> None:
    rng = np.random.default_rng(0)
    one_SQ = rng.random((1, 4000)) < 0.8
    other_SQ = one_SQ.copy()
    other_SQ[0, :20] ^= True
    mean, low, high = paired(one_SQ, other_SQ)
    assert low < mean < high
    assert high - low < 0.01
    assert paired(one_SQ, one_SQ) == (0.0, 0.0, 0.0)


def test_with_json_the_command_prints_one_object(data: Path, tmp_path: Path) -> None:
    out = StringIO()
    options = ["--data", str(data), "--out", str(tmp_path), "--steps", "1", "--only", "k50", "--threads", "1", "--json"]
    done = CliRunner().invoke(command, options, obj=Console(out=out))
    assert done.exit_code == 0, done.output
    assert [line["case"] for line in json.loads(out.getvalue())["results"]] == ["k50"]
