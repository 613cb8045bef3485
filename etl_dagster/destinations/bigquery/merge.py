"""One set-based merge of a table's changes, as SQL.

Rows wait in a heap, columns named by attnum so that a later part may come under a later schema: ``c<attnum>`` are the
values, ``_kind _lsn _ts`` the CDC columns, ``_gone`` says that no row stands at the key in the end, ``_piece`` orders
rows of one key. Where values have to be found elsewhere there are also ``_row``, ``_open``, ``m<attnum>`` (this value
is missing), ``s<i>`` (key under which the row stood before), ``_origin``, ``_optional`` and ``_fresh``, as in
`Unresolved`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.arrow.changes import cdc_columns
from etl_dagster.arrow.compaction import Compacted, Unresolved
from etl_dagster.arrow.fixed import array_of, mask_of
from etl_dagster.destinations.bigquery.config import BigQueryConfig
from etl_dagster.destinations.bigquery.naming import Names, quoted
from etl_dagster.destinations.bigquery.stage import Heap, Stage
from etl_dagster.destinations.bigquery.state import require
from etl_dagster.destinations.bigquery.types import CDC_TYPES, NativeType, native_type, plain_type
from etl_dagster.model import CDC_COLUMNS, ChangeKind, Column, TableSchema

CDC_ALIASES = ("_kind", "_lsn", "_ts")
BOOL, INT64 = plain_type(pa.bool_()), plain_type(pa.int64())


@dataclass(frozen=True, slots=True)
class Place:
    """A table that rows of a schema go into.

    Attributes:
        ref: Its SQL name.
        converted: Its columns have their native types; otherwise those that they are staged in.
        others: Names of columns that the schema does not have, which become null with every row that is written.
    """

    ref: str
    table: TableSchema
    names: Names
    config: BigQueryConfig
    converted: bool = True
    others: tuple[str, ...] = ()

    def type(self, column: Column) -> NativeType:
        return native_type(column, self.config)

    def name(self, column: Column) -> str:
        """SQL name of one of its columns."""
        return quoted(self.names.column(column.name))

    def now(self, column: Column) -> Column:
        """A column of an earlier schema as this table has it."""
        return next(each for each in self.table.columns if each.attnum == column.attnum)

    @property
    def cdc(self) -> list[str]:
        return [quoted(self.names.column(name)) for name in CDC_COLUMNS]

    @property
    def columns(self) -> list[str]:
        """SQL names of what every row brings."""
        return [*map(self.name, self.table.columns), *self.cdc]

    def value(self, column: Column, staged: str) -> str:
        """A staged value as this table has it."""
        return self.type(column).from_staged(staged) if self.converted else staged

    def null(self, column: Column) -> str:
        type_ = self.type(column)
        return type_.null if self.converted else type_.staged_null

    def key_of(self, alias: str) -> list[str]:
        """Expressions that are equal for rows of equal keys."""
        return [self.type(column).comparable(f"{alias}.{self.name(column)}") for column in self.table.key]

    def staged_key_of(self, alias: str) -> list[str]:
        """The same for rows of a heap."""
        return [self.type(column).comparable(f"{alias}.{value_name(column)}") for column in self.table.key]

    def source_key_of(self, alias: str) -> list[str]:
        """The same for the keys that rows of a heap had before."""
        return [self.type(column).comparable(f"{alias}.s{i}") for i, column in enumerate(self.table.key)]


def value_name(column: Column) -> str:
    """What a column is called in data on its way."""
    return f"c{column.attnum}"


def equal(left: Sequence[str], right: Sequence[str]) -> str:
    """SQL condition that two keys are equal."""
    return " AND ".join(f"{one} = {other}" for one, other in zip(left, right, strict=True))


class Bounds:
    """Least and greatest value of each key column, as literals; a scan leaves out blocks and partitions beyond them."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns
        self._found: list[list[pa.Scalar]] = [[] for _ in columns]

    def include(self, keys: pa.Table) -> None:
        """Take more keys into account, column by column."""
        for values, found in zip(keys.columns, self._found, strict=True):
            if _is_orderly(values.type):
                bounds = pc.min_max(values)
                some = [*found, *(bound for bound in (bounds["min"], bounds["max"]) if bound.is_valid)]
                found[:] = [min(some, key=_number), max(some, key=_number)] if some else []

    def condition(self, place: Place, alias: str) -> str:
        """That a row of the place lies within them; empty when nothing is known."""
        return "".join(
            f" AND {alias}.{place.name(place.now(column))} BETWEEN {_literal(found[0])} AND {_literal(found[1])}"
            for column, found in zip(self._columns, self._found, strict=True)
            if found
        )


def _is_orderly(type_: pa.DataType) -> bool:
    return bool(pa.types.is_signed_integer(type_) or pa.types.is_date32(type_) or pa.types.is_timestamp(type_))


def _number(value: pa.Scalar) -> int:
    return int(value.value if hasattr(value, "value") else value.as_py())


