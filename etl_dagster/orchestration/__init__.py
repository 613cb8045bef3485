"""Pipelines as Dagster definitions: assets, jobs, a sensor, checks, retention, resources.

`BigQueryDestinationResource` is here too; it needs the extra ``bigquery``, and is loaded when it is asked for.
"""

from typing import TYPE_CHECKING, Any

from etl_dagster.orchestration.checks import HealthPolicy
from etl_dagster.orchestration.definitions import build_replication_defs
from etl_dagster.orchestration.parts import PipelineParts
from etl_dagster.orchestration.pools import Pools
from etl_dagster.orchestration.resources import (
    DestinationResource,
    DuckDBDestinationResource,
    MemoryDestinationResource,
    PostgresSourceResource,
    StoreResource,
)
from etl_dagster.orchestration.resync_schedule import build_resync_schedule
from etl_dagster.orchestration.retention import RetentionPolicy
from etl_dagster.orchestration.sensors import SensorSettings
from etl_dagster.orchestration.translator import ReplicationTranslator

if TYPE_CHECKING:
    from etl_dagster.orchestration.bigquery import BigQueryDestinationResource as BigQueryDestinationResource

__all__ = [
    "DestinationResource",
    "DuckDBDestinationResource",
    "HealthPolicy",
    "MemoryDestinationResource",
    "PipelineParts",
    "Pools",
    "PostgresSourceResource",
    "ReplicationTranslator",
    "RetentionPolicy",
    "SensorSettings",
    "StoreResource",
    "build_replication_defs",
    "build_resync_schedule",
]


def __getattr__(name: str) -> Any:
    # Loading dagster-gcp takes over a second, for which nobody should wait who does not use it.
    if name == "BigQueryDestinationResource":
        from etl_dagster.orchestration.bigquery import BigQueryDestinationResource

        return BigQueryDestinationResource
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
