"""The server, the table and the changes that all contenders read: the same bytes in every run.

Nothing is random. Keys are visited in steps of a prime number, so that every update and delete meets another page.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

import psycopg

# Background work of the server would hit one contender and spare another.
SERVER_SETTINGS = {
    "shared_buffers": "512MB",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
    "autovacuum": "off",
    "synchronous_commit": "off",
}
PUBLICATION = "etl_bench"
SLOT = "etl_bench"
_STEP = 7919
_TRANSACTION = 1000
_STATEMENTS = 10  # in a transaction, so that kinds of change alternate

_TABLE = """
CREATE TABLE bench (
    id bigint PRIMARY KEY, customer int NOT NULL, status text NOT NULL, amount numeric(12,2), qty smallint,
    price float8, paid bool, note text, created timestamptz, day date)
"""
_ROW = """
(i*7919) % 100000, (array['new','paid','shipped','done'])[1 + i % 4], (i % 1000000) / 100.0, i % 100, i * 0.5,
i % 2 = 0, 'note number ' || i || ' for the row', timestamptz '2024-01-01' + i * interval '1 second',
date '2024-01-01' + (i % 1000)::int
"""

# Updates, inserts and deletes as 5 : 3 : 2. Keys from `at` on in the order of steps; deleted ones never come again.
_CHANGES = f"""
CREATE PROCEDURE change(rows bigint, nth int, changes int, per_transaction int, statements int) LANGUAGE plpgsql AS $$
DECLARE
    piece int := per_transaction / statements;
    key bigint := nth * (changes * 7 / 10)::bigint;
    new bigint := rows + 1 + nth * (changes * 3 / 10)::bigint;
BEGIN
    FOR n IN 1 .. changes / piece LOOP
        UPDATE bench SET status = 'changed', amount = amount + 1.01, qty = (qty + 1) % 100, paid = NOT paid,
            note = 'updated ' || note FROM generate_series(key, key + piece * 5 / 10 - 1) k
            WHERE id = 1 + (k * {_STEP}) % rows;
        INSERT INTO bench SELECT i, {_ROW} FROM generate_series(new, new + piece * 3 / 10 - 1) i;
        DELETE FROM bench USING generate_series(key + piece * 5 / 10, key + piece * 7 / 10 - 1) k
            WHERE id = 1 + (k * {_STEP}) % rows;
        key := key + piece * 7 / 10;
        new := new + piece * 3 / 10;
        IF n % statements = 0 AND per_transaction < changes THEN COMMIT; END IF;
    END LOOP;
END $$
"""

# Reads the same in PostgreSQL and DuckDB.
SUMS = """
SELECT count(*)::float8, sum(id)::float8, sum(customer)::float8, sum(amount)::float8, sum(qty)::float8, sum(price),
    sum(paid::int)::float8, sum(length(note))::float8, sum(length(status))::float8,
    (max(day) - date '2024-01-01')::float8, (min(day) - date '2024-01-01')::float8
FROM public.bench
"""


@dataclass(frozen=True)
class Sizes:
    """How much is measured, and how often."""

    rows: int
    changes: int
    rounds: int

    def __post_init__(self) -> None:
        if self.changes % _TRANSACTION or self.rows % _STEP == 0 or self.rows * 10 < self.changes * 2 * 7:
            raise ValueError(f"Changes: multiples of {_TRANSACTION}; rows: at least 1.4 times as many, not of {_STEP}")


class Workload:
    """One source table, and what happens to it."""

    def __init__(self, dsn: str, sizes: Sizes) -> None:
        self.dsn = dsn
        self.sizes = sizes
        self._connection = psycopg.connect(dsn, autocommit=True)
        self._written = 0

    def close(self) -> None:
        self._connection.close()

    def fill(self) -> None:
        """Make the table; vacuum and read it once, so that no contender pays for hint bits or cold caches."""
        self._do(_TABLE)
        self._do(f"INSERT INTO bench SELECT i, {_ROW} FROM generate_series(1, {self.sizes.rows}::bigint) i")
        self._do(_CHANGES)
        self.settle()

    def index(self, column: str) -> None:
        """Let the server find rows by a column."""
        self._do(f"CREATE INDEX ON bench ({column})")
        self.settle()

    def settle(self) -> None:
        """Make a later read cost the same for whoever comes first."""
        self._do("VACUUM (ANALYZE) bench")
        self._do("SELECT sum(id), sum(length(note)) FROM bench")
        self._do("CHECKPOINT")

    def change(self, *, one_transaction: bool = False) -> str:
        """Write the next set of changes; returns the position behind them."""
        changes = self.sizes.changes
        self._do("SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_seqscan = off")
        per_transaction = changes if one_transaction else _TRANSACTION
        statements = _STATEMENTS * per_transaction // _TRANSACTION
        self._connection.execute(
            "CALL change(%s, %s, %s, %s, %s)", (self.sizes.rows, self._written, changes, per_transaction, statements)
        )
        self._do("RESET ALL")
        self._written += 1
        return self.ask("SELECT pg_current_wal_insert_lsn()")

    def pages(self) -> int:
        """Pages of the table."""
        return int(self.ask("SELECT pg_relation_size('bench') / current_setting('block_size')::int"))

    def copy_slot(self, source: str, target: str) -> None:
        """Put a slot where another one stands."""
        self.drop_slot(target)
        self._connection.execute("SELECT pg_copy_logical_replication_slot(%s, %s)", (source, target))

    def drop_slot(self, name: str) -> None:
        """Remove a slot if it is there."""
        found = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s"
        self._connection.execute(found, (name,))

    def sums(self) -> list[float]:
        """What the table holds, summed up column by column."""
        row = self._connection.execute(SUMS).fetchone()
        assert row is not None
        return [float(value) for value in row]

    def ask(self, query: str) -> str:
        row = self._connection.execute(query).fetchone()
        assert row is not None
        return str(row[0])

    def _do(self, statement: str) -> None:
        self._connection.execute(statement)


def database(dsn: str) -> list[str]:
    """The DSN as options of PostgreSQL's own programs."""
    parts = urlsplit(dsn)
    return ["-h", str(parts.hostname), "-p", str(parts.port), "-U", str(parts.username), "-d", parts.path[1:]]
