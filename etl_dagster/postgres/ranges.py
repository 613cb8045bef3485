"""Planning ranges of a key: bounds between which a table has about as many rows each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from math import ceil

from psycopg import sql

from etl_dagster.model import Column, TableSchema
from etl_dagster.model.slices import MAX_SLICES, TEXT_TYPES
from etl_dagster.postgres.explain import explain
from etl_dagster.postgres.heaps import Heap, read_heaps, rows_of
from etl_dagster.postgres.sessions import Connection
from etl_dagster.postgres.slices import SliceColumn

# Rows of one block are often neighbours in the key, so it is the number of blocks that makes a sample true.
_BLOCKS_PER_RANGE = 100
_LEAST_BLOCKS, _MOST_BLOCKS = 1000, 20_000
_MOST_SAMPLES = 100_000
# Rows in a block of a table that nobody has measured yet: rather too many than more of them than can be held.
_UNKNOWN_DENSITY = 200.0
# Texts that agree in so many characters are not told apart: a bound is a name, too.
_TEXT_LENGTH = 200
# Rows behind the last bound that are counted one by one; of more a sample is as good.
_MOST_WALKED = 5_000_000


def plan_ranges(
    connection: Connection, table: TableSchema, column: Column, rows: int, after: str | None = None
) -> list[str]:
    """See `etl_dagster.replication.ports.Source.plan_ranges`."""
    heaps = read_heaps(connection, table)
    if not any(heap.blocks for heap in heaps):
        return []
    asked = _Asked(connection, table, column, after)
    if after is not None and (found := asked.walk(rows)) is not None:
        return found
    share, thinned = _sample_size(heaps, rows)
    sample = asked.sample(share, thinned)
    read = share / 100 * thinned
    total = len(sample) / read
    if after is None and all(heap.density for heap in heaps if heap.blocks):
        total = max(1.0, sum(heap.rows for heap in heaps))
    # In sampled rows, of which there may by chance be more or fewer than the share of all that was read.
    step = max(rows, total / MAX_SLICES) * len(sample) / max(1.0, total)
    return list(_bounds(sample, step, separate=column.type.oid in TEXT_TYPES))[: MAX_SLICES - 1]


def _sample_size(heaps: Sequence[Heap], rows: int) -> tuple[float, float]:
    """Per cent of the blocks to read, and which share of their rows to take."""
    blocks = sum(heap.blocks for heap in heaps)
    expected = sum(heap.rows or heap.blocks * _UNKNOWN_DENSITY for heap in heaps)
    ranges = min(MAX_SLICES, ceil(expected / rows))
    wanted = min(_MOST_BLOCKS, max(_LEAST_BLOCKS, ranges * _BLOCKS_PER_RANGE))
    share = min(1.0, wanted / blocks)
    return share * 100, min(1.0, _MOST_SAMPLES / (expected * share))


class _Asked:
    """The values of one column, all or those behind a bound, in order."""

    def __init__(self, connection: Connection, table: TableSchema, column: Column, after: str | None) -> None:
        self._connection = connection
        self._source = rows_of(connection, table, table.oid)
        self._column = SliceColumn(connection, table, column)
        self._after = after

    def sample(self, percent: float, thinned: float) -> list[str | None]:
        """Texts of some values, of rows without one too."""
        texts = sql.SQL("left({}, {})" if self._column.oid in TEXT_TYPES else "{}::text").format(
            self._column.value, sql.Literal(_TEXT_LENGTH)
        )
        query = sql.SQL(
            "SELECT {} FROM {} AS t TABLESAMPLE SYSTEM ({}) WHERE random() < {} AND {} ORDER BY {} NULLS FIRST"
        ).format(texts, self._source, sql.Literal(percent), sql.Literal(thinned), self._condition(), self._column.value)
        return [row[0] for row in self._connection.execute(query)]

    def walk(self, rows: int) -> list[str] | None:
        """Bounds behind the given one, counted through an index; None where none serves, or there is too much."""
        if self._column.oid in TEXT_TYPES:
            return None
        limit = sql.Literal(_MOST_WALKED)
        values = sql.SQL("SELECT {0} AS v FROM {1} AS t WHERE {2} ORDER BY {0} LIMIT {3}").format(
            self._column.value, self._source, self._condition(), limit
        )
        plan = explain(self._connection, values)
        if plan.sorts or not all(scan.by_index for scan in plan.scans):
            return None
        # A bound before every range, and where its half is: the last range is not cut for less than that.
        counted = sql.SQL(
            "SELECT v::text, (n - 1) % {0} = 0, n FROM (SELECT v, row_number() OVER (ORDER BY v) AS n FROM ({1}) _) _"
            " WHERE n > 1 AND (n - 1) % {0} IN (0, {2}) OR n = {3} ORDER BY n"
        ).format(sql.Literal(rows), values, sql.Literal(rows // 2), limit)
        return _walked(self._connection.execute(counted).fetchall())

    def _condition(self) -> sql.Composable:
        if self._after is None:
            return sql.SQL("true")
        return sql.SQL("{} > {}").format(self._column.value, self._column.literal(self._after))


def _walked(found: Sequence[tuple[str, bool, int]]) -> list[str] | None:
    if found and found[-1][2] >= _MOST_WALKED:
        return None
    # The last one is a bound only if half a range lies behind it.
    return list(dict.fromkeys(text for text, begins, _ in found[:-1] if begins))


def _bounds(sample: Iterable[str | None], step: float, *, separate: bool) -> Iterator[str]:
    """Where to cut an ordered sample so that each range has at least ``step`` of it, and the last one half of that."""
    groups = [(value, sum(1 for _ in group)) for value, group in groupby(sample)]
    left = sum(number for _, number in groups)
    taken = 0
    for (before, number), (value, _) in pairwise(groups):
        taken += number
        left -= number
        if taken >= step and left >= step / 2 and value is not None:
            yield _shortest(before or "", value) if separate else value
            taken = 0


def _shortest(before: str, value: str) -> str:
    """The shortest beginning of a text that is greater than another text before it."""
    pairs = enumerate(zip(before, value, strict=False))
    alike = next((place for place, (left, right) in pairs if left != right), len(before))
    return value[: alike + 1]
