"""What the destination remembers about the tables of one pipeline, in a table of BigQuery's beside the data.

It changes in the transaction that changes the data, and a process keeps all of it in memory. Its *epoch* makes that
safe: every transaction asserts the epoch that the process knows and raises it, so what a process has not seen is never
overwritten, and of two processes that believe to be the pipeline's only one, none can undo what the other has done.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from uuid import uuid4

from etl_dagster.destinations.admission import copy_not_begun, require_column_names, require_mergeable
from etl_dagster.destinations.bigquery.client import Client
from etl_dagster.destinations.bigquery.errors import assertion
from etl_dagster.destinations.bigquery.layout import Field
from etl_dagster.destinations.bigquery.naming import Names, bare, fold
from etl_dagster.errors import DestinationError, ErrorKind, EtlError, RowIncomplete, TableError
from etl_dagster.model import CopyTarget, FrozenModel, Lsn, TableId, TableSchema

EPOCH, TABLE, COPY, HELD, SNAPSHOT = "epoch", "table", "copy", "held", "snapshot"
_STATE_FIELDS = (Field("kind", "STRING"), Field("id", "STRING"), Field("lsn", "INT64"), Field("body", "STRING"))
_OWNER_FIELDS = (Field("name", "STRING"), Field("pipeline", "STRING"))
_OTHER_PIPELINE = "Give one of the pipelines another dataset, or publish the table in one of them only"
_STRANGE_TABLE = "Rename or drop that table, or give the pipeline another dataset; then re-sync it"

_SET_STATE = (
    "MERGE {0} AS t USING (SELECT JSON_VALUE(r, '$[0]') AS kind, JSON_VALUE(r, '$[1]') AS id,"
    " CAST(JSON_VALUE(r, '$[2]') AS INT64) AS lsn, JSON_VALUE(r, '$[3]') AS body,"
    " JSON_VALUE(r, '$[4]') IS NOT NULL AS gone FROM UNNEST(JSON_QUERY_ARRAY(@etl_state)) AS r) AS s"
    " ON t.kind = s.kind AND t.id = s.id WHEN MATCHED AND s.gone THEN DELETE"
    " WHEN MATCHED THEN UPDATE SET lsn = s.lsn, body = COALESCE(s.body, t.body)"
    " WHEN NOT MATCHED AND NOT s.gone THEN INSERT (kind, id, lsn, body) VALUES (s.kind, s.id, s.lsn, s.body)"
)

Key = tuple[str, str]


class TableBody(FrozenModel):
    """What is known of a live table.

    Attributes:
        table_schema: The schema that its rows are up to date with.
        physical: The schema whose columns it has, once ``ddl`` has been run by the job of ``token``; None: the same.
        others: Names of columns that the source has no longer.
        partitioning: How it is partitioned, as DDL.
    """

    table_schema: TableSchema
    physical: TableSchema | None = None
    ddl: str = ""
    token: str = ""
    others: tuple[str, ...] = ()
    partitioning: str = ""


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
    finished_rows: int | None = None


class LogBody(FrozenModel):
    """What is known of a held log: the token in its table's name, and how many blobs it has."""

    token: str
    pieces: int = 0


Body = TableBody | CopyBody | LogBody | str


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
    def size(self) -> int:
        """Characters of SQL."""
        return sum(map(len, [*self.ddl, *self.statements, *self.afterwards]))


def new_token() -> str:
    """A name that no other part of any dataset has."""
    return uuid4().hex[:20]


def table_key(table: TableId) -> Key:
    return TABLE, json.dumps(list(table))


def held_key(table: TableId) -> Key:
    return HELD, json.dumps(list(table))


def _table_of(id_: str) -> TableId:
    return TableId(*json.loads(id_))


