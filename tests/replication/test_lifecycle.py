"""The table of moves, pair by pair, and what each state's record must hold."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from etl_dagster.errors import InternalError
from etl_dagster.model import ZERO_LSN, Lsn, TableId
from etl_dagster.replication.lifecycle import INVARIANTS, MOVES, amend, mermaid, move
from etl_dagster.store.base import TableRecord, TableState

ORDERS = TableId("public", "orders")
COPY: dict[str, Any] = {"copy_id": "a", "copy_start": ZERO_LSN}
RECORDS = {
    TableState.INIT: TableRecord(table=ORDERS, live=True),
    TableState.COPYING: TableRecord(table=ORDERS, state=TableState.COPYING, live=True, **COPY),
    TableState.COPIED: TableRecord(table=ORDERS, state=TableState.COPIED, live=True, copy_end=Lsn(9), **COPY),
    TableState.READY: TableRecord(table=ORDERS, state=TableState.READY, live=True, rows=5),
    TableState.QUARANTINED: TableRecord(table=ORDERS, state=TableState.QUARANTINED, reason="NaN", hint="look"),
    TableState.REMOVED: TableRecord(table=ORDERS, state=TableState.REMOVED),
}
BRINGS: dict[TableState, dict[str, Any]] = {
    TableState.COPYING: COPY,
    TableState.COPIED: {**COPY, "copy_end": Lsn(9)},
    TableState.QUARANTINED: {"reason": "a value does not fit"},
}
LEGAL = {
    "init": {"copying", "ready", "quarantined", "removed"},
    "copying": {"copied", "init", "quarantined", "removed"},
    "copied": {"ready", "copying", "init", "quarantined", "removed"},
    "ready": {"init", "quarantined", "removed"},
    "quarantined": {"init", "copying", "copied", "ready", "removed"},
    "removed": {"init", "quarantined"},
}


@pytest.mark.parametrize(("old", "new"), product(TableState, TableState))
def test_every_pair_of_states(old: TableState, new: TableState) -> None:
    record = RECORDS[old]
    before = record.model_copy()
    if new.value in LEGAL[old.value]:
        moved = move(record, new, **BRINGS.get(new, {}))
        assert moved.state is new
        assert moved.table == ORDERS
        assert moved.updated_at >= record.updated_at
    else:
        with pytest.raises(InternalError, match=f"does not go from {old} to {new}"):
            move(record, new, **BRINGS.get(new, {}))
    assert record == before


def test_each_state_has_its_invariants() -> None:
    assert set(INVARIANTS) == set(TableState)


def test_a_table_stays_live_through_a_resync() -> None:
    record = move(RECORDS[TableState.READY], TableState.INIT, reason="asked for")
    for state in (TableState.COPYING, TableState.COPIED, TableState.READY):
        record = move(record, state, **BRINGS.get(state, {}))
        assert record.live
    assert (record.copy_id, record.copy_start, record.copy_end, record.reason) == (None, None, None, "")


def test_a_copy_makes_a_table_live_only_at_its_end() -> None:
    record = move(TableRecord(table=ORDERS), TableState.COPYING, **COPY)
    copied = move(record, TableState.COPIED, copy_end=Lsn(9))
    assert (record.live, copied.live) == (False, False)
    assert move(copied, TableState.READY, rows=7).rows == 7
    assert move(copied, TableState.READY).live


def test_a_table_taken_out_is_no_longer_fed_until_it_was_copied_again() -> None:
    record = move(RECORDS[TableState.READY], TableState.QUARANTINED, reason="a value does not fit", hint="cast it")
    released = move(record, TableState.INIT)
    assert (record.live, released.live, released.reason, released.hint) == (False, False, "", "")


def test_a_table_whose_changes_are_held_keeps_what_it_has_and_goes_on_from_there() -> None:
    live = move(RECORDS[TableState.READY], TableState.QUARANTINED, reason="a value", live=True, held=True)
    resumed = move(amend(live, resume=True), TableState.READY)
    assert (live.live, resumed.live, resumed.held, resumed.resume) == (True, True, False, False)
    kept = {name: getattr(RECORDS[TableState.COPIED], name) for name in ("copy_id", "copy_start", "copy_end")}
    copied = move(RECORDS[TableState.COPIED], TableState.QUARANTINED, reason="a value", held=True, **kept)
    again = move(copied, TableState.COPIED)
    assert (again.copy_id, again.copy_start, again.copy_end) == tuple(kept.values())


def test_starting_over_forgets_the_copy() -> None:
    record = move(RECORDS[TableState.COPIED], TableState.INIT)
    assert (record.copy_id, record.copy_start, record.copy_end) == (None, None, None)


@pytest.mark.parametrize(
    ("old", "new", "changes", "problem"),
    [
        (TableState.INIT, TableState.COPYING, {"copy_id": "a"}, "copy_start is missing"),
        (TableState.INIT, TableState.COPYING, {"copy_start": ZERO_LSN}, "copy_id is missing"),
        (TableState.COPYING, TableState.COPIED, {}, "copy_end is missing"),
        (TableState.COPIED, TableState.READY, {"live": False}, "live is missing"),
        (TableState.COPIED, TableState.READY, {"copy_id": "a"}, "copy_id is set"),
        (TableState.READY, TableState.QUARANTINED, {}, "reason is missing"),
        (TableState.READY, TableState.QUARANTINED, {"reason": "x", "live": True}, "live is set"),
        (TableState.COPYING, TableState.QUARANTINED, {"reason": "x", **COPY}, "copy_id is set"),
        (TableState.READY, TableState.INIT, {"held": True}, "held is set"),
        (TableState.READY, TableState.INIT, {"mood": 1}, "mood"),
        (TableState.READY, TableState.INIT, {"rows": "many"}, "rows"),
        (TableState.READY, TableState.INIT, {"table": TableId("a", "b")}, "stays with its table"),
    ],
)
def test_a_record_that_lacks_what_its_state_needs_is_refused(
    old: TableState, new: TableState, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InternalError, match=problem) as caught:
        move(RECORDS[old], new, **changes)
    assert caught.value.table == "public.orders"


def test_amending_keeps_the_state_and_its_invariants() -> None:
    assert amend(RECORDS[TableState.COPIED], copy_end=Lsn(11)).copy_end == Lsn(11)
    with pytest.raises(InternalError, match="copy_end is set"):
        amend(RECORDS[TableState.COPYING], copy_end=Lsn(11))


def test_the_diagram_shows_every_move() -> None:
    lines = mermaid().splitlines()
    assert lines[:2] == ["stateDiagram-v2", "    [*] --> init"]
    assert len(lines) == 2 + len(MOVES)
    assert any(line.startswith("    copying --> copied: ") for line in lines)
