"""`resync` and `resume`: what the process that runs the pipeline, now or next, is asked for."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from etl_dagster.cli import render
from etl_dagster.cli.exits import ExitCode
from etl_dagster.cli.names import matching_tables
from etl_dagster.cli.partitions import Wanted, partitions_of
from etl_dagster.errors import ConfigError
from etl_dagster.model import TableId
from etl_dagster.pipeline import Pipeline
from etl_dagster.replication.report import told_slices
from etl_dagster.store.base import Request, RequestKind, TableState


def run_resync(config: Path, names: Sequence[str], wanted: Wanted) -> int:
    """Ask for fresh copies of the tables that match, or of slices of them."""
    pipeline = Pipeline.load(config)
    states = _states(pipeline, config)
    # All names first: one that is wrong changes nothing.
    tables = dict.fromkeys(table for name in names for table in matching_tables(pipeline.name, name, list(states)))
    chosen = _slices(pipeline, states, list(tables), wanted) if wanted else dict.fromkeys(tables, ())
    asked = [pipeline.request_resync(table, keys) for table, keys in chosen.items()]
    _say("To be copied afresh", config, [request for request in asked if request.kind is RequestKind.RESYNC])
    _say("Slices to be copied again", config, [request for request in asked if request.kind is RequestKind.SLICES])
    return ExitCode.OK


def run_resume(config: Path, names: Sequence[str]) -> int:
    """Ask for the quarantined tables that match to go on."""
    pipeline = Pipeline.load(config)
    states = _states(pipeline, config)
    wanted = dict.fromkeys(table for name in names for table in _quarantined(pipeline.name, name, states))
    asked = [pipeline.request_resume(table) for table in wanted]
    _say("To be resumed", config, [request for request in asked if request.kind is RequestKind.RESUME])
    afresh = [request for request in asked if request.kind is not RequestKind.RESUME]
    _say("To be copied afresh, since the changes were not kept", config, afresh)
    return ExitCode.OK


def _states(pipeline: Pipeline, config: Path) -> dict[TableId, TableState]:
    states = {table.table: table.state for table in pipeline.status().tables}
    if not states:
        raise ConfigError(f"Pipeline {pipeline.name} has not run yet", hint=f"Run: etl-dagster sync -c {config}")
    return states


def _slices(
    pipeline: Pipeline, states: dict[TableId, TableState], tables: Sequence[TableId], wanted: Wanted
) -> dict[TableId, Sequence[str]]:
    if out := [table for table in tables if states[table] in (TableState.QUARANTINED, TableState.REMOVED)]:
        hint = f"Copy all of it instead: etl-dagster resync {shlex.quote(str(out[0]))}"
        raise ConfigError(f"Slices of {out[0]} cannot be copied: it is {states[out[0]]}", hint=hint)
    schemas = pipeline.tables()
    return {table: wanted.of(partitions_of(pipeline, schemas[table])) for table in tables}


def _say(what: str, config: Path, asked: Sequence[Request]) -> None:
    if asked:
        names = ", ".join(f"{each.table}{told_slices([part.name for part in each.slices])}" for each in asked)
        text = f"{what}, by the running process or by the next sync (etl-dagster sync -c {config}): {names}"
        render.results_console().print(text, markup=False, soft_wrap=True)


def _quarantined(pipeline: str, name: str, states: dict[TableId, TableState]) -> list[TableId]:
    found = matching_tables(pipeline, name, list(states))
    if out := [table for table in found if states[table] is TableState.QUARANTINED]:
        return out
    every = ", ".join(sorted(str(table) for table, state in states.items() if state is TableState.QUARANTINED))
    state = f"; {found[0]} is {states[found[0]]}" if len(found) == 1 else ""
    hint = f"Quarantined are: {every}" if every else "To copy a table afresh: etl-dagster resync TABLE"
    raise ConfigError(f"{name} names no quarantined table{state}", hint=hint)
