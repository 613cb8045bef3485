"""An idle tick of the pipeline's sensor, as Dagster's code server evaluates it: same process, tick after tick."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import dagster as dg

from benchmarks.clients.clock import Clock
from etl_dagster.orchestration import build_replication_defs

_TICKS = 30


def main(config: Path) -> None:
    """Measure ticks; the first one, which logs in, is told apart."""
    definitions = build_replication_defs(config)
    repository = definitions.get_repository_def()
    (sensor,) = repository.sensor_defs
    with tempfile.TemporaryDirectory() as home, dg.DagsterInstance.local_temp(home) as instance:
        clock = Clock()
        ticks = [tick(sensor, repository, instance) for _ in range(_TICKS)]
        clock.report(first_ms=ticks[0] * 1000, median_ms=median(ticks[1:]) * 1000, worst_ms=max(ticks[1:]) * 1000)


def tick(sensor: dg.SensorDefinition, repository: dg.RepositoryDefinition, instance: dg.DagsterInstance) -> float:
    """Seconds of one evaluation that finds nothing to do."""
    began = time.perf_counter()
    resources = {name: repository.get_top_level_resources()[name] for name in sensor.required_resource_keys}
    with dg.build_sensor_context(instance=instance, repository_def=repository, resources=resources) as context:
        data = sensor.evaluate_tick(context)
    seconds = time.perf_counter() - began
    if data.run_requests or not data.skip_message:
        raise SystemExit(f"the sensor found work: {data.run_requests}")
    return seconds


if __name__ == "__main__":
    main(Path(sys.argv[1]))
