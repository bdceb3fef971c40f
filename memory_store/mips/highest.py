"""The highest scores of each line of a table."""

import torch
from torch import Tensor

# b lines of W scores, G groups of columns

__all__ = ["highest_columns"]

_GROUP = 16  # columns that share a maximum
_WORTH_GROUPS = 2  # groups for every score wanted, and more: below, most groups are looked into anyway


def highest_columns(score_bW: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(scores, columns) [b, count] of the `count` highest of each line, in any order; count <= W.

    In wide tables the groups of highest maximum are found first: the highest scores lie in as many groups at most.
    """
    batch, width = score_bW.shape
    num_groups = width // _GROUP
    if num_groups <= _WORTH_GROUPS * count:
        found = torch.topk(score_bW, count, dim=1, sorted=False)
        return found.values, found.indices
    # A group is every G-th column, so that maxima are taken over whole lines of G.
    grouped = num_groups * _GROUP
    maximum_bG = score_bW[:, :grouped].view(batch, _GROUP, num_groups).amax(dim=1)
    group_bK = torch.topk(maximum_bG, count, dim=1, sorted=False).indices
    column_bX = (group_bK.unsqueeze(1) + torch.arange(0, grouped, num_groups).view(1, -1, 1)).flatten(1)
    rest = torch.arange(grouped, width).expand(batch, -1)
    column_bX = torch.cat([column_bX, rest], dim=1)
    found = torch.topk(torch.gather(score_bW, 1, column_bX), count, dim=1, sorted=False)
    return found.values, torch.gather(column_bX, 1, found.indices)
