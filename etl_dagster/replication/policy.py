"""What to do about each kind of error."""

from __future__ import annotations

from enum import StrEnum

from etl_dagster.errors import ErrorKind, EtlError


class Action(StrEnum):
    """The three ways to go on after an error."""

    RETRY = "retry"  # the same step again, after a pause, within a budget
    QUARANTINE = "quarantine"  # take the one table out, go on with the others
    STOP = "stop"  # a human has to act first


POLICY: dict[ErrorKind, Action] = {
    ErrorKind.CONFIG: Action.STOP,
    ErrorKind.SOURCE_UNAVAILABLE: Action.RETRY,
    ErrorKind.SOURCE_REFUSED: Action.STOP,
    ErrorKind.SOURCE_SETTINGS: Action.STOP,
    ErrorKind.SLOT_BUSY: Action.RETRY,
    ErrorKind.SLOT_LOST: Action.STOP,
    ErrorKind.PUBLICATION: Action.STOP,
    ErrorKind.PROTOCOL: Action.STOP,
    ErrorKind.VALUE: Action.QUARANTINE,
    ErrorKind.TABLE: Action.QUARANTINE,
    ErrorKind.DESTINATION_UNAVAILABLE: Action.RETRY,
    ErrorKind.DESTINATION_REFUSED: Action.STOP,
    ErrorKind.STATE: Action.STOP,
    ErrorKind.STATE_UNAVAILABLE: Action.RETRY,
    ErrorKind.PIPELINE_BUSY: Action.STOP,
    ErrorKind.INTERNAL: Action.STOP,
}


def action_for(error: EtlError) -> Action:
    """The treatment of one error: a refusal that concerns a single table takes only that table out."""
    action = POLICY[error.kind]
    if action is Action.QUARANTINE and error.table is None:
        return Action.STOP
    if action is Action.STOP and error.table is not None and error.kind in _TABLE_KINDS:
        return Action.QUARANTINE
    return action


_TABLE_KINDS = frozenset({ErrorKind.DESTINATION_REFUSED, ErrorKind.SOURCE_REFUSED})
