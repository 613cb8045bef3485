"""`partitions`: the slices of tables; and which of them a command names."""

from __future__ import annotations

import re
import shlex
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl_dagster.cli import render
from etl_dagster.cli.exits import ExitCode
from etl_dagster.cli.names import matching_tables
from etl_dagster.errors import ConfigError
from etl_dagster.model import KeyRanges, Slice, TableId, TableSchema, TimeWindows
from etl_dagster.model.slices import TEXT_TYPES
from etl_dagster.pipeline import Pipeline

EXAMPLE = "{type: time, column: created_at, every: day, start: 2026-01-01} or {type: range, column: id, rows: 1000000}"
_RANGE = re.compile(r"(?:from_)?(?P<number>-?\d+)")


@dataclass(frozen=True, slots=True)
class Partitions:
    """The slices of one table as they are now.

    Attributes:
        rule: What the config says; None when it says nothing.
        problem: Why there are no slices, and what to do.
    """

    table: TableId
    rule: TimeWindows | KeyRanges | None
    slices: Sequence[Slice] = ()
    problem: str = ""
    todo: str = ""
    of_texts: bool = False

    def __str__(self) -> str:
        if self.problem:
            return f"{self.table}: {self.problem}. {self.todo}"
        count = f"{len(self.slices):,} slices" if len(self.slices) > 1 else "1 slice"
        match self.rule:
            case TimeWindows(column=column, every=every, timezone=zone):
                return f"{self.table}: {count}, one for each {every} of {column} ({zone})"
            case KeyRanges(column=column, rows=rows):
                return f"{self.table}: {count}, of about {rows:,} rows each, by {column}"
        raise AssertionError("a table without a rule has a problem")

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "table": str(self.table),
            "rule": None if self.rule is None else self.rule.model_dump(mode="json"),
            "problem": self.problem or None,
            "slices": [
                {"key": each.name, "from": each.lower, "to": each.upper, "nulls": each.nulls} for each in self.slices
            ],
        }


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the options of a command name: single keys, and all from one to another, both included."""

    keys: Sequence[str] = ()
    first: str | None = None
    last: str | None = None

    def __bool__(self) -> bool:
        return bool(self.keys) or self.first is not None or self.last is not None

    def of(self, found: Partitions) -> list[str]:
        """The keys among the slices of a table, in their order.

        Raises:
            ConfigError: The table has no slices, or none of a name that is given.
        """
        if found.problem:
            raise ConfigError(f"{found.table} has no slices: {found.problem}", hint=found.todo)
        names = [each.name for each in found.slices]
        chosen = set(self.keys)
        if unknown := [key for key in (*self.keys, self.first, self.last) if key is not None and key not in set(names)]:
            raise ConfigError(f"{found.table} has no slice {unknown[0]}", hint=_nearest(unknown[0], found))
        if self.first is not None or self.last is not None:
            begin = 0 if self.first is None else names.index(self.first)
            end = len(names) if self.last is None else names.index(self.last) + 1
            if begin >= end:
                raise ConfigError(f"Slice {self.first} comes after {self.last}", hint="Swap --from and --to")
            chosen.update(names[begin:end])
        return [name for name in names if name in chosen]


def run_partitions(config: Path, names: Sequence[str], *, plan: bool, as_json: bool) -> int:
    """List the slices of the tables that match; without names, of all that have a rule."""
    pipeline = Pipeline.load(config)
    schemas = pipeline.tables()
    found = [partitions_of(pipeline, schemas[table], plan=plan) for table in _asked(pipeline, list(schemas), names)]
    if as_json:
        render.print_json({"pipeline": pipeline.name, "tables": [each.to_json() for each in found]})
    elif found:
        render.print_plain(line for each in found for line in _lines(each))
    else:
        text = f"No table of pipeline {pipeline.name} has a rule for slices; {config} may give one as tables.<name>."
        render.print_plain([f"{text}partitions, for example {EXAMPLE}"])
    return ExitCode.OK


def partitions_of(pipeline: Pipeline, schema: TableSchema, *, plan: bool = False) -> Partitions:
    """The slices of a table, or why there are none."""
    table, choices = schema.id, pipeline.config.choices
    rule = choices.rule(table)
    if rule is None:
        todo = f"Add tables.{table}.partitions to the config, for example {EXAMPLE}"
        return Partitions(table, None, problem="its config has no rule for slices", todo=todo)
    if choices.partitions(schema) is None:
        told = next((told for told in choices.unmatched([schema]) if "partitions" in told), "its rule does not fit it")
        return Partitions(table, rule, problem=told, todo="Correct the rule in the config")
    slices = pipeline.plan_slices(table) if plan else pipeline.slices(table)
    if not slices:
        todo = f"Run: etl-dagster partitions {shlex.quote(str(table))} --plan"
        return Partitions(table, rule, problem="its ranges are not planned yet", todo=todo)
    column = next(column for column in schema.columns if column.name == rule.column)
    return Partitions(table, rule, slices, of_texts=column.type.oid in TEXT_TYPES)


def _asked(pipeline: Pipeline, known: Sequence[TableId], names: Sequence[str]) -> list[TableId]:
    if names:
        return sorted({table for name in names for table in matching_tables(pipeline.name, name, known)})
    return sorted(table for table in known if pipeline.config.choices.rule(table) is not None)


def _lines(found: Partitions) -> Iterator[str]:
    yield str(found)
    rows = [("KEY", "FROM", "TO")]
    for each in found.slices:
        lower = "(no bound, and NULL)" if each.nulls else each.lower or ""
        rows.append((each.name, lower, "(no bound)" if each.upper is None else each.upper))
    widths = [max(len(row[place]) for row in rows) for place in (0, 1)]
    if found.slices:
        yield from (f"  {key.ljust(widths[0])}   {lower.ljust(widths[1])}   {upper}" for key, lower, upper in rows)
    yield ""


def _nearest(key: str, found: Partitions) -> str:
    """The keys around the one that does not exist; those of texts are values of rows, which no error repeats."""
    names = [each.name for each in found.slices]
    count = f"It has {len(names):,} slices" if len(names) > 1 else "It has one slice"
    listed = f"All: etl-dagster partitions {shlex.quote(str(found.table))}"
    if found.of_texts:
        return f"{count}. {listed}"
    place = 1 + bisect_left([_sortable(name) for name in names[1:]], _sortable(key))
    nearest = " and ".join(names[place - 1 : place + 1])
    return f"{count}, {names[0]} to {names[-1]}; nearest: {nearest}. {listed}"


def _sortable(name: str) -> tuple[int, str]:
    found = _RANGE.fullmatch(name)
    return (int(found["number"]), "") if found else (0, name)
