"""The loss of a reading: cross-entropy against the gold facts, which share the target mass."""

import torch
from torch import Tensor

# B questions, C candidates

__all__ = ["reading_loss"]


def reading_loss(logits_BC: Tensor, gold_BC: Tensor, log_chance_C: Tensor | None = None) -> Tensor:
    """Mean over the questions of -1/|G| sum over gold g of log softmax(logits)_g; a scalar.

    gold_BC: bool; several gold facts of a question share its target mass equally. A question whose gold facts are not
    among the candidates (it can happen in evaluation only) has no target and is left out of the mean; a batch without
    any target has loss 0. log_chance_C: as Reading has it; a candidate that was drawn with a small chance then stands
    for all those that were not (importance sampling: Bengio and Senecal 2008; Jean et al. 2015).
    """
    if log_chance_C is not None:
        logits_BC = logits_BC - log_chance_C
    log_weight_BC = torch.log_softmax(logits_BC, dim=1)
    gold_count_B = gold_BC.sum(dim=1)
    # where, not a product: the log weight of a candidate that a question may not read is -inf.
    per_question_B = -torch.where(gold_BC, log_weight_BC, 0.0).sum(dim=1) / gold_count_B.clamp(min=1)
    return per_question_B.sum() / (gold_count_B > 0).sum().clamp(min=1)
