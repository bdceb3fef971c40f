"""The facts of the mix: what a row's vector must be follows from its id, its stamp and the encoder's scale."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

# N facts, D dimension

__all__ = ["DIM", "SCALES", "draw_queries", "encode", "facts_table", "fingerprint", "scale_of"]

DIM = 4
SCALES = (1, 2, 3)
_STEPS_D = np.arange(1, DIM + 1)


def facts_table(ids: list[int], stamp: int) -> pa.Table:
    """Facts as one write makes them: their subject is the stamp of that write."""
    return pa.table({"fact_id": pa.array(ids, pa.int64()), "subject": [str(stamp)] * len(ids)})


def encode(facts: pa.Table, scale: int) -> NDArray[np.float32]:
    """Small whole numbers, [N, D]: scores are exact, tie often, and rank otherwise by every scale."""
    ids_N = facts["fact_id"].to_numpy()
    stamps_N = np.array([int(stamp) for stamp in facts["subject"].to_pylist()], dtype=np.int64)
    pattern_ND = (ids_N[:, None] * (_STEPS_D + scale) + stamps_N[:, None] * _STEPS_D) % 7 - 3
    return (scale * pattern_ND).astype(np.float32)


def draw_queries(draw: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Whole numbers too, [count, D]."""
    return draw.integers(-3, 4, (count, DIM)).astype(np.float32)


def fingerprint(scale: int) -> str:
    return f"scale-{scale}"


def scale_of(fingerprint: str | None) -> int:
    """Of the encoder that a manifest names; a memory that nobody embedded anew is of the first scale."""
    return SCALES[0] if fingerprint is None else int(fingerprint.removeprefix("scale-"))
