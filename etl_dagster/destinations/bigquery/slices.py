"""The end of a copy of slices: its staged rows go into the live table.

BigQuery bills what it reads of a table, so the live table is only ever looked at through literal conditions on the
column that the slices are cut by, which leave out partitions and blocks; all of it is read, in its key alone, only when
a staged row has no live one in its slices. What lies in the slices is removed and inserted anew, also rows that are
right already: to find out which these are, as much would have to be read as to remove them, while a statement that
removes whole partitions by their column alone need not read them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from uuid import UUID

import pyarrow as pa

from etl_dagster.arrow.changes import lsn_number, missing_value
from etl_dagster.arrow.fixed import mask_of
from etl_dagster.arrow.types import arrow_schema, arrow_type, column_type
from etl_dagster.destinations.admission import require_sliceable, slice_column, table_not_live
from etl_dagster.destinations.bigquery.encoding import decode
from etl_dagster.destinations.bigquery.finish import Undecided
from etl_dagster.destinations.bigquery.live import Context, LiveTable
from etl_dagster.destinations.bigquery.logs import read_changes
from etl_dagster.destinations.bigquery.merge import Place, equal
from etl_dagster.destinations.bigquery.naming import bare, quoted
from etl_dagster.destinations.bigquery.stage import Heap, Stage
from etl_dagster.destinations.bigquery.staging import chunk_key, leftovers, staged_place
from etl_dagster.destinations.bigquery.state import COPY, Change, CopyBody, Entry, TableBody, table_key
from etl_dagster.destinations.bigquery.types import native_type, plain_type
from etl_dagster.model import (
    LSN_COLUMN,
    ZERO_LSN,
    ChangeType,
    Column,
    CopyTarget,
    Landing,
    Lsn,
    Slice,
)
from etl_dagster.model.slices import UUID_TYPE, merge_slices

_DOING = "finish a copy of slices"
_DELETED = f"'{ChangeType.DELETE.value}'"
# A condition of thousands of ranges is too much for BigQuery to plan: beyond these they are looked up in an array.
_MOST_LITERAL = 50
# A longer literal would not narrow a scan by more.
_LONGEST_LITERAL = 200
_BOUNDS = "etl_bounds"

_Range = tuple[str | None, str | None]


class SliceFinish:
    """Brings one copy of slices into the live table."""

    def __init__(self, context: Context, target: CopyTarget) -> None:
        self._context = context
        self._ledger = context.ledger
        self._target = target

    def run(self, position: Lsn) -> int:
        """Returns how many rows were staged, and not read again.

        Raises:
            Undecided: Rows of the slices are neither staged nor in the log.
        """
        require_sliceable(self._target.table)
        copy = self._ledger.copy(self._target)
        if copy.finished_rows is not None:
            return copy.finished_rows
        with Stage(self._context.client, self._ledger, self._context.config) as stage:
            live, rows, change = self._follow(stage), 0, Change()
            if not copy.truncated:
                reread = self._reread_rows(copy)
                staged = self._context.client.rows(bare(self._ledger.staging(copy))) or 0
                rows = staged - (reread or 0)
                merge = _SliceMerge(self._context, stage, self._target, copy, live, rereads=reread is not None)
                change = merge.change(position)
            self._end(change, copy, rows)
        return rows

    def _follow(self, stage: Stage) -> TableBody:
        """Have the live table follow the columns of the copy, as if they had come by the stream."""
        table = self._target.table
        entry = self._ledger.entry(table_key(table.id))
        if entry is None:
            raise table_not_live(table.id)
        live = LiveTable(self._context, stage, table.id, entry.lsn)
        followed = live.follow(table)
        require_sliceable(followed)
        slice_column(followed, self._target.slices)
        body = self._body()
        if body.physical is not None or followed != body.table_schema:
            stage.place(live.heaps())
            self._ledger.commit(live.change(ZERO_LSN), doing=_DOING, table=table.id)
        return self._body()

    def _body(self) -> TableBody:
        body = self._ledger.table(self._target.table.id)
        assert body is not None
        return body

    def _reread_rows(self, copy: CopyBody) -> int | None:
        """How many rows of what is staged were read again; None when no chunk of such rows is staged."""
        found = []
        for chunk_id, rows in copy.rereads.items():
            if not rows:
                found.append(0)
            elif (load := self._context.client.find_load(chunk_key(copy, chunk_id), doing=_DOING)) is not None:
                found.append(load.rows)
        return sum(found) if found else None

    def _end(self, change: Change, copy: CopyBody, rows: int) -> None:
        key = COPY, self._target.copy_id
        done = CopyBody(table=copy.table, token=copy.token, finished_rows=rows)
        entry = self._ledger.entry(key)
        assert entry is not None
        change.state[key] = Entry(entry.lsn, done)
        change.afterwards += leftovers(self._context, copy)
        self._ledger.commit(change, doing=_DOING, table=copy.table)


class _SliceMerge:
    """Staged rows ``c`` on their way into the live table ``l``.

    Relations of keys have columns ``k0 k1 …`` and no others: a column of the source might be called as an alias is.

    Args:
        rereads: Among the staged rows are those of the keys that were undecided.
    """

    def __init__(
        self, context: Context, stage: Stage, target: CopyTarget, copy: CopyBody, live: TableBody, *, rereads: bool
    ) -> None:
        self._context = context
        self._stage = stage
        self._target = target
        self._copy = copy
        self._rereads = rereads
        self._table = live.table_schema
        self._live = Place(context.names.live(copy.table), self._table, context.names, context.config)
        self._staged = staged_place(target.table, copy, context)
        self._column = slice_column(self._table, target.slices)
        self._ranges = Ranges(target.slices, self._column)
        self._logged = self._logged_keys()
        self._missing = list(self._missing_values())
        self._heaps = [*([self._logged] if self._logged else []), *(heap for _, heap in self._missing)]

    def change(self, position: Lsn) -> Change:
        """What a script has to do.

        Raises:
            Undecided: Rows of the slices are neither staged nor in the log.
        """
        self._stage.place(self._heaps)
        if not self._rereads:
            self._require_decided()
        change = Change(statements=[*self._removal(position), self._insertion()], parameters=self._parameters())
        change.afterwards += [heap.leftover for heap in self._heaps if heap.leftover]
        return change

    def _parameters(self) -> dict[str, object]:
        parameters: dict[str, object] = dict(self._ranges.parameters)
        for heap in self._heaps:
            parameters |= heap.parameters
        return parameters

    # -- what is brought ----------------------------------------------------------------------------------------------

    def _logged_keys(self) -> Heap | None:
        """The keys in the log, those that rows moved away from too."""
        if not self._copy.pieces:
            return None
        table, context = self._target.table, self._context
        fields = [(f"k{i}", native_type(column, context.config)) for i, column in enumerate(table.key)]
        heap = self._stage.heap(fields, str(table.id))
        for changes in read_changes(context.client, context.ledger.log(self._copy), table, self._copy.pieces):
            heap.add([changes.rows.column(i) for i in table.key_indexes])
            if changes.moved is not None and changes.old_keys is not None:
                heap.add(changes.old_keys.filter(mask_of(changes.moved)).columns)
        return heap

    def _missing_values(self) -> Iterator[tuple[Column, Heap]]:
        """What staged rows have in columns that came after them."""
        before = {column.attnum for column in self._target.table.columns}
        for column in self._table.columns:
            if column.attnum not in before and column.missing is not None:
                value = missing_value(column)
                if not value.null_count:
                    heap = self._stage.heap([("v", native_type(column, self._context.config))], str(self._table.id))
                    heap.add([value])
                    yield column, heap

    def _values(self) -> list[str]:
        """The columns of the live table, of a staged row."""
        staged = {column.attnum: self._staged.name(column) for column in self._target.table.columns}
        missing = {column.attnum: f"(SELECT u.v FROM {heap.source} AS u)" for column, heap in self._missing}
        found = []
        for column in self._table.columns:
            name = staged.get(column.attnum)
            absent = missing.get(column.attnum, self._live.type(column).staged_null)
            found.append(self._live.value(column, absent if name is None else f"c.{name}"))
        return [*found, *(f"c.{name}" for name in self._staged.cdc)]

    # -- conditions ---------------------------------------------------------------------------------------------------

    def _slice_value(self, place: Place, alias: str) -> str:
        """What the slices are cut by, of a live or a staged row."""
        column = next(each for each in place.table.columns if each.attnum == self._column.attnum)
        value = f"{alias}.{place.name(column)}"
        lands_as_text = column_type(column) != arrow_type(column.type)
        return f"SAFE_CAST({value} AS {self._ranges.type})" if lands_as_text else value

    def _inside(self, place: Place, alias: str) -> str:
        return self._ranges.test(self._slice_value(place, alias))

    def _is_staged(self, key: Sequence[str]) -> str:
        own = ", ".join(f"{value} AS k{i}" for i, value in enumerate(self._staged.key_of("c")))
        return _among(f"(SELECT {own} FROM {self._staged.ref} AS c)", key)

    def _unlogged(self, key: Sequence[str]) -> list[str]:
        """That a key is not in the log; nothing when that is empty."""
        if self._logged is None:
            return []
        types = [self._live.type(column) for column in self._table.key]
        own = ", ".join(f"{type_.comparable(f'u.k{i}')} AS k{i}" for i, type_ in enumerate(types))
        return [f"NOT {_among(f'(SELECT {own} FROM {self._logged.source} AS u)', key)}"]

    def _lost(self) -> str:
        """That the source seems not to have a live row of the slices any more."""
        key = self._live.key_of("l")
        present = [] if self._deletes else [f"l.{self._live.cdc[0]} <> {_DELETED}"]
        return _all([self._inside(self._live, "l"), *present, f"NOT {self._is_staged(key)}", *self._unlogged(key)])

    def _replaced(self, where: str) -> str:
        """That a live row, of those for which a condition holds, gives way to a staged one."""
        key = self._live.key_of("l")
        return _all([where, self._is_staged(key), *self._unlogged(key)])

    @property
    def _deletes(self) -> bool:
        return self._table.landing is Landing.MIRROR

    # -- looking ------------------------------------------------------------------------------------------------------

    def _require_decided(self) -> None:
        place, names = self._live, arrow_schema(self._target.table)
        key = [(column, place.type(column)) for column in self._table.key]
        fields = [names.field(index) for index in self._target.table.key_indexes]
        chosen = ", ".join(
            f"{type_.selected(f'l.{place.name(column)}')} AS c{i}" for i, (column, type_) in enumerate(key)
        )
        query = f"SELECT DISTINCT {chosen} FROM {place.ref} AS l WHERE {self._lost()}"
        found = []
        for batch in self._context.client.read(
            query, doing=_DOING, table=str(self._table.id), parameters=self._parameters()
        ):
            rows = zip(batch.columns, fields, key, strict=True)
            arrays = [decode(values, field.type, type_) for values, field, (_, type_) in rows]
            found.append(pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields)))
        if any(map(len, found)):
            raise Undecided(pa.Table.from_batches(found))

    def _elsewhere(self) -> str:
        """Where rows stand outside of the slices that staged ones are to replace: a condition, empty when nowhere."""
        if not self._ask(self._strangers())[0][0]:
            return ""
        value = self._slice_value(self._live, "l")
        outside = self._replaced(f"{self._inside(self._live, 'l')} IS NOT TRUE")
        ((rows, low, high, nulls),) = self._ask(
            f"SELECT COUNT(*), CAST(MIN({value}) AS STRING), CAST(MAX({value}) AS STRING), COUNTIF({value} IS NULL)"
            f" FROM {self._live.ref} AS l WHERE {outside}"
        )
        return self._ranges.around(value, low, high, nulls=bool(nulls)) if rows else ""

    def _strangers(self) -> str:
        """A query for the number of staged rows whose live ones may stand outside of the slices."""
        key = self._staged.key_of("c")
        outside = f"{self._inside(self._staged, 'c')} IS NOT TRUE"
        count = f"SELECT COUNT(*) FROM {self._staged.ref} AS c"
        if self._column.key_ordinal is not None:  # rows of one key are in one slice
            return f"{count} WHERE {_all([outside, *self._unlogged(key)])}"
        own = ", ".join(f"{value} AS k{i}" for i, value in enumerate(self._live.key_of("l")))
        inside = f"(SELECT DISTINCT {own} FROM {self._live.ref} AS l WHERE {self._inside(self._live, 'l')})"
        match = equal([f"i.k{n}" for n in range(len(key))], key)
        missing = f"(i.k0 IS NULL OR {outside})"
        return f"{count} LEFT JOIN {inside} AS i ON {match} WHERE {_all([missing, *self._unlogged(key)])}"

    def _ask(self, query: str) -> list[tuple[object, ...]]:
        return self._context.client.run(query, doing=_DOING, table=str(self._table.id), parameters=self._parameters())

    # -- changing -----------------------------------------------------------------------------------------------------

    def _removal(self, position: Lsn) -> list[str]:
        """Delete the live rows that staged ones replace, and those that are lost, or mark these as deleted."""
        found, inside, elsewhere = [], self._inside(self._live, "l"), self._elsewhere()
        if self._deletes:
            # A row of the slices that is neither staged nor in the log is lost.
            found.append(self._delete(_all([inside, *self._unlogged(self._live.key_of("l"))])))
        else:
            found += [self._mark(position)] if self._rereads else []
            found.append(self._delete(self._replaced(inside)))
        return [*found, *([self._delete(self._replaced(elsewhere))] if elsewhere else [])]

    def _delete(self, where: str) -> str:
        return f"DELETE FROM {self._live.ref} AS l WHERE {where}"

    def _mark(self, position: Lsn) -> str:
        kind, lsn, _ = self._live.cdc
        update = f"{kind} = {_DELETED}, {lsn} = NUMERIC '{lsn_number(position)}'"
        return f"UPDATE {self._live.ref} AS l SET {update} WHERE {self._lost()}"

    def _insertion(self) -> str:
        key = self._staged.key_of("c")
        where = _all(self._unlogged(key) or ["true"])
        # What the source takes for one key may be two here, and stand in a chunk too: the last has it.
        if self._rereads:
            lsn = quoted(self._context.names.column(LSN_COLUMN))
            where += f" QUALIFY ROW_NUMBER() OVER (PARTITION BY {', '.join(key)} ORDER BY c.{lsn} DESC) = 1"
        columns = ", ".join(self._live.columns)
        return (
            f"INSERT INTO {self._live.ref} ({columns})"
            f" SELECT {', '.join(self._values())} FROM {self._staged.ref} AS c WHERE {where}"
        )


class Ranges:
    """What lies in the slices, as SQL conditions; adjacent slices are one range.

    Attributes:
        type: The type of what they are cut by, as DDL.
        parameters: What the conditions need.
    """

    def __init__(self, slices: Sequence[Slice], column: Column) -> None:
        self.type = plain_type(arrow_type(column.type)).native
        self._isuuid = column.type.oid == UUID_TYPE
        self._nulls = any(each.nulls for each in slices)
        self._ranges = [(self._text(each.lower), self._text(each.upper)) for each in merge_slices(slices)]
        self._bounds = [bound for each in self._ranges for bound in each if bound is not None]
        self._literal = len(self._ranges) <= _MOST_LITERAL and all(map(_is_short, self._bounds))
        self.parameters = {} if self._literal else {_BOUNDS: self._bounds}

    def _text(self, bound: str | None) -> str | None:
        return str(UUID(bound)) if bound is not None and self._isuuid else bound

    def test(self, value: str) -> str:
        """The condition that a value lies in the slices; false or NULL when it does not."""
        spans = [f"({self._between(value, *each)})" for each in (self._ranges if self._literal else self._spans())]
        found = " OR ".join(spans)
        if not self._literal:
            found = f"(({found}) AND {self._lookup(value)})"
        nulls = [f"{value} IS NULL"] if self._nulls else []
        return f"({' OR '.join([*([found] if found else []), *nulls]) or 'false'})"

    def around(self, value: str, low: object, high: object, *, nulls: bool) -> str:
        """A condition that holds for all between two values that were printed, and NULL where it is said."""
        found = [f"{value} IS NULL"] if nulls else []
        if low is not None and high is not None:
            lower, upper = str(low), str(high)
            if not (_is_short(lower) and _is_short(upper)):
                return "true"
            found.append(f"{value} BETWEEN {self._constant(lower)} AND {self._constant(upper)}")
        return f"({' OR '.join(found)})"

    def _spans(self) -> list[_Range]:
        """Few ranges with all of them within, to leave out partitions by."""
        share = -(-len(self._ranges) // _MOST_LITERAL)
        parts = [self._ranges[i : i + share] for i in range(0, len(self._ranges), share)]
        return [(_short(part[0][0]), _short(part[-1][1])) for part in parts]

    def _lookup(self, value: str) -> str:
        """Bounds ascend and are where a range begins or ends, in turn."""
        bounds = f"@{_BOUNDS}"
        if self.type != "STRING":
            cast = f"CAST(b AS {self.type})"
            bounds = f"ARRAY(SELECT {cast} FROM UNNEST({bounds}) AS b WITH OFFSET AS o ORDER BY o)"
        within = 0 if self._ranges[0][0] is None else 1
        return f"MOD(RANGE_BUCKET({value}, {bounds}), 2) = {within}"

    def _between(self, value: str, lower: str | None, upper: str | None) -> str:
        low = [] if lower is None else [f"{value} >= {self._constant(lower)}"]
        high = [] if upper is None else [f"{value} < {self._constant(upper)}"]
        return " AND ".join([*low, *high]) or f"{value} IS NOT NULL"

    def _constant(self, bound: str) -> str:
        if self.type == "INT64":
            return str(int(bound))
        text = json.dumps(bound, ensure_ascii=False)
        return text if self.type == "STRING" else f"{self.type} {text}"


def _is_short(bound: str) -> bool:
    return len(bound) <= _LONGEST_LITERAL


def _short(bound: str | None) -> str | None:
    return bound if bound is None or _is_short(bound) else None


def _among(keys: str, key: Sequence[str]) -> str:
    """That a key is in a relation of keys."""
    return f"EXISTS (SELECT 1 FROM {keys} AS x WHERE {equal([f'x.k{i}' for i in range(len(key))], key)})"


def _all(conditions: Sequence[str]) -> str:
    return " AND ".join(conditions)
