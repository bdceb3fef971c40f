"""`hmn demo`: everything once, on a knowledge base that is in the package."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.console import Console, duration, size
from deploy.entry import main
from deploy.jobs.ask import objects_of
from deploy.jobs.train import overrides_of
from deploy.lasting import refuse_lost
from deploy.options import examples, json_option
from deploy.stages import Stages

if TYPE_CHECKING:
    from memory_store.manifest import Manifest
    from memory_store.topk import TopK
    from trainer.config import RunConfig

__all__ = ["QUESTIONS", "command"]

SHARDS = 2
EVERY_PLACE = "builtin:geonames?min_population=0"  # those too whose inhabitants nobody has counted
FULL = (
    f'data.facts=["{EVERY_PLACE}"]',
    f'data.questions="{EVERY_PLACE}"',
    "train.max_steps=300",  # about as many as the small demo takes; all questions would be 781
    "train.refresh_every_steps=100",  # embedding 30 times as many facts takes as long as many steps
)
QUESTIONS = (
    "What is the capital of Peru?",
    "which country is kyoto in",
    "time zone of nairobi",
    "How many people live in Toulouse?",
    "what do people pay with in thailand?",
    "Which countries border Austria?",
    "Which country is Москва in?",
    "what languages do people speak in switzerland",
    "phone code for japan",
)


@click.command(
    "demo",
    short_help="Everything once, on built-in places of the world.",
    epilog=examples(
        "hmn demo", "hmn demo --fresh", "hmn demo --full        every place of the package; takes far longer"
    ),
)
@click.option("--dir", "folder", type=click.Path(path_type=Path), help="Default: runs/demo, or runs/demo-full.")
@click.option("--full", is_flag=True, help="Every place the package knows instead of those above 100,000 people.")
@click.option("--fresh", is_flag=True, help="Throw away what an earlier demo left in the folder.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Replace a setting; repeatable.")
@json_option
@click.pass_obj
def command(console: Console, folder: Path | None, full: bool, fresh: bool, settings: tuple[str, ...]) -> None:
    """Ingest, embed, train, evaluate, ask, and re-index while questions are asked: real places (GeoNames), on a local
    Ray with two shards. At the end it says what each stage took, and the most memory that all processes held.

    A few minutes on two cores. A demo that was interrupted goes on; one that is done evaluates, asks and re-indexes
    again. --full does the same with more than a million facts.
    """
    demo = _Demo(
        console=console,
        folder=folder or Path("runs/demo-full" if full else "runs/demo"),
        stages=Stages(console),
    )
    refuse_lost({"--dir": str(demo.folder)})
    if fresh:
        for left in (demo.memory, demo.run):
            shutil.rmtree(left, ignore_errors=True)
    config = _config(demo, full, settings)
    if config.memory.backend == "ray":
        demo.start_ray()
    demo.ingest(config)
    demo.train(config)
    demo.inspect()
    demo.evaluate()
    demo.ask()
    demo.reindex(config)
    console.result({**demo.story, "stages": demo.stages.story()}, lambda: demo.show_end())


def _config(demo: _Demo, full: bool, settings: tuple[str, ...]) -> RunConfig:
    from trainer.config import load_config

    overrides = [f"memory.shards={SHARDS}", 'memory.backend="ray"']
    if full:
        overrides += FULL
    overrides += overrides_of(settings, str(demo.memory), str(demo.run))
    return load_config(str(files("deploy") / "configs" / "geonames.toml"), overrides)


@dataclass(kw_only=True)
class _Demo:
    """The steps in their order; each says what it did and leaves its numbers in `story`."""

    console: Console
    folder: Path
    stages: Stages
    story: dict[str, Any] = field(default_factory=dict)

    @property
    def memory(self) -> Path:
        return self.folder / "memory"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def start_ray(self) -> None:
        from memory_store.ray_session import ensure_ray

        with self.stages.stage("ray", f"Ray: one process per shard, {SHARDS} shards"):
            ensure_ray()

    def ingest(self, config: RunConfig) -> None:
        from pipeline.ingest import ingest

        on_ray = config.memory.backend == "ray"
        title = "Ingest: raw facts, checked, grouped, merged" + (", on Ray Data" if on_ray else "")
        with self.stages.stage("ingest", title) as stage:
            trained = self.trained()
            if trained is not None:  # ingesting again could only move the memory away from what the run knows
                self._ingested(trained.fact_count)
                return
            summary = ingest(
                config.data.facts,
                config.memory.url,
                grouping=config.data.grouping,
                backend=config.memory.backend,
                workers=SHARDS,
                progress=self.console.progress,
            )
            stage.did(summary.triples, "triples")
        if not summary.committed:
            self._ingested(summary.facts)
            return
        self.story |= {"facts": summary.facts, "triples": summary.triples, "places": summary.entities}
        self.stages.say(
            f"{summary.facts:,} facts ({summary.triples:,} triples) about {summary.entities:,} places, "
            f"{size(summary.bytes)}, in {self.memory}, generation {summary.generation}"
        )

    def _ingested(self, facts: int) -> None:
        self.story["facts"] = facts
        self.stages.say(f"{facts:,} facts are in {self.memory} already")

    def train(self, config: RunConfig) -> None:
        from trainer.loop import train

        title = "Train: K-MIPS attention over the shards; the memory is embedded anew as it learns"
        with self.stages.stage("train", title) as stage:
            result = train(config, resume=True, progress=self.console.progress)
            stage.did((result.steps - result.resumed_from) * config.train.batch_questions, "questions")
        self.story["steps"] = result.steps
        self.stages.say(
            f"{result.steps:,} steps of {config.train.batch_questions} questions, a softmax over the "
            f"{config.train.k} best facts of each instead of all"
            + (f"; went on from step {result.resumed_from:,}" if result.resumed_from else "")
        )

    def trained(self) -> Manifest | None:
        """The generation that the run's newest checkpoint names; None before there is one."""
        from memory_store.manifest import read_manifest
        from memory_store.storage import Storage
        from trainer.checkpoint import newest_checkpoint

        checkpoint = newest_checkpoint(Storage(str(self.run)))
        return None if checkpoint is None else read_manifest(Storage(str(self.memory)), checkpoint.generation)

    def inspect(self) -> None:
        manifest = self.trained()
        assert manifest is not None, "a run that ended left a checkpoint"
        self.story["generation"] = manifest.generation
        self.stages.say(
            f"generation {manifest.generation}: every fact is a vector of {manifest.dim} {manifest.dtype} values"
        )

    def evaluate(self) -> None:
        from trainer.evaluation import evaluate

        title = "Evaluate: questions in words, about places, that were held out of training"
        with self.stages.stage("evaluate", title) as stage:
            found = evaluate(str(self.run), "test", progress=self.console.progress)
            stage.did(found.overall.questions, "questions")
        score = found.overall
        self.story["accuracy"] = {"path": score.path_accuracy, "low": score.interval[0], "high": score.interval[1]}
        self.story["questions"] = score.questions
        self.stages.say(
            f"{100 * score.path_accuracy:.1f} % of {score.questions:,} read the right fact first "
            f"(95 % interval {100 * score.interval[0]:.1f} - {100 * score.interval[1]:.1f}); "
            f"it is among the first {found.k} for {100 * score.recall:.1f} %"
        )

    def ask(self) -> None:
        from trainer.ask import Answerer

        with self.stages.stage("ask", "Ask"):
            answers = []
            with Answerer(str(self.run)) as answerer:
                answerer.ask(QUESTIONS[0])  # the first question also warms the index up
                for question in QUESTIONS:
                    began_s = time.monotonic()
                    facts = answerer.ask(question, k=5)
                    answers.append((question, facts, time.monotonic() - began_s))
        self.story["answers"] = [
            {"question": question, "facts": facts, "seconds": seconds} for question, facts, seconds in answers
        ]
        if self.console.json:
            return
        for question, facts, seconds in answers:
            best = facts[0]
            self.stages.say(question)
            self.stages.say(
                f"    {objects_of(best)}   (read: {best.subject}, {best.relation}; weight {best.weight:.2f}; "
                f"{1000 * seconds:.0f} ms)"
            )

    def reindex(self, config: RunConfig) -> None:
        """Embed everything anew while the demo's questions are asked without a pause; the run keeps its generation."""
        import numpy as np

        from deploy.bench.live import search_during
        from memory_store.upkeep import sweep
        from trainer.refresh import FactEmbedder
        from trainer.run import open_run

        title = "Re-index: every fact embedded anew beside what serves, and switched to, while questions are asked"
        with open_run(self.run, memory=str(self.memory)) as opened, self.stages.stage("re-index", title) as stage:
            memory, k = opened.memory, config.train.k
            query_BD = opened.encoder.ask(list(QUESTIONS)).numpy()
            old = memory.manifest
            dtype = "float32" if old.dtype == "bfloat16" else "bfloat16"
            read = {old.generation: memory.search(query_BD, k).fact_ids_BK}

            def is_wrong(answer: TopK) -> bool:
                """Whatever generation answers, it always answers the same."""
                return not np.array_equal(read.setdefault(answer.generation, answer.fact_ids_BK), answer.fact_ids_BK)

            def embed_anew() -> None:
                memory.reindex(FactEmbedder(opened.encoder, remember=0), fingerprint=old.encoder, dtype=dtype)

            seen = search_during(memory, query_BD, "a re-embedding", embed_anew, k=k, is_wrong=is_wrong)
            new = memory.manifest
            stage.did(new.fact_count, "facts")
            first_B = memory.search(query_BD, k).fact_ids_BK[:, 0]
        sweep(str(self.memory), only_note=new.note)  # what an earlier demo made here
        same = int((first_B == read[old.generation][:, 0]).sum())
        self.story["reindex"] = {**asdict(seen), "generation": new.generation, "dtype": dtype, "same": same}
        self.stages.say(
            f"generation {old.generation}, {old.dtype}, {_bytes_of(old)}, became generation {new.generation}, {dtype}, "
            f"{_bytes_of(new)}; {same} of {len(QUESTIONS)} questions read the same fact first"
        )
        self.stages.say(
            f"{seen.searches:,} searches of {len(QUESTIONS)} questions meanwhile: {seen.failed} failed, {seen.wrong} "
            f"answered otherwise than their generation does; half took up to {seen.p50_ms:.0f} ms, 99 % up to "
            f"{seen.p99_ms:.0f} ms"
        )

    def show_end(self) -> None:
        self.console.write("\nWhat it took")
        self.stages.show()
        self.console.write()
        self.console.write(f"Done in {duration(self.stages.seconds)}. Go on with:")
        self.console.write(f'  hmn ask "your question" --run {self.run}')
        self.console.write(f"  hmn evaluate {self.run} --split test")
        self.console.write(f"  hmn inspect {self.memory}")
        self.console.write(f"What it learned, and how: {self.run}/report.html")


def _bytes_of(manifest: Manifest) -> str:
    return size(sum(part.bytes for part in manifest.vectors))


if __name__ == "__main__":
    main(command)
