"""K-MIPS attention: a softmax over the K facts with the largest inner product with the question's vector."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from memory_store.errors import ConfigError, DimensionMismatch, InputError, InvalidVectors
from memory_store.memory import Memory
from memory_store.requests import checked_k, checked_queries
from memory_store.topk import NO_FACT
from trainer.extra import Drawn

# B questions in a batch, K facts retrieved per question, G gold facts of a question (padded),
# C candidates of the batch, D embedding size, N facts in the memory

__all__ = [
    "CANDIDATE_RULES",
    "CandidateRule",
    "FactSource",
    "KMipsAttention",
    "Reading",
    "Selection",
    "StoredFacts",
    "TensorFacts",
    "pad_ids",
]

CandidateRule = Literal["union", "per_question", "full"]
CANDIDATE_RULES: tuple[str, ...] = get_args(CandidateRule)


class FactSource(Protocol):
    """Where the attention finds facts: it selects by `search`, which carries no gradient, and reads by `encode`."""

    def search(self, query_BD: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Fact ids [B, K] of the largest inner products, best first, -1 where the memory holds fewer."""
        ...

    def encode(self, fact_ids_C: NDArray[np.int64]) -> Tensor:
        """The vectors [C, D] of these facts, with gradient to whatever they are computed from."""
        ...

    def all_ids(self) -> NDArray[np.int64]:
        """The ids of all N facts, sorted; only the full softmax asks."""
        ...


