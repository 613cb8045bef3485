"""Keeps the tables in step with the source's catalogue: what is published, and how the tables look now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from etl_dagster.destinations.base import Destination
from etl_dagster.errors import SourceLocked
from etl_dagster.model import EventBatch, Landing, Lsn, Route, TableChoices, TableEvents, TableId, TableSchema
from etl_dagster.model.choices import with_limits
from etl_dagster.replication.copying import Copier
from etl_dagster.replication.difference import altered_types, column_changes, difference, same_columns, type_reason
from etl_dagster.replication.lifecycle import RESYNC_ASKED
from etl_dagster.replication.ports import RelationFile, Source
from etl_dagster.replication.report import Reporter
from etl_dagster.replication.stream import passed
from etl_dagster.replication.tables import COPYING_STATES, Tables
from etl_dagster.store.base import TableRecord, TableState

_UNKNOWN_LSN = Lsn(2**63)


class Catalogue:
    """What the source's catalogue says, brought to the tables.

    The catalogue is ahead of the stream, so what it says of a table holds for the stream only past the position that
    was read after it.

    Args:
        spent: Takes up what the destination bills.
    """

    def __init__(
        self,
        source: Source,
        destination: Destination,
        tables: Tables,
        copier: Copier,
        choices: TableChoices,
        reporter: Reporter,
        spent: Counter[str],
    ) -> None:
        self._spent = spent
        self._limits = destination.capabilities.limits
        self._source = source
        self._destination = destination
        self._tables = tables
        self._copier = copier
        self._choices = choices
        self._reporter = reporter
        # Tables whose copy has to begin past a position, where the catalogue's schema is the stream's too.
        self._not_before: dict[TableId, Lsn] = {}
        # Transactions that wrote to a table when it was published in another way. Their changes are decoded in that way
        # whenever they commit, so a copy has to begin, and with it its change log, when they are over.
        self._writing: dict[TableId, set[str]] = {}
        # Columns that changed, and the position past which no row can bring that to light before we do.
        self._silent: dict[TableId, tuple[TableSchema, Lsn]] = {}
        self._told: set[TableId] = set()

    def refresh(self, position: Lsn) -> None:
        """Follow the publication: tables that joined, left, were altered or made anew."""
        # What is remembered beside a schema has to be older: who alters the table in between is noticed the next time.
        files = dict(self._source.files(list(self._tables.schemas.values())))
        published = {table: self.chosen(schema) for table, schema in self._source.tables().items()}
        if others := [schema for schema in published.values() if not self._is_same(schema)]:
            files |= self._source.files(others)
        read_at = self._source.current_position()
        new = published.keys() - self._tables.records.keys()
        if new:
            with self._tables.together():
                for table in sorted(new):
                    self._refresh_table(published[table], files.get(table, ()), position, read_at)
        for table in published.keys() - new:
            self._refresh_table(published[table], files.get(table, ()), position, read_at)
        for table, record in list(self._tables.records.items()):
            if table not in published and record.state is not TableState.REMOVED:
                self._leave(record)

    def _is_same(self, schema: TableSchema) -> bool:
        known = self._tables.schemas.get(schema.id)
        return known is not None and known.oid == schema.oid

    def chosen(self, found: TableSchema) -> TableSchema:
        """A table under the choices, but for a landing that keeps what another one would give up.

        That takes a re-sync: a slip in the configuration must not cost the rows that only the destination has.
        """
        schema = with_limits(self._choices.apply(found), self._limits)
        known, record = self._tables.schemas.get(found.id), self._tables.records.get(found.id)
        if known is None or record is None or known.landing in (Landing.MIRROR, schema.landing):
            return schema
        if record.state is TableState.INIT and record.reason == RESYNC_ASKED:
            return schema
        if found.id not in self._told:
            self._told.add(found.id)
            self._reporter.notice(
                f"{found.id} goes on landing as {known.landing}, though the configuration says {schema.landing}: "
                "what it has kept would be lost. A re-sync changes it"
            )
        return schema.model_copy(update={"landing": known.landing})

    def settle(self, position: Lsn) -> None:
        """Look whether the transactions that copies have to wait for are over, and the stream past them."""
        waiting = {table: self._tables.schemas[table] for table in self._writing if table in self._tables.schemas}
        if waiting:
            present = {writer.virtual_transaction for writer in self._source.writers(list(waiting.values()))}
            over = [table for table in waiting if not self._writing[table] & present]
            end = self._source.inserted_position() if over else position
            for table in over:
                del self._writing[table]
                self._not_before[table] = Lsn(max(self._not_before.get(table, 0), end))
        behind = [each for each in self._not_before.values() if position < each != _UNKNOWN_LSN]
        if behind and passed(position, self._source.current_position()):
            self._source.flush_wal()  # nothing else will bring the stream there

    def may_begin(self, table: TableId, position: Lsn) -> bool:
        """Whether the stream has come to where a copy with the known schema may begin."""
        if table in self._writing or table not in self._tables.schemas:
            return False
        return passed(position, self._not_before.get(table, Lsn(0)))

    def awaits_stream(self, position: Lsn) -> bool:
        """Whether a copy, or columns that changed, wait for the stream to get further."""
        return self.has_silent or any(position < each != _UNKNOWN_LSN for each in self._not_before.values())

    def begun(self, table: TableId) -> None:
        """A copy has begun."""
        self._not_before.pop(table, None)

    def drifted(self, table: TableId, reason: str) -> None:
        """Copy a table afresh that changed in a way that cannot be followed, once the catalogue was read again.

        Readers keep what they have until then.
        """
        self._copy_afresh(table, f"its schema changed in the source: {reason}", live=False)
        self._not_before[table] = _UNKNOWN_LSN

    def outdated_copy(self, table: TableId) -> None:
        """The stream has brought other columns than those that the table's running copy, if there is one, knows."""
        record = self._tables.records[table]
        if record.state in COPYING_STATES:
            self._copy_afresh(table, "its columns changed while it was copied", live=record.live)

    def evolved(self, schema: TableSchema, position: Lsn) -> None:
        """The stream has brought other columns, which the destination has by now.

        Known before the position is, an older schema could come again and contradict the newer one.
        """
        known = self._tables.schemas[schema.id]
        self._tables.save_schema(schema, position)
        self._reporter.schema_changed(schema.id, schema, column_changes(known, schema))

    def look(self, known: TableSchema) -> TableSchema | None:
        """How a table is now that the stream contradicts; None when its older rows have values that nobody tells us."""
        try:
            found = self._source.describe(known)
        except SourceLocked:  # by who alters it again; to wait would hold up all the other tables
            return None
        if found is None:
            return None
        now = self.chosen(found)
        if altered_types(known, now) and self._rewritten(known):
            return None
        untold = [column for column in now.columns if column.attnum > known.natts and column.missing is None]
        if untold and self._rewritten(known):
            return None
        return now

    @property
    def has_silent(self) -> bool:
        """Columns have changed that `follow_silent` is to bring."""
        return bool(self._silent)

    def follow_silent(self, position: Lsn) -> bool:
        """Bring columns that changed without any row that would have told; returns whether there were any."""
        done = False
        for table, (schema, read_at) in list(self._silent.items()):
            known = self._tables.schemas[table]
            if self._tables.records[table].state is not TableState.READY or same_columns(known, schema):
                del self._silent[table]
            elif passed(position, read_at):
                self.bring_columns(schema, position)
                self.evolved(schema, position)
                del self._silent[table]
                done = True
        return done

    def bring_columns(self, schema: TableSchema, position: Lsn) -> None:
        """Give a live table the columns of its schema, which the stream is past."""
        events = iter([[TableEvents(schema)]])
        written = self._destination.write_events(EventBatch(events, lambda: position, {schema.id: Route()}))
        self._spent.update(written.usage)

    def _refresh_table(self, schema: TableSchema, files: Sequence[RelationFile], position: Lsn, read_at: Lsn) -> None:
        table = schema.id
        record, known = self._tables.records.get(table), self._tables.schemas.get(table)
        change = "" if known is None else difference(known, schema) or _unseen_change(schema.oid, record, files)
        if known is not None and not change and (altered := altered_types(known, schema)) and self._rewritten(known):
            change = type_reason(altered[0])
        if record is None:
            self._tables.add(table)
        elif record.state is TableState.REMOVED:
            self._tables.recopy(table, "it is in the publication again", live=False)
        elif record.state is not TableState.QUARANTINED and known is not None and _holds_rows(record):
            if change:
                self._copy_afresh(table, change, live=False)
            elif not same_columns(known, schema):
                change = self._columns_changed(record, known, schema, read_at)
            elif record.state is TableState.READY:
                self._tables.save_schema(schema, position)  # policies, membership: nothing that its rows would show
        if not self._tables.records[table].held and (known is None or change or same_columns(known, schema)):
            self._remember_files(table, files)
        if self._tables.records[table].state is TableState.INIT:
            self._prepare(schema, position, read_at, changed=bool(change))

    def _prepare(self, schema: TableSchema, position: Lsn, read_at: Lsn, *, changed: bool) -> None:
        """Have the schema ready for the copy that is to come."""
        table = schema.id
        self._tables.save_schema(schema, position)
        if not schema.key and schema.landing is not Landing.CHANGELOG:
            self._tables.quarantine(table, *_no_key(schema), hold=False)
            return
        if changed or self._not_before.get(table) == _UNKNOWN_LSN:
            self._not_before[table] = read_at
            self._writing[table] = {writer.virtual_transaction for writer in self._source.writers([schema])}

    def _columns_changed(self, record: TableRecord, known: TableSchema, schema: TableSchema, read_at: Lsn) -> str:
        """Follow the change, or copy afresh; returns why, when the next copy has to wait for the stream."""
        table = record.table
        if record.state in COPYING_STATES or record.state is TableState.INIT:
            reason = "its columns changed in the source"
            # A slice brings no rows but its own.
            untold = bool(record.slices) and self.look(known) is None
            self._copy_afresh(table, reason, live=record.live and not untold)
            return reason
        waiting = self._silent.get(table)
        if waiting is None or not same_columns(waiting[0], schema):
            if self.look(known) is None:
                reason = "it has a new column whose value in older rows is not known"
                self._copy_afresh(table, reason, live=False)
                return reason
            self._silent[table] = (schema, read_at)
        return ""

    def _copy_afresh(self, table: TableId, reason: str, *, live: bool) -> None:
        self._copier.drop(table)
        self._tables.recopy(table, reason, live=live)

    def _leave(self, record: TableRecord) -> None:
        self._copier.drop(record.table)
        self._tables.move(record.table, TableState.REMOVED, reason="it is not in the publication")
        if record.held:
            self._destination.release_table(record.table)

    def _rewritten(self, known: TableSchema) -> bool:
        """Whether a heap of the table was written anew since its schema was known, or nobody knows.

        It may have been to fill in a new column, or to give one other values.
        """
        remembered = self._tables.records[known.id].files
        if remembered is None:
            return True
        before = {relation: filenode for relation, filenode, _ in remembered}
        now = self._source.files([known]).get(known.id, ())
        return any(before.get(file.relation, file.filenode) != file.filenode for file in now)

    def _remember_files(self, table: TableId, files: Sequence[RelationFile]) -> None:
        seen = tuple(sorted((file.relation, file.filenode, file.attachment) for file in files))
        if self._tables.records[table].files != seen:
            self._tables.amend(table, files=seen)