class Ledger:
    """The state of one pipeline; every commit of the process goes through it, one at a time."""

    def __init__(self, client: Client, names: Names, owner: str) -> None:
        self._client = client
        self._names = names
        self.owner = owner
        self.prefix = f"{sha256(owner.encode()).hexdigest()[:10]}_"
        self._state_ref = names.internal(f"state_{self.prefix.rstrip('_')}")
        self._owners_ref = names.internal("owners")
        self._lock = threading.RLock()
        self._epoch = 0
        self._entries: dict[Key, Entry] | None = None
        self._owners: dict[str, str] = {}

    # -- reading ------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Create the state where it is missing, and take it over from whatever process had it."""
        state, owners = self._state_ref, self._owners_ref
        create = [f"CREATE TABLE IF NOT EXISTS {state} ({_ddl(_STATE_FIELDS)})"]
        create += [f"CREATE TABLE IF NOT EXISTS {owners} ({_ddl(_OWNER_FIELDS)})"]
        take = (
            f"MERGE {state} AS t USING (SELECT '{EPOCH}' AS kind) AS s ON t.kind = s.kind"
            " WHEN MATCHED THEN UPDATE SET lsn = t.lsn + 1"
            f" WHEN NOT MATCHED THEN INSERT (kind, id, lsn) VALUES ('{EPOCH}', '', 1)"
        )
        self._read([*create, take])

    def refresh(self) -> None:
        """Read it anew, when somebody else may have changed it."""
        self._read([])

    def _read(self, before: Sequence[str]) -> None:
        select = (
            f"SELECT kind, id, lsn, body FROM {self._state_ref}"
            f" UNION ALL SELECT 'owner', name, 0, pipeline FROM {self._owners_ref}"
        )
        rows = self._client.run(";\n".join([*before, select]), doing="read its own tables")
        with self._lock:
            self._epoch = next(lsn for kind, _, lsn, _ in rows if kind == EPOCH)
            self._owners = {id_: body for kind, id_, _, body in rows if kind == "owner"}
            self._entries = {
                (kind, id_): Entry(Lsn(lsn), _body_of(kind, body))
                for kind, id_, lsn, body in rows
                if kind not in (EPOCH, "owner")
            }

    @property
    def entries(self) -> Mapping[Key, Entry]:
        """All of it; read anew after a failure."""
        if self._entries is None:
            self.refresh()
        assert self._entries is not None
        return self._entries

    def tables(self) -> dict[TableId, Lsn]:
        """Watermarks of the live tables, also of those that were dropped behind our back."""
        return {_table_of(id_): entry.lsn for (kind, id_), entry in self.entries.items() if kind == TABLE}

    def table(self, table: TableId) -> TableBody | None:
        """What is known of a live table."""
        found = self.entries.get(table_key(table))
        if found is None:
            return None
        assert isinstance(found.body, TableBody)
        return found.body

    def copies(self) -> dict[str, tuple[Lsn, CopyBody]]:
        """Every copy, finished or not."""
        found = {}
        for (kind, id_), entry in self.entries.items():
            if kind == COPY:
                assert isinstance(entry.body, CopyBody)
                found[id_] = entry.lsn, entry.body
        return found

    def copy(self, target: CopyTarget) -> CopyBody:
        """The copy of this target, which must have begun."""
        _, found = self.copies().get(target.copy_id, (None, None))
        if found is None or found.table != target.table.id:
            raise copy_not_begun(target)
        return found

    def copy_lsn(self, copy_id: str) -> Lsn:
        return self.entries[COPY, copy_id].lsn

    def held(self) -> dict[TableId, tuple[Lsn, LogBody]]:
        """Every held log."""
        found = {}
        for (kind, id_), entry in self.entries.items():
            if kind == HELD:
                assert isinstance(entry.body, LogBody)
                found[_table_of(id_)] = entry.lsn, entry.body
        return found

    def snapshots(self, copy_id: str) -> dict[str, str]:
        """What the chunks of a changelog's copy were read by, by digest, in no order."""
        start = f"{copy_id}/"
        found = {id_: entry.body for (kind, id_), entry in self.entries.items() if kind == SNAPSHOT}
        return {id_.removeprefix(start): str(body) for id_, body in found.items() if id_.startswith(start)}

    # -- names --------------------------------------------------------------------------------------------------------

    def own(self, what: str, token: str) -> str:
        """SQL name of a table of our own; ``what`` says what it holds."""
        return self._names.internal(f"{self.prefix}{what}_{token}")

    def staging(self, copy: CopyBody) -> str:
        return self.own("copy", copy.token)

    def reread(self, copy: CopyBody) -> str:
        return self.own("reread", copy.token)

    def log(self, body: CopyBody | LogBody) -> str:
        return self.own("log", body.token)

    def tokens(self) -> set[str]:
        """Tokens of all that is in use."""
        bodies = (entry.body for entry in self.entries.values())
        return {body.token for body in bodies if isinstance(body, CopyBody | LogBody)}

    # -- changing -----------------------------------------------------------------------------------------------------

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else of this process commits meanwhile."""
        with self._lock:
            yield

    def commit(self, change: Change, *, doing: str, table: TableId | None = None) -> None:
        """Carry a change out; what it says of the state is true afterwards, here and there.

        Raises:
            DestinationError: It was not carried out, or nobody knows; then the state is read anew before it is used.
        """
        name = None if table is None else str(table)
        with self._lock:
            self.entries  # noqa: B018 -- reads them, and with them the epoch
            script, parameters = self._script(change)
            try:
                self._client.run(script, doing=doing, table=name, parameters=parameters)
            except EtlError as error:
                self._entries = None
                raise _told(error) from error
            self._remember(change)

    def _script(self, change: Change) -> tuple[str, dict[str, object]]:
        state = self._state_ref
        rows = [[EPOCH, "", str(self._epoch + 1), None, None]]
        for (kind, id_), entry in change.state.items():
            rows.append([kind, id_, str(int(entry.lsn)) if entry else None, _text_of(entry), None if entry else "gone"])
        rows += [[kind, id_, str(int(lsn)), None, None] for (kind, id_), lsn in change.positions.items()]
        statements = [
            *change.ddl,
            "BEGIN TRANSACTION",
            f"ASSERT (SELECT lsn FROM {state} WHERE kind = '{EPOCH}') = {self._epoch} AS 'etl: epoch'",
            *change.statements,
            _SET_STATE.format(state),
            "COMMIT TRANSACTION",
            *change.afterwards,
        ]
        return ";\n".join(statements), {**change.parameters, "etl_state": json.dumps(rows)}

    def _remember(self, change: Change) -> None:
        entries = dict(self.entries)
        for key, entry in change.state.items():
            if entry is None:
                entries.pop(key, None)
            else:
                entries[key] = entry
        for key, lsn in change.positions.items():
            if key in entries:
                entries[key] = replace(entries[key], lsn=lsn)
        self._epoch += 1
        self._entries = entries

    # -- owners -------------------------------------------------------------------------------------------------------

    def own_table(self, table: TableId) -> Change:
        """The change that makes a table this pipeline's."""
        name = _literal(self._names.table_name(table))
        owners = self._owners_ref
        statement = (
            f"ASSERT NOT EXISTS (SELECT 1 FROM {owners} WHERE name = {name} AND pipeline <> {_literal(self.owner)})"
            " AS 'etl: owned'"
        )
        own = (
            f"MERGE {owners} AS t USING (SELECT {name} AS name, {_literal(self.owner)} AS pipeline) AS s"
            " ON t.name = s.name WHEN NOT MATCHED THEN INSERT (name, pipeline) VALUES (s.name, s.pipeline)"
        )
        return Change(statements=[] if self._owns(table) else [statement, own])

    def disown_table(self, table: TableId) -> Change:
        """The change that lets any pipeline have the table."""
        name, owner = _literal(self._names.table_name(table)), _literal(self.owner)
        return Change(statements=[f"DELETE FROM {self._owners_ref} WHERE name = {name} AND pipeline = {owner}"])

    def _owns(self, table: TableId) -> bool:
        return self._owners.get(self._names.table_name(table)) == self.owner

    def require_admissible(self, table: TableSchema) -> None:
        """Raise `TableError` for a table that cannot be mirrored here."""
        require_mergeable(table)
        require_column_names(table, fold=lambda name: fold(self._names.column(name)))
        name = self._names.table_name(table.id)
        for other in self.tables():
            if other != table.id and self._names.table_name(other) == name:
                raise _unusable(table.id, f"{other} has the same name there, {name}", "Set another `table_name`")
        owner = self._owners.get(name)
        if owner is not None and owner != self.owner:
            raise _unusable(table.id, f"it belongs to pipeline {owner!r}, as {name}", _OTHER_PIPELINE)
        if owner is None and self._client.columns(bare(self._names.live(table.id))) is not None:
            raise _unusable(table.id, f"a table {name} exists there that no pipeline made", _STRANGE_TABLE)

    def learn_owner(self, table: TableId) -> None:
        self._owners[self._names.table_name(table)] = self.owner

    def forget_owner(self, table: TableId) -> None:
        self._owners.pop(self._names.table_name(table), None)


