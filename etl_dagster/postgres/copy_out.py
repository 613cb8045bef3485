"""``COPY … TO STDOUT (FORMAT binary)`` as blocks of tuples, read ahead by a thread of its own.

libpq hands a COPY out row by row, which costs more than the server needs to make the row. So libpq connects and
authenticates, and while its connection is idle the COPY is sent and its answer read on the same socket, in blocks.
libpq never notices: from ReadyForQuery to ReadyForQuery the protocol is where it was. Where TLS or GSS encrypts the
socket that cannot be done, and libpq's rows are gathered into blocks instead.
"""

from __future__ import annotations

import os
import queue
import select
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

import psycopg
from psycopg import sql

from etl_dagster.errors import ErrorKind, EtlError, SourceError
from etl_dagster.pgwire import CopyOutStream, Frames, frames_from_messages
from etl_dagster.postgres.errors import refusal, translate
from etl_dagster.postgres.sessions import Connection, abandon

# Large enough that the fixed costs of numpy vanish, small enough that what is made of one stays in the cache.
BLOCK_BYTES = 2 * 1024 * 1024
# Server, reader and decoder overlap as soon as one block waits; more only costs memory.
BLOCKS_AHEAD = 2
# A server sends 8 kB at a time, and to be woken for each costs more than to receive them. So once a block is full, so
# many bytes are waited for, or so long.
_GATHERED_BYTES = 256 * 1024
_GATHERED_MS = 10
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_POLL_MS = 1000


class CopyOut:
    """The tuples of one COPY; iterate once, inside ``with``.

    Left before its end, it has the server stop and closes the connection; at its end the connection is idle again.

    Args:
        connection: Idle, and left alone until the end.
        statement: The whole COPY statement, binary format.
        doing: What is attempted, for messages.
        secrets: What messages must not show.
        through_libpq: Take the slower way also where the socket is readable.
        table: The one table concerned, for messages.
    """

    def __init__(
        self,
        connection: Connection,
        statement: sql.Composable,
        doing: str,
        secrets: tuple[str, ...] = (),
        *,
        through_libpq: bool = False,
        table: str | None = None,
    ) -> None:
        self._connection = connection
        self._doing = doing
        self._secrets = secrets
        self._table = table
        self._finished = False
        self._patience = _POLL_MS
        # The texts of such a database may be anything. Asked for UTF-8, the server would refuse the whole COPY for one
        # that is not.
        self._has_no_encoding = connection.info.parameter_status("server_encoding") == "SQL_ASCII"
        self._socket = socket.socket(fileno=os.dup(connection.pgconn.socket))
        self._blocks: queue.Queue[Frames | BaseException | None] = queue.Queue(BLOCKS_AHEAD)
        read = self._read_libpq if through_libpq or _is_encrypted(connection) else self._read_socket
        self._frames = read(statement.as_bytes(connection))
        self._thread = threading.Thread(target=self._read_ahead, name="copy-out", daemon=True)

    def __enter__(self) -> Self:
        if self._has_no_encoding:
            self._connection.execute("SET client_encoding TO 'SQL_ASCII'")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._finished:
            self._stop()
        self._thread.join()
        self._wake_at(1)  # libpq goes on with the same socket
        self._socket.close()
        if self._has_no_encoding and not self._connection.closed:
            self._connection.execute("SET client_encoding TO 'UTF8'")

    def __iter__(self) -> Iterator[Frames]:
        while (block := self._blocks.get()) is not None:
            if isinstance(block, BaseException):
                self._finished = True
                abandon(self._connection)
                raise block
            yield block
        self._finished = True

    def _read_ahead(self) -> None:
        try:
            for frames in self._frames:
                self._blocks.put(frames)
            self._blocks.put(None)
        except psycopg.Error as error:
            told = translate(error, self._doing, self._secrets, table=self._table)
            told.__cause__ = error
            self._blocks.put(told)
        except (EtlError, OSError, MemoryError) as error:
            self._blocks.put(error if not isinstance(error, OSError) else self._cut_off())

    def _read_socket(self, statement: bytes) -> Iterator[Frames]:
        stream = CopyOutStream()
        self._send(statement)
        while not stream.done:
            count = self._receive(stream)
            if count == 0:
                raise self._cut_off()
            frames = stream.received(count)
            if len(frames):
                yield frames
        if stream.error is not None:
            raise self._refusal(stream.error)

    def _send(self, statement: bytes) -> None:
        """Send a simple Query message."""
        message = memoryview(b"Q" + struct.pack("!I", len(statement) + 5) + statement + b"\0")
        while message:
            while not self._poll(select.POLLOUT, _POLL_MS):
                pass
            message = message[self._socket.send(message) :]

    def _receive(self, stream: CopyOutStream) -> int:
        """Fill the stream's room, unless the answer ends before; returns how much arrived, 0 when it was cut off."""
        room, filled = stream.room(BLOCK_BYTES), 0
        while filled < len(room):
            try:
                count = self._socket.recv_into(room[filled:])
            except BlockingIOError:
                if filled and stream.may_end(filled):  # a false alarm only makes a smaller block
                    return filled
                self._poll(select.POLLIN, self._patience)
                continue
            if count == 0:
                return filled
            filled += count
        if self._patience != _GATHERED_MS:
            self._patience = _GATHERED_MS
            self._wake_at(_GATHERED_BYTES)
        return filled

    def _wake_at(self, least: int) -> None:
        with suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)

    def _poll(self, event: int, patience: int) -> bool:
        poll = select.poll()
        poll.register(self._socket, event)
        return bool(poll.poll(patience))

    def _read_libpq(self, statement: bytes) -> Iterator[Frames]:
        rows: list[bytes | bytearray | memoryview] = []
        size = 0
        with self._connection.cursor() as cursor, cursor.copy(statement) as copy:
            for row in copy:
                rows.append(row)
                size += len(row)
                if size >= BLOCK_BYTES:
                    yield frames_from_messages(rows)
                    rows.clear()
                    size = 0
        if rows:
            yield frames_from_messages(rows)

    def _stop(self) -> None:
        """End the read from both sides, so that neither waits for the other."""
        with suppress(psycopg.Error):
            self._connection.cancel_safe(timeout=2.0)
        with suppress(OSError):
            # A server that waits for room in our buffers would go on waiting for minutes after an orderly end.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._socket.shutdown(socket.SHUT_RDWR)
        while self._thread.is_alive():
            with suppress(queue.Empty):
                self._blocks.get(timeout=0.02)
        self._connection.close()

    def _refusal(self, fields: Mapping[str, str]) -> EtlError:
        message = fields.get("M", "the server gave no reason")
        return refusal(fields.get("C"), message, self._doing, self._secrets, table=self._table)

    def _cut_off(self) -> SourceError:
        return SourceError(
            f"{self._doing}: the server closed the connection",
            kind=ErrorKind.SOURCE_UNAVAILABLE,
            hint="Check that the server runs and can be reached",
        )


def _is_encrypted(connection: Connection) -> bool:
    # Sessions disable GSS encryption unless the DSN asks for it.
    gss = next((option.val for option in connection.pgconn.info if option.keyword == b"gssencmode"), None)
    return bool(connection.pgconn.ssl_in_use) or gss not in (None, b"disable")
