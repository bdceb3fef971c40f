"""[ray] The training loop, run by Ray Train: in this process for one worker, in several processes for more."""

import contextlib
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from memory_store.errors import ConfigError, HmnError, MemoryNotFound
from memory_store.manifest import generations, read_manifest
from memory_store.memory import Memory
from memory_store.opening import open_memory
from memory_store.parts import scan_facts
from memory_store.progress import Progress, silent
from memory_store.storage import Storage
from pipeline.features import question_features
from pipeline.ingest import ingest
from trainer.alone import training_alone
from trainer.asked import Asked, questions_of
from trainer.attention import KMipsAttention
from trainer.checkpoint import CheckpointInfo, load_checkpoint, newest_checkpoint
from trainer.checkpointer import Checkpointer, pin_name
from trainer.config import RunConfig, load_config, save_config
from trainer.data import Paths, Questions, TrainingData
from trainer.encoders.base import Encoder
from trainer.encoders.facts import FEATURE_COLUMNS, FactFeatures
from trainer.encoders.registry import make_encoder
from trainer.environment import record_environment
from trainer.metrics import last_loss
from trainer.process import prepare_process, step_workers
from trainer.refresh import Refresher
from trainer.report.record import read_run
from trainer.report.write import write_report
from trainer.schedule import Agree, Schedule, alone_agrees
from trainer.sources import EncodedFacts, ExtraFacts, HeldFeatures
from trainer.staleness import SAMPLE_QUESTIONS, Staleness, measure_staleness
from trainer.state import restore
from trainer.step import Average, Optimizers, training_step
from trainer.watch import Sample, Watch

__all__ = ["RunResult", "train", "train_worker"]

# A cluster takes a minute to miss a node and several to start another one: a run of hours had better wait for that.
SHARD_DEADLINE_S = 600.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a training run left behind. generation: of the memory, embedded by the trained model.

    seconds: of the whole call; training_s: those among them that the report calls training, spent in steps and
    refreshes. report: the page that shows the run; None if it could not be written, which leaves the run as good as it
    is, and training_s unknown.
    """

    run_dir: Path
    steps: int
    loss: float
    generation: int
    resumed_from: int
    seconds: float
    training_s: float | None
    asked: Asked
    report: Path | None


def train(config: RunConfig, *, resume: bool = False, progress: Progress = silent) -> RunResult:
    """Train a model on the configured memory; ingests the configured facts first where there is no memory yet.

    The run directory then holds config.toml, metrics.jsonl, the newest checkpoint and report.html; the memory is
    embedded by the trained model. resume: go on from the newest checkpoint, to exactly the result of a run that never
    stopped; without one, start. Raises ConfigError when the directory holds a run already and `resume` is not asked
    for, when it holds a run with other settings, or while another process trains in it.
    """
    started_s = time.monotonic()
    run_dir = Path(config.run_dir)
    with training_alone(run_dir):
        found = _claim(run_dir, config, resume)
        record_environment(run_dir)
        _prepare_memory(config, progress)
        result: dict[str, Any] = {}

        def worker(_: dict[str, Any]) -> None:
            result.update(train_worker(config, found, progress))

        if config.train.workers == 1:
            _run_here(worker)
        else:
            from trainer.workers import run_workers  # torch.distributed loads only where it is used

            result = run_workers(config, found)
        resumed_from = found.step if found else 0
        report = _report(run_dir)
        return RunResult(
            run_dir=run_dir,
            steps=result["steps"],
            loss=result["loss"],
            generation=result["generation"],
            resumed_from=resumed_from,
            seconds=time.monotonic() - started_s,
            training_s=read_run(run_dir).seconds_since(resumed_from) if report else None,
            asked=Asked.load(Storage(config.run_dir)),
            report=report,
        )


def _report(run_dir: Path) -> Path | None:
    try:
        return write_report(run_dir)
    except HmnError as error:
        _log.error("no report of the run: %s", error)
        return None


def _claim(run_dir: Path, config: RunConfig, resume: bool) -> CheckpointInfo | None:
    """The checkpoint to go on from, after making sure that the directory is ours to use."""
    storage = Storage(str(run_dir))
    found = newest_checkpoint(storage)
    if found is not None and not resume:
        is_done = found.step == found.total_steps
        done = f"a run already (step {found.step} of {found.total_steps})"
        advice = "it is finished, and leaves nothing to --resume:" if is_done else "go on with --resume, or"
        raise ConfigError(f"{run_dir} holds {done}; {advice} name another run_dir")
    saved = run_dir / "config.toml"
    if found is not None and load_config(saved) != config:
        raise ConfigError(f"{run_dir} holds a run with other settings; resume it with {saved}, or name another run_dir")
    save_config(config, saved)
    return found


def _prepare_memory(config: RunConfig, progress: Progress) -> None:
    try:
        read_manifest(Storage(config.memory.url))
    except MemoryNotFound:
        if not config.data.facts:
            raise
        ingest(
            config.data.facts,
            config.memory.url,
            names=config.data.names,
            grouping=config.data.grouping,
            progress=progress,
        )


def _run_here(worker: Callable[[dict[str, Any]], None]) -> None:
    """One worker: Ray Train's local mode calls it in this process; no cluster is started."""
    with _quiet_ray():
        from ray.train import ScalingConfig
        from ray.train.torch import TorchTrainer

        trainer = TorchTrainer(worker, train_loop_config={}, scaling_config=ScalingConfig(num_workers=0))
        trainer.fit()


