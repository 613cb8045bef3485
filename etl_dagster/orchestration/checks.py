"""Checks on the pipeline's slot asset: is a table out, is the destination behind, does the slot hold back much WAL."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Self

import dagster as dg

from etl_dagster.model import FrozenModel
from etl_dagster.orchestration.names import HOUSEKEEPING_TAG, PipelineNames, safe_name
from etl_dagster.orchestration.parts import PipelineParts
from etl_dagster.orchestration.session import errors_as_failures
from etl_dagster.orchestration.translator import ReplicationTranslator
from etl_dagster.pipeline import Pipeline, PipelineStatus, TableStatus
from etl_dagster.store import TableRecord, TableState

QUARANTINE_CHECK, LAG_CHECK, WAL_CHECK = "no_table_quarantined", "destination_caught_up", "retained_wal"

_PAUSES = 2


class HealthPolicy(FrozenModel):
    """When a pipeline counts as unwell, and how often it is looked at (a look is a run of two or three seconds).

    ``max_lag_seconds`` is beyond what the destination's pace explains: two of its ``batch_seconds``, since a change
    waits for one batch, and is there after another.
    """

    max_lag_seconds: float = 300.0
    max_retained_bytes: int = 10 * 1024**3
    cron: str = "*/15 * * * *"

    def paced(self, batch_seconds: float) -> Self:
        """The policy for a destination that wants its batches so far apart."""
        return self.model_copy(update={"max_lag_seconds": self.max_lag_seconds + _PAUSES * batch_seconds})


def slot_spec(parts: PipelineParts, translator: ReplicationTranslator) -> dg.AssetSpec:
    """The replication slot as an asset that cannot be materialized: it carries observations and checks."""
    return dg.AssetSpec(
        translator.slot_key,
        description=f"Replication slot of pipeline {parts.name}: how far it is, and how it fares",
        group_name=parts.names.group,
        kinds={"postgres"},
    )


def build_checks(
    parts: PipelineParts, translator: ReplicationTranslator, policy: HealthPolicy
) -> dg.AssetChecksDefinition:
    """The three checks, answered by one look at the pipeline's status."""

    @dg.multi_asset_check(
        name=f"{parts.names.group}__checks",
        specs=[
            dg.AssetCheckSpec(name, asset=translator.slot_key, description=about)
            for name, about in _abouts(policy).items()
        ],
        can_subset=True,
        required_resource_keys=parts.resource_keys,
    )
    def checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        with errors_as_failures():
            pipeline = Pipeline(parts.config(context.resources))
            status, paced = look(pipeline), policy.paced(pipeline.batch_seconds)
        wanted = {key.name for key in context.selected_asset_check_keys}
        yield from (result for result in judge(translator, status, paced) if result.check_name in wanted)

    return checks


def _abouts(policy: HealthPolicy) -> dict[str, str]:
    return {
        QUARANTINE_CHECK: "No table has been taken out of replication; the metadata names each one and what to do",
        LAG_CHECK: f"The newest change at the destination is at most {policy.max_lag_seconds:g} s behind the source, "
        "beyond two pauses between batches where the destination wants them",
        WAL_CHECK: f"The slot keeps back at most {policy.max_retained_bytes / 1e9:.1f} GB of WAL at the source",
    }


def look(pipeline: Pipeline) -> PipelineStatus:
    """The pipeline's status, and nothing left open."""
    try:
        return pipeline.status()
    finally:
        pipeline.close()


def judge(translator: ReplicationTranslator, status: PipelineStatus, policy: HealthPolicy) -> list[dg.AssetCheckResult]:
    """A status by the standards of a policy."""
    lag, retained, slot = status.lag_seconds or 0.0, status.retained_bytes or 0, translator.slot_key
    out = quarantined_tables(translator, status.tables)
    return [
        dg.AssetCheckResult(
            passed=not out,
            asset_key=slot,
            check_name=QUARANTINE_CHECK,
            description=_in_words(out),
            metadata={"tables": dg.MetadataValue.json(out)},
        ),
        dg.AssetCheckResult(
            passed=lag <= policy.max_lag_seconds,
            asset_key=slot,
            check_name=LAG_CHECK,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"lag_seconds": lag, "lag_bytes": status.lag_bytes or 0, "position": str(status.position)},
        ),
        dg.AssetCheckResult(
            passed=retained <= policy.max_retained_bytes,
            asset_key=slot,
            check_name=WAL_CHECK,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"retained_bytes": retained},
        ),
    ]


def quarantine_evaluation(translator: ReplicationTranslator, records: Iterable[TableRecord]) -> dg.AssetCheckEvaluation:
    """The same verdict from inside a run, which knows the tables' records."""
    out = quarantined_tables(translator, records)
    return dg.AssetCheckEvaluation(
        asset_key=translator.slot_key,
        check_name=QUARANTINE_CHECK,
        passed=not out,
        description=_in_words(out),
        metadata={"tables": dg.MetadataValue.json(out)},
    )


def quarantined_tables(
    translator: ReplicationTranslator, tables: Iterable[TableStatus | TableRecord]
) -> dict[str, dict[str, str]]:
    """Of each quarantined table: why it is out, what to mend, and how it comes back from within Dagster."""
    out = (table for table in tables if table.state is TableState.QUARANTINED)
    return {
        str(table.table): {"cause": table.reason, "next": table.hint, "in_dagster": _way_back(translator, table)}
        for table in out
    }


def _way_back(translator: ReplicationTranslator, table: TableStatus | TableRecord) -> str:
    afresh = f"materialize {translator.sync_key(table.table).to_user_string()} to have it copied afresh"
    if not table.held:
        return afresh
    job = PipelineNames(translator.pipeline).resume
    return f'run the job {job} with {{"tables": ["{table.table}"]}} to have it go on where it stopped, or {afresh}'


def _in_words(out: Mapping[str, Mapping[str, str]]) -> str | None:
    return "\n".join(f"{table}: {about['cause']} — {about['next']}" for table, about in out.items()) or None


def build_health(
    parts: PipelineParts, checks: dg.AssetChecksDefinition, policy: HealthPolicy, status: dg.DefaultScheduleStatus
) -> dg.ScheduleDefinition:
    """The job that runs the checks, and when."""
    job = dg.define_asset_job(
        parts.names.health,
        selection=dg.AssetSelection.checks(checks),
        description=f"Checks of pipeline {parts.name}",
        tags={HOUSEKEEPING_TAG: safe_name(parts.name)},
    )
    return dg.ScheduleDefinition(
        name=f"{parts.names.health}_schedule", job=job, cron_schedule=policy.cron, default_status=status
    )
