"""How far apart batches are begun, where each costs however little it brings."""

from __future__ import annotations

from datetime import UTC, datetime
from time import monotonic


class Pace:
    """Says how long the stream may be left alone once it has been caught up with.

    Args:
        seconds: How far apart the destination wants batches; 0: it does not matter.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began = float("-inf")
        self._caught_up = True

    def resume(self, batch_at: datetime | None) -> None:
        """Go on from the last batch of an earlier process."""
        if batch_at is not None:
            self._began = monotonic() - max(0.0, (datetime.now(UTC) - batch_at).total_seconds())

    def window(self, began: float, *, wrote: bool, caught_up: bool) -> None:
        """Take note of a window; one that held nothing for the destination costs nothing."""
        if wrote:
            self._began = began
        self._caught_up = caught_up

    @property
    def left(self) -> float:
        """Seconds until the next batch is due."""
        return max(0.0, self._began + self._seconds - monotonic()) if self._caught_up else 0.0


def seconds_until_due(batch_at: datetime | None, seconds: float) -> float:
    """The same for whoever only looks, from what is stored of the last batch."""
    if batch_at is None:
        return 0.0
    return min(seconds, max(0.0, seconds - (datetime.now(UTC) - batch_at).total_seconds()))
