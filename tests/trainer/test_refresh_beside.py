"""A refresh that training does not wait for: the same run however long it takes, also after an interruption."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import trainer.refresh
from memory_store.errors import ConfigError, StorageFailed
from memory_store.progress import Progress
from memory_store.storage import Storage
from memory_store.upkeep import pins, sweep, unpin, verify_memory
from trainer import step
from trainer.checkpoint import newest_checkpoint
from trainer.config import RunConfig, TrainConfig
from trainer.encoders.base import Encoder
from trainer.loop import train
from trainer.metrics import read_metrics
from trainer.refresh import Refresher

MakeConfig = Callable[..., RunConfig]

# Asked for at 6, 12, 18 ... and taken over 4 steps later; every third makes a checkpoint.
BESIDE = {
    "epochs": 3,
    "max_steps": 32,
    "refresh_every_steps": 6,
    "refresh_lag_steps": 4,
    "checkpoint_every_refreshes": 3,
}
NEVER = {**BESIDE, "refresh_wait": "never"}
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


def is_beside() -> bool:
    """Whether this is the thread that refreshes beside the steps."""
    return threading.current_thread() is not threading.main_thread()


def refreshed_at(config: RunConfig) -> list[int]:
    return [line["step"] for line in read_metrics(Path(config.run_dir)) if line["kind"] == "refresh"]


class Steps:
    """Training steps, counted; `at` a step something is done before it, once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: dict[int, Callable[[], object]]) -> None:
        self.done = 0
        self._at = at
        self._original = step.training_step
        monkeypatch.setattr("trainer.loop.training_step", self)

    def __call__(self, *args: object, **kwargs: object) -> object:
        self._at.pop(self.done, lambda: None)()
        self.done += 1
        return self._original(*args, **kwargs)  # type: ignore[arg-type]


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("lag", "steps"), [(4, [0, 10, 16, 22, 28, 32]), (0, [0, 12, 18, 24, 30, 32])])
def test_a_refresh_that_is_ready_at_once_and_one_that_is_late_give_the_same_run(
    run_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, lag: int, steps: list[int]
) -> None:
    begin, take_over, abandon, embed = Refresher.begin, Refresher.take_over, Refresher.abandon, Refresher._embed
    awaited = threading.Event()
    settings = {**BESIDE, "refresh_lag_steps": lag}
    early, late = run_config("early", "m1", train=settings), run_config("late", "m2", train=settings)
    never = run_config("never", "m3", train={**settings, "refresh_wait": "never"})
    begun = []

    def begin_and_finish(self: Refresher, **options: object) -> None:
        begin(self, **options)  # type: ignore[arg-type]
        assert self._begun is not None
        begun.append(self._begun.result())

    with monkeypatch.context() as quick:
        quick.setattr(Refresher, "begin", begin_and_finish)
        train(early)
        assert len(begun) == 5, "at 6, 12, 18, 24 and 30"
        train(never)

    def embed_late(self: Refresher, *arguments: object) -> int:
        assert not is_beside() or awaited.wait(120)
        return embed(self, *arguments)  # type: ignore[arg-type]

    def take_over_late(self: Refresher) -> int:
        awaited.set()
        generation = take_over(self)
        awaited.clear()
        return generation

    def abandon_late(self: Refresher) -> None:
        awaited.set()
        abandon(self)

    with monkeypatch.context() as slow:
        slow.setattr(Refresher, "_embed", embed_late)
        slow.setattr(Refresher, "abandon", abandon_late)
        slow.setattr(Refresher, "take_over", take_over_late)
        train(late)
    assert outcome(early) == outcome(late)
    assert outcome(early) == outcome(never), "which was not asked to wait and did not have to"
    assert refreshed_at(late) == steps
    if lag:
        lines = [line for line in read_metrics(Path(late.run_dir)) if line["kind"] == "train"]
        stale = {line["step"]: line["stale_steps"] for line in lines}
        assert stale == {10: 9, 20: 7, 30: 5, 32: 7}, "counted from the step whose model made the vectors"
    verify_memory(late.memory.url)


@pytest.mark.parametrize(("members", "lag", "saved_at"), [(1, 4, 19), (2, 0, 18 + 32)])
def test_an_interrupted_run_that_refreshes_beside_resumes_to_the_same_result(
    run_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, members: int, lag: int, saved_at: int
) -> None:
    """The checkpoint of step 18 waits for what drift asked for at step 15, where it is taken over after 4."""
    drift = {**BESIDE, "refresh_lag_steps": lag, "refresh_drift": 1e-6, "refresh_check_steps": 5}
    model = {"members": members}
    whole = run_config("whole", "m1", model=model, train=drift)
    stopped = run_config("stopped", "m2", model=model, train=drift)
    train(whole)
    Steps(monkeypatch, at={26 + 32 * (members - 1): interrupt})  # a refresh is under way
    with pytest.raises(KeyboardInterrupt):
        train(stopped)
    sweep(stopped.memory.url)  # the vectors that it goes on with are pinned
    assert train(stopped, resume=True).resumed_from == saved_at
    assert outcome(stopped) == outcome(whole)
    verify_memory(stopped.memory.url)
    checkpoint = newest_checkpoint(Storage(stopped.run_dir))
    assert checkpoint is not None
    assert list(pins(Storage(stopped.memory.url)).values()) == [checkpoint.generation]