def _unseen_change(oid: int, record: TableRecord | None, files: Sequence[RelationFile]) -> str:
    """What happened to a table's heaps that a stream does not tell; empty when nothing."""
    return _rewrite(oid, record, files) or _partition_change(oid, record, files)


def _rewrite(oid: int, record: TableRecord | None, files: Sequence[RelationFile]) -> str:
    """A new heap alone comes of TRUNCATE, which the stream tells, or of VACUUM FULL; altered columns with it do not."""
    before = [known[1:] for known in (record.files if record and record.files else ()) if known[0] == oid]
    now = [(file.filenode, file.attachment) for file in files if file.relation == oid]
    if not (before and now):
        return ""
    (file, columns), (new_file, new_columns) = before[0], now[0]
    altered = not f"{new_columns},".startswith(f"{columns},")  # columns that were added stand at the end
    if file != new_file and altered:
        return "its rows were rewritten (ALTER TABLE … USING, SET EXPRESSION), which the stream does not tell"
    return ""


def _partition_change(oid: int, record: TableRecord | None, files: Sequence[RelationFile]) -> str:
    """What happened to partitions that a stream published through their root does not tell; empty when nothing."""
    if record is None or record.files is None:
        return ""
    before = {relation: (filenode, attachment) for relation, filenode, attachment in record.files if relation != oid}
    now = {file.relation: file for file in files if file.relation != oid}
    new = [file for relation, file in now.items() if relation not in before]
    if any(not file.born_partition for file in new):
        return "a partition was attached, whose rows are not in the stream"
    if any(file.filenode != file.relation for file in new):  # a file's first number is that of its relation
        return "a new partition was truncated or rewritten, which the stream does not tell"
    if before.keys() - now.keys():
        return "a partition was detached or dropped, which the stream does not tell"
    if any(before[relation][1] != now[relation].attachment for relation in before):
        return "a partition was detached and attached again, and its changes meanwhile are not in the stream"
    if any(before[relation][0] != now[relation].filenode for relation in before):
        return "a partition was truncated or rewritten, which the stream does not tell"
    return ""


def _holds_rows(record: TableRecord) -> bool:
    """Whether anything at the destination has the schema known so far."""
    return record.live or record.state is not TableState.INIT


def _no_key(schema: TableSchema) -> tuple[str, str]:
    name = f'"{schema.id.schema}"."{schema.id.name}"'
    reason = "it has no key, so that updates and deletes cannot be matched to rows"
    hint = (
        f"Add a primary key (ALTER TABLE {name} ADD PRIMARY KEY (...)), or name a unique index of NOT NULL columns "
        f"(ALTER TABLE {name} REPLICA IDENTITY USING INDEX ...), or choose `landing: changelog` for it, or exclude it "
        "from the publication; then re-sync it"
    )
    return reason, hint
