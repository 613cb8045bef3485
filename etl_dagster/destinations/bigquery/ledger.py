"""What the destination remembers about the tables of one pipeline, in tables of BigQuery's beside the data.

It changes in the transaction that changes the data. Two transactions that change one table cannot both commit, so the
state is spread over several: what concerns one table of the source is in one *lane*, and batches go into as many live
tables at once as there are lanes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from typing import TypeGuard

from etl_dagster.destinations.admission import copy_not_begun, require_column_names, require_mergeable
from etl_dagster.destinations.bigquery.client import Client
from etl_dagster.destinations.bigquery.errors import assertion
from etl_dagster.destinations.bigquery.lanes import Lane
from etl_dagster.destinations.bigquery.naming import INTERNAL, Names, bare, fold
from etl_dagster.destinations.bigquery.state import (
    COPY,
    HELD,
    IDLE_KEY,
    SNAPSHOT,
    TABLE,
    Change,
    CopyBody,
    Entry,
    IdleBody,
    Key,
    LogBody,
    TableBody,
    lifted,
    new_token,
    require,
    table_key,
    table_of,
)
from etl_dagster.errors import DestinationError, ErrorKind, EtlError, RowIncomplete, TableError
from etl_dagster.model import CopyTarget, Lsn, TableId, TableSchema

# As many scripts run beside each other. It says where in the state a table is looked for, so it never changes.
LANES = 8
_CREATE_OWNERS = "CREATE TABLE IF NOT EXISTS {0} (name STRING, pipeline STRING)"
_OTHER_PIPELINE = "Give one of the pipelines another dataset, or publish the table in one of them only"
_STRANGE_TABLE = "Rename or drop that table, or give the pipeline another dataset; then re-sync it"


class Ledger:
    """The state of one pipeline; every commit of the process goes through it."""

    def __init__(self, client: Client, names: Names, owner: str) -> None:
        self._client = client
        self._names = names
        self.owner = owner
        self.prefix = f"{sha256(owner.encode()).hexdigest()[:10]}_"
        self._lane_names = [f"{self.prefix}state_{number}" for number in range(LANES)]
        self._idle: dict[int, Entry] = {}
        writers: list[str | None] = [new_token(), None]
        self._lanes = [
            Lane(client, names.internal(name), writers, self._lifted, partial(self._idle.__setitem__, number))
            for number, name in enumerate(self._lane_names)
        ]
        self._owners_ref = names.internal("owners")
        self._lock = threading.RLock()
        self._owners: dict[str, str] = {}

    # -- reading ------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Read all of it."""
        there = self._client.table_names()
        queries = [
            lane.selection(number)
            for number, (lane, name) in enumerate(zip(self._lanes, self._lane_names, strict=True))
            if INTERNAL + name in there
        ]
        if f"{INTERNAL}owners" in there:
            queries.append(f"SELECT -1 AS lane, 'owner' AS kind, name, 0 AS lsn, pipeline FROM {self._owners_ref}")
        rows = self._client.run(" UNION ALL ".join(queries), doing="read its own tables") if queries else []
        self._owners = {id_: body for lane, _, id_, _, body in rows if lane == -1}
        for number, lane in enumerate(self._lanes):
            lane.begin([row[1:] for row in rows if row[0] == number])
        for lane in self._lanes:
            lane.raise_watermarks()

    def _lifted(self, key: Key, entry: Entry) -> Entry:
        return lifted(key, entry, self._idle.values())

    def entry(self, key: Key) -> Entry | None:
        """One entry, of whatever kind."""
        return next((lane.entries[key] for lane in self._lanes if key in lane.entries), None)

    def keys(self) -> dict[TableId, list[Key]]:
        """Keys of all entries that have watermarks which count, by table."""
        found: dict[TableId, list[Key]] = {}
        for lane in self._lanes:
            for key, entry in lane.entries.items():
                if _is_open(entry.body):
                    found.setdefault(entry.body.table, []).append(key)
                elif key[0] in (TABLE, HELD):
                    found.setdefault(table_of(key[1]), []).append(key)
        return found

    @property
    def begun(self) -> int:
        """What the body of a new entry says that it came after."""
        for lane in self._lanes:
            lane.entries  # noqa: B018 -- reads anew what a failure has left uncertain
        return max((int(entry.lsn) for entry in self._idle.values()), default=0)

    def tables(self) -> dict[TableId, Lsn]:
        """Watermarks of the live tables, also of those that were dropped behind our back."""
        return {table_of(id_): entry.lsn for id_, entry in self._entries(TABLE)}

    def _entries(self, kind: str) -> Iterator[tuple[str, Entry]]:
        for lane in self._lanes:
            for (kind_, id_), entry in lane.entries.items():
                if kind_ == kind:
                    yield id_, entry

    def table(self, table: TableId) -> TableBody | None:
        """What is known of a live table."""
        found = self.entry(table_key(table))
        if found is None:
            return None
        assert isinstance(found.body, TableBody)
        return found.body

    def copies(self) -> dict[str, tuple[Lsn, CopyBody]]:
        """Every copy, finished or not."""
        found = {}
        for id_, entry in self._entries(COPY):
            assert isinstance(entry.body, CopyBody)
            found[id_] = entry.lsn, entry.body
        return found

    def copy(self, target: CopyTarget) -> CopyBody:
        """The copy of this target, which must have begun."""
        entry = self.entry((COPY, target.copy_id))
        if entry is None or not isinstance(entry.body, CopyBody) or entry.body.table != target.table.id:
            raise copy_not_begun(target)
        return entry.body

    def held(self) -> dict[TableId, tuple[Lsn, LogBody]]:
        """Every held log."""
        found = {}
        for id_, entry in self._entries(HELD):
            assert isinstance(entry.body, LogBody)
            found[table_of(id_)] = entry.lsn, entry.body
        return found

    def snapshots(self, copy_id: str) -> dict[str, str]:
        """What the chunks of a changelog's copy were read by, by digest, in no order."""
        start = f"{copy_id}/"
        found = ((id_, str(entry.body)) for id_, entry in self._entries(SNAPSHOT))
        return {id_.removeprefix(start): body for id_, body in found if id_.startswith(start)}

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
        bodies = [entry.body for lane in self._lanes for entry in lane.entries.values()]
        return {body.token for body in bodies if isinstance(body, LogBody) or _is_open(body)}

    def idle_change(self, position: Lsn, excluded: Iterable[TableId]) -> Change:
        """The change that says of all tables but some that the stream is in them up to a position."""
        body = IdleBody(excluded=tuple(sorted(table_key(table)[1] for table in excluded)))
        return Change(state={IDLE_KEY: Entry(position, body)})

    def is_state(self, name: str) -> bool:
        """Whether a table of ours, by its name without what all begin with, holds state."""
        return name in self._lane_names

    # -- changing -----------------------------------------------------------------------------------------------------

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other operation of this process reads the state and changes it meanwhile."""
        with self._lock:
            yield

    def lane(self, table: TableId) -> int:
        """The number of the lane that all about a table is in."""
        return sha256(json.dumps(list(table)).encode()).digest()[0] % LANES

    def commit(self, change: Change, *, doing: str, table: TableId) -> None:
        """Carry out a change that concerns one table.

        Raises:
            EtlError: It was not carried out, or nobody knows; then the state is read anew before it is used.
        """
        self.commit_lane(self.lane(table), change, doing=doing, table=table)

    def epoch(self, lane: int) -> int | None:
        """Raised by every commit of a lane, whoever makes it."""
        return self._lanes[lane].epoch

    def commit_lane(self, lane: int, change: Change, *, doing: str, table: TableId | None = None) -> None:
        """Carry out a change that concerns tables of one lane; ``table`` when it is only one."""
        try:
            self._lanes[lane].commit(change, doing=doing, table=None if table is None else str(table))
        except EtlError as error:
            raise _told(error) from error

    def raise_idle(self) -> None:
        """Have the entries say what was said of idle tables."""
        for lane in self._lanes:
            lane.raise_watermarks()

    # -- owners -------------------------------------------------------------------------------------------------------

    def own_table(self, table: TableId) -> Change:
        """The change that makes a table this pipeline's."""
        name = _literal(self._names.table_name(table))
        owners = self._owners_ref
        other = f"SELECT 1 FROM {owners} WHERE name = {name} AND pipeline <> {_literal(self.owner)}"
        statement = require(f"NOT EXISTS ({other})", "owned")
        own = (
            f"MERGE {owners} AS t USING (SELECT {name} AS name, {_literal(self.owner)} AS pipeline) AS s"
            " ON t.name = s.name WHEN NOT MATCHED THEN INSERT (name, pipeline) VALUES (s.name, s.pipeline)"
        )
        return (
            Change() if self._owns(table) else Change(ddl=[_CREATE_OWNERS.format(owners)], statements=[statement, own])
        )

    def disown_table(self, table: TableId) -> Change:
        """The change that lets any pipeline have the table."""
        name, owner = _literal(self._names.table_name(table)), _literal(self.owner)
        if not self._owns(table):
            return Change()
        return Change(statements=[f"DELETE FROM {self._owners_ref} WHERE name = {name} AND pipeline = {owner}"])

    def _owns(self, table: TableId) -> bool:
        return self._owners.get(self._names.table_name(table)) == self.owner

    def require_admissible(self, table: TableSchema) -> None:
        """Raise `TableError` for a table that cannot be mirrored here."""
        require_mergeable(table)
        require_column_names(table, fold=lambda name: fold(self._names.column(name)))
        name = self._names.table_name(table.id)
        for other in {*self.tables(), *(copy.table for _, copy in self.copies().values())}:
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


def _is_open(body: object) -> TypeGuard[CopyBody]:
    return isinstance(body, CopyBody) and body.finished_rows is None


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
