"""A run is one TOML file: unknown keys name the nearest, what is saved loads as it was."""

from pathlib import Path

import pytest

from memory_store.errors import ConfigError
from trainer.config import RunConfig, load_config, save_config
from trainer.settings import build

GOOD = """
run_dir = "runs/x"
seed = 3
[memory]
url = "memories/x"
[data]
questions = "builtin:geonames"
facts = "builtin:geonames"
[train]
epochs = 2
table_rate = 1
"""


def _write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_becomes_a_config_and_back(tmp_path: Path) -> None:
    config = load_config(_write(tmp_path, GOOD))
    assert (config.seed, config.train.epochs, config.train.table_rate) == (3, 2, 1.0)
    assert config.data.facts == ("builtin:geonames",)
    save_config(config, tmp_path / "saved.toml")
    assert load_config(tmp_path / "saved.toml") == config


def test_odd_characters_survive_the_round_trip(tmp_path: Path) -> None:
    config = build(RunConfig, {"run_dir": 'a"b\\c\n\té\x01', "memory": {"url": "m"}, "data": {"questions": "q"}})
    save_config(config, tmp_path / "saved.toml")
    assert load_config(tmp_path / "saved.toml") == config


def test_overrides_replace_settings_of_the_file(tmp_path: Path) -> None:
    path = _write(tmp_path, GOOD)
    config = load_config(path, ["train.epochs=7", "memory.url=s3://b/m", "model.encoder=gru", "run_dir=other"])
    assert (config.train.epochs, config.memory.url, config.model.encoder) == (7, "s3://b/m", "gru")
    assert config.run_dir == "other"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("epochs", "epoch"), "unknown setting 'train.epoch'; did you mean 'train.epochs'"),
        (GOOD.replace("[train]", "[trian]"), "did you mean 'train'"),
        (GOOD.replace("epochs = 2", "epochs = 0"), "train.epochs >= 1, found 0"),
        (GOOD.replace("epochs = 2", 'epochs = "two"'), "a whole number for 'train.epochs', found 'two'"),
        (GOOD.replace("epochs = 2", "epochs = true"), "a whole number"),
        (GOOD.replace("epochs = 2", "feature_dropout = 1.0"), "feature_dropout < 1"),
        (GOOD.replace("epochs = 2", 'candidates = "unions"'), "did you mean 'union'"),
        (GOOD.replace('url = "memories/x"', ""), "the setting 'memory.url'"),
        (GOOD.replace("[memory]", "memory = 3").replace('url = "memories/x"', ""), r"expected a table \[memory\]"),
        (GOOD.replace('facts = "builtin:geonames"', "facts = [1]"), "a list of texts"),
        ("run_dir = ", "is not TOML"),
    ],
)
def test_a_bad_file_is_refused_with_what_was_expected(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(_write(tmp_path, text))
    assert caught.value.exit_status == 2
    assert "\n" not in str(caught.value)


def test_bad_overrides_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = _write(tmp_path, GOOD)
    for override in ("train.epochs", "=3", "seed.x=1"):
        with pytest.raises(ConfigError, match=r"like train\.epochs=8"):
            load_config(path, [override])
    with pytest.raises(ConfigError, match="found none"):
        load_config(tmp_path / "absent.toml")


def test_a_target_recall_is_a_share_and_needs_searches_that_are_repeated(tmp_path: Path) -> None:
    path = _write(tmp_path, GOOD)
    kept = load_config(path, ["memory.index=split", "memory.target_recall=0.95"]).memory
    assert (kept.target_recall, kept.recall_share) == (0.95, 0.01)
    with pytest.raises(ConfigError, match=r"memory\.recall_share above 0"):
        load_config(path, ["memory.target_recall=0.95", "memory.recall_share=0.0"])
    with pytest.raises(ConfigError, match=r"memory\.target_recall < 1"):
        load_config(path, ["memory.target_recall=1.0"])
