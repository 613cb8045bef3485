"""Changes written down by hand, for tests: Python values in, the engine's columnar form out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from etl_dagster.arrow.types import arrow_schema
from etl_dagster.model import (
    ChangeKind,
    ChangeSet,
    Column,
    CopyTarget,
    EventBatch,
    Landing,
    Lsn,
    PgType,
    RawChanges,
    Route,
    TableEvents,
    TableId,
    TableSchema,
)

INT8 = PgType(oid=20, name="bigint")
TEXT = PgType(oid=25, name="text")
# The commit time of the transaction at LSN n is this many microseconds after 1970 per unit.
TICK = 1_000_000

Values = Sequence[object]


class Unchanged:
    """The type of `UNCHANGED`."""

    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED = Unchanged()


@dataclass(frozen=True, slots=True)
class Insert:
    """A new row."""

    lsn: int
    row: Values


@dataclass(frozen=True, slots=True)
class Update:
    """A row as it is now, with `UNCHANGED` for values that were not sent.

    ``old`` is the former key of a row that moved; without a key, the former row.
    """

    lsn: int
    row: Values
    old: Values | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """The key of a row that is gone; without a key, the row."""

    lsn: int
    key: Values


@dataclass(frozen=True, slots=True)
class Truncate:
    """All rows are gone, as a changelog has it."""

    lsn: int


Op = Insert | Update | Delete | Truncate


def make_table(
    name: str = "orders",
    *,
    schema: str = "shop",
    columns: Mapping[str, PgType] | None = None,
    key: Sequence[str] = ("id",),
    landing: Landing = Landing.MIRROR,
) -> TableSchema:
    """A table schema; by default (id bigint, name text, body text)."""
    types = columns or {"id": INT8, "name": TEXT, "body": TEXT}
    made = [
        Column(attnum=i + 1, name=each, type=type_, key_ordinal=key.index(each) if each in key else None)
        for i, (each, type_) in enumerate(types.items())
    ]
    return TableSchema(id=TableId(schema, name), oid=16384, columns=tuple(made), natts=len(made), landing=landing)


def altered(
    table: TableSchema,
    *,
    drop: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    add: Mapping[str, PgType | tuple[PgType, str]] | None = None,
) -> TableSchema:
    """The schema after columns were dropped, then renamed (all at once), then added.

    Args:
        add: Types of the new columns, with the text of the value that older rows have, if they have one.
    """
    names = rename or {}
    kept = [column for column in table.columns if column.name not in drop]
    columns = [column.model_copy(update={"name": names.get(column.name, column.name)}) for column in kept]
    natts = table.natts
    for name, what in (add or {}).items():
        type_, missing = what if isinstance(what, tuple) else (what, None)
        natts += 1
        columns.append(Column(attnum=natts, name=name, type=type_, missing=missing))
    return table.model_copy(update={"columns": tuple(columns), "natts": natts})


def rows_batch(table: TableSchema, rows: Sequence[Values]) -> pa.RecordBatch:
    """Rows by the table's Arrow schema."""
    schema = arrow_schema(table)
    columns = [_array([row[i] for row in rows], field.type) for i, field in enumerate(schema)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _array(values: list[object], type_: pa.DataType) -> pa.Array:
    # Arrow makes no list of an extension type out of Python values, not even out of None.
    return pa.array(values, type_) if any(value is not None for value in values) else pa.nulls(len(values), type_)


def change_set(table: TableSchema, ops: Sequence[Op]) -> ChangeSet:
    """Ops in commit order, as columns; ordinals count within each LSN, which is the id of the transaction too."""
    rows = [_row(table, op) for op in ops]
    known = [[None if value is UNCHANGED else value for value in row] for row in rows]
    unchanged = {i: np.array([row[i] is UNCHANGED for row in rows]) for i in range(len(table.columns))}
    moved = np.array([isinstance(op, Update) and op.old is not None for op in ops], np.bool_)
    lsns = [op.lsn for op in ops]
    return ChangeSet(
        table=table,
        rows=rows_batch(table, known),
        kind=np.array([_KINDS[type(op)] for op in ops], np.int8),
        lsn=np.array(lsns, np.uint64),
        ordinal=np.array([lsns[:i].count(lsn) for i, lsn in enumerate(lsns)], np.int64),
        timestamp=np.array(lsns, np.int64) * TICK,
        unchanged={i: mask for i, mask in unchanged.items() if mask.any()},
        moved=moved if moved.any() else None,
        old_keys=_old_keys(table, ops) if moved.any() else None,
        xid=np.array(lsns, np.uint32),
    )


_KINDS: dict[type[Op], ChangeKind] = {
    Insert: ChangeKind.INSERT,
    Update: ChangeKind.UPDATE,
    Delete: ChangeKind.DELETE,
    Truncate: ChangeKind.TRUNCATE,
}


def _row(table: TableSchema, op: Op) -> list[object]:
    if isinstance(op, Insert | Update):
        return list(op.row)
    row: list[object] = [None] * len(table.columns)
    if isinstance(op, Delete):
        for index, value in zip(table.identity_indexes, op.key, strict=True):
            row[index] = value
    return row


def _old_keys(table: TableSchema, ops: Sequence[Op]) -> pa.RecordBatch:
    schema = arrow_schema(table)
    old = [op.old if isinstance(op, Update) else None for op in ops]
    arrays = [
        _array([None if key is None else key[i] for key in old], schema.field(index).type)
        for i, index in enumerate(table.identity_indexes)
    ]
    return pa.RecordBatch.from_arrays(arrays, names=[table.columns[index].name for index in table.identity_indexes])


def story(*parts: tuple[TableSchema, Sequence[Op]]) -> TableEvents:
    """Events of one table whose schema changes on the way."""
    return TableEvents(parts[-1][0], tuple(change_set(table, ops) for table, ops in parts if ops))


def events(table: TableSchema, *ops: Op, truncated_at: int | None = None) -> TableEvents:
    """Events of one table within one piece."""
    changes = (change_set(table, ops),) if ops else ()
    if truncated_at is None:
        return TableEvents(table, changes)
    return TableEvents(table, changes, Lsn(truncated_at), truncated_at * TICK)


def raw_changes(*messages: tuple[int, bytes, bytes | None]) -> RawChanges:
    """Messages of a quarantined table: LSN, message, its twin in text."""
    lsns = [lsn for lsn, _, _ in messages]
    return RawChanges(
        lsn=np.array(lsns, np.uint64),
        ordinal=np.array([lsns[:i].count(lsn) for i, lsn in enumerate(lsns)], np.int64),
        timestamp=np.array(lsns, np.int64) * TICK,
        xid=np.array(lsns, np.uint32),
        message=pa.array([message for _, message, _ in messages], pa.binary()),
        text=pa.array([text for _, _, text in messages], pa.binary()),
    )


def make_batch(
    position: int, pieces: Iterable[Sequence[TableEvents]], routes: Mapping[TableSchema, Route] | None = None
) -> EventBatch:
    """A batch; without routes, every table it names goes to its live table."""
    kept = [list(piece) for piece in pieces]
    by_id = {each.table.id: Route() for piece in kept for each in piece}
    if routes is not None:
        by_id = {table.id: route for table, route in routes.items()}
    return EventBatch(iter(kept), lambda: Lsn(position), by_id)


def failing_batch(position: int, pieces: Iterable[Sequence[TableEvents]], error: Callable[[], Exception]) -> EventBatch:
    """A batch whose source fails after the last piece."""
    kept = [list(piece) for piece in pieces]

    def pull() -> Iterator[Sequence[TableEvents]]:
        yield from kept
        raise error()

    return EventBatch(pull(), lambda: Lsn(position), {each.table.id: Route() for piece in kept for each in piece})


def to_log(copy: CopyTarget, *, live: bool = False) -> dict[TableSchema, Route]:
    """Routes that send a table's changes to the log of a copy."""
    return {copy.table: Route(live=live, log=copy)}
