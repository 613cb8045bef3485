"""The engine: follows one slot into one destination, and copies tables while the stream goes on.

One loop in one thread decides everything (`Replicator.step`): it looks at the publication, begins copies, applies one
window of the stream, moves copies on and swaps in the ones that the stream has passed. What is done is durable at the
destination before the store says so, and in the store before the slot moves; so a kill at any instant repeats work that
changes nothing, and loses none.
"""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from datetime import UTC, datetime
from itertools import chain
from time import monotonic
from types import TracebackType
from typing import Protocol, Self

from etl_dagster.destinations.base import Destination
from etl_dagster.errors import ErrorKind, EtlError, PublicationTooNew, RowIncomplete, SourceLocked
from etl_dagster.model import ZERO_LSN, EventBatch, Lsn, TableChoices, TableEvents, TableId, TableSchema
from etl_dagster.replication.agreement import agree_on_slot, agree_with_destination, begin_anew
from etl_dagster.replication.copies import Copies
from etl_dagster.replication.copying import Copier, RelationRewritten
from etl_dagster.replication.pace import Pace
from etl_dagster.replication.policy import Action, action_for
from etl_dagster.replication.ports import Source, Window
from etl_dagster.replication.quarantine import Quarantine
from etl_dagster.replication.refresh import Catalogue
from etl_dagster.replication.report import BatchReport, LogReporter, Reporter, added
from etl_dagster.replication.requests import Requests
from etl_dagster.replication.stream import WindowSizer, passed, pieces
from etl_dagster.replication.tables import Tables
from etl_dagster.retry import Retrier, stoppable, stopped
from etl_dagster.settings import ReplicationSettings
from etl_dagster.store.base import Store, TableRecord, TableState

_NEVER = float("-inf")
_UNTOLD_TRIES = 3
# To look at many thousand tables takes a second; it shall be a small share of the time.
_LONG_LOOK_SECONDS, _REFRESH_PAUSE = 0.25, 20


class Stop(Protocol):
    """Asks a long call to end after what it is doing now; `threading.Event` is one."""

    def is_set(self) -> bool:
        """Whether to stop."""
        ...


