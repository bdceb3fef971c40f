"""On which device an exact index scans, and in what precision: the option, whether there is room, what is measured."""

import logging
import sys
import time
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from memory_store.errors import DeviceUnavailable, UnknownIndex
from memory_store.mips.base import IndexSpec, ShardVectors
from memory_store.mips.bounds import GroupBounds
from memory_store.mips.calibrate import ScanPlan, hard_queries, hard_rows
from memory_store.mips.device_scan import DeviceScan, block_products, device_bytes
from memory_store.mips.encode import BAND_ROWS, CopyPrecision, encode
from memory_store.mips.options import one_of
from memory_store.mips.scan import MOST_COLUMNS
from memory_store.mips.workers import Workers

# N rows, D dimension, B queries

__all__ = ["device_plan", "gpu_bytes", "gpu_share", "is_sound_on", "no_device"]

_WORTH_A_DEVICE = 2**25  # values, 262,144 rows of 128: below, a processor takes milliseconds, and no device is woken
_COPIES: tuple[CopyPrecision, ...] = ("int8", "bfloat16", "float32")  # the smaller first
_PROBED_COLUMNS = range(16, MOST_COLUMNS + 1, 16)  # the widths that a search uses
_PROBED_VALUES = 2**26  # of a copy that precisions are probed and timed with, at most
_REPEATS = 5
_log = logging.getLogger(__name__)


def device_plan(vectors: ShardVectors, options: Mapping[str, str]) -> tuple[ScanPlan, torch.device] | None:
    """The precision to scan in, and the device; None where this processor is to scan.

    With device=cuda there must be a GPU with room: DeviceUnavailable says what is missing. With device=auto one is used
    if there is, for rows that it pays for and has room for. Raises UnknownIndex for options that cannot be.
    """
    wanted, scan = _wanted(IndexSpec("exact", options)), options.get("scan", "auto")
    too_few = wanted == "auto" and vectors.num_rows * vectors.dim < _WORTH_A_DEVICE
    if wanted == "cpu" or scan == "float64" or not vectors.num_rows or too_few:
        return None
    device = _cuda()
    if device is None:
        if wanted == "cuda":
            raise DeviceUnavailable(
                f"expected a GPU that torch {torch.__version__} can use, found none; install a torch with CUDA, look "
                "at CUDA_VISIBLE_DEVICES, or use exact?device=cpu"
            )
        return None
    precision = _precision(scan, vectors.dim, device)
    if precision is None:
        no_device(options, f"expected sound products of {vectors.dim} values on {device}, found none")
        return None
    needed_bytes, free_bytes = device_bytes(vectors.num_rows, vectors.dim, precision, device), _free_bytes(device)
    if needed_bytes > free_bytes:
        no_device(
            options,
            f"expected {needed_bytes / 2**30:.1f} GiB free on {device} for {vectors.num_rows:,} rows of {vectors.dim} "
            f"values in {precision}, found {free_bytes / 2**30:.1f} GiB",
        )
        return None
    return ScanPlan(copy=precision, few=precision, many=precision), device


def no_device(options: Mapping[str, str], why: str) -> None:
    """Raise DeviceUnavailable where a GPU must be used; else say in the log that this processor searches."""
    if _wanted(IndexSpec("exact", options)) == "cuda":
        raise DeviceUnavailable(f"{why}; use more shards on more GPUs, or exact?device=auto, or device=cpu")
    _log.warning("this processor searches in place of a GPU: %s", why)


def gpu_share(spec: IndexSpec) -> float:
    """The share of a GPU that each shard of an exact index reserves on Ray, in (0, 1]; 0 for none.

    Raises UnknownIndex for an option that cannot be.
    """
    wanted, text = _wanted(spec), spec.options.get("gpus")
    if text is None:
        return 0.0 if wanted == "cpu" else 1.0
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if wanted == "cpu" or not 0 < share <= 1:
        raise UnknownIndex(
            f"expected {spec.name}?gpus= above 0 and at most 1, with device=cuda or device=auto, found {text!r} with "
            f"device={wanted}"
        )
    return share


