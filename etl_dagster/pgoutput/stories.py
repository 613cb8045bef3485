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

    def tell(self, table: TableSchema, feed: Feed, replaced: Counter[str]) -> TableEvents | None:
        """The events, with ``table`` as the newest schema; None when there are none.

        A table drifts, as a last binding tells, where it got a column whose text is needed and was not given.
        """
        whole = table.landing is Landing.CHANGELOG
        truncated = None if whole else self._last_truncate()
        changes = []
        for stretch in self._stretches(-1 if truncated is None else truncated, truncates=whole):
            try:
                changes.append(stretch.read(feed, replaced, truncates=whole))
            except TextNotGiven as error:
                if not stretch.binding.followed:
                    raise
                self.bindings.append((len(feed.messages), replace(stretch.binding, drift=error.message)))
                break
        truncated_at = None if truncated is None else Lsn(int(feed.places.lsn(np.array([truncated]))[0]))
        return TableEvents(table, changes, truncated_at) if changes or truncated is not None else None

    def _last_truncate(self) -> int | None:
        """The last truncate that the table wanted has seen: none after it drifted."""
        seen = [int(part.truncates[-1]) for part in self._stretches(-1, truncates=True) if len(part.truncates)]
        return seen[-1] if seen else None

    def _stretches(self, after: int, *, truncates: bool) -> Iterator[_Stretch]:
        """What can be read and comes after a message, one stretch for each binding under which there is anything."""
        emptied = np.array(self.truncates, np.intp)
        for binding, start, end in self._reigns():
            first, last = np.searchsorted(self.rows, [max(start, after), end])
            mine = emptied[(emptied > max(start, after)) & (emptied < end)]
            if binding.readable is not None and (first < last or (truncates and len(mine))):
                yield _Stretch(binding, self.rows[first:last], self.markers[first:last], mine)

    def _reigns(self) -> Iterator[tuple[Binding, int, int]]:
        """Each binding with the messages between which it is in force."""
        merged: list[tuple[int, Binding]] = []
        for start, binding in self.bindings:
            if not merged or merged[-1][1] is not binding:
                merged.append((start, binding))
        ends = [start for start, _ in merged[1:]] + [np.iinfo(np.int64).max]
        for (start, binding), end in zip(merged, ends, strict=True):
            yield binding, start, end
