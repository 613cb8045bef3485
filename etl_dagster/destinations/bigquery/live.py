"""One batch on its way into one live table, whose columns follow the source's.

BigQuery alters tables outside of transactions only. New columns are added as often as a batch is tried; renames are
carried out once: the state says which renames are under way, by a job whose id it knows, before they begin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from etl_dagster.arrow.changelog import changelog_rows
from etl_dagster.arrow.changes import adapt, beyond, lsn_number, missing_value
from etl_dagster.arrow.compaction import compact
from etl_dagster.arrow.landing import landed_schema
from etl_dagster.destinations.alteration import alteration, not_followable
from etl_dagster.destinations.bigquery.client import Client
from etl_dagster.destinations.bigquery.config import BigQueryConfig
from etl_dagster.destinations.bigquery.ledger import Ledger
from etl_dagster.destinations.bigquery.merge import CDC_ALIASES, Merge, Part, Place, value_name
from etl_dagster.destinations.bigquery.naming import Names, bare, fold, quoted
from etl_dagster.destinations.bigquery.stage import Heap, Stage
from etl_dagster.destinations.bigquery.state import Change, Entry, TableBody, new_token, table_key
from etl_dagster.destinations.bigquery.types import CDC_TYPES, native_type
from etl_dagster.model import (
    CDC_COLUMNS,
    UNCHANGED_COLUMN,
    ChangeSet,
    ChangeType,
    Column,
    Landing,
    Lsn,
    TableEvents,
    TableId,
    TableSchema,
)

_RENAMING = "rename columns"
_LOG_COLUMNS = (*CDC_COLUMNS, UNCHANGED_COLUMN)
_LOG_ALIASES = (*CDC_ALIASES, "_unchanged")


@dataclass(frozen=True, slots=True)
class Context:
    """What all of the destination's work needs."""

    client: Client
    ledger: Ledger
    names: Names
    config: BigQueryConfig


@dataclass(frozen=True, slots=True)
class _Mark:
    """A truncate of a table that keeps its deleted rows."""

    at: Lsn
    time: int


