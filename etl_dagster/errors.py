"""Every error of the package: one root, and a kind that says who is at fault.

::

    EtlError
    ├── ConfigError          a setting is wrong; names the field's path
    ├── SourceError          the source database refuses or is not set up
    │   ├── SlotError        the replication slot is missing, lost, busy or ahead of us
    │   ├── SourceLocked     somebody's lock on a table hides what the catalogue says of it
    │   └── PublicationError the publication is missing or empty
    │       └── PublicationTooNew it was made after the WAL that the slot has to read
    ├── ProtocolError        bytes that are not what the protocol promises
    ├── ValueUnrepresentable a value that the column's Arrow type cannot hold
    ├── TableError           one table cannot be replicated as it stands
    │   └── RowIncomplete    a change left a value out, and nothing at the destination can give it
    ├── DestinationError     the destination refuses
    ├── StateError           the state store refuses, or another instance holds the pipeline
    └── InternalError        our own mistake

A message never holds row values or secrets. What failed (`ErrorKind`) is kept apart from what to do about it
(`etl_dagster.replication.policy`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class ErrorKind(StrEnum):
    """Who or what is at fault; the policy table gives each kind its treatment."""

    CONFIG = "config"
    SOURCE_UNAVAILABLE = "source_unavailable"
    SOURCE_REFUSED = "source_refused"
    SOURCE_SETTINGS = "source_settings"
    SLOT_BUSY = "slot_busy"
    SLOT_LOST = "slot_lost"
    PUBLICATION = "publication"
    PROTOCOL = "protocol"
    VALUE = "value"
    TABLE = "table"
    DESTINATION_UNAVAILABLE = "destination_unavailable"
    DESTINATION_REFUSED = "destination_refused"
    STATE = "state"
    STATE_UNAVAILABLE = "state_unavailable"
    PIPELINE_BUSY = "pipeline_busy"
    INTERNAL = "internal"


class EtlError(Exception):
    """Root of all errors raised on purpose.

    Args:
        message: What failed and where, one sentence.
        hint: What the operator does next, one sentence.
        kind: Who is at fault; each class has a default.
        table: The one table concerned (``schema.name``), when only one is.
    """

    default_kind: ClassVar[ErrorKind] = ErrorKind.INTERNAL

    def __init__(
        self, message: str, *, hint: str = "", kind: ErrorKind | None = None, table: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.kind = kind or self.default_kind
        self.table = table

    def __str__(self) -> str:
        return f"{self.message} — {self.hint}" if self.hint else self.message


class ConfigError(EtlError):
    """A setting is wrong or missing."""

    default_kind = ErrorKind.CONFIG


class SourceError(EtlError):
    """The source database cannot be used as it is."""

    default_kind = ErrorKind.SOURCE_REFUSED


class SlotError(SourceError):
    """The replication slot cannot be used."""

    default_kind = ErrorKind.SLOT_LOST


class SourceLocked(SourceError):
    """Somebody holds a lock that keeps us from looking at a table for now."""

    default_kind = ErrorKind.SOURCE_UNAVAILABLE


class PublicationError(SourceError):
    """The publication cannot be used."""

    default_kind = ErrorKind.PUBLICATION


class PublicationTooNew(PublicationError):
    """The publication exists, but the server cannot decode WAL that is older than it (PostgreSQL 17 and before)."""


class ProtocolError(EtlError):
    """Bytes that break the protocol: where, what was needed, what was there."""

    default_kind = ErrorKind.PROTOCOL

    def __init__(self, message: str, *, offset: int, need: int, have: int) -> None:
        super().__init__(
            f"{message} at byte {offset}: need {need} bytes, have {have}",
            hint="The stream is truncated or corrupt; read it again, and report it if it persists",
        )
        self.offset = offset
        self.need = need
        self.have = have


class ValueUnrepresentable(EtlError):
    """A value that the destination column's type cannot hold.

    Args:
        row: Which of the rows that were decoded has the first such value.
        column: Name of its column.
    """

    default_kind = ErrorKind.VALUE

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        kind: ErrorKind | None = None,
        table: str | None = None,
        row: int | None = None,
        column: str = "",
    ) -> None:
        super().__init__(message, hint=hint, kind=kind, table=table)
        self.row = row
        self.column = column


class TableError(EtlError):
    """One table cannot be replicated as it stands."""

    default_kind = ErrorKind.TABLE


class RowIncomplete(TableError):
    """A change left out a large value that nothing at the destination can give; only a copy afresh can.

    It happens when an update brings a row into a publication's row filter, since that comes as an insert.
    """

    def __init__(self, table: str) -> None:
        super().__init__(
            f"{table}: a change left out a large value that the destination does not have",
            hint="It is copied afresh by itself; REPLICA IDENTITY FULL has the source send such values",
            table=table,
        )


class DestinationError(EtlError):
    """The destination refused an operation."""

    default_kind = ErrorKind.DESTINATION_REFUSED


class StateError(EtlError):
    """The state store refused, or holds something that contradicts the source."""

    default_kind = ErrorKind.STATE


class InternalError(EtlError):
    """A mistake of ours."""

    default_kind = ErrorKind.INTERNAL
