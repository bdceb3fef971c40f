"""Questions with their gold facts; training batches in which many questions ask about another subject than written."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from memory_store.errors import EmptyInput
from memory_store.manifest import Manifest
from memory_store.parts import scan_facts
from memory_store.storage import Storage
from memory_store.topk import NO_FACT
from pipeline.facts import fact_ids
from pipeline.features import words
from trainer.missing import none_held_words

# Q questions, B questions of a batch, P paths (subject, relation) of the memory, G gold facts of a question

__all__ = ["Batch", "Paths", "Questions", "TrainingData", "steps_per_epoch"]

_SWAP = 1  # names the stream of random numbers: (seed, stream, step or epoch, member)
_ORDER = 2
_UNASKED_WEIGHT = 10  # how much likelier a question is moved to a fact that no question asks about than to another


@dataclass(frozen=True, kw_only=True, eq=False)
class Paths:
    """The paths (subject, relation) that a memory holds facts of, sorted by key.

    key_P: int64, the content id of the path. Path p has the facts fact_ids[bounds[p]:bounds[p + 1]]: one where facts
    are grouped by relation, one for each object where they are triples.
    """

    key_P: NDArray[np.int64]
    bounds: NDArray[np.int64]
    fact_ids: NDArray[np.int64]

    @classmethod
    def scan(cls, storage: Storage, manifest: Manifest) -> "Paths":
        """Read the paths of a generation's facts."""
        keys, ids = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for facts in scan_facts(storage, manifest, columns=["fact_id", "subject_id", "relation"]):
            ids.append(facts["fact_id"].to_numpy())
            keys.append(_keys(facts["subject_id"], facts["relation"]))
        return cls.of(np.concatenate(keys), np.concatenate(ids))

    @classmethod
    def of(cls, key_N: NDArray[np.int64], fact_id_N: NDArray[np.int64]) -> "Paths":
        """Group facts by path; the facts of a path are in the order of their ids."""
        order_N = np.lexsort((fact_id_N, key_N))
        key_P, first_P = np.unique(key_N[order_N], return_index=True)
        return cls(key_P=key_P, bounds=np.append(first_P, len(key_N)).astype(np.int64), fact_ids=fact_id_N[order_N])

    def gold(self, key_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """The facts of each path [B, G], padded with -1; none for a path that the memory does not hold."""
        place_B = np.minimum(np.searchsorted(self.key_P, key_B), max(len(self.key_P) - 1, 0))
        held_B = self.key_P[place_B] == key_B if len(self.key_P) else np.zeros(len(key_B), np.bool_)
        start_B = self.bounds[place_B]
        count_B = np.where(held_B, self.bounds[place_B + 1] - start_B, 0) if len(self.key_P) else held_B * 0
        slot_G = np.arange(int(count_B.max(initial=0)))
        at_BG = np.minimum(start_B[:, None] + slot_G, max(len(self.fact_ids) - 1, 0))
        return np.where(slot_G < count_B[:, None], self.fact_ids[at_BG], NO_FACT) if len(slot_G) else _none(key_B)


@dataclass(frozen=True, kw_only=True, eq=False)
class Questions:
    """Questions and the path that answers each. table: of pipeline.sources.questions.QUESTIONS_SCHEMA."""

    table: pa.Table
    key_Q: NDArray[np.int64]

    @classmethod
    def of(cls, table: pa.Table) -> "Questions":
        return cls(table=table, key_Q=_keys(table["subject_id"], table["relation"]))

    def __len__(self) -> int:
        return len(self.key_Q)

    @property
    def texts(self) -> list[str]:
        texts: list[str] = self.table["question"].to_pylist()
        return texts

    def held(self, paths: Paths) -> "Questions":
        """Those whose path the memory holds."""
        keep_Q = np.isin(self.key_Q, paths.key_P)
        return Questions(table=self.table.filter(pa.array(keep_Q)), key_Q=self.key_Q[keep_Q])

    def take(self, at: NDArray[np.int64]) -> "Questions":
        """Those at these places."""
        return Questions(table=self.table.take(pa.array(at)), key_Q=self.key_Q[at])


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """The questions of one training step. gold_BG: fact ids, padded with -1."""

    texts: list[str]
    gold_BG: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Subjects:
    """The subjects that questions may be moved to: for each relation of the questions, its paths in the memory.

    bounds_R: relation r has the paths from bounds_R[r] to bounds_R[r + 1]; unasked_R: how many of them, the first ones,
    no question asks about. names_X: the names of path x, normalised.
    """

    bounds_R: NDArray[np.int64]
    unasked_R: NDArray[np.int64]
    key_X: NDArray[np.int64]
    names_X: list[list[str]]

    def draw(self, relation: int, uniform: float) -> int:
        """The path that a number in [0, 1) picks; one that no question asks about has _UNASKED_WEIGHT chances."""
        start, stop, unasked = (
            int(self.bounds_R[relation]),
            int(self.bounds_R[relation + 1]),
            int(self.unasked_R[relation]),
        )
        chance = int(uniform * (unasked * _UNASKED_WEIGHT + stop - start - unasked))
        first = chance // _UNASKED_WEIGHT
        return start + (first if first < unasked else chance - unasked * (_UNASKED_WEIGHT - 1))


class TrainingData:
    """Deterministic batches: what step s shows follows from the seed and s alone, so a resumed run sees the same.

    Each member of an encoder has an order and swapped subjects of its own.

    A share of the questions of an epoch (`swap`) ask about another subject that the memory has the same relation of:
    "where was ann born" becomes "where was bob born", with bob's fact as gold. The names a model meets are then those
    of the whole memory, not the few of the training questions, and the way of asking is what is left to learn by heart.
    Subjects that no question asks about are preferred: a fact that is never gold would only ever be pushed away.
    """

    def __init__(
        self,
        questions: Questions,
        paths: Paths,
        storage: Storage,
        manifest: Manifest,
        *,
        batch_questions: int,
        swap: float,
        seed: int,
    ) -> None:
        self._questions = questions.held(paths)
        if not len(self._questions):
            raise EmptyInput(none_held_words(questions.table, storage, manifest))
        self._paths = paths
        self._texts = self._questions.texts
        self._batch = min(batch_questions, len(self._questions))
        self._swap = swap
        self._seed = seed
        self.steps_per_epoch = steps_per_epoch(len(self._questions), batch_questions)
        if swap > 0:
            self._relation_Q, self._subjects, names_Q = _scan_subjects(self._questions, storage, manifest)
            self._frames = _frames(self._texts, names_Q)

    def __len__(self) -> int:
        return len(self._questions)

    def batch(self, step: int, rank: int = 0, workers: int = 1, *, member: int = 0) -> Batch:
        """The questions of a step (from 0) for one member, or the share of one of several workers."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order_Q = np.random.default_rng([self._seed, _ORDER, epoch, member]).permutation(len(self._questions))
        picked_B = order_Q[place * self._batch : (place + 1) * self._batch]
        key_B = self._questions.key_Q[picked_B].copy()
        texts = [self._texts[number] for number in picked_B]
        if self._swap > 0:
            draw_3B = np.random.default_rng([self._seed, _SWAP, step, member]).random((3, len(picked_B)))
            for row, number in enumerate(picked_B):
                frame = self._frames[number]
                if frame is not None and draw_3B[0, row] < self._swap:
                    path = self._subjects.draw(self._relation_Q[number], draw_3B[1, row])
                    names = self._subjects.names_X[path]
                    if names:
                        name = names[int(draw_3B[2, row] * len(names))]
                        texts[row] = f"{frame[0]} {name} {frame[1]}"
                        key_B[row] = self._subjects.key_X[path]
        share = slice(rank, None, workers)
        return Batch(texts=texts[share], gold_BG=self._paths.gold(key_B)[share])


def steps_per_epoch(questions: int, batch_questions: int) -> int:
    """Full batches in a pass over the questions; at least one."""
    return max(questions // batch_questions, 1)


def _scan_subjects(
    questions: Questions, storage: Storage, manifest: Manifest
) -> tuple[NDArray[np.int64], _Subjects, list[list[str]]]:
    """(relation of each question, the subjects of these relations, the names of each question's own subject)."""
    encoded = questions.table["relation"].combine_chunks().dictionary_encode()
    relations = encoded.dictionary
    relation_Q = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    pieces = []
    for facts in scan_facts(storage, manifest, columns=["subject_id", "subject", "aliases", "relation"]):
        wanted = facts.filter(pc.is_in(facts["relation"], relations))
        code = pc.index_in(wanted["relation"], relations)
        pieces.append(
            pa.table(
                {
                    "key": _keys(wanted["subject_id"], wanted["relation"]),
                    "relation": code.cast(pa.int64()),
                    "subject": wanted["subject"],
                    "aliases": wanted["aliases"],
                }
            )
        )
    found = pa.concat_tables(pieces)
    relation_X = found["relation"].to_numpy()
    asked_X = np.isin(found["key"].to_numpy(), questions.key_Q)
    order_X = np.lexsort((found["key"].to_numpy(), asked_X, relation_X))
    # Several triples of one path count once.
    key_sorted = found["key"].to_numpy()[order_X]
    order_X = order_X[np.append(True, key_sorted[1:] != key_sorted[:-1])] if len(order_X) else order_X
    found = found.take(pa.array(order_X))
    names_X = _normalised_names(found)
    key_X = found["key"].to_numpy()
    subjects = _Subjects(
        bounds_R=np.searchsorted(relation_X[order_X], np.arange(len(relations) + 1)).astype(np.int64),
        unasked_R=np.bincount(relation_X[order_X][~asked_X[order_X]], minlength=len(relations)).astype(np.int64),
        key_X=key_X,
        names_X=names_X,
    )
    by_key = np.argsort(key_X, kind="stable")
    own_Q = by_key[np.searchsorted(key_X[by_key], questions.key_Q)]
    return relation_Q, subjects, [names_X[own] for own in own_Q]


def _normalised_names(facts: pa.Table) -> list[list[str]]:
    """All names of each fact's subject as normalised text; names without any word are left out."""
    subjects = facts["subject"].to_pylist()
    aliases = facts["aliases"].to_pylist()
    each = [
        [name for name in [subject, *(others or [])] if name] for subject, others in zip(subjects, aliases, strict=True)
    ]
    flat = [name for names in each for name in names]
    plain = iter([" ".join(parts) for parts in words(flat)])
    return [[text for text in (next(plain) for _ in names) if text] for names in each]


def _frames(texts: Sequence[str], names_Q: Sequence[Sequence[str]]) -> list[tuple[str, str] | None]:
    """What stands before and after the subject's name in each question, or None where no name occurs literally."""
    frames: list[tuple[str, str] | None] = []
    for parts, names in zip(words(texts), names_Q, strict=True):
        padded = f" {' '.join(parts)} "
        frame = None
        for name in sorted(names, key=len, reverse=True):  # the longest name that occurs is the one that was meant
            at = padded.find(f" {name} ")
            if at >= 0:
                frame = (padded[:at].strip(), padded[at + len(name) + 2 :].strip())
                break
        frames.append(frame)
    return frames


def _keys(subject_ids: pa.ChunkedArray, relations: pa.ChunkedArray) -> NDArray[np.int64]:
    return fact_ids(_array(subject_ids), _array(relations))


def _array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _none(key_B: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.empty((len(key_B), 0), dtype=np.int64)
