"""What the engine remembers between processes, and the contract of the stores that keep it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum

from pydantic import ConfigDict, Field

from etl_dagster.model import ZERO_LSN, ChunkPlan, FrozenModel, Lsn, RangePlan, Slice, TableId, TableSchema
from etl_dagster.model.slices import merge_slices

# Enough to see what happened to a table; a table that goes in circles must not fill the store.
HISTORY_LENGTH = 100


def _now() -> datetime:
    return datetime.now(UTC)


class TableState(StrEnum):
    """Where a table stands in its life; the moves between states are in `etl_dagster.replication.lifecycle`."""

    INIT = "init"  # waits for its copy
    COPYING = "copying"  # its changes go to a change log, chunks are being copied
    COPIED = "copied"  # all chunks are staged; waits for the stream to pass them
    READY = "ready"  # live
    QUARANTINED = "quarantined"  # taken out; the others go on
    REMOVED = "removed"  # no longer in the publication; its destination table stays


class TableRecord(FrozenModel):
    """State of one table of one pipeline.

    Attributes:
        copy_id: The running copy, while there is one.
        copy_start: P0 of the running copy: the position from which its change log is complete.
        copy_end: The highest position that any chunk's snapshot saw.
        live: A live table exists at the destination and goes on being fed.
        reason: Why the table is in this state, for people; never row values.
        hint: What to do next.
        rows: Rows the last finished copy of the whole table brought.
        slice_rows: Rows the last finished copy brought, when it was one of slices.
        held: Quarantined, with its changes kept at the destination, so that it can be resumed where it stopped: the
            live table, when ``live``, and the copy, when there is one, are complete up to there.
        resume: Asked for by the operator: go on from where it was quarantined.
        slices: The copy that waits or runs is of these slices only; empty: of the whole table.
        replaced: Values that the policy replaced since the last copy began, by column.
        files: OID, file and attachment of each heap of the table (its own, or those of its partitions), as they were
            while the table was last known to be as its schema says; None when never looked at.
    """

    table: TableId
    state: TableState = TableState.INIT
    copy_id: str | None = None
    copy_start: Lsn | None = None
    copy_end: Lsn | None = None
    live: bool = False
    reason: str = ""
    hint: str = ""
    rows: int | None = None
    slice_rows: int | None = None
    held: bool = False
    resume: bool = False
    slices: tuple[Slice, ...] = ()
    replaced: dict[str, int] = Field(default_factory=dict)
    files: tuple[tuple[int, int, str], ...] | None = None
    updated_at: datetime = Field(default_factory=_now)

    @property
    def copied_rows(self) -> int | None:
        """Rows the last finished copy brought, whole or of slices."""
        return self.rows if self.slice_rows is None else self.slice_rows


class ChunkRecord(FrozenModel):
    """One chunk of a running copy.

    Attributes:
        first_block: First heap block of the range.
        last_block: First block after the range; None means open-ended.
        relation: OID of the relation that is read: the table or one of its partitions.
        filenode: File of the relation when the chunk was planned; a rewrite (VACUUM FULL, CLUSTER) moves every row.
        estimated_rows: Rows that the planner expects.
        estimated_bytes: Bytes of the heap that it expects.
        slices: Only the rows of the range that lie in one of these are read; empty: all.
        of_copied: Or only those that lie in any of the slices of the copy, which may be thousands.
        more: OIDs of further relations that are read as a whole with it.
        rows: Rows staged; None until the chunk is done.
        seen_lsn: WAL insert position after the chunk's snapshot; None until the chunk is done.
        replaced: Values that the policy replaced, by column.
    """

    chunk_id: str
    relation: int
    filenode: int = 0
    estimated_rows: int = 0
    estimated_bytes: int = 0
    slices: tuple[Slice, ...] = ()
    first_block: int = 0
    last_block: int | None = None
    of_copied: bool = False
    more: tuple[int, ...] = ()
    rows: int | None = None
    seen_lsn: Lsn | None = None
    replaced: dict[str, int] = Field(default_factory=dict)

    @property
    def done(self) -> bool:
        """The chunk is staged and never has to be read again."""
        return self.rows is not None

    @classmethod
    def of(cls, chunk_id: str, plan: ChunkPlan) -> ChunkRecord:
        """The record of a chunk that is planned."""
        return cls(
            chunk_id=chunk_id,
            relation=plan.relation,
            filenode=plan.filenode,
            first_block=plan.first_block,
            last_block=plan.last_block,
            estimated_rows=plan.rows,
            estimated_bytes=plan.bytes,
            slices=plan.slices if len(plan.slices) == 1 else (),
            of_copied=len(plan.slices) > 1,
            more=plan.more,
        )

    def plan(self, copied: Sequence[Slice]) -> ChunkPlan:
        """What was planned, given the slices of the copy."""
        return ChunkPlan(
            relation=self.relation,
            filenode=self.filenode,
            first_block=self.first_block,
            last_block=self.last_block,
            rows=self.estimated_rows,
            bytes=self.estimated_bytes,
            slices=tuple(merge_slices(copied)) if self.of_copied else self.slices,
            more=self.more,
        )


class RequestKind(StrEnum):
    """What an operator can ask for."""

    RESYNC = "resync"  # a fresh copy of the table
    SLICES = "slices"  # some slices of a live table again
    RESUME = "resume"  # a quarantined table goes on where it was taken out


class Request(FrozenModel):
    """Something asked for by any process, which the one that runs the pipeline takes up.

    Attributes:
        request_id: Unique.
        slices: The slices to copy.
    """

    request_id: str
    table: TableId
    kind: RequestKind
    slices: tuple[Slice, ...] = ()
    asked_at: datetime = Field(default_factory=_now)


class SlotRecord(FrozenModel):
    """What the pipeline knows of its replication slot.

    Attributes:
        system_id: ``pg_control_system().system_identifier`` of the source: another number means another cluster.
        created_at: The slot's position when it was created.
        position: Everything committed before it is in the destination; the slot never runs ahead of it.
        written: Position of the last batch that wrote to the destination: no live table's watermark may be below it.
        newest_commit: Commit time of the newest transaction applied.
        batch_at: When the last batch that held anything was begun.
        usage: What the destination has billed for batches and copies so far, by name with the unit at its end.
        timeline: The timeline that the source was on; None when it was a standby.
    """

    name: str
    system_id: str
    created_at: Lsn
    position: Lsn
    written: Lsn = ZERO_LSN
    newest_commit: datetime | None = None
    timeline: int | None = None
    batch_at: datetime | None = None
    usage: dict[str, int] = Field(default_factory=dict)
    updated_at: datetime = Field(default_factory=_now)


class TableMapping(FrozenModel):
    """Where a source table lands at the destination, fixed at its first copy."""

    table: TableId
    destination_table: str


class SchemaVersion(FrozenModel):
    """One version of a table's schema, valid from ``lsn`` on."""

    model_config = ConfigDict(serialize_by_alias=True)

    version: int
    lsn: Lsn
    schema_: TableSchema = Field(alias="schema")
    recorded_at: datetime = Field(default_factory=_now)


