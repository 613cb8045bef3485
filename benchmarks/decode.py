"""Decoding alone: changes and copied rows per second on one thread, from bytes made here, without a server.

Two tables of ten columns: one of numbers and short text, and ``mixed``, of what takes more work: decimals, json, uuid,
arrays and intervals. The changes of the first are updates, inserts and deletes, those of ``mixed`` inserts.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from etl_dagster.arrow import read_column
from etl_dagster.model import Column, PgType, TableId, TableSchema, TypeKind
from etl_dagster.pgoutput import StreamDecoder
from etl_dagster.pgwire import CopyOutStream, split_copy_rows

ROWS = 200_000
PER_TRANSACTION = 1000
BLOCK_BYTES = 1 << 20  # what the source reads off its socket at once
ROUNDS = 5
RELATION = 16_384
_MONEY = ((12 << 16) | 2) + 4  # numeric(12,2)


@dataclass(frozen=True)
class Workload:
    """A table, and the values of its rows in the server's binary format.

    Attributes:
        kinds: Message type of each sixth change.
    """

    types: tuple[PgType, ...]
    row: Callable[[int], list[bytes]]
    kinds: bytes

    @property
    def table(self) -> TableSchema:
        """Its schema; the first column is the key."""
        columns = [
            Column(attnum=place + 1, name=f"c{place}", type=type_, key_ordinal=None if place else 0)
            for place, type_ in enumerate(self.types)
        ]
        return TableSchema(id=TableId("public", "bench"), oid=RELATION, columns=tuple(columns))


def _base(oid: int, typmod: int = -1) -> PgType:
    return PgType(oid=oid, name=f"type {oid}", typmod=typmod, declared_oid=oid)


_INT4S = PgType(oid=1007, name="int4[]", kind=TypeKind.ARRAY, element=_base(23), declared_oid=1007)


def _plain_row(number: int) -> list[bytes]:
    return [
        struct.pack(">q", number),
        struct.pack(">i", number * 7919 % 100_000),
        (b"new", b"paid", b"shipped", b"done")[number % 4],
        _amount(number * 37 % 100_000_000),
        struct.pack(">h", number % 100),
        struct.pack(">d", number * 0.5),
        bytes([number % 2]),
        b"note number %d for the row" % number,
        struct.pack(">q", 757_382_400_000_000 + number * 1_000_000),
        struct.pack(">i", 8766 + number % 1000),
    ]


def _mixed_row(number: int) -> list[bytes]:
    elements = b"".join(struct.pack(">ii", 4, number + nth) for nth in range(1 + number % 4))
    return [
        _amount(number * 37 % 100_000_000),
        b"note number %d for the row" % number,
        struct.pack(">q", 757_382_400_000_000 + number * 1_000_000),
        b'\1{"n": %d, "of": [1, 2.5], "who": "some one"}' % number,
        struct.pack(">QQ", number * 0x9E3779B97F4A7C15 % 2**64, number),
        struct.pack(">iiIii", 1, 0, 23, 1 + number % 4, 1) + elements,
        struct.pack(">i", 8766 + number % 1000),
        bytes([number % 2]),
        struct.pack(">Q", number) * (number % 5),
        struct.pack(">qii", number * 1_000_003, number % 31, number % 12),
    ]


def _amount(cents: int) -> bytes:
    return struct.pack(">HhHH3H", 3, 1, 0, 2, cents // 1_000_000, cents // 100 % 10_000, cents % 100 * 100)


WORKLOADS = {
    "": Workload(
        tuple(_base(oid, _MONEY if oid == 1700 else -1) for oid in (20, 23, 25, 1700, 21, 701, 16, 25, 1184, 1082)),
        _plain_row,
        b"UUUIID",
    ),
    "mixed_": Workload(
        (
            *(_base(1700, _MONEY), _base(25), _base(1184), _base(3802), _base(2950)),
            *(_INT4S, _base(1082), _base(16), _base(17), _base(1186)),
        ),
        _mixed_row,
        b"IIIIII",
    ),
}


def run() -> dict[str, float]:
    """Best of a few rounds of each."""
    found: dict[str, float] = {}
    for name, workload in WORKLOADS.items():
        changes, copy = change_stream(workload), copy_stream(workload)
        found[f"decode_{name}changes_per_s"] = _rate(_decode_changes, workload.table, changes)
        found[f"decode_{name}copy_rows_per_s"] = _rate(_decode_copy, workload.table, copy)
    return found


def _decode_changes(table: TableSchema, raw: bytes) -> int:
    stream, decoder = CopyOutStream(), StreamDecoder({RELATION: table})
    for start in range(0, len(raw), BLOCK_BYTES):
        decoder.feed(stream.feed(raw[start : start + BLOCK_BYTES]))
    return decoder.changes


def _decode_copy(table: TableSchema, raw: bytes) -> int:
    stream, rows = CopyOutStream(), 0
    for start in range(0, len(raw), BLOCK_BYTES):
        frames = stream.feed(raw[start : start + BLOCK_BYTES])
        for column, fields in zip(table.columns, split_copy_rows(frames, len(table.columns)), strict=True):
            read_column(column, fields)
        rows += len(frames)
    return rows


def _rate(work: Callable[[TableSchema, bytes], int], table: TableSchema, raw: bytes) -> int:
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        if work(table, raw) != ROWS:
            raise RuntimeError("rows were lost")
        seconds.append(time.perf_counter() - started)
    return round(ROWS / min(seconds))


def copy_stream(workload: Workload) -> bytes:
    """What the server sends for a copy of the table."""
    tuples = (
        struct.pack(">h", len(workload.types))
        + b"".join(struct.pack(">i", len(value)) + value for value in workload.row(number))
        for number in range(ROWS)
    )
    return _copy_out(tuples, len(workload.types))


def change_stream(workload: Workload) -> bytes:
    """What the server sends for a peek."""
    return _copy_out((b"\0\x01" + struct.pack(">i", len(body)) + body for body in _messages(workload)), 1)


def _messages(workload: Workload) -> list[bytes]:
    announced = b"".join(
        bytes([not place]) + b"c%d\0" % place + struct.pack(">Ii", type_.oid, type_.typmod)
        for place, type_ in enumerate(workload.types)
    )
    columns = struct.pack(">h", len(workload.types)) + announced
    found = []
    for number in range(ROWS):
        lsn = 1000 * (number // PER_TRANSACTION + 1)
        if number % PER_TRANSACTION == 0:
            found.append(struct.pack(">cQqI", b"B", lsn, 0, 1))
        if number == 0:
            found.append(struct.pack(">cI", b"R", RELATION) + b"public\0bench\0d" + columns)
        found.append(_change(workload, number))
        if number % PER_TRANSACTION == PER_TRANSACTION - 1:
            found.append(struct.pack(">cBQQq", b"C", 0, lsn, lsn + 48, 0))
    return found


def _change(workload: Workload, number: int) -> bytes:
    kind = workload.kinds[number % 6 :][:1]
    values = [b"b" + struct.pack(">i", len(value)) + value for value in workload.row(number)]
    if kind == b"D":
        values[1:] = [b"n"] * (len(values) - 1)
    marker = b"K" if kind == b"D" else b"N"
    return struct.pack(">cIch", kind, RELATION, marker, len(values)) + b"".join(values)


def _copy_out(tuples: Iterable[bytes], columns: int) -> bytes:
    header = b"PGCOPY\n\xff\r\n\0" + bytes(8)
    bodies = [*tuples, b"\xff\xff"]
    bodies[0] = header + bodies[0]
    head = b"H" + struct.pack(">ibh", 7 + 2 * columns, 1, columns) + bytes(2 * columns)
    data = b"".join(b"d" + struct.pack(">i", len(body) + 4) + body for body in bodies)
    return head + data + b"c\0\0\0\x04" + b"Z\0\0\0\x05I"


if __name__ == "__main__":
    print(json.dumps(run()))
