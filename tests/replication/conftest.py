"""A pipeline from a fresh database into a fresh DuckDB file, and the proof that both hold the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

from etl_dagster.config import PipelineConfig
from etl_dagster.model import TableId
from etl_dagster.pipeline import Pipeline
from etl_dagster.replication import RunSummary
from etl_dagster.store.base import TableState


class Scenario:
    """One source database and pipelines from it."""

    def __init__(self, dsn: str, folder: Path, connection: psycopg.Connection[Any]) -> None:
        self.dsn = dsn
        self.folder = folder
        self.source = connection
        self.pipeline = Pipeline(self.config())

    def config(self, **changes: Any) -> PipelineConfig:
        """The pipeline's config, with top-level parts replaced."""
        slot = f"slot_{self.dsn.rsplit('/', 1)[-1].partition('?')[0]}"[:63]
        parts: dict[str, Any] = {
            "name": "test",
            "source": {
                "connection": {"dsn": self.dsn},
                "publication": {"name": "pub_test", "schemas": ["public"]},
                "slot": {"name": slot},
            },
            "destination": {"type": "duckdb", "path": str(self.folder / "warehouse.duckdb")},
            "store": {"type": "sqlite", "path": str(self.folder / "state.sqlite")},
            "replication": {"refresh_seconds": 0.2, "idle_poll_seconds": 0.02},
        }
        return PipelineConfig.model_validate(parts | changes)

    def use(self, **changes: Any) -> None:
        """Go on with a changed config."""
        self.pipeline.close()
        self.pipeline = Pipeline(self.config(**changes))

    def execute(self, *statements: str) -> None:
        """Run statements at the source, each in a transaction of its own."""
        for statement in statements:
            self.source.execute(statement)  # type: ignore[call-overload]

    def sync(self) -> RunSummary:
        """Copy and catch up; returns what was done."""
        summary = RunSummary()
        with self.pipeline.replicator(summary) as replicator:
            replicator.sync()
        return summary

    def state(self, table: str) -> TableState:
        """State of a table of schema ``public`` by its name."""
        record = self.pipeline.record(TableId("public", table))
        assert record is not None
        return record.state

    def assert_equal(self, *tables: str) -> None:
        """Source and destination hold the same rows, compared both ways by the source."""
        differences = self.pipeline.compare()
        assert differences, "no table is live"
        assert {str(table): (found.missing, found.extra) for table, found in differences.items()} == {
            str(table): (0, 0) for table in differences
        }
        assert {table.name for table in differences} >= set(tables)


@pytest.fixture
def scenario(database: str, tmp_path: Path, connect: Any) -> Any:
    made = Scenario(database, tmp_path, connect())
    yield made
    made.pipeline.close()
