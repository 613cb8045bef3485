"""Deletes old runs with their events and logs: open-source Dagster keeps them for ever."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic

import dagster as dg
from pydantic import Field

from etl_dagster.model import FrozenModel
from etl_dagster.orchestration.names import HOUSEKEEPING_TAG, PIPELINE_TAG, safe_name
from etl_dagster.orchestration.parts import PipelineParts

FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_PAGE = 100


class RetentionPolicy(FrozenModel):
    """What is kept of a pipeline's runs. A run goes when it is both old and not among the newest.

    A run that holds the latest materialization of an asset is always kept: without it the asset would count as never
    materialized.
    """

    keep_hours: float = Field(48.0, ge=0)
    keep_runs: int = Field(200, ge=0)
    max_seconds: float = Field(60.0, gt=0, description="Most time one pass takes; the next one goes on")
    cron: str = "17 * * * *"


def build_retention(
    parts: PipelineParts,
    keys: Iterable[dg.AssetKey],
    policy: RetentionPolicy,
    status: dg.DefaultScheduleStatus,
) -> dg.ScheduleDefinition:
    """The pipeline's retention job and its schedule."""
    assets = list(keys)

    @dg.op(name=f"{parts.names.retention}__delete_runs", out=dg.Out(dg.Nothing))
    def delete_runs(context: dg.OpExecutionContext) -> None:
        """Delete finished runs that nothing needs any more."""
        deleted = purge(context.instance, parts.name, assets, policy, datetime.now(UTC))
        context.log.info("deleted %s runs", deleted)

    job = dg.GraphDefinition(name=parts.names.retention, node_defs=[delete_runs]).to_job(
        name=parts.names.retention,
        description=f"Deletes old runs of pipeline {parts.name}",
        tags={HOUSEKEEPING_TAG: safe_name(parts.name)},
        executor_def=dg.in_process_executor,
    )
    return dg.ScheduleDefinition(
        name=f"{parts.names.retention}_schedule", job=job, cron_schedule=policy.cron, default_status=status
    )


def purge(
    instance: dg.DagsterInstance,
    pipeline: str,
    keys: Iterable[dg.AssetKey],
    policy: RetentionPolicy,
    now: datetime,
) -> int:
    """Delete the pipeline's runs that the policy lets go; returns how many."""
    deadline = monotonic() + policy.max_seconds
    before = now - timedelta(hours=policy.keep_hours)
    needed = _bearing_latest(instance, keys)
    deleted = 0
    for tags in ({PIPELINE_TAG: pipeline}, {HOUSEKEEPING_TAG: safe_name(pipeline)}):
        newest = {run.run_id for run in instance.get_runs(dg.RunsFilter(tags=tags), limit=policy.keep_runs)}
        for run_id in _old_runs(instance, tags, before, needed | (newest if policy.keep_runs else set())):
            if monotonic() >= deadline:
                return deleted
            delete_run(instance, run_id)
            deleted += 1
    return deleted


def delete_run(instance: dg.DagsterInstance, run_id: str) -> None:
    """Delete one run with its events and its captured output."""
    instance.delete_run(run_id)
    instance.compute_log_manager.delete_logs(prefix=[run_id])
    # Dagster's SQLite storage has a file per run, some 120 kB even when it is empty, and never deletes it.
    path_for_shard = getattr(instance.event_log_storage, "path_for_shard", None)
    if path_for_shard is not None:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path_for_shard(run_id)}{suffix}").unlink(missing_ok=True)


def _bearing_latest(instance: dg.DagsterInstance, keys: Iterable[dg.AssetKey]) -> set[str]:
    events = instance.get_latest_materialization_events(list(keys)).values()
    return {event.run_id for event in events if event is not None}


def _old_runs(instance: dg.DagsterInstance, tags: dict[str, str], before: datetime, kept: set[str]) -> Iterator[str]:
    """Oldest first. Those given out are gone when the next page is read, so only those kept move the cursor."""
    cursor: str | None = None
    wanted = dg.RunsFilter(tags=tags, statuses=FINISHED, created_before=before)
    while page := instance.get_runs(wanted, cursor=cursor, limit=_PAGE, ascending=True):
        for run in page:
            if run.run_id not in kept:
                yield run.run_id
            else:
                cursor = run.run_id
