"""A destination that bills: a DuckDB file that says what each batch took, and wants few batches and few chunks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal

import pytest

from etl_dagster.destinations import registry
from etl_dagster.destinations.base import CopyResult, WriteResult
from etl_dagster.destinations.duckdb import DuckDbConfig, DuckDbDestination
from etl_dagster.destinations.registry import DestinationPlugin
from etl_dagster.model import CheckResult, CopyTarget, EventBatch, Lsn, TableId, ValueLimits

BATCH_BYTES, COPY_BYTES = 10_000_000, 300


class BilledConfig(DuckDbConfig):
    """What the destination wants; see `etl_dagster.destinations.base.Capabilities`."""

    type: Literal["billed"] = "billed"  # type: ignore[assignment]
    batch_seconds: float = 0.0
    chunk_bytes: int = 0
    most_chunks: int = 0
    limits: ValueLimits | None = None


class BilledDestination(DuckDbDestination):
    """DuckDB with a tariff."""

    def __init__(self, config: BilledConfig) -> None:
        super().__init__(config)
        self.capabilities = replace(
            DuckDbDestination.capabilities,
            batch_seconds=config.batch_seconds,
            chunk_bytes=config.chunk_bytes,
            most_chunks=config.most_chunks,
            limits=config.limits,
        )

    def write_events(self, batch: EventBatch) -> WriteResult:
        usage = {"bytes_billed": BATCH_BYTES, "slot_ms": 1500, "queries": 1}
        return replace(super().write_events(batch), usage=usage)

    def finish_copy(self, target: CopyTarget, position: Lsn) -> CopyResult:
        return replace(super().finish_copy(target, position), usage={"bytes_billed": COPY_BYTES, "loads": 1})

    def check(self, tables: Mapping[TableId, int]) -> Iterator[CheckResult]:
        for table, size in sorted(tables.items()):
            yield CheckResult(f"cost of {table}", passed=True, detail=f"{size} bytes at the source", todo="")


PLUGIN = DestinationPlugin(config=BilledConfig, factory=BilledDestination)


@pytest.fixture(autouse=True)
def billed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the destination known, as an installed package would."""
    monkeypatch.setitem(registry.BUILT_IN, "billed", "tests.billed:PLUGIN")
