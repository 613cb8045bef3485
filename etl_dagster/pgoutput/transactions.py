"""Where each message stands: its transaction, and its place within it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt

from etl_dagster.errors import ProtocolError
from etl_dagster.model import Lsn
from etl_dagster.pgoutput.tuples import Bytes, Mask, Messages
from etl_dagster.pgwire import check, gather

BEGIN, COMMIT, TRUNCATE = b"BCT"
_BEGIN_SIZE, _COMMIT_SIZE = 21, 26
_EPOCH_MICROSECONDS = 946_684_800_000_000  # PostgreSQL counts from 2000-01-01
_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Places:
    """Position, place in the transaction, commit time and transaction id of all messages of one feed."""

    transaction: npt.NDArray[np.int64]
    rank: npt.NDArray[np.int64]
    lsns: npt.NDArray[np.uint64]
    times: npt.NDArray[np.int64]
    first_ranks: npt.NDArray[np.int64]
    xids: npt.NDArray[np.uint32]

    def lsn(self, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.uint64]:
        """Commit LSN of each message."""
        return self.lsns[self.transaction[rows]]

    def timestamp(self, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.int64]:
        """Commit time of each message, microseconds since 1970."""
        return self.times[self.transaction[rows]]

    def ordinal(self, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.int64]:
        """Place of each message among the changes and truncates of its transaction."""
        ordinal: npt.NDArray[np.int64] = self.rank[rows] - self.first_ranks[self.transaction[rows]]
        return ordinal

    def xid(self, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.uint32]:
        """Low half of the id of each message's transaction."""
        return self.xids[self.transaction[rows]]


class TransactionClock:
    """Follows begins and commits from feed to feed."""

    def __init__(self) -> None:
        self.position: Lsn | None = None
        self.newest_commit: datetime | None = None
        self.in_transaction = False
        self.transactions = 0
        self._lsn = 0
        self._time = 0
        self._ordinal = 0
        self._xid = 0

    def place(self, messages: Messages, counted: Mask) -> Places:
        """Place the messages; ``counted`` are those that a transaction is made of.

        Raises:
            ProtocolError: Begins and commits do not alternate, or something stands between transactions.
        """
        begins = np.flatnonzero(messages.tags == BEGIN)
        commits = np.flatnonzero(messages.tags == COMMIT)
        self._check(messages, begins, commits, counted)
        transaction = np.cumsum(messages.tags == BEGIN)
        rank = np.cumsum(counted) - 1
        at = messages.at[begins]
        places = Places(
            transaction,
            rank,
            np.concatenate((np.array([self._lsn], np.uint64), gather(messages.data, at + 1, np.uint64))),
            np.concatenate((np.array([self._time], np.int64), _times(messages.data, at + 9))),
            np.concatenate((np.array([-self._ordinal], np.int64), rank[begins] + 1)),
            np.concatenate((np.array([self._xid], np.uint32), gather(messages.data, at + 17, np.uint32))),
        )
        self._remember(messages, places, commits)
        return places

    def _check(
        self,
        messages: Messages,
        begins: npt.NDArray[np.intp],
        commits: npt.NDArray[np.intp],
        counted: Mask,
    ) -> None:
        size = messages.ends - messages.at
        check(size[begins] == _BEGIN_SIZE, messages.at[begins], messages.ends[begins], _BEGIN_SIZE, "Begin")
        check(size[commits] == _COMMIT_SIZE, messages.at[commits], messages.ends[commits], _COMMIT_SIZE, "Commit")
        steps = (messages.tags == BEGIN).astype(np.int8) - (messages.tags == COMMIT)
        inside = np.cumsum(steps, dtype=np.int32) + self.in_transaction
        good = np.where(counted, inside == 1, (inside == 0) | (inside == 1))
        if not good.all():
            row = int(np.argmin(good))
            tag = chr(messages.tags[row])
            raise ProtocolError(f"Message {tag!r} out of order", offset=int(messages.at[row]), need=1, have=0)

    def _remember(self, messages: Messages, places: Places, commits: npt.NDArray[np.intp]) -> None:
        last = int(places.transaction[-1])
        self.in_transaction = len(places.lsns) - 1 + self.in_transaction - len(commits) == 1
        self._lsn, self._time = int(places.lsns[last]), int(places.times[last])
        self._xid = int(places.xids[last])
        self._ordinal = int(places.rank[-1] + 1 - places.first_ranks[last])
        if len(commits):
            # Before PostgreSQL 15 also those arrive that hold nothing of the publication.
            held = places.rank[commits] + 1 - places.first_ranks[places.transaction[commits]]
            self.transactions += int(np.count_nonzero(held))
            at = messages.at[commits[-1:]]
            self.position = Lsn(int(gather(messages.data, at + 10, np.uint64)[0]))
            self.newest_commit = _moment(int(_times(messages.data, at + 18)[0]), int(at[0]) + 18)


def _moment(microseconds: int, offset: int) -> datetime:
    try:
        return _UNIX_EPOCH + timedelta(microseconds=microseconds)
    except OverflowError:
        raise ProtocolError("Commit time out of range", offset=offset, need=8, have=8) from None


def _times(data: Bytes, at: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    times: npt.NDArray[np.int64] = gather(data, at, np.int64) + _EPOCH_MICROSECONDS
    return times
