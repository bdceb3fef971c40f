"""Reports of runs: whatever a run recorded becomes one page that needs nothing else, and says nothing it should not."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from memory_store.errors import ConfigError, CorruptFile
from trainer.report.compare import compare_runs
from trainer.report.record import read_run
from trainer.report.svg import Series, line_chart, plain, running_median
from trainer.report.write import write_report

SECRET = "hunter2"
CONFIG = f"""
run_dir = "runs/x"
[memory]
url = "s3://someone:{SECRET}@bucket/memory"
[data]
questions = "builtin:geonames"
facts = ["https://host/facts.tsv?token={SECRET}"]
[model]
encoder = "ngram"
"""
EVIL = "<script>alert('1')</script>"
VOID = {"meta"}


class Balanced(HTMLParser):
    """Fails on tags that do not close in order; collects what a page would load, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [f"{name}={value}" for name, value in attrs if name in ("src", "href", "srcset", "xlink:href")]
        assert tag not in ("script", "link", "img", "iframe")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def score(right: float, asked: int) -> dict[str, Any]:
    names = ("path_accuracy", "fact_accuracy", "answer_accuracy", "recall", "mrr")
    intervals = {name: [max(0, right - 0.1), min(1, right + 0.1)] for name in names}
    return {"questions": asked, **dict.fromkeys(names, right), "intervals": intervals}


def evaluation() -> dict[str, Any]:
    read = {"read_subject_id": "p1", "read_subject": EVIL, "read_relation": "born_in", "read_objects": ["Xanten"]}
    gold = {"gold_subject_id": "p2", "gold_subject": "ann & bob", "gold_relation": EVIL, "gold_rank": None}
    return {
        "split": "valid",
        "k": 5,
        "generation": 3,
        "softmax_size": 5.0,
        "missing": 1,
        "overall": score(0.9, 100),
        "relations": {EVIL: score(0.8, 60), "works_as": score(1.0, 40)},
        "questions_by_rank": [90, 4, 1, 0, 0],
        "wrong": [{"question": f"{EVIL} {number}", **gold, **read} for number in range(80)],
        "right": [{"question": "where was ann born", **read}],
    }


def train_line(step: int, **values: Any) -> str:
    stages = {"batch_s": 0.1, "encode_s": 0.2, "search_s": 0.3, "step_s": 1.0}
    return json.dumps({"kind": "train", "step": step, "loss": 9 / step, "candidates": 50, "timing": stages} | values)


