"""The checkpoints of one run: each names a generation of the memory, which stays for as long as the checkpoint does."""

import re
from collections.abc import Callable
from pathlib import Path

import xxhash
from torch import Tensor

from memory_store.storage import Storage
from memory_store.upkeep import pin, unpin
from pipeline.features import FEATURES_VERSION
from trainer.checkpoint import save_checkpoint
from trainer.config import RunConfig
from trainer.encoders.base import Encoder
from trainer.state import capture, capture_encoder, capture_optimizers
from trainer.step import Optimizers

__all__ = ["Checkpointer", "pin_name"]

_PIN_CHARS = 160  # of a run's folder in the name of its pins, which may have 200


class Checkpointer:
    """Writes the checkpoints of a run of `total` steps, and pins what they name.

    A run that dies while it writes one leaves the generations of both pinned, for either may be in force. The next one
    lets go.
    """

    def __init__(self, config: RunConfig, encoder: Encoder, optimizers: Optimizers, *, total: int) -> None:
        self._config = config
        self._encoder = encoder
        self._optimizers = optimizers
        self._total = total
        self._run = Storage(config.run_dir)
        self._memory = Storage(config.memory.url)
        self._name = pin_name(config.run_dir)

    def save(self, step: int, generation: int) -> None:
        """Write the model as it is, which embedded this generation; training goes on with it or with a newer one."""
        self._write(capture(self._encoder, self._optimizers), self._encoder.fingerprint(), step, generation, 0, 0)

    def begin(self, step: int, serving: int, serving_step: int) -> Callable[[Encoder, int], None]:
        """Copy how the model learns; the function returned writes that, and the copy of the model that it is given with
        the generation that this copy embedded.

        serving: the generation that training searches at this step, made by the model of `serving_step`. A run that is
        resumed from here goes on with it, so it is pinned now: training may go on to another before this is written.
        """
        pin(self._memory, f"{self._name}-serving-next", serving)
        live = capture_optimizers(self._encoder, self._optimizers)
        learning = {name: tensor.detach().clone() for name, tensor in live.items()}

        def write(copied: Encoder, generation: int) -> None:
            tensors = capture_encoder(copied) | learning
            self._write(tensors, copied.fingerprint(), step, generation, serving, serving_step)

        return write

    def _write(
        self,
        tensors: dict[str, Tensor],
        fingerprint: str,
        step: int,
        generation: int,
        serving: int,
        serving_step: int,
    ) -> None:
        pin(self._memory, f"{self._name}-next", generation)
        save_checkpoint(
            self._run,
            tensors,
            step=step,
            total_steps=self._total,
            generation=generation,
            serving=serving,
            serving_step=serving_step,
            memory=self._config.memory.url,
            fingerprint=fingerprint,
            features=FEATURES_VERSION,
            encoder=self._config.model.encoder,
            started_in=str(Path.cwd()),
        )
        for kind, named in (("", generation), ("-serving", serving)):
            if named:
                pin(self._memory, self._name + kind, named)
            else:
                unpin(self._memory, self._name + kind)
            unpin(self._memory, f"{self._name}{kind}-next")


def pin_name(run_dir: str) -> str:
    """Readable, and another one for every run directory: runs of one name must not take each other's pin."""
    folder = Path(run_dir).resolve()
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", folder.name)[:_PIN_CHARS]
    return f"run-{plain or 'unnamed'}-{xxhash.xxh3_64_hexdigest(str(folder).encode())[:8]}"
