"""The pipeline that one run holds open, shared by its ops."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from time import monotonic

import dagster as dg

from etl_dagster.errors import ErrorKind, EtlError, StateError
from etl_dagster.model import Lsn, TableId, TableSchema
from etl_dagster.orchestration.names import PIPELINE_TAG
from etl_dagster.orchestration.package_log import PACKAGE, warnings_in
from etl_dagster.orchestration.parts import PipelineParts
from etl_dagster.orchestration.run_reporter import RunReporter
from etl_dagster.pipeline import Pipeline
from etl_dagster.replication import Action, FanOut, Replicator, RunSummary, action_for

# The run before goes on until its successor is at the door, and may be in the middle of a batch then.
BUSY_SECONDS = 60.0
# A run by hand looks this often whether others have done its work.
TURN_SECONDS = 2.0
# How long work may be in the hands of another process before a run by hand gives up waiting for it.
PATIENCE_SECONDS = 3600.0
# 10, 20 and 40 s: the engine itself has waited longer than that for its source by then.
MAX_RETRIES, RETRY_SECONDS = 3, 10.0


class ReplicationSession:
    """One pipeline and, from the first op that asks for it to the end of the run, its replicator.

    The in-process executor makes one session per run, so the ops work on one replicator and the pipeline's fence is
    held from the first op to the last. Under another executor every op would get a session of its own, which is slower
    but right.
    """

    def __init__(self, pipeline: Pipeline, log: logging.Logger) -> None:
        self.pipeline = pipeline
        self.log = log
        self.summary = RunSummary()
        self._lines = RunReporter(log)
        self._stack = ExitStack()
        self._replicator: Replicator | None = None
        self._busy = False

    def enter(self, log: logging.Logger) -> None:
        """From here on, lines belong to the step whose log this is."""
        self.log = log
        self._lines.log_to(log)

    def replicator(self) -> Replicator | None:
        """The run's replicator; None when another process runs the pipeline and so does this run's work."""
        if self._replicator is None and not self._busy:
            try:
                self._replicator = self.open(BUSY_SECONDS)
            except StateError as error:
                if error.kind is not ErrorKind.PIPELINE_BUSY:
                    raise
                self._busy = True
        return self._replicator

    def replicator_or_work_done(
        self, done: Callable[[], bool], patience_seconds: float, while_waiting: Callable[[], None]
    ) -> Replicator | None:
        """The run's replicator; None once another process that runs the pipeline has done what was asked for.

        Args:
            while_waiting: Called every few seconds while another process holds the pipeline.

        Raises:
            Failure: Neither happened within the time given.
        """
        began, turn = monotonic(), 0.0  # at once, to say at once whom it waits for
        while self._replicator is None and not done():
            try:
                self.open(turn)
            except StateError as error:
                if error.kind is not ErrorKind.PIPELINE_BUSY:
                    raise
                if monotonic() >= began + patience_seconds:
                    raise dg.Failure(_patience_over(patience_seconds), allow_retries=False) from error
                while_waiting()
                turn = TURN_SECONDS
        return self._replicator

    def catch_up(self, while_waiting: Callable[[], None]) -> Replicator | None:
        """The replicator, or None when another process has brought the pipeline to the source's present end."""
        goal = self.pipeline.current_position()
        found = self.replicator_or_work_done(lambda: self._is_applied(goal), PATIENCE_SECONDS, while_waiting)
        self._busy = found is None
        return found

    def _is_applied(self, goal: Lsn) -> bool:
        position = self.pipeline.applied_position()
        return position is not None and position >= goal and self.pipeline.is_held()

    def open(self, wait_seconds: float) -> Replicator:
        """Hold the pipeline from now to the end of the run.

        Raises:
            StateError: Of kind ``PIPELINE_BUSY`` when another process holds it for longer than ``wait_seconds``.
        """
        reporter = FanOut([self._lines, self.summary])
        self._replicator = self._stack.enter_context(self.pipeline.replicator(reporter, wait_seconds=wait_seconds))
        return self._replicator

    @property
    def opened(self) -> Replicator | None:
        """The run's replicator, if it has one by now."""
        return self._replicator

    def schemas(self) -> Mapping[TableId, TableSchema]:
        """Schemas in use."""
        return self.pipeline.tables() if self._replicator is None else self._replicator.schemas

    def row_count(self, table: TableId) -> int | None:
        """Rows of the live table, when the destination can tell them at once."""
        return None if self._replicator is None else self._replicator.row_count(table)

    def position(self) -> Lsn | None:
        """Everything committed before it is at the destination."""
        return self.pipeline.applied_position() if self._replicator is None else self._replicator.position

    def release(self) -> None:
        """Let go of the pipeline, so that another run may have it."""
        try:
            with self._stack:
                self._replicator = None
        finally:
            self._lines.flush()

    def close(self) -> None:
        """Let go of everything."""
        try:
            self.release()
        finally:
            self.pipeline.close()


def _patience_over(seconds: float) -> str:
    return (
        f"Another process has held the pipeline for {seconds:.0f} s without finishing what was asked for — it goes on "
        "with it; look at its log, or stop it and run this again"
    )


def build_session(parts: PipelineParts) -> dg.ResourceDefinition:
    """The session as a resource over the three parts."""

    @dg.resource(required_resource_keys=parts.resource_keys, description=f"Pipeline {parts.name}, open for one run")
    def session(context: dg.InitResourceContext) -> Iterator[ReplicationSession]:
        opened = ReplicationSession(Pipeline(parts.config(context.resources)), _log_of(context))
        with _own_warnings(context, opened):
            try:
                yield opened
            finally:
                opened.close()

    return session


def _log_of(context: dg.InitResourceContext) -> logging.Logger:
    return context.log or logging.getLogger(PACKAGE)


def _own_warnings(context: dg.InitResourceContext, session: ReplicationSession) -> AbstractContextManager[None]:
    """The package's warnings go to the run's log, unless the instance is configured to have them there anyway."""
    managed = context.instance.managed_python_loggers if context.instance else ()
    return nullcontext() if {PACKAGE, "root"}.intersection(managed) else warnings_in(lambda: session.log)


def enter_session(context: dg.OpExecutionContext, parts: PipelineParts) -> ReplicationSession:
    """The run's session; marks the run as one that holds the pipeline, also when it was started by hand."""
    if context.run.tags.get(PIPELINE_TAG) != parts.name:
        context.instance.add_run_tags(context.run_id, {PIPELINE_TAG: parts.name})
    session: ReplicationSession = getattr(context.resources, parts.names.session)
    session.enter(context.log)
    return session


@contextmanager
def errors_as_failures() -> Iterator[None]:
    """Show an error with its kind and what to do; only what may go away by itself is worth a step's retry."""
    try:
        yield
    except EtlError as error:
        metadata = {"etl/error_kind": str(error.kind), "etl/hint": error.hint}
        retry = action_for(error) is Action.RETRY
        raise dg.Failure(description=str(error), metadata=metadata, allow_retries=retry) from error


@contextmanager
def errors_as_retries(context: dg.OpExecutionContext) -> Iterator[None]:
    """Likewise, and have the step begin again after an error that may go away by itself.

    A retry policy would begin it again also when somebody ends the run, which then goes on.
    """
    try:
        with errors_as_failures():
            yield
    except dg.Failure as failure:
        if not failure.allow_retries:
            raise
        raise dg.RetryRequested(MAX_RETRIES, RETRY_SECONDS * 2**context.retry_number) from failure
