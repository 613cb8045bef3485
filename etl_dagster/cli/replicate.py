"""`sync` and `follow`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from etl_dagster.cli import render
from etl_dagster.cli.exits import ExitCode
from etl_dagster.cli.progress import watching
from etl_dagster.cli.signals import Stop, stop_on_signals
from etl_dagster.model import TableId
from etl_dagster.pipeline import Pipeline
from etl_dagster.replication.engine import Replicator
from etl_dagster.replication.report import FanOut, RunSummary
from etl_dagster.store.base import TableRecord, TableState

logger = logging.getLogger("etl_dagster")


@dataclass
class Outcome:
    """What a run leaves behind for its last words."""

    summary: RunSummary = field(default_factory=RunSummary)
    records: Mapping[TableId, TableRecord] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    signum: int | None = None

    def show(self, *, as_json: bool) -> None:
        """Print what was done."""
        duration = time.monotonic() - self.started
        if as_json:
            render.print_json(render.run_as_json(self.summary, self.records, duration))
        else:
            render.show_run(self.summary, self.records, duration)

    def exit_code(self) -> int:
        """3 as long as a table is quarantined, also when it was so before."""
        quarantined = any(record.state is TableState.QUARANTINED for record in self.records.values())
        return ExitCode.QUARANTINED if quarantined else ExitCode.OK


def run_sync(config: Path, *, wait_seconds: float, as_json: bool, debug: bool) -> int:
    """Copy what needs it, catch up to now."""
    outcome = _run(config, wait_seconds, debug, lambda replicator, stop: replicator.sync(stop=stop))
    outcome.show(as_json=as_json)
    if outcome.signum is not None:
        logger.warning("stopped before it had caught up; the next sync goes on from here")
        return 128 + outcome.signum
    return outcome.exit_code()


def run_follow(config: Path, *, wait_seconds: float, as_json: bool, debug: bool) -> int:
    """Replicate until a signal comes; a follow that drained has done what it was asked to, so it ends with 0."""
    outcome = Outcome()
    pipeline = Pipeline.load(config)
    with stop_on_signals() as stop, watching(debug=debug) as reporter:
        both = FanOut([reporter, outcome.summary])
        outcome.records = pipeline.follow(stop, both, wait_seconds=wait_seconds)
    outcome.show(as_json=as_json)
    return outcome.exit_code()


def _run(config: Path, wait_seconds: float, debug: bool, work: Callable[[Replicator, Stop], None]) -> Outcome:
    outcome = Outcome()
    pipeline = Pipeline.load(config)
    with stop_on_signals() as stop, _replicating(pipeline, outcome.summary, wait_seconds, debug) as replicator:
        work(replicator, stop)
        outcome.records = dict(replicator.records)
        outcome.signum = stop.signum
    return outcome


@contextmanager
def _replicating(pipeline: Pipeline, summary: RunSummary, wait: float, debug: bool) -> Iterator[Replicator]:
    with (
        watching(debug=debug) as reporter,
        pipeline.replicator(FanOut([reporter, summary]), wait_seconds=wait) as replicator,
    ):
        yield replicator
