"""The command line `hmn`: one group, one module per command under deploy/jobs/."""

import click

from deploy import entry
from deploy.jobs import (
    ask,
    bench,
    cluster,
    compact,
    compare,
    completion,
    delete,
    demo,
    diff,
    doctor,
    embed,
    evaluate,
    indexes,
    ingest,
    inspect,
    plan,
    reindex,
    report,
    reshard,
    rollback,
    serve,
    sweep,
    tag,
    train,
    upsert,
    verify,
)
from deploy.options import examples

__all__ = ["hmn", "main"]


class _InOrderOfUse(click.Group):
    """Lists its commands in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_InOrderOfUse,
    epilog=examples(
        "hmn demo                                          the whole thing in a few minutes",
        "hmn ingest builtin:geonames --memory memories/geonames",
        "hmn train deploy/configs/geonames.toml",
        'hmn ask "What is the capital of Peru?" --run runs/geonames',
    ),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="hmn", prog_name="hmn")
def hmn() -> None:
    """Hierarchical memory networks on Ray: answer questions from a large memory of facts.

    Exit status: 0 done; 1 the work failed, with one line that says what to do; 2 wrong usage. HMN_DEBUG=1 shows
    tracebacks and logs.
    """


for _job in (
    demo,
    ingest,
    embed,
    train,
    evaluate,
    report,
    compare,
    ask,
    serve,
    upsert,
    delete,
    compact,
    reindex,
    reshard,
    inspect,
    diff,
    rollback,
    tag,
    sweep,
    verify,
    plan,
    indexes,
    bench,
    cluster,
    doctor,
    completion,
):
    hmn.add_command(_job.command)


def main() -> None:
    """The entry point that the distribution installs."""
    entry.main(hmn)


if __name__ == "__main__":
    main()
