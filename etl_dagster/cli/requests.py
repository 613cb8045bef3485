"""`resync` and `resume`: what the process that runs the pipeline, now or next, is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

from etl_dagster.cli import render
from etl_dagster.cli.exits import ExitCode
from etl_dagster.errors import ConfigError
from etl_dagster.model import TableId, TablePattern
from etl_dagster.pipeline import Pipeline
from etl_dagster.store.base import TableRecord, TableState


def run_resync(config: Path, names: Sequence[str]) -> int:
    """Ask for fresh copies of the tables that match."""
    pipeline = Pipeline.load(config)
    known = list(_states(pipeline, config))
    # All names first: one that is wrong changes nothing.
    wanted = dict.fromkeys(table for name in names for table in _matching(pipeline.name, name, known))
    _say("To be copied afresh", config, [pipeline.request_resync(table) for table in wanted])
    return ExitCode.OK


def run_resume(config: Path, names: Sequence[str]) -> int:
    """Ask for the quarantined tables that match to go on."""
    pipeline = Pipeline.load(config)
    states = _states(pipeline, config)
    wanted = dict.fromkeys(table for name in names for table in _quarantined(pipeline.name, name, states))
    records = [pipeline.request_resume(table) for table in wanted]
    _say("To be resumed", config, (record for record in records if record.resume))
    _say("To be copied afresh, since the changes were not kept", config, (r for r in records if not r.resume))
    return ExitCode.OK


def _states(pipeline: Pipeline, config: Path) -> dict[TableId, TableState]:
    states = {table.table: table.state for table in pipeline.status().tables}
    if not states:
        raise ConfigError(f"Pipeline {pipeline.name} has not run yet", hint=f"Run: etl-dagster sync -c {config}")
    return states


def _say(what: str, config: Path, records: Iterable[TableRecord]) -> None:
    if names := ", ".join(str(record.table) for record in records):
        text = f"{what}, by the running process or by the next sync (etl-dagster sync -c {config}): {names}"
        render.results_console().print(text, markup=False, soft_wrap=True)


def _quarantined(pipeline: str, name: str, states: dict[TableId, TableState]) -> list[TableId]:
    found = _matching(pipeline, name, list(states))
    if out := [table for table in found if states[table] is TableState.QUARANTINED]:
        return out
    every = ", ".join(sorted(str(table) for table, state in states.items() if state is TableState.QUARANTINED))
    state = f"; {found[0]} is {states[found[0]]}" if len(found) == 1 else ""
    hint = f"Quarantined are: {every}" if every else "To copy a table afresh: etl-dagster resync TABLE"
    raise ConfigError(f"{name} names no quarantined table{state}", hint=hint)


def _matching(pipeline: str, name: str, known: Sequence[TableId]) -> list[TableId]:
    try:
        pattern = TablePattern.parse("*.*" if name == "*" else name)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if found := [table for table in known if pattern.matches(table)]:
        return found
    raise ConfigError(f"Pipeline {pipeline} has no table {pattern.exact or name}", hint=_suggestion(name, known))


def _suggestion(name: str, known: Sequence[TableId]) -> str:
    names = sorted(map(str, known))
    close = get_close_matches(str(TableId.parse(name)), names, n=1)
    return f"Did you mean {close[0]}?" if close else f"Its tables are: {', '.join(names)}"
