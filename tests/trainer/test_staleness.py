"""When a memory is too stale, and a run that embeds it again for that reason alone, resumed to the same end."""

from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.config import RunConfig
from trainer.loop import train
from trainer.metrics import read_metrics
from trainer.staleness import RefreshPolicy, Staleness

MakeConfig = Callable[..., RunConfig]


@pytest.mark.parametrize(
    ("most_drift", "least_recall", "drift", "recall", "due"),
    [
        (0.0, 0.0, 9.0, 0.0, False),
        (0.1, 0.0, 0.11, 1.0, True),
        (0.1, 0.0, 0.09, 0.0, False),
        (0.0, 0.9, 9.0, 0.95, False),
        (0.0, 0.9, 0.0, 0.89, True),
        (0.5, 0.9, 0.6, 1.0, True),
        (0.5, 0.9, float("inf"), 1.0, True),
    ],
)
def test_either_bound_is_enough_and_zero_is_none(
    most_drift: float, least_recall: float, drift: float, recall: float, due: bool
) -> None:
    policy = RefreshPolicy(most_drift=most_drift, least_recall=least_recall, check_every_steps=5)
    assert policy.is_due(Staleness(drift=drift, recall=recall)) is due
    assert policy.is_checked_at(10) is (most_drift > 0 or least_recall > 0)
    assert not policy.is_checked_at(11)


def test_a_run_refreshes_when_its_memory_has_drifted_and_says_how_stale_it_was(run_config: MakeConfig) -> None:
    often = {
        "max_steps": 12,
        "refresh_every_steps": 8,
        "refresh_drift": 1e-6,
        "refresh_check_steps": 3,
        "refresh_wait": "always",
    }
    config = run_config(train=often)
    train(config)
    lines = read_metrics(Path(config.run_dir))
    assert [line["step"] for line in lines if line["kind"] == "refresh"] == [0, 3, 6, 8, 9, 12]
    steps = {line["step"]: line for line in lines if line["kind"] == "train"}
    assert steps[10]["stale_steps"] == 0
    assert steps[12]["stale_steps"] == 2
    assert steps[10]["drift"] > 0
    assert 0 <= steps[10]["index_recall"] <= 1
    patient = run_config(name="patient", at="other", train={**often, "refresh_drift": 1e6})
    train(patient)
    lines = read_metrics(Path(patient.run_dir))
    assert [line["step"] for line in lines if line["kind"] == "refresh"] == [0, 8, 12]
