"""The end of a copy of slices: its staged rows go into the live table.

It costs what the slices hold, not what the table holds: rows of the slices are found through DuckDB's minima and maxima
of row groups, and rows of other slices are only looked for when a staged row has no live one in its slices. Rows that
are right already are left alone, for rows that are written again move to the end of the table, which takes the sense
out of those minima and maxima. Finding them costs about as much as writing them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import pyarrow as pa

from etl_dagster.arrow.changes import lsn_number
from etl_dagster.arrow.types import arrow_schema, arrow_type, column_type
from etl_dagster.destinations.admission import require_sliceable, slice_column, table_not_live
from etl_dagster.destinations.duckdb.client import Client, Session
from etl_dagster.destinations.duckdb.encoding import decode, duckdb_type, quoted
from etl_dagster.destinations.duckdb.finish import Undecided
from etl_dagster.destinations.duckdb.ledger import Ledger, live_name, log_name, staging_name
from etl_dagster.destinations.duckdb.live import LiveTable
from etl_dagster.destinations.duckdb.merge import bound_key_names, key_match, key_names, missing_values, value_name
from etl_dagster.model import (
    CDC_COLUMNS,
    CHANGE_TYPE_COLUMN,
    LSN_COLUMN,
    ZERO_LSN,
    ChangeType,
    Column,
    CopyTarget,
    Landing,
    Lsn,
    Slice,
    TableSchema,
)
from etl_dagster.model.slices import merge_slices

_INSIDE = "temp.etl_inside"
_LOGGED = "temp.etl_logged"
_LOST = "temp.etl_lost"
_SETTLED = "temp.etl_settled"
_NEW = "temp.etl_new"
# A scan for each range reads what the range holds, and costs something itself; more ranges share scans.
_MOST_SCANS = 64
# Beyond so many ranges, to test every row for all of them costs more than to do without.
_MOST_TESTED = 16
# Zeros of both signs are equal for DuckDB, and so, among intervals, are a month and 30 days.
_FLOATS = ("FLOAT", "DOUBLE")

_Range = tuple[str | None, str | None]


class SliceFinish:
    """Brings one copy of slices into the live table, within a transaction of the caller's."""

    def __init__(self, session: Session, client: Client, target: CopyTarget) -> None:
        self._session = session
        self._client = client
        self._target = target
        self._ledger = Ledger(session)

    def run(self, position: Lsn) -> int:
        """Merge the staged rows; returns how many there are.

        Raises:
            Undecided: Rows of the slices are neither staged nor in the log.
        """
        require_sliceable(self._target.table)
        copy = self._ledger.copy(self._target)
        if copy.finished_rows is not None:
            return copy.finished_rows
        live, rows = self._follow(), 0
        if not copy.truncated:
            rows, rereads = self._ledger.staged_rows(copy.copy_id)
            self._client.make_room(len(live.columns))
            _SliceMerge(self._session, live, self._target, rereads).run(position)
        self._session.run(f"DROP TABLE {staging_name(self._target)}")
        self._ledger.finish_copy(copy.copy_id, rows)
        return rows

    def _follow(self) -> TableSchema:
        """The schema of the live table, with the columns of the copy."""
        table = self._target.table
        if self._ledger.watermark(table.id) is None:
            raise table_not_live(table.id)
        live = LiveTable(self._session, self._ledger, ZERO_LSN, 0).follow(table)
        require_sliceable(live)
        return live


