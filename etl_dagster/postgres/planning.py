"""Planning a copy: the parts of a table, or of slices of it, that are read one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from heapq import heappop, heappush
from itertools import count
from math import ceil
from uuid import UUID

from psycopg import sql

from etl_dagster.model import ChunkPlan, Landing, Slice, TableSchema
from etl_dagster.model.slices import INTEGER_TYPES, TEXT_TYPES, TIME_TYPES, UUID_TYPE, merge_slices
from etl_dagster.postgres.explain import Explained, Scan, explain, explain_rows
from etl_dagster.postgres.heaps import Heap, heap_names, read_heaps, rows_of
from etl_dagster.postgres.sessions import Connection, fetch_one
from etl_dagster.postgres.slices import SliceColumn, is_never_null, slice_column

# Halves are as unlike as the values are, so a slice may take more cuts than there would be equal parts.
_CUTS_PER_PART = 2
# Looking up the ends of a slice pays where an index has them at hand; anything else reads the slice.
_LOOK_UP_SHARE = 0.1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Years 1 to 9999; values beyond are in the outermost parts all the same.
_FIRST, _LAST = Decimal(-62_135_596_800), Decimal(253_402_300_799)
_DAY_SECONDS = 86_400
_DATE, _TIMESTAMPTZ = 1082, 1184


def plan_chunks(
    connection: Connection, table: TableSchema, chunk_bytes: int, slices: Sequence[Slice] = (), most: int = 0
) -> list[ChunkPlan]:
    """Parts that together cover the table or the slices of it, largest first.

    A table that lands as a changelog is one part, read as a whole under one snapshot: which changes are in a row that
    was copied is then known exactly.

    Args:
        most: No more parts than this, which are larger then, or of several small relations; 0 for any number.
    """
    heaps = read_heaps(connection, table)
    total = sum(heap.bytes for heap in heaps)
    if table.landing is Landing.CHANGELOG:
        return [ChunkPlan(table.oid, 0, 0, None, round(sum(h.rows for h in heaps)), total)]
    size = chunk_bytes if not most else max(chunk_bytes, _size_for(most, total, heaps))
    plans = _plan(connection, table, heaps, size, slices)
    if most:
        plans = _packed(plans, size)
    if most and len(plans) > most:  # so many slices that to find each by itself takes more parts than the heaps have
        plans = _packed(_plan(connection, table, heaps, size, slices, by_index=False), size, mixed=True)
    return sorted(plans, key=lambda plan: plan.bytes, reverse=True)


def _plan(
    connection: Connection,
    table: TableSchema,
    heaps: Sequence[Heap],
    chunk_bytes: int,
    slices: Sequence[Slice],
    *,
    by_index: bool = True,
) -> list[ChunkPlan]:
    if slices:
        return _plan_slices(connection, table, heaps, chunk_bytes, slices, by_index=by_index)
    return [plan for heap in heaps for plan in _block_ranges(heap, chunk_bytes, heap.rows)]


def _size_for(most: int, total: int, heaps: Sequence[Heap]) -> int:
    """Bytes of a part so large that no more than ``most`` come of all heaps.

    A heap is cut at blocks, so a part may be smaller by one, and its last part may be of any size. With few heaps, that
    is one part for each; with many, of two that are packed together one after the other more than one is filled.
    """
    block = max((heap.bytes // max(1, heap.blocks) for heap in heaps), default=0)
    packed = 2 * total // max(1, most - 1)
    size = min(packed, total // (most - len(heaps))) if len(heaps) < most else packed
    return size + block + 1


def _packed(plans: Sequence[ChunkPlan], chunk_bytes: int, *, mixed: bool = False) -> list[ChunkPlan]:
    """The same, with whole heaps that are small put together; which file each had matters only to ranges of blocks.

    Args:
        mixed: Also heaps that hold rows of different slices; each is asked for all of them then.
    """
    apart = [plan for plan in plans if plan.first_block or plan.last_block is not None]
    whole = [plan for plan in plans if not (plan.first_block or plan.last_block is not None)]
    bins: dict[tuple[Slice, ...], ChunkPlan] = {}
    for plan in sorted(whole, key=lambda plan: plan.bytes):
        kind = () if mixed else plan.slices
        held = bins.get(kind)
        fits = held is not None and held.bytes + plan.bytes <= chunk_bytes
        if held is not None and not fits:
            apart.append(held)
        bins[kind] = _joined(held, plan) if held is not None and fits else plan
    return [*apart, *bins.values()]


def _joined(one: ChunkPlan, other: ChunkPlan) -> ChunkPlan:
    return replace(
        one,
        filenode=0,
        rows=one.rows + other.rows,
        bytes=one.bytes + other.bytes,
        slices=one.slices if one.slices == other.slices else tuple(merge_slices([*one.slices, *other.slices])),
        more=(*one.more, other.relation),
    )


def _block_ranges(heap: Heap, chunk_bytes: int, rows: float, slices: Sequence[Slice] = ()) -> Iterator[ChunkPlan]:
    per_block = max(1, heap.bytes // max(1, heap.blocks))
    step = max(1, chunk_bytes // per_block)
    starts = range(0, max(1, heap.blocks), step)
    for first in starts:
        last = first + step if first != starts[-1] else None
        blocks = min(step, heap.blocks - first)
        expected = round(rows * blocks / max(1, heap.blocks))
        yield ChunkPlan(heap.relation, heap.filenode, first, last, expected, blocks * per_block, slices=tuple(slices))


def _plan_slices(
    connection: Connection,
    table: TableSchema,
    heaps: Sequence[Heap],
    chunk_bytes: int,
    slices: Sequence[Slice],
    *,
    by_index: bool,
) -> list[ChunkPlan]:
    with connection.transaction():
        # A chunk is read by one process, and the planner has to reckon with no more.
        connection.execute("SET LOCAL max_parallel_workers_per_gather = 0")
        merged = merge_slices(_valued(connection, table, slices))
        planner = _SlicePlanner(connection, table, chunk_bytes, merged, by_index=by_index)
        names = heap_names(connection, heaps)
        plans = [plan for heap in heaps if heap.relation in names for plan in planner.plan(heap, names[heap.relation])]
    # Where no partition can hold a row of the slices: rows that come later are in the stream.
    return plans or [ChunkPlan(table.oid, 0, 0, None, 0, slices=tuple(planner.slices))]


def _valued(connection: Connection, table: TableSchema, slices: Sequence[Slice]) -> list[Slice]:
    """The slices, without the rows that have no value where there can be none, since to look for them costs."""
    attnums = {part.attnum for part in slices if part.nulls}
    needed = {attnum for attnum in attnums if is_never_null(connection, table, attnum)}
    return [part.model_copy(update={"nulls": part.nulls and part.attnum not in needed}) for part in slices]


@dataclass(frozen=True, slots=True)
class _Part:
    """Part of a slice, the places of its least and greatest value, and the rows expected in it."""

    slice: Slice
    least: int
    greatest: int
    rows: int


class _SlicePlanner:
    """Plans the heaps of one table; what is read block by block is read once, whatever the number of slices."""

    def __init__(
        self,
        connection: Connection,
        table: TableSchema,
        chunk_bytes: int,
        slices: Sequence[Slice],
        *,
        by_index: bool,
    ) -> None:
        self.slices = slices
        self._by_index = by_index
        self._connection = connection
        self._table = table
        self._chunk_bytes = chunk_bytes
        self._columns = {
            attnum: SliceColumn(connection, table, slice_column(table, attnum))
            for attnum in {part.attnum for part in slices}
        }
        source = rows_of(connection, table, table.oid)
        self._all = _by_heap(explain_rows(connection, source, sql.SQL("true")))
        self._wanted = [
            _by_heap(explain_rows(connection, source, self._columns[part.attnum].within(part))) for part in slices
        ]

    def plan(self, heap: Heap, name: tuple[str, str]) -> Iterator[ChunkPlan]:
        """The parts of one heap; none where it cannot hold a row of the slices."""
        reads = [(part, scans[name]) for part, scans in zip(self.slices, self._wanted, strict=True) if name in scans]
        if not reads:
            return
        if self._by_index and name in self._all and _is_read_by_index([scan for _, scan in reads], self._all[name]):
            cutter = _Cutter(self._connection, self._columns, heap, self._all[name], self._chunk_bytes)
            for part, scan in reads:
                yield from cutter.cut(part, scan)
        else:
            rows = sum(scan.rows for _, scan in reads)
            yield from _block_ranges(heap, self._chunk_bytes, rows, [part for part, _ in reads])


def _is_read_by_index(scans: Sequence[Scan], everything: Scan) -> bool:
    return all(scan.by_index for scan in scans) and sum(scan.cost for scan in scans) < everything.cost


class _Cutter:
    """Cuts slices that one heap's index finds into parts of not too many rows."""

    def __init__(
        self,
        connection: Connection,
        columns: Mapping[int, SliceColumn],
        heap: Heap,
        everything: Scan,
        chunk_bytes: int,
    ) -> None:
        self._connection = connection
        self._columns = columns
        self._heap = heap
        self._source = sql.SQL("ONLY {}").format(sql.Identifier(everything.schema, everything.name))
        self._rows = max(1, everything.rows)
        self._chunk_bytes = chunk_bytes

    def cut(self, part: Slice, scan: Scan) -> Iterator[ChunkPlan]:
        """The parts of one slice."""
        pieces = [(part, scan.rows)]
        if self._bytes(scan.rows) > self._chunk_bytes and (ends := self._ends(part, scan)) is not None:
            # Rows without a value cannot be cut; they go with the first piece.
            valued = part.model_copy(update={"nulls": False})
            rows = self._expected(valued) if part.nulls else scan.rows
            pieces = [
                (piece.model_copy(update={"nulls": part.nulls}), expected + scan.rows - rows)
                if piece.lower == part.lower
                else (piece, expected)
                for piece, expected in self._halves(_Part(valued, *ends, rows))
            ]
        for piece, expected in pieces:
            yield ChunkPlan(self._heap.relation, 0, 0, None, expected, self._bytes(expected), slices=(piece,))

    def _halves(self, whole: _Part) -> list[tuple[Slice, int]]:
        """Cut the largest part in two until none is too large; the planner knows how the values are distributed."""
        order = count()  # parts of as many rows are not compared
        most = _CUTS_PER_PART * ceil(self._bytes(whole.rows) / self._chunk_bytes)
        parts = [(-whole.rows, next(order), whole)]
        done: list[_Part] = []
        while parts:
            _, _, part = heappop(parts)
            is_small = self._bytes(part.rows) <= self._chunk_bytes or part.least >= part.greatest
            if is_small or len(parts) + len(done) + 1 >= most:
                done.append(part)
                continue
            for half in self._halve(part):
                heappush(parts, (-half.rows, next(order), half))
        return [(part.slice, part.rows) for part in done]

    def _halve(self, part: _Part) -> Iterator[_Part]:
        middle = (part.least + part.greatest) // 2 + 1
        bound = _text(middle, self._columns[part.slice.attnum].oid)
        left = part.slice.model_copy(update={"upper": bound})
        right = part.slice.model_copy(update={"lower": bound})
        for half, least, greatest in ((left, part.least, middle - 1), (right, middle, part.greatest)):
            yield _Part(half, least, greatest, self._expected(half))

    def _expected(self, part: Slice) -> int:
        wanted = self._columns[part.attnum].within(part)
        return sum(scan.rows for scan in explain_rows(self._connection, self._source, wanted).scans)

    def _bytes(self, rows: int) -> int:
        return round(self._heap.bytes * min(1.0, rows / self._rows))

    def _ends(self, part: Slice, scan: Scan) -> tuple[int, int] | None:
        """Places of the least and the greatest value of a slice; None where it cannot be cut sensibly."""
        column = self._columns[part.attnum]
        if column.oid in TEXT_TYPES:
            return None
        query = _ends_query(self._source, column, part)
        if explain(self._connection, query).cost > scan.cost * _LOOK_UP_SHARE:
            if part.lower is None or part.upper is None:
                return None
            query = _places(column.oid, column.literal(part.lower), column.literal(part.upper))
        least, greatest = fetch_one(self._connection, query.as_bytes(self._connection))
        return None if least is None or greatest is None else (_place(least, column.oid), _place(greatest, column.oid))


