"""Decoding alone: changes and copied rows per second on one thread, from bytes made here, without a server."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Iterable

from etl_dagster.arrow import decode_column
from etl_dagster.model import Column, PgType, TableId, TableSchema
from etl_dagster.pgoutput import StreamDecoder
from etl_dagster.pgwire import CopyOutStream, split_copy_rows

ROWS = 200_000
PER_TRANSACTION = 1000
BLOCK_BYTES = 1 << 20  # what the source reads off its socket at once
ROUNDS = 5
RELATION = 16_384
_COLUMNS = (
    ("id", 20, -1),
    ("customer", 23, -1),
    ("status", 25, -1),
    ("amount", 1700, ((12 << 16) | 2) + 4),
    ("qty", 21, -1),
    ("price", 701, -1),
    ("paid", 16, -1),
    ("note", 25, -1),
    ("created", 1184, -1),
    ("day", 1082, -1),
)
TABLE = TableSchema(
    id=TableId("public", "bench"),
    oid=RELATION,
    columns=tuple(
        Column(
            attnum=place + 1,
            name=name,
            type=PgType(oid=oid, name=name, typmod=typmod, declared_oid=oid),
            key_ordinal=None if place else 0,
        )
        for place, (name, oid, typmod) in enumerate(_COLUMNS)
    ),
)


def row(number: int) -> list[bytes]:
    """The ten values of one row in the server's binary format."""
    cents = number * 37 % 100_000_000
    digits = [cents // 1_000_000, cents // 100 % 10_000, cents % 100 * 100]
    return [
        struct.pack(">q", number),
        struct.pack(">i", number * 7919 % 100_000),
        (b"new", b"paid", b"shipped", b"done")[number % 4],
        struct.pack(">HhHH3H", 3, 1, 0, 2, *digits),
        struct.pack(">h", number % 100),
        struct.pack(">d", number * 0.5),
        bytes([number % 2]),
        b"note number %d for the row" % number,
        struct.pack(">q", 757_382_400_000_000 + number * 1_000_000),
        struct.pack(">i", 8766 + number % 1000),
    ]


def copy_stream() -> bytes:
    """What the server sends for a copy of the table."""
    tuples = (
        b"\0\x0a" + b"".join(struct.pack(">i", len(value)) + value for value in row(number)) for number in range(ROWS)
    )
    return _copy_out(tuples, len(_COLUMNS))


def change_stream() -> bytes:
    """What the server sends for a peek: half updates, a third inserts, a sixth deletes."""
    return _copy_out((b"\0\x01" + struct.pack(">i", len(body)) + body for body in _messages()), 1)


def run() -> dict[str, float]:
    """Best of a few rounds of each."""
    changes, copy = change_stream(), copy_stream()
    return {
        "decode_changes_per_s": round(ROWS / _best(lambda: _decode_changes(changes))),
        "decode_copy_rows_per_s": round(ROWS / _best(lambda: _decode_copy(copy))),
    }


def _decode_changes(raw: bytes) -> int:
    stream, decoder = CopyOutStream(), StreamDecoder({RELATION: TABLE})
    for start in range(0, len(raw), BLOCK_BYTES):
        decoder.feed(stream.feed(raw[start : start + BLOCK_BYTES]))
    return decoder.changes


def _decode_copy(raw: bytes) -> int:
    stream, rows = CopyOutStream(), 0
    for start in range(0, len(raw), BLOCK_BYTES):
        frames = stream.feed(raw[start : start + BLOCK_BYTES])
        for column, fields in zip(TABLE.columns, split_copy_rows(frames, len(_COLUMNS)), strict=True):
            decode_column(column.type, fields, column=column.name)
        rows += len(frames)
    return rows


def _best(work: Callable[[], int]) -> float:
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        if work() != ROWS:
            raise RuntimeError("rows were lost")
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _messages() -> list[bytes]:
    announced = b"".join(
        bytes([not place]) + name.encode() + b"\0" + struct.pack(">Ii", oid, typmod)
        for place, (name, oid, typmod) in enumerate(_COLUMNS)
    )
    found = []
    for number in range(ROWS):
        lsn = 1000 * (number // PER_TRANSACTION + 1)
        if number % PER_TRANSACTION == 0:
            found.append(struct.pack(">cQqI", b"B", lsn, 0, 1))
        if number == 0:
            found.append(struct.pack(">cI", b"R", RELATION) + b"public\0bench\0d" + struct.pack(">h", 10) + announced)
        found.append(_change(number))
        if number % PER_TRANSACTION == PER_TRANSACTION - 1:
            found.append(struct.pack(">cBQQq", b"C", 0, lsn, lsn + 48, 0))
    return found


def _change(number: int) -> bytes:
    kind, marker = (b"U", b"N") if number % 6 < 3 else (b"I", b"N") if number % 6 < 5 else (b"D", b"K")
    values = [b"b" + struct.pack(">i", len(value)) + value for value in row(number)]
    if kind == b"D":
        values[1:] = [b"n"] * 9
    return struct.pack(">cIch", kind, RELATION, marker, 10) + b"".join(values)


def _copy_out(tuples: Iterable[bytes], columns: int) -> bytes:
    header = b"PGCOPY\n\xff\r\n\0" + bytes(8)
    bodies = [*tuples, b"\xff\xff"]
    bodies[0] = header + bodies[0]
    head = b"H" + struct.pack(">ibh", 7 + 2 * columns, 1, columns) + bytes(2 * columns)
    data = b"".join(b"d" + struct.pack(">i", len(body) + 4) + body for body in bodies)
    return head + data + b"c\0\0\0\x04" + b"Z\0\0\0\x05I"


if __name__ == "__main__":
    print(json.dumps(run()))