class _SliceMerge:
    """Staged rows on their way into the live table ``l``; ``s`` are the staged ones, under the live table's names.

    Temporary tables have the key in columns ``k0 k1 …``.

    Args:
        rereads: How many chunks hold keys that were read again.
    """

    def __init__(self, session: Session, live: TableSchema, target: CopyTarget, rereads: int) -> None:
        self._session = session
        self._table = live
        self._target = target
        self._rereads = rereads
        self._live = live_name(live.id)
        self._deletes = live.landing is Landing.MIRROR
        before = {column.attnum for column in target.table.columns}
        self._missing = [column for column in live.columns if column.attnum not in before]
        self._staged = self._staged_rows()
        self._ranges = _Ranges(target.slices, slice_column(live, target.slices))

    def run(self, position: Lsn) -> None:
        with self._session.bound(etl_rows=missing_values(self._missing)) if self._missing else nullcontext():
            self._find()
            if not self._rereads:
                self._require_decided()
            self._settle()
            staged = f"{self._staged} AS s ANTI JOIN {_SETTLED} AS k ON {self._same_key('s', 'k')}"
            new = self._create(_NEW, f"SELECT {self._key('s')} FROM {staged}")
            self._remove(position)
            if new:
                self._insert()
        for name in (_INSIDE, _LOGGED, _LOST, _SETTLED, _NEW):
            self._session.run(f"DROP TABLE {name}")

    @property
    def _columns(self) -> list[str]:
        return [quoted(name) for name in [*(column.name for column in self._table.columns), *CDC_COLUMNS]]

    def _staged_rows(self) -> str:
        staged = {column.attnum: f"c.{quoted(column.name)}" for column in self._target.table.columns}
        values = [staged.get(column.attnum, f"m.{value_name(column)}") for column in self._table.columns]
        values += [f"c.{quoted(name)}" for name in CDC_COLUMNS]
        chosen = ", ".join(f"{value} AS {name}" for value, name in zip(values, self._columns, strict=True))
        source = f"{staging_name(self._target)} AS c{' CROSS JOIN etl_rows AS m' if self._missing else ''}"
        if (
            self._rereads
        ):  # what the source takes for one key may be two here, and stand in a chunk too: the last has it
            last = f"PARTITION BY {', '.join(map(quoted, key_names(self._table)))} ORDER BY {quoted(LSN_COLUMN)} DESC"
            return f"(SELECT {chosen} FROM {source} QUALIFY row_number() OVER ({last}) = 1)"
        return f"(SELECT {chosen} FROM {source})"

    def _key(self, alias: str) -> str:
        pairs = zip(key_names(self._table), bound_key_names(self._table), strict=True)
        return ", ".join(f"{alias}.{quoted(name)} AS {bound}" for name, bound in pairs)

    def _same_key(self, rows: str, keys: str) -> str:
        """That live or staged rows have the key of a temporary table's."""
        return key_match(rows, key_names(self._table), keys, bound_key_names(self._table))

    def _inside(self, columns: str) -> str:
        """The live rows of the slices."""
        scans = self._ranges.scans("l")
        return " UNION ALL ".join(f"SELECT {columns} FROM {self._live} AS l WHERE {scan}" for scan in scans)

    def _find(self) -> None:
        """Keys of the log, of the live rows of the slices, and of those that the source seems not to have."""
        bound, indexes = bound_key_names(self._table), self._target.table.key_indexes
        own = ", ".join(f"c{index} AS {name}" for index, name in zip(indexes, bound, strict=True))
        old = ", ".join(f"o{i}" for i in range(len(bound)))
        log = log_name(self._target.copy_id)
        self._create(_LOGGED, f"SELECT {own} FROM {log} UNION SELECT {old} FROM {log} WHERE moved")
        deleted = f"l.{quoted(CHANGE_TYPE_COLUMN)} = '{ChangeType.DELETE.value}' AS deleted"
        self._create(_INSIDE, self._inside(f"{self._key('l')}, {deleted}"))
        self._create(
            _LOST,
            f"SELECT DISTINCT i.* EXCLUDE (deleted) FROM {_INSIDE} AS i"
            f" ANTI JOIN {self._staged} AS s ON {self._same_key('s', 'i')}"
            f" ANTI JOIN {_LOGGED} AS k ON {key_match('i', bound, 'k', bound)} WHERE NOT i.deleted",
        )

    def _create(self, name: str, query: str) -> int:
        return self._session.run(f"CREATE OR REPLACE TEMP TABLE {name.removeprefix('temp.')} AS {query}")

    def _require_decided(self) -> None:
        table = self._target.table
        fields = [arrow_schema(table).field(index) for index in table.key_indexes]
        found = [decode(batch, pa.schema(fields)) for batch in self._session.reader(f"SELECT * FROM {_LOST}")]
        if any(map(len, found)):
            raise Undecided(pa.Table.from_batches(found))

    def _settle(self) -> None:
        """Keys whose live rows are to stay: those in the log, and those whose rows are as they were staged."""
        bound = bound_key_names(self._table)
        keys = ", ".join(bound)
        equal = " AND ".join(map(_equal, self._table.columns))
        same = (
            f"SELECT {self._key('l')} FROM ({self._inside('l.*')}) AS l JOIN {self._staged} AS s"
            f" ON {key_match('l', key_names(self._table), 's', key_names(self._table))}"
            f" WHERE l.{quoted(CHANGE_TYPE_COLUMN)} <> '{ChangeType.DELETE.value}' AND {equal}"
        )
        # Nothing keeps others from inserting a row twice.
        twice = f"SELECT {keys} FROM {_INSIDE} GROUP BY {keys} HAVING count(*) > 1"
        once = f"SELECT e.* FROM ({same}) AS e ANTI JOIN ({twice}) AS t ON {key_match('e', bound, 't', bound)}"
        self._create(_SETTLED, f"SELECT * FROM {_LOGGED} UNION ALL {once}")

    def _remove(self, position: Lsn) -> None:
        """Delete the live rows that staged ones replace, and those that are lost, or mark these as deleted."""
        gone = f"SELECT * FROM {_NEW}"
        if self._deletes:
            gone = f"{gone} UNION ALL SELECT * FROM {_LOST}"
        else:
            self._mark(position)
        self._session.run(
            f"DELETE FROM {self._live} AS l USING ({gone}) AS g WHERE {self._same_key('l', 'g')}{self._narrowed()}"
        )

    def _narrowed(self) -> str:
        """That only rows of the slices are to be deleted, where that can be said and saves the search of the others."""
        if not self._ranges.few:
            return ""
        bound = bound_key_names(self._table)
        elsewhere = f"FROM {_NEW} AS n ANTI JOIN {_INSIDE} AS i ON {key_match('n', bound, 'i', bound)}"
        found = self._session.rows(f"SELECT count(*) {elsewhere}")[0][0]
        if not found and self._rereads:
            moved = f"FROM {self._staged} AS s WHERE {self._ranges.test('s')} IS NOT TRUE"
            found = self._session.rows(f"SELECT count(*) {moved}")[0][0]
        return "" if found else f" AND {self._ranges.test('l')}"

    def _insert(self) -> None:
        columns = ", ".join(self._columns)
        rows = f"SELECT {columns} FROM {self._staged} AS s SEMI JOIN {_NEW} AS k ON {self._same_key('s', 'k')}"
        self._session.run(f"INSERT INTO {self._live} ({columns}) {rows}")

    def _mark(self, position: Lsn) -> None:
        type_, lsn = quoted(CHANGE_TYPE_COLUMN), quoted(LSN_COLUMN)
        self._session.run(
            f"UPDATE {self._live} AS l SET {type_} = ?, {lsn} = ? FROM {_LOST} AS g"
            f" WHERE {self._same_key('l', 'g')} AND l.{type_} <> ?",
            [ChangeType.DELETE.value, lsn_number(position), ChangeType.DELETE.value],
        )


