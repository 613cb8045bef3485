"""Tables of as many columns as Postgres allows, and rows as large as people put into them; the memory that they take.

A chunk, or a piece of a window, is as large as its largest row at least, so what is bounded here depends on the rows.
"""

from __future__ import annotations

from pathlib import Path

from tests.replication.watching import measured_sync, timed

MEGABYTE = 1024 * 1024
MOST_COLUMNS = 1600


def _say(what: str, found: dict[str, object]) -> None:
    print(what, {name: round(value, 1) if isinstance(value, float) else value for name, value in found.items()})


def test_as_many_columns_as_a_table_can_have(scenario, tmp_path: Path) -> None:
    kinds = ["int", "bool", "text", "date"]
    columns = ", ".join(f"c{number} {kinds[number % len(kinds)]}" for number in range(MOST_COLUMNS - 1))
    values = ["i", "i % 2 = 0", "null", "date '2024-01-01' + i"]
    row = ", ".join(values[number % len(values)] for number in range(MOST_COLUMNS - 1))
    scenario.execute(
        f"create table wide (id int primary key, {columns})",
        f"insert into wide select i, {row} from generate_series(1, 150) i",
    )
    copied = measured_sync(scenario, tmp_path)
    _say("copy of 150 rows of 1,600 columns", copied)
    scenario.execute(
        "update wide set c2 = 'text', c1598 = 'last' where id < 100",
        "update wide set id = -id where id between 100 and 120",
        "delete from wide where id > 125",
        f"insert into wide select i, {row} from generate_series(2001, 2050) i",
    )
    streamed = measured_sync(scenario, tmp_path)
    _say("stream", streamed)
    with timed("comparison"):
        scenario.assert_equal("wide")
    assert max(copied["peak_mb"], streamed["peak_mb"]) < 2000
    assert max(copied["sync"], streamed["sync"]) < 60


def test_rows_of_64_megabytes(scenario, tmp_path: Path) -> None:
    scenario.execute(
        "create table large (id int primary key, n int, t text, b bytea)",
        "alter table large alter t set storage external, alter b set storage external",
        f"""insert into large select i, 0,
            case when i % 2 = 0 then repeat(md5(i::text), {2 * MEGABYTE}) end,
            case when i % 2 = 1 then convert_to(repeat(md5(i::text), {2 * MEGABYTE}), 'utf8') end
            from generate_series(1, 2) i""",
        "insert into large select i, 0, 'small', 'small' from generate_series(5, 500) i",
    )
    copied = measured_sync(scenario, tmp_path)
    _say("copy of 2 rows of 64 MB", copied)
    scenario.execute(
        "update large set n = 1 where id = 2",  # leaves what is large alone
        f"insert into large values (2001, 0, null, convert_to(repeat(md5('y'), {2 * MEGABYTE}), 'utf8'))",
        "update large set id = 3003 where id = 1",
        "delete from large where id = 7",
    )
    streamed = measured_sync(scenario, tmp_path)
    _say("stream", streamed)
    with timed("comparison"):
        scenario.assert_equal("large")
    assert copied["peak_mb"] < 2000
    assert streamed["peak_mb"] < 2500


def test_many_rows_of_a_megabyte(scenario, tmp_path: Path) -> None:
    scenario.execute(
        "create table large (id int primary key, n int, t text, b bytea)",
        "alter table large alter t set storage external, alter b set storage external",
        f"""insert into large select i, 0, repeat(md5(i::text), {MEGABYTE // 64}),
            convert_to(repeat(md5((-i)::text), {MEGABYTE // 64}), 'utf8') from generate_series(1, 120) i""",
    )
    copied = measured_sync(scenario, tmp_path)
    _say("copy of 120 rows of 1 MB", copied)
    scenario.execute(
        "update large set n = 1 where id % 2 = 0",
        "update large set t = repeat(md5('z' || id), 32768) where id % 3 = 0",
        "update large set id = -id where id % 10 = 0",
        "delete from large where id % 7 = 0",
    )
    streamed = measured_sync(scenario, tmp_path)
    _say("stream", streamed)
    with timed("comparison"):
        scenario.assert_equal("large")
    assert copied["peak_mb"] < 1500
    assert streamed["peak_mb"] < 2500
