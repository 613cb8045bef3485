"""The commands; each one reads its options, calls the pipeline, and shows the result."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from etl_dagster import __version__
from etl_dagster.errors import EtlError

# Everything else is imported by the command that needs it: `status` must not wait for what only `demo` uses.

DEFAULT_CONFIG = Path("etl-dagster.yaml")
DEFAULT_DEMO_FOLDER = Path(".demo")

app = typer.Typer(
    name="etl-dagster",
    help="Replicate PostgreSQL into warehouses: changes as they happen, in columns.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage or config, 3 a table is quarantined, 128+n ended by signal n.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _debug(wanted: bool) -> bool:
    if wanted:
        logging.getLogger("etl_dagster").setLevel(logging.DEBUG)
    return wanted


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"etl-dagster {__version__}\n")
        raise typer.Exit


ConfigOption = Annotated[
    Path,
    typer.Option("--config", "-c", envvar="ETL_DAGSTER_CONFIG", help="The pipeline's YAML file."),
]
DebugOption = Annotated[bool, typer.Option("--debug", callback=_debug, help="Say more, and show where errors rose.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
WaitOption = Annotated[
    float,
    typer.Option("--wait", min=0, metavar="SECONDS", help="How long to wait when another process runs the pipeline."),
]


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of no command."""


@app.command()
def check(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Examine source, state store and destination; every line passes, or says what to do."""
    from etl_dagster.cli.check import run_check

    raise typer.Exit(run_check(config, as_json=as_json))


@app.command()
def sync(
    config: ConfigOption = DEFAULT_CONFIG,
    wait: WaitOption = 0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Copy what needs a copy, catch up to this moment, and end."""
    from etl_dagster.cli.replicate import run_sync

    raise typer.Exit(run_sync(config, wait_seconds=wait, as_json=as_json, debug=debug))


@app.command()
def follow(
    config: ConfigOption = DEFAULT_CONFIG,
    wait: WaitOption = 0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Replicate until stopped; SIGTERM or Ctrl-C ends it after the batch in hand, a second one at once."""
    from etl_dagster.cli.replicate import run_follow

    raise typer.Exit(run_follow(config, wait_seconds=wait, as_json=as_json, debug=debug))


@app.command()
def status(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """Show state, rows and lag of every table, and the WAL that the slot retains."""
    from etl_dagster.cli.status import run_status

    raise typer.Exit(run_status(config, as_json=as_json))


@app.command()
def resync(
    tables: Annotated[
        list[str],
        typer.Argument(metavar="TABLE...", help="As in the config: schema.table or table, with * as wildcard."),
    ],
    partition: Annotated[
        list[str] | None, typer.Option("--partition", metavar="KEY", help="Only this slice; may be repeated.")
    ] = None,
    first: Annotated[
        str | None,
        typer.Option("--from", metavar="KEY", help="Only slices from this one on, as `partitions` lists them."),
    ] = None,
    last: Annotated[
        str | None, typer.Option("--to", metavar="KEY", help="Only slices up to this one, included.")
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    debug: DebugOption = False,
) -> None:
    """Have tables copied afresh, by the running process or the next one; readers keep the old rows until then.

    Of a table with a rule for partitions, single slices can be copied again: --partition, or --from and --to.

    It is also how a quarantined table comes back whose changes were not kept, or with whose rows something is wrong.
    """
    from etl_dagster.cli.partitions import Wanted
    from etl_dagster.cli.requests import run_resync

    raise typer.Exit(run_resync(config, tables, Wanted(partition or (), first, last)))


@app.command()
def partitions(
    tables: Annotated[
        list[str] | None, typer.Argument(metavar="[TABLE...]", help="As for resync; else all that have a rule.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Plan ranges now, where they are not planned or the last one has grown.")
    ] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """List the slices of tables: key, first value, and the value that ends it."""
    from etl_dagster.cli.partitions import run_partitions

    raise typer.Exit(run_partitions(config, tables or (), plan=plan, as_json=as_json))


@app.command()
def resume(
    tables: Annotated[
        list[str],
        typer.Argument(metavar="TABLE...", help="As for resync; a wildcard takes the quarantined tables among them."),
    ],
    config: ConfigOption = DEFAULT_CONFIG,
    debug: DebugOption = False,
) -> None:
    """Have quarantined tables go on where they were taken out, once the cause is mended.

    The changes that were kept meanwhile are applied, by the running process or the next one. If that fails too, the
    table stays quarantined with the new cause.
    """
    from etl_dagster.cli.requests import run_resume

    raise typer.Exit(run_resume(config, tables))


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = DEFAULT_CONFIG,
    debug: DebugOption = False,
) -> None:
    """Write an example config, with comments, to start from."""
    from etl_dagster.cli.example import write_example

    raise typer.Exit(write_example(path))


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Work folder; emptied first.")] = DEFAULT_DEMO_FOLDER,
    rows: Annotated[int, typer.Option("--rows", min=100, help="Rows to begin with, in all.")] = 300_000,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="How long traffic runs.")] = 35.0,
    rate: Annotated[int, typer.Option("--rate", min=1, help="Changes per second.")] = 800,
    ui: Annotated[bool, typer.Option("--ui", help="Leave Dagster's UI running until Ctrl-C.")] = False,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port of the UI, if it is free.")] = 3000,
    debug: DebugOption = False,
) -> None:
    """Watch a live database being replicated into DuckDB by Dagster, then compared."""
    from etl_dagster.cli.demo import run_demo_command

    raise typer.Exit(
        run_demo_command(folder=folder, rows=rows, seconds=seconds, rate=rate, ui=ui, port=port, debug=debug)
    )


def main() -> None:
    """Entry point of the ``etl-dagster`` command."""
    from etl_dagster.cli.logs import explain, explain_unexpected

    sys.excepthook = explain_unexpected
    command: Any = typer.main.get_command(app)
    try:
        command(prog_name="etl-dagster")
    except EtlError as error:
        sys.exit(explain(error))
