"""Our pipeline, open: slices of its table copied again one after the other, with nothing else to do."""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter, process_time

from benchmarks.clients.clock import Clock
from etl_dagster.model import TableId
from etl_dagster.pipeline import Pipeline
from etl_dagster.replication import RunSummary

_TABLE = TableId("public", "bench")


def main(config: Path, names: list[str]) -> None:
    """Measure each slice from the request until the table is live again; ``names`` are slices, or ``plan``."""
    pipeline = Pipeline.load(config)
    began = perf_counter()
    slices = [each.name for each in pipeline.plan_slices(_TABLE)]
    planned = perf_counter() - began
    summary = RunSummary()
    clock = Clock()
    seconds, cpu, rows = [], [], []
    with pipeline.replicator(summary) as replicator:
        replicator.sync()
        for name in names:
            began, used = perf_counter(), process_time()
            pipeline.request_resync(_TABLE, [slices[int(name)]])
            replicator.copy()
            seconds.append(perf_counter() - began)
            cpu.append(process_time() - used)
            rows.append(replicator.records[_TABLE].copied_rows)
    if summary.quarantined or summary.notices:
        raise SystemExit(f"not a clean run: {summary.quarantined} {summary.notices}")
    clock.report(slices=len(slices), planning=planned, each=seconds, cpu=cpu, rows=rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
