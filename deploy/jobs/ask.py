"""`hmn ask`: questions to a trained run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from deploy.console import Console
from deploy.entry import main
from deploy.options import examples, json_option

if TYPE_CHECKING:
    from trainer.ask import Answer

__all__ = ["answer_line", "command", "objects_of", "show_answers"]

OBJECTS_SHOWN = 6  # some facts lead to hundreds


@click.command(
    "ask",
    short_help="Questions to a trained run.",
    epilog=examples(
        'hmn ask "What is the capital of Peru?" --run runs/geonames',
        "hmn ask --run runs/geonames < questions.txt",
        'hmn ask "time zone of kyoto" --run runs/geonames --k 1 --json',
    ),
)
@click.argument("questions", metavar="[QUESTION]...", nargs=-1)
@click.option(
    "--run",
    "run_dir",
    metavar="RUN",
    type=click.Path(file_okay=False),
    required=True,
    help="The trained run that answers.",
)
@click.option("--k", type=click.IntRange(min=1), default=5, show_default=True, help="Facts to read.")
@click.option("--memory", "url", metavar="URL", help="Read another memory, embedded by this run's model.")
@click.option("--generation", type=click.IntRange(min=1), help="Default: the one the checkpoint names.")
@click.option("--backend", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@json_option
@click.pass_obj
def command(
    console: Console,
    questions: tuple[str, ...],
    run_dir: str,
    k: int,
    url: str | None,
    generation: int | None,
    backend: str,
) -> None:
    """Answer each QUESTION from the memory of RUN: the answer, the facts read, and their attention weights.

    Without a QUESTION, one is read from every line of the standard input.
    """
    from trainer.ask import Answerer

    with Answerer(run_dir, memory=url, generation=generation, backend=backend) as answerer:
        if console.json:
            asked = list(questions) or [line.strip() for line in sys.stdin if line.strip()]
            answers = answerer.ask_many(asked, k)
            console.result(
                {
                    "memory": answerer.memory.url,
                    "generation": answerer.memory.generation,
                    "answers": [
                        {"question": question, "facts": facts} for question, facts in zip(asked, answers, strict=True)
                    ],
                },
                lambda: None,
            )
            return
        for question in questions or _typed(console):
            show_answers(console, question, answerer.ask(question, k), answerer.memory.generation)


def _typed(console: Console) -> Iterator[str]:
    """Questions from the standard input, with a prompt where a person types them."""
    person = sys.stdin.isatty()
    if person:
        console.say("Ask, one question a line; an empty line or Ctrl-D ends.")
    while True:
        if person:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line or (person and not line.strip()):
            return
        if line.strip():
            yield line.strip()


def show_answers(console: Console, question: str, facts: list[Answer], generation: int) -> None:
    """The answer, then the facts read with their weights."""
    console.write(question)
    if not facts:
        console.write("  The memory is empty.")
        return
    console.write(f"  {objects_of(facts[0])}")
    console.write()
    console.table(
        ("weight", "score", "fact read", "fact id"),
        [(fact.weight, fact.score, answer_line(fact), str(fact.fact_id)) for fact in facts],
    )
    console.write(f"(generation {generation})")
    console.write()


def answer_line(fact: Answer) -> str:
    """A fact in words: `Peru, capital: Lima`."""
    return f"{fact.subject or fact.subject_id or fact.fact_id}, {fact.relation or '-'}: {objects_of(fact)}"


def objects_of(fact: Answer) -> str:
    """What a fact leads to; the first few where it is a long list."""
    shown = ", ".join(fact.objects[:OBJECTS_SHOWN]) or "-"
    more = len(fact.objects) - OBJECTS_SHOWN
    return f"{shown} and {more:,} more" if more > 0 else shown


if __name__ == "__main__":
    main(command)
