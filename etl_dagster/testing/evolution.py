"""Random histories of a table whose columns change on the way.

Few names for columns, so that the same ones come, go, and pass from one column to another.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import groupby

from etl_dagster.model import Landing, TableEvents, TableSchema
from etl_dagster.testing.change_script import (
    INT8,
    TEXT,
    UNCHANGED,
    Delete,
    Insert,
    Op,
    Update,
    altered,
    make_table,
    story,
)
from etl_dagster.testing.replay import lsn_of

_NAMES = "abcde"
_KEYS = range(6)
_Row = dict[int, str | None]


class Evolution:
    """Transactions, each under its schema, and the table after each; state ``-1`` is the one before the first."""

    def __init__(self, seed: int, landing: Landing, transactions: int) -> None:
        self._rng = random.Random(seed)
        self._rows: dict[int, _Row] = {}
        start = make_table(columns={"id": INT8, "a": TEXT, "b": TEXT}, landing=landing)
        self.schemas: list[TableSchema] = [start]
        self.transactions: list[list[Op]] = []
        self._states: list[list[tuple[object, ...]]] = []
        self._insert(1)
        self._record()
        for i in range(transactions):
            self._alter()
            self.transactions.append([op for _ in range(self._rng.randrange(4)) for op in self._step(lsn_of(i))])
            self._record()

    def schema(self, transaction: int) -> TableSchema:
        return self.schemas[transaction + 1]

    def rows_after(self, transaction: int) -> list[tuple[object, ...]]:
        """The table after a transaction, by its schema of then."""
        return self._states[transaction + 1]

    def batches(self, seed: int) -> Iterable[tuple[int, Sequence[Sequence[TableEvents]]]]:
        """The last transaction and the pieces of consecutive batches; some repeat the end of the former."""
        rng, first = random.Random(seed), 0
        while first < len(self.transactions):
            last = min(first + rng.randrange(1, 10), len(self.transactions)) - 1
            begin = max(first - rng.randrange(4), 0)
            middle = rng.randrange(begin, last + 1)
            pieces = [self._piece(begin, middle), self._piece(middle + 1, last)]
            yield last, [[events] for events in pieces if events is not None]
            first = last + 1

    def _piece(self, first: int, last: int) -> TableEvents | None:
        span = [i for i in range(first, last + 1) if self.transactions[i]]
        parts = [
            (schema, [op for i in group for op in self.transactions[i]])
            for schema, group in groupby(span, key=self.schema)
        ]
        return story(*parts) if parts else None

    def _record(self) -> None:
        columns = [column.attnum for column in self._table.columns[1:]]
        rows = [(key, *(row[attnum] for attnum in columns)) for key, row in self._rows.items()]
        self._states.append(sorted(rows, key=repr))

    @property
    def _table(self) -> TableSchema:
        return self.schemas[-1]

    def _alter(self) -> None:
        before, table = self._table, self._table
        for _ in range(self._rng.choice([0, 0, 0, 0, 1, 1, 2, 3])):
            table = self._altered(table)
        known = {column.attnum for column in before.columns}
        for column in table.columns:
            for row in self._rows.values():
                if column.attnum not in known:
                    row[column.attnum] = column.missing
        self.schemas.append(table)

    def _altered(self, table: TableSchema) -> TableSchema:
        taken = [column.name for column in table.columns[1:]]
        free = [name for name in _NAMES if name not in taken]
        kind = self._rng.choice(["add", "add", "drop", "rename", "swap", "renew"])
        missing = (TEXT, self._new()) if self._rng.random() < 0.5 else TEXT
        if kind == "add" and free:
            return altered(table, add={self._rng.choice(free): missing})
        if kind == "swap" and len(taken) > 1:
            one, other = self._rng.sample(taken, 2)
            return altered(table, rename={one: other, other: one})
        if not taken or kind in {"add", "swap"}:
            return table
        name = self._rng.choice(taken)
        if kind == "rename":
            return altered(table, rename={name: self._rng.choice(free)}) if free else table
        return altered(table, drop=[name], add={name: missing} if kind == "renew" else None)

    def _step(self, lsn: int) -> list[Op]:
        free = [key for key in _KEYS if key not in self._rows]
        kind = self._rng.choice(["insert", "insert", "update", "update", "move", "delete"])
        if kind == "insert":
            return [Insert(lsn, self._insert(self._rng.choice(free)))] if free else []
        if not self._rows:
            return []
        key = self._rng.choice(list(self._rows))
        if kind == "delete":
            del self._rows[key]
            return [Delete(lsn, (key,))]
        if kind == "update":
            return [Update(lsn, self._update(key, key))]
        return [Update(lsn, self._update(key, self._rng.choice(free)), old=(key,))] if free else []

    def _insert(self, key: int) -> list[object]:
        self._rows[key] = {column.attnum: self._new() for column in self._table.columns[1:]}
        return [key, *self._rows[key].values()]

    def _update(self, key: int, onto: int) -> list[object]:
        row = self._rows[onto] = self._rows.pop(key)
        sent: list[object] = [onto]
        for column in self._table.columns[1:]:
            if self._rng.random() < 0.4:
                sent.append(UNCHANGED)
            else:
                row[column.attnum] = None if self._rng.random() < 0.1 else self._new()
                sent.append(row[column.attnum])
        return sent

    def _new(self) -> str:
        return f"v{self._rng.randrange(10**6)}"
