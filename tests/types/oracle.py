"""The server as the oracle of value policies: what it says of the table ``v`` beside what we make of it."""

from __future__ import annotations

import random
from collections import Counter

import pyarrow as pa

from etl_dagster.arrow import column_type, read_column
from etl_dagster.model import Column
from etl_dagster.postgres.text import to_text
from tests.decoding.support import Connection, execute, fields_of

ROWS = 1_000
PRINTED = "case when {0} is distinct from null then concat({0}) end"


def mixed(good: list[str], bad: list[str], seed: int) -> list[str | None]:
    """Good ones, some bad ones and some nulls among them."""
    draw = random.Random(seed)
    picked: list[str | None] = [draw.choice(bad if draw.random() < 0.1 else good) for _ in range(ROWS)]
    return [None if draw.random() < 0.05 else literal for literal in picked]


def read(connection: Connection, column: Column, text: bool) -> tuple[pa.Array, Counter[str]]:
    """The table ``v`` under the column's policy, and how many values were replaced."""
    replaced: Counter[str] = Counter()
    fields = fields_of(connection, f"select {PRINTED.format('v') if text else 'v'} from v order by i")
    array = read_column(column, fields, text=text, replaced=replaced)
    assert array.type == column_type(column)
    array.validate(full=not pa.types.is_time(array.type))
    return array, replaced


def differing(connection: Connection, array: pa.Array, declared: str, expected: str) -> list[tuple[str, str]]:
    """Rows of ``v`` whose expected value is not ours, both as the server prints them."""
    execute(connection, "drop table if exists ours; create temp table ours (i int, t text)")
    with connection.cursor().copy("copy ours from stdin") as copy:
        for row in enumerate(to_text(array).to_pylist()):
            copy.write_row(row)
    ours, theirs = (PRINTED.format(f"({value})::{declared}") for value in ("t", expected))
    both = execute(connection, f"select {ours}, {theirs} from v join ours using (i) order by i")
    assert len(both) == len(array)
    return [(one, other) for one, other in both if one != other]
