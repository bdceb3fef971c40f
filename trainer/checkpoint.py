"""Checkpoints: raw tensors behind a JSON header, written beside and renamed, verified before they are used."""

import json
import struct
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, BinaryIO

import numpy as np
import torch
import xxhash
from torch import Tensor

from memory_store.errors import CorruptFile, InputError
from memory_store.storage import Storage

__all__ = ["CheckpointInfo", "load_checkpoint", "newest_checkpoint", "save_checkpoint"]

FORMAT_VERSION = 1
_LATEST = "checkpoints/latest.json"
_DTYPES = {"F32": torch.float32, "I64": torch.int64, "U8": torch.uint8}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LARGEST_HEADER_BYTES = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """What a checkpoint says of itself. generation: of the memory at `memory`, embedded by this model.

    serving: the generation that the run searched at this step, where that is an older one, made by the model of
    serving_step: a run that did not wait for its refresh is resumed with it. 0: none. started_in: the folder that the
    relative paths of the run's settings count from.
    """

    format_version: int
    path: str
    checksum: str
    bytes: int
    step: int
    total_steps: int
    generation: int
    memory: str
    fingerprint: str
    features: str
    encoder: str
    serving: int = 0
    serving_step: int = 0
    started_in: str = ""


def save_checkpoint(
    storage: Storage, tensors: Mapping[str, Tensor], *, step: int, total_steps: int, **about: Any
) -> CheckpointInfo:
    """Write the tensors and then switch to them; a crash at any instant leaves the older checkpoint in force.

    The file is laid out like safetensors: 8 bytes of header length, a JSON header, the raw tensors.
    about: the remaining fields of CheckpointInfo. Older checkpoint files are deleted after the switch.
    """
    path = f"checkpoints/step-{step:08d}.safetensors"
    header: dict[str, Any] = {"__metadata__": {"format": "hmn", "format_version": str(FORMAT_VERSION)}}
    offset = 0
    for name, tensor in sorted(tensors.items()):
        if tensor.dtype not in _NAMES:
            raise InputError(f"expected tensors of {', '.join(_DTYPES)}, found {tensor.dtype} for {name}")
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    head = json.dumps(header, sort_keys=True).encode()
    head += b" " * (-len(head) % 8)  # tensors start on a multiple of their element size
    digest = xxhash.xxh3_128()

    def write(file: BinaryIO) -> None:
        for piece in (struct.pack("<Q", len(head)), head):
            digest.update(piece)
            file.write(piece)
        for _, tensor in sorted(tensors.items()):
            raw = tensor.detach().contiguous().numpy().reshape(-1).view(np.uint8)
            digest.update(raw.data)
            file.write(raw.data)

    storage.write_atomic(path, write)
    info = CheckpointInfo(
        format_version=FORMAT_VERSION,
        path=path,
        checksum=f"xxh3-128:{digest.hexdigest()}",
        bytes=8 + len(head) + offset,
        step=step,
        total_steps=total_steps,
        **about,
    )
    storage.write_atomic(_LATEST, json.dumps(asdict(info), indent=1).encode() + b"\n")
    for old in storage.list("checkpoints"):
        if old.endswith(".safetensors") and old != path:
            storage.delete(old)
    return info


def newest_checkpoint(storage: Storage) -> CheckpointInfo | None:
    """The checkpoint in force, or None in a run that has none yet. Raises CorruptFile for one that makes no sense."""
    if not storage.exists(_LATEST):
        return None
    try:
        content = json.loads(storage.read_bytes(_LATEST))
        known = {field.name: field.type for field in fields(CheckpointInfo)}
        later = {field.name: field.default for field in fields(CheckpointInfo) if field.default is not MISSING}
        content = {**later, **content}  # checkpoints of earlier versions lack them
        if set(content) != set(known) or any(not isinstance(content[name], known[name]) for name in known):  # type: ignore[arg-type]
            raise ValueError("other fields than expected")
    except (ValueError, TypeError) as error:
        raise CorruptFile(
            f"{storage.where(_LATEST)}: expected a checkpoint's description, found {error}; train again in another "
            "run_dir, or restore the file"
        ) from error
    info = CheckpointInfo(**content)
    if info.format_version != FORMAT_VERSION:
        raise CorruptFile(
            f"{storage.where(_LATEST)}: expected checkpoint format {FORMAT_VERSION}, found {info.format_version}; "
            "use the version of hmn that wrote it"
        )
    return info


def load_checkpoint(storage: Storage, info: CheckpointInfo) -> dict[str, Tensor]:
    """The tensors of a checkpoint, verified; not to be written to.

    Raises CorruptFile if the file is missing, truncated or altered.
    """
    where = storage.where(info.path)
    try:
        content = storage.read_bytes(info.path)
    except FileNotFoundError as error:
        raise CorruptFile(f"{where}: expected the checkpoint that {_LATEST} names, found no file") from error
    if len(content) != info.bytes:
        raise CorruptFile(f"{where}: expected {info.bytes:,} bytes, found {len(content):,}; restore the file")
    checksum = f"xxh3-128:{xxhash.xxh3_128_hexdigest(content)}"
    if checksum != info.checksum:
        raise CorruptFile(f"{where}: expected checksum {info.checksum}, found {checksum}; restore the file")
    (head_bytes,) = struct.unpack("<Q", content[:8])
    if head_bytes > min(_LARGEST_HEADER_BYTES, len(content) - 8):
        raise CorruptFile(f"{where}: expected a header of a checkpoint, found a length of {head_bytes:,} bytes")
    header = json.loads(content[8 : 8 + head_bytes])
    body = memoryview(content)[8 + head_bytes :]
    tensors = {}
    with warnings.catch_warnings():
        # Whoever loads a checkpoint copies from it; a second copy here would be gigabytes for nothing.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                raw = torch.frombuffer(body[start:end], dtype=torch.uint8) if end > start else torch.empty(0)
                tensors[name] = raw.view(_DTYPES[entry["dtype"]]).view(entry["shape"])
    return tensors
