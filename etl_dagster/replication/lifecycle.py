"""The life of a table: which moves between states there are, and what each state's record must hold.

Pure: nothing is read or written here. `move` gives a new record, which the caller saves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from etl_dagster.errors import InternalError
from etl_dagster.store.base import TableRecord, TableState

INIT, COPYING, COPIED = TableState.INIT, TableState.COPYING, TableState.COPIED
READY, QUARANTINED, REMOVED = TableState.READY, TableState.QUARANTINED, TableState.REMOVED

# Why a table is put back when its user asks for a fresh copy.
RESYNC_ASKED = "a re-sync was asked for"
SLICES_ASKED = "some of its slices were asked for again"

_Move = tuple[TableState, TableState]

# Every legal move, and what makes it.
MOVES: Mapping[_Move, str] = (
    {
        (INIT, COPYING): "its changes go to a log from here on",
        (COPYING, COPIED): "every chunk is staged",
        (COPIED, COPYING): "undecided keys are read again",
        (COPIED, READY): "the stream has passed the chunks, the copy is swapped in",
        (COPYING, INIT): "the copy starts over",
        (COPIED, INIT): "the copy starts over",
        (READY, INIT): "re-sync, whole or of slices",
        (INIT, READY): "the slices that were asked for cannot be told any more",
        (QUARANTINED, INIT): "a fresh copy was asked for",
        (QUARANTINED, COPYING): "resumed where its copy stopped",
        (QUARANTINED, COPIED): "resumed where its copy stopped",
        (QUARANTINED, READY): "resumed where it stopped",
        (REMOVED, INIT): "published again",
    }
    | {(state, QUARANTINED): "cannot go on" for state in TableState if state is not QUARANTINED}
    | {(state, REMOVED): "left the publication" for state in TableState if state is not REMOVED}
)

_NO_COPY: Mapping[str, Any] = {"copy_id": None, "copy_start": None, "copy_end": None, "slices": ()}
_NOT_HELD: Mapping[str, Any] = {"held": False, "resume": False}
# What a move into the state sets unless the caller says otherwise. A table that was not fed for a while is no longer
# live, unless its changes are held: only a new copy makes it true again, until then readers see it as it was left.
_ENTERING: Mapping[TableState, Mapping[str, Any]] = {
    INIT: {**_NO_COPY, **_NOT_HELD},
    COPYING: {"copy_end": None, **_NOT_HELD},
    COPIED: _NOT_HELD,
    READY: {**_NO_COPY, **_NOT_HELD, "live": True},
    QUARANTINED: {**_NO_COPY, **_NOT_HELD, "live": False},
    REMOVED: {**_NO_COPY, **_NOT_HELD, "live": False},
}
# What is true of every record in the state: for each field, whether it is set. Fields not named are free.
INVARIANTS: Mapping[TableState, Mapping[str, bool]] = {
    INIT: {"copy_id": False, "copy_start": False, "copy_end": False, "held": False},
    COPYING: {"copy_id": True, "copy_start": True, "copy_end": False, "held": False},
    COPIED: {"copy_id": True, "copy_start": True, "copy_end": True, "held": False},
    READY: {"copy_id": False, "copy_start": False, "copy_end": False, "live": True, "held": False},
    QUARANTINED: {"reason": True},
    REMOVED: {"copy_id": False, "copy_start": False, "copy_end": False, "live": False, "held": False},
}
# Without its changes nothing that a quarantined table has could ever be gone on with.
_NOT_HELD_INVARIANTS: Mapping[str, bool] = {"copy_id": False, "live": False, "resume": False}


def move(record: TableRecord, to: TableState, **changes: Any) -> TableRecord:
    """The record after a move; ``changes`` are fields of it that the move sets.

    ``reason`` and ``hint`` belong to the state they were given for, so a move empties them unless it brings its own.

    Raises:
        InternalError: There is no such move, or the new state's record would lack what it must hold.
    """
    if (record.state, to) not in MOVES:
        raise InternalError(f"A table does not go from {record.state} to {to}", table=str(record.table))
    return _changed(record, {"reason": "", "hint": "", **_ENTERING[to], **changes, "state": to})


def amend(record: TableRecord, **changes: Any) -> TableRecord:
    """The record with other fields in the same state, for instance a later ``copy_end``.

    Raises:
        InternalError: The state does not allow it.
    """
    return _changed(record, {**changes, "state": record.state})


def mermaid() -> str:
    """The moves as a Mermaid state diagram."""
    lines = [f"    {old} --> {new}: {why}" for (old, new), why in MOVES.items()]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {INIT}", *lines, ""])


def _changed(record: TableRecord, changes: Mapping[str, Any]) -> TableRecord:
    fields = {**record.model_dump(exclude={"updated_at"}), **changes}
    if fields["table"] != record.table:
        raise InternalError("A record stays with its table", table=str(record.table))
    try:
        changed = TableRecord.model_validate(fields)
    except ValidationError as error:
        names = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors())
        raise InternalError(f"A table record cannot hold these changes: {names}", table=str(record.table)) from error
    _check(changed)
    return changed


def _check(record: TableRecord) -> None:
    wanted_fields = dict(INVARIANTS[record.state])
    if record.state is QUARANTINED and not record.held:
        wanted_fields |= _NOT_HELD_INVARIANTS
    broken = [
        f"{name} {'is missing' if wanted else 'is set'}"
        for name, wanted in wanted_fields.items()
        if _is_set(getattr(record, name)) is not wanted
    ]
    if broken:
        raise InternalError(f"Not a record of state {record.state}: {', '.join(broken)}", table=str(record.table))


def _is_set(value: object) -> bool:
    # Position zero is a position, hence no plain truth test.
    return value is not None and value is not False and value != ""
