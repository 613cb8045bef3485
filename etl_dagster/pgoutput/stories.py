"""What one feed says of one relation, and the events that come of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from etl_dagster.errors import ProtocolError
from etl_dagster.model import ChangeSet, Landing, Lsn, TableEvents, TableSchema
from etl_dagster.pgoutput.changes import TextNotGiven, read_changes, with_truncates
from etl_dagster.pgoutput.relations import Binding
from etl_dagster.pgoutput.transactions import Places
from etl_dagster.pgoutput.tuples import Bytes, Messages

Rows = npt.NDArray[np.intp]
_END = int(np.iinfo(np.int64).max)


@dataclass(frozen=True, slots=True)
class Feed:
    """Messages, in binary and perhaps in text, and where each of them stands."""

    messages: Messages
    text: Messages | None
    places: Places


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Changes and truncates under one binding."""

    binding: Binding
    rows: Rows
    markers: Bytes
    truncates: Rows

    def read(self, feed: Feed, replaced: Counter[str], *, truncates: bool) -> ChangeSet:
        """The changes; the truncates as rows among them if asked for."""
        changes = read_changes(self.binding, feed.messages, feed.text, self.markers, feed.places, self.rows, replaced)
        if truncates and len(self.truncates):
            return with_truncates(changes, feed.places, self.rows, self.truncates)
        return changes


@dataclass(slots=True)
class Story:
    """What one feed says of one relation: bindings from a message on, changes, truncates."""

    bindings: list[tuple[int, Binding]] = field(default_factory=list)
    rows: Rows = field(default_factory=lambda: np.empty(0, np.intp))
    markers: Bytes = field(default_factory=lambda: np.empty(0, np.uint8))
    truncates: list[int] = field(default_factory=list)
    announcements: list[int] = field(default_factory=list)

    @property
    def all_rows(self) -> Rows:
        """All messages about the relation, in order."""
        rare = np.array([*self.announcements, *self.truncates], np.intp)
        return np.sort(np.concatenate((self.rows, rare))) if len(rare) else self.rows

    def check(self) -> None:
        """See that the relation is announced before the first message about it.

        Raises:
            ProtocolError: It is not.
        """
        about = [*self.rows[:1].tolist(), *self.truncates[:1]]
        if about and not (self.bindings and self.bindings[0][0] < min(about)):
            raise ProtocolError("Change of a relation that was not announced", offset=0, need=1, have=0)

    def tell(self, table: TableSchema, feed: Feed, replaced: Counter[str]) -> Iterator[TableEvents]:
        """The events, with ``table`` as the newest schema.

        A table drifts, as a last binding tells, where it got a column whose text is needed and was not given.
        """
        if table.landing is Landing.CHANGELOG:
            yield from _events(table, self._read(feed, replaced, -1, _END, truncates=True), None, feed)
            return
        seen = self._truncates_seen()
        starts = [-1, *seen] if table.landing is Landing.SOFT_DELETE else [*seen[-1:]] or [-1]
        for start, end in zip(starts, [*starts[1:], _END], strict=True):
            changes = self._read(feed, replaced, start, end, truncates=False)
            yield from _events(table, changes, start if start >= 0 else None, feed)

    def _read(self, feed: Feed, replaced: Counter[str], start: int, end: int, *, truncates: bool) -> list[ChangeSet]:
        changes = []
        for stretch in self._stretches(start, end, truncates=truncates):
            try:
                changes.append(stretch.read(feed, replaced, truncates=truncates))
            except TextNotGiven as error:
                if not stretch.binding.followed:
                    raise
                self.bindings.append((len(feed.messages), replace(stretch.binding, drift=error.message)))
                break
        return changes

    def _truncates_seen(self) -> list[int]:
        """The truncates that the table wanted has seen: none after it drifted."""
        return [row for part in self._stretches(-1, _END, truncates=True) for row in part.truncates.tolist()]

    def _stretches(self, after: int, before: int, *, truncates: bool) -> Iterator[_Stretch]:
        """What can be read and stands between two messages, a stretch for each binding that has anything there."""
        emptied = np.array(self.truncates, np.intp)
        for binding, since, until in self._reigns():
            start, end = max(since, after), min(until, before)
            first, last = np.searchsorted(self.rows, [start, end])
            mine = emptied[(emptied > start) & (emptied < end)]
            if binding.readable is not None and (first < last or (truncates and len(mine))):
                yield _Stretch(binding, self.rows[first:last], self.markers[first:last], mine)

    def _reigns(self) -> Iterator[tuple[Binding, int, int]]:
        """Each binding with the messages between which it is in force."""
        merged: list[tuple[int, Binding]] = []
        for start, binding in self.bindings:
            if not merged or merged[-1][1] is not binding:
                merged.append((start, binding))
        ends = [start for start, _ in merged[1:]] + [_END]
        for (start, binding), end in zip(merged, ends, strict=True):
            yield binding, start, end


def _events(table: TableSchema, changes: list[ChangeSet], truncate: int | None, feed: Feed) -> Iterator[TableEvents]:
    """The one event of a truncate, which is a message, and the changes after it; none where there is neither."""
    if truncate is not None:
        row = np.array([truncate])
        at, time = Lsn(int(feed.places.lsn(row)[0])), int(feed.places.timestamp(row)[0])
        yield TableEvents(table, changes, at, time)
    elif changes:
        yield TableEvents(table, changes)
