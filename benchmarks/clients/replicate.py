"""Our pipeline: `sync` from its config file, which copies what waits for a copy and catches up."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import duckdb  # noqa: F401  # the destination imports it when it opens the file
import pyarrow.dataset  # noqa: F401  # DuckDB imports it, and it pandas, when it first reads Arrow data

from benchmarks.clients.clock import Clock
from etl_dagster.pipeline import Pipeline
from etl_dagster.replication import RunSummary
from etl_dagster.replication.report import BatchReport


@dataclass(slots=True)
class Phases(RunSummary):
    """Adds up where the time went."""

    read_seconds: float = 0.0
    write_seconds: float = 0.0
    windows: list[str] = field(default_factory=list)

    def batch_applied(self, batch: BatchReport) -> None:
        super(Phases, self).batch_applied(batch)
        self.read_seconds += batch.read_seconds
        self.write_seconds += batch.write_seconds
        if batch.total_changes:
            self.windows.append(f"{batch.total_changes} {batch.read_seconds:.2f}+{batch.write_seconds:.2f}s")


def main(config: Path) -> None:
    """Measure one `sync`."""
    phases = Phases()
    pipeline = Pipeline.load(config)
    clock = Clock()
    with pipeline.replicator(phases) as replicator:
        clock.lap("opened")
        replicator.begin_copies()
        replicator.copy()
        clock.lap("copied")
        replicator.apply()
        clock.lap("caught up")
    if phases.quarantined or phases.notices:
        raise SystemExit(f"not a clean run: {phases.quarantined} {phases.notices}")
    clock.report(changes=phases.changes, read=phases.read_seconds, write=phases.write_seconds, windows=phases.windows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
