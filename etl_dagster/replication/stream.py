"""Windows of the stream: how big they are, and how their contents become pieces of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from etl_dagster.model import Landing, Lsn, Route, TableEvents, TableId
from etl_dagster.settings import ReplicationSettings

_PAGE = 8192
# A position on a page boundary names the page's header too (40 bytes at the start of a segment, 24 elsewhere): no
# record begins there, and the server says either address for the same place.
_PAGE_HEADER = 40
# Measured: the server passes over WAL that it has decoded before at about 0.3 s per 100 MB.
_REREAD_BYTES_PER_SECOND = 330e6
_FIXED_SHARE = 0.2
# Where batches are to be far apart each costs, and takes long whatever it brings: when much waits, few large ones do.
_BATCH_SHARE = 0.25


def passed(position: Lsn, lsn: Lsn) -> bool:
    """Whether every record that ends at or before ``lsn`` lies before ``position``."""
    header = _PAGE_HEADER if position % _PAGE == 0 else 0
    return position + header >= lsn


class WindowSizer:
    """Adapts the number of changes in a window to what windows cost.

    A window should end within the target time, so that little is repeated after a kill. But each one pays for the WAL
    between the slot's restart and confirmed positions again, and smaller windows pay for it more often: that part must
    stay a small share, whatever the target.

    Args:
        batch_seconds: How far apart the destination wants batches.
    """

    def __init__(self, settings: ReplicationSettings, batch_seconds: float = 0.0) -> None:
        self._settings = settings
        self._target_seconds = max(settings.target_window_seconds, _BATCH_SHARE * batch_seconds)
        self.limit = min(settings.max_window_changes, 4 * settings.min_window_changes)

    def learn(self, changes: int, seconds: float, reread_bytes: int) -> None:
        """Take account of a window that ended at its limit of changes."""
        if changes == 0:
            return
        fixed = min(reread_bytes / _REREAD_BYTES_PER_SECOND, 0.95 * seconds)
        each = max(seconds - fixed, 1e-3) / changes
        ideal = max(self._target_seconds, fixed / _FIXED_SHARE) / each
        grown = min(int(ideal), 4 * self.limit)
        self.limit = max(self._settings.min_window_changes, min(grown, self._settings.max_window_changes))


def pieces(
    window: Iterable[Sequence[TableEvents]], routes: Mapping[TableId, Route], piece_bytes: int
) -> Iterator[Sequence[TableEvents]]:
    """Gather what a window yields into pieces of about ``piece_bytes``, for the tables that have a route."""
    piece = _Piece()
    for events in window:
        for event in events:
            if event.table.id in routes:
                piece.add(event)
        if piece.nbytes >= piece_bytes:
            yield piece.take()
    if piece.tables:
        yield piece.take()


class _Piece:
    def __init__(self) -> None:
        self.tables: dict[TableId, list[TableEvents]] = {}
        self.nbytes = 0

    def add(self, event: TableEvents) -> None:
        events = self.tables.setdefault(event.table.id, [])
        if event.held is not None:
            events.append(event)
            self.nbytes += event.held.message.nbytes + event.held.text.nbytes
            return
        if event.truncated_at is None and events:
            events[-1] = replace(events[-1], table=event.table, changes=(*events[-1].changes, *event.changes))
        elif event.table.landing is Landing.SOFT_DELETE:
            events.append(event)
        else:
            self.tables[event.table.id] = [event]  # a truncate makes what came before it void
        self.nbytes += sum(change.nbytes for change in event.changes)

    def take(self) -> Sequence[TableEvents]:
        taken = [event for events in self.tables.values() for event in events]
        self.tables, self.nbytes = {}, 0
        return taken
