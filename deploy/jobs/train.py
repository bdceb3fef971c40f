"""`hmn train`: a run from its TOML file."""

from __future__ import annotations

import json
import logging
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploy.console import Console, duration
from deploy.entry import main
from deploy.lasting import refuse_lost
from deploy.options import examples, json_option

if TYPE_CHECKING:
    from trainer.loop import RunResult

__all__ = ["command", "overrides_of"]


@click.command(
    "train",
    short_help="Train the run that a TOML file describes.",
    epilog=examples(
        "hmn train deploy/configs/geonames.toml",
        "hmn train deploy/configs/geonames.toml --set train.epochs=1 --set memory.shards=4 --run runs/short",
        "hmn train runs/short/config.toml --resume",
    ),
)
@click.argument("config_path", metavar="[CONFIG.toml]", type=click.Path(), required=False)
@click.option("--config", "config_option", metavar="FILE", type=click.Path(), help="The same as CONFIG.toml.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Replace a setting; repeatable.")
@click.option("--memory", "url", metavar="URL", help="Short for --set memory.url=URL.")
@click.option("--run", "run_dir", metavar="DIR", help="Short for --set run_dir=DIR.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint of the run; without one, start.")
@json_option
@click.pass_obj
def command(
    console: Console,
    config_path: str | None,
    config_option: str | None,
    settings: tuple[str, ...],
    url: str | None,
    run_dir: str | None,
    resume: bool,
) -> None:
    """Train the model that CONFIG.toml describes; ingests its facts first where there is no memory yet.

    A run that was interrupted goes on with --resume, to the same result as if nothing had happened. The settings are
    listed in docs/configuration.md. deploy/configs/*.toml are found wherever hmn is installed.
    """
    from trainer.config import load_config
    from trainer.loop import train

    path = config_path or config_option
    if path is None or (config_path and config_option):
        raise click.UsageError("expected one configuration file, as CONFIG.toml or with --config")
    logging.getLogger("trainer").setLevel(logging.WARNING)  # also where those of libraries are not shown
    config = load_config(_shipped(path) or path, overrides_of(settings, url, run_dir))
    refuse_lost({"--run": config.run_dir, "--memory": config.memory.url})
    result = train(config, resume=resume, progress=console.progress)
    console.result(result, lambda: show_run(console, result))


def _shipped(path: str) -> str | None:
    """deploy/configs/NAME.toml, from wherever hmn is installed, for a job that runs in another folder."""
    shipped = Path(str(files("deploy"))) / "configs" / Path(path).name
    asked = Path(path).parent == Path("deploy/configs") and not Path(path).exists()
    return str(shipped) if asked and shipped.is_file() else None


def overrides_of(settings: tuple[str, ...], url: str | None = None, run_dir: str | None = None) -> list[str]:
    """The overrides that load_config takes; URL and folder are quoted, so that they are text always."""
    overrides = list(settings)
    if url is not None:
        overrides.append(f"memory.url={json.dumps(url)}")
    if run_dir is not None:
        overrides.append(f"run_dir={json.dumps(run_dir)}")
    return overrides


def show_run(console: Console, result: RunResult) -> None:
    """What a training run did, for a person."""
    if result.resumed_from == result.steps:
        did = f"The run was finished at step {result.steps:,} already; last loss {result.loss:.3f}."
    else:
        again = f", going on from step {result.resumed_from:,}" if result.resumed_from else ""
        steps = "" if result.training_s is None else f", {duration(result.training_s)} of them in steps and refreshes"
        did = (
            f"Trained {result.steps:,} steps in {duration(result.seconds)}{steps}{again}; last loss {result.loss:.3f}."
        )
    console.write(f"{did} The memory is embedded by this model as generation {result.generation}.")
    console.write(f"Report: {result.report}" if result.report else "No report: `hmn report` says why.")
    if result.asked.rejected.rows:
        console.write(f"{result.asked.rejected.words}.")
    if result.asked.missing:
        console.write(f"{result.asked.missing_words}; they were left out.")
    if result.asked.held_out:
        console.write(f"Now: hmn evaluate {result.run_dir}")
    else:
        console.write(
            "No questions about facts of the memory are held out of training as valid. To evaluate: "
            f"hmn evaluate {result.run_dir} --questions FILE, with others; or --split train, with the same."
        )


if __name__ == "__main__":
    main(command)