@contextlib.contextmanager
def _quiet_ray() -> Iterator[None]:
    """Ray Train announces its local mode as if it were a problem; our own messages say what runs."""
    loggers = [logging.getLogger(name) for name in ("ray.train", "ray.train.v2", "ray")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=DeprecationWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def train_worker(
    config: RunConfig,
    found: CheckpointInfo | None,
    progress: Progress,
    rank: int = 0,
    average: Average | None = None,
    agree: Agree = alone_agrees,
) -> dict[str, Any]:
    """What every worker does. rank 0 also embeds, checkpoints and reports; agree: hands what it says to the others."""
    prepare_process(config.train.threads)
    storage = Storage(config.memory.url)
    manifest = read_manifest(storage)
    run_storage = Storage(config.run_dir)
    table, rejected = questions_of(config.data.questions, "train", run_storage, write=rank == 0)
    questions = Questions.of(table)
    paths = Paths.scan(storage, manifest)
    data = TrainingData(
        questions,
        paths,
        storage,
        manifest,
        batch_questions=config.train.batch_questions,
        swap=config.train.swap_subjects,
        seed=config.seed,
    )
    encoder = make_encoder(config.model, config.seed)
    optimizers = Optimizers(encoder, config.train)
    if found is None:
        tables = scan_facts(storage, manifest, columns=list(FEATURE_COLUMNS))
        encoder.fit(FactFeatures.from_table(table) for table in tables)
    else:
        restore(load_checkpoint(run_storage, found), encoder, optimizers)
    steps = config.train.epochs * data.steps_per_epoch
    if config.train.max_steps:
        steps = min(steps, config.train.max_steps)
    if found is not None and found.serving not in generations(storage):  # somebody took its pin away
        found = replace(found, serving=0)
    first = found.step if found else 0
    watch = None
    if rank == 0:
        sample = Sample.draw(config.data.questions, questions, paths, config.seed, config.train.sample_questions)
        asked = Asked.of(questions, paths, held_out=sample.held_out, rejected=rejected)
        asked.save(run_storage)
        left_out = f"{asked.missing_words}; they are left out" if asked.missing else ""
        for words in (rejected.words, left_out):
            if words and found is None:
                _log.warning("%s", words)
        fresh_at = found.serving_step if found and found.serving else first
        watch = Watch(Path(config.run_dir), sample, k=config.train.k, resume_step=first, fresh_at=fresh_at)
    attention = KMipsAttention(config.train.k, config.train.candidates)
    with open_memory(
        config.memory.url,
        config.memory.shards,
        config.memory.index,
        backend=config.memory.backend,
        generation=found.serving or None if found else None,
        replicas=config.memory.replicas,
        recall_share=config.memory.recall_share,
        target_recall=config.memory.target_recall or None,
        deadline_s=SHARD_DEADLINE_S,
    ) as memory:
        run = _Run(
            config=config,
            memory=memory,
            encoder=encoder,
            optimizers=optimizers,
            attention=attention,
            data=data,
            steps=steps,
            rank=rank,
            average=average,
            agree=agree,
            progress=progress,
            watch=watch,
        )
        return run.train(first, found)


@dataclass(kw_only=True)
class _Run:
    """The parts of a run. steps: of each member; they are trained one after the other."""

    config: RunConfig
    memory: Memory
    encoder: Encoder
    optimizers: Optimizers
    attention: KMipsAttention
    data: TrainingData
    steps: int
    rank: int
    average: Average | None
    agree: Agree
    progress: Progress
    watch: Watch | None  # of rank 0
    loss: float = 0.0

    def train(self, first: int, found: CheckpointInfo | None) -> dict[str, Any]:
        name = pin_name(self.config.run_dir)
        refresher = Refresher(self.memory, self.encoder, name=name, dtype=self.config.memory.dtype)
        with contextlib.closing(refresher):  # what it does beside must not outlive the run, however that ends
            return self._train(first, found, refresher)

    def _train(self, first: int, found: CheckpointInfo | None, refresher: Refresher) -> dict[str, Any]:
        settings = self.config.train
        members = len(self.encoder.members)
        total = members * self.steps
        schedule = Schedule(
            settings,
            self.memory,
            self.encoder,
            refresher,
            Checkpointer(self.config, self.encoder, self.optimizers, total=total),
            member_steps=self.steps,
            rank=self.rank,
            agree=self.agree,
            watch=self.watch,
            found=found,
        )
        self.encoder.train()
        self.attention.train()
        if found is not None and self.rank == 0:
            self.loss = last_loss(Path(self.config.run_dir))
        held = HeldFeatures(self.memory)
        facts = [
            EncodedFacts(self.memory, self.encoder, member=m if members > 1 else None, held=held)
            for m in range(members)
        ]
        extra = ExtraFacts(
            self.memory, settings.extra, settings.extra_facts, seed=self.config.seed, threads=settings.threads
        )
        workers = step_workers(settings.threads)
        for step in range(first, total):
            member, own_step = divmod(step, self.steps)
            schedule.before(step, partial(self._staleness, facts[member], own_step, member))
            began_s = time.perf_counter()
            batch = self.data.batch(own_step, self.rank, settings.workers, member=member)
            batch_s = time.perf_counter() - began_s
            generator = torch.Generator().manual_seed((self.config.seed << 32) + step * settings.workers + self.rank)
            report = training_step(
                self.encoder,
                self.attention,
                facts[member],
                batch,
                self.optimizers,
                workers=workers,
                member=member if members > 1 else None,
                decay=1 - own_step / self.steps,
                feature_dropout=settings.feature_dropout,
                generator=generator,
                average=self.average,
                drawn=extra.draw((step, self.rank)),
                corrected=settings.correction == "importance",
            )
            self.loss = report.loss
            done = step + 1
            is_last = done == total
            generation = self.memory.generation
            watch = self.watch
            if watch is not None and watch.step(done, report, batch, batch_s, generation=generation, last=is_last):
                self.progress("train", done, total, unit="steps", note=f"loss {report.loss:.3f}")
        generation = schedule.finish(total)
        if self.watch is not None:
            self.watch.close()
        return {"steps": total, "loss": self.loss, "generation": generation}

    def _staleness(self, facts: EncodedFacts, own_step: int, member: int) -> Staleness:
        """Of the memory, for the member that learns; recorded, and shown in the memory's stats."""
        texts = self.data.batch(own_step, self.rank, self.config.train.workers, member=member).texts
        questions = question_features(texts[:SAMPLE_QUESTIONS])
        alone = member if len(self.encoder.members) > 1 else None
        self.encoder.eval()
        found = measure_staleness(
            self.memory,
            facts,
            lambda: self.encoder.encode_questions(questions, member=alone),
            self.config.train.k,
            seed=self.config.seed,
        )
        self.encoder.train()
        self.memory.note_drift(found.drift)
        if self.watch is not None:
            self.watch.measured(found)
        return found
