"""[ray] Several training processes: each takes a share of every batch, and gradients are averaged."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor

from memory_store.errors import HmnError
from memory_store.ray_session import ensure_ray
from memory_store.storage import Storage
from trainer.checkpoint import CheckpointInfo, newest_checkpoint
from trainer.config import RunConfig
from trainer.encoders.tables import sum_rows
from trainer.metrics import last_loss

__all__ = ["average_gradients", "run_workers"]


def average_gradients(dense: list[Tensor], rows: dict[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """The mean of every gradient over the workers of the process group; see trainer.step.Average.

    Row gradients are gathered, not reduced, as every worker touches other rows; they are added in the order of the
    ranks, so that all workers, and all runs of a seed, get the same sum.
    """
    workers = distributed.get_world_size()
    for gradient in dense:
        distributed.all_reduce(gradient)
        gradient /= workers
    gathered: list[dict[str, tuple[Tensor, Tensor]]] = [{} for _ in range(workers)]
    distributed.all_gather_object(gathered, rows)
    averaged = {}
    for name in sorted({name for one in gathered for name in one}):
        pairs = [one[name] for one in gathered if name in one]
        index_U, total_UW = sum_rows([pair[0] for pair in pairs], [pair[1] for pair in pairs])
        averaged[name] = (index_U, total_UW / workers)
    return averaged


def run_workers(config: RunConfig, found: CheckpointInfo | None) -> dict[str, Any]:
    """Train with `train.workers` processes; returns what the run directory says they did.

    Raises what a worker raised, if it is an error of ours, as a run of one process does.
    """
    from ray.train import ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchTrainer

    ensure_ray()
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"config": config, "found": found, "folder": str(Path.cwd())},
        scaling_config=ScalingConfig(num_workers=config.train.workers),
    )
    try:
        trainer.fit()
    except WorkerGroupError as failed:
        ours = _ours(failed.worker_failures)
        if ours is None:
            raise
        raise ours from failed
    # Ray Train hands back metrics only with checkpoints of its own; ours are in the run directory.
    done = newest_checkpoint(Storage(config.run_dir))
    assert done is not None, "a run that ended has written its last checkpoint"
    return {"steps": done.step, "loss": last_loss(Path(config.run_dir)), "generation": done.generation}


def _ours(failures: Mapping[int, Exception]) -> HmnError | None:
    """The first error of ours that a worker ended with; the others then only miss their peer."""
    for _, failure in sorted(failures.items()):
        raised = getattr(failure, "_base_exc", failure)  # Ray's wrapper tells the traceback alone
        if isinstance(raised, HmnError):
            return raised
    return None


def _worker(payload: dict[str, Any]) -> None:
    import ray.train

    from memory_store.progress import silent
    from trainer.loop import train_worker

    if Path(payload["folder"]).is_dir():
        os.chdir(payload["folder"])  # relative paths count from where the command was started; Ray has gone elsewhere
    rank = ray.train.get_context().get_world_rank()
    train_worker(payload["config"], payload["found"], silent, rank=rank, average=average_gradients, agree=_from_rank_0)


def _from_rank_0(said: int) -> int:
    """What rank 0 said; everyone waits for it."""
    box = torch.tensor([said])
    distributed.broadcast(box, src=0)
    return int(box.item())