class StateStore(ABC):
    """Table states with history, requests, the slot's position, the chunk ledger and the destination table names.

    One store object belongs to one pipeline; several pipelines may share one database. Every method is one
    transaction, durable when it returns, and may be called from any thread. Errors are `StateError`.
    """

    def open(self) -> None:
        """Connect, and create or migrate what the store needs; safe to call twice."""

    def close(self) -> None:
        """Release everything; safe to call twice."""

    @contextmanager
    def together(self) -> Iterator[None]:
        """What this thread writes inside becomes durable at once, at the end; other threads wait until then.

        An error undoes all of it. Not to be nested.
        """
        yield

    @abstractmethod
    def slot(self) -> SlotRecord | None:
        """The slot's record; None before the slot was created."""

    @abstractmethod
    def save_slot(self, record: SlotRecord | None) -> None:
        """Replace the slot's record, or forget it."""

    @abstractmethod
    def tables(self) -> dict[TableId, TableRecord]:
        """Current record of every table ever seen by this pipeline."""

    @abstractmethod
    def save_table(self, record: TableRecord) -> None:
        """Make it the current record of its table; the former one goes to the history.

        A record equal to the current one changes nothing. Copies of the table other than the record's ``copy_id`` lose
        their chunks.
        """

    @abstractmethod
    def history(self, table: TableId) -> Sequence[TableRecord]:
        """All records of the table, oldest first, the current one last; bounded to `HISTORY_LENGTH`."""

    @abstractmethod
    def chunks(self, copy_id: str) -> Sequence[ChunkRecord]:
        """The chunk ledger of a copy, in the order in which it was planned."""

    @abstractmethod
    def add_chunks(self, table: TableId, copy_id: str, chunks: Sequence[ChunkRecord]) -> None:
        """Plan chunks, after those of earlier calls; those that are planned already stay as they are."""

    @abstractmethod
    def finish_chunk(self, copy_id: str, chunk: ChunkRecord) -> None:
        """Record that a planned chunk is done. Finished again, it keeps the higher ``seen_lsn``.

        Raises:
            StateError: The chunk is not planned, for instance because its copy was started over.
        """

    @abstractmethod
    def requests(self) -> Sequence[Request]:
        """What was asked for and has not been taken up, oldest first."""

    @abstractmethod
    def add_request(self, request: Request) -> None:
        """Ask for something; the same ``request_id`` again changes nothing."""

    @abstractmethod
    def remove_requests(self, request_ids: Sequence[str]) -> None:
        """They have been taken up; ones that are gone already do not matter."""

    @abstractmethod
    def range_plan(self, table: TableId) -> RangePlan | None:
        """Where the ranges of the table begin; None while they are not planned."""

    @abstractmethod
    def save_range_plan(self, table: TableId, plan: RangePlan) -> None:
        """Replace it."""

    @abstractmethod
    def mapping(self, table: TableId) -> TableMapping | None:
        """Where the table lands."""

    @abstractmethod
    def save_mapping(self, mapping: TableMapping) -> None:
        """Remember where the table lands."""


class SchemaStore(ABC):
    """Versioned schemas of the tables; the same rules as for `StateStore`."""

    @abstractmethod
    def schema(self, table: TableId) -> SchemaVersion | None:
        """The newest version."""

    @abstractmethod
    def schemas(self) -> dict[TableId, SchemaVersion]:
        """The newest version of every table."""

    @abstractmethod
    def save_schema(self, schema: TableSchema, lsn: Lsn) -> SchemaVersion:
        """Add a version unless the newest one is equal; returns the newest."""

    @abstractmethod
    def versions(self, table: TableId) -> Sequence[SchemaVersion]:
        """All versions, oldest first."""


class Store(StateStore, SchemaStore):
    """Both stores in one database, as every implementation here provides them."""
