"""What a snapshot of the source has seen."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_HALF = np.int64(1 << 31)
_EPOCH = np.int64(1 << 32)


def unseen(xid: npt.NDArray[np.uint32], snapshot: str) -> npt.NDArray[np.bool_]:
    """Which transactions a snapshot did not see.

    Args:
        xid: Ids of top-level transactions as the stream carries them, the lower 32 of 64 bits. Of the transactions with
            these bits, the one nearest to the snapshot is meant.
        snapshot: As ``pg_current_snapshot()`` prints it: ``xmin:xmax:xip,…``.
    """
    xmin, xmax, running = _parse(snapshot)
    ahead = (xid.astype(np.int64) - xmax + _HALF) % _EPOCH - _HALF
    whole = xmax + ahead
    return (whole >= xmax) | (whole >= xmin) & np.isin(whole, running)


def _parse(snapshot: str) -> tuple[int, int, npt.NDArray[np.int64]]:
    xmin, xmax, running = snapshot.split(":")
    return int(xmin), int(xmax), np.array([int(each) for each in running.split(",") if each], np.int64)
