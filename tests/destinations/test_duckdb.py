"""What is DuckDB's own: the file and its lock, its errors, its names."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from etl_dagster.destinations.duckdb import DuckDbConfig, DuckDbDestination
from etl_dagster.destinations.duckdb.errors import KINDS, translate
from etl_dagster.errors import DestinationError, ErrorKind, TableError, ValueUnrepresentable
from etl_dagster.model import CopyTarget
from etl_dagster.testing.change_script import INT8, TEXT, Insert, Update, events, make_batch, make_table
from etl_dagster.testing.destination_contract import content, copied

HOLDER = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1])
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "it.duckdb")


@pytest.fixture
def holder(path: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the file until it is told to end."""
    command = [sys.executable, "-c", HOLDER, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.fixture
def destination(path: str) -> Iterator[DuckDbDestination]:
    destination = DuckDbDestination(DuckDbConfig(path=path))
    destination.startup()
    yield destination
    destination.shutdown()


def test_a_file_held_too_long_is_unavailable_and_names_the_holder(path: str, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(DestinationError, match=f"PID {holder.pid}") as caught:
        DuckDbDestination(DuckDbConfig(path=path, lock_timeout_seconds=0)).startup()
    assert caught.value.kind is ErrorKind.DESTINATION_UNAVAILABLE


def test_startup_waits_until_the_file_is_free(
    path: str, holder: subprocess.Popen[str], caplog: pytest.LogCaptureFixture
) -> None:
    class EndsTheHolder(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            holder.kill()

    logger = logging.getLogger("etl_dagster.destinations.duckdb.file")
    handler = EndsTheHolder()
    logger.addHandler(handler)
    destination = DuckDbDestination(DuckDbConfig(path=path))
    try:
        destination.startup()
    finally:
        logger.removeHandler(handler)
        destination.shutdown()
    assert f"PID {holder.pid}" in caplog.text


def test_a_destination_that_is_not_started_says_so(path: str) -> None:
    with pytest.raises(DestinationError, match="not started"):
        DuckDbDestination(DuckDbConfig(path=path)).positions()


def test_shutdown_twice_and_start_again(destination: DuckDbDestination) -> None:
    table = make_table()
    copied(destination, table, [(1, "a", "A")])
    destination.shutdown()
    destination.shutdown()
    destination.startup()
    assert content(destination, table) == [(1, "a", "A")]


def test_every_error_class_of_duckdb_has_a_kind() -> None:
    classes = [each for each in vars(duckdb).values() if isinstance(each, type) and issubclass(each, duckdb.Error)]
    assert {each.__name__ for each in classes} <= set(KINDS)


@pytest.mark.parametrize("class_", [duckdb.ConversionException, duckdb.ConstraintException])
def test_errors_that_quote_values_do_not_pass_them_on(class_: type[duckdb.Error]) -> None:
    error = translate(class_("value 'secret' is bad"), "apply changes", "shop.orders")
    assert isinstance(error, ValueUnrepresentable | TableError)
    assert "secret" not in str(error)
    assert error.table == "shop.orders"


def test_a_table_dropped_behind_our_back_has_no_position(destination: DuckDbDestination, path: str) -> None:
    table = make_table()
    copied(destination, table, [(1, "a", "A")])
    destination.shutdown()
    with duckdb.connect(path) as other:
        other.execute("DROP TABLE shop.orders")
    destination.startup()
    assert destination.positions() == {}
    assert destination.write_events(make_batch(30, [[events(table, Insert(20, (2, "b", "B")))]])).changes == {
        table.id: 0
    }


def test_a_table_altered_behind_our_back_is_the_tables_fault(destination: DuckDbDestination, path: str) -> None:
    table = make_table()
    copied(destination, table, [(1, "a", "A")])
    destination.shutdown()
    with duckdb.connect(path) as other:
        other.execute("ALTER TABLE shop.orders DROP COLUMN body")
    destination.startup()
    with pytest.raises(TableError) as caught:
        destination.write_events(make_batch(30, [[events(table, Insert(20, (2, "b", "B")))]]))
    assert caught.value.table == "shop.orders"
    assert destination.positions() == {table.id: 10}


def test_names_that_differ_only_in_case_are_refused(destination: DuckDbDestination) -> None:
    copied(destination, make_table("orders"), [])
    with pytest.raises(TableError, match="case"):
        destination.truncate_table(CopyTarget(make_table("Orders"), "c9"))
    with pytest.raises(TableError, match="column"):
        destination.truncate_table(CopyTarget(make_table("t", columns={"id": INT8, "ID": TEXT}), "c9"))
    with pytest.raises(TableError, match="_LSN"):
        destination.truncate_table(CopyTarget(make_table("t", columns={"id": INT8, "_lsn": TEXT}), "c9"))


def test_the_schema_of_the_destination_itself_is_refused(destination: DuckDbDestination) -> None:
    with pytest.raises(TableError, match="_etl"):
        destination.truncate_table(CopyTarget(make_table("t", schema="_etl"), "c9"))


def test_large_pieces_are_merged_once(destination: DuckDbDestination) -> None:
    table = make_table()
    copied(destination, table, [(i, "old", "OLD") for i in range(10)])
    long = "x" * 1_000_000
    first = events(table, *(Update(20, (i, "first", long)) for i in range(20)))
    second = events(table, Update(30, (1, "second", "S")), Insert(30, (20, "new", "N")))
    destination.write_events(make_batch(40, [[first], [second], [first]]))
    assert [row[1] for row in content(destination, table)].count("first") == 20


def test_nothing_is_left_of_a_finished_copy(destination: DuckDbDestination, path: str) -> None:
    copied(destination, make_table(), [(1, "a", "A")])
    destination.shutdown()
    with duckdb.connect(path) as other:
        names = other.execute("SELECT schema_name || '.' || table_name FROM duckdb_tables() ORDER BY 1").fetchall()
    assert [name for (name,) in names] == [
        "_etl.chunks",
        "_etl.copies",
        "_etl.held",
        "_etl.owners",
        "_etl.schemas",
        "_etl.watermarks",
        "shop.orders",
    ]


def test_a_table_that_no_pipeline_made_is_left_alone(destination: DuckDbDestination, path: str) -> None:
    destination.shutdown()
    with duckdb.connect(path) as other:
        other.execute("CREATE SCHEMA shop; CREATE TABLE shop.orders AS SELECT 42 AS mine")
    destination.startup()
    with pytest.raises(TableError, match="no pipeline made"):
        destination.truncate_table(CopyTarget(make_table(), "c1"))
    destination.shutdown()
    with duckdb.connect(path) as other:
        assert other.execute("SELECT mine FROM shop.orders").fetchall() == [(42,)]