def refresh_line(step: int, **values: Any) -> str:
    line = {"kind": "refresh", "step": step, "questions": 128, "held_out": 1, "facts": 1000, "accuracy": 0.5}
    return json.dumps({**line, "recall": 0.9, "timing": {"refresh_s": 2.0, "generation": step // 10 + 2}} | values)


def run_at(folder: Path, *lines: str, **evaluations: Any) -> Path:
    (folder / "config.toml").write_text(CONFIG)
    if lines:
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    for split, found in evaluations.items():
        (folder / f"evaluation-{split}.json").write_text(json.dumps(found))
    return folder


def page_of(folder: Path) -> tuple[str, str]:
    """(source, text) of the report."""
    source = write_report(folder).read_text()
    json.loads((folder / "report.json").read_text(), parse_constant=pytest.fail)  # no NaN, no Infinity
    return source, checked(source)


def checked(source: str) -> str:
    """The text of a page that is well formed and loads nothing."""
    parser = Balanced()
    parser.feed(source)
    parser.close()
    assert parser.open == []
    assert parser.loads == []
    assert "@import" not in source
    assert "url(" not in source
    return "".join(parser.text)


def test_a_run_that_recorded_everything_is_shown_with_all_of_it(tmp_path: Path) -> None:
    stale = {"overlap": 0.8, "stale_accuracy": 0.4, "stale_recall": 0.8}
    steps = [train_line(step, accuracy=0.5, recall=0.9) for step in (10, 20, 30)]
    refreshes = [refresh_line(0), refresh_line(10, **stale), refresh_line(20, **stale)]
    _, text = page_of(run_at(tmp_path, *refreshes, *steps, valid=evaluation(), test=evaluation()))
    for title in (
        "Loss",
        "Accuracy while training",
        "Recall while training",
        "Facts in the softmax",
        "What the stale memory still finds",
        "Generation that serves",
        "Time by stage",
        "Time of a step",
        "Accuracy: valid",
        "Accuracy: test",
        "Accuracy against softmax size",
        "Accuracy by relation",
        "Read something else: 24 of 80",
        "Settings and versions",
    ):
        assert title in text
    assert "90 %" in text
    assert "Xanten" in text


@pytest.mark.parametrize(
    "lines",
    [
        (),
        (refresh_line(0),),
        (train_line(10),),
        (train_line(10, loss=float("nan")), train_line(20, loss=float("inf"))),
        (train_line(10, loss=0.0), train_line(20, loss=0.0)),
        ('{"kind": "train", "step": 10, "loss": 1.0}', '{"kind": "train", "st'),
    ],
    ids=["nothing", "one refresh", "one step", "diverged", "constant", "old and cut short"],
)
def test_a_run_that_recorded_little_or_went_wrong_has_a_page_as_well(tmp_path: Path, lines: tuple[str, ...]) -> None:
    _, text = page_of(run_at(tmp_path, *lines))
    assert "Not evaluated yet" in text
    assert "not finished" in text


def test_what_comes_from_data_is_text_and_never_markup(tmp_path: Path) -> None:
    folder = tmp_path / "a <b> & c"
    folder.mkdir()
    source, text = page_of(run_at(folder, train_line(10), valid=evaluation()))
    assert "<script" not in source
    assert EVIL in text
    assert "ann & bob" in text
    assert "a <b> & c" in text


def test_credentials_in_urls_reach_neither_the_page_nor_its_data(tmp_path: Path) -> None:
    folder = run_at(tmp_path, train_line(10))
    (folder / "checkpoints").mkdir()
    latest = {"step": 10, "total_steps": 10, "generation": 2, "memory": f"s3://someone:{SECRET}@bucket/memory"}
    (folder / "checkpoints" / "latest.json").write_text(json.dumps(latest))
    source, text = page_of(folder)
    assert SECRET not in source
    assert SECRET not in (folder / "report.json").read_text()
    assert "bucket/memory" in text
    assert "· finished" in text


def test_time_by_stage_adds_up_to_the_time_of_all_steps_and_refreshes(tmp_path: Path) -> None:
    run = read_run(run_at(tmp_path, refresh_line(0), train_line(10), train_line(14), refresh_line(14)))
    spent_s = {stage.name: stage.seconds for stage in run.stages}
    assert spent_s["Search the memory"] == pytest.approx(14 * 0.3)
    assert spent_s["Rest of the step"] == pytest.approx(14 * 0.5)
    assert spent_s["Embed the memory again"] == pytest.approx(4.0)
    assert run.seconds == pytest.approx(14 * (1.0 + 0.1) + 4.0)
    assert run.seconds_since(0) == run.seconds
    assert run.seconds_since(10) == pytest.approx(4 * (1.0 + 0.1) + 2.0)
    assert run.seconds_since(14) == 0
    assert run.facts == 1000
    assert run.steps == 14


def test_a_folder_without_a_run_and_a_broken_file_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.toml"):
        read_run(tmp_path)
    run_at(tmp_path)
    (tmp_path / "evaluation-test.json").write_text("{")
    with pytest.raises(CorruptFile, match=r"evaluation-test\.json"):
        read_run(tmp_path)
    (tmp_path / "config.toml").write_text("= 3")
    with pytest.raises(CorruptFile, match=r"config\.toml"):
        read_run(tmp_path)


@pytest.mark.parametrize("ys", [[0.0], [5.0, 5.0], [1e-6, 1e6], [-3.0, 4.0], [1e9, 1e9 + 1]])
@pytest.mark.parametrize("log", [False, True])
def test_any_finite_values_make_a_chart_within_its_frame(ys: list[float], log: bool) -> None:
    points = list(enumerate(ys))
    chart = line_chart([Series(name="a", points=points)], x_label="x", y_label="y", log=log)
    assert chart.count("<circle") == len(ys)
    for place in chart.split('cy="')[1:]:
        assert 0 <= float(place.partition('"')[0]) <= 300


def test_shares_that_are_all_whole_make_a_chart() -> None:
    chart = line_chart([Series(name="a", points=[(1.0, 1.0)])], x_label="x", y_label="y", share=True)
    assert "100 %" in chart
    assert "nan" not in chart


def test_numbers_are_written_with_the_digits_that_matter() -> None:
    assert [plain(value) for value in (0, 3, 0.25, 1234567, 0.00002)] == ["0", "3", "0.25", "1,234,567", "2e-05"]


def test_a_running_median_ignores_one_bad_value_and_keeps_the_ends() -> None:
    points = [(step, 100.0 if step == 5 else float(step)) for step in range(10)]
    smooth = running_median(points)
    assert (smooth[0], smooth[-1]) == (points[0], points[-1])
    assert max(y for _, y in smooth) <= 9


def two_runs(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    for folder in folders:
        folder.mkdir(parents=True)
    better = {**evaluation(), "overall": score(0.95, 100), "relations": {EVIL: score(0.95, 60)}}
    run_at(folders[0], refresh_line(0), *(train_line(step) for step in (10, 20)), valid=evaluation())
    run_at(folders[1], *(train_line(step, loss=2.0) for step in (10, 20, 30)), valid=better, test=better)
    (folders[1] / "config.toml").write_text(CONFIG + "[train]\nk = 3\n")
    return folders


def test_runs_are_compared_by_what_differs_and_what_came_of_it(tmp_path: Path) -> None:
    found = compare_runs(two_runs(tmp_path))
    assert found.split == "valid"
    assert [run.name for run in found.runs] == ["a/run", "b/run"]
    assert [run.path_accuracy for run in found.runs] == [0.9, 0.95]
    assert [run.loss for run in found.runs] == [0.45, 2.0]
    assert found.differences == {"train.k": [None, 3]}
    text = checked(found.page())
    for title in (
        "Settings that differ",
        "Right fact read first, valid",
        "Loss",
        "Relations on which they differ most",
    ):
        assert title in text
    assert EVIL in text
    json.dumps(found.to_json(), allow_nan=False)


def test_a_run_without_an_evaluation_is_compared_by_its_curves(tmp_path: Path) -> None:
    folders = two_runs(tmp_path)
    (folders[0] / "evaluation-valid.json").unlink()
    (folders[1] / "evaluation-test.json").unlink()
    assert [run.path_accuracy for run in compare_runs(folders).runs] == [None, 0.95]
    (folders[1] / "evaluation-valid.json").unlink()
    found = compare_runs(folders)
    assert found.split is None
    assert "Right fact read first, " not in checked(found.page())


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    one, other = two_runs(tmp_path)
    for runs in ([], [one], [one, one.parent / "run"]):
        with pytest.raises(ConfigError, match="two or more"):
            compare_runs(runs)
    with pytest.raises(ConfigError, match="hmn evaluate --split train"):
        compare_runs([one, other], "train")
