"""A schedule that copies tables afresh, or one time window of each, for instance every night."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal

import dagster as dg

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import ConfigError
from etl_dagster.model import KeyRanges, TableId, TimeWindows
from etl_dagster.orchestration.names import PIPELINE_TAG, PipelineNames, safe_name
from etl_dagster.orchestration.partitions import WHOLE_TABLE, Definition, Rule, partitions_for
from etl_dagster.orchestration.parts import PipelineParts
from etl_dagster.orchestration.translator import ReplicationTranslator

Window = Literal["previous", "current"]
# Tables that the name of a schedule names.
_NAMED = 3
_ONE_EACH = "Make a schedule for each kind of partitions, with a name of its own"
_NO_TIME = "Backfill them from the UI, or schedule `etl-dagster resync`"


def build_resync_schedule(
    pipeline: str | PipelineConfig | PipelineParts | Path,
    tables: Iterable[TableId | str],
    cron_schedule: str,
    *,
    window: Window = "previous",
    name: str | None = None,
    translator: ReplicationTranslator | None = None,
    running: bool = True,
) -> dg.ScheduleDefinition:
    """A schedule to merge with the definitions of its pipeline; the tables stay readable, and go on changing.

    Tables without partition rule are copied whole. Of tables with time windows, one window is copied: by default the
    last one that is over, which is yesterday for windows of a day.

    Args:
        pipeline: The pipeline, as its definitions were built from it; its name does too, but then tables that do not
            go together are found only when Dagster loads the definitions.
        tables: Tables to copy, ``schema.table``; all with the same partitions.
        cron_schedule: When.
        window: The window that is over when the schedule ticks, or the one that it ticks in.
        name: The schedule's name, when a pipeline has several. Without one it is that of the pipeline, with tables and
            window where these are known to be of time.
        translator: The one that the pipeline's definitions were built with, if not the plain one.
        running: On from the start, without a click in the UI.

    Raises:
        ConfigError: The tables are not partitioned alike, or into ranges, of which none is that of a time.
    """
    wanted = [TableId.parse(table) if isinstance(table, str) else table for table in tables]
    rule: Rule = None
    if not isinstance(pipeline, str):
        parts = PipelineParts.of(pipeline)
        pipeline = parts.name
        rules = [parts.choices.rule(table) for table in wanted]
        _check(wanted, rules)
        rule = next(iter(rules), None)
    translator, names = translator or ReplicationTranslator(pipeline, ""), PipelineNames(pipeline)
    keys = [translator.sync_key(table) for table in wanted]

    @dg.schedule(
        name=name or _name(names, wanted, rule, window),
        target=dg.AssetSelection.assets(*keys),
        cron_schedule=cron_schedule,
        default_status=dg.DefaultScheduleStatus.RUNNING if running else dg.DefaultScheduleStatus.STOPPED,
        description=f"{_about(rule, window)}: {', '.join(map(str, wanted))}",
    )
    def resync(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        graph = context.repository_def.asset_graph  # which has the rules that fit the tables
        definitions = [graph.get(key).partitions_def for key in keys]
        key = partition_at(definitions[0], context.scheduled_execution_time, window)
        if key is None:
            return dg.SkipReason("the first window is not over yet")
        return dg.RunRequest(partition_key=key, tags={PIPELINE_TAG: pipeline})

    return resync


def _name(names: PipelineNames, tables: Sequence[TableId], rule: Rule, window: Window) -> str:
    if not isinstance(rule, TimeWindows):
        return f"{names.sync_job}_schedule"
    more = [f"and_{len(tables) - _NAMED}_more"] if len(tables) > _NAMED else []
    which = [safe_name(table.name) for table in tables[:_NAMED]]
    return "_".join([f"{names.group}__resync", *which, *more, window, rule.every])


def _about(rule: Rule, window: Window) -> str:
    if not isinstance(rule, TimeWindows):
        return "Copies afresh"
    return f"Copies the {rule.every} before again" if window == "previous" else f"Copies the present {rule.every} again"


def partition_at(definition: Definition | None, at: datetime, window: Window) -> str | None:
    """The partition to copy at a time; None before there is one.

    Raises:
        ConfigError: No partition is that of a time.
    """
    if definition == dg.StaticPartitionsDefinition([WHOLE_TABLE]):
        return WHOLE_TABLE
    if not isinstance(definition, dg.TimeWindowPartitionsDefinition):
        raise ConfigError(f"Partitions that are not those of a time: {definition}", hint=_NO_TIME)
    if window == "current":
        begun = at.timestamp() >= definition.start_timestamp
        return definition.get_partition_key_for_timestamp(at.timestamp()) if begun else None
    before = definition.get_prev_partition_window(at)
    return definition.get_partition_key_for_timestamp(before.start.timestamp()) if before else None


def _check(tables: Sequence[TableId], rules: Sequence[Rule]) -> None:
    """The tables are cut alike; by which column does not matter."""
    if ranges := [str(table) for table, rule in zip(tables, rules, strict=True) if isinstance(rule, KeyRanges)]:
        raise ConfigError(
            f"Partitions that are not those of a time: {', '.join(ranges)} are cut in ranges", hint=_NO_TIME
        )
    found: dict[Definition, list[str]] = {}
    for table, rule in zip(tables, rules, strict=True):
        found.setdefault(partitions_for(rule, ""), []).append(str(table))
    if len(found) > 1:
        groups = "; ".join(f"{', '.join(names)}: {definition}" for definition, names in found.items())
        raise ConfigError(f"One schedule cannot copy tables with different partitions: {groups}", hint=_ONE_EACH)
