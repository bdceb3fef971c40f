"""How exactly a structure stores its own copy of the rows: faiss scalar quantizers, and the choice among them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from memory_store.mips.scaled import ScaledRows

# n rows, D dimension, W width: D rounded up

__all__ = [
    "CODES",
    "CODE_BYTES",
    "choose_codes",
    "code_width",
    "planned_codes",
    "quantizer_type",
    "range_rows",
    "widened",
]

CODES: Final = ("auto", "int8", "bfloat16", "float32")
CODE_BYTES: Final[Mapping[str, int]] = MappingProxyType({"int8": 1, "bfloat16": 2, "float32": 4})

_WIDTH_STEP = 16  # values per AVX-512 register: faiss decodes any other width one value at a time
_INT8_LEVELS = 255
_TRIED_QUERIES = 64
_TRIED_VALUES = 2**23
_TRIED_K = 10
_KEPT_SHARE = 0.99  # of the best rows
_SEED = 0


def code_width(dim: int) -> int:
    """Columns stored: D rounded up to whole registers, the rest zeros."""
    return -(-dim // _WIDTH_STEP) * _WIDTH_STEP


def choose_codes(text: str, rows: ScaledRows) -> str:
    """The codes that the text names; for `auto` the shortest that keep the best rows apart, by trying them.

    int8 spreads 255 levels from the least to the largest value of a column: a few huge rows leave none for the others,
    and rows that differ by less than a level become one. Some rows are asked for their best, with and without codes.
    """
    if text != "auto":
        return text
    if rows.num_rows == 0:
        return "int8"
    rng = np.random.default_rng(_SEED)
    sample_nD = rows.take(rows.sample(max(_TRIED_VALUES // rows.dim, _TRIED_QUERIES), rng))
    queries_DB = np.ascontiguousarray(sample_nD[rng.integers(len(sample_nD), size=_TRIED_QUERIES)].T)
    scores_nB = sample_nD @ queries_DB
    k = min(_TRIED_K, len(sample_nD))
    kth_B = np.partition(scores_nB, len(sample_nD) - k, axis=0)[len(sample_nD) - k]
    for codes in ("int8", "bfloat16"):
        rounded_nB = _as_stored(sample_nD, codes, rows) @ queries_DB
        kept = min(spare_slots(k), len(sample_nD))
        found_kB = np.argpartition(rounded_nB, len(sample_nD) - kept, axis=0)[len(sample_nD) - kept :]
        best_B = np.count_nonzero(np.take_along_axis(scores_nB, found_kB, axis=0) >= kth_B, axis=0)
        if float(best_B.clip(max=k).mean()) >= _KEPT_SHARE * k:
            return codes
    return "float32"


def spare_slots(k: int) -> int:
    """Rows that a search of codes keeps for k: their rounding moves a few of the best behind the k-th place."""
    return k + max(k // 2, 6)


def _as_stored(rows_nD: NDArray[np.float32], codes: str, rows: ScaledRows) -> NDArray[np.float32]:
    if codes == "bfloat16":
        rounded_nD: NDArray[np.float32] = torch.from_numpy(rows_nD).to(torch.bfloat16).float().numpy()
        return rounded_nD
    step_D = np.maximum((rows.high_D - rows.low_D) / np.float32(_INT8_LEVELS), np.finfo(np.float32).tiny)
    stored_nD: NDArray[np.float32] = np.floor((rows_nD - rows.low_D) / step_D + np.float32(0.5)) * step_D + rows.low_D
    return stored_nD


def planned_codes(text: str) -> str:
    """The codes to plan memory for: the wider of what `auto` may choose."""
    return "bfloat16" if text == "auto" else text


def quantizer_type(codes: str) -> int:
    """faiss's constant for int8 and bfloat16 codes."""
    names = {"int8": "QT_8bit", "bfloat16": "QT_bf16"}
    return int(getattr(faiss.ScalarQuantizer, names[codes]))


def range_rows(rows: ScaledRows) -> NDArray[np.float32]:
    """Two rows, the least and the largest value of each column: all that int8 codes are trained on."""
    return widened(np.stack([rows.low_D, rows.high_D]))


def widened(rows_nD: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows with zeros up to the stored width: C-contiguous float32 [n, W]."""
    width = code_width(rows_nD.shape[1])
    if width == rows_nD.shape[1]:
        return np.ascontiguousarray(rows_nD)
    rows_nW = np.zeros((len(rows_nD), width), dtype=np.float32)
    rows_nW[:, : rows_nD.shape[1]] = rows_nD
    return rows_nW
