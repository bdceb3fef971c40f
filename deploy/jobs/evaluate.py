"""`hmn evaluate`: how often a trained run is right, overall and per relation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from deploy.console import Console
from deploy.entry import main
from deploy.options import examples, json_option

if TYPE_CHECKING:
    from trainer.evaluation import Evaluation

__all__ = ["command", "show_evaluation"]


@click.command(
    "evaluate",
    short_help="How often a trained run is right.",
    epilog=examples(
        "hmn evaluate runs/geonames",
        "hmn evaluate runs/geonames --split test --wrong 30",
        "hmn evaluate runs/mine --questions held_out.tsv",
    ),
)
@click.argument("run_dir", metavar="RUN", type=click.Path(file_okay=False))
@click.option("--split", type=click.Choice(["train", "valid", "test"]), default="valid", show_default=True)
@click.option("--questions", metavar="FILE", help="Ask these as the split, instead of those of the run.")
@click.option("--k", type=click.IntRange(min=1), help="Facts retrieved per question; default: as the run was trained.")
@click.option("--relations", type=click.IntRange(min=0), default=20, show_default=True, help="Relations to show.")
@click.option("--wrong", type=click.IntRange(min=0), default=10, show_default=True, help="Wrong answers to show.")
@json_option
@click.pass_obj
def command(
    console: Console, run_dir: str, split: str, questions: str | None, k: int | None, relations: int, wrong: int
) -> None:
    """Ask every question of a split and compare what RUN reads with what was meant.

    path: the fact read has the question's subject and relation; answer: it leads to the right object. Intervals are
    95 % Wilson intervals. All of it, with every wrong answer, is written to RUN/evaluation-<split>.json, and shown
    in RUN/report.html. A run whose data.questions is one file has the split train alone; --questions names others.
    """
    from trainer.evaluation import evaluate

    found = evaluate(run_dir, split, questions=questions, k=k, progress=console.progress)
    console.result(found.to_json(), lambda: show_evaluation(console, run_dir, found, relations, wrong))


def show_evaluation(console: Console, run_dir: str, found: Evaluation, relations: int, wrong: int) -> None:
    """The table, some wrong answers, and where all of it is."""
    from trainer.missing import missing_words

    split = f"{found.split} of {found.source}" if found.source else found.split
    missing = missing_words(found.missing, found.overall.questions, example=found.missing_example)
    console.write(found.table(relations))
    if len(found.relations) > relations:
        console.write(f"... and {len(found.relations) - relations:,} more relations")
    console.write()
    console.write(
        f"{split}: generation {found.generation}, softmax over {found.softmax_size:.1f} facts per question"
        + (f"; {missing}" if missing else "")
    )
    if found.rejected.rows:
        console.write(f"{found.rejected.words}.")
    if found.wrong[:wrong]:
        console.write()
        console.write(f"Wrong answers, {min(wrong, len(found.wrong)):,} of {len(found.wrong):,}:")
    for one in found.wrong[:wrong]:
        rank = f"rank {one.gold_rank}" if one.gold_rank else f"not among {found.k}"
        console.write(f"  {one.question}")
        console.write(f"      read {_called(one.read_subject, one.read_subject_id)}: {one.read_relation}")
        console.write(f"      meant {_called(one.gold_subject, one.gold_subject_id)}: {one.gold_relation} ({rank})")
    if namesakes := sum(one.read_a_namesake for one in found.wrong):
        console.write(f"{namesakes:,} of all {len(found.wrong):,} read a namesake of the subject that was meant.")
    console.write()
    console.write(f"All of it: {run_dir.rstrip('/')}/evaluation-{found.split}.json and report.html")


def _called(name: str | None, entity_id: str | None) -> str:
    """Name and id: several things may have one name."""
    return f"{name} ({entity_id})" if name and name != entity_id else str(entity_id)


if __name__ == "__main__":
    main(command)
