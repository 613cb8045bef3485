"""The DuckDB destination keeps the contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from etl_dagster.destinations.duckdb import DuckDbConfig, DuckDbDestination
from etl_dagster.testing.destination_contract import (
    ChangelogContract,
    ColumnContract,
    CopyContract,
    HeldContract,
    HistoryContract,
    Place,
    SoftDeleteContract,
    StreamContract,
    TableContract,
)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(lambda: DuckDbDestination(DuckDbConfig(path=str(tmp_path / "it.duckdb"))))
    yield place
    place.close()


class TestStream(StreamContract): ...


class TestCopy(CopyContract): ...


class TestTables(TableContract): ...


class TestColumns(ColumnContract): ...


class TestHeld(HeldContract): ...


class TestSoftDelete(SoftDeleteContract): ...


class TestChangelog(ChangelogContract): ...


class TestHistory(HistoryContract): ...
