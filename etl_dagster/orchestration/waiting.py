"""What a run says while another process holds the pipeline and does the run's work."""

from collections.abc import Sequence
from time import monotonic

import dagster as dg

from etl_dagster.model import TableId
from etl_dagster.orchestration.names import PIPELINE_TAG
from etl_dagster.pipeline import Pipeline
from etl_dagster.pipeline.status import TableStatus
from etl_dagster.replication import CopyProgress
from etl_dagster.store import TableState

# Each line is an event, and a look at the source and the store.
LINE_SECONDS = 10.0
# Further ones are only counted.
MAX_TABLES, MAX_RUNS = 10, 3


class Onlooker:
    """Tells in the run's log who holds the pipeline, and how far the work is.

    Args:
        tables: Those that the run waits for.
    """

    def __init__(self, context: dg.OpExecutionContext, pipeline: Pipeline, tables: Sequence[TableId]) -> None:
        self._context = context
        self._pipeline = pipeline
        self._tables = set(tables)
        self._due = float("-inf")

    def tell(self) -> None:
        """Write a line if it is time for one."""
        now = monotonic()
        if now >= self._due:
            self._due = now + LINE_SECONDS
            self._context.log.info("%s, and does the work of this one%s", self._holder(), self._progress())

    def tell_end(self) -> None:
        """Write that there is nothing left to do."""
        self._context.log.info("What was asked for is done; the log of whoever did it tells how")

    def _holder(self) -> str:
        """The fence does not say whose it is, but of the runs of a pipeline one holds it as a rule."""
        filters = dg.RunsFilter(tags={PIPELINE_TAG: self._pipeline.name}, statuses=[dg.DagsterRunStatus.STARTED])
        others = [run.run_id for run in self._context.instance.get_runs(filters) if run.run_id != self._context.run_id]
        if not others:
            return "Another process holds the pipeline"
        if len(others) == 1:
            return f"Run {others[0]} holds the pipeline"
        return f"One of {len(others)} other runs holds the pipeline ({_few(others, MAX_RUNS, ', ')})"

    def _progress(self) -> str:
        if not self._tables:
            return ""
        found = [status for status in self._pipeline.status().tables if status.table in self._tables]
        return f": {_few([words(status) for status in found], MAX_TABLES, '; ')}" if found else ""


def words(status: TableStatus) -> str:
    """How far the copy of a table is."""
    if status.chunks_total:
        progress = CopyProgress(
            status.table,
            status.chunks_done,
            status.chunks_total,
            status.rows_done,
            status.rows_total,
            status.bytes_done,
            status.bytes_total,
            slices=status.slices,
        )
        return f"{progress}{'' if status.state is TableState.COPYING else f', is {status.state}'}"
    asked = f", its turn is to come ({', '.join(status.asked)})" if status.asked else ""
    waits = f", its copy waits for {' and '.join(status.waits_for)}" if status.waits_for else ""
    return f"{status.table} is {status.state}{asked}{waits}"


def _few(texts: Sequence[str], limit: int, between: str) -> str:
    more = f"{between}and {len(texts) - limit:,} more" if len(texts) > limit else ""
    return f"{between.join(texts[:limit])}{more}"
