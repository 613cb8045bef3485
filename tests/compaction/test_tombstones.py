"""Compaction that keeps deleted rows, against a model that takes one change after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl_dagster.arrow.compaction import Compacted, compact
from etl_dagster.model import ChangeKind, ChangeSet
from etl_dagster.testing.change_script import (
    INT8,
    TEXT,
    UNCHANGED,
    Delete,
    Insert,
    Op,
    Truncate,
    Update,
    change_set,
    make_table,
)
from etl_dagster.testing.replay import History

TABLE = make_table()
Cells = tuple[object, ...]
# Left out by the insert that began a row.
LOST = ("lost",)


def from_destination(key: object) -> Cells:
    """What a destination would hold under a key before the batch; each value says where it is from."""
    return (key, ("name of", key), ("body of", key))


@dataclass(frozen=True)
class State:
    """How things stand at one key; ``origin`` is when the row came to it, 0 if it always stood there."""

    kind: ChangeKind
    at: tuple[int, int]
    cells: Cells
    origin: int = 0


class Model:
    """One change after the other."""

    def __init__(self) -> None:
        self.states: dict[object, State] = {}
        self._count: dict[int, int] = {}

    def run(self, ops: Sequence[Op]) -> dict[object, State]:
        for op in ops:
            ordinal = self._count.get(op.lsn, 0)
            self._count[op.lsn] = ordinal + 1
            self._apply(op, (op.lsn, ordinal))
        return self.states

    def _apply(self, op: Op, at: tuple[int, int]) -> None:
        assert not isinstance(op, Truncate)
        if isinstance(op, Insert):
            cells = tuple(LOST if value is UNCHANGED else value for value in op.row)
            self.states[op.row[0]] = State(ChangeKind.INSERT, at, cells, op.lsn)
            return
        key = op.key[0] if isinstance(op, Delete) else op.old[0] if op.old else op.row[0]
        before = self.states.get(key) or State(ChangeKind.INSERT, (0, 0), from_destination(key))
        if isinstance(op, Delete) or op.old:
            self.states[key] = State(ChangeKind.DELETE, at, (key, *before.cells[1:]), before.origin)
        if isinstance(op, Update):
            pairs = zip(op.row, before.cells, strict=True)
            cells = tuple(had if value is UNCHANGED else value for value, had in pairs)
            self.states[op.row[0]] = State(ChangeKind.UPDATE, at, cells, op.lsn if op.old else before.origin)


def told(result: Compacted) -> dict[object, State]:
    """The upserts, with open values taken from where the result says."""
    rows = [list(row) for row in zip(*(column.to_pylist() for column in result.upserts.columns), strict=True)]
    origins = dict.fromkeys(range(len(rows)), 0)
    if result.unresolved is not None:
        open_ = result.unresolved
        for nth, (row, source) in enumerate(
            zip(open_.rows.tolist(), open_.source_keys.column(0).to_pylist(), strict=True)
        ):
            origins[row] = int(open_.origin_lsn[nth])
            for column, mask in open_.columns.items():
                if mask[nth]:
                    assert rows[row][column] is None
                    rows[row][column] = LOST if open_.fresh[nth] else from_destination(source)[column]
    places = zip(result.lsn.tolist(), result.ordinal.tolist(), strict=True)
    states = zip(result.kind.tolist(), places, rows, origins.values(), strict=True)
    return {row[0]: State(ChangeKind(kind), at, tuple(row), origin) for kind, at, row, origin in states}


def without_origin(states: dict[object, State]) -> dict[object, State]:
    """Where a row came from is told only of rows with open values."""
    return {
        key: state if any(isinstance(cell, tuple) for cell in state.cells) else State(state.kind, state.at, state.cells)
        for key, state in states.items()
    }


def parts(ops: Sequence[Op], cut: int) -> list[ChangeSet]:
    whole = change_set(TABLE, ops)
    return [part for part in (slice_of(whole, 0, cut), slice_of(whole, cut, len(ops))) if len(part)]


def slice_of(changes: ChangeSet, start: int, stop: int) -> ChangeSet:
    span = slice(start, stop)
    return ChangeSet(
        changes.table,
        changes.rows.slice(start, stop - start),
        changes.kind[span],
        changes.lsn[span],
        changes.ordinal[span],
        changes.timestamp[span],
        {column: mask[span] for column, mask in changes.unchanged.items()},
        None if changes.moved is None else changes.moved[span],
        None if changes.old_keys is None else changes.old_keys.slice(start, stop - start),
    )


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    first=st.integers(0, 30),
    length=st.integers(1, 30),
    cut=st.integers(0, 40),
    entering=st.sampled_from([0, 0.5, 1]),
)
def test_deleted_rows_are_kept_as_one_change_after_the_other_leaves_them(
    seed: int, first: int, length: int, cut: int, entering: float
) -> None:
    history = History.random(seed, transactions=first + length, entering=entering)
    begin = max((i for i in history.truncates if i > first), default=first)
    ops = [op for transaction in history.transactions[begin:] for op in transaction]
    if not ops:
        return
    expected = Model().run(ops)
    kept = compact(parts(ops, min(cut, len(ops))), tombstones=True)
    assert told(kept) == without_origin(expected)
    assert len(kept.deletes) == 0
    if kept.unresolved is not None:
        deleted = kept.kind[kept.unresolved.rows] == ChangeKind.DELETE
        assert kept.unresolved.optional.tolist() == deleted.tolist()
    order = list(zip(kept.lsn.tolist(), kept.ordinal.tolist(), (kept.kind != ChangeKind.DELETE).tolist(), strict=True))
    assert order == sorted(order)

    plain = compact(parts(ops, min(cut, len(ops))))
    standing = {key: state for key, state in expected.items() if state.kind is not ChangeKind.DELETE}
    assert told(plain) == without_origin(standing)
    assert sorted(plain.deletes.column(0).to_pylist()) == sorted(set(expected) - set(standing))
    assert plain.unresolved is None or not plain.unresolved.optional.any()


def tombstones(*ops: Op) -> Compacted:
    return compact([change_set(TABLE, ops)], tombstones=True)


def test_a_deleted_row_has_the_values_of_its_earlier_changes() -> None:
    kept = tombstones(Insert(1, (1, "a", "A")), Update(2, (1, "b", UNCHANGED)), Delete(3, (1,)))
    assert kept.upserts.to_pylist() == [{"id": 1, "name": "b", "body": "A"}]
    assert (kept.kind.tolist(), kept.lsn.tolist(), kept.unresolved) == ([ChangeKind.DELETE], [3], None)
    assert kept.timestamp.tolist() == [3_000_000]


def test_a_deleted_row_of_which_nothing_is_known_is_open_but_may_stay_so() -> None:
    kept = tombstones(Update(2, (1, "b", UNCHANGED)), Delete(3, (1,)), Update(4, (2, "c", UNCHANGED)))
    assert kept.unresolved is not None
    assert kept.upserts.to_pylist()[0] == {"id": 1, "name": "b", "body": None}
    assert kept.unresolved.source_keys.column(0).to_pylist() == [1, 2]
    assert kept.unresolved.optional.tolist() == [True, False]


def test_a_row_that_moves_and_is_deleted_is_left_at_both_keys() -> None:
    kept = tombstones(Update(2, (2, "b", UNCHANGED), old=(1,)), Delete(3, (2,)))
    assert kept.upserts.to_pylist() == [
        {"id": 1, "name": None, "body": None},
        {"id": 2, "name": "b", "body": None},
    ]
    assert kept.unresolved is not None
    assert kept.unresolved.source_keys.column(0).to_pylist() == [1, 1]
    assert kept.unresolved.origin_lsn.tolist() == [0, 2]


def test_a_row_inserted_again_takes_the_place_of_the_deleted_one() -> None:
    kept = tombstones(Update(2, (2, "b", "B"), old=(1,)), Insert(3, (1, "new", "N")))
    assert kept.upserts.to_pylist() == [{"id": 2, "name": "b", "body": "B"}, {"id": 1, "name": "new", "body": "N"}]
    assert kept.unresolved is None


def test_keys_of_several_columns_keep_their_places() -> None:
    table = make_table(columns={"body": TEXT, "b": TEXT, "a": INT8}, key=["a", "b"])
    ops: list[Op] = [Insert(1, ("A", "x", 1)), Update(2, (UNCHANGED, "y", 2), old=(1, "x"))]
    kept = compact([change_set(table, ops)], tombstones=True)
    assert kept.upserts.to_pylist() == [{"body": "A", "b": "x", "a": 1}, {"body": "A", "b": "y", "a": 2}]


@pytest.mark.parametrize("keep", [False, True])
def test_no_changes_leave_nothing(keep: bool) -> None:
    changes = slice_of(change_set(TABLE, [Insert(1, (1, "a", "A"))]), 0, 0)
    assert len(compact([changes], tombstones=keep).upserts) == 0


def test_keys_that_are_lists_of_anything_are_told_apart() -> None:
    ends = pa.array([[2**63 - 1, None], [5], [2**63 - 1, None], []], pa.list_(pa.int64()))
    keys = ends.cast(pa.list_(pa.timestamp("us", "UTC")))
    table = make_table(columns={"id": INT8})
    changes = change_set(table, [Insert(1, (i,)) for i in range(4)])
    rows = pa.RecordBatch.from_arrays([keys], names=["id"])
    found = compact([ChangeSet(table, rows, changes.kind, changes.lsn, changes.ordinal, changes.timestamp)])
    assert np.array_equal(found.ordinal, [1, 2, 3])
    assert found.upserts.column(0).combine_chunks().equals(keys.slice(1))
