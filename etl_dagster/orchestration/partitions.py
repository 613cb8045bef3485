"""Slices of a table as partitions of its sync: their definitions, and the keys of planned ranges."""

from collections.abc import Mapping, Sequence
from datetime import datetime, time
from zoneinfo import ZoneInfo

import dagster as dg

from etl_dagster.errors import EtlError
from etl_dagster.model import KeyRanges, TableId, TimeWindows
from etl_dagster.model.slices import Every
from etl_dagster.pipeline import Pipeline
from etl_dagster.store import TableState

# The only key of a table without a rule.
WHOLE_TABLE = "all"
Rule = TimeWindows | KeyRanges | None
Definition = dg.PartitionsDefinition[str]

_WHOLE = dg.StaticPartitionsDefinition([WHOLE_TABLE])
_CRON = {Every.HOUR: "0 * * * *", Every.DAY: "0 0 * * *", Every.WEEK: "0 0 * * 1", Every.MONTH: "0 0 1 * *"}
_FORMATS = {Every.HOUR: "%Y-%m-%d-%H:%M"}
_DAYS = "%Y-%m-%d"


def partitions_for(rule: Rule, ranges_name: str) -> Definition:
    """The partitions of a rule; their keys are the names of the slices.

    Args:
        ranges_name: Name of the dynamic partitions, which are the instance's and not the code location's.
    """
    if isinstance(rule, TimeWindows):
        return _windows(rule)
    return _WHOLE if rule is None else dg.DynamicPartitionsDefinition(name=ranges_name)


def _windows(rule: TimeWindows) -> dg.TimeWindowPartitionsDefinition:
    midnight = datetime.combine(rule.start, time.min, ZoneInfo(rule.timezone))
    return dg.TimeWindowPartitionsDefinition(
        start=rule.name(rule.begins(midnight)[0]),
        fmt=_FORMATS.get(rule.every, _DAYS),
        cron_schedule=_CRON[rule.every],
        timezone=rule.timezone,
        end_offset=1,  # the window of now is a slice too
    )


def publish_ranges(
    context: dg.OpExecutionContext,
    pipeline: Pipeline,
    ranges: Mapping[TableId, str],
    copied: Mapping[TableId, Sequence[str]],
) -> None:
    """Have Dagster know the ranges of live tables as they are planned; plans those that are not.

    Args:
        ranges: Name of the dynamic partitions of each table that is cut into ranges.
        copied: Keys of what the run copied of each table, none for all of it. Only where the last range was among it,
            that is cut again when it has grown: whoever else asks for it, maybe a later run of the same backfill, meant
            all of it.
    """
    for table, name in ranges.items():
        try:
            _publish(context, name, _planned(pipeline, table, copied.get(table)))
        except EtlError as error:  # the rows are where they belong, so the run has not failed
            context.log.warning("The partitions of %s stay as they are for now: %s", table, error)


def _planned(pipeline: Pipeline, table: TableId, copied: Sequence[str] | None) -> list[str]:
    record = pipeline.record(table)
    if record is None or record.state is not TableState.READY:
        return []
    names = [each.name for each in pipeline.slices(table)]
    has_last = copied is not None and (not copied or not names or names[-1] in copied)
    return [each.name for each in pipeline.plan_slices(table)] if has_last or not names else names


def _publish(context: dg.OpExecutionContext, name: str, keys: list[str]) -> None:
    if not keys:
        return
    known = context.instance.get_dynamic_partitions(name)
    if known == keys:
        return
    # After another rule, none of the former ranges is one of the new ones.
    for gone in set(known).difference(keys):
        context.instance.delete_dynamic_partition(name, gone)
    known_keys = set(known)
    if added := [key for key in keys if key not in known_keys]:
        context.instance.add_dynamic_partitions(name, added)
        context.log.info("%s: %s partitions more, %s in all", name, len(added), len(keys))
