"""The in-memory destination keeps the contract."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from etl_dagster.destinations.memory import MemoryDestination
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
def place() -> Iterator[Place]:
    place = Place(MemoryDestination)
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


class TestSlices(SliceContract): ...


class TestSliceSoftDelete(SliceSoftDeleteContract): ...
