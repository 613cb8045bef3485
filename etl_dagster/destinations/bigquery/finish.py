"""The end of a copy: its log is merged into its staged rows, which then take the live table's place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from etl_dagster.arrow.changelog import changelog_rows
from etl_dagster.arrow.changes import lsn_number, select_changes
from etl_dagster.arrow.compaction import compact
from etl_dagster.arrow.fixed import array_of
from etl_dagster.arrow.snapshots import unseen
from etl_dagster.arrow.types import column_type
from etl_dagster.destinations.bigquery.live import Context, append_changelog, changelog_heap
from etl_dagster.destinations.bigquery.logs import read_changes
from etl_dagster.destinations.bigquery.merge import Merge, Part, Place, equal
from etl_dagster.destinations.bigquery.naming import bare
from etl_dagster.destinations.bigquery.stage import Heap, Stage
from etl_dagster.destinations.bigquery.staging import SNAPSHOT_LABEL, chunk_key, staged_place
from etl_dagster.destinations.bigquery.state import (
    COPY,
    Change,
    CopyBody,
    Entry,
)
from etl_dagster.destinations.bigquery.swap import swap
from etl_dagster.model import (
    ChangeSet,
    ChangeType,
    Column,
    CopyTarget,
    Landing,
    Lsn,
    TableSchema,
)

_DOING = "finish a copy"
_MERGED = "etl_merged"


class Undecided(Exception):
    """Carries the keys to read again."""

    def __init__(self, keys: pa.Table) -> None:
        super().__init__()
        self.keys = keys


class Finish:
    """Makes one copy of a whole table the live table."""

    def __init__(self, context: Context, target: CopyTarget, piece_bytes: int) -> None:
        self._context = context
        self._ledger = context.ledger
        self._target = target
        self._table = target.table
        self._piece_bytes = piece_bytes
        self._copy = self._ledger.copy(target)
        self._staged = staged_place(self._table, self._copy, context)

    def run(self, position: Lsn) -> int:
        """Returns the rows of the live table.

        Raises:
            Undecided: Values stand neither in the log nor in the staged rows.
        """
        copy = self._copy
        if copy.finished_rows is not None:
            return copy.finished_rows
        if copy.swapping is None:
            copy = self._merge(position)
        return swap(self._context, self._target.copy_id, copy)

    # -- the log ------------------------------------------------------------------------------------------------------

    def _merge(self, position: Lsn) -> CopyBody:
        """Bring the log into the staged rows, and say that they will be the live table."""
        update = {"merged": True, "truncated": False, "pieces": 0, "partial": False}
        merged = self._copy.model_copy(update={**update, "swapping": int(position), "table_schema": self._table})
        change = Change()
        if self._copy.truncated:
            change.statements.append(f"TRUNCATE TABLE {self._staged.ref}")
        with Stage(self._context.client, self._ledger, self._context.config) as stage:
            if self._copy.pieces:
                self._bring_log(stage, change)
                change.statements.append(f"TRUNCATE TABLE {self._ledger.log(self._copy)}")
            if former := self._former():
                change.statements.append(self._keep_deleted(former, position))
            merged = merged.model_copy(update={"changed": bool(change.statements)})
            change.state[COPY, self._target.copy_id] = Entry(position, merged)
            # Where nothing is replaced, nobody need know of it beforehand.
            if change.statements or self._ledger.table(self._table.id) is not None:
                self._ledger.commit(change, doing=_DOING, table=self._table.id)
        return merged

    def _bring_log(self, stage: Stage, change: Change) -> None:
        if self._table.landing is Landing.CHANGELOG:
            heaps = self._append_log(stage, change)
        else:
            heaps = self._merge_log(stage, change)
        for heap in heaps:
            change.parameters |= heap.parameters
            change.afterwards += [heap.leftover] if heap.leftover else []

    def _append_log(self, stage: Stage, change: Change) -> list[Heap]:
        snapshot = self._snapshot()
        heap = changelog_heap(stage, self._table, self._context.config)
        for piece in self._log_pieces(self._piece_bytes):
            for part in piece:
                rows = changelog_rows(_unseen(part, snapshot))
                if len(rows):
                    heap.add(rows.columns)
        if heap.rows:
            stage.place([heap])
            change.statements.append(append_changelog(heap, self._staged))
        return [heap] if heap.rows else []

    def _merge_log(self, stage: Stage, change: Change) -> list[Heap]:
        parts: list[Part] = []
        tombstones = self._table.landing is Landing.SOFT_DELETE
        # Values are looked for in all of the log before anything is taken from a staged row.
        pieces = [list(self._log_pieces(None))] if self._copy.partial else [self._log_pieces(self._piece_bytes)]
        for piece in (piece for each in pieces for piece in each):
            compacted = compact(piece, tombstones=tombstones)
            if not parts or not parts[-1].goes_on_with(compacted):
                parts.append(Part.begin(stage, self._table, self._context.config, open_=compacted.unresolved))
            parts[-1].add(compacted)
        heaps = [part.heap for part in parts]
        stage.place(heaps)
        for number, part in enumerate(parts):
            donors = "" if part.open is None else self._donors(part, merged=self._copy.merged or number > 0)
            merge = Merge(self._staged, part, {}, donors)
            if part.open is not None:
                self._require_decided(merge, part)
            change.statements += merge.replace(f"{_MERGED}_{number}")
        return heaps

    def _require_decided(self, merge: Merge, part: Part) -> None:
        query = merge.undecided()
        rows = self._context.client.run(query, doing=_DOING, table=str(self._table.id), parameters=part.heap.parameters)
        if rows:
            assert part.keys is not None
            assert part.open is not None
            found = part.open.rows[[row for (row,) in rows]]
            raise Undecided(part.keys.take(array_of(found)))

    def _log_pieces(self, limit: int | None) -> Iterator[Sequence[ChangeSet]]:
        piece: list[ChangeSet] = []
        for changes in self._logged_changes():
            piece.append(changes)
            if limit is not None and sum(part.nbytes for part in piece) >= limit:
                yield piece
                piece = []
        if piece:
            yield piece

    def _logged_changes(self) -> Iterator[ChangeSet]:
        log = self._ledger.log(self._copy)
        return read_changes(self._context.client, log, self._table, self._copy.pieces)

    def _snapshot(self) -> str:
        """What the one chunk of a changelog's copy was read by; empty when nothing is staged."""
        found = {digest: json.loads(text) for digest, text in self._ledger.snapshots(self._target.copy_id).items()}
        for chunk_id, snapshot in found.values():
            load = self._context.client.find_load(chunk_key(self._copy, chunk_id), doing=_DOING)
            # A chunk without rows is not loaded, and then any of its snapshots is right.
            return str(snapshot if load is None else found[load.labels[SNAPSHOT_LABEL]][1])
        return ""

    # -- where missing values are found -------------------------------------------------------------------------------

    def _donors(self, part: Part, *, merged: bool) -> str:
        queries = [] if self._copy.truncated else [self._staged_donors(part, merged=merged)]
        if self._context.client.columns(bare(self._ledger.reread(self._copy))) is not None:
            queries.append(self._reread_donors(part))
        if former := self._former():
            queries.append(self._former_donors(part, former))
        nothing = ", ".join(f"u.c{column.attnum} AS v{column.attnum}" for column in self._open(part))
        return " UNION ALL ".join(queries) or f"SELECT u._row, 0 AS age, {nothing} FROM {part.heap.source} AS u LIMIT 0"

    def _open(self, part: Part) -> list[Column]:
        assert part.open is not None
        return [self._table.columns[i] for i in part.open.columns]

    def _staged_donors(self, part: Part, *, merged: bool) -> str:
        """A staged row serves a row that never moved; one that moved needs a row read after it had arrived.

        Once changes have been merged, staged rows are as live ones.
        """
        place = self._staged
        values = ", ".join(f"d.{place.name(column)} AS v{column.attnum}" for column in self._open(part))
        own = place.source_key_of("u") if merged else place.staged_key_of("u")
        settled = "" if merged else " AND u._origin = 0"
        return (
            f"SELECT u._row, -1 AS age, {values} FROM {part.heap.source} AS u JOIN {place.ref} AS d"
            f" ON {equal(place.key_of('d'), own)} WHERE u._open AND NOT u._fresh{settled}"
        )

    def _reread_donors(self, part: Part) -> str:
        place = self._staged
        values = ", ".join(f"x.c{column.attnum} AS v{column.attnum}" for column in self._open(part))
        return (
            f"SELECT u._row, x.seen_lsn AS age, {values} FROM {part.heap.source} AS u"
            f" JOIN {self._ledger.reread(self._copy)} AS x"
            f" ON {equal(place.staged_key_of('x'), place.staged_key_of('u'))}"
            " WHERE u._open AND x.seen_lsn > u._origin"
        )

    def _former_donors(self, part: Part, former: _Former) -> str:
        """Of a row that is deleted here and there by the same change, the former live table may know more."""
        values = ", ".join(f"{former.staged(column, 'l')} AS v{column.attnum}" for column in self._open(part))
        return (
            f"SELECT u._row, -2 AS age, {values} FROM {part.heap.source} AS u JOIN {former.place.ref} AS l"
            f" ON {equal(former.key_of('l', self._table), self._staged.staged_key_of('u'))}"
            f" AND l.{former.place.cdc[1]} = u._lsn WHERE u._open AND u._optional"
        )

    def _former(self) -> _Former | None:
        """The live table whose deleted rows are to be kept, if it has the key too."""
        body = self._ledger.table(self._table.id)
        if self._table.landing is not Landing.SOFT_DELETE or body is None:
            return None
        schema = body.physical or body.table_schema
        if schema.oid != self._table.oid or schema.landing is Landing.CHANGELOG:
            return None
        place = Place(self._context.names.live(self._table.id), schema, self._context.names, self._context.config)
        former = _Former(place, self._staged)
        return former if all(former.has(column) for column in self._table.key) else None

    def _keep_deleted(self, former: _Former, position: Lsn) -> str:
        """Take over what the former live table has kept, and what was deleted while nobody looked."""
        shared = [column for column in self._table.columns if former.has(column)]
        kind, lsn, timestamp = former.place.cdc
        delete = f"'{ChangeType.DELETE.value}'"
        values = [former.staged(column, "l") for column in shared]
        values += [delete, f"IF(l.{kind} = {delete}, l.{lsn}, NUMERIC '{lsn_number(position)}')", f"l.{timestamp}"]
        columns = ", ".join([*map(self._staged.name, shared), *self._staged.cdc])
        same = equal(self._staged.key_of("s"), former.key_of("l", self._table))
        return (
            f"INSERT INTO {self._staged.ref} ({columns}) SELECT {', '.join(values)} FROM {former.place.ref} AS l"
            f" WHERE NOT EXISTS (SELECT 1 FROM {self._staged.ref} AS s WHERE {same})"
        )


@dataclass(frozen=True, slots=True)
class _Former:
    """A live table that is about to be replaced."""

    place: Place
    staged_place: Place

    def _name(self, attnum: int, type_: pa.DataType) -> str | None:
        for column in self.place.table.columns:
            if column.attnum == attnum and column_type(column) == type_:
                return self.place.name(column)
        return None

    def has(self, column: Column) -> bool:
        return self._name(column.attnum, column_type(column)) is not None

    def staged(self, column: Column, alias: str) -> str:
        """A value of it as the staging area has it; NULL when it has no such column."""
        name = self._name(column.attnum, column_type(column))
        type_ = self.place.type(column)
        return type_.staged_null if name is None else type_.to_staged(f"{alias}.{name}")

    def key_of(self, alias: str, table: TableSchema) -> list[str]:
        return [
            self.place.type(column).comparable(f"{alias}.{self._name(column.attnum, column_type(column))}")
            for column in table.key
        ]


def _unseen(changes: ChangeSet, snapshot: str) -> ChangeSet:
    """The changes that a copy's rows do not show."""
    if changes.xid is None or not snapshot:
        return changes
    return select_changes(changes, unseen(changes.xid, snapshot))
