"""`build_replication_defs`: everything that Dagster needs to run one pipeline."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.config import DestinationConfig
from etl_dagster.errors import EtlError
from etl_dagster.model import TableId, TableSchema
from etl_dagster.orchestration.checks import HealthPolicy, build_checks, build_health, slot_spec
from etl_dagster.orchestration.live_assets import MicroBatch
from etl_dagster.orchestration.names import PIPELINE_TAG
from etl_dagster.orchestration.partitions import WHOLE_TABLE
from etl_dagster.orchestration.parts import PipelineParts, VariablesUnset
from etl_dagster.orchestration.pools import Pools
from etl_dagster.orchestration.resume import build_resume
from etl_dagster.orchestration.retention import RetentionPolicy, build_retention
from etl_dagster.orchestration.sensors import SensorSettings, build_sensor
from etl_dagster.orchestration.session import build_session
from etl_dagster.orchestration.sync_assets import BACKFILL_POLICY, TableSyncs
from etl_dagster.orchestration.translator import ReplicationTranslator, Tables, check_keys
from etl_dagster.pipeline import Pipeline

if TYPE_CHECKING:  # what `dagster.define_asset_job` returns has no public name
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

    Job = dg.JobDefinition | UnresolvedAssetJobDefinition

logger = logging.getLogger("etl_dagster")

# Each run costs some three seconds of processor time, and its end is when Dagster shows what it did.
BATCH_BUDGET_SECONDS = 60.0
_SENSOR, _RETENTION, _HEALTH, _POOLS = SensorSettings(), RetentionPolicy(), HealthPolicy(), Pools()


def build_replication_defs(
    config: PipelineConfig | PipelineParts | Path,
    *,
    tables: Mapping[TableId, TableSchema] | Iterable[TableId | str] | None = None,
    translator: ReplicationTranslator | None = None,
    sensor: SensorSettings = _SENSOR,
    batch_budget_seconds: float = BATCH_BUDGET_SECONDS,
    retention: RetentionPolicy = _RETENTION,
    health: HealthPolicy = _HEALTH,
    schedules_running: bool = True,
    backfill_policy: dg.BackfillPolicy = BACKFILL_POLICY,
    pools: Pools = _POOLS,
) -> dg.Definitions:
    """Definitions of one pipeline; merge those of several with `dagster.Definitions.merge`.

    Args:
        config: The pipeline: a config, the path of its YAML file, or its parts as Dagster resources.
        tables: The tables that become assets. Without it they are read from the pipeline's store, or, before the
            first run, from the source's catalogue. A source that cannot be reached leaves the definitions without
            table assets; the sensor says so, and a reload brings them.
        translator: Says what the assets look like.
        sensor: How the source is watched.
        batch_budget_seconds: How long a requested run goes on after it has reached what it was asked for.
        retention: What is kept of old runs.
        health: When the pipeline counts as unwell.
        schedules_running: Retention and health schedules are on from the start.
        backfill_policy: How many partitions of a table one run of a backfill copies.
        pools: Names of the concurrency pools that copies take part in.
    """
    parts = PipelineParts.of(config)
    translator = translator or ReplicationTranslator(parts.name, parts.destination_kind, _destination(parts))
    known = _known_tables(parts) if tables is None else _given_tables(parts, tables)
    check_keys(translator, known)
    _warn_of_rules(parts, known)
    status = dg.DefaultScheduleStatus.RUNNING if schedules_running else dg.DefaultScheduleStatus.STOPPED
    batch = MicroBatch(parts, translator, known, batch_budget_seconds)
    names = pools.of(parts)
    syncs = TableSyncs(parts, translator, known, names, backfill_policy).assets() if known else None
    checks = build_checks(parts, translator, health)
    keys = [key for table in known for key in (translator.live_key(table), translator.sync_key(table))]
    return dg.Definitions(
        assets=[*_specs(parts, translator, known), *([batch.assets(), syncs] if syncs else [])],
        asset_checks=[checks],
        jobs=[_micro_batch_job(batch), *_sync_jobs(parts, syncs), build_resume(parts, translator, names.source)],
        schedules=[
            build_retention(parts, keys, retention, status),
            build_health(parts, checks, health, status),
        ],
        sensors=[build_sensor(parts, translator, list(known), sensor)],
        resources={**parts.as_resources(), parts.names.session: build_session(parts)},
        executor=dg.in_process_executor,
    )


def _destination(parts: PipelineParts) -> DestinationConfig | None:
    """None while a variable that it needs is not set or has a wrong value; runs and the sensor say so.

    Raises:
        ConfigError: It is wrong as it is written, whatever the variables hold.
    """
    try:
        return parts.destination_now()
    except VariablesUnset:
        return None
    except EtlError as error:
        if not parts.destination_has_variables:
            raise
        logger.warning("Pipeline %s: %s", parts.name, error)
        return None


def _known_tables(parts: PipelineParts) -> Tables:
    try:
        pipeline = Pipeline(parts.config_now())
        try:
            return pipeline.tables()
        finally:
            pipeline.close()
    except EtlError as error:
        logger.warning("No tables are known of pipeline %s yet, its assets follow on a reload: %s", parts.name, error)
        return {}


def _given_tables(parts: PipelineParts, tables: Mapping[TableId, TableSchema] | Iterable[TableId | str]) -> Tables:
    if isinstance(tables, Mapping):
        return {table: parts.choices.apply(schema) for table, schema in tables.items()}
    return {TableId.parse(table) if isinstance(table, str) else table: None for table in tables}


def _warn_of_rules(parts: PipelineParts, tables: Tables) -> None:
    """Say which rules cut no slices, while somebody looks; the tables have one partition then."""
    schemas = [schema for schema in tables.values() if schema is not None]
    for problem in parts.choices.unmatched(schemas) if schemas else ():
        if ".partitions does not fit " in problem:
            logger.warning("Pipeline %s: %s", parts.name, problem)


def _specs(parts: PipelineParts, translator: ReplicationTranslator, tables: Tables) -> list[dg.AssetSpec]:
    return [slot_spec(parts, translator), *(translator.source_spec(*item) for item in tables.items())]


def _micro_batch_job(batch: MicroBatch) -> "Job":
    """Over the live tables; over the bare ops while no table is known, so that the first run can find them."""
    names, tags = batch.parts.names, {PIPELINE_TAG: batch.parts.name}
    about = f"Micro-batch of pipeline {batch.parts.name}"
    if not batch.tables:
        return batch.graph().to_job(
            name=names.micro_batch, description=about, tags=tags, executor_def=dg.in_process_executor
        )
    keys = [batch.translator.live_key(table) for table in batch.tables]
    selection = dg.AssetSelection.assets(*keys).without_checks()
    return dg.define_asset_job(names.micro_batch, selection=selection, description=about, tags=tags)


def _sync_jobs(parts: PipelineParts, syncs: dg.AssetsDefinition | None) -> "list[Job]":
    """A job that copies all tables without a partition rule; Dagster wants one partitions definition for a job."""
    specs = syncs.specs if syncs else ()
    whole = [spec.key for spec in specs if spec.partitions_def == dg.StaticPartitionsDefinition([WHOLE_TABLE])]
    if not whole:
        return []
    return [
        dg.define_asset_job(
            parts.names.sync_job,
            selection=dg.AssetSelection.assets(*whole),
            description=f"Fresh copies of all tables of pipeline {parts.name} that have no partition rule",
            tags={PIPELINE_TAG: parts.name},
        )
    ]
