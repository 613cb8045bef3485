"""Agreement between source, store and destination when a process begins: what cannot go on is copied afresh, loudly."""

from __future__ import annotations

from etl_dagster.destinations.base import Destination
from etl_dagster.errors import EtlError, SlotError, StateError
from etl_dagster.model import Lsn
from etl_dagster.replication.ports import SlotStatus, Source, SourceIdentity
from etl_dagster.replication.report import Reporter
from etl_dagster.replication.stream import passed
from etl_dagster.replication.tables import COPYING_STATES, Tables
from etl_dagster.store.base import SlotRecord, Store, TableRecord, TableState


def agree_on_slot(source: Source, store: Store, tables: Tables, reporter: Reporter) -> SlotRecord:
    """The slot to go on from; made when there is none.

    Raises:
        StateError: The store's state belongs to another database cluster.
    """
    identity = source.identify()
    record, status = store.slot(), source.slot()
    if record is not None and record.system_id != identity.system_id:
        raise StateError(
            f"The state of this pipeline belongs to another database cluster (system identifier "
            f"{record.system_id}, this one is {identity.system_id})",
            hint="Give the pipeline a new name, or remove its state, to copy everything from this cluster",
        )
    reason = _gap(record, status)
    if record is not None and reason is None:
        reason = _went_back(source, identity, record)
    if record is not None and reason is None:
        slot = record.model_copy(update={"timeline": identity.timeline or record.timeline})
        if slot != record:
            store.save_slot(slot)
        return slot
    reason = reason or "the pipeline's state is new and knows nothing of what was copied before"
    _mark_all(tables, reason)
    if record is not None:
        reporter.notice(f"All tables are copied afresh: {reason}")
    slot = _usable_slot(source, status, identity)
    store.save_slot(slot)
    return slot


def begin_anew(source: Source, store: Store, tables: Tables, reporter: Reporter, reason: str) -> SlotRecord:
    """Another slot in the place of one that cannot be read any more; all tables are copied afresh."""
    _mark_all(tables, reason)
    reporter.notice(f"All tables are copied afresh: {reason}")
    source.drop_slot()
    slot = _usable_slot(source, None, source.identify())
    store.save_slot(slot)
    return slot


def _mark_all(tables: Tables, reason: str) -> None:
    """Before the slot is touched, so that a kill between the two cannot hide the gap."""
    for record in tables.in_state(TableState.INIT, TableState.READY, *COPYING_STATES):
        tables.recopy(record.table, reason, live=False, hint="The copy starts by itself")
    for record in tables.in_state(TableState.QUARANTINED):
        tables.give_up_held(record.table)


def agree_with_destination(destination: Destination, tables: Tables, slot: SlotRecord) -> None:
    """Copy afresh what the destination has lost, or has only in a state older than what was written."""
    positions, copies, holds = destination.positions(), destination.copies(), destination.holds()
    for table in holds.keys() - {record.table for record in tables.records.values() if record.held}:
        destination.release_table(table)
    for record in list(tables.records.values()):
        table = record.table
        if record.held:
            if holds.get(table, -1) < slot.written or (record.copy_id is not None and record.copy_id not in copies):
                tables.give_up_held(table)
            continue
        begun = record.state in COPYING_STATES
        if begun and record.copy_id not in copies and not _finished(destination, tables, record, slot.position):
            tables.recopy(table, "the destination does not know its copy any more", live=record.live)
        live = tables.records[table].live
        if live and (table not in positions or positions[table] < slot.written):
            lost = "is missing" if table not in positions else "is older than what was written to it"
            tables.recopy(table, f"its table at the destination {lost}", live=False)


def _usable_slot(source: Source, status: SlotStatus | None, identity: SourceIdentity) -> SlotRecord:
    if status is not None and status.lost:
        source.drop_slot()
        status = None
    position = status.confirmed if status is not None else source.create_slot()
    found = status or source.slot()
    if found is None:
        raise SlotError("The replication slot vanished right after it was created", hint="Run the command again")
    return SlotRecord(
        name=found.name,
        system_id=identity.system_id,
        created_at=position,
        position=position,
        timeline=identity.timeline,
    )


def _finished(destination: Destination, tables: Tables, record: TableRecord, position: Lsn) -> bool:
    """Whether the destination swapped a copy in just before the process died that was to record it."""
    if record.state is not TableState.COPIED:
        return False
    try:
        result = destination.finish_copy(tables.copy_target(record), position)
    except EtlError:
        return False
    tables.finish_copy(record.table, result.rows)
    return True


def _went_back(source: Source, identity: SourceIdentity, record: SlotRecord) -> str | None:
    """Why the source no longer has what it had when it was read last; None when it has."""
    if identity.in_recovery:  # a standby comes back to where it was
        return None
    lacked = "it was restored, or failed over to a standby that lacked the newest changes"
    if record.timeline is not None and identity.timeline not in (None, record.timeline):
        left = source.left_timeline(record.timeline)
        if left is None or not passed(left, record.position):
            return f"the source has taken another way before {record.position}, which it had come to: {lacked}"
    end = source.current_position()
    if not passed(end, record.position):
        return f"the source ends at {end}, before {record.position}, which it had come to: {lacked}"
    return None


def _gap(record: SlotRecord | None, status: SlotStatus | None) -> str | None:
    """Why the stream cannot go on where it stopped; None when it can."""
    if record is None:
        return None if status is None else f"the slot {status.name} existed before this pipeline's state"
    if status is None:
        return f"the replication slot {record.name} is gone, and with it the changes since {record.position}"
    if status.lost:
        return f"the server has removed WAL that the slot {record.name} needed (max_slot_wal_keep_size)"
    if status.confirmed > record.position:
        return (
            f"the replication slot {record.name} was moved or made anew by somebody else: it stands at "
            f"{status.confirmed}, the destination has everything up to {record.position} only"
        )
    return None
