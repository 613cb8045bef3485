"""Decoding alone: what the server sent for a window, read back from a file, to Arrow columns; one thread, no I/O.

The file is psql's output of a binary COPY, tuple after tuple. On the wire each is a message with a head; those are put
back before the clock starts.
"""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pydantic import SecretStr

from benchmarks.clients.clock import Clock
from etl_dagster.pgoutput import StreamDecoder
from etl_dagster.pgwire import CopyOutStream
from etl_dagster.postgres import PostgresSource
from etl_dagster.postgres.config import PostgresConfig, PublicationConfig, SourceConfig
from etl_dagster.postgres.copy_out import BLOCK_BYTES

_FILE_HEADER = 19
_TUPLE_HEAD = struct.Struct("!hi")
_MESSAGE_HEAD = struct.Struct("!cI")
_COPY_BEGINS = b"H\x00\x00\x00\x09\x01\x00\x01\x00\x01"


def as_sent(content: bytes) -> bytes:
    """The same tuples as messages of the server."""
    parts = [_COPY_BEGINS]
    at, end = 0, _FILE_HEADER
    while end + 2 <= len(content):
        fields, length = _TUPLE_HEAD.unpack_from(content, end) if end + 6 <= len(content) else (-1, 0)
        end += 2 if fields < 0 else 6 + length
        parts += (_MESSAGE_HEAD.pack(b"d", end - at + 4), content[at:end])
        at = end
    return b"".join(parts)


def blocks(sent: bytes) -> Iterator[memoryview]:
    """In the sizes in which a connection hands them out."""
    view = memoryview(sent)
    return (view[at : at + BLOCK_BYTES] for at in range(0, len(view), BLOCK_BYTES))


def main(dsn: str, publication: str, path: Path) -> None:
    """Measure one pass."""
    config = SourceConfig(
        connection=PostgresConfig(dsn=SecretStr(dsn)), publication=PublicationConfig(name=publication)
    )
    source = PostgresSource(config)
    schemas = {table.oid: table for table in source.tables().values()}
    source.close()
    sent = as_sent(path.read_bytes())
    decoder, stream = StreamDecoder(schemas), CopyOutStream()
    columns = framing = 0.0
    clock = Clock()
    for block in blocks(sent):
        began = time.perf_counter()
        frames = stream.feed(block)
        framed = time.perf_counter()
        decoder.feed(frames)
        framing += framed - began
        columns += time.perf_counter() - framed
    clock.report(changes=decoder.changes, bytes=len(sent), framing=framing, columns=columns)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
