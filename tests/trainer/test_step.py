"""One training step: questions and facts learn the same side by side as one after the other."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from memory_store import open_memory
from memory_store.manifest import read_manifest
from memory_store.mips.workers import InTurn, Workers
from memory_store.parts import scan_facts
from memory_store.storage import Storage
from pipeline.embed import embed
from pipeline.sources.questions import read_questions
from trainer.attention import CandidateRule, KMipsAttention
from trainer.config import RunConfig
from trainer.data import Paths, Questions, TrainingData
from trainer.encoders.base import Encoder
from trainer.encoders.facts import FactFeatures
from trainer.encoders.registry import make_encoder
from trainer.refresh import FactEmbedder
from trainer.sources import EncodedFacts
from trainer.step import Optimizers, training_step

STEPS = 4


def _trained(config: RunConfig, workers: Workers | InTurn, candidates: CandidateRule) -> tuple[Encoder, list[float]]:
    """A model after a few steps, and its losses."""
    url, settings = config.memory.url, config.train
    storage = Storage(url)
    manifest = read_manifest(storage)
    data = TrainingData(
        Questions.of(read_questions(config.data.questions, "train")),
        Paths.scan(storage, manifest),
        storage,
        manifest,
        batch_questions=settings.batch_questions,
        swap=settings.swap_subjects,
        seed=config.seed,
    )
    encoder = make_encoder(config.model, config.seed)
    tables = list(scan_facts(storage, manifest, columns=["fact_id", "features"]))
    encoder.fit(FactFeatures.from_table(table) for table in tables)
    optimizers = Optimizers(encoder, settings)
    attention = KMipsAttention(settings.k, candidates).train()
    encoder.train()
    losses = []
    with open_memory(url, threads=1) as memory:
        facts = EncodedFacts(memory, encoder)
        for step in range(STEPS):
            report = training_step(
                encoder,
                attention,
                facts,
                data.batch(step, 0, 1),
                optimizers,
                workers=workers,
                feature_dropout=0.2,
                generator=torch.Generator().manual_seed(step),
            )
            losses.append(report.loss)
    return encoder, losses


@pytest.mark.parametrize("candidates", ["union", "per_question", "full"])
def test_side_by_side_learns_exactly_what_in_turn_learns(
    candidates: CandidateRule,
    ingest_world: Callable[..., str],
    run_config: Callable[..., RunConfig],
    tmp_path: Path,
) -> None:
    config = run_config()
    url = ingest_world(tmp_path / "memory")
    embedder = FactEmbedder(make_encoder(config.model, config.seed))
    embed(url, lambda: embedder, fingerprint="start", dim=config.model.dim)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone, losses = _trained(config, InTurn(), candidates)
        shared, losses_side_by_side = _trained(config, Workers(2), candidates)
    finally:
        torch.set_num_threads(threads)
    assert losses == losses_side_by_side
    assert losses[-1] < losses[0]
    for (name, one), (_, other) in zip(alone.state_dict().items(), shared.state_dict().items(), strict=True):
        assert torch.equal(one, other), name
