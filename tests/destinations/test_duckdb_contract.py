"""The DuckDB destination keeps the contract."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etl_dagster.destinations.duckdb import DuckDbConfig, DuckDbDestination
from etl_dagster.destinations.duckdb.client import Client, connect
from etl_dagster.destinations.duckdb.encoding import quoted
from etl_dagster.testing.destination_contract import (
    ChangelogContract,
    ColumnContract,
    CopyContract,
    HeldContract,
    HistoryContract,
    Place,
    SliceContract,
    SliceSoftDeleteContract,
    SoftDeleteContract,
    StreamContract,
    TableContract,
)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    file = tmp_path / "it.duckdb"
    place = Place(lambda: DuckDbDestination(DuckDbConfig(path=str(file))))
    yield place
    died = tmp_path / "died"
    died.mkdir()
    for suffix in ("", ".wal"):
        if (found := Path(f"{file}{suffix}")).exists():
            shutil.copy(found, died)
    committed = contents(place.destination._client)
    place.close()
    if committed is not None:
        left = connect(DuckDbConfig(path=str(died / file.name)))
        assert contents(left) == committed, "a process that is killed here leaves something else behind"
        left.close()


def contents(client: Client | None) -> dict[str, list[tuple[Any, ...]]] | None:
    """Every table of a database; None when it is not open."""
    if client is None:
        return None
    with client.session() as session:
        names = [quoted(*found) for found in session.rows("SELECT schema_name, table_name FROM duckdb_tables()")]
        return {name: sorted(session.rows(f"SELECT * FROM {name}"), key=repr) for name in names}


class TestStream(StreamContract): ...


class TestCopy(CopyContract): ...


class TestTables(TableContract): ...


class TestColumns(ColumnContract): ...


class TestHeld(HeldContract): ...


class TestSoftDelete(SoftDeleteContract): ...


class TestChangelog(ChangelogContract): ...


class TestHistory(HistoryContract): ...


class TestSlices(SliceContract): ...


class TestSliceSoftDelete(SliceSoftDeleteContract): ...
