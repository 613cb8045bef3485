"""Random histories of one table, played into a destination the way the engine would.

Transaction ``i`` commits at ``lsn_of(i)``, and the position after it is where the next one commits, as it happens on a
busy server. Every row lives in a block; an update may put it into another one, so that chunks which read their blocks
at different times see a row twice or not at all.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pyarrow as pa

from etl_dagster.destinations.base import ChunkRows, Destination
from etl_dagster.model import CopyTarget, EventBatch, Landing, Lsn, Route, TableEvents, TableSchema
from etl_dagster.testing.change_script import (
    TICK,
    UNCHANGED,
    Delete,
    Insert,
    Op,
    Truncate,
    Update,
    change_set,
    make_table,
    rows_batch,
)

KEYS = range(8)
BLOCKS = 4
_STEP = 100


def lsn_of(transaction: int) -> int:
    """Where a transaction commits; also the position after the one before it."""
    return (transaction + 1) * _STEP


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    body: str
    block: int


_State = dict[int, _Row]


@dataclass(slots=True)
class History:
    """Transactions and the state of the table after each; state ``-1`` is the one before the first."""

    table: TableSchema
    states: list[_State] = field(default_factory=list)
    transactions: list[list[Op]] = field(default_factory=list)
    truncates: set[int] = field(default_factory=set)

    @classmethod
    def random(cls, seed: int, transactions: int, landing: Landing = Landing.MIRROR, *, entering: float = 0) -> History:
        """A history of inserts, updates, moves, swaps, deletes and a few truncates over few keys.

        Args:
            entering: Share of the inserts that leave a value out, as of rows that an update brings into a row filter.
        """
        author = _Author(random.Random(seed), entering)
        history = cls(make_table(landing=landing))
        history.states.append(dict(author.rows))
        for i in range(transactions):
            history._record(author, i)
        return history

    def _record(self, author: _Author, i: int) -> None:
        truncate = author.rng.random() < 0.02
        if truncate:
            author.rows.clear()
            self.truncates.add(i)
        self.transactions.append(author.transaction(lsn_of(i)))
        self.states.append(dict(author.rows))

    def rows_after(self, transaction: int) -> list[tuple[int, str, str]]:
        """The table after a transaction."""
        return [(key, row.name, row.body) for key, row in self.states[transaction + 1].items()]

    def sorted_rows(self, transaction: int) -> list[tuple[int, str, str]]:
        return sorted(self.rows_after(transaction), key=repr)

    def cuts(self, seed: int, upto: int) -> list[tuple[int, int]]:
        """First and last transaction of consecutive batches; now and then one that repeats the end of the former."""
        rng, first, found = random.Random(seed), 0, []
        while first < upto:
            last = min(first + rng.randrange(1, 12), upto) - 1
            found.append((max(first - rng.randrange(3), 0), last))
            first = last + 1
        return found

    def batch(self, first: int, last: int, *, route: Route | None = None, pieces: int = 1) -> EventBatch:
        """The transactions ``first`` to ``last`` as one batch."""
        size = max(1, -(-(last - first + 1) // pieces))
        starts = range(first, last + 1, size)
        parts = [self._piece(start, min(start + size - 1, last)) for start in starts]
        return EventBatch(iter(parts), lambda: Lsn(lsn_of(last + 1)), {self.table.id: route or Route()})

    def _piece(self, first: int, last: int) -> Sequence[TableEvents]:
        if self.table.landing is Landing.CHANGELOG:
            return [TableEvents(self.table, (change_set(self.table, self._ops(first, last)),))]
        truncates = [i for i in range(first, last + 1) if i in self.truncates]
        begin = truncates[-1] if truncates else first
        halves = [self._ops(begin, (begin + last) // 2), self._ops((begin + last) // 2 + 1, last)]
        changes = tuple(change_set(self.table, ops) for ops in halves if ops)
        if not truncates:
            return [TableEvents(self.table, changes)]
        return [TableEvents(self.table, changes, Lsn(lsn_of(begin)), lsn_of(begin) * TICK)]

    def _ops(self, first: int, last: int) -> list[Op]:
        return [op for i in range(first, last + 1) for op in self._ops_of(i)]

    def _ops_of(self, i: int) -> list[Op]:
        truncates = i in self.truncates and self.table.landing is Landing.CHANGELOG
        return [Truncate(lsn_of(i)), *self.transactions[i]] if truncates else self.transactions[i]

    def copy_into(self, destination: Destination, seed: int, reopen: Callable[[], Destination]) -> int:
        """Copy the table while the history goes on; returns the last transaction that is in the result."""
        return _CopyRun(self, destination, random.Random(seed), reopen).run()


class _CopyRun:
    def __init__(
        self, history: History, destination: Destination, rng: random.Random, reopen: Callable[[], Destination]
    ) -> None:
        self._history = history
        self._destination = destination
        self._rng = rng
        self._reopen = reopen
        self._target = CopyTarget(history.table, f"copy_{rng.randrange(10**6)}")
        self._route = Route(live=False, log=self._target)

    def run(self) -> int:
        start = self._rng.randrange(20)
        seen = [start + self._rng.randrange(25) for _ in range(BLOCKS)]
        if self._history.table.landing is Landing.CHANGELOG:
            seen = seen[:1]  # it is copied as one chunk
        self._destination.truncate_table(self._target)
        done = self._log(start, start + self._rng.randrange(10))
        self._stage(seen)
        done = self._log(done + 1, max(done + 1, *seen))
        return self._finish(done)

    def _log(self, first: int, last: int) -> int:
        for _ in range(1 + self._rng.randrange(2)):
            self._destination.write_events(self._history.batch(first, last, route=self._route, pieces=3))
        return last

    def _stage(self, seen: Sequence[int]) -> None:
        if self._history.table.landing is Landing.CHANGELOG:
            self._write("all", self._history.rows_after(seen[0]), seen[0])
            return
        for block, after in enumerate(seen):
            state = self._history.states[after + 1]
            rows = [(key, row.name, row.body) for key, row in state.items() if row.block == block]
            self._write(f"b{block}", rows, after)

    def _finish(self, done: int) -> int:
        for attempt in range(20):
            self._destination = self._reopen()
            result = self._destination.finish_copy(self._target, Lsn(lsn_of(done + 1)))
            if result.undecided is None:
                if self._history.table.landing is Landing.MIRROR:
                    assert result.rows == len(self._history.rows_after(done))
                return done
            seen = done + self._rng.randrange(4)
            self._read_again(f"r{attempt}", result.undecided, seen)
            if seen > done:
                done = self._log(done + 1, seen)
        raise AssertionError("the copy does not come to an end")

    def _read_again(self, chunk_id: str, keys: pa.Table, after: int) -> None:
        state = self._history.states[after + 1]
        wanted = [key for key in keys.column(0).to_pylist() if key in state]
        self._write(chunk_id, [(key, state[key].name, state[key].body) for key in wanted], after, reread=True)

    def _write(self, chunk_id: str, rows: list[tuple[int, str, str]], after: int, *, reread: bool = False) -> None:
        batches = [rows_batch(self._history.table, rows)] if rows else []
        seen = lsn_of(after + 1)
        chunk = ChunkRows(chunk_id, Lsn(seen), datetime.now(UTC), batches, reread, snapshot=f"{seen}:{seen}:")
        self._destination.write_table_rows(self._target, chunk)


class _Author:
    """Writes transactions against the current rows."""

    def __init__(self, rng: random.Random, entering: float) -> None:
        self.rng = rng
        self._entering = entering
        self.rows: _State = {key: self._new() for key in KEYS if rng.random() < 0.5}

    def transaction(self, lsn: int) -> list[Op]:
        ops: list[Op] = []
        for _ in range(self.rng.randrange(4)):
            ops += self._step(lsn)
        return ops

    def _step(self, lsn: int) -> list[Op]:
        taken, free = list(self.rows), [key for key in KEYS if key not in self.rows]
        kind = self.rng.choice(["insert", "update", "update", "move", "move", "delete", "replace", "swap"])
        if kind == "insert" and free:
            return [self._insert(lsn, self.rng.choice(free))]
        if kind == "swap" and len(taken) > 1:
            return self._swap(lsn, *self.rng.sample(taken, 2))
        if kind in {"insert", "swap"} or not taken:
            return []
        key = self.rng.choice(taken)
        if kind == "update":
            return [self._update(lsn, key, key)]
        if kind == "move":
            return [self._update(lsn, key, self.rng.choice(free))] if free else []
        self.rows.pop(key)
        return [Delete(lsn, (key,)), self._insert(lsn, key)] if kind == "replace" else [Delete(lsn, (key,))]

    def _insert(self, lsn: int, key: int) -> Op:
        self.rows[key] = self._new()
        enters = self._entering > 0 and self.rng.random() < self._entering
        return Insert(lsn, (key, self.rows[key].name, UNCHANGED if enters else self.rows[key].body))

    def _swap(self, lsn: int, one: int, other: int) -> list[Op]:
        return [self._update(lsn, one, -1), self._update(lsn, other, one), self._update(lsn, -1, other)]

    def _update(self, lsn: int, key: int, onto: int) -> Op:
        before, fresh = self.rows.pop(key), self._new()
        after = fresh if self.rng.random() < 0.3 else replace(fresh, body=before.body)
        self.rows[onto] = after
        body: object = UNCHANGED if after.body == before.body else after.body
        return Update(lsn, (onto, after.name, body), old=None if key == onto else (key,))

    def _new(self) -> _Row:
        number = self.rng.randrange(10**9)
        return _Row(f"n{number}", f"b{number}", self.rng.randrange(BLOCKS))
