"""A refresh that training does not wait for: the same run however long it takes, also after an interruption."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from memory_store.errors import ConfigError, StorageFailed
from memory_store.storage import Storage
from memory_store.upkeep import verify_memory
from trainer import step
from trainer.checkpoint import newest_checkpoint
from trainer.config import RunConfig
from trainer.loop import train
from trainer.metrics import read_metrics
from trainer.refresh import Refresher

MakeConfig = Callable[..., RunConfig]

# Asked for at 6, 12, 18 ... and taken over 4 steps later; every third makes a checkpoint, and is waited for.
BESIDE = {
    "epochs": 3,
    "max_steps": 32,
    "refresh_every_steps": 6,
    "refresh_lag_steps": 4,
    "checkpoint_every_refreshes": 3,
}
MEASURED = ("drift", "index_recall")  # a resumed run has none until it looks again


def outcome(config: RunConfig) -> tuple[object, ...]:
    """The model, bit by bit, and the metrics of the run without its timings."""
    checkpoint = newest_checkpoint(Storage(config.run_dir))
    assert checkpoint is not None
    lines = [
        {key: value for key, value in line.items() if key not in ("timing", *MEASURED)}
        for line in read_metrics(Path(config.run_dir))
    ]
    return checkpoint.fingerprint, checkpoint.step, lines


def test_a_refresh_that_is_ready_at_once_and_one_that_is_late_give_the_same_run(
    run_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, take_over, embed = Refresher.begin, Refresher.take_over, Refresher._embed
    awaited = threading.Event()
    early, late = run_config("early", "m1", train=BESIDE), run_config("late", "m2", train=BESIDE)
    begun = []

    def begin_and_finish(self: Refresher, **options: object) -> None:
        begin(self, **options)  # type: ignore[arg-type]
        assert self._begun is not None
        begun.append(self._begun.result())

    with monkeypatch.context() as quick:
        quick.setattr(Refresher, "begin", begin_and_finish)
        train(early)
    assert len(begun) == 4, "at 6, 12, 24 and 30"

    def embed_late(self: Refresher, *arguments: object) -> int:
        if threading.current_thread() is not threading.main_thread():
            assert awaited.wait(120)
            awaited.clear()
        return embed(self, *arguments)  # type: ignore[arg-type]

    def take_over_late(self: Refresher) -> int:
        awaited.set()
        return take_over(self)

    with monkeypatch.context() as slow:
        slow.setattr(Refresher, "_embed", embed_late)
        slow.setattr(Refresher, "take_over", take_over_late)
        train(late)
    assert outcome(early) == outcome(late)
    refreshed = [line["step"] for line in read_metrics(Path(late.run_dir)) if line["kind"] == "refresh"]
    assert refreshed == [0, 10, 16, 18, 28, 32, 32]
    stale = {line["step"]: line["stale_steps"] for line in read_metrics(Path(late.run_dir)) if line["kind"] == "train"}
    assert stale == {10: 9, 20: 1, 30: 5, 32: 7}, "counted from the step whose model made the vectors"
    verify_memory(late.memory.url)


def test_an_interrupted_run_that_refreshes_beside_resumes_to_the_same_result(
    run_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    drift = {**BESIDE, "refresh_drift": 1e-6, "refresh_check_steps": 5}
    whole, stopped = run_config("whole", "m1", train=drift), run_config("stopped", "m2", train=drift)
    train(whole)
    original, calls = step.training_step, iter(range(1000))

    def failing(*args: object, **kwargs: object) -> object:
        if next(calls) == 26:  # a refresh is under way
            raise KeyboardInterrupt
        return original(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("trainer.loop.training_step", failing)
    with pytest.raises(KeyboardInterrupt):
        train(stopped)
    assert train(stopped, resume=True).resumed_from == 18
    assert outcome(stopped) == outcome(whole)


def test_what_a_refresh_beside_meets_ends_the_run_where_it_is_taken_over(
    run_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = Refresher._embed

    def fails(self: Refresher, *arguments: object) -> int:
        if threading.current_thread() is not threading.main_thread():
            raise StorageFailed("cannot write: disk full")
        return embed(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Refresher, "_embed", fails)
    with pytest.raises(StorageFailed, match="disk full"):
        train(run_config(train=BESIDE))


@pytest.mark.parametrize(
    "train", [{"refresh_lag_steps": 6}, {"refresh_lag_steps": -1}, {"refresh_lag_steps": 2, "workers": 2}]
)
def test_a_lag_that_cannot_be_kept_is_refused(run_config: MakeConfig, train: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="refresh_lag_steps"):
        run_config(train={"refresh_every_steps": 6, **train})
