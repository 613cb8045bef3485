"""Pipelines as Dagster definitions: assets, jobs, a sensor, checks, retention, resources."""

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