def test_a_run_whose_vectors_were_swept_in_spite_of_it_resumes_by_embedding_anew(
    run_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(train=BESIDE)
    Steps(monkeypatch, at={26: interrupt})
    with pytest.raises(KeyboardInterrupt):
        train(config)
    storage = Storage(config.memory.url)
    (served,) = [name for name in pins(storage) if name.endswith("-serving")]
    unpin(storage, served)
    sweep(config.memory.url)
    result = train(config, resume=True)
    assert (result.resumed_from, result.steps) == (18, 32)
    verify_memory(config.memory.url)


@pytest.mark.parametrize(("lag", "taken_over"), [(0, [24, 30]), (5, [21, 26])])
def test_by_default_training_goes_on_for_as_long_as_a_refresh_takes_and_saves_when_it_can(
    run_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    lag: int,
    taken_over: list[int],
) -> None:
    config = run_config(train={**NEVER, "refresh_lag_steps": lag})
    assert config.train.refresh_wait == TrainConfig().refresh_wait
    begin, embed = Refresher.begin, Refresher._embed
    slow, saved, refreshers = threading.Event(), [], []

    def begin_and_note(self: Refresher, *, member: int | None, save: Callable[[Encoder, int], None] | None) -> None:
        refreshers.append(self)
        saved.append(save is not None)
        begin(self, member=member, save=save)

    def embed_slowly(self: Refresher, *arguments: object) -> int:
        assert not is_beside() or slow.wait(120), "asked for at 6, ready at 20"
        return embed(self, *arguments)  # type: ignore[arg-type]

    def get_ready() -> None:
        slow.set()
        begun = refreshers[-1]._begun
        assert begun is not None
        begun.result()

    monkeypatch.setattr(Refresher, "begin", begin_and_note)
    monkeypatch.setattr(Refresher, "_embed", embed_slowly)
    with monkeypatch.context() as interrupted:
        steps = Steps(interrupted, at={20: get_ready, 25: get_ready, 31: interrupt})
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert steps.done == 31
    lines = [line for line in read_metrics(Path(config.run_dir)) if line["kind"] == "refresh"]
    assert [line["step"] for line in lines] == [0, *taken_over]
    assert [line["made_at"] for line in lines] == [0, 6, taken_over[0]]
    assert saved[:2] == [False, True], "the checkpoint of step 18 was due while the first one was under way"
    (said,) = [record.getMessage() for record in caplog.records if record.name == "trainer.schedule"]
    assert f"asked for at step 6 is not ready at step {6 + (lag or 6)}" in said
    result = train(config, resume=True)
    assert result.resumed_from == taken_over[0]
    assert result.steps == 32
    verify_memory(config.memory.url)
    assert list(pins(Storage(config.memory.url)).values()) == [result.generation]


def test_what_a_refresh_beside_meets_ends_the_run_where_it_is_taken_over(
    run_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = Refresher._embed

    def fails(self: Refresher, *arguments: object) -> int:
        if is_beside():
            raise StorageFailed("cannot write: disk full")
        return embed(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Refresher, "_embed", fails)
    with pytest.raises(StorageFailed, match="disk full"):
        train(run_config(train=BESIDE))


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when a refresh beside has begun, and none of them is ever done."""
    original, begun = trainer.refresh.embed, threading.Event()

    def never_done(*arguments: object, progress: Progress, **options: object) -> object:
        if not is_beside():
            return original(*arguments, progress=progress, **options)  # type: ignore[arg-type]
        begun.set()
        while True:
            progress("embed", 0, 1)

    monkeypatch.setattr(trainer.refresh, "embed", never_done)
    return begun


def test_a_run_that_ends_early_ends_the_refresh_that_nobody_waits_for(
    run_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, begun: threading.Event
) -> None:
    Steps(monkeypatch, at={8: interrupt})
    with pytest.raises(KeyboardInterrupt):
        train(run_config(train=BESIDE))
    assert begun.is_set()


@pytest.mark.parametrize("members", [1, 2])
def test_what_is_under_way_when_a_model_is_trained_is_not_waited_for(
    run_config: MakeConfig, begun: threading.Event, members: int
) -> None:
    config = run_config(model={"members": members}, train={**BESIDE, "max_steps": 8})
    assert train(config).generation > 0
    assert begun.is_set()
    assert refreshed_at(config) == [0, *[8] * (members - 1), 8 * members]
    assert len(pins(Storage(config.memory.url))) == 1
    verify_memory(config.memory.url)


@pytest.mark.parametrize(
    "train", [{"refresh_lag_steps": 7}, {"refresh_lag_steps": -1}, {"refresh_lag_steps": 2, "refresh_wait": "always"}]
)
def test_a_lag_that_cannot_be_kept_is_refused(run_config: MakeConfig, train: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="refresh_lag_steps"):
        run_config(train={"refresh_every_steps": 6, **train})
