"""What `hmn bench step` trains, each both ways: softmax over the K facts that MIPS finds, and over all facts."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from memory_store import Memory, MemoryWriter, open_memory
from memory_store.manifest import read_manifest
from memory_store.parts import scan_facts
from memory_store.progress import Progress
from memory_store.storage import Storage
from pipeline.embed import embed
from pipeline.facts import fact_ids
from pipeline.ingest import ingest
from trainer.attention import CandidateRule, FactSource, KMipsAttention
from trainer.config import TrainConfig
from trainer.data import Batch
from trainer.encoders.base import Encoder
from trainer.encoders.facts import FEATURE_COLUMNS, FactFeatures
from trainer.encoders.registry import make_encoder
from trainer.encoders.settings import ModelConfig
from trainer.encoders.tables import FeatureTable, RowAdagrad
from trainer.loss import reading_loss
from trainer.process import step_workers
from trainer.refresh import FactEmbedder
from trainer.sources import EncodedFacts
from trainer.step import Optimizers, training_step

# N facts, D dimension, B questions, K facts retrieved per question, C candidates of a batch, W words of a question

__all__ = ["MODELS", "QUESTIONS", "Generated", "K", "Step", "Training", "default_step"]

QUESTIONS, RELATIONS, K = 128, 1_837, 10
VOCABULARY = 50_000  # words that names are made of
PAPER_DIM, PAPER_WORDS, PAPER_VOCABULARY = 128, 10, 2**16
FACTS_AT_ONCE = 65_536

Step = Callable[[int], int]
"""Trains on batch number n; returns how many facts the softmax covered."""

Training = tuple[dict[str, Step], Callable[[int], None]]
"""The ways to train, by name, and a search alone with the questions of batch number n."""


@contextmanager
def default_model(facts: int, threads: int, seed: int, index: str, progress: Progress) -> Iterator[Training]:
    """What `hmn train` does with its default settings: the `ngram` encoder, on generated facts with names of 2 words.

    Both ways are `training_step` with everything it does; only the attention's candidates differ. The full softmax is
    spared the fetching: from its first step on it has the features of all facts.
    """
    encoders = {way: make_encoder(ModelConfig(), seed) for way in ("k_mips", "full_softmax")}
    with tempfile.TemporaryDirectory() as folder:
        url, triples, names = str(Path(folder) / "memory"), Path(folder) / "facts.tsv", Path(folder) / "names.tsv"
        asked = Generated.write(facts, triples, names, seed)
        ingest(str(triples), url, names=str(names), progress=progress)
        features = _all_features(url)
        for encoder in encoders.values():
            encoder.fit([features])
        searched = encoders["k_mips"]
        embedder = FactEmbedder(searched)
        embed(url, lambda: embedder, fingerprint=searched.fingerprint(), dim=searched.dim, progress=progress)
        with open_memory(url, index=index, threads=threads) as memory:
            rules: dict[str, CandidateRule] = {"k_mips": "union", "full_softmax": "full"}
            ways = {
                way: default_step(encoders[way], EncodedFacts(memory, encoders[way]), rule, asked, threads)
                for way, rule in rules.items()
            }

            def search(batch: int) -> None:
                memory.search(searched.ask(asked.batch(batch).texts).numpy(), K)

            yield ways, search


@contextmanager
def paper_model(facts: int, threads: int, seed: int, index: str, progress: Progress) -> Iterator[Training]:
    """The memory network of Chandar et al. 2016, whose facts are the cheapest to encode: the sum of three vectors.

    k_mips and full_softmax are one attention layer with other candidates: they compute the weights, the read vector and
    the loss. cross_entropy is the full softmax written as tersely as torch can, without weights and read vector, so no
    longer a layer. All share model, rule of learning and threads.
    """
    symbols_N3 = _symbols(np.random.default_rng(seed), facts)
    models = {way: _PaperModel(symbols_N3, seed) for way in ("k_mips", "full_softmax", "cross_entropy")}
    searched = models["k_mips"]
    with tempfile.TemporaryDirectory() as folder:
        url = str(Path(folder) / "memory")
        with MemoryWriter(url, dim=PAPER_DIM) as writer, torch.no_grad():
            searched.eval()
            for start in range(0, facts, FACTS_AT_ONCE):
                ids = np.arange(start, min(start + FACTS_AT_ONCE, facts))
                writer.append(pa.table({"fact_id": ids}), searched.encode_facts(ids).numpy())
            searched.train()
        with open_memory(url, index=index, threads=threads) as memory:
            rules: dict[str, CandidateRule] = {"k_mips": "union", "full_softmax": "full"}
            ways: dict[str, Step] = {
                way: partial(_paper_step, models[way], KMipsAttention(K, rule), _PaperFacts(memory, models[way]))
                for way, rule in rules.items()
            }
            ways["cross_entropy"] = partial(_cross_entropy_step, models["cross_entropy"])

            def search(batch: int) -> None:
                with torch.no_grad():
                    query_BD = searched.encode_questions(_paper_batch(batch, facts)[0])
                memory.search(query_BD.numpy(), K)

            yield ways, search


MODELS = {"default": default_model, "paper": paper_model}


def default_step(
    encoder: Encoder, source: FactSource, candidates: CandidateRule, asked: "Generated", threads: int
) -> Step:
    settings = TrainConfig(batch_questions=QUESTIONS)
    optimizers = Optimizers(encoder, settings)
    attention = KMipsAttention(K, candidates).train()
    encoder.train()
    workers = step_workers(threads)

    def step(batch: int) -> int:
        report = training_step(
            encoder,
            attention,
            source,
            asked.batch(batch),
            optimizers,
            workers=workers,
            feature_dropout=settings.feature_dropout,
            generator=torch.Generator().manual_seed(batch),
        )
        return report.candidates

    return step


@dataclass(frozen=True, kw_only=True, eq=False)
class Generated:
    """Facts of generated names: subject s is "first last" and has two facts, of relation_S[s] and of the next one."""

    facts: int
    words: list[str]
    first_S: NDArray[np.int64]
    last_S: NDArray[np.int64]
    relation_S: NDArray[np.int64]

    @classmethod
    def draw(cls, facts: int, seed: int) -> "Generated":
        """The same facts for the same arguments."""
        rng = np.random.default_rng(seed)
        syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
        words = ["".join(syllables[at] for at in row) for row in rng.integers(len(syllables), size=(VOCABULARY, 4))]
        subjects = -(-facts // 2)
        first_S, last_S = rng.integers(VOCABULARY, size=(2, subjects))
        return cls(
            facts=facts, words=words, first_S=first_S, last_S=last_S, relation_S=rng.integers(RELATIONS, size=subjects)
        )

    @classmethod
    def write(cls, facts: int, triples: Path, names: Path, seed: int) -> "Generated":
        """Draw the facts, and write them and the names of their subjects as files that `hmn ingest` takes."""
        made = cls.draw(facts, seed)
        subjects = len(made.first_S)
        object_N = np.random.default_rng([seed, facts]).integers(subjects, size=facts)
        with triples.open("w") as lines:
            lines.writelines(f"s{at // 2}\t{made.relation(at)}\ts{object_N[at]}\n" for at in range(facts))
        with names.open("w") as lines:
            lines.writelines(f"s{at}\t{made.name(at)}\n" for at in range(subjects))
        return made

    def name(self, subject: int) -> str:
        return f"{self.words[self.first_S[subject]]} {self.words[self.last_S[subject]]}"

    def relation(self, fact: int) -> str:
        number = int(self.relation_S[fact // 2] + fact % 2) % RELATIONS
        return f"{self.words[number % 89]}/{self.words[number % 577]}/{self.words[number]}"

    def batch(self, number: int) -> Batch:
        fact_B = np.random.default_rng([number, self.facts]).integers(self.facts, size=QUESTIONS)
        relations = [self.relation(fact) for fact in fact_B.tolist()]
        gold_B = fact_ids(pa.array([f"s{fact // 2}" for fact in fact_B.tolist()]), pa.array(relations))
        asked = zip(relations, fact_B.tolist(), strict=True)
        texts = [f"what is the {relation.split('/')[-1]} of {self.name(fact // 2)}" for relation, fact in asked]
        return Batch(texts=texts, gold_BG=gold_B[:, None])


def _all_features(url: str) -> FactFeatures:
    """Of every fact of a memory, in the order of the ids."""
    storage = Storage(url)
    table = pa.concat_tables(scan_facts(storage, read_manifest(storage), columns=list(FEATURE_COLUMNS)))
    return FactFeatures.from_table(table.take(pa.array(np.argsort(table["fact_id"].to_numpy()))))


class _PaperModel(nn.Module):
    """A question is the sum of its words' vectors through one linear layer; a fact that of its three symbols."""

    def __init__(self, symbols_N3: NDArray[np.int64], seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.symbols_N3 = symbols_N3
        self.words = _table(PAPER_VOCABULARY, generator)
        self.symbols = _table(1 << int(symbols_N3.max()).bit_length(), generator)
        self.linear_DD = nn.Parameter(torch.randn(PAPER_DIM, PAPER_DIM, generator=generator) * PAPER_DIM**-0.5)
        self.tables = RowAdagrad({"words": self.words, "symbols": self.symbols})
        self.network = torch.optim.Adam([self.linear_DD])

    def encode_questions(self, word_BW: NDArray[np.int64]) -> Tensor:
        return _sums(self.words, word_BW) @ self.linear_DD

    def encode_facts(self, fact_C: NDArray[np.int64]) -> Tensor:
        # All of them are not copied first.
        return _sums(self.symbols, self.symbols_N3 if len(fact_C) == len(self.symbols_N3) else self.symbols_N3[fact_C])

    def learn(self, loss: Tensor) -> None:
        self.network.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.network.step()
        self.tables.step(0.03)


def _table(rows: int, generator: torch.Generator) -> FeatureTable:
    return FeatureTable(torch.randn(rows, PAPER_DIM, generator=generator) * PAPER_DIM**-0.5)


def _sums(table: FeatureTable, row_XW: NDArray[np.int64]) -> Tensor:
    """The sum of each line's rows of the table."""
    places = table.places_of(row_XW.reshape(-1))
    return table.lookup(places).bags(np.arange(len(row_XW) + 1) * row_XW.shape[1])


class _PaperFacts:
    """Found by the memory's exact index, encoded afresh by the model that learns."""

    def __init__(self, memory: Memory, model: _PaperModel) -> None:
        self._memory = memory
        self._model = model
        self._all_ids_N = np.arange(len(model.symbols_N3))

    def search(self, query_BD: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        return self._memory.search(query_BD, k).fact_ids_BK

    def encode(self, fact_ids_C: NDArray[np.int64]) -> Tensor:
        return self._model.encode_facts(fact_ids_C)

    def all_ids(self) -> NDArray[np.int64]:
        return self._all_ids_N


def _symbols(rng: np.random.Generator, facts: int) -> NDArray[np.int64]:
    """Subject, relation and object of each fact [N, 3]; half as many entities as facts, as in Freebase."""
    entities = max(facts // 2, 1)
    columns = (
        rng.integers(entities, size=facts),
        entities + rng.integers(RELATIONS, size=facts),
        rng.integers(entities, size=facts),
    )
    return np.stack(columns, axis=1)


def _paper_batch(number: int, facts: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(word_BW, gold_BG) of random questions."""
    rng = np.random.default_rng([number, facts])
    return rng.integers(PAPER_VOCABULARY, size=(QUESTIONS, PAPER_WORDS)), rng.integers(facts, size=(QUESTIONS, 1))


def _paper_step(model: _PaperModel, attention: KMipsAttention, source: FactSource, batch: int) -> int:
    word_BW, gold_BG = _paper_batch(batch, len(model.symbols_N3))
    reading = attention(model.encode_questions(word_BW), source, gold_BG)
    assert reading.gold_BC is not None
    model.learn(reading_loss(reading.logits_BC, reading.gold_BC))
    return len(reading.fact_ids_C)


def _cross_entropy_step(model: _PaperModel, batch: int) -> int:
    word_BW, gold_BG = _paper_batch(batch, len(model.symbols_N3))
    logits_BN = model.encode_questions(word_BW) @ model.encode_facts(np.arange(len(model.symbols_N3))).T
    model.learn(functional.cross_entropy(logits_BN, torch.from_numpy(gold_BG[:, 0])))
    return logits_BN.shape[1]
