"""`hmn bench ann` takes the facts and questions of a trained run as that run's model writes them."""

from pathlib import Path

import numpy as np
import pytest

from deploy.bench.ann_vectors import TrainedSource, draw
from memory_store.errors import InputError
from memory_store.opening import open_memory
from trainer.loop import train


def test_trained_vectors_are_those_of_the_memory_and_questions_those_of_the_validation_split(run_config) -> None:
    config = run_config(train={"max_steps": 2})
    train(config)
    source = TrainedSource(memory=config.memory.url, run=Path(config.run_dir))
    found = draw("trained", 200, 8, 10, 0, source)
    assert found.vectors_ND.dtype == found.queries_BD.dtype == np.float32
    assert found.queries_BD.shape == (10, found.vectors_ND.shape[1])
    with open_memory(config.memory.url) as memory:
        best = memory.search(found.vectors_ND[:5], 1)
        stored = memory.vectors(best.fact_ids_BK[:, 0])
    assert (np.square(stored).sum(axis=1) >= np.square(found.vectors_ND[:5]).sum(axis=1) * 0.999).all()
    with pytest.raises(InputError, match="at least 9,000 facts"):
        draw("trained", 9000, 8, 10, 0, source)
