"""`status`."""

from __future__ import annotations

from pathlib import Path

from etl_dagster.cli import render
from etl_dagster.cli.exits import ExitCode
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
