"""Reduce changes of one table to the last state of each key, without a loop over rows.

A change that alters the key is two events: its row leaves the old key, then arrives at the new one. Of all events of
one key the last decides whether a row stands there and which.

Keys are compared by representation (``1.0`` and ``1.00`` are two keys), not by the source's equality. Finer is always
right: Postgres sends the old key whenever its bytes change, so an update from ``1.0`` to ``1.00`` comes as a move.
It asks one thing of a destination: delete first, insert afterwards, since it may hold the two for equal.

An update leaves out TOASTed values that it did not change. They are taken from the row's earlier changes, followed
through its keys; what stands in none of them stays *unresolved*, to be taken from the row that the destination holds.
An insert may leave them out too, when an update brings the row into a row filter. No earlier change of its key is
about that row, nor is what the destination holds: such a row is *fresh*.

Where deleted rows are kept, one that leaves its key stays there as a tombstone: an update to kind DELETE that changes
no value. So its values are found as unchanged ones are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.arrow.fixed import array_of, mask_of
from etl_dagster.arrow.taking import taking
from etl_dagster.model import ChangeKind, ChangeSet, TableSchema

# How many slots per change a direct lookup table may have before hashing the keys is cheaper.
_DENSE_FACTOR = 4
_MAX_CODE = 1 << 62

_Ints = npt.NDArray[np.int64]
_Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Unresolved:
    """Rows with values that no change of the batch holds.

    Attributes:
        rows: Positions of these rows within `Compacted.upserts`; the other attributes are aligned with it.
        columns: For each column (by position) with unresolved values, the mask of rows that miss it.
        source_keys: The key under which the row stood before the batch: its own, if it never moved.
        origin_lsn: Commit of the change that brought the row to its present key, 0 when it always stood there.
        optional: Mask of tombstones, whose values may stay null when they are found nowhere.
        fresh: Mask of rows that an insert brought; no row from before the batch can give their values, only one that
            was read at the source after ``origin_lsn``.
    """

    rows: _Ints
    columns: Mapping[int, _Bools]
    source_keys: pa.Table
    origin_lsn: npt.NDArray[np.uint64]
    optional: _Bools
    fresh: _Bools


@dataclass(frozen=True, slots=True)
class Compacted:
    """The last state of each key that the changes touch.

    Attributes:
        upserts: Rows that stand at their key in the end, the table's columns, one row per key; and the tombstones, if
            they were asked for.
        kind: `ChangeKind` of the last change of each of them, like ``lsn``, ``ordinal`` and ``timestamp``; DELETE for
            tombstones.
        deletes: Keys (in key order) at which no row stands in the end, with the change that emptied them.
    """

    table: TableSchema
    upserts: pa.Table
    kind: npt.NDArray[np.int8]
    lsn: npt.NDArray[np.uint64]
    ordinal: _Ints
    timestamp: _Ints
    deletes: pa.Table
    delete_lsn: npt.NDArray[np.uint64]
    delete_timestamp: _Ints
    unresolved: Unresolved | None = None


def compact(changes: Sequence[ChangeSet], *, tombstones: bool = False) -> Compacted:
    """Reduce change sets of one table and one schema, in commit order, to the last state of each key.

    Args:
        tombstones: Keys that no row stands at in the end are among the upserts instead of the deletes, with the values
            that their row had.
    """
    return _Compaction(changes).result(tombstones)


class _Compaction:
    """Events are numbered: first all changes, as arrivals at their key, then the departures of those that moved."""

    def __init__(self, changes: Sequence[ChangeSet]) -> None:
        self.table = changes[0].table
        self.rows = pa.Table.from_batches([part.rows for part in changes])
        self.size = len(self.rows)
        self.kind = np.concatenate([part.kind for part in changes])
        self.lsn = np.concatenate([part.lsn for part in changes])
        self.ordinal = np.concatenate([part.ordinal for part in changes])
        self.timestamp = np.concatenate([part.timestamp for part in changes])
        self.unchanged = _join_unchanged(changes)
        self.moved = _join_moved(changes)
        self.moves = np.flatnonzero(self.moved)
        self.change_of = np.concatenate([np.arange(self.size), self.moves])
        self.keys = self._all_keys(changes)

    def _all_keys(self, changes: Sequence[ChangeSet]) -> pa.Table:
        """The key of each event."""
        own = self.rows.select(list(self.table.key_indexes))
        old = [
            part.old_keys.filter(mask_of(part.moved))
            for part in changes
            if part.old_keys is not None and part.moved is not None
        ]
        if not old:
            return own
        moved = pa.Table.from_batches(old).rename_columns(own.column_names).cast(own.schema)
        return pa.concat_tables([own, moved])

    def result(self, tombstones: bool) -> Compacted:
        codes, count = key_codes(self.keys)
        stands, gone = self._last_events(codes, count)
        if tombstones:
            stands, gone = np.concatenate([stands, gone]), gone[:0]
            # In time a row departs from its old key before it arrives at the new one.
            stands = stands[np.lexsort((stands < self.size, self.change_of[stands]))]
        return self._collect(stands, gone, codes)

    def _last_events(self, codes: _Ints, count: int) -> tuple[_Ints, _Ints]:
        """The last events of all keys: those that leave a row there, in order, and those that leave none."""
        own, old = codes[: self.size], codes[self.size :]
        last = _last_by_code(own, count, np.arange(self.size))
        left = _last_by_code(old, count, np.arange(self.size, self.size + len(old)))
        left_at = np.append(self.change_of, -1)[left]
        final = last[(last >= 0) & (last >= left_at)]
        deleted = self.kind[final] == ChangeKind.DELETE
        return np.sort(final[~deleted]), np.concatenate([final[deleted], left[(left >= 0) & (left_at > last)]])

    def _collect(self, stands: _Ints, gone: _Ints, codes: _Ints) -> Compacted:
        buried = self._buried()[stands]
        upserts, unresolved = self._pick(stands), None
        if self.unchanged or buried.any():
            upserts, unresolved = self._resolve(upserts, stands, buried, self._earlier(codes))
        at, gone_at = self.change_of[stands], self.change_of[gone]
        return Compacted(
            table=self.table,
            upserts=upserts,
            kind=np.where(buried, np.int8(ChangeKind.DELETE), self.kind[at]),
            lsn=self.lsn[at],
            ordinal=self.ordinal[at],
            timestamp=self.timestamp[at],
            deletes=self.keys.take(array_of(gone)),
            delete_lsn=self.lsn[gone_at],
            delete_timestamp=self.timestamp[gone_at],
            unresolved=unresolved,
        )

    def _buried(self) -> _Bools:
        """The events after which no row stands at their key."""
        return np.concatenate([self.kind == ChangeKind.DELETE, np.ones(len(self.moves), np.bool_)])

    def _pick(self, stands: _Ints) -> pa.Table:
        if (stands >= self.size).any():
            return self.rows.take(array_of(self.change_of[stands]))
        if len(stands) == self.size:
            return self.rows
        mask = np.zeros(self.size, np.bool_)
        mask[stands] = True
        return self.rows.filter(mask_of(mask))

    def _resolve(
        self, upserts: pa.Table, stands: _Ints, buried: _Bools, earlier: _Ints
    ) -> tuple[pa.Table, Unresolved | None]:
        missing: dict[int, _Bools] = {}
        places: dict[int | None, tuple[pa.Array, _Bools]] = {}
        for column in self._open_columns(buried):
            # Columns that every update brings have one mask in common.
            mask_of_column = column if column in self.unchanged else None
            if mask_of_column not in places:
                places[mask_of_column] = self._places(column, stands, earlier)
            source, unknown = places[mask_of_column]
            upserts = upserts.set_column(column, upserts.field(column), self.rows.column(column).take(source))
            if unknown.any():
                missing[column] = unknown
        if (stands >= self.size).any():
            for nth, column in enumerate(self.table.key_indexes):
                own = self.keys.column(nth).take(array_of(stands))
                upserts = upserts.set_column(column, upserts.field(column), own)
        return upserts, self._unresolved(missing, stands, buried, earlier) if missing else None

    def _places(self, column: int, stands: _Ints, earlier: _Ints) -> tuple[pa.Array, _Bools]:
        """Which changes have the values of a column, and where none has."""
        mask = self._left_out(column)
        source = _follow(earlier, mask)[stands]
        return taking(self.change_of[source], ~mask[source]), mask[source]

    def _open_columns(self, buried: _Bools) -> list[int]:
        """The columns that have values to be taken from earlier changes."""
        if not buried.any():
            return list(self.unchanged)
        return [column for column in range(len(self.table.columns)) if column not in self.table.key_indexes]

    def _left_out(self, column: int) -> _Bools:
        """The events that do not bring a value for the column; tombstones bring none."""
        mask = self._buried()
        if column in self.unchanged:
            mask[: self.size] |= self.unchanged[column]
        return mask

    def _unresolved(self, missing: Mapping[int, _Bools], stands: _Ints, buried: _Bools, earlier: _Ints) -> Unresolved:
        rows = np.flatnonzero(np.logical_or.reduce(list(missing.values())))
        first = _follow(earlier, np.ones(len(earlier), np.bool_))[stands[rows]]
        inserted = self.kind == ChangeKind.INSERT
        arrives = np.concatenate([self.moved | inserted, np.zeros(len(self.moves), np.bool_)])
        arrival = _follow(earlier, ~arrives)[stands[rows]]
        return Unresolved(
            rows=rows,
            columns={column: mask[rows] for column, mask in missing.items()},
            source_keys=self.keys.take(array_of(first)),
            origin_lsn=np.where(arrives[arrival], self.lsn[self.change_of[arrival]], np.uint64(0)),
            optional=buried[rows],
            fresh=inserted[self.change_of[first]],
        )

    def _earlier(self, codes: _Ints) -> _Ints:
        """For each event the one before it of the same row, whatever key it had then; -1 when there is none."""
        events = np.arange(len(codes))
        order = np.lexsort((self.change_of * 2 + (events < self.size), codes))
        before = np.full(len(codes), -1)
        same = codes[order][1:] == codes[order][:-1]
        before[order[1:][same]] = order[:-1][same]
        before[: self.size][self.kind == ChangeKind.INSERT] = -1
        earlier = np.where((before >= 0) & ~self._buried()[before], before, -1)
        earlier[self.moves] = events[self.size :]
        return earlier


def _join_unchanged(changes: Sequence[ChangeSet]) -> dict[int, _Bools]:
    columns = sorted({column for part in changes for column in part.unchanged})
    return {
        column: np.concatenate([part.unchanged.get(column, np.zeros(len(part), np.bool_)) for part in changes])
        for column in columns
    }


def _join_moved(changes: Sequence[ChangeSet]) -> _Bools:
    return np.concatenate([np.zeros(len(part), np.bool_) if part.moved is None else part.moved for part in changes])


def _last_by_code(codes: _Ints, count: int, positions: _Ints) -> _Ints:
    last = np.full(count, -1)
    last[codes] = positions  # of repeated indexes numpy keeps the last assignment
    return last


def _follow(earlier: _Ints, onward: _Bools) -> _Ints:
    """Where each change ends up when it steps to the earlier one as long as ``onward`` says so; by pointer doubling."""
    step = np.where(onward & (earlier >= 0), earlier, np.arange(len(earlier)))
    while True:
        further = step[step]
        if np.array_equal(further, step):
            return step
        step = further


def key_codes(keys: pa.Table) -> tuple[_Ints, int]:
    """A number for each row, equal for equal keys, and a bound above all numbers."""
    codes, count = _column_codes(keys.column(0))
    for column in keys.columns[1:]:
        more, width = _column_codes(column)
        if count * width > _MAX_CODE:
            codes, count = _densify(codes)
        codes, count = codes * width + more, count * width
    return (codes, count) if count <= _DENSE_FACTOR * len(codes) + 1024 else _densify(codes)


def _densify(codes: _Ints) -> tuple[_Ints, int]:
    found, dense = np.unique(codes, return_inverse=True)
    return dense.astype(np.int64), len(found)


def _column_codes(column: pa.ChunkedArray) -> tuple[_Ints, int]:
    values = column.combine_chunks()
    values = pa.concat_arrays(values.chunks) if isinstance(values, pa.ChunkedArray) else values
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if pa.types.is_integer(values.type) and len(values) and not values.null_count:
        numbers = values.to_numpy().astype(np.int64, copy=False)
        low, width = int(numbers.min()), int(numbers.max()) - int(numbers.min()) + 1
        if width <= _DENSE_FACTOR * len(numbers) + 1024:
            return numbers - low, width
    if pa.types.is_nested(values.type):
        return _nested_codes(values)
    encoded = values.dictionary_encode(null_encoding="encode")
    return encoded.indices.to_numpy().astype(np.int64), max(len(encoded.dictionary), 1)


def _nested_codes(values: pa.Array) -> tuple[_Ints, int]:
    """Arrow cannot hash lists: here each is the run of the numbers of its elements. They are rare as keys."""
    elements, _ = _column_codes(pa.chunked_array([values.flatten()]))
    ends = np.cumsum(pc.list_value_length(values).fill_null(0).to_numpy())
    runs = [run.tobytes() for run in np.split(elements, ends[:-1])] if len(values) else []
    present = values.is_valid().to_numpy(zero_copy_only=False)
    seen: dict[bytes | None, int] = {}
    each = (run if there else None for run, there in zip(runs, present, strict=True))
    codes = np.array([seen.setdefault(run, len(seen)) for run in each], np.int64)
    return codes, max(len(seen), 1)