class LiveTable:
    """Gathers the pieces of one batch for one live table; `change` says what a script has to do."""

    def __init__(self, context: Context, stage: Stage, table: TableId, watermark: Lsn) -> None:
        self._context = context
        self._stage = stage
        self._id = table
        self._watermark = watermark
        body = context.ledger.table(table)
        assert body is not None
        self._body = body
        self._table = body.physical or body.table_schema
        self._announced: TableSchema | None = None
        self._steps: list[Part | _Mark | Heap] = []
        self._truncated = False
        self._appended: TableSchema | None = None
        self._missing: list[tuple[Column, Heap]] = []

    # -- gathering ----------------------------------------------------------------------------------------------------

    def apply(self, events: TableEvents) -> int:
        """Take in what the watermark does not cover; returns the number of changes."""
        changes = beyond(events, self._watermark)
        truncated = events.truncated_at is not None and events.truncated_at >= self._watermark
        if not events.changes and events.truncated_at is None:
            self._announced = events.table
        if not (changes or truncated):
            return 0
        self._announced = None
        self.follow(events.table)
        if truncated and events.truncated_at is not None:
            self._truncate(events.truncated_at, events.truncated_time)
        if changes:
            self._add([adapt(part, self._table) for part in changes])
        return sum(map(len, changes))

    def end(self, position: Lsn) -> None:
        """The batch has been read, up to this position."""
        # Columns that came without changes, maybe right at the watermark; a batch from before it tells of older ones.
        if self._announced is not None and self._watermark <= position:
            self.follow(self._announced)

    def follow(self, table: TableSchema) -> TableSchema:
        """Take later columns into account, unless the stream repeats older ones; returns those that count."""
        if table.natts >= self._table.natts and table != self._table:
            if table.landing is not self._table.landing:
                table = table.model_copy(update={"landing": self._table.landing})
            alteration(self._table, table, [], self._fold)  # raises for what cannot be followed
            self._table = table
        return self._table

    def _fold(self, name: str) -> str:
        return fold(self._context.names.column(name))

    def _truncate(self, at: Lsn, time: int) -> None:
        if self._table.landing is Landing.SOFT_DELETE:
            self._steps.append(_Mark(at, time))
            return
        self._steps.clear()
        self._truncated = True

    def _add(self, changes: Sequence[ChangeSet]) -> None:
        if self._table.landing is Landing.CHANGELOG:
            self._append(changes)
            return
        compacted = compact(changes, tombstones=self._table.landing is Landing.SOFT_DELETE)
        part = self._steps[-1] if self._steps else None
        # Missing values are looked for in the table as earlier parts leave it.
        if not isinstance(part, Part) or part.table != self._table or not part.goes_on_with(compacted):
            part = Part.begin(self._stage, self._table, self._context.config, open_=compacted.unresolved)
            self._steps.append(part)
        part.add(compacted)

    def _append(self, changes: Sequence[ChangeSet]) -> None:
        last = self._steps[-1] if self._steps else None
        if not isinstance(last, Heap) or self._appended != self._table:
            last, self._appended = changelog_heap(self._stage, self._table, self._context.config), self._table
            self._steps.append(last)
        for part in changes:
            last.add(changelog_rows(part).columns)

    # -- bringing in --------------------------------------------------------------------------------------------------

    def heaps(self) -> list[Heap]:
        """What has to be placed before `change`."""
        self._prepare_missing()
        steps = [step.heap if isinstance(step, Part) else step for step in self._steps if not isinstance(step, _Mark)]
        return [*steps, *(heap for _, heap in self._missing)]

    def _prepare_missing(self) -> None:
        """The values that older rows have in columns that they get now."""
        if self._table.landing is Landing.CHANGELOG or self._missing:
            return
        before = {column.attnum for column in self._body.table_schema.columns}
        for column in self._table.columns:
            if column.attnum not in before and column.missing is not None:
                value = missing_value(column)
                if not value.null_count:
                    heap = self._stage.heap([("v", native_type(column, self._context.config))], str(self._id))
                    heap.add([value])
                    self._missing.append((column, heap))

    def change(self, position: Lsn) -> Change:
        """What a script has to do, once the heaps are placed."""
        change = Change()
        body = self._alter(change)
        change.state[table_key(self._id)] = Entry(max(self._watermark, position), body)
        place = Place(self._ref, self._table, self._context.names, self._context.config, others=body.others)
        if self._truncated:
            change.statements.append(f"TRUNCATE TABLE {self._ref}")
        missing = self._fill(change, place)
        for step in self._steps:
            change.statements += self._bring(step, place, missing)
        for heap in self.heaps():
            change.parameters |= heap.parameters
            change.afterwards += [heap.leftover] if heap.leftover else []
        return change

    @property
    def _ref(self) -> str:
        return self._context.names.live(self._id)

    def _bring(self, step: Part | _Mark | Heap, place: Place, missing: dict[int, str]) -> list[str]:
        if isinstance(step, _Mark):
            return [mark_deleted(place, step.at, step.time)]
        if isinstance(step, Heap):
            return [append_changelog(step, place)]
        merge = Merge(place, step, missing)
        return [*([merge.requirement()] if step.open is not None else []), merge.merge()]

    def _fill(self, change: Change, place: Place) -> dict[int, str]:
        """Give rows that are older than a column what they have in it."""
        found = {
            column.attnum: f"(SELECT {place.value(column, 'u.v')} FROM {heap.source} AS u)"
            for column, heap in self._missing
        }
        if found and not self._truncated:
            values = ", ".join(f"{place.name(column)} = {found[column.attnum]}" for column, _ in self._missing)
            change.statements.append(f"UPDATE {place.ref} SET {values} WHERE true")
        return found

    def _alter(self, change: Change) -> TableBody:
        """Have the table altered; returns what is known of it afterwards."""
        if self._body.ddl:
            self._carry_out(self._body)
        physical = self._body.physical or self._body.table_schema
        if self._body.physical is None and self._table == physical:
            return self._body
        steps = alteration(physical, self._table, _existing(physical, self._body.others), self._fold)
        if ddl := self._renaming(steps.renames):
            self._rename(ddl, physical, dict(steps.renames))
        if steps.added:
            change.ddl.append(self._adding(steps.added))
        kept = {column.attnum for column in self._table.columns}
        gone = [column.name for column in (self._body.physical or physical).columns if column.attnum not in kept]
        settled = {"physical": None, "ddl": "", "reclusters": False, "others": (*self._body.others, *gone)}
        return self._body.model_copy(update={**settled, "table_schema": self._table})

    def _rename(self, ddl: str, physical: TableSchema, renames: Mapping[str, str]) -> None:
        """Announce the renames, and carry them out."""
        names, body = self._context.names, self._body
        there = {names.column(old): names.column(new) for old, new in renames.items()}
        if body.partition_column in there:
            raise not_followable(
                self._table, f"is partitioned by {body.partition_column!r}, which has another name now"
            )
        columns = [
            column.model_copy(update={"name": renames.get(column.name, column.name)}) for column in physical.columns
        ]
        announced = body.model_copy(
            update={
                "physical": physical.model_copy(update={"columns": tuple(columns)}),
                "ddl": ddl,
                "token": new_token(),
                "others": tuple(renames.get(name, name) for name in body.others),
                "clustering": tuple(there.get(name, name) for name in body.clustering),
                "reclusters": any(name in there for name in body.clustering),
            }
        )
        announce = Change(state={table_key(self._id): Entry(self._watermark, announced)})
        self._context.ledger.commit(announce, doing=_RENAMING, table=self._id)
        self._carry_out(announced)
        self._body = announced

    def _carry_out(self, body: TableBody) -> None:
        """Rename columns as the state says, unless that has been done; those that a table is clustered by cannot be."""
        client, name, ref = self._context.client, str(self._id), bare(self._ref)
        if body.reclusters:
            client.cluster(ref, [], doing=_RENAMING, table=name)
        client.run(body.ddl, doing=_RENAMING, table=name, job_key=body.token)
        if body.reclusters:
            client.cluster(ref, body.clustering, doing=_RENAMING, table=name)

    def _renaming(self, renames: Sequence[tuple[str, str]]) -> str:
        """One statement for all of them, through other names where they are in each other's way."""
        names = self._context.names
        pairs = [(names.column(old), names.column(new)) for old, new in renames]
        pairs = [(old, new) for old, new in pairs if old != new]
        if {fold(old) for old, _ in pairs} & {fold(new) for _, new in pairs}:
            between = [f"etl_{i}_{new_token()}" for i in range(len(pairs))]
            pairs = [
                *((old, middle) for (old, _), middle in zip(pairs, between, strict=True)),
                *((middle, new) for (_, new), middle in zip(pairs, between, strict=True)),
            ]
        steps = ", ".join(f"RENAME COLUMN {quoted(old)} TO {quoted(new)}" for old, new in pairs)
        return f"ALTER TABLE {self._ref} {steps}" if steps else ""

    def _adding(self, columns: Sequence[Column]) -> str:
        context = self._context
        steps = [
            f"ADD COLUMN IF NOT EXISTS {quoted(context.names.column(column.name))}"
            f" {native_type(column, context.config).native}"
            for column in columns
        ]
        return f"ALTER TABLE {self._ref} {', '.join(steps)}"


