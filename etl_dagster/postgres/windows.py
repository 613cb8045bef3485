"""One bounded read of the slot.

The server decodes the whole window before it sends the first row, and lets go of the slot then. What
``pg_logical_slot_peek_binary_changes(slot, upto_lsn, upto_nchanges, …)`` returns (``logicalfuncs.c``): it stops after
the record with which either limit is reached, so ``upto_lsn`` may be passed by one commit record, and
``upto_nchanges`` by the rest of a transaction. A later read leaves out exactly the transactions whose commit record
starts before the slot's confirmed position.

Columns without a binary form that we read are read from a second peek that gives text. It is begun with the window when
the schemas ask for it, and in the middle when the stream announces a column that they do not know: as the slot does not
move, it gives the same messages, and those that are done are passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, islice
from time import monotonic, sleep

import numpy as np
from psycopg import sql

from etl_dagster.arrow import reads_text
from etl_dagster.errors import InternalError, ProtocolError, PublicationError, PublicationTooNew
from etl_dagster.model import Lsn, TableEvents, TableId, TableSchema
from etl_dagster.pgoutput import StreamDecoder
from etl_dagster.pgoutput.messages import Relation, parse_relation
from etl_dagster.pgoutput.transactions import BEGIN, COMMIT
from etl_dagster.pgwire import Frames
from etl_dagster.postgres.chunks import StartCopy
from etl_dagster.postgres.errors import NoSuchFunctionError
from etl_dagster.postgres.sessions import Connection, fetch_one
from etl_dagster.postgres.slots import busy, moved, read_slot, require_slot

# `upto_nchanges` is an int4.
_MOST_CHANGES = 2**31 - 1
_READABLE = """
SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END - '0/0'::pg_lsn
"""
_CHANGES = (
    "pg_logical_slot_peek_binary_changes({slot}, {upto}::pg_lsn, {limit}, 'proto_version', '1', "
    "'publication_names', {publication}, 'binary', {binary})"
)
_PEEK = sql.SQL("COPY (SELECT data FROM " + _CHANGES + ") TO STDOUT (FORMAT binary)")
_PROBE = sql.SQL("SELECT EXISTS (SELECT FROM " + _CHANGES + " WHERE get_byte(data, 0) NOT IN ({begin}, {commit}))")
_PUBLICATION_EXISTS = "SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = %s)"
_RELATION = ord("R")
_MESSAGE_AT = 6  # in a tuple of one field: behind the count of fields and the length
# Older servers also send the begin and commit of transactions that hold nothing of the publication.
_NOTHING_EMPTY_SINCE = 150000
# Asked with a schema that the stream contradicts, answers with the one that the catalogue has now.
Look = Callable[[TableSchema], TableSchema | None]
_RELEASE_POLL_SECONDS = 0.01
_RELEASE_SECONDS = 10.0


@dataclass(slots=True)
class Wire:
    """How a source's changes are read, learnt while reading.

    Attributes:
        text_only: Some type has a binary form, but not all of its parts do (an array of ``aclitem``, a composite with a
            ``seg``). The server finds out in the middle of a window and gives that up, so all is read as text.
    """

    text_only: bool = False


class Window:
    """The changes from the slot's confirmed position to ``upto`` or ``max_changes``; iterate once.

    Args:
        lend: Lends a session of its own.
        start: Begins a COPY on such a session.
        names: Slot and publication.
        after: What has been read already; a slot that stands beyond it has lost changes.
        wire: What earlier windows have learnt.
        look: Asked when the stream contradicts a schema, see `StreamDecoder`.
        held: OIDs of tables whose messages are wanted raw.
    """

    def __init__(
        self,
        *,
        lend: Callable[[], AbstractContextManager[Connection]],
        start: Callable[[Connection], StartCopy],
        names: tuple[str, str],
        schemas: Mapping[int, TableSchema],
        upto: Lsn,
        max_changes: int,
        after: Lsn | None = None,
        wire: Wire | None = None,
        look: Look | None = None,
        held: Collection[int] = (),
    ) -> None:
        self._lend = lend
        self._start = start
        self._slot, self._publication = names
        self._upto = upto
        self._after = after
        self._wire = wire or Wire()
        self._limit = min(max(1, max_changes), _MOST_CHANGES)
        self._schemas = schemas
        self._decoder = StreamDecoder(schemas, look=look, held=held)
        self._messages = 0
        self._bytes = 0
        self._readable = upto
        self._begin = Lsn(0)
        self.reread_bytes = 0

    def __iter__(self) -> Iterator[Sequence[TableEvents]]:
        with ExitStack() as stack:
            connection = stack.enter_context(self._lend())
            slot = require_slot(connection, self._slot)
            self._begin, self.reread_bytes = slot.confirmed, max(0, slot.confirmed - slot.restart)
            if self._after is not None and self._begin > self._after:
                raise moved(self._slot, self._begin, self._after)
            # Beyond what is readable now, nothing may be taken for read.
            self._readable = min(self._upto, Lsn(fetch_one(connection, _READABLE)[0]))
            if self._readable > self._begin:
                yield from self._pieces(stack, connection)

    def _pieces(self, stack: ExitStack, connection: Connection) -> Iterator[Sequence[TableEvents]]:
        for frames, texts in self._frames(stack, connection):
            self._messages += len(frames)
            self._bytes += int((frames.ends - frames.starts).sum())
            events = self._decoder.feed(frames, texts) if texts is not None else self._decoder.feed(frames)
            if events:
                yield events
        if self._decoder.in_transaction:
            raise ProtocolError("A transaction without its commit", offset=self._bytes, need=1, have=0)

    def _frames(self, stack: ExitStack, connection: Connection) -> Iterator[tuple[Frames, Frames | None]]:
        if not self._wire.text_only:
            pid = connection.info.backend_pid
            try:
                blocks = self._open(stack, connection, binary=True)
            except NoSuchFunctionError:
                self._wire.text_only = True
                connection = self._lend_after(stack, pid)
            else:
                return self._with_texts(stack, blocks)
        return ((frames, None) for frames in self._open(stack, connection, binary=False))

    def _open(self, stack: ExitStack, connection: Connection, *, binary: bool) -> Iterator[Frames]:
        pid = connection.info.backend_pid
        try:
            return _ahead(stack.enter_context(self._start(connection)(self._peek(binary=binary))))
        except PublicationError as error:
            asked = self._lend_after(stack, pid)
            if fetch_one(asked, _PUBLICATION_EXISTS, [self._publication])[0]:
                raise self._too_new() from error
            raise

    def _lend_after(self, stack: ExitStack, pid: int) -> Connection:
        """Another session, once the backend that failed has let go of the slot."""
        connection = stack.enter_context(self._lend())
        _await_release(connection, self._slot, pid)
        return connection

    def _too_new(self) -> PublicationTooNew:
        return PublicationTooNew(
            f"publication {self._publication} was made after the position at which slot {self._slot} stands, and up to "
            "PostgreSQL 17 the server cannot read the slot then",
            hint=f"Run SELECT pg_drop_replication_slot('{self._slot}'); all tables are then copied afresh",
        )

    def _with_texts(self, stack: ExitStack, blocks: Iterator[Frames]) -> Iterator[tuple[Frames, Frames | None]]:
        """The blocks, with their text beside them from where on it is needed."""
        wanted = any(reads_text(column) for table in self._schemas.values() for column in table.columns)
        passed = 0
        for frames in blocks:
            if wanted or any(self._is_news(relation) for relation in _relations(frames)):
                yield from _in_step(chain([frames], blocks), self._texts(stack, passed))
                return
            yield frames, None
            passed += len(frames)

    def _texts(self, stack: ExitStack, passed: int) -> Iterator[Frames]:
        # The server lets go of the slot before it sends the first row, so this second read finds it free.
        connection = stack.enter_context(self._lend())
        return _behind(stack.enter_context(self._start(connection)(self._peek(binary=False))), passed)

    def _is_news(self, relation: Relation) -> bool:
        """Whether a wanted relation has a column that its schema lacks, and that so may have to be read as text."""
        table = self._schemas.get(relation.oid)
        if table is None:
            return False
        known = {(column.name, column.type.declared_oid or column.type.oid) for column in table.columns}
        return any((column.name, column.type_oid) not in known for column in relation.columns)

    @property
    def position(self) -> Lsn:
        end = self._decoder.position or self._begin
        return end if self._messages >= self._limit else max(self._readable, end)

    @property
    def complete(self) -> bool:
        return self.position >= self._upto

    @property
    def changes(self) -> int:
        return self._decoder.changes

    @property
    def transactions(self) -> int:
        return self._decoder.transactions

    @property
    def bytes(self) -> int:
        return self._bytes

    @property
    def newest_commit(self) -> datetime | None:
        return self._decoder.newest_commit

    @property
    def drifted(self) -> Mapping[TableId, str]:
        return self._decoder.drifted

    @property
    def evolved(self) -> Mapping[TableId, TableSchema]:
        return self._decoder.evolved

    @property
    def replaced(self) -> Mapping[TableId, Mapping[str, int]]:
        return self._decoder.replaced

    @property
    def unknown(self) -> Collection[tuple[str, str]]:
        """Schema and name of tables in the stream that were not among the schemas given."""
        return self._decoder.unknown

    def _peek(self, *, binary: bool) -> sql.Composed:
        return _PEEK.format(
            slot=self._slot,
            upto=str(self._readable),
            limit=self._limit,
            publication=_quoted_name(self._publication),
            binary="true" if binary else "false",
        )


def _await_release(connection: Connection, name: str, pid: int) -> None:
    """Wait until a backend that failed reading the slot has let go of it, which it does after telling its client."""
    deadline = monotonic() + _RELEASE_SECONDS
    while (status := read_slot(connection, name)) is not None and status.active_pid == pid:
        if monotonic() > deadline:
            raise busy(connection, name)
        sleep(_RELEASE_POLL_SECONDS)


def has_changes(connection: Connection, slot: str, publication: str, upto: Lsn) -> bool:
    """Whether a window up to there would hold a change; from PostgreSQL 15 on, stops at the first that does."""
    if upto <= require_slot(connection, slot).confirmed:
        return False
    names = {"slot": slot, "publication": _quoted_name(publication)}
    # As text, because that is never refused.
    limit = 1 if connection.info.server_version >= _NOTHING_EMPTY_SINCE else _MOST_CHANGES
    query = _PROBE.format(**names, upto=str(upto), limit=limit, binary="false", begin=BEGIN, commit=COMMIT)
    row = connection.execute(query).fetchone()
    return row is not None and bool(row[0])


def _ahead(blocks: Iterable[Frames]) -> Iterator[Frames]:
    """The same blocks, the first of them already there."""
    iterator = iter(blocks)
    first = list(islice(iterator, 1))
    return chain(first, iterator)


def _behind(blocks: Iterable[Frames], passed: int) -> Iterator[Frames]:
    """The blocks without the first messages."""
    for frames in blocks:
        if len(frames) > passed:
            yield frames[passed:]
        passed = max(0, passed - len(frames))


def _relations(frames: Frames) -> Iterator[Relation]:
    """The relation messages among the messages."""
    at = frames.starts + _MESSAGE_AT
    for row in np.flatnonzero(frames.data[at] == _RELATION).tolist():
        yield parse_relation(frames.data[at[row] : frames.ends[row]].tobytes(), int(at[row]))


def _in_step(left: Iterator[Frames], right: Iterator[Frames]) -> Iterator[tuple[Frames, Frames | None]]:
    """Cut two streams of blocks at each other's ends, so that message k of one is message k of the other."""
    one, other = next(left, None), next(right, None)
    while one is not None and other is not None:
        count = min(len(one), len(other))
        yield one[:count], other[:count]
        one = one[count:] if count < len(one) else next(left, None)
        other = other[count:] if count < len(other) else next(right, None)
    if one is not other:
        raise InternalError("The binary and the text form of one window differ in their number of messages")


def _quoted_name(publication: str) -> str:
    """``publication_names`` is a list of SQL identifiers, which would fold to lower case."""
    return '"' + publication.replace('"', '""') + '"'