class TensorFacts:
    """Facts that are the rows of a plain tensor [N, D]; the ids are row numbers, gradients reach the tensor."""

    def __init__(self, fact_ND: Tensor) -> None:
        if fact_ND.ndim != 2:
            raise InvalidVectors(f"expected facts of shape [N, D], found {list(fact_ND.shape)}; reshape them")
        self.fact_ND = fact_ND

    def search(self, query_BD: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        query_BD = checked_queries(query_BD, self.fact_ND.shape[1])
        with torch.no_grad():
            score_BN = torch.from_numpy(query_BD).to(self.fact_ND) @ self.fact_ND.T
            # A stable sort breaks ties by the smaller id, as every search of the project does.
            order_BN = torch.sort(score_BN, dim=1, descending=True, stable=True).indices[:, :k]
        ids_BK = np.full((len(query_BD), k), NO_FACT, dtype=np.int64)
        ids_BK[:, : order_BN.shape[1]] = order_BN.cpu().numpy()
        return ids_BK

    def encode(self, fact_ids_C: NDArray[np.int64]) -> Tensor:
        return self.fact_ND[torch.from_numpy(fact_ids_C)]

    def all_ids(self) -> NDArray[np.int64]:
        return np.arange(len(self.fact_ND), dtype=np.int64)


class StoredFacts:
    """The facts of an open memory with their stored vectors, as constants: for reading, or to train questions only."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def search(self, query_BD: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        return self._memory.search(query_BD, k).fact_ids_BK

    def encode(self, fact_ids_C: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(np.array(self._memory.vectors(fact_ids_C), dtype=np.float32))

    def all_ids(self) -> NDArray[np.int64]:
        raise ConfigError(
            'expected candidates "union" or "per_question" over a memory read by search, found "full"; '
            "give the vectors as a tensor to compare with the full softmax"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """What a batch of questions read.

    read_BD: R(q) = sum of weight times fact vector, with gradient. weights_BC: the attention; rows sum to 1.
    logits_BC: h(q) . m, -inf where a question may not read a candidate. fact_ids_C: int64, sorted, unique.
    fact_CD: their vectors, with gradient. gold_BC: which candidates answer which question, or None when no gold facts
    were given. softmax_size_B: how many facts each question's softmax covers. log_chance_C: of each candidate, the log
    of the probability with which it is one: 0, but for facts that were drawn at random; None where none were.
    """

    read_BD: Tensor
    weights_BC: Tensor
    logits_BC: Tensor
    fact_ids_C: NDArray[np.int64]
    fact_CD: Tensor
    gold_BC: Tensor | None
    softmax_size_B: NDArray[np.int64]
    log_chance_C: Tensor | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """The candidates of a batch: fact_ids_C int64, sorted, unique. allowed_BC: which of them each question may read;
    None for all. gold_BC, log_chance_C: as in Reading."""

    fact_ids_C: NDArray[np.int64]
    allowed_BC: NDArray[np.bool_] | None
    gold_BC: NDArray[np.bool_] | None
    log_chance_C: NDArray[np.float64] | None


class KMipsAttention(nn.Module):
    """R(q) = sum over i in top-K(q) of softmax_K(h(q) . m_i) m_i (Chandar et al. 2016, section 3).

    candidates: "union" shares one candidate set, all top-Ks and gold facts of the batch, among its questions (the
    paper's way); "per_question" lets each question read only its own top-K and gold facts; "full" reads all N facts,
    the O(N) baseline. Gold facts join while the module is in training mode, never in evaluation. The selection carries
    no gradient; the scores of what was selected are computed again from `encode` and carry it. With K >= N the
    gradients are those of the full softmax.
    """

    def __init__(self, k: int = 10, candidates: CandidateRule = "union") -> None:
        super().__init__()
        if candidates not in CANDIDATE_RULES:
            raise ConfigError(f"expected candidates among {', '.join(CANDIDATE_RULES)}, found {candidates!r}")
        self.k = checked_k(k)
        self.candidates = candidates

    def extra_repr(self) -> str:
        return f"k={self.k}, candidates={self.candidates!r}"

    def forward(
        self,
        query_BD: Tensor,
        facts: FactSource | Memory | Tensor,
        gold_BG: NDArray[np.int64] | None = None,
        *,
        retrieved_BK: NDArray[np.int64] | None = None,
        drawn: Drawn | None = None,
    ) -> Reading:
        """Read the facts.

        query_BD: float32 with gradient. facts: a FactSource, an open memory (stored vectors, constant), or a tensor
        [N, D]. gold_BG: int64 ids of the facts that answer each question, padded with -1. retrieved_BK: the answer of
        a search already made for these questions; without it the facts are searched here. drawn: facts that every
        question may read beside those. No questions read nothing: all of the Reading is empty.

        Raises DimensionMismatch, InvalidVectors (queries that are no finite floats [B, D]), InputError for facts of
        another kind, ConfigError for gold facts of another shape, and for a memory without facts.
        """
        source = _as_source(facts)
        asked_BD = _checked_query(query_BD)
        gold_BG = _checked_gold(gold_BG, len(query_BD))
        if retrieved_BK is None and self.candidates != "full":
            retrieved_BK = source.search(asked_BD, self.k)
        selection = self.select(source, gold_BG, retrieved_BK=retrieved_BK, drawn=drawn)
        return self.read(query_BD, source.encode(selection.fact_ids_C), selection)

    def select(
        self,
        source: FactSource,
        gold_BG: NDArray[np.int64],
        *,
        retrieved_BK: NDArray[np.int64] | None,
        drawn: Drawn | None = None,
    ) -> Selection:
        """Which facts the questions may read, without any gradient: the first half of `forward`.

        retrieved_BK: what the search found for them; None for the full softmax.
        """
        joining_BG = gold_BG if self.training else gold_BG[:, :0]
        log_chance_C = allowed_BC = None
        if self.candidates == "full":
            if drawn is not None:
                raise ConfigError('expected no drawn facts with candidates "full", which reads all facts anyway')
            fact_ids_C = source.all_ids()
        else:
            assert retrieved_BK is not None, "only the full softmax reads without a search"
            own_BX = np.concatenate([retrieved_BK, joining_BG], axis=1)
            fact_ids_C = np.unique(own_BX)
            fact_ids_C = fact_ids_C[fact_ids_C != NO_FACT]
            if drawn is not None:
                certain_C, fact_ids_C = fact_ids_C, np.union1d(fact_ids_C, drawn.fact_ids_X)
                is_drawn_C = ~np.isin(fact_ids_C, certain_C, assume_unique=True)
                log_chance_C = np.where(is_drawn_C, drawn.log_chance, 0.0)
            if self.candidates == "per_question":
                allowed_BC = _members(own_BX, fact_ids_C)
                if drawn is not None:
                    allowed_BC |= is_drawn_C
        if len(fact_ids_C) == 0 and len(gold_BG):
            raise ConfigError("expected at least one fact to read, found an empty memory; ingest facts first")
        return Selection(
            fact_ids_C=fact_ids_C,
            allowed_BC=allowed_BC,
            gold_BC=_members(gold_BG, fact_ids_C) if gold_BG.size else None,
            log_chance_C=log_chance_C,
        )

    def read(self, query_BD: Tensor, fact_CD: Tensor, selection: Selection) -> Reading:
        """The softmax over the selected facts, whose vectors are fact_CD; the second half of `forward`."""
        if query_BD.shape[1] != fact_CD.shape[1]:
            raise DimensionMismatch(
                f"expected queries of dimension {fact_CD.shape[1]}, found {query_BD.shape[1]}; encode both to the same"
            )
        logits_BC = query_BD @ fact_CD.T
        softmax_size_B = np.full(len(query_BD), len(fact_CD), dtype=np.int64)
        allowed_BC, gold_BC, log_chance_C = selection.allowed_BC, selection.gold_BC, selection.log_chance_C
        if allowed_BC is not None:
            logits_BC = logits_BC.masked_fill(~torch.from_numpy(allowed_BC).to(logits_BC.device), float("-inf"))
            softmax_size_B = allowed_BC.sum(axis=1, dtype=np.int64)
        weights_BC = torch.softmax(logits_BC, dim=1)
        return Reading(
            read_BD=weights_BC @ fact_CD,
            weights_BC=weights_BC,
            logits_BC=logits_BC,
            fact_ids_C=selection.fact_ids_C,
            fact_CD=fact_CD,
            gold_BC=None if gold_BC is None else torch.from_numpy(gold_BC).to(logits_BC.device),
            softmax_size_B=softmax_size_B,
            log_chance_C=None if log_chance_C is None else torch.from_numpy(log_chance_C).to(query_BD),
        )


def pad_ids(ids: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Lists of fact ids as one array [B, G], padded with -1; G is the longest list."""
    padded_BG = np.full((len(ids), max((len(one) for one in ids), default=0)), NO_FACT, dtype=np.int64)
    for row, one in enumerate(ids):
        padded_BG[row, : len(one)] = one
    return padded_BG


def _as_source(facts: FactSource | Memory | Tensor) -> FactSource:
    if isinstance(facts, Tensor):
        return TensorFacts(facts)
    if isinstance(facts, Memory):
        return StoredFacts(facts)
    if not all(callable(getattr(facts, name, None)) for name in ("search", "encode")):
        raise InputError(
            "expected facts as a torch tensor [N, D], an open memory or a FactSource, found "
            f"{type(facts).__name__}; torch.as_tensor makes a tensor of an array"
        )
    return facts


def _checked_query(query_BD: Tensor) -> NDArray[np.float32]:
    """The questions [B, D] as a search takes them, without gradient, or InvalidVectors."""
    if not isinstance(query_BD, Tensor):
        raise InvalidVectors(
            f"expected queries as a torch tensor [B, D], found {type(query_BD).__name__}; torch.as_tensor makes one"
        )
    if query_BD.ndim != 2 or not query_BD.is_floating_point():
        raise InvalidVectors(
            f"expected queries as floats [B, D], found {query_BD.dtype} of shape {list(query_BD.shape)}; "
            "one query q is q[None]"
        )
    return checked_queries(query_BD.detach().float().cpu().numpy(), query_BD.shape[1])


def _checked_gold(gold_BG: NDArray[np.int64] | None, batch: int) -> NDArray[np.int64]:
    if gold_BG is None:
        return np.empty((batch, 0), dtype=np.int64)
    given_BG = np.asarray(gold_BG)
    if given_BG.ndim != 2 or len(given_BG) != batch:
        raise ConfigError(f"expected gold facts of shape [{batch}, G], found {list(given_BG.shape)}; pad with -1")
    if given_BG.size and given_BG.dtype.kind not in "iu":
        raise ConfigError(f"expected gold facts as int64 ids, found {given_BG.dtype}; convert them")
    return given_BG.astype(np.int64, copy=False)


def _members(ids_BX: NDArray[np.int64], fact_ids_C: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the sorted candidates each row names; ids that are no candidate (and -1) are passed over."""
    if len(fact_ids_C) == 0:
        return np.zeros((len(ids_BX), 0), dtype=np.bool_)
    place_BX = np.minimum(np.searchsorted(fact_ids_C, ids_BX), len(fact_ids_C) - 1)
    found_BX = fact_ids_C[place_BX] == ids_BX
    member_BC = np.zeros((len(ids_BX), len(fact_ids_C)), dtype=np.bool_)
    row_BX = np.broadcast_to(np.arange(len(ids_BX))[:, None], ids_BX.shape)
    member_BC[row_BX[found_BX], place_BX[found_BX]] = True
    return cast(NDArray[np.bool_], member_BC)
