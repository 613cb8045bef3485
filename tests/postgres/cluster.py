"""A primary with a standby, and pipelines that read one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import psycopg

from etl_dagster.config import PipelineConfig
from etl_dagster.pipeline import Pipeline
from etl_dagster.replication import RunSummary
from etl_dagster.testing.server import PostgresServer

Row = tuple[Any, ...]
_PATIENCE_SECONDS = 60.0


def wait_until(reached: Callable[[], bool], what: str) -> None:
    """Ask until it is so."""
    deadline = monotonic() + _PATIENCE_SECONDS
    while not reached():
        assert monotonic() < deadline, what
        sleep(0.01)


def replayed(standby: PostgresServer, admin: psycopg.Connection[Any]) -> None:
    """Wait until the standby has replayed what the primary has written."""
    (flushed,) = one(admin, "select pg_current_wal_flush_lsn()::text")
    with psycopg.connect(standby.dsn, autocommit=True) as follower:
        query = f"select coalesce(pg_last_wal_replay_lsn() >= '{flushed}', false)"
        wait_until(lambda: bool(one(follower, query)[0]), "the standby does not follow")


def one(connection: psycopg.Connection[Any], query: str) -> Row:
    """The single row of a query."""
    row = connection.execute(query).fetchone()  # type: ignore[call-overload]
    assert row is not None
    return tuple(row)


class Reader:
    """A pipeline into DuckDB whose source can be changed, its state kept."""

    def __init__(self, folder: Path, **slot: Any) -> None:
        self._folder = folder
        self._slot = slot
        self.pipeline: Pipeline

    def connect(self, dsn: str, **publication: Any) -> None:
        """Go on with this server."""
        if hasattr(self, "pipeline"):
            self.pipeline.close()
        source = {
            "connection": {"dsn": dsn},
            "publication": {"name": "p", "create": False, **publication},
            "slot": {"name": "etl", **self._slot},
        }
        self.pipeline = Pipeline(
            PipelineConfig.model_validate(
                {
                    "name": "test",
                    "source": source,
                    "destination": {"type": "duckdb", "path": str(self._folder / "warehouse.duckdb")},
                    "store": {"type": "sqlite", "path": str(self._folder / "state.sqlite")},
                    "replication": {"refresh_seconds": 0.2, "idle_poll_seconds": 0.02},
                }
            )
        )

    def sync(self) -> RunSummary:
        """Copy and catch up."""
        summary = RunSummary()
        with self.pipeline.replicator(summary) as replicator:
            replicator.sync()
        return summary

    def equal_rows(self, dsn: str | None = None) -> dict[str, int]:
        """Rows of each table, all the same as at the source, or at another server that can be written to."""
        if dsn is not None:
            self.connect(dsn)
        differences = self.pipeline.compare()
        assert all(found.equal for found in differences.values()), differences
        return {table.name: found.rows for table, found in differences.items()}


@contextmanager
def reading(folder: Path, dsn: str, **slot: Any) -> Iterator[Reader]:
    """A reader, closed at the end."""
    reader = Reader(folder, **slot)
    reader.connect(dsn)
    try:
        yield reader
    finally:
        reader.pipeline.close()