def _told(error: EtlError) -> EtlError:
    """What one of our assertions says."""
    said = assertion(error) or ""
    if said == "epoch":
        return DestinationError(
            "Another process of this pipeline has written to the dataset meanwhile",
            hint="It is tried again with what is there now; see that only one process runs the pipeline",
            kind=ErrorKind.DESTINATION_UNAVAILABLE,
        )
    if said == "owned":
        return TableError(
            "Another pipeline has just begun to replicate into the same table", hint=_OTHER_PIPELINE, table=error.table
        )
    if said.startswith("incomplete "):
        return RowIncomplete(said.removeprefix("incomplete "))
    return error


def _unusable(table: TableId, why: str, hint: str) -> TableError:
    return TableError(f"{table} cannot be mirrored: {why}", hint=hint, table=str(table))


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _ddl(fields: Sequence[Field]) -> str:
    return ", ".join(f"{each.name} {each.type}" for each in fields)


def _text_of(entry: Entry | None) -> str | None:
    if entry is None:
        return None
    return entry.body if isinstance(entry.body, str) else entry.body.model_dump_json()


def _body_of(kind: str, text: str) -> Body:
    models: dict[str, type[TableBody | CopyBody | LogBody]] = {TABLE: TableBody, COPY: CopyBody, HELD: LogBody}
    return models[kind].model_validate_json(text) if kind in models else text