def _literal(value: pa.Scalar) -> str:
    if pa.types.is_date32(value.type):
        return f"DATE_FROM_UNIX_DATE({value.value})"
    if pa.types.is_timestamp(value.type):
        moment = f"TIMESTAMP_MICROS({value.value})"
        return moment if value.type.tz else f"DATETIME({moment})"
    return str(value.as_py())


@dataclass
class Part:
    """Changes under one schema that one merge brings in."""

    table: TableSchema
    heap: Heap
    bounds: Bounds
    pieces: int = 0
    open: Unresolved | None = None
    keys: pa.Table | None = None

    @classmethod
    def begin(cls, stage: Stage, table: TableSchema, config: BigQueryConfig, *, open_: Unresolved | None) -> Part:
        columns = [(value_name(column), native_type(column, config)) for column in table.columns]
        cdc = [(alias, CDC_TYPES[name]) for alias, name in zip(CDC_ALIASES, CDC_COLUMNS, strict=True)]
        fields = [*columns, *cdc, ("_gone", BOOL), ("_piece", INT64)]
        if open_ is not None:
            fields += [("_row", INT64), ("_open", BOOL), ("_origin", INT64), ("_optional", BOOL), ("_fresh", BOOL)]
            fields += [(f"m{table.columns[i].attnum}", BOOL) for i in open_.columns]
            fields += [(f"s{i}", native_type(column, config)) for i, column in enumerate(table.key)]
        return cls(table, stage.heap(fields, str(table.id)), Bounds(table.key), open=open_)

    def goes_on_with(self, changes: Compacted) -> bool:
        """Whether the next piece may be part of it: missing values are looked for in the place as it is before."""
        return self.open is None and changes.unresolved is None

    def add(self, changes: Compacted) -> None:
        """Append a piece, which has to come under the part's schema."""
        upserts, deletes = len(changes.upserts), len(changes.deletes)
        gone = pa.concat_arrays([_repeated(False, upserts), _repeated(True, deletes)])
        columns = _values(changes)
        columns += [*_cdc(changes), gone, array_of(np.full(upserts + deletes, self.pieces))]
        if self.open is not None:
            columns += _open_columns(changes, self.open)
            self.bounds.include(self.open.source_keys)
        self.keys = changes.upserts.select(list(self.table.key_indexes))
        self.heap.add(columns)
        self.pieces += 1
        self.bounds.include(self.keys)
        self.bounds.include(changes.deletes)


def _values(changes: Compacted) -> list[pa.Array | pa.ChunkedArray]:
    """The table's columns: the rows that stand, then the keys that are gone."""
    indexes = changes.table.key_indexes
    size = len(changes.deletes)
    found = []
    for i, column in enumerate(changes.upserts.columns):
        rest = changes.deletes.column(indexes.index(i)) if i in indexes else None
        chunks = rest.cast(column.type).chunks if rest is not None else [pa.nulls(size, column.type)]
        found.append(pa.chunked_array([*column.chunks, *chunks], column.type))
    return found


def _cdc(changes: Compacted) -> list[pa.Array]:
    kind = np.concatenate([changes.kind, np.full(len(changes.deletes), ChangeKind.DELETE, np.int8)])
    lsn = np.concatenate([changes.lsn, changes.delete_lsn])
    ordinal = np.concatenate([changes.ordinal, np.zeros(len(changes.deletes), np.int64)])
    timestamp = np.concatenate([changes.timestamp, changes.delete_timestamp])
    columns = cdc_columns(kind, lsn, ordinal, timestamp)
    return [columns[0].dictionary_decode(), *columns[1:]]


def _open_columns(changes: Compacted, open_: Unresolved) -> list[pa.Array | pa.ChunkedArray]:
    upserts, deletes = len(changes.upserts), len(changes.deletes)
    place = np.full(upserts + deletes, -1)
    place[open_.rows] = np.arange(len(open_.rows))
    isopen = place >= 0
    at = array_of(np.where(isopen, place, 0))
    masks = [mask_of(isopen & mask[np.maximum(place, 0)]) for mask in open_.columns.values()]
    origin = np.where(isopen, open_.origin_lsn.astype(np.int64)[np.maximum(place, 0)], 0)
    optional, fresh = (mask_of(isopen & each[np.maximum(place, 0)]) for each in (open_.optional, open_.fresh))
    sources = [column.take(at) for column in open_.source_keys.columns]
    return [array_of(place), mask_of(isopen), array_of(origin), optional, fresh, *masks, *sources]


def _repeated(value: bool, size: int) -> pa.Array:
    return mask_of(np.full(size, value))


