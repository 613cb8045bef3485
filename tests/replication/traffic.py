"""Random writes against a few tables until the parent goes away; run as a program: DSN, seed."""

from __future__ import annotations

import random
import sys

import psycopg

TABLES = """
create table if not exists accounts (id int primary key, owner text, balance numeric(14, 2), body text);
create table if not exists moves (id bigserial primary key, account int, amount numeric(14, 2), at timestamptz default now());
create table if not exists flags (name text, day date, n int, primary key (name, day));
alter table accounts alter body set storage external;
insert into accounts select i, 'owner ' || i, i, repeat('b' || i, 1000) from generate_series(1, 3000) i on conflict do nothing;
"""


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
    dsn, seed = sys.argv[1:]
    dice = random.Random(int(seed))
    with psycopg.connect(dsn, autocommit=True) as source:
        print("ready", flush=True)
        while True:
            one(source, dice)


if __name__ == "__main__":
    main()
