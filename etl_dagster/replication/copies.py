"""Copies of tables and slices from their beginning to their end, as far as they concern the states of tables."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from time import monotonic

from etl_dagster.destinations.base import CopyResult, Destination
from etl_dagster.errors import EtlError
from etl_dagster.model import CopyTarget, Lsn, TableId
from etl_dagster.replication.copying import Copier, CopyJob
from etl_dagster.replication.ports import Source
from etl_dagster.replication.refresh import Catalogue
from etl_dagster.replication.report import Reporter
from etl_dagster.replication.stream import passed
from etl_dagster.replication.tables import COPYING_STATES, Tables
from etl_dagster.store.base import TableRecord, TableState

# A destination may take seconds for each copy; the stream shall not wait for the whole queue.
_TURN_SECONDS = 5.0


class Copies:
    """Begins copies, takes down what the `Copier` has read, and has the destination finish what the stream has passed.

    Args:
        most: Copies that are under way at once.
        spent: Takes up what the destination bills.
    """

    def __init__(
        self,
        source: Source,
        destination: Destination,
        tables: Tables,
        catalogue: Catalogue,
        copier: Copier,
        reporter: Reporter,
        most: int,
        spent: Counter[str],
    ) -> None:
        self._source = source
        self._destination = destination
        self._tables = tables
        self._catalogue = catalogue
        self._copier = copier
        self._reporter = reporter
        self._most = most
        self._spent = spent

    def begin(self, position: Lsn) -> Sequence[TableId]:
        """Begin copies at this position; returns of which tables."""
        self._catalogue.settle(position)
        room = self._most - len(self._tables.in_state(*COPYING_STATES))
        waiting = (
            record
            for record in self._tables.in_state(TableState.INIT)
            if self._catalogue.may_begin(record.table, position) and not self._lost_slices(record, position)
        )
        begun: list[CopyTarget] = []
        deadline = monotonic() + _TURN_SECONDS
        try:
            for record in islice(waiting, max(0, room)):
                begun.append(self._prepare(record))
                if monotonic() > deadline:
                    break
        finally:
            if begun:
                with self._tables.together():
                    for target in begun:
                        self._begin(target, position)
                self._copier.start(begun, position)
        return [target.table.id for target in begun]

    def resume(self) -> None:
        """Go on with copies that an earlier process began, or that lost their job to an error."""
        for record in self._tables.in_state(TableState.COPYING):
            if record.table not in self._copier.jobs:
                assert record.copy_start is not None
                self._copier.start([self._tables.copy_target(record)], record.copy_start)

    def collect(self) -> Sequence[CopyJob | EtlError]:
        """Let every copy go on; returns those whose rows are staged now, and errors that end one."""
        self.resume()
        for table in list(self._copier.jobs):
            if self._tables.records[table].state not in COPYING_STATES:
                self._copier.drop(table)
        ended = self._copier.poll()
        if staged := [job for job in ended if isinstance(job, CopyJob)]:
            with self._tables.together():
                for job in staged:
                    self._staged(job)
        return ended

    def finish(self, position: Lsn) -> bool:
        """Finish copies that the stream has passed; returns whether there were any.

        Where that takes long, some wait for the next turn, so that the stream goes on between them.
        """
        copied = self._tables.in_state(TableState.COPIED)
        staged = [record for record in copied if record.table not in self._copier.jobs]
        ripe = [record for record in staged if passed(position, record.copy_end or Lsn(0))]
        if len(ripe) < len(staged) and passed(position, self._source.current_position()):
            self._source.flush_wal()
        finished: dict[TableId, int | None] = {}
        deadline = monotonic() + _TURN_SECONDS
        try:
            for record in ripe:
                if finished and monotonic() > deadline:
                    break
                if (result := self._finish(record, position)) is not None:
                    finished[record.table] = result.rows
        finally:
            if finished:
                with self._tables.together():
                    for table, rows in finished.items():
                        self._tables.finish_copy(table, rows)
        return bool(ripe)

    def _prepare(self, record: TableRecord) -> CopyTarget:
        schema = self._tables.schemas[record.table]
        if schema.left_out:
            self._reporter.notice(f"{schema.id} is copied without generated columns: {', '.join(schema.left_out)}")
        target = CopyTarget(schema, f"{schema.oid}_{uuid.uuid4().hex[:12]}", record.slices)
        self._destination.truncate_table(target)
        return target

    def _begin(self, target: CopyTarget, position: Lsn) -> None:
        record = self._tables.records[target.table.id]
        replaced = record.replaced if record.slices else {}
        self._tables.move(
            record.table,
            TableState.COPYING,
            live=record.live,
            copy_id=target.copy_id,
            copy_start=position,
            replaced=replaced,
        )
        self._catalogue.begun(record.table)

    def _lost_slices(self, record: TableRecord, position: Lsn) -> bool:
        """Whether the column is gone, or another one now, by which the slices to copy were told."""
        columns = {column.attnum: column.type.oid for column in self._tables.schemas[record.table].columns}
        if all(columns.get(each.attnum) == each.type_oid for each in record.slices):
            return False
        reason = "slices of it were not copied: their column is gone, or has another type"
        self._reporter.notice(f"{record.table}: {reason}")
        # The end of the copy would have brought the columns that changed while it waited.
        self._catalogue.bring_columns(self._tables.schemas[record.table], position)
        self._tables.move(record.table, TableState.READY, reason=reason, hint="Ask for the slices that it has now")
        return True

    def _staged(self, job: CopyJob) -> None:
        record = self._tables.records[job.table.id]
        end = Lsn(max(job.end_lsn, record.copy_end or 0))
        if record.state is TableState.COPYING:
            self._tables.move(
                job.table.id,
                TableState.COPIED,
                live=record.live,
                copy_id=record.copy_id,
                copy_start=record.copy_start,
                copy_end=end,
            )
            self._tables.count_replaced(job.table.id, job.replaced)
        else:
            self._tables.amend(job.table.id, copy_end=end)

    def _finish(self, record: TableRecord, position: Lsn) -> CopyResult | None:
        """What came of it; None when keys have to be read again first."""
        target = self._tables.copy_target(record)
        result = self._destination.finish_copy(target, position)
        self._spent.update(result.usage)
        if result.undecided is not None:
            self._copier.start([target], position, result.undecided)
            return None
        return result