def gpu_bytes(spec: IndexSpec, rows: int, dim: int) -> int:
    """What an exact index needs on a GPU, at most: in bfloat16 unless the option `scan` says otherwise; 0 for none."""
    scan = spec.options.get("scan", "auto")
    if _wanted(spec) == "cpu" or scan == "float64":
        return 0
    held: list[CopyPrecision] = [precision for precision in _COPIES if precision == scan]
    return device_bytes(rows, dim, held[0] if held else "bfloat16", torch.device("cuda"))


@lru_cache(maxsize=64)
def is_sound_on(precision: CopyPrecision, dim: int, device: torch.device) -> bool:
    """Whether the device's products in this precision are there and keep what the proof assumes, for this dimension.

    Looked at with rows that are hard to add up, in the smallest and the largest block that a search multiplies.
    """
    hard_ND = hard_rows(dim)
    band_ND = np.resize(hard_ND, (BAND_ROWS, dim))
    try:
        for bands in (1, _probed_bands(dim, device)):
            scan = _repeating(precision, band_ND, bands, device)
            if not all(scan.keeps_its_promise(hard_queries(hard_ND, columns)) for columns in _PROBED_COLUMNS):
                return False
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, NotImplementedError, RuntimeError):  # how torch says that a product is not there
        return False
    return True


@lru_cache(maxsize=64)
def _fastest_on(dim: int, device: torch.device) -> CopyPrecision | None:
    rows_ND = np.random.default_rng(0).standard_normal((BAND_ROWS, dim), dtype=np.float32)
    queries_BD = rows_ND[:MOST_COLUMNS].astype(np.float64)
    best_s: dict[CopyPrecision, float] = {}
    for precision in _COPIES:
        if is_sound_on(precision, dim, device):
            scan = _repeating(precision, rows_ND, _probed_bands(dim, device), device)
            best_s[precision] = min(_seconds(scan, queries_BD) for _ in range(_REPEATS))
    return min(best_s, key=best_s.__getitem__, default=None)


def _seconds(scan: DeviceScan, queries_BD: NDArray[np.float64]) -> float:
    started_s = time.perf_counter()
    scan.upper_bounds(queries_BD).bands_Sb.amax().item()  # waits until the device is done
    return time.perf_counter() - started_s


def _repeating(precision: CopyPrecision, band_ND: NDArray[np.float32], bands: int, device: torch.device) -> DeviceScan:
    """A scan over one band of rows, again and again."""
    vectors = ShardVectors(np.arange(len(band_ND)), [band_ND], band_ND.shape[1])
    copy_ND, bounds = encode(vectors, precision, Workers(1))
    assert copy_ND is not None, "a precision was given"
    repeated = GroupBounds(
        scale_G=np.tile(bounds.scale_G, bands),
        residual_G=np.tile(bounds.residual_G, bands),
        norm_G=np.tile(bounds.norm_G, bands),
    )
    return DeviceScan(precision, copy_ND.repeat(bands, 1), repeated, device)


def _probed_bands(dim: int, device: torch.device) -> int:
    return max(min(block_products(device) // MOST_COLUMNS, _PROBED_VALUES // dim) // BAND_ROWS, 1)


def _precision(scan: str, dim: int, device: torch.device) -> CopyPrecision | None:
    if scan == "auto":
        return _fastest_on(dim, device)
    asked: list[CopyPrecision] = [precision for precision in _COPIES if precision in (scan, "float32")]
    return next((precision for precision in asked if is_sound_on(precision, dim, device)), None)


def _wanted(spec: IndexSpec) -> str:
    return one_of(spec, "device", ("cpu", "cuda", "auto"))


def _cuda() -> torch.device | None:
    """The GPU that this process uses: the first that it sees, unless the program chose another."""
    try:
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None
    except RuntimeError as failed:  # a driver that does not answer, or a process that was forked from one with CUDA
        _log.warning("torch cannot use the GPU that it sees: %s", failed)
        return None


def _free_bytes(device: torch.device) -> int:
    """What may be taken on the device: what nobody has, and what torch holds in this process without using it."""
    if device.type != "cuda":
        return sys.maxsize
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + unused)
