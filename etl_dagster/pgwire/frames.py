"""Where each tuple of a binary COPY begins and ends, found without a loop over rows.

The backend sends one ``CopyData`` message per tuple: the letter ``d``, a length, the tuple. The lengths form a chain
that can only be followed step by step, so `CopyOutStream` guesses instead: every place that looks like the head of such
a message is a candidate, and a candidate is right when the chain from a known message boundary leads to it. Where each
candidate ends at the next one, whole runs are right at once; what the guess missed or found too much is stepped over
one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from etl_dagster.errors import InternalError, ProtocolError
from etl_dagster.pgwire.gather import PADDING, Bytes, Positions, gather, padded

COPY_SIGNATURE = b"PGCOPY\n\xff\r\n\x00"
_COPY_DATA = ord("d")
_READY_FOR_QUERY = b"Z\x00\x00\x00\x05"  # and one byte more
_Run = tuple[Positions, Positions]  # starts and ends of consecutive tuples
_HEAD = 5  # letter and length of a message
_FIXED_HEADER = len(COPY_SIGNATURE) + 8  # then flags and the length of the extension
_NOTHING = np.empty(0, np.int64)
_SEARCHED = 128 * 1024  # bytes searched at once: what the fastest cache holds several times


@dataclass(frozen=True, slots=True)
class Frames:
    """Tuples of a binary COPY, each from its field count on.

    ``data`` ends in at least `PADDING` bytes behind the last tuple. Neither the COPY header nor its trailer is part of
    any frame.
    """

    data: Bytes
    starts: Positions
    ends: Positions

    def __post_init__(self) -> None:
        if len(self.ends) and int(self.ends[-1]) + PADDING > len(self.data):
            raise InternalError("A buffer of COPY tuples lacks its padding")

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, rows: slice) -> Frames:
        return Frames(self.data, self.starts[rows], self.ends[rows])


EMPTY_FRAMES = Frames(padded(), _NOTHING, _NOTHING)


def frames_from_messages(messages: Sequence[bytes | bytearray | memoryview]) -> Frames:
    """Frames of a run of consecutive COPY messages, as a client library hands them out one by one."""
    if not messages:
        return EMPTY_FRAMES
    data = padded(b"".join(messages))
    ends = np.cumsum(np.fromiter(map(len, messages), np.int64, len(messages)))
    starts = np.concatenate((np.zeros(1, np.int64), ends[:-1]))
    starts[0] += _header_length(data, 0, int(ends[0]))
    if _is_trailer(data, int(starts[-1]), int(ends[-1])):
        starts, ends = starts[:-1], ends[:-1]
    return Frames(data, starts, ends)


def _header_length(data: Bytes, start: int, end: int) -> int:
    """Length of the COPY header at ``start``; no tuple begins like it, for it would have 20551 columns."""
    if data[start : start + 2].tobytes() != COPY_SIGNATURE[:2] or end - start < 2:
        return 0
    if end - start < _FIXED_HEADER:
        raise ProtocolError("COPY header is cut off", offset=start, need=_FIXED_HEADER, have=end - start)
    if data[start : start + len(COPY_SIGNATURE)].tobytes() != COPY_SIGNATURE:
        raise ProtocolError("COPY signature is damaged", offset=start, need=_FIXED_HEADER, have=end - start)
    extension = _int32(data, start + len(COPY_SIGNATURE) + 4)
    if not 0 <= extension <= end - start - _FIXED_HEADER:
        raise ProtocolError("COPY header extension", offset=start, need=_FIXED_HEADER + extension, have=end - start)
    return _FIXED_HEADER + extension


def _is_trailer(data: Bytes, start: int, end: int) -> bool:
    return end - start == 2 and data[start : start + 2].tobytes() == b"\xff\xff"


def _int32(data: Bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4].tobytes(), "big", signed=True)


class CopyOutStream:
    """Reads what the backend sends in answer to one ``COPY … TO STDOUT (FORMAT binary)``, up to ReadyForQuery.

    It does no I/O: give it the bytes that came off the socket, in blocks of any size (a megabyte is best), and take the
    tuples that are complete. Either `feed` it, or let the socket fill its `room` and say how much was `received`.
    """

    def __init__(self) -> None:
        self._buffer = padded()  # the memory of frames that were given away is never written again
        self._filled = 0
        self._awaited = _HEAD
        self._columns: int | None = None
        self._consumed = 0
        self._done = False
        self._error: Mapping[str, str] | None = None
        self._status = ""
        self._tag = ""

    @property
    def done(self) -> bool:
        """ReadyForQuery has come: the session takes the next statement."""
        return self._done

    @property
    def error(self) -> Mapping[str, str] | None:
        """Fields of the ErrorResponse (``S`` severity, ``C`` SQLSTATE, ``M`` message, ``H`` hint …), if one came."""
        return self._error

    @property
    def transaction_status(self) -> str:
        """``I``, ``T`` or ``E`` once `done`, before that an empty string."""
        return self._status

    @property
    def command_tag(self) -> str:
        """What CommandComplete said, for example ``COPY 2000000``."""
        return self._tag

    def feed(self, data: bytes | bytearray | memoryview) -> Frames:
        """Take the next bytes of the connection; return the tuples that they complete.

        Raises:
            ProtocolError: A message that does not belong into the answer to a COPY, or is malformed.
        """
        if self._capacity < self._filled + len(data):
            self._grow(len(data))
        self._buffer[self._filled : self._filled + len(data)] = np.frombuffer(data, np.uint8)
        return self.received(len(data))

    def room(self, size: int) -> memoryview:
        """Memory for the next bytes of the connection: about ``size``, or what is missing of one large message."""
        if self._capacity < max(self._awaited, self._filled + 1):
            self._grow(size)
        return self._buffer.data[self._filled : self._capacity]

    def may_end(self, count: int) -> bool:
        """Whether the answer may be complete with the first ``count`` bytes of the `room`."""
        end = self._filled + count
        return self._buffer[max(0, end - len(_READY_FOR_QUERY) - 1) : end - 1].tobytes() == _READY_FOR_QUERY

    def received(self, count: int) -> Frames:
        """Like `feed`, for the first ``count`` bytes of the `room`."""
        self._filled += count
        if self._filled < self._awaited:
            return EMPTY_FRAMES
        data = self._buffer[: self._filled + PADDING]
        data[self._filled :] = 0
        return self._split(data, self._filled)

    @property
    def _capacity(self) -> int:
        return len(self._buffer) - PADDING

    def _grow(self, size: int) -> None:
        buffer = np.empty(max(self._awaited, self._filled + size) + PADDING, np.uint8)
        buffer[: self._filled] = self._buffer[: self._filled]
        self._buffer = buffer

    def _split(self, data: Bytes, end: int) -> Frames:
        runs, stopped_at = self._runs(data, end)
        self._keep(data[stopped_at:end])
        self._consumed += stopped_at
        if len(runs) == 1:
            return Frames(data, *runs[0])
        starts, ends = ([_NOTHING, *(run[side] for run in runs)] for side in (0, 1))
        return Frames(data, np.concatenate(starts), np.concatenate(ends))

    def _keep(self, rest: Bytes) -> None:
        self._buffer, self._filled = padded(rest.data), len(rest)
        self._awaited = _HEAD if len(rest) < _HEAD else 1 + _int32(rest, 1)

    def _runs(self, data: Bytes, end: int) -> tuple[list[_Run], int]:
        """Stretches of frames, and where the first incomplete message begins."""
        runs: list[_Run] = []
        at = 0
        chain: _Chain | None = None
        while True:
            if chain is None and self._columns is not None:
                chain = _Chain(data, at, end, self._columns)
            if chain is not None:
                for run in chain.follow(at):
                    at = int(run[1][-1])
                    runs.append(run)
            size = self._message_size(data, at, end)
            if size is None:
                return runs, at
            if (frame := self._message(data, at, at + size)) is not None:
                runs.append(frame)
            at += size

    def _message_size(self, data: Bytes, at: int, end: int) -> int | None:
        """Size of the message at ``at`` with its head, or None when it is not complete."""
        if end - at < _HEAD:
            return None
        size = 1 + _int32(data, at + 1)
        if size < _HEAD:
            raise ProtocolError("Message length is too small", offset=self._consumed + at, need=_HEAD, have=size)
        return size if size <= end - at else None

    def _message(self, data: Bytes, at: int, end: int) -> _Run | None:
        """Take one message; returns its tuple when it carries one."""
        tag = chr(data[at])
        if tag == "d":
            return self._copy_data(data, at + _HEAD, end)
        body = data[at + _HEAD : end].tobytes()
        if tag == "H":
            self._copy_out(body, at)
        elif tag == "E":
            self._error = _error_fields(body)
        elif tag == "C":
            self._tag = body.rstrip(b"\0").decode()
        elif tag == "Z":
            self._done, self._status = True, body.decode("ascii", "replace")
        elif tag not in "cNSA":
            raise ProtocolError(
                f"Message {tag!r} has no place in a COPY", offset=self._consumed + at, need=0, have=end - at
            )
        return None

    def _copy_out(self, body: bytes, at: int) -> None:
        if len(body) < 3:
            raise ProtocolError("CopyOutResponse is cut off", offset=self._consumed + at, need=3, have=len(body))
        if body[0] != 1:
            raise ProtocolError("COPY is not in binary format", offset=self._consumed + at, need=1, have=body[0])
        self._columns = int.from_bytes(body[1:3], "big")

    def _copy_data(self, data: Bytes, start: int, end: int) -> _Run | None:
        start += _header_length(data, start, end)
        if start == end or _is_trailer(data, start, end):
            return None
        return np.array([start], np.int64), np.array([end], np.int64)


class _Chain:
    """Candidates for ``CopyData`` heads in one block, and the exact walk along them."""

    def __init__(self, data: Bytes, start: int, end: int, columns: int) -> None:
        self._starts = _candidates(data, start, end, columns)
        ends = self._starts + 1 + gather(data, self._starts + 1, np.int32)
        # Lengths below the least possible tuple or beyond the block are false or incomplete.
        likely = (ends - self._starts >= _HEAD + 2 + 4 * columns) & (ends <= end)
        if not likely.all():
            self._starts, ends = self._starts[likely], ends[likely]
        self._ends = ends
        self._breaks = np.flatnonzero(ends[:-1] != self._starts[1:])

    def follow(self, at: int) -> Iterator[_Run]:
        """Yield the frames that lead on from ``at`` without a gap, ``at`` being a message boundary."""
        while True:
            first = int(np.searchsorted(self._starts, at))
            if first == len(self._starts) or self._starts[first] != at:
                return
            gap = int(np.searchsorted(self._breaks, first))
            last = int(self._breaks[gap]) if gap < len(self._breaks) else len(self._starts) - 1
            yield self._starts[first : last + 1] + _HEAD, self._ends[first : last + 1]
            at = int(self._ends[last])


def _candidates(data: Bytes, start: int, end: int, columns: int) -> Positions:
    """Where a ``CopyData`` message of less than 16 MB, holding a tuple of so many columns, may begin."""
    found = [
        _candidates_in(data[at : min(at + _SEARCHED, end) + _HEAD + 1], columns) + at
        for at in range(start, end, _SEARCHED)
    ]
    return np.concatenate(found) if found else _NOTHING


def _candidates_in(block: Bytes, columns: int) -> Positions:
    last = len(block) - _HEAD - 1
    if last <= 0:
        return _NOTHING
    hits = block[:last] == _COPY_DATA
    hits &= block[1 : last + 1] == 0
    hits &= block[_HEAD : last + _HEAD] == columns >> 8
    hits &= block[_HEAD + 1 : last + _HEAD + 1] == columns & 0xFF
    return np.flatnonzero(hits)


def _error_fields(body: bytes) -> dict[str, str]:
    fields = (part.decode("utf-8", "replace") for part in body.split(b"\0") if part)
    return {field[0]: field[1:] for field in fields}
