"""What a run says of its questions: those it had to leave out, and whether any were held out of training."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.console import to_json
from memory_store.errors import ConfigError, EmptyInput, InputError
from trainer.asked import Rejected
from trainer.config import RunConfig
from trainer.evaluation import evaluate
from trainer.loop import train
from trainer.metrics import read_metrics
from trainer.missing import missing_words
from trainer.report.record import read_run

MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def alone(world: Path, tmp_path: Path) -> tuple[Path, int]:
    """One file of questions, ten of which ask for nobody; and how many there are."""
    header, *rows = (world / "questions_train.tsv").read_text(encoding="utf-8").splitlines()
    rows = ["nobody\t" + row.split("\t", 1)[1] if number < 10 else row for number, row in enumerate(rows)]
    path = tmp_path / "mine.tsv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path, len(rows)


def test_a_run_over_one_file_says_what_it_left_out_and_is_evaluated_as_valid_on_other_questions_only(
    run_config: MakeConfig, world: Path, alone: tuple[Path, int], caplog: pytest.LogCaptureFixture
) -> None:
    source, questions = alone
    data = {**vars(run_config().data), "questions": str(source)}
    config = run_config(data=data, train={"max_steps": 3})
    with caplog.at_level(logging.WARNING, "trainer.loop"):
        result = train(config)
    said = f"10 of {questions:,} training questions ask for facts that the memory does not hold, for example "
    (logged,) = [record.getMessage() for record in caplog.records if record.name == "trainer.loop"]
    assert logged.startswith(said)
    assert result.asked.missing_words.startswith(said)
    assert "(subject 'nobody', relation 'people" in result.asked.missing_words
    counted = {"questions": questions, "missing": 10, "held_out": False, "rejected": vars(Rejected())}
    assert to_json(result)["asked"] == {**vars(result.asked), **counted}
    assert all(not line["held_out"] for line in read_metrics(Path(config.run_dir)) if line["kind"] == "refresh")
    assert train(config, resume=True).asked == result.asked

    for split in ("valid", "test"):
        with pytest.raises(EmptyInput, match="those of training"):
            evaluate(config.run_dir, split)
        with pytest.raises(ConfigError, match=rf"split '{split}', found those of training in .*mine.tsv"):
            evaluate(config.run_dir, split, questions=str(source))
    assert read_run(config.run_dir).headline is None
    trained = evaluate(config.run_dir, "train")
    assert (trained.split, trained.missing, trained.missing_example) == ("train", 10, result.asked.missing_example)
    found = evaluate(config.run_dir, questions=str(world / "questions_valid.tsv"))
    assert (found.split, found.missing, found.missing_example) == ("valid", 0, None)
    assert (trained.source, found.source) == (None, str(world / "questions_valid.tsv"))
    page = (Path(config.run_dir) / "report.html").read_text()
    assert f"{found.overall.questions} questions of {found.source};" in page
    assert "Right fact read first, valid" in page
    assert evaluate(config.run_dir, questions=str(world)).overall == found.overall
    assert json.loads((Path(config.run_dir) / "evaluation-valid.json").read_text())["overall"]["questions"] == (
        found.overall.questions
    )


def test_a_run_with_a_valid_split_holds_it_out_and_its_training_is_a_part_of_its_time(run_config: MakeConfig) -> None:
    config = run_config(train={"max_steps": 3})
    result = train(config)
    assert (result.asked.held_out, result.asked.missing, result.asked.missing_words) == (True, 0, "")
    assert result.training_s == read_run(config.run_dir).seconds
    assert 0 < result.training_s < result.seconds
    assert train(config, resume=True).training_s == 0


def test_a_valid_file_that_cannot_be_read_is_refused_before_the_training(
    run_config: MakeConfig, world: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "questions"
    shutil.copytree(world, folder)
    (folder / "questions_valid.tsv").write_text("p1\tonly two\n")
    with pytest.raises(InputError, match=r"line 1 of .*questions_valid.tsv: expected 4 columns, found 2"):
        train(run_config(data={**vars(run_config().data), "questions": str(folder)}))


def test_missing_questions_are_counted_in_words() -> None:
    assert missing_words(0, 5) == ""
    assert missing_words(1, 5) == "1 of 5 questions asks for facts that the memory does not hold"
    assert missing_words(1234, 5000, kind="training", example="'q'") == (
        "1,234 of 5,000 training questions ask for facts that the memory does not hold, for example 'q'"
    )


def test_rows_that_are_no_questions_are_kept_in_quarantine_and_the_others_are_asked(
    run_config: MakeConfig, world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(world, tmp_path / "asked")
    for split in ("train", "valid"):
        with (folder / f"questions_{split}.tsv").open("a", encoding="utf-8") as file:
            file.write("too few cells\n")
    lines = len((folder / "questions_train.tsv").read_text(encoding="utf-8").splitlines())
    config = run_config(data={**vars(run_config().data), "questions": str(folder)}, train={"max_steps": 3})
    with caplog.at_level(logging.WARNING, "trainer.loop"):
        result = train(config)
    quarantine = Path(config.run_dir) / "quarantine"
    said = f"1 row of questions was rejected (the first is {folder}/questions_train.tsv, line {lines}: expected "
    assert result.asked.rejected.words.startswith(said)
    assert [record.getMessage() for record in caplog.records if record.name == "trainer.loop"] == [
        result.asked.rejected.words
    ]
    assert result.asked.questions == lines - 2  # without the header
    assert result.asked.rejected.quarantine == str(quarantine / "questions-train.jsonl")
    assert train(config, resume=True).asked == result.asked
    assert evaluate(config.run_dir).rejected.rows == 1
    for split in ("train", "valid"):
        (row,) = [json.loads(line) for line in (quarantine / f"questions-{split}.jsonl").open(encoding="utf-8")]
        assert row["file"] == f"{folder}/questions_{split}.tsv"
        assert (row["raw"], row["reason"].split(",")[0]) == ("too few cells", "expected 4 columns")
    mended = folder / "questions_valid.tsv"
    mended.write_text("".join(mended.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    assert evaluate(config.run_dir).rejected == Rejected()
    assert [path.name for path in quarantine.iterdir()] == ["questions-train.jsonl"], "it says what is so now"
