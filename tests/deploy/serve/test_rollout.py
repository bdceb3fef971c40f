"""When the service switches to another generation or model."""

import pytest

from deploy.serve.rollout import Move, Rollout, Seen, Serving, decide

SERVING = Serving(checkpoint="c1", fingerprint="f1", generation=5)


def seen(**changes: object) -> Seen:
    """What is there when nothing has happened, with changes."""
    same: dict[str, object] = {
        "checkpoint": "c1",
        "fingerprint": "f1",
        "checkpoint_generation": 5,
        "newest": 5,
        "newest_encoder": "f1",
    }
    return Seen(**{**same, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (seen(), Rollout(Move.STAY)),
        # new facts, embedded by the model that is served
        (seen(newest=7), Rollout(Move.GENERATION, 7)),
        # facts that were ingested but not embedded, or embedded by training that has not saved its model yet
        (seen(newest=7, newest_encoder=None), Rollout(Move.STAY)),
        (seen(newest=7, newest_encoder="f2"), Rollout(Move.STAY)),
        # the model of those facts
        (seen(checkpoint="c2", fingerprint="f2", newest=7, newest_encoder="f2"), Rollout(Move.MODEL, 7)),
        # training went on after its checkpoint: the checkpoint's own generation
        (
            seen(checkpoint="c2", fingerprint="f2", checkpoint_generation=6, newest=7, newest_encoder="f3"),
            Rollout(Move.MODEL, 6),
        ),
        # only the question encoder changed
        (seen(checkpoint="c2"), Rollout(Move.MODEL, 5)),
        # another memory is served than the one the run was trained with, and the new model has not embedded it
        (seen(checkpoint="c2", fingerprint="f2", checkpoint_generation=None), Rollout(Move.STAY)),
        (seen(checkpoint="c2", fingerprint="f2", checkpoint_generation=None, newest=7), Rollout(Move.GENERATION, 7)),
        # nothing older is rolled out
        (seen(newest=4), Rollout(Move.STAY)),
    ],
)
def test_a_generation_is_served_only_with_the_model_that_embedded_it(there: Seen, expected: Rollout) -> None:
    assert decide(SERVING, there) == expected
