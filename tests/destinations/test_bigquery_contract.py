"""The BigQuery destination keeps the contract."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from etl_dagster.destinations.bigquery import BigQueryDestination
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
from tests.bigquery.fixtures import Dataset


@pytest.fixture
def place(bigquery_dataset: Dataset) -> Iterator[Place]:
    config = bigquery_dataset.config()
    place = Place(lambda: BigQueryDestination(config))
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
