"""How runs of one pipeline follow each other: who is active, who hands over, and who died without saying so.

The fence at the source decides who works on a pipeline; what Dagster thinks of its runs only decides who is started. So
a run that is about to end says so, its successor is started while it still works, and waits at the fence. And a run
that Dagster takes for active while nobody holds the fence is dead: its machine went away, which Dagster cannot see.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import takewhile
from time import monotonic

import dagster as dg

from etl_dagster.orchestration.names import ENDING_TAG, HELD_TAG, PIPELINE_TAG, UNTIL_TAG
from etl_dagster.replication import Replicator, RunSummary

ACTIVE = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
# A sensor's tick takes up to 5 s to come, the queue 1 s, a process 2-3 s to start, and twice that on a busy machine.
HANDOVER_SECONDS = 15.0
_LOOK_SECONDS = 0.5
# Without a change between two ticks, the sensor asks for nobody.
_QUIET_SECONDS = 6.0
# A backfill is many runs, and each would wait so long at its end.
_QUIET_BY_HAND_SECONDS = 2.0
# From here on a started run must have the fence, or wait for somebody who has it.
SILENCE_SECONDS = 60.0
# Runs asked for by the sensor wait a minute for the fence, those started by hand up to an hour.
_DEAD_AFTER_SECONDS, _DEAD_BY_HAND_AFTER_SECONDS = 180.0, 2 * 3600.0
# A run costs seconds of work, so one that fails for a lasting reason is not repeated at every tick.
MAX_PAUSE_SECONDS = 300.0
_REMEMBERED_FAILURES = 7


def reason_to_wait(
    instance: dg.DagsterInstance, pipeline: str, now: datetime, held: Callable[[], bool] = lambda: True
) -> str | None:
    """Why no run should be asked for, whatever the source says: one is active, or the last ones came to nothing.

    Args:
        held: Whether anybody holds the pipeline's fence; asked only when the runs leave it open.
    """
    active = [found for found in instance.get_run_records(_runs(pipeline, ACTIVE)) if not _takes_its_turn(found)]
    working = [record for record in active if not _hands_over(record.dagster_run)]
    if any(not _may_be_dead(record, now) for record in working) or (working and held()):
        return "a run of this pipeline is active"
    return None if active else _reason_to_pause(instance, pipeline, now)


def hand_over(context: dg.OpExecutionContext, pipeline: str, replicator: Replicator, summary: RunSummary) -> None:
    """Have a successor started, and go on with the stream until it is there, or nothing comes any more.

    Nobody is wanted where the next batch is not due for longer than that takes: the sensor asks for a run then.
    """
    if replicator.pause_seconds > _QUIET_SECONDS:
        return
    context.instance.add_run_tags(context.run_id, {ENDING_TAG: context.run_id})
    silence = _QUIET_SECONDS if UNTIL_TAG in context.run.tags else _QUIET_BY_HAND_SECONDS
    now, seen = monotonic(), summary.changes
    deadline, quiet = now + HANDOVER_SECONDS, now + silence
    while now < min(deadline, quiet) and not _has_successor(context.instance, pipeline, context.run_id):
        replicator.apply(budget_seconds=_LOOK_SECONDS)
        now = monotonic()
        if summary.changes > seen:
            seen, quiet = summary.changes, now + silence


def bury_dead(instance: dg.DagsterInstance, pipeline: str, run_id: str, now: datetime) -> list[str]:
    """End the runs that cannot be alive, for whoever holds the fence; they would take up room in the queue for ever."""
    records = instance.get_run_records(_runs(pipeline, [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]))
    dead = [record.dagster_run for record in records if record.dagster_run.run_id != run_id and _is_dead(record, now)]
    for run in dead:
        instance.report_run_failed(run, f"Its process is gone: run {run_id} holds the pipeline now")
    return [run.run_id for run in dead]


def _runs(pipeline: str, statuses: Sequence[dg.DagsterRunStatus]) -> dg.RunsFilter:
    return dg.RunsFilter(tags={PIPELINE_TAG: pipeline}, statuses=statuses)


def _takes_its_turn(record: dg.RunRecord) -> bool:
    """A copy that waits in the queue for its pool may do so for hours, and the stream must not wait with it."""
    run = record.dagster_run
    return UNTIL_TAG not in run.tags and run.status in (dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED)


def _hands_over(run: dg.DagsterRun) -> bool:
    return run.status is dg.DagsterRunStatus.STARTED and run.tags.get(ENDING_TAG) == run.run_id


def _may_be_dead(record: dg.RunRecord, now: datetime) -> bool:
    started = record.start_time
    return started is not None and now.timestamp() - started > SILENCE_SECONDS


def _is_dead(record: dg.RunRecord, now: datetime) -> bool:
    by_sensor = UNTIL_TAG in record.dagster_run.tags
    limit = _DEAD_AFTER_SECONDS if by_sensor else _DEAD_BY_HAND_AFTER_SECONDS
    return record.start_time is not None and now.timestamp() - record.start_time > limit


def _has_successor(instance: dg.DagsterInstance, pipeline: str, run_id: str) -> bool:
    started = instance.get_run_records(_runs(pipeline, [dg.DagsterRunStatus.STARTED]))
    since = {record.dagster_run.run_id: record.start_time or 0.0 for record in started}
    return any(start > since.get(run_id, start) for start in since.values())


def _reason_to_pause(instance: dg.DagsterInstance, pipeline: str, now: datetime) -> str | None:
    records = instance.get_run_records(dg.RunsFilter(tags={PIPELINE_TAG: pipeline}), limit=_REMEMBERED_FAILURES)
    failures = len(list(takewhile(_was_in_vain, (record.dagster_run for record in records))))
    if not failures or (ended := records[0].end_time) is None:
        return None
    left = ended + min(MAX_PAUSE_SECONDS, 5.0 * 2**failures) - now.timestamp()
    return f"the last {failures} runs failed or found the pipeline busy; next in {left:.0f} s" if left > 0 else None


def _was_in_vain(run: dg.DagsterRun) -> bool:
    return run.status is dg.DagsterRunStatus.FAILURE or run.tags.get(HELD_TAG) == run.run_id
