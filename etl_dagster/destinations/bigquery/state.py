"""What is remembered of tables, copies and logs, and what one script changes of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from uuid import uuid4

from etl_dagster.model import FrozenModel, Lsn, TableId, TableSchema

TABLE, COPY, HELD, SNAPSHOT, IDLE = "table", "copy", "held", "snapshot", "idle"

Key = tuple[str, str]
IDLE_KEY: Key = (IDLE, "")


class TableBody(FrozenModel):
    """What is known of a live table.

    Attributes:
        table_schema: The schema that its rows are up to date with.
        physical: The schema whose columns it has, once ``ddl`` has been run by the job of ``token``; None: the same.
        others: Names of columns that the source has no longer.
        partitioning: How it is partitioned, as DDL, and by which column there.
        clustering: Columns there that it is clustered by, once ``ddl`` has been run.
        reclusters: It cannot be clustered while ``ddl`` is run.
        begun: Nothing that was said of idle tables up to this position is about it; so of other bodies.
    """

    table_schema: TableSchema
    physical: TableSchema | None = None
    ddl: str = ""
    token: str = ""
    others: tuple[str, ...] = ()
    partitioning: str = ""
    partition_column: str = ""
    clustering: tuple[str, ...] = ()
    reclusters: bool = False
    begun: int = 0


class CopyBody(FrozenModel):
    """What is known of a copy.

    Attributes:
        token: Tells it from every other copy, also from one of the same id in another life of the pipeline.
        pieces: How many blobs its log has.
        partial: Updates in its log left values out.
        truncated: What is staged does not count, nor what will be.
        merged: The log up to some position is in the staged rows already, and what it holds now comes after.
        changed: Staged rows are not as they were loaded.
        rereads: Rows of the chunks of a copy of slices that were read again, by chunk id; known before they are loaded.
        swapping: The staged rows are about to take the live table's place, which is then right up to this position.
        finished_rows: Set once they have.
    """

    table: TableId
    token: str
    pieces: int = 0
    partial: bool = False
    truncated: bool = False
    merged: bool = False
    changed: bool = False
    rereads: dict[str, int] = {}
    swapping: int | None = None
    table_schema: TableSchema | None = None
    begun: int = 0
    finished_rows: int | None = None


class LogBody(FrozenModel):
    """What is known of a held log: the token in its table's name, and how many blobs it has."""

    token: str
    pieces: int = 0
    begun: int = 0


class IdleBody(FrozenModel):
    """What is said with a batch of the tables that it does not concern: their watermarks are its position.

    One row says it of thousands of tables, in whatever lane is written to anyway.

    Attributes:
        excluded: Ids of the entries of tables of which it is not said.
    """

    excluded: tuple[str, ...] = ()


_MODELS: dict[str, type[TableBody | CopyBody | LogBody | IdleBody]] = {
    TABLE: TableBody,
    COPY: CopyBody,
    HELD: LogBody,
    IDLE: IdleBody,
}
Body = TableBody | CopyBody | LogBody | IdleBody | str


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the state; ``lsn`` is a watermark."""

    lsn: Lsn
    body: Body


@dataclass
class Change:
    """What one script does: DDL, then a transaction with its changes of the state, then more DDL.

    Attributes:
        state: New entries by kind and id; None removes one.
        positions: Entries of which only the watermark is raised.
        ddl: Statements before the transaction, which may be repeated.
        statements: Statements within it.
        afterwards: Statements after it, which may be lost.
    """

    state: dict[Key, Entry | None] = field(default_factory=dict)
    positions: dict[Key, Lsn] = field(default_factory=dict)
    ddl: list[str] = field(default_factory=list)
    statements: list[str] = field(default_factory=list)
    afterwards: list[str] = field(default_factory=list)
    parameters: dict[str, object] = field(default_factory=dict)

    def add(self, other: Change) -> None:
        """Do what another change does, after this one."""
        self.state |= other.state
        self.positions |= other.positions
        self.ddl += other.ddl
        self.statements += other.statements
        self.afterwards += other.afterwards
        self.parameters |= other.parameters

    @property
    def sql_size(self) -> int:
        """Characters of SQL."""
        return sum(map(len, [*self.ddl, *self.statements, *self.afterwards]))

    @property
    def size(self) -> int:
        """Bytes of the request, nearly: it is JSON, and so are the state and rows that travel within it."""
        state = json.dumps([text_of(entry) for entry in self.state.values()])
        return self.sql_size + sent_bytes(state) + sum(map(sent_bytes, self.parameters.values()))


def sent_bytes(value: object) -> int:
    """Bytes of a parameter within a request."""
    return len(json.dumps(value, default=repr))


def require(condition: str, otherwise: str) -> str:
    """The statement that fails, as `errors.assertion` reads it, when a condition does not hold.

    ASSERT is not among the statements that are documented to be allowed in transactions.
    """
    escaped = otherwise.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"SELECT IF({condition}, 1, ERROR('etl: {escaped}'))"


def new_token() -> str:
    """A name that no other part of any dataset has."""
    return uuid4().hex[:20]


def table_key(table: TableId) -> Key:
    return TABLE, json.dumps(list(table))


def held_key(table: TableId) -> Key:
    return HELD, json.dumps(list(table))


def table_of(id_: str) -> TableId:
    return TableId(*json.loads(id_))


def lifted(key: Key, entry: Entry, idle: Iterable[Entry]) -> Entry:
    """An entry with the watermark that was said of it as one of an idle table."""
    body = entry.body
    if not isinstance(body, TableBody | CopyBody | LogBody):
        return entry
    id_ = table_key(body.table)[1] if isinstance(body, CopyBody) else key[1]
    told = [each.lsn for each in idle if isinstance(each.body, IdleBody) and id_ not in each.body.excluded]
    position = max((lsn for lsn in told if lsn > body.begun), default=entry.lsn)
    return replace(entry, lsn=position) if position > entry.lsn else entry


def text_of(entry: Entry | None) -> str | None:
    if entry is None:
        return None
    return entry.body if isinstance(entry.body, str) else entry.body.model_dump_json()


def body_of(kind: str, text: str) -> Body:
    return _MODELS[kind].model_validate_json(text) if kind in _MODELS else text
