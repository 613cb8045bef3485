"""Random writes against a few tables until the parent goes away; run as a program: DSN, seed, and maybe ``more``."""

from __future__ import annotations

import random
import sys
import time
from contextlib import suppress

import psycopg

TABLES = """
create table if not exists accounts (id int primary key, owner text, balance numeric(14, 2), body text);
create table if not exists moves (id bigserial primary key, account int, amount numeric(14, 2), at timestamptz default now());
create table if not exists flags (name text, day date, n int, primary key (name, day));
alter table accounts alter body set storage external;
insert into accounts select i, 'owner ' || i, i, repeat('b' || i, 1000) from generate_series(1, 3000) i on conflict do nothing;
"""

# Tables with many chunks, one of them partitioned.
MORE_TABLES = """
create table plain (id int primary key, n int, body text);
create table orders (id int, day date, body text, primary key (id, day)) partition by range (day);
create table orders_1 partition of orders for values from (minvalue) to ('2026-03-01');
create table orders_2 partition of orders for values from ('2026-03-01') to ('2026-05-01');
create table orders_3 partition of orders for values from ('2026-05-01') to (maxvalue);
insert into plain select i, 0, repeat('p', 80) from generate_series(1, 12000) i;
insert into orders select i, date '2026-01-01' + i % 180, repeat('o', 80) from generate_series(1, 6000) i;
analyze plain, orders;
"""
_MORE = [
    "update plain set n = n + 1 where id between %(key)s * 3 and %(key)s * 3 + 30",
    "update plain set id = -id where id between %(key)s * 3 and %(key)s * 3 + 3",
    "delete from plain where id between %(key)s * 3 + 4 and %(key)s * 3 + 6",
    "insert into plain select %(key)s * 3 + g, 7, 'again' from generate_series(0, 9) g on conflict (id) do update set n = 8",
    "update orders set body = body || 'x' where id between %(key)s * 2 and %(key)s * 2 + 20",
    "update orders set day = date '2026-01-01' + %(key)s %% 180 where id between %(key)s * 2 and %(key)s * 2 + 5",
    "update orders set id = -id where id between %(key)s * 2 and %(key)s * 2 + 3",
    "delete from orders where id between %(key)s * 2 + 4 and %(key)s * 2 + 6",
    "insert into orders select %(key)s * 2 + g, '2026-04-04', 'again' from generate_series(0, 9) g on conflict do nothing",
]


def more(source: psycopg.Connection, dice: random.Random) -> None:
    """One transaction against the tables with many chunks."""
    with source.transaction(force_rollback=dice.random() < 0.05):
        for statement in dice.sample(_MORE, dice.randint(1, 3)):
            source.execute(statement, {"key": dice.randint(1, 4000)})


def one(source: psycopg.Connection, dice: random.Random) -> None:
    """One transaction."""
    key = dice.randint(1, 4000)
    what = dice.random()
    with source.transaction(force_rollback=dice.random() < 0.05):
        if what < 0.3:
            source.execute(
                "insert into moves (account, amount) select %s, g from generate_series(1, %s) g",
                (key, dice.randint(1, 200)),
            )
            source.execute("update accounts set balance = balance + 1 where id = %s", (key,))
        elif what < 0.5:
            source.execute("update accounts set owner = owner || 'x' where id between %s and %s", (key, key + 50))
        elif what < 0.6:
            source.execute(
                "update accounts set id = -id where id = %s and not exists (select from accounts where id = %s)",
                (key, -key),
            )
        elif what < 0.7:
            source.execute("delete from accounts where id between %s and %s", (key, key + 5))
        elif what < 0.8:
            source.execute(
                "insert into accounts select g, 'again', 0, repeat('n', 5000) from generate_series(%s::int, %s::int) g on conflict (id) do update set balance = 7",
                (key, key + 10),
            )
        elif what < 0.9:
            source.execute(
                "insert into flags values (%s, current_date, 1) on conflict (name, day) do update set n = flags.n + 1, name = flags.name",
                (f"f{key % 40}",),
            )
        elif what < 0.97:
            source.execute("update flags set name = name || '_' where name = %s", (f"f{key % 40}",))
        else:
            source.execute("truncate flags")


def main() -> None:
    """Write until standard input is closed."""
    dsn, seed, *options = sys.argv[1:]
    dice = random.Random(int(seed))
    with psycopg.connect(dsn, autocommit=True) as source:
        print("ready", flush=True)
        while True:
            with suppress(psycopg.errors.UniqueViolation):  # a row moved to where another one is
                (more if options and dice.random() < 0.5 else one)(source, dice)
            if options:
                time.sleep(0.01)  # leaves a share of the machine to whoever copies


if __name__ == "__main__":
    main()
