"""The flat form of changes, and the CDC columns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from etl_dagster.arrow.changes import (
    adapt,
    cdc_columns,
    change_schema,
    from_record_batch,
    lsn_number,
    lsn_numbers,
    lsn_parts,
    missing_value,
    select_changes,
    to_record_batch,
)
from etl_dagster.model import ChangeSet, Landing, Lsn
from etl_dagster.testing.change_script import (
    INT8,
    TEXT,
    UNCHANGED,
    Delete,
    Insert,
    Op,
    Update,
    altered,
    change_set,
    make_table,
)

COLUMNS = {"kind": TEXT, "id": INT8, **{f"t{i}": TEXT for i in range(9)}, "c0": TEXT}
TABLE = make_table(columns=COLUMNS, key=["id", "kind"])
FILL = [f"v{i}" for i in range(9)]
OPS: list[Op] = [
    Insert(10, ("k", 1, *FILL, "end")),
    Update(20, ("k", 1, *FILL[:8], UNCHANGED, UNCHANGED)),
    Update(20, ("k", 2, UNCHANGED, *FILL[1:], "end"), old=(1, "k")),
    Delete(30, (2, "k")),
]


def same(one: ChangeSet, other: ChangeSet) -> bool:
    flat = to_record_batch(one), to_record_batch(other)
    return bool(flat[0].equals(flat[1]))


def test_the_flat_form_gives_the_changes_back() -> None:
    changes = change_set(TABLE, OPS)
    flat = to_record_batch(changes)
    assert flat.schema.equals(change_schema(TABLE))
    back = from_record_batch(TABLE, flat)
    assert same(back, changes)
    assert {column: mask.tolist() for column, mask in back.unchanged.items()} == {
        2: [False, False, True, False],
        10: [False, True, False, False],
        11: [False, True, False, False],
    }
    assert back.moved is not None
    assert back.moved.tolist() == [False, False, True, False]
    assert back.old_keys is not None
    assert back.old_keys.slice(2, 1).to_pylist() == [{"id": 1, "kind": "k"}]


def test_changes_without_moves_and_unchanged_values_come_back_so() -> None:
    back = from_record_batch(TABLE, to_record_batch(change_set(TABLE, OPS[:1])))
    assert (back.moved, back.old_keys, dict(back.unchanged)) == (None, None, {})


def test_a_selection_keeps_everything_aligned() -> None:
    changes = change_set(TABLE, OPS)
    picked = select_changes(changes, changes.lsn >= 20)
    flat = to_record_batch(picked)
    assert flat.equals(to_record_batch(changes).slice(1))


def test_lsn_numbers_sort_in_commit_order() -> None:
    lsns = np.array([0, 1, 0x16B374D848, 0x16B374D848, 2**64 - 1], np.uint64)
    ordinals = np.array([0, 5, 9, 10, 2**32 - 1], np.int64)
    found = lsn_numbers(lsns, ordinals).to_pylist()
    assert found == [
        lsn_number(Lsn(lsn), ordinal) for lsn, ordinal in zip(lsns.tolist(), ordinals.tolist(), strict=True)
    ]
    assert found == sorted(found)
    assert found[2] == (0x16B374D848 << 32) + 9
    parts = lsn_parts(lsn_numbers(lsns, ordinals).slice(1))
    assert [part.tolist() for part in parts] == [lsns[1:].tolist(), ordinals[1:].tolist()]


def test_the_cdc_columns_name_the_kind_of_change() -> None:
    changes = change_set(TABLE, OPS)
    kinds, _, stamps = cdc_columns(changes.kind, changes.lsn, changes.ordinal, changes.timestamp)
    assert kinds.to_pylist() == ["insert", "update", "update", "delete"]
    assert stamps.cast("int64").to_pylist() == changes.timestamp.tolist()


def test_the_flat_form_keeps_the_ids_of_transactions() -> None:
    changes = change_set(TABLE, OPS)
    back = from_record_batch(TABLE, to_record_batch(changes))
    assert back.xid is not None
    assert back.xid.tolist() == [10, 20, 20, 30]
    assert from_record_batch(TABLE, to_record_batch(replace(changes, xid=None))).xid is None
    picked = select_changes(changes, changes.lsn == 20)
    assert picked.xid is not None
    assert picked.xid.tolist() == [20, 20]


def test_changes_without_key_keep_whole_old_rows() -> None:
    table = make_table(key=(), landing=Landing.CHANGELOG)
    changes = change_set(table, [Update(1, (1, "b", "B"), old=(1, "a", None)), Insert(2, (2, "c", "C"))])
    back = from_record_batch(table, to_record_batch(changes))
    assert back.old_keys is not None
    assert back.old_keys.to_pylist()[0] == {"id": 1, "name": "a", "body": None}
    assert same(back, changes)


def test_changes_under_a_later_schema() -> None:
    table = make_table()
    later = altered(table, drop=["name"], rename={"body": "name", "id": "key"}, add={"n": (INT8, "7"), "t": TEXT})
    ops: list[Op] = [Insert(1, (1, "a", "A")), Update(2, (2, "b", UNCHANGED), old=(1,)), Delete(3, (2,))]
    found = adapt(change_set(table, ops), later)
    assert found.table == later
    assert found.rows.to_pylist() == [
        {"key": 1, "name": "A", "n": 7, "t": None},
        {"key": 2, "name": None, "n": 7, "t": None},
        {"key": 2, "name": None, "n": None, "t": None},
    ]
    assert {column: mask.tolist() for column, mask in found.unchanged.items()} == {1: [False, True, False]}
    assert found.old_keys is not None
    assert found.old_keys.slice(1, 1).to_pylist() == [{"key": 1}]
    assert adapt(found, later) is found


def test_an_unchanged_value_of_a_column_that_is_gone_is_left_out() -> None:
    later = altered(make_table(), drop=["body"])
    assert not adapt(change_set(make_table(), [Update(2, (1, "b", UNCHANGED))]), later).unchanged


def test_a_changelog_keeps_what_was_said_at_the_time() -> None:
    table = make_table(key=(), landing=Landing.CHANGELOG)
    later = altered(table, drop=["name"], add={"n": (INT8, "7")})
    found = adapt(change_set(table, [Update(2, (1, "b", "B"), old=(1, "a", "A"))]), later)
    assert found.rows.to_pylist() == [{"id": 1, "body": "B", "n": None}]
    assert found.old_keys is not None
    assert found.old_keys.to_pylist() == [{"id": 1, "body": "A", "n": None}]


def test_a_missing_value_is_read_by_the_type_of_its_column() -> None:
    column = altered(make_table(), add={"n": (INT8, "-5")}).columns[-1]
    assert missing_value(column).to_pylist() == [-5]
    assert missing_value(column.model_copy(update={"missing": None})).to_pylist() == [None]
