"""`status` and `resync`."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from etl_dagster.cli import render
from etl_dagster.cli.exits import ExitCode
from etl_dagster.errors import ConfigError
from etl_dagster.model import TableId
from etl_dagster.pipeline import Pipeline
from etl_dagster.postgres import TablePattern
from etl_dagster.store.base import TableState


def run_status(config: Path, *, as_json: bool) -> int:
    """Show where the pipeline stands."""
    status = Pipeline.load(config).status()
    if as_json:
        render.print_json(status.to_json())
    else:
        render.show_status(status)
    quarantined = any(table.state is TableState.QUARANTINED for table in status.tables)
    return ExitCode.QUARANTINED if quarantined else ExitCode.OK


def run_resync(config: Path, names: Sequence[str]) -> int:
    """Ask for fresh copies of the tables that match."""
    pipeline = Pipeline.load(config)
    known = [table.table for table in pipeline.status().tables]
    if not known:
        raise ConfigError(f"Pipeline {pipeline.name} has not run yet", hint=f"Run: etl-dagster sync -c {config}")
    # All names first: one that is wrong changes nothing.
    wanted = dict.fromkeys(table for name in names for table in _matching(pipeline.name, name, known))
    for table in wanted:
        pipeline.request_resync(table)
    render.results_console().print(
        f"To be copied afresh, by the running process or by the next sync (etl-dagster sync -c {config}): "
        + ", ".join(map(str, wanted)),
        markup=False,
        soft_wrap=True,
    )
    return ExitCode.OK


def _matching(pipeline: str, name: str, known: Sequence[TableId]) -> list[TableId]:
    try:
        pattern = TablePattern.parse(name)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if found := [table for table in known if pattern.matches(table)]:
        return found
    raise ConfigError(f"Pipeline {pipeline} has no table {pattern.exact or name}", hint=_suggestion(name, known))


def _suggestion(name: str, known: Sequence[TableId]) -> str:
    names = sorted(map(str, known))
    close = get_close_matches(str(TableId.parse(name)), names, n=1)
    return f"Did you mean {close[0]}?" if close else f"Its tables are: {', '.join(names)}"
