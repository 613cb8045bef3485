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
_SAMPLES_PER_RANGE = 100
_LEAST_SAMPLES, _MOST_SAMPLES = 10_000, 100_000
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
    values = _Values(connection, table, column)
    if after is not None and (found := values.walk(after, rows)) is not None:
        return found
    share, thinned = _sample_size(heaps, rows)
    sample = values.sample(after, share, thinned)
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
    read = expected * share
    samples = min(_MOST_SAMPLES, max(_LEAST_SAMPLES, ranges * _SAMPLES_PER_RANGE))
    return share * 100, 1.0 if read <= _MOST_SAMPLES else samples / read


class _Values:
    """The values of one column, in order."""

    def __init__(self, connection: Connection, table: TableSchema, column: Column) -> None:
        self._connection = connection
        self._source = rows_of(connection, table, table.oid)
        self._column = SliceColumn(connection, table, column)

    def sample(self, after: str | None, percent: float, thinned: float) -> list[str | None]:
        """Texts of some values, of rows without one too."""
        texts = sql.SQL("left({}, {})" if self._column.oid in TEXT_TYPES else "{}::text").format(
            self._column.value, sql.Literal(_TEXT_LENGTH)
        )
        query = sql.SQL(
            "SELECT {} FROM {} AS t TABLESAMPLE SYSTEM ({}) WHERE random() < {} AND {} ORDER BY {} NULLS FIRST"
        ).format(
            texts, self._source, sql.Literal(percent), sql.Literal(thinned), self._condition(after), self._column.value
        )
        return [row[0] for row in self._connection.execute(query)]

    def walk(self, after: str, rows: int) -> list[str] | None:
        """Bounds behind a given one, counted through an index; None where none serves, or there is too much."""
        if self._column.oid in TEXT_TYPES or not self._is_ordered(after):
            return None
        bounds: list[str] = []
        while (len(bounds) + 1) * rows <= _MOST_WALKED:
            bound = self._skip(after, rows)
            # A range is not worth a bound before half of it is there.
            if bound is None or self._skip(bound, rows // 2) is None:
                return bounds
            bounds.append(bound)
            after = bound
        return None

    def _is_ordered(self, after: str) -> bool:
        plan = explain(self._connection, self._behind(after, 0))
        return not plan.sorts and all(scan.by_index for scan in plan.scans)

    def _skip(self, after: str, rows: int) -> str | None:
        found = self._connection.execute(self._behind(after, rows)).fetchone()
        return None if found is None else str(found[0])

    def _behind(self, after: str, rows: int) -> sql.Composed:
        return sql.SQL("SELECT {0} FROM {1} AS t WHERE {2} ORDER BY {0} OFFSET {3} LIMIT 1").format(
            self._column.value, self._source, self._condition(after), sql.Literal(rows)
        )

    def _condition(self, after: str | None) -> sql.Composable:
        if after is None:
            return sql.SQL("true")
        return sql.SQL("{} > {}").format(self._column.value, self._column.literal(after))


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