class _Ranges:
    """What lies in the slices, as SQL conditions; adjacent slices are one range."""

    def __init__(self, slices: Sequence[Slice], column: Column) -> None:
        self._name = quoted(column.name)
        self._type = duckdb_type(arrow_type(column.type))
        self._lands_as_text = arrow_type(column.type) != column_type(column)
        self._nulls = any(each.nulls for each in slices)
        self._ranges: list[_Range] = [(each.lower, each.upper) for each in merge_slices(slices)]

    @property
    def few(self) -> bool:
        """Whether to test a row for all of them costs little."""
        return len(self._ranges) <= _MOST_TESTED

    def test(self, alias: str) -> str:
        """The condition that a row lies in the slices."""
        return f"({' OR '.join(self.scans(alias))})"

    def scans(self, alias: str) -> list[str]:
        """Conditions that exclude each other and make up the slices; each for a scan that leaves row groups out."""
        value = f"{alias}.{self._name}"
        if self._lands_as_text:
            value = f"TRY_CAST({value} AS {self._type})"
        share = max(1, -(-len(self._ranges) // _MOST_SCANS))
        parts = [self._ranges[i : i + share] for i in range(0, len(self._ranges), share)]
        found = [self._within(value, part) for part in parts] + [f"{value} IS NULL"] * self._nulls
        return found or ["false"]

    def _within(self, value: str, ranges: Sequence[_Range]) -> str:
        found = [f"({self._between(value, *each)})" for each in ranges]
        if len(found) == 1:
            return found[0]
        # DuckDB makes nothing of the minimum and maximum of a row group where conditions are alternatives.
        return f"({self._around(value, ranges)} AND ({' OR '.join(found)}))"

    def _around(self, value: str, ranges: Sequence[_Range]) -> str:
        lower = [self._literal(low) for low, _ in ranges if low is not None]
        upper = [self._literal(high) for _, high in ranges if high is not None]
        above = [f"{value} >= least({', '.join(lower)})"] if len(lower) == len(ranges) else []
        below = [f"{value} < greatest({', '.join(upper)})"] if len(upper) == len(ranges) else []
        return " AND ".join([*above, *below, f"{value} IS NOT NULL"])

    def _between(self, value: str, lower: str | None, upper: str | None) -> str:
        low = [] if lower is None else [f"{value} >= {self._literal(lower)}"]
        high = [] if upper is None else [f"{value} < {self._literal(upper)}"]
        return " AND ".join([*low, *high]) or f"{value} IS NOT NULL"

    def _literal(self, bound: str) -> str:
        text = bound.replace("'", "''")
        return f"'{text}'::{self._type}"


def _equal(column: Column) -> str:
    """That a live and a staged row have the same value in a column, to the last bit."""
    one, other = f"l.{quoted(column.name)}", f"s.{quoted(column.name)}"
    type_ = duckdb_type(column_type(column))
    signs = ""
    if type_ in _FLOATS:
        signs = f" AND signbit({one}) IS NOT DISTINCT FROM signbit({other})"
    elif type_.removesuffix("[]") in {*_FLOATS, "INTERVAL"}:
        one, other = f"{one}::VARCHAR", f"{other}::VARCHAR"
    return f"{one} IS NOT DISTINCT FROM {other}{signs}"
