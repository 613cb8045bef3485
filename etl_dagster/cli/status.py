"""`status` and `resync`."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from etl_dagster.cli import render
from etl_dagster.cli.exits import ExitCode
from etl_dagster.errors import ConfigError
from etl_dagster.model import TableId
from etl_dagster.pipeline import Pipeline
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


def run_resync(config: Path, name: str) -> int:
    """Ask for a fresh copy of one table."""
    pipeline = Pipeline.load(config)
    table = TableId.parse(name)
    known = [str(other) for other in pipeline.tables()]
    if str(table) not in known:
        raise ConfigError(f"Pipeline {pipeline.name} has no table {table}", hint=_suggestion(str(table), known))
    pipeline.request_resync(table)
    render.results_console().print(
        f"{table} will be copied afresh by the running process, or by the next sync: etl-dagster sync -c {config}",
        markup=False,
    )
    return ExitCode.OK


def _suggestion(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1)
    if close:
        return f"Did you mean {close[0]}?"
    return f"Its tables are: {', '.join(sorted(known)) or 'none'}"
