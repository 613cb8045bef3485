"""Changes as rows of a changelog and back, what a snapshot saw, and the rows that stand in the end."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from etl_dagster.arrow.changelog import changelog_fields, changelog_rows, changes_of_rows
from etl_dagster.arrow.changes import to_record_batch
from etl_dagster.arrow.landing import landed_schema, present_rows
from etl_dagster.arrow.snapshots import unseen
from etl_dagster.model import CDC_COLUMNS, UNCHANGED_COLUMN, Landing, TableSchema
from etl_dagster.testing.change_script import (
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

TABLE = make_table(landing=Landing.CHANGELOG)
KEYLESS = make_table(key=(), landing=Landing.CHANGELOG)
OPS: list[Op] = [
    Insert(10, (1, "a", "A")),
    Update(20, (1, "b", UNCHANGED)),
    Update(20, (2, UNCHANGED, UNCHANGED), old=(1,)),
    Delete(30, (2,)),
    Truncate(40),
]


def test_each_change_is_a_row_and_a_move_is_two() -> None:
    rows = changelog_rows(change_set(TABLE, OPS))
    assert rows.schema.names == ["id", "name", "body", *CDC_COLUMNS, UNCHANGED_COLUMN]
    assert rows.schema.equals(pa.schema(changelog_fields(TABLE)))
    found = rows.to_pylist()
    assert [row["_CHANGE_TYPE"] for row in found] == ["insert", "update", "delete", "update", "delete", "truncate"]
    assert [(row["id"], row["name"], row["body"]) for row in found] == [
        (1, "a", "A"),
        (1, "b", None),
        (1, None, None),
        (2, None, None),
        (2, None, None),
        (None, None, None),
    ]
    assert [row["_UNCHANGED"] for row in found] == [None, ["body"], None, ["name", "body"], None, None]
    assert [int(row["_LSN"]) >> 32 for row in found] == [10, 20, 20, 20, 30, 40]
    assert found[2]["_LSN"] == found[3]["_LSN"] > found[1]["_LSN"]
    assert [row["_TIMESTAMP"].timestamp() for row in found] == [10, 20, 20, 20, 30, 40]


@pytest.mark.parametrize(
    ("table", "ops"),
    [(TABLE, OPS), (KEYLESS, [Insert(1, (1, "a", "A")), Update(2, (1, "b", "B"), old=(1, "a", "A"))])],
    ids=["key", "no key"],
)
def test_the_rows_give_the_changes_back(table: TableSchema, ops: list[Op]) -> None:
    changes = change_set(table, ops)
    back = changes_of_rows(changes.table, changelog_rows(changes))
    # Only the id of the transaction is not in a changelog.
    assert to_record_batch(back).drop_columns(["xid"]).equals(to_record_batch(changes).drop_columns(["xid"]))


def test_rows_of_a_copy_count_as_inserts() -> None:
    rows = changelog_rows(change_set(TABLE, [Insert(1, (1, "a", "A"))]))
    place = rows.schema.get_field_index("_CHANGE_TYPE")
    copied = rows.set_column(place, rows.schema.field(place), pa.array(["copy"]))
    assert changes_of_rows(TABLE, copied).kind.tolist() == [1]


@pytest.mark.parametrize("seed", range(20))
def test_a_changelog_in_any_order_folds_to_what_stands(seed: int) -> None:
    history = History.random(seed, 60, Landing.CHANGELOG)
    start = [Insert(1, row) for row in history.rows_after(-1)]
    parts = [change_set(history.table, start)] if start else []
    for piece in history.batch(0, 59, pieces=3):
        parts += [part for each in piece for part in each.changes]
    rows = pa.Table.from_batches([changelog_rows(part) for part in parts])
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    found = present_rows(history.table, rows.take(pa.array(order)).to_reader()).read_all()
    assert sorted((tuple(row.values()) for row in found.to_pylist()), key=repr) == history.sorted_rows(59)


@pytest.mark.parametrize("seed", range(20))
def test_a_changelog_without_key_folds_to_a_multiset(seed: int) -> None:
    rng = random.Random(seed)
    standing: Counter[tuple[object, ...]] = Counter()
    ops: list[Op] = []
    for lsn in range(1, 200):
        row = (rng.randrange(3), rng.choice(["a", None]), None)
        kind = rng.choice(["insert", "insert", "update", "delete", "truncate" if lsn % 50 == 0 else "insert"])
        if kind == "truncate":
            standing.clear()
            ops.append(Truncate(lsn))
        elif kind == "insert" or not +standing:
            standing[row] += 1
            ops.append(Insert(lsn, row))
        else:
            gone = rng.choice(list((+standing).elements()))
            standing[gone] -= 1
            if kind == "update":
                standing[row] += 1
            ops.append(Update(lsn, row, old=gone) if kind == "update" else Delete(lsn, gone))
    rows = pa.Table.from_batches([changelog_rows(change_set(KEYLESS, ops))])
    found = present_rows(KEYLESS, rows.to_reader()).read_all()
    assert Counter(tuple(row.values()) for row in found.to_pylist()) == +standing


def test_a_value_left_out_without_key_is_that_of_the_row_before() -> None:
    ops: list[Op] = [
        Insert(1, (1, "a", "A")),
        Update(2, (1, "b", UNCHANGED), old=(1, "a", "A")),
        Delete(3, (1, "b", "A")),
    ]
    for count, expected in ((2, [{"id": 1, "name": "b", "body": "A"}]), (3, [])):
        rows = pa.Table.from_batches([changelog_rows(change_set(KEYLESS, ops[:count]))])
        assert present_rows(KEYLESS, rows.to_reader()).read_all().to_pylist() == expected


def test_deleted_rows_are_not_present() -> None:
    table = make_table(landing=Landing.SOFT_DELETE, columns={"id": TEXT}, key=["id"])
    cdc = [
        pa.array(["copy", "delete", "update"]),
        pa.nulls(3, pa.decimal128(38, 0)),
        pa.nulls(3, pa.timestamp("us", "UTC")),
    ]
    rows = pa.Table.from_arrays([pa.array(["a", "b", "c"]), *cdc], schema=landed_schema(table))
    assert present_rows(table, rows.to_reader()).read_all().to_pydict() == {"id": ["a", "c"]}


def test_an_empty_table_has_no_present_rows() -> None:
    for landing in Landing:
        table = make_table(landing=landing)
        assert present_rows(table, landed_schema(table).empty_table().to_reader()).read_all().num_rows == 0


def test_a_snapshot_sees_what_had_committed_before_it() -> None:
    xid = np.array([99, 100, 101, 102, 103, 104], np.uint32)
    assert unseen(xid, "100:103:100,102").tolist() == [False, True, False, True, True, True]
    assert unseen(xid, "103:103:").tolist() == [False, False, False, False, True, True]
    assert unseen(xid[:0], "1:2:").tolist() == []


@pytest.mark.parametrize("epoch", [1, 2, 1000])
def test_ids_of_transactions_are_those_nearest_to_the_snapshot(epoch: int) -> None:
    whole = [(epoch << 32) + shift for shift in (5 - 2**31, -3, -2, -1, 0, 1, 5, 2**31 - 1)]
    xid = np.array([each % 2**32 for each in whole], np.uint32)
    snapshot = f"{whole[2]}:{whole[5]}:{whole[2]},{whole[4]}"
    assert unseen(xid, snapshot).tolist() == [False, False, True, False, True, True, True, True]
