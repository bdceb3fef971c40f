"""Memory kept from search to search: pages that are new to a process cost more than the arithmetic on them."""

import torch
from torch import Tensor

__all__ = ["Scratch"]


class Scratch:
    """Buffers of one worker, kept from block to block and from search to search, in the memory of one device."""

    def __init__(self, device: torch.device | None = None) -> None:
        """device: that of the processor when None."""
        self._device = device
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor over the buffer of this name, which grows to the largest size asked for."""
        needed = shape[0] * shape[1]
        buffer = self._buffers.get(name)
        if buffer is None or buffer.dtype != dtype or buffer.numel() < needed:
            buffer = self._buffers[name] = torch.empty(needed, dtype=dtype, device=self._device)
        return buffer[:needed].view(shape)

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._buffers.values())
