"""The proof behind every scan: how far a cheap product can lie below the true score, as an upper bound per group."""

import os
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# G groups of rows, D dimension, B queries, n rows

__all__ = ["GroupBounds", "QueryBounds", "bfloat16_error", "float32_error", "round_down_float32", "scale_exponent"]

# The claim. A scan holds row x as x' and query q as q', and its kernel returns p for x'.q'. Then, for the true score s,
# which is computed in float64,
#
#     s <= p + |x - x'| |q| + (|q - q'| + (kernel + rounding) |q|) |x|
#
# by Cauchy-Schwarz twice. `kernel` bounds |p - x'.q'| / (|x'| |q'|); `rounding` covers the float64 sum of s, and the
# float32 arithmetic that evaluates this very bound. The right side is evaluated per group of rows, with the largest p,
# |x - x'| and |x| in the group: residual_G and norm_G below, and residual_weight_B and norm_weight_B per query.

_ROUNDING = 2.0**-18  # float32 rounds by 2^-24 in each of a few steps; the float64 sum of D products is far below
_LOOSEN = 1 + 2.0**-16  # makes a float64 value stay above itself after it is rounded to float32
_VANISHING = 2.0**-110  # per value: above all that products below 2^-126 can lose when the hardware drops them


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupBounds:
    """What the proof knows of each group of rows, in true units: float64 [G] each.

    scale_G: what a stored value 1 stands for. residual_G >= |x - x'| and norm_G >= max(|x|, |x'|) for every row.
    """

    scale_G: NDArray[np.float64]
    residual_G: NDArray[np.float64]
    norm_G: NDArray[np.float64]

    @property
    def longest(self) -> float:
        """At least the largest norm of any row."""
        return float(self.norm_G.max(initial=0.0))

    def scaled(self, exponent: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        """(scale, residual, norm), each float32 [G, 1] divided by 2^exponent; the last two rounded up."""
        vanishing_G = np.where(self.norm_G > 0, dim * _VANISHING, 0.0)
        residual_G = np.ldexp(self.residual_G, -exponent) * _LOOSEN + vanishing_G
        norm_G = np.ldexp(self.norm_G, -exponent) * _LOOSEN + vanishing_G
        scale_G = np.ldexp(self.scale_G, -exponent)
        return _column(scale_G), _column(residual_G), _column(norm_G)


@dataclass(frozen=True, kw_only=True, eq=False)
class QueryBounds:
    """What the proof knows of each query. A bound u of the scan stands for the true score u * unit_B (float64 [B]).

    residual_weight_B and norm_weight_B (float32 [B]) multiply a group's residual and norm.
    """

    unit_B: NDArray[np.float64]
    residual_weight_B: Tensor
    norm_weight_B: Tensor

    @classmethod
    def of(
        cls,
        queries_BD: NDArray[np.float64],
        held_BD: NDArray[np.float64],
        *,
        kernel: float,
        unit_B: NDArray[np.float64],
    ) -> "QueryBounds":
        """queries_BD and held_BD: the query as it is and as the kernel sees it, both divided by the unit of queries."""
        norm_B = np.linalg.norm(queries_BD, axis=1)
        held_norm_B = np.linalg.norm(held_BD, axis=1)
        error_B = np.linalg.norm(queries_BD - held_BD, axis=1)
        longer_B = np.maximum(norm_B, held_norm_B)
        return cls(
            unit_B=unit_B,
            residual_weight_B=torch.from_numpy((norm_B * _LOOSEN).astype(np.float32)),
            norm_weight_B=torch.from_numpy(((error_B + (kernel + _ROUNDING) * longer_B) * _LOOSEN).astype(np.float32)),
        )


def scale_exponent(longest: float) -> int:
    """The power of two near the largest norm: divided by it, rows neither overflow in float32 nor vanish there."""
    return int(np.clip(np.frexp(longest)[1], -126, 126)) if longest > 0 else 0


def float32_error(dim: int, device: str = "cpu") -> float:
    """`kernel` of a float32 product of D terms, in whatever order they are added.

    A program may have allowed torch to multiply float32 in bfloat16, or in TF32 on CUDA
    (torch.set_float32_matmul_precision and its newer forms); then the bound must be that of bfloat16 operands.
    device: a type of torch's.
    """
    return _summing(dim, device) + (0.0 if _float32_is_kept(device) else 2.0**-6)


def bfloat16_error(dim: int, device: str = "cpu") -> float:
    """`kernel` of a bfloat16 product of D terms: summed in float32, and rounded once more at the end.

    On CUDA a sum may be split, and its parts rounded to bfloat16 before they are added: torch allows that unless it is
    told not to (torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction). Each part then loses 2^-9 of
    itself, by Cauchy-Schwarz 2^-9 |x'| |q'| in all, and so does each of up to six additions in bfloat16.
    """
    reduced = device == "cuda" and torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    return 2.0**-8 + _summing(dim, device) + (2.0**-6 if reduced else 0.0)


def round_down_float32(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """The largest float32 at or below each value; -inf where there is none."""
    with np.errstate(over="ignore"):
        nearest = values.astype(np.float32)
    return np.where(nearest > values, np.nextafter(nearest, np.float32(-np.inf)), nearest)


def _summing(dim: int, device: str) -> float:
    """What adding D terms in float32 may lose: 2^-24 per rounded addition, and as much to spare.

    A tensor core cuts off what it does not round, and where it aligns the terms of a step to the largest, it cuts off
    each: 2^-23 per term and once more per step (Fasi, Higham, Mikaitis and Pranesh 2021).
    """
    return (dim + 16) * (2.0**-23 if device == "cpu" else 2.0**-22)


def _float32_is_kept(device: str) -> bool:
    try:
        if torch.get_float32_matmul_precision() != "highest":
            return False
    except RuntimeError:  # torch's older and newer settings were mixed, and it refuses to say which holds
        return False
    if device == "cpu":
        return _onednn_precision() in {"none", "ieee"}
    # cuBLAS reads the variable itself, over whatever torch has asked for.
    return _cuda_precision() in {"none", "ieee"} and os.environ.get("NVIDIA_TF32_OVERRIDE", "0") == "0"


def _cuda_precision() -> str:
    return str(getattr(torch.backends.cuda.matmul, "fp32_precision", "none"))  # not there in older versions of torch


def _onednn_precision() -> str:
    settings = getattr(torch.backends.mkldnn, "matmul", None)  # older versions of torch have no such setting
    return str(getattr(settings, "fp32_precision", "none"))


def _column(values_G: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values_G.astype(np.float32)).unsqueeze(1)
