"""What operators ask for, taken up by the process that runs the pipeline: fresh copies, slices, tables that go on."""

from __future__ import annotations

from etl_dagster.model import Slice
from etl_dagster.model.slices import merge_slices
from etl_dagster.replication.copying import Copier
from etl_dagster.replication.lifecycle import RESYNC_ASKED, SLICES_ASKED
from etl_dagster.replication.report import Reporter, told_slices
from etl_dagster.replication.tables import COPYING_STATES, Tables
from etl_dagster.store.base import Request, RequestKind, Store, TableRecord, TableState


class Requests:
    """Turns requests into states of tables; a request goes once the state that it leads to is saved."""

    def __init__(self, store: Store, tables: Tables, copier: Copier, reporter: Reporter) -> None:
        self._store = store
        self._tables = tables
        self._copier = copier
        self._reporter = reporter

    def take_up(self) -> bool:
        """Take up what can be taken up now; returns whether there was anything."""
        taken = [request.request_id for request in self._store.requests() if self._take(request)]
        if taken:
            self._store.remove_requests(taken)
        return bool(taken)

    def _take(self, request: Request) -> bool:
        record = self._tables.records.get(request.table)
        if record is None or record.state is TableState.REMOVED:
            self._reporter.notice(f"What was asked for {request.table} ({request.kind}) is void: it is not published")
            return True
        if request.kind is RequestKind.RESYNC:
            self._copy_afresh(record, RESYNC_ASKED)
            return True
        if request.kind is RequestKind.RESUME:
            self._resume(record)
            return True
        return self._copy_slices(record, request.slices)

    def _copy_afresh(self, record: TableRecord, reason: str) -> None:
        self._copier.drop(record.table)
        self._tables.recopy(record.table, reason, live=record.live, slices=())

    def _resume(self, record: TableRecord) -> None:
        if record.state is not TableState.QUARANTINED:
            self._reporter.notice(f"{record.table} is not quarantined any more, it is {record.state}")
        elif record.held:
            self._tables.amend(record.table, resume=True)
        else:
            self._copy_afresh(record, "it was to be resumed, but its changes were not kept")

    def _copy_slices(self, record: TableRecord, slices: tuple[Slice, ...]) -> bool:
        """Slices of a table of which others are being copied wait until those are done."""
        if record.state is TableState.QUARANTINED:
            which = told_slices([each.name for each in slices])
            self._reporter.notice(f"Slices of {record.table}{which} cannot be copied: it is quarantined")
            return True
        if record.state is TableState.READY and merge_slices(slices):
            self._tables.recopy(record.table, SLICES_ASKED, live=True, slices=slices)
            return True
        if not record.slices:
            return True  # the whole copy that waits or runs brings them
        if record.state in COPYING_STATES or {each.attnum for each in (*record.slices, *slices)} - {slices[0].attnum}:
            return False  # what waits was cut by another column
        self._tables.amend(record.table, slices=tuple(dict.fromkeys([*record.slices, *slices])))
        return True