class Replicator:
    """Replicates one pipeline; use it as a context manager, from one thread.

    Entering takes the pipeline's fence at the source, so that no second process works on it, and brings store, slot,
    publication and destination into agreement.

    Args:
        owner: What the destination knows the pipeline by.
        choices: How each table lands, and what becomes of values that cannot be held.
        heartbeat_seconds: How often to write a message into the source's WAL; None for never.

    Raises:
        SourceError, DestinationError, StateError: on entering and from every call, once retries are used up or when
            a human has to act. Errors of one table never raise: they quarantine the table.
    """

    def __init__(
        self,
        *,
        source: Source,
        destination: Destination,
        store: Store,
        settings: ReplicationSettings | None = None,
        reporter: Reporter | None = None,
        owner: str = "",
        choices: TableChoices | None = None,
        heartbeat_seconds: float | None = None,
    ) -> None:
        self._owner = owner
        self._choices = choices or TableChoices()
        self._heartbeat_seconds = heartbeat_seconds
        self._source = source
        self._destination = destination
        self._store = store
        self._settings = settings or ReplicationSettings()
        self._reporter = reporter or LogReporter()
        wanted = destination.capabilities
        self._sizer = WindowSizer(self._settings, wanted.batch_seconds)
        self._pace = Pace(wanted.batch_seconds)
        self._piece_bytes = min(self._settings.piece_bytes, wanted.piece_bytes)
        # Up to where somebody waits for the stream, whatever a batch costs.
        self._goal = ZERO_LSN
        # What the destination has billed since it was told last.
        self._spent: Counter[str] = Counter()
        self._woken = threading.Event()
        self._refreshed_at = self._beaten_at = _NEVER
        self._refresh_pause = 0.0
        self._told = ""
        self._stack = ExitStack()
        self._retrier = Retrier("the stream", when=_worth_retrying)

    # -- life ---------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._source.close)
            stack.enter_context(self._source.fence())
            self._store.open()
            stack.callback(self._store.close)
            self._tables = Tables(self._store, self._reporter)
            self._prepare_publication()
            self._destination.startup(self._owner)
            stack.callback(self._destination.shutdown)
            self._slot = agree_on_slot(self._source, self._store, self._tables, self._reporter)
            self._pace.resume(self._slot.batch_at)
            for record in self._tables.in_state(TableState.COPIED):
                self._reporter.table_changed(record)  # it is this process that finishes what another one has copied
                # It may have read keys again, of which the destination knows and the record does not.
                self._tables.amend(record.table, copy_end=self._source.inserted_position())
            agree_with_destination(self._destination, self._tables, self._slot)
            # Windows begin where the last one ended, even when it was not told: no older schema comes again.
            self._source.advance_slot(self._slot.position)
            self._copier = Copier(
                self._source, self._destination, self._store, self._settings, self._reporter, self._woken.set
            )
            stack.callback(self._copier.close)
            self._catalogue = Catalogue(
                self._source,
                self._destination,
                self._tables,
                self._copier,
                self._choices,
                self._reporter,
                self._spent,
            )
            self._copies = Copies(
                self._source,
                self._destination,
                self._tables,
                self._catalogue,
                self._copier,
                self._reporter,
                self._settings.copying_tables,
                self._spent,
            )
            self._requests = Requests(self._store, self._tables, self._copier, self._reporter)
            self._quarantine = Quarantine(
                self._destination, self._tables, self._catalogue, self._reporter, self._piece_bytes, self._spent
            )
            # What lives by now stays: without it, looking for garbage among imported modules takes 4 % of a copy.
            gc.freeze()
            stack.callback(gc.unfreeze)
            self._refresh_if_possible()
            for problem in self._choices.unmatched(self._tables.schemas.values()):
                self._reporter.notice(problem)
            self._copies.resume()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _interrupted() if error is not None and not isinstance(error, Exception) else nullcontext():
            self._stack.close()

    @property
    def position(self) -> Lsn:
        """Everything committed before it is in the destination."""
        return self._slot.position

    @property
    def records(self) -> Mapping[TableId, TableRecord]:
        """State of every table."""
        return self._tables.records

    @property
    def schemas(self) -> Mapping[TableId, TableSchema]:
        """Schema in use of every table."""
        return self._tables.schemas

    def row_count(self, table: TableId) -> int | None:
        """Rows of a live table at the destination, where it knows them at once."""
        return self._destination.row_count(table)

    # -- what callers ask for -----------------------------------------------------------------------------------------

    def sync(self, *, stop: Stop | None = None) -> None:
        """Copy what needs it and catch up to the source's present end."""
        goal = self._source.current_position()
        self._run(lambda: passed(self.position, goal) and not self._unfinished(), stop, goal)

    def copy(self, *, stop: Stop | None = None) -> None:
        """Go on until no table waits for its copy; the stream is applied meanwhile."""
        self._run(lambda: not self._unfinished(), stop)

    def apply(self, *, until: Lsn | None = None, budget_seconds: float = 0.0, stop: Stop | None = None) -> None:
        """Apply the stream up to ``until`` (the source's present end when not given), then go on within the budget.

        Ends before the budget does when the destination wants no further batch within it.
        """
        goal = until if until is not None else self._source.current_position()
        deadline = monotonic() + budget_seconds

        def reached() -> bool:
            is_over = monotonic() + self._pace.left >= deadline
            return passed(self.position, goal) and not self._tables.to_resume() and is_over

        self._run(reached, stop, goal)

    def follow(self, *, stop: Stop) -> None:
        """Go on until asked to stop."""
        self._run(lambda: False, stop)

    def begin_copies(self) -> Sequence[TableId]:
        """Give tables that wait for their copy an empty staging area and a change log, from this position on.

        No more than are to be under way at once; the others do without a log until it is their turn.
        """
        return self._copies.begin(self.position)

    def step(self) -> bool:
        """One pass of the loop; False when there was nothing to do."""
        if monotonic() >= self._refreshed_at + max(self._settings.refresh_seconds, self._refresh_pause):
            self._keep_publication()
            self._refresh_if_possible()
        self._beat()
        self._take_up_requests()
        resumed = self._resume_quarantined()
        begun = self.begin_copies()
        applied = self._apply_window()
        followed = self._catalogue.follow_silent(self.position)
        copied = self._move_copies()
        self._tell_spent()
        return bool(resumed or begun) or applied or followed or copied

    def _take_up_requests(self) -> None:
        if self._requests.take_up():
            self._refresh()

    def _resume_quarantined(self) -> Sequence[TableId]:
        wanted = self._tables.to_resume()
        for record in wanted:
            self._quarantine.bring_back(record, self.position)
            self._refreshed_at = _NEVER  # nobody has followed its columns meanwhile
        return [record.table for record in wanted]

    def _beat(self) -> None:
        if self._heartbeat_seconds is not None and monotonic() - self._beaten_at >= self._heartbeat_seconds:
            self._source.heartbeat()
            self._beaten_at = monotonic()

    def _refresh(self) -> None:
        began = monotonic()
        self._catalogue.refresh(self.position)
        self._refreshed_at = monotonic()
        took = self._refreshed_at - began
        self._refresh_pause = _REFRESH_PAUSE * took if took > _LONG_LOOK_SECONDS else 0.0

    def _prepare_publication(self) -> None:
        try:
            self._source.prepare_publication(patient=not self._tables.schemas)
        except SourceLocked as error:
            if not self._tables.schemas:
                raise
            self._reporter.notice(f"The publication stays as it is for now: {error.message}")

    def _keep_publication(self) -> None:
        """Let tables join that were created meanwhile, where the publication follows the configuration."""
        try:
            self._source.prepare_publication(patient=False)
        except EtlError as error:
            if error.message != self._told:
                self._reporter.notice(f"The publication stays as it is: {error}")
            self._told = error.message

    def _refresh_if_possible(self) -> None:
        """Go on with the picture that we have while somebody's lock on a table hides the catalogue's."""
        try:
            self._refresh()
        except EtlError as error:
            if action_for(error) is not Action.RETRY or not self._tables.schemas:
                raise
            self._reporter.notice(f"{error.message}; the publication is looked at again later")
            self._refreshed_at = monotonic()

    def _unfinished(self) -> bool:
        stale = self._refreshed_at == _NEVER
        asked = bool(self._store.requests())
        return bool(asked or stale or self._tables.unfinished() or self._catalogue.has_silent)

    # -- the loop -----------------------------------------------------------------------------------------------------

    def _run(self, reached: Callable[[], bool], stop: Stop | None, goal: Lsn = ZERO_LSN) -> None:
        self._goal = goal
        while not (stop is not None and stop.is_set()):
            if reached():
                return
            try:
                moved = self.step()
                self._destination.rest(idle=not moved and not self._copier.jobs)
            except EtlError as error:
                if stopped() and _worth_retrying(error):
                    return
                wait = self._treat(error)
                self._destination.rest(idle=wait > 0)
                self._pause(wait)
                continue
            if moved:
                self._retrier.progressed()
            elif not reached():
                self._pause(self._settings.idle_poll_seconds)

    def _pause(self, seconds: float) -> None:
        self._woken.wait(seconds)
        self._woken.clear()

    def _treat(self, error: EtlError) -> float:
        """Seconds to wait before going on; raises the error when nothing but a human can help."""
        table = self._known(error.table)
        try:
            if isinstance(error, PublicationTooNew):
                self._begin_anew(error)
                return 0.0
            if isinstance(error, RowIncomplete) and table is not None:
                self._copier.drop(table)
                self._tables.recopy(table, error.message, live=False, hint=error.hint)
                return 0.0
            if action_for(error) is Action.QUARANTINE and table is not None:
                if not self._outdated(table):
                    self._quarantine.take_out(table, error, self.position)
                return 0.0
        except EtlError as second:
            error = second
        wait = self._retrier.failed(error)
        # Whoever asks for the status looks into the slot for a moment, which is nothing to tell.
        if error.kind is not ErrorKind.SLOT_BUSY or self._retrier.failures > _UNTOLD_TRIES:
            self._reporter.notice(f"{error.message}; next try in {wait:.1f} s")
        return wait

    def _begin_anew(self, error: EtlError) -> None:
        for table in list(self._copier.jobs):
            self._copier.drop(table)
        self._slot = begin_anew(self._source, self._store, self._tables, self._reporter, error.message)
        self._refresh()

    def _outdated(self, table: TableId) -> bool:
        """Whether what failed is no longer the table we know, which leads to a fresh copy."""
        self._copier.drop(table)
        before = (self._tables.records[table].state, self._tables.schemas.get(table))
        self._keep_publication()  # a table that was made anew in its place has to join first
        self._refresh()
        return (self._tables.records[table].state, self._tables.schemas.get(table)) != before

    def _known(self, name: str | None) -> TableId | None:
        return next((table for table in self._tables.records if str(table) == name), None)

    # -- the stream ---------------------------------------------------------------------------------------------------

    @property
    def pause_seconds(self) -> float:
        """How long the destination wants the stream left alone from now on, unless somebody waits for it."""
        return self._pace.left

    def _may_rest(self) -> bool:
        """A batch costs, and nothing waits for this one."""
        if not self._pace.left or not passed(self.position, self._goal):
            return False
        staged = (record for record in self._tables.in_state(TableState.COPIED))
        waiting = any(record.table not in self._copier.jobs for record in staged)
        return not waiting and not self._catalogue.awaits_stream(self.position)

    def _apply_window(self) -> bool:
        if self._may_rest():
            return False
        start = self.position
        end = self._source.current_position()
        upto = Lsn(min(end, start + self._settings.max_window_wal_bytes))
        if upto <= start:
            return False
        begun_at = datetime.now(UTC)
        routes = self._tables.routes()
        began = monotonic()
        clock = _ReadClock()
        schemas = self._tables.stream_schemas(routes)
        held = [oid for oid, schema in schemas.items() if routes[schema.id].held]
        window = self._source.window(
            schemas, upto, self._sizer.limit, after=start, look=self._catalogue.look, held=held
        )
        changes: Mapping[TableId, int] = {}
        contents = clock.timed(pieces(window, routes, self._piece_bytes))
        first = next(contents, None)
        if first is not None:
            batch = EventBatch(chain([first], contents), lambda: window.position, routes)
            written = self._destination.write_events(batch)
            changes = written.changes
            self._spent.update(written.usage)
        seconds = monotonic() - began
        if not window.complete:
            self._sizer.learn(window.changes, seconds, window.reread_bytes)
        self._take_notice(window)
        self._pace.window(began, wrote=first is not None, caught_up=window.complete and upto == end)
        usage = self._take_spent()
        self._advance(window, begun_at if first is not None else None, usage)
        for schema in window.evolved.values():
            self._catalogue.evolved(schema, window.position)
        self._reporter.batch_applied(
            BatchReport(
                start=start,
                position=window.position,
                changes={table: count for table, count in changes.items() if count and not routes[table].held},
                transactions=window.transactions,
                bytes=window.bytes,
                read_seconds=clock.seconds,
                write_seconds=seconds - clock.seconds,
                newest_commit=window.newest_commit,
                finished_at=datetime.now(UTC),
                replaced=window.replaced,
                usage=usage,
            )
        )
        return True

    def _advance(self, window: Window, wrote_at: datetime | None, usage: Mapping[str, int]) -> None:
        position = window.position
        self._save_slot(
            position=position,
            written=position if wrote_at else self._slot.written,
            newest_commit=window.newest_commit or self._slot.newest_commit,
            batch_at=wrote_at or self._slot.batch_at,
            usage=added(self._slot.usage, usage),
        )
        self._source.advance_slot(position)

    def _take_spent(self) -> Mapping[str, int]:
        taken = dict(self._spent)
        self._spent.clear()
        return taken

    def _tell_spent(self) -> None:
        """What the destination has billed for other things than a window: copies, changes that were held."""
        if usage := self._take_spent():
            self._save_slot(usage=added(self._slot.usage, usage))
            self._reporter.batch_applied(BatchReport.of_usage(self.position, usage))

    def _save_slot(self, **changes: object) -> None:
        self._slot = self._slot.model_copy(update={**changes, "updated_at": datetime.now(UTC)})
        self._store.save_slot(self._slot)

    def _take_notice(self, window: Window) -> None:
        """Of what must be known of the window before it counts as read."""
        for table, replaced in window.replaced.items():
            self._tables.count_replaced(table, replaced)
        for table in window.evolved:
            self._catalogue.outdated_copy(table)
        for table, reason in window.drifted.items():
            self._catalogue.drifted(table, reason)
            self._refreshed_at = _NEVER

    # -- copies -------------------------------------------------------------------------------------------------------

    def _move_copies(self) -> bool:
        ended = self._copies.collect()
        for error in ended:
            if isinstance(error, EtlError):
                self._copy_failed(error)
        return self._copies.finish(self.position) or bool(ended)

    def _copy_failed(self, error: EtlError) -> None:
        table = self._known(error.table)
        if isinstance(error, RelationRewritten) and table is not None:
            self._tables.recopy(table, error.message, live=self._tables.records[table].live)
            self._refreshed_at = _NEVER
            return
        if table is not None and action_for(error) is not Action.RETRY and self._outdated(table):
            return
        self._pause(self._treat(error))


class _ReadClock:
    """Time spent in an iterator, as opposed to in whoever consumes it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, items: Iterator[Sequence[TableEvents]]) -> Iterator[Sequence[TableEvents]]:
        while True:
            began = monotonic()
            item = next(items, None)
            self.seconds += monotonic() - began
            if item is None:
                return
            yield item


def _interrupted() -> AbstractContextManager[None]:
    """Nobody waits for what other threads try again."""
    stop = threading.Event()
    stop.set()
    return stoppable(stop)


def _worth_retrying(error: Exception) -> bool:
    return isinstance(error, EtlError) and action_for(error) is Action.RETRY
