"""The emulator does what the tests of the destination take for granted, and refuses what BigQuery refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.cloud import bigquery

from tests.bigquery.emulator import Emulator
from tests.bigquery.fixtures import Dataset


@pytest.fixture
def client(bigquery_dataset: Dataset) -> Iterator[bigquery.Client]:
    with bigquery_dataset.client() as client:
        client.create_dataset(bigquery_dataset.name)
        yield client


def rows(client: bigquery.Client, query: str, **config: Any) -> list[tuple[Any, ...]]:
    job = client.query(query, job_config=bigquery.QueryJobConfig(**config), job_retry=None)
    return [tuple(row.values()) for row in job.result()]


def test_rows_outlive_a_kill(client: bigquery.Client, bigquery_emulator: Emulator) -> None:
    rows(client, "CREATE TABLE t (id INT64) CLUSTER BY id")
    rows(client, "INSERT INTO t VALUES (1), (2)")
    bigquery_emulator.restart()
    assert rows(client, "SELECT id FROM t ORDER BY id") == [(1,), (2,)]
