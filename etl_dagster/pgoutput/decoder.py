"""The stream of logical changes, protocol version 1: messages in, columns out.

Common messages are found, placed and taken apart for all rows at once; only relations and truncates, which are
rare, are read one by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime

import numpy as np
import numpy.typing as npt

from etl_dagster.errors import ProtocolError, TableError
from etl_dagster.model import Lsn, RawChanges, TableEvents, TableId, TableSchema
from etl_dagster.pgoutput.changes import TextNotGiven
from etl_dagster.pgoutput.evolution import evolve
from etl_dagster.pgoutput.held import keep, open_raw
from etl_dagster.pgoutput.messages import Relation, parse_relation, parse_truncate
from etl_dagster.pgoutput.relations import Binding, bind
from etl_dagster.pgoutput.stories import Feed, Rows, Story
from etl_dagster.pgoutput.transactions import TRUNCATE, TransactionClock
from etl_dagster.pgoutput.tuples import Messages
from etl_dagster.pgwire import Frames, check, gather

_RELATION = ord("R")
_CHANGE_HEAD = 8  # tag, relation, kind of tuple, number of columns
# What may come: changes (1), messages read elsewhere in this package (2), and what does not concern us: origins, types
# (values are decoded by the catalogue's types) and messages that applications write into the WAL.
_CLASS = np.zeros(256, np.uint8)
_CLASS[list(b"IUD")] = 1
_CLASS[list(b"BCRTOYM")] = 2
_TUPLES_OF = {ord("I"): b"N", ord("U"): b"NKO", ord("D"): b"KO"}
_MARKERS = np.zeros((256, 256), np.bool_)
for _tag, _allowed in _TUPLES_OF.items():
    _MARKERS[_tag, list(_allowed)] = True


class StreamDecoder:
    """Decodes the messages of one replication stream, in order, fed in pieces of any size.

    Args:
        schemas: The tables wanted, by OID. Changes of other relations are left out.
        look: Asked when the stream contradicts a table's schema: the schema that the catalogue has now, or None when
            the table has to be copied again. Without it every contradiction is a drift.
        held: OIDs of tables whose messages are wanted raw.

    Attributes:
        drifted: What differs, for tables whose changes can no longer be read.
        evolved: The newest schema of tables that changed theirs in a way that can be followed.
        replaced: Values that the policy replaced, by table and column.
        unknown: Schema and name of relations that were not among the schemas.
    """

    def __init__(
        self,
        schemas: Mapping[int, TableSchema],
        *,
        look: Callable[[TableSchema], TableSchema | None] | None = None,
        held: Collection[int] = (),
    ) -> None:
        self._known = dict(schemas)
        self._look = look
        self._held = frozenset(held)
        self._clock = TransactionClock()
        self._bindings: dict[int, Binding] = {}
        self._changes = 0
        self.drifted: dict[TableId, str] = {}
        self.evolved: dict[TableId, TableSchema] = {}
        self.replaced: dict[TableId, Counter[str]] = {}
        self.unknown: set[tuple[str, str]] = set()

    @property
    def position(self) -> Lsn | None:
        """End of the last commit seen."""
        return self._clock.position

    @property
    def in_transaction(self) -> bool:
        """A transaction has begun and its commit is still to come."""
        return self._clock.in_transaction

    @property
    def newest_commit(self) -> datetime | None:
        """When the last transaction committed at the source."""
        return self._clock.newest_commit

    @property
    def transactions(self) -> int:
        """Commits seen."""
        return self._clock.transactions

    @property
    def changes(self) -> int:
        """Inserts, updates and deletes seen, those left out included."""
        return self._changes

    @property
    def needs_text(self) -> bool:
        """A relation seen has a column that must be read as text: `feed` needs ``text_frames``."""
        return any(binding.text_places for binding in self._bindings.values())

    def feed(self, frames: Frames, text_frames: Frames | None = None) -> list[TableEvents]:
        """Decode the next messages.

        Args:
            frames: COPY tuples of one field each, a message of pgoutput with option ``binary 'true'``.
            text_frames: The same messages with ``binary 'false'``, for columns without a binary decoder.

        Raises:
            ProtocolError: The bytes are no such stream.
            ValueUnrepresentable: Values that a table's Arrow types cannot hold; ``table`` says whose.
        """
        if len(frames) == 0:
            return []
        messages = _open(frames)
        text = None if text_frames is None else _in_step(_open(text_frames), messages)
        rows, heads = _changes(messages)
        counted = messages.tags == TRUNCATE
        counted[rows] = True
        places = self._clock.place(messages, counted)
        self._changes += len(rows)
        return self._tell(Feed(messages, text, places), rows, heads, self._held)

    def replay(self, raw: RawChanges) -> list[TableEvents]:
        """Decode messages that were held, as `feed` would have; keeps what was announced from call to call.

        Raises:
            ProtocolError: The bytes are no such messages.
            ValueUnrepresentable: Values that a table's Arrow types cannot hold; ``table`` says whose.
            TableError: Values are needed as text, and it was not kept.
        """
        if len(raw) == 0:
            return []
        feed = open_raw(raw)
        if feed.text is not None:
            _in_step(feed.text, feed.messages)
        try:
            return self._tell(feed, *_changes(feed.messages), held=frozenset())
        except TextNotGiven as error:
            raise TableError(
                f"{error.message} when the table's changes were kept", hint="Re-sync the table", table=error.table
            ) from error

    def _tell(self, feed: Feed, rows: Rows, heads: npt.NDArray[np.int64], held: Collection[int]) -> list[TableEvents]:
        told: list[TableEvents] = []
        for relation, story in self._stories(feed.messages, rows, heads, held).items():
            table = self._known.get(relation)
            if relation not in held:
                story.check()
            if table is not None and relation in held:
                told.append(TableEvents(table, held=keep(relation, story, feed)))
            elif table is not None:
                told += self._tell_table(relation, table, story, feed)
        return told

    def _tell_table(self, relation: int, table: TableSchema, story: Story, feed: Feed) -> list[TableEvents]:
        replaced: Counter[str] = Counter()
        events = list(story.tell(table, feed, replaced))
        if replaced:
            self.replaced.setdefault(table.id, Counter()).update(replaced)
        if story.bindings:
            self._remember(relation, story.bindings[-1][1])
        return events

    def _stories(
        self, messages: Messages, rows: Rows, heads: npt.NDArray[np.int64], held: Collection[int]
    ) -> dict[int, Story]:
        stories: dict[int, Story] = {}
        for relation, of_relation in _by_relation(heads >> 32):
            story = stories.setdefault(relation, self._story(relation))
            story.rows = rows[of_relation]
            story.markers = (heads[of_relation] >> 24).astype(np.uint8)
        for row in np.flatnonzero(messages.tags == TRUNCATE).tolist():
            for relation in parse_truncate(messages.body(row), int(messages.at[row])).relations:
                stories.setdefault(relation, self._story(relation)).truncates.append(row)
        for row in np.flatnonzero(messages.tags == _RELATION).tolist():
            announced = parse_relation(messages.body(row), int(messages.at[row]))
            story = stories.setdefault(announced.oid, self._story(announced.oid))
            story.announcements.append(row)
            if announced.oid not in held:
                story.bindings.append((row, self._announce(announced)))
        return stories

    def _story(self, relation: int) -> Story:
        known = self._bindings.get(relation)
        return Story([] if known is None else [(-1, known)])

    def _announce(self, relation: Relation) -> Binding:
        before = self._bindings.get(relation.oid)
        if before is not None and (before.drift or before.relation == relation):
            return before  # a table that has drifted stays so: some of its changes are left out already
        binding = self._bind(relation)
        self._remember(relation.oid, binding)
        return binding

    def _bind(self, relation: Relation) -> Binding:
        known = self._known.get(relation.oid)
        binding = bind(relation, known)
        now = self._look(known) if self._look is not None and known is not None and binding.drift else None
        evolution = None if known is None or now is None else evolve(known, relation, now)
        if evolution is None:
            return binding
        if evolution.advances:
            self._known[relation.oid] = self.evolved[evolution.schema.id] = evolution.schema
        return Binding(relation, evolution.schema, followed=True)

    def _remember(self, relation: int, binding: Binding) -> None:
        self._bindings[relation] = binding
        if binding.table is None:
            self.unknown.add((binding.relation.schema, binding.relation.name))
        elif binding.drift:
            self.drifted[binding.table.id] = binding.drift


def _open(frames: Frames) -> Messages:
    """The messages inside the tuples, each of which has one field."""
    heads = gather(frames.data, frames.starts, np.int64)  # field count, field length, tag, one byte more
    sizes = frames.ends - frames.starts - 6
    check((heads >> 16 == sizes | (1 << 32)) & (sizes > 0), frames.starts, frames.ends, 7, "Tuple is not one message")
    return Messages(frames.data, frames.starts + 6, frames.ends, (heads >> 8).astype(np.uint8))


def _in_step(text: Messages, messages: Messages) -> Messages:
    if len(text) != len(messages) or (text.tags != messages.tags).any():
        raise ProtocolError("The stream in text is another", offset=0, need=len(messages), have=len(text))
    return text


def _changes(messages: Messages) -> tuple[Rows, npt.NDArray[np.int64]]:
    """Inserts, updates and deletes: which messages, and their relation, marker and column count in one word."""
    classes = _CLASS[messages.tags]
    if not classes.all():
        row = int(np.argmin(classes))
        tag = chr(messages.tags[row])
        raise ProtocolError(f"Message of unknown kind {tag!r}", offset=int(messages.at[row]), need=1, have=1)
    rows = np.flatnonzero(classes == 1)
    at, ends = messages.at[rows], messages.ends[rows]
    check(ends - at >= _CHANGE_HEAD, at, ends, _CHANGE_HEAD, "Change is cut off")
    heads = gather(messages.data, at + 1, np.int64)
    right = _MARKERS[messages.tags[rows], (heads >> 24).astype(np.uint8)]
    check(right, at, ends, _CHANGE_HEAD, "Change without the tuple that belongs to it")
    return rows, heads


def _by_relation(relations: npt.NDArray[np.int64]) -> Iterator[tuple[int, Rows]]:
    """Which changes belong to each relation, in order."""
    if len(relations) == 0:
        return
    if (relations == relations[0]).all():
        yield int(relations[0]) & 0xFFFFFFFF, np.arange(len(relations))
        return
    order = np.argsort(relations, kind="stable")
    sorted_ = relations[order]
    for rows in np.split(order, np.flatnonzero(sorted_[1:] != sorted_[:-1]) + 1):
        yield int(relations[rows[0]]) & 0xFFFFFFFF, rows