class Merge:
    """SQL that brings one part into one place.

    Args:
        missing: SQL of the value that rows older than a column have in it, by attnum.
        donors: SQL of a relation with ``_row``, ``age`` and ``v<attnum>`` of the part's missing columns, as the place
            has them; of those for one row the one of highest age counts.
    """

    def __init__(self, place: Place, part: Part, missing: dict[int, str], donors: str = "") -> None:
        self._place = place
        self._part = part
        self._missing = missing
        self._donors = donors or (self.live_donors() if part.open is not None else "")

    @property
    def _open(self) -> list[Column]:
        assert self._part.open is not None
        return [self._part.table.columns[i] for i in self._part.open.columns]

    def live_donors(self) -> str:
        """Rows of the place itself, under the keys that they had before."""
        place = self._place
        values = "".join(f", d.{place.name(place.now(column))} AS v{column.attnum}" for column in self._kept())
        match = equal(place.key_of("d"), place.source_key_of("u"))
        narrow = self._part.bounds.condition(place, "d")
        return (
            f"SELECT u._row, 0 AS age{values} FROM {self._part.heap.source} AS u JOIN {place.ref} AS d"
            f" ON {match}{narrow} WHERE u._open AND NOT u._fresh"
        )

    def _kept(self) -> list[Column]:
        """Missing columns that the place still has."""
        now = {column.attnum for column in self._place.table.columns}
        return [column for column in self._open if column.attnum in now]

    def _best_donors(self) -> str:
        return (
            f"SELECT * FROM ({self._donors}) AS d WHERE true"
            " QUALIFY ROW_NUMBER() OVER (PARTITION BY d._row ORDER BY d.age DESC) = 1"
        )

    def undecided(self) -> str:
        """A query for the numbers of rows whose missing values are nowhere to be found."""
        return (
            f"SELECT u._row FROM {self._part.heap.source} AS u LEFT JOIN ({self._best_donors()}) AS d"
            " ON d._row = u._row WHERE u._open AND NOT u._optional AND d._row IS NULL ORDER BY 1"
        )

    def requirement(self) -> str:
        """The statement that fails when there are such rows."""
        return require(f"NOT EXISTS ({self.undecided()})", f"incomplete {self._place.table.id}")

    def _rows(self) -> str:
        """The last row of every key, as the place has it."""
        place, known = self._place, {column.attnum for column in self._part.table.columns}
        chosen = [
            f"{self._value(column) if column.attnum in known else self._absent(column)} AS {value_name(column)}"
            for column in place.table.columns
        ]
        cdc = [f"u.{alias}" for alias in CDC_ALIASES]
        source = f"{self._part.heap.source} AS u"
        if self._part.open is not None:
            source += f" LEFT JOIN ({self._best_donors()}) AS d ON d._row = u._row"
        keys = ", ".join(place.staged_key_of("u"))
        return (
            f"SELECT {', '.join([*chosen, *cdc, 'u._gone'])} FROM {source} WHERE true"
            f" QUALIFY ROW_NUMBER() OVER (PARTITION BY {keys} ORDER BY u._piece DESC, u._gone) = 1"
        )

    def _absent(self, column: Column) -> str:
        return self._missing.get(column.attnum) or self._place.null(column)

    def _value(self, column: Column) -> str:
        brought = self._place.value(column, f"u.{value_name(column)}")
        if self._part.open is None or column.attnum not in {each.attnum for each in self._open}:
            return brought
        return f"IF(u.m{column.attnum}, d.v{column.attnum}, {brought})"

    def merge(self) -> str:
        """One statement for a place that has each key once."""
        place = self._place
        columns, values = place.columns, self._brought("s")
        nulls = [f"{quoted(place.names.column(name))} = NULL" for name in place.others]
        updates = [f"{column} = {value}" for column, value in zip(columns, values, strict=True)] + nulls
        return (
            f"MERGE {place.ref} AS t USING ({self._rows()}) AS s ON {self._match()}"
            " WHEN MATCHED AND s._gone THEN DELETE"
            f" WHEN MATCHED THEN UPDATE SET {', '.join(updates)}"
            f" WHEN NOT MATCHED AND NOT s._gone THEN INSERT ({', '.join(columns)}) VALUES ({', '.join(values)})"
        )

    def replace(self, name: str) -> list[str]:
        """Statements for a place that may have a key more than once; they make a temporary table of this name."""
        place = self._place
        columns, values = ", ".join(place.columns), ", ".join(self._brought("s"))
        return [
            f"CREATE TEMP TABLE {name} AS {self._rows()}",
            f"MERGE {place.ref} AS t USING {name} AS s ON {self._match()} WHEN MATCHED THEN DELETE",
            f"INSERT INTO {place.ref} ({columns}) SELECT {values} FROM {name} AS s WHERE NOT s._gone",
        ]

    def _brought(self, alias: str) -> list[str]:
        names = [*map(value_name, self._place.table.columns), *CDC_ALIASES]
        return [f"{alias}.{name}" for name in names]

    def _match(self) -> str:
        place = self._place
        narrow = self._part.bounds.condition(place, "t")
        return f"{equal(place.key_of('t'), place.staged_key_of('s'))}{narrow}"
