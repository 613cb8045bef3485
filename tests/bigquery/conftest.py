"""A pipeline from a fresh database into a fresh dataset."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from etl_dagster.destinations.bigquery import core
from tests.replication.conftest import Scenario

if TYPE_CHECKING:
    from etl_dagster.config import PipelineConfig
    from tests.bigquery.fixtures import Dataset
    from tests.conftest import Connect

# Small tables are copied in several chunks, and logs merged in several pieces.
SMALL = {"CHUNK_BYTES": 16384, "PIECE_BYTES": 65536}
_STATE = re.compile(r"^_etl_(owners|[0-9a-f]+_state_\d+)$")
# Needs what CI has not: Google's BigQuery.
collect_ignore = [] if os.environ.get("ETL_TEST_BIGQUERY_PROJECT") else ["test_real.py"]
# Nothing waits for the next batch, and what fails for good fails within the test.
QUICK = {"batch_seconds": 0, "retry_seconds": 20}


class BigQueryScenario(Scenario):
    """One source database, one dataset, and pipelines between them."""

    def __init__(self, dsn: str, folder: Path, connection: psycopg.Connection[Any], dataset: Dataset) -> None:
        self.dataset = dataset
        super().__init__(dsn, folder, connection)

    def config(self, **changes: Any) -> PipelineConfig:
        self._changes = changes
        return super().config(**{"destination": self.destination()} | changes)

    def destination(self, **changes: Any) -> dict[str, Any]:
        """The destination's part of the config, with parts replaced."""
        return self.dataset.settings() | QUICK | changes

    def select(self, query: str) -> list[tuple[Any, ...]]:
        """What BigQuery answers, with the dataset as the default one."""
        with self.dataset.client() as client:
            return [tuple(row.values()) for row in client.query_and_wait(query)]

    def tables(self) -> set[str]:
        """Names of all tables of the dataset."""
        with self.dataset.client() as client:
            return {table.table_id for table in client.list_tables(self.dataset.name)}

    def leftovers(self) -> set[str]:
        """Tables of the destination's own beside the state, once a process has copied one more and has swept."""
        self.execute("create table swept (id int primary key)")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(core, "LEFTOVER_AGE", timedelta(0))
            self.use(**self._changes)
            self.sync()
        return {name for name in self.tables() if name.startswith("_etl_") and not _STATE.search(name)}


@pytest.fixture
def far(
    database: str, tmp_path: Path, connect: Connect, bigquery_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> Iterator[BigQueryScenario]:
    for name, size in SMALL.items():
        monkeypatch.setattr(core, name, size)
    made = BigQueryScenario(database, tmp_path, connect(), bigquery_dataset)
    yield made
    made.pipeline.close()
