"""Random writes against tables of every landing, with changes of columns, in a thread beside the pipeline."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, LiteralString

import psycopg

TABLES: Sequence[LiteralString] = (
    # Two that BigQuery's copy jobs bring in place, one of them by slices; one whose JSON has to be converted.
    "create table plain (id int primary key, n int, body text)",
    "create table accounts (id int primary key, owner text, balance numeric(14, 2), body text, facts jsonb)",
    "alter table accounts alter body set storage external",
    "create table sliced (id int primary key, n int, body text)",
    # Soft deletes, and a changelog that only grows.
    "create table orders (id int, day date, body text, primary key (id, day))",
    "create table moves (id bigserial primary key, account int, amount numeric(14, 2))",
    # Its columns change.
    "create table shapes (id int primary key, v text)",
    "insert into plain select i, 0, repeat('p', 40) from generate_series(1, 1000) i",
    "insert into accounts select i, 'owner ' || i, i, repeat('b' || i, 700), '[1]' from generate_series(1, 60) i",
    "insert into sliced select i, 0, repeat('s', 40) from generate_series(1, 1000) i",
    "insert into orders select i, date '2026-01-01' + i % 180, repeat('o', 40) from generate_series(1, 600) i",
    "insert into moves (account, amount) select i, i from generate_series(1, 300) i",
    "insert into shapes select i, 'v' || i from generate_series(1, 300) i",
    "analyze",
)
NAMES = ("accounts", "moves", "orders", "plain", "shapes", "sliced")
CHOICES: dict[str, Any] = {
    "public.orders": {"landing": "soft_delete"},
    "public.moves": {"landing": "changelog"},
    "public.sliced": {"partitions": {"type": "range", "column": "id", "rows": 250}},
}
# Leaves most of the machine to the pipeline.
PAUSE_SECONDS = 0.03
# Each takes a key from 1 to 1,000.
_WRITES: Sequence[LiteralString] = (
    "update plain set n = n + 1 where id between %(key)s and %(key)s + 30",
    "update plain set id = -id where id between %(key)s and %(key)s + 3",
    "delete from plain where id between %(key)s and %(key)s + 3",
    "insert into plain select %(key)s + g, 7, 'again' from generate_series(0, 9) g on conflict (id) do update set n = 8",
    "update accounts set balance = balance + 1 where id between %(key)s %% 60 and %(key)s %% 60 + 5",
    "update accounts set id = -id, owner = 'moved' where id = %(key)s %% 60",
    "update accounts set body = repeat('n', 3000), facts = '{\"new\": 1.5}' where id = %(key)s %% 60",
    "delete from accounts where id = %(key)s %% 60",
    "insert into accounts values (%(key)s %% 60, 'again', 0, repeat('a', 3000), '[null, \"x\"]') on conflict do nothing",
    "update sliced set n = n + 1 where id between %(key)s and %(key)s + 30",
    "update sliced set id = 1001 - id where id = %(key)s and not exists (select from sliced where id = 1001 - %(key)s)",
    "delete from sliced where id between %(key)s and %(key)s + 2",
    "insert into sliced select %(key)s + g, 7, 'again' from generate_series(0, 9) g on conflict do nothing",
    "update orders set body = body || 'x' where id between %(key)s and %(key)s + 20",
    "update orders set day = date '2026-01-01' + %(key)s %% 180 where id between %(key)s and %(key)s + 3",
    "delete from orders where id between %(key)s and %(key)s + 3",
    "insert into orders select %(key)s + g, '2026-04-04', 'again' from generate_series(0, 5) g on conflict do nothing",
    "insert into moves (account, amount) select %(key)s, g from generate_series(1, 20) g",
)
_RARE: Sequence[LiteralString] = ("truncate plain", "truncate orders", "truncate shapes")


class Traffic:
    """One client of the source; the same seed writes the same."""

    def __init__(self, dsn: str, seed: int) -> None:
        self._dsn = dsn
        self._dice = random.Random(seed)
        self._stop = threading.Event()
        self._key, self._value = "id", "v"
        self._extra: list[str] = []
        self._made = 0

    @contextmanager
    def running(self, most: int = 1_000_000) -> Iterator[None]:
        """Writes while the block lasts, so many transactions at the most."""
        failed: list[Exception] = []

        def run() -> None:
            try:
                with psycopg.connect(self._dsn, autocommit=True) as source:
                    for _ in range(most):
                        self.one(source)
                        if self._stop.wait(PAUSE_SECONDS):
                            break
            except psycopg.Error as error:
                failed.append(error)

        self._stop.clear()
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
        assert not failed, failed

    def one(self, source: psycopg.Connection[Any]) -> None:
        """One transaction."""
        what = self._dice.random()
        with suppress(psycopg.errors.UniqueViolation):  # a row moved to where another one is
            if what < 0.85:
                self._write(source)
            elif what < 0.95:
                self._shape(source, *self._shape_writes())
            elif what < 0.985:
                self._shape(source, self._alter())
            else:
                source.execute(self._dice.choice(_RARE))

    def _write(self, source: psycopg.Connection[Any]) -> None:
        with source.transaction(force_rollback=self._dice.random() < 0.05):
            for statement in self._dice.sample(_WRITES, self._dice.randint(1, 3)):
                source.execute(statement, {"key": self._dice.randint(1, 1000)})

    def _shape(self, source: psycopg.Connection[Any], *statements: str) -> None:
        for statement in statements:
            source.execute(statement)

    def _shape_writes(self) -> Iterator[str]:
        low = self._dice.randint(1, 300)
        some = f"where {self._key} between {low} and {low + 5}"
        yield f"insert into shapes ({self._key}, {self._value}) values ({low}, 'new') on conflict do nothing"
        yield f"update shapes set {self._value} = {self._value} || 'x' {some}"
        yield from (f"update shapes set {name} = {low} {some}" for name in self._extra)
        yield f"update shapes set {self._key} = -{self._key} where {self._key} = {low}"
        yield f"delete from shapes where {self._key} = {low + 1}"

    def _alter(self) -> str:
        """Add a column with a default, drop one, or rename one, maybe the key's."""
        what = self._dice.randrange(4)
        if what == 0 or (what == 1 and not self._extra):
            self._made += 1
            self._extra.append(f"e{self._made}")
            return f"alter table shapes add column e{self._made} int default {self._made}"
        if what == 1:
            return f"alter table shapes drop column {self._extra.pop()}"
        if what == 2:
            before, self._value = self._value, "w" if self._value == "v" else "v"
            return f"alter table shapes rename column {before} to {self._value}"
        before, self._key = self._key, "nr" if self._key == "id" else "id"
        return f"alter table shapes rename column {before} to {self._key}"
