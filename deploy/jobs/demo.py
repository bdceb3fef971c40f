"""`hmn demo`: everything once, on a knowledge base that is in the package."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
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
    from trainer.config import RunConfig

__all__ = ["QUESTIONS", "command"]

SHARDS = 2
EVERY_PLACE = "builtin:geonames?min_population=500"  # the smallest places that the package knows
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
    """Ingest, embed, train, evaluate and ask, on real places (GeoNames), on a local Ray with two shards.

    A few minutes on two cores. A demo that was interrupted goes on; one that is done only evaluates and asks again.
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
    demo.start_ray()
    demo.ingest(config)
    demo.train(config)
    demo.inspect()
    demo.evaluate()
    demo.ask()
    console.result({**demo.story, "stages": demo.stages.story()}, lambda: demo.show_end())


def _config(demo: _Demo, full: bool, settings: tuple[str, ...]) -> RunConfig:
    from trainer.config import load_config

    overrides = [f"memory.shards={SHARDS}", 'memory.backend="ray"']
    if full:
        overrides += [f'data.facts=["{EVERY_PLACE}"]', f'data.questions="{EVERY_PLACE}"']
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

        with self.stages.stage("ingest", "Ingest: raw facts, checked, grouped, merged, on Ray Data"):
            trained = self.trained()
            if trained is not None:  # ingesting again could only move the memory away from what the run knows
                self.story["facts"] = trained.fact_count
                self.stages.say(f"{trained.fact_count:,} facts are in {self.memory} already")
                return
            summary = ingest(
                config.data.facts, config.memory.url, backend="ray", workers=SHARDS, progress=self.console.progress
            )
        self.story["facts"] = summary.facts
        self.stages.say(
            f"{summary.facts:,} facts about {summary.entities:,} places ({size(summary.bytes)}) in {self.memory}, "
            f"generation {summary.generation}"
        )

    def train(self, config: RunConfig) -> None:
        from trainer.loop import train

        title = "Train: K-MIPS attention over the shards; the memory is embedded anew as it learns"
        with self.stages.stage("train", title):
            result = train(config, resume=True, progress=self.console.progress)
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
        with self.stages.stage("evaluate", title):
            found = evaluate(str(self.run), "test", progress=self.console.progress)
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

    def show_end(self) -> None:
        self.console.write()
        self.console.write(f"Done in {duration(self.stages.seconds)}. Go on with:")
        self.console.write(f'  hmn ask "your question" --run {self.run}')
        self.console.write(f"  hmn evaluate {self.run} --split test")
        self.console.write(f"  hmn inspect {self.memory}")
        self.console.write(f"What it learned, and how: {self.run}/report.html")


if __name__ == "__main__":
    main(command)
