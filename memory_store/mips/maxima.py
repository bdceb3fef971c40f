"""When the largest of many products may be found by their bits, which takes an eighth of the time in bfloat16."""

import torch
from torch import Tensor

from memory_store.mips.encode import GROUP_ROWS

# n rows, D dimension, g groups of rows, B queries

__all__ = ["by_bits", "mostly_positive"]

_SAMPLED_GROUPS = 64


def by_bits(products: Tensor) -> Tensor:
    """The bits of bfloat16 numbers as int16, a view.

    Those of positive numbers are in the order of the numbers. Those of negative ones come before them all, and in
    reverse: their maximum says no more than that nothing is positive.
    """
    return products.view(torch.int16)


def mostly_positive(rows_ND: Tensor, queries_DB: Tensor) -> bool:
    """Whether most groups have a positive product, for every query, judged by a sample of the groups.

    Then a query's best rows score above 0, and all below 0 may count as 0.
    """
    groups = rows_ND.view(-1, GROUP_ROWS, rows_ND.shape[1])
    sample_nD = groups[:: max(len(groups) // _SAMPLED_GROUPS, 1)].reshape(-1, rows_ND.shape[1])
    largest_gB = (sample_nD @ queries_DB).view(-1, GROUP_ROWS, queries_DB.shape[1]).amax(dim=1)
    return bool(((largest_gB >= 0).sum(dim=0) * 2 >= len(largest_gB)).all())
