"""Compaction gives the state that the changes would leave one by one."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from etl_dagster.arrow.compaction import compact
from etl_dagster.model import ChangeKind
from etl_dagster.testing.change_script import INT8, TEXT, UNCHANGED, Delete, Insert, Op, Update, change_set, make_table

TABLE = make_table()


def upserts(*ops: Op) -> list[tuple[object, ...]]:
    found = compact([change_set(TABLE, ops)]).upserts
    return sorted(zip(*(column.to_pylist() for column in found.columns), strict=True))


def deletes(*ops: Op) -> list[object]:
    return sorted(compact([change_set(TABLE, ops)]).deletes.column(0).to_pylist())


def test_the_last_change_of_a_key_wins() -> None:
    ops: list[Op] = [Insert(1, (1, "a", "A")), Update(2, (1, "b", "B")), Update(2, (1, "c", "C"))]
    result = compact([change_set(TABLE, ops)])
    assert upserts(*ops) == [(1, "c", "C")]
    assert (result.kind[0], result.lsn[0], result.ordinal[0]) == (ChangeKind.UPDATE, 2, 1)
    assert result.deletes.num_rows == 0


def test_insert_then_delete_leaves_the_key_empty() -> None:
    ops: list[Op] = [Insert(1, (1, "a", "A")), Delete(1, (1,))]
    assert upserts(*ops) == []
    assert deletes(*ops) == [1]


def test_delete_then_insert_leaves_the_row() -> None:
    ops: list[Op] = [Delete(1, (1,)), Insert(1, (1, "a", "A"))]
    assert upserts(*ops) == [(1, "a", "A")]
    assert deletes(*ops) == []


def test_a_chain_of_moves_empties_every_key_it_passed() -> None:
    ops: list[Op] = [Update(1, (k + 1, "a", "A"), old=(k,)) for k in range(5)]
    assert upserts(*ops) == [(5, "a", "A")]
    assert deletes(*ops) == [0, 1, 2, 3, 4]


def test_a_key_that_was_left_and_taken_again_holds_the_newcomer() -> None:
    ops: list[Op] = [Update(1, (2, "a", "A"), old=(1,)), Update(1, (1, "b", "B"), old=(3,))]
    assert upserts(*ops) == [(1, "b", "B"), (2, "a", "A")]
    assert deletes(*ops) == [3]


def test_an_unchanged_value_comes_from_an_earlier_change_of_the_row() -> None:
    ops: list[Op] = [
        Insert(1, (1, "a", "A")),
        Update(2, (2, "b", UNCHANGED), old=(1,)),
        Insert(3, (1, "other", "OTHER")),
        Update(4, (2, "c", UNCHANGED)),
    ]
    assert upserts(*ops) == [(1, "other", "OTHER"), (2, "c", "A")]
    assert compact([change_set(TABLE, ops)]).unresolved is None


def test_what_no_change_holds_is_told_with_the_key_the_row_had_and_when_it_came() -> None:
    ops: list[Op] = [
        Update(10, (1, "a", UNCHANGED)),
        Update(20, (8, "b", UNCHANGED), old=(2,)),
        Update(30, (9, UNCHANGED, UNCHANGED), old=(8,)),
        Update(40, (9, "c", UNCHANGED)),
    ]
    open_ = compact([change_set(TABLE, ops)]).unresolved
    assert open_ is not None
    assert open_.source_keys.column(0).to_pylist() == [1, 2]
    assert open_.origin_lsn.tolist() == [0, 30]
    assert list(open_.columns) == [2]


def test_an_insert_takes_nothing_from_the_row_that_had_its_key() -> None:
    ops: list[Op] = [
        Insert(10, (1, "a", "A")),
        Delete(20, (1,)),
        Insert(30, (1, "b", UNCHANGED)),
        Update(40, (1, "c", UNCHANGED)),
        Update(40, (2, "x", UNCHANGED)),
        Insert(50, (3, "d", UNCHANGED)),
        Update(60, (4, "e", UNCHANGED), old=(3,)),
        Insert(70, (5, "f", UNCHANGED)),
        Update(80, (5, "g", "G")),
    ]
    open_ = compact([change_set(TABLE, ops)]).unresolved
    assert open_ is not None
    assert open_.source_keys.column(0).to_pylist() == [1, 2, 3]
    assert open_.fresh.tolist() == [True, False, True]
    assert open_.origin_lsn.tolist() == [30, 0, 60]


def test_long_chains_of_unchanged_values_are_followed_to_their_start() -> None:
    ops: list[Op] = [Insert(1, (1, "a", "A")), *(Update(2, (1, f"n{i}", UNCHANGED)) for i in range(500))]
    assert upserts(*ops) == [(1, "n499", "A")]


def test_change_sets_are_one_sequence() -> None:
    parts = [change_set(TABLE, [Insert(1, (1, "a", "A"))]), change_set(TABLE, [Update(2, (1, "b", UNCHANGED))])]
    assert compact(parts).upserts.to_pylist() == [{"id": 1, "name": "b", "body": "A"}]


@pytest.mark.parametrize("key", [("a",), ("b",), ("b", "a"), ("a", "b")])
def test_keys_of_any_shape_group_alike(key: Sequence[str]) -> None:
    rng = random.Random(7)
    table = make_table(columns={"a": INT8, "b": TEXT, "v": INT8}, key=key)
    scale = 10**15  # far apart, so that no direct lookup is possible
    rows = [(rng.randrange(20) * scale, f"key {rng.randrange(20)}", i) for i in range(2000)]
    found = compact([change_set(table, [Update(1, row) for row in rows])]).upserts
    names = [column.name for column in table.columns]
    expected = {tuple(row[names.index(name)] for name in key): row for row in rows}
    assert sorted(tuple(row.values()) for row in found.to_pylist()) == sorted(expected.values())


def test_upserts_keep_the_order_of_the_changes() -> None:
    found = compact([change_set(TABLE, [Insert(i, (k, "a", "A")) for i, k in enumerate([5, 3, 9, 1])])])
    assert found.upserts.column(0).to_pylist() == [5, 3, 9, 1]
    assert np.array_equal(found.lsn, np.arange(4))
