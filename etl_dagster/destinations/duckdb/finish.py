"""The end of a copy: its log is merged into its staged rows, which become the live table.

That is two transactions, because DuckDB 1.5.5 gets one of both wrong: what is deleted from a table in the transaction
that renames it is deleted, when the WAL is replayed after a kill, from whatever had the new name before. A kill between
the two leaves rows that are merged up to a position; what the log gathers after that is merged when the copy is
finished again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from etl_dagster.arrow.changes import change_schema, from_record_batch, lsn_number, select_changes
from etl_dagster.arrow.compaction import Unresolved, compact
from etl_dagster.arrow.snapshots import unseen
from etl_dagster.arrow.types import column_type
from etl_dagster.destinations.duckdb.client import Client, Session
from etl_dagster.destinations.duckdb.encoding import decode, quoted
from etl_dagster.destinations.duckdb.ledger import (
    CopyState,
    Ledger,
    live_name,
    log_name,
    reread_name,
    staging_name,
)
from etl_dagster.destinations.duckdb.live import append_changelog
from etl_dagster.destinations.duckdb.merge import Merge, bound_key_names, key_match, key_names
from etl_dagster.model import (
    CDC_COLUMNS,
    CHANGE_TYPE_COLUMN,
    LSN_COLUMN,
    TIMESTAMP_COLUMN,
    ChangeSet,
    ChangeType,
    CopyTarget,
    Landing,
    Lsn,
    TableSchema,
)

# CDC columns of a row that the former live table `l` held and the copy does not.
_DELETED = (
    f"?, CASE WHEN l.{quoted(CHANGE_TYPE_COLUMN)} = ? THEN l.{quoted(LSN_COLUMN)} ELSE ? END,"
    f" l.{quoted(TIMESTAMP_COLUMN)}"
)


class Undecided(Exception):
    """Rolls the transaction back; carries the keys to read again."""

    def __init__(self, keys: pa.Table) -> None:
        super().__init__()
        self.keys = keys


class Finish:
    """Makes one copy the live table; each step within a transaction of the caller's."""

    def __init__(self, session: Session, client: Client, target: CopyTarget, piece_bytes: int) -> None:
        self._session = session
        self._client = client
        self._target = target
        self._table = target.table
        self._staging = staging_name(target)
        self._ledger = Ledger(session)
        self._piece_bytes = piece_bytes
        self._former = self._former_names()

    def merge(self, position: Lsn) -> int | None:
        """Bring the log into the staged rows; returns the rows of the live table if the copy was finished before.

        Raises:
            Undecided: Values stand neither in the log nor in the staged rows.
        """
        copy = self._ledger.copy(self._target)
        if copy.finished_rows is not None:
            return copy.finished_rows
        self._client.make_room(len(self._table.columns))
        if copy.truncated:
            self._session.run(f"TRUNCATE {self._staging}")
            self._session.run(f"TRUNCATE {reread_name(self._target.copy_id)}")
        if self._table.landing is Landing.CHANGELOG:
            self._append_log()
        else:
            self._merge_log(copy)
        if self._former:
            self._keep_deleted(position)
        self._ledger.merge_copy(self._target.copy_id)
        return None

    def swap(self, position: Lsn) -> int:
        """Let the staged rows take the live table's place; returns how many they are."""
        live = live_name(self._table.id)
        rows = int(self._session.rows(f"SELECT count(*) FROM {self._staging}")[0][0])
        self._session.run(f"DROP TABLE IF EXISTS {live}")
        self._session.run(f"ALTER TABLE {self._staging} RENAME TO {quoted(self._table.id.name)}")
        self._ledger.set_watermark(self._table.id, position)
        self._ledger.set_schema(self._table)
        self._ledger.finish_copy(self._target.copy_id, rows)
        return rows

    def _former_names(self) -> dict[str, str]:
        """Where deleted rows are kept: what the columns are called in the former live table, if it has the key too."""
        former = self._ledger.schema(self._table.id)
        if self._table.landing is not Landing.SOFT_DELETE or former is None:
            return {}
        if (
            former.oid != self._table.oid
            or former.landing is Landing.CHANGELOG
            or self._ledger.watermark(self._table.id) is None
        ):
            return {}
        names = _common_names(former, self._table)
        return names if set(key_names(self._table)) <= set(names) else {}

    @property
    def _former_key(self) -> list[str]:
        return [self._former[name] for name in key_names(self._table)]

    def _append_log(self) -> None:
        snapshot = self._ledger.snapshot(self._target.copy_id)
        for piece in self._log_pieces(self._piece_bytes):
            changes = [_unseen(part, snapshot) for part in piece]
            append_changelog(self._session, self._staging, changes)

    def _merge_log(self, copy: CopyState) -> None:
        log = log_name(self._target.copy_id)
        size, partial = self._session.rows(f"SELECT count(*), count(unchanged) FROM {log}")[0]
        if not size:
            return
        # A staged row serves a row that never moved; one that moved needs a row read after it had arrived.
        merge = Merge(
            self._session, self._table, self._staging, own_key=not copy.merged, extra_donors=self._more_donors
        )
        # Values are looked for in all of the log before anything is taken from a staged row.
        for changes in self._log_pieces(None if partial else self._piece_bytes):
            undecided = merge.add(compact(changes, tombstones=self._table.landing is Landing.SOFT_DELETE))
            if undecided is not None:
                raise Undecided(undecided)
        merge.finish()

    def _log_pieces(self, limit: int | None) -> Iterator[Sequence[ChangeSet]]:
        schema = change_schema(self._table)
        piece: list[ChangeSet] = []
        with self._client.session() as session:
            columns = ", ".join(map(quoted, schema.names))
            sql = f"SELECT {columns} FROM {log_name(self._target.copy_id)} ORDER BY lsn, ordinal"
            for batch in session.reader(sql):
                piece.append(from_record_batch(self._table, decode(batch, schema)))
                if limit is not None and sum(part.nbytes for part in piece) >= limit:
                    yield piece
                    piece = []
        if piece:
            yield piece

    def _more_donors(self, open_: Unresolved) -> str:
        queries = [self._reread_donors(open_)]
        if self._former:
            queries.append(self._former_donors(open_))
        return " UNION ALL ".join(queries)

    def _reread_donors(self, open_: Unresolved) -> str:
        values = ", ".join(f"x.c{i} AS v{i}" for i in open_.columns)
        positions = [f"c{i}" for i in self._table.key_indexes]
        condition = key_match("x", positions, "u", bound_key_names(self._table))
        return (
            f"SELECT u.r, x.seen_lsn AS age, {values} FROM etl_open AS u"
            f" JOIN {reread_name(self._target.copy_id)} AS x ON {condition} WHERE x.seen_lsn > u.origin"
        )

    def _former_donors(self, open_: Unresolved) -> str:
        """Of a row that is deleted here and there by the same change, the former live table may know more."""
        names = {i: self._former.get(self._table.columns[i].name) for i in open_.columns}
        values = [f"{'NULL' if name is None else f'l.{quoted(name)}'} AS v{i}" for i, name in names.items()]
        condition = key_match("l", self._former_key, "u", bound_key_names(self._table))
        return (
            f"SELECT u.r, -2 AS age, {', '.join(values)} FROM etl_open AS u JOIN {live_name(self._table.id)} AS l"
            f" ON {condition} AND l.{quoted(LSN_COLUMN)} = u.lsn WHERE u.optional"
        )

    def _keep_deleted(self, position: Lsn) -> None:
        """Take over what the former live table has kept, and what was deleted while nobody looked."""
        columns = ", ".join(map(quoted, [*self._former, *CDC_COLUMNS]))
        values = ", ".join(f"l.{quoted(name)}" for name in self._former.values())
        same = key_match("l", self._former_key, "s", key_names(self._table))
        self._session.run(
            f"INSERT INTO {self._staging} ({columns}) SELECT {values}, {_DELETED}"
            f" FROM {live_name(self._table.id)} AS l ANTI JOIN {self._staging} AS s ON {same}",
            [ChangeType.DELETE.value, ChangeType.DELETE.value, lsn_number(position)],
        )


def _unseen(changes: ChangeSet, snapshot: str) -> ChangeSet:
    """The changes that a copy's rows do not show."""
    if changes.xid is None or not snapshot:
        return changes
    return select_changes(changes, unseen(changes.xid, snapshot))


def _common_names(former: TableSchema, table: TableSchema) -> dict[str, str]:
    """Names of the columns that both have, and what they were called formerly."""
    before = {(column.attnum, column_type(column)): column.name for column in former.columns}
    pairs = [(column.name, before.get((column.attnum, column_type(column)))) for column in table.columns]
    return {name: old for name, old in pairs if old is not None}