def _ends_query(source: sql.Composable, column: SliceColumn, part: Slice) -> sql.Composable:
    wanted = column.within(part.model_copy(update={"nulls": False}))
    if column.oid in TIME_TYPES:
        wanted = sql.SQL("{} AND {} > {} AND {} < {}").format(
            wanted, column.value, column.literal("-infinity"), column.value, column.literal("infinity")
        )
    # Not every version has min() and max() of all types.
    ends = (
        sql.SQL("(SELECT {0} FROM {1} AS t WHERE {2} ORDER BY {0} {3} LIMIT 1)").format(
            column.value, source, wanted, sql.SQL(direction)
        )
        for direction in ("ASC", "DESC")
    )
    return _places(column.oid, *ends)


def _places(oid: int, *values: sql.Composable) -> sql.Composable:
    """A query for what `_place` makes numbers of."""
    place = sql.SQL("extract(epoch FROM {})" if oid in TIME_TYPES else "{}")
    return sql.SQL("SELECT {}").format(sql.SQL(", ").join(map(place.format, values)))


def _place(value: int | UUID | Decimal, oid: int) -> int:
    """A number that grows with the value: of a time its microseconds, of a date its days."""
    if isinstance(value, UUID):
        return value.int
    if oid not in TIME_TYPES:
        return int(value)
    seconds = max(_FIRST, min(_LAST, value))
    return int(seconds) // _DAY_SECONDS if oid == _DATE else int(seconds * 1_000_000)


def _text(place: int, oid: int) -> str:
    """The value of a place."""
    if oid == UUID_TYPE:
        return str(UUID(int=place))
    if oid in INTEGER_TYPES:
        return str(place)
    if oid == _DATE:
        return (_EPOCH + timedelta(days=place)).date().isoformat()
    moment = _EPOCH + timedelta(microseconds=place)
    return (moment if oid == _TIMESTAMPTZ else moment.replace(tzinfo=None)).isoformat(" ")


def _by_heap(explained: Explained) -> dict[tuple[str, str], Scan]:
    return {(scan.schema, scan.name): scan for scan in explained.scans}