def changelog_heap(stage: Stage, table: TableSchema, config: BigQueryConfig) -> Heap:
    """A heap for rows of `changelog_rows`."""
    columns = [(value_name(column), native_type(column, config)) for column in table.columns]
    cdc = [(alias, CDC_TYPES[name]) for alias, name in zip(_LOG_ALIASES, _LOG_COLUMNS, strict=True)]
    return stage.heap([*columns, *cdc], str(table.id))


def append_changelog(heap: Heap, place: Place) -> str:
    """The statement that appends such a heap to a place."""
    known = {name for name, _ in heap.fields}
    brought = [column for column in place.table.columns if value_name(column) in known]
    columns = [*map(place.name, brought), *(quoted(place.names.column(name)) for name in _LOG_COLUMNS)]
    values = [place.value(column, f"u.{value_name(column)}") for column in brought]
    for name, alias in zip(_LOG_COLUMNS, _LOG_ALIASES, strict=True):
        values.append(CDC_TYPES[name].from_staged(f"u.{alias}") if place.converted else f"u.{alias}")
    return f"INSERT INTO {place.ref} ({', '.join(columns)}) SELECT {', '.join(values)} FROM {heap.source} AS u"


def mark_deleted(place: Place, at: Lsn, time: int) -> str:
    """The statement that marks all rows as deleted then (microseconds since 1970)."""
    kind, lsn, timestamp = place.cdc
    delete = f"'{ChangeType.DELETE.value}'"
    return (
        f"UPDATE {place.ref} SET {kind} = {delete}, {lsn} = NUMERIC '{lsn_number(at)}',"
        f" {timestamp} = TIMESTAMP_MICROS({time}) WHERE {kind} <> {delete}"
    )


def _existing(table: TableSchema, others: Sequence[str]) -> list[str]:
    return [*landed_schema(table).names, *others]
