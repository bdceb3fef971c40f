"""Networks that read a question word by word: they say which words name the subject, and what is asked about it."""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

# B questions, L words of the longest question, W words of all questions together, F width of a word vector, H hidden

__all__ = ["ConvolutionContext", "RecurrentContext", "WordReader"]


class WordReader(Protocol):
    """Word vectors in their order -> a gate pair per word and a summary per question."""

    def __call__(self, word_WF: Tensor, word_offsets: NDArray[np.int64], keep_BH: Tensor) -> tuple[Tensor, Tensor]:
        """(gates [W, 2] in (0, 1): entity part, relation part; summary [B, F]). keep_BH: dropout of the summary."""
        ...


class _Heads(nn.Module):
    """What both readers answer with; starts neutral: all gates equal, summary zero."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gates = nn.Linear(hidden, 2)
        self.summary = nn.Linear(hidden, width)
        nn.init.zeros_(self.gates.weight)
        nn.init.ones_(self.gates.bias)
        nn.init.zeros_(self.summary.weight)
        nn.init.zeros_(self.summary.bias)

    def forward(self, state_WH: Tensor, most_BH: Tensor, keep_BH: Tensor) -> tuple[Tensor, Tensor]:
        """state_WH: of each word; most_BH: its maximum over the words of a question."""
        return torch.sigmoid(self.gates(state_WH)), self.summary(most_BH * keep_BH)


class ConvolutionContext(nn.Module):
    """Two convolutions over three words each: a word and its two neighbours on either side decide."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Conv1d(width, hidden, 3, padding=1)
        self.second = nn.Conv1d(hidden, hidden, 3, padding=1)
        self.heads = _Heads(hidden, width)

    def forward(self, word_WF: Tensor, word_offsets: NDArray[np.int64], keep_BH: Tensor) -> tuple[Tensor, Tensor]:
        has_left_W1, has_right_W1 = _neighbours(word_offsets)
        state_WH = torch.relu(_convolve(self.first, self.norm(word_WF), has_left_W1, has_right_W1))
        state_WH = torch.relu(_convolve(self.second, state_WH, has_left_W1, has_right_W1))
        state_BLH, _, _, _ = _padded(state_WH, word_offsets)  # with zeros, and no state is below
        result: tuple[Tensor, Tensor] = self.heads(state_WH, state_BLH.amax(dim=1), keep_BH)
        return result


class RecurrentContext(nn.Module):
    """A bidirectional GRU, the recurrent question encoder of Chandar et al. 2016; hidden is split by direction."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.forwards = nn.GRU(width, hidden // 2, batch_first=True)
        self.backwards = nn.GRU(width, hidden - hidden // 2, batch_first=True)
        self.heads = _Heads(hidden, width)

    def forward(self, word_WF: Tensor, word_offsets: NDArray[np.int64], keep_BH: Tensor) -> tuple[Tensor, Tensor]:
        words_BLF, mask_BL, row_W, place_W = _padded(self.norm(word_WF), word_offsets)
        # Reversing each question within its own length keeps the padding at the end, where it can harm nobody.
        length_B1 = mask_BL.sum(dim=1, keepdim=True).long()
        place_BL = torch.arange(mask_BL.shape[1]).expand_as(mask_BL)
        mirror_BL = torch.where(mask_BL > 0, length_B1 - 1 - place_BL, place_BL)
        forward_BLH, _ = self.forwards(words_BLF)
        mirrored_BLF = torch.take_along_dim(words_BLF, mirror_BL.unsqueeze(2), dim=1)
        backward_BLH, _ = self.backwards(mirrored_BLF)
        backward_BLH = torch.take_along_dim(backward_BLH, mirror_BL.unsqueeze(2), dim=1)
        state_BLH = torch.cat([forward_BLH, backward_BLH], dim=2)
        state_BLH = state_BLH.masked_fill(mask_BL.unsqueeze(2) == 0, -1.0)  # below any state of a GRU
        result: tuple[Tensor, Tensor] = self.heads(state_BLH[row_W, place_W], state_BLH.amax(dim=1), keep_BH)
        return result


def _neighbours(word_offsets: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """(1 for each word that has one on its left, 0 for others; the same of the right), float32 [W, 1]."""
    words = int(word_offsets[-1])
    has_left, has_right = np.ones((2, words + 1), dtype=np.float32)
    has_left[word_offsets[:-1]] = 0  # the word after the last one stands for questions without words
    has_right[word_offsets[1:] - 1] = 0
    return torch.from_numpy(has_left[:words, None]), torch.from_numpy(has_right[:words, None])


def _convolve(layer: nn.Conv1d, x_WF: Tensor, has_left_W1: Tensor, has_right_W1: Tensor) -> Tensor:
    """[W, H]: the layer over each word and its two neighbours, zeros beyond a question; one product, without padding.

    A convolution over questions of equal length, filled up, would work on nothing for half of the time, and its
    gradient takes half as long again as that of the product.
    """
    left_WF = functional.pad(x_WF, (0, 0, 1, 0))[:-1] * has_left_W1
    right_WF = functional.pad(x_WF, (0, 0, 0, 1))[1:] * has_right_W1
    # [H, F, 3] -> [H, 3, F], as the words stand side by side
    weight_HX = layer.weight.permute(0, 2, 1).flatten(1)
    return functional.linear(torch.cat([left_WF, x_WF, right_WF], dim=1), weight_HX, layer.bias)


def _padded(word_WF: Tensor, word_offsets: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(words [B, L, F] padded with zeros, mask [B, L] of floats, question of each word, place of each word)."""
    lengths_B = np.diff(word_offsets)
    batch, longest = len(lengths_B), max(int(lengths_B.max(initial=0)), 1)
    row = np.repeat(np.arange(batch), lengths_B)
    row_W = torch.from_numpy(row)
    place_W = torch.from_numpy(np.arange(len(row)) - np.repeat(word_offsets[:-1], lengths_B))
    words_BLF = word_WF.new_zeros(batch, longest, word_WF.shape[1]).index_put((row_W, place_W), word_WF)
    mask_BL = word_WF.new_zeros(batch, longest)
    mask_BL[row_W, place_W] = 1.0
    return words_BLF, mask_BL, row_W, place_W
