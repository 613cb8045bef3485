"""Copies of tables while they change: barrier, chunks in parallel, keys read again.

The engine's main thread drives every copy through `Copier.poll`; only reading and staging of chunks run in worker
threads. Each chunk has a snapshot of its own and stands alone, so that any process can go on where another one died.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic

import pyarrow as pa

from etl_dagster.destinations.base import ChunkRows, Destination
from etl_dagster.errors import EtlError, TableError
from etl_dagster.model import CopyTarget, Lsn, TableId, TableSchema
from etl_dagster.replication.policy import Action, action_for
from etl_dagster.replication.ports import ChunkReader, Source, Writer
from etl_dagster.replication.report import CopyProgress, Reporter
from etl_dagster.retry import retry
from etl_dagster.settings import ReplicationSettings
from etl_dagster.store.base import ChunkRecord, Store

_NOTICE_AGAIN_SECONDS = 60.0


@dataclass(slots=True)
class CopyJob:
    """One running copy as this process sees it.

    Attributes:
        seen_lsn: Every change committed at or before it is in what the job reads from now on, once the barrier is
            passed.
        barrier: Virtual transactions that the job waits for; None once they have ended.
        reread: Keys to read again instead of chunks.
        began: When the job began.
        reading_since: When its first chunk was begun, which may wait for those of other tables; None before.
        skipped_bytes: Heap bytes of chunks that earlier processes staged.
    """

    target: CopyTarget
    seen_lsn: Lsn
    barrier: set[str] | None
    reread: pa.Table | None = None
    chunks: dict[str, ChunkRecord] = field(default_factory=dict)
    running: dict[str, Future[ChunkRecord]] = field(default_factory=dict)
    began: float = field(default_factory=monotonic)
    reading_since: float | None = None
    barrier_seconds: float = 0.0
    noticed_at: float = 0.0
    skipped_bytes: int = 0

    @property
    def table(self) -> TableSchema:
        """The table that is copied."""
        return self.target.table

    @property
    def done(self) -> bool:
        """Everything is staged."""
        return self.barrier is None and all(chunk.done for chunk in self.chunks.values())

    @property
    def replaced(self) -> Counter[str]:
        """Values that the policy replaced in the chunks; what is read again had been counted then."""
        chunks = self.chunks.values() if self.reread is None else ()
        return sum((Counter(chunk.replaced) for chunk in chunks), Counter())

    @property
    def staged_bytes(self) -> int:
        """Heap bytes of the chunks that are staged."""
        return sum(chunk.estimated_bytes for chunk in self.chunks.values() if chunk.done)

    @property
    def end_lsn(self) -> Lsn:
        """Highest position that any snapshot of the job saw."""
        return Lsn(max((chunk.seen_lsn or 0 for chunk in self.chunks.values()), default=self.seen_lsn))


class Copier:
    """Runs the copies of one pipeline.

    Args:
        wake: Called from worker threads when a chunk has ended.
    """

    def __init__(
        self,
        source: Source,
        destination: Destination,
        store: Store,
        settings: ReplicationSettings,
        reporter: Reporter,
        wake: Callable[[], None],
    ) -> None:
        self._source = source
        self._destination = destination
        self._store = store
        self._settings = settings
        self._reporter = reporter
        self._wake = wake
        self._workers = min(settings.copy_connections, destination.capabilities.concurrent_copies)
        self._pool: ThreadPoolExecutor | None = None
        self._stopping = threading.Event()
        self.jobs: dict[TableId, CopyJob] = {}

    def start(self, targets: Sequence[CopyTarget], seen_lsn: Lsn, reread: pa.Table | None = None) -> None:
        """Begin copies, or go on with ones that an earlier process began.

        The barrier holds whoever may write at this moment: their commits may be decoded before they are visible, and
        they may be older than the table's place in the publication.
        """
        if not targets:
            return
        writers = self._source.writers([target.table for target in targets])
        for target in targets:
            barrier = {writer.virtual_transaction for writer in writers if writer.table == target.table.id}
            if reread is not None and target.slices:
                barrier = set()  # what such a transaction changes is in the log before the rows are used
            self.jobs[target.table.id] = CopyJob(target, seen_lsn, barrier, reread)

    def drop(self, table: TableId) -> None:
        """Forget a copy; chunks that are being read now are waited for, so that nothing is staged afterwards."""
        job = self.jobs.pop(table, None)
        if job is None:
            return
        for future in job.running.values():
            if not future.cancel():
                future.exception()

    def poll(self) -> list[CopyJob | EtlError]:
        """Go on with every job; returns jobs that are done, and errors (with ``table``) that end one."""
        self._poll_barriers()
        ended: list[CopyJob | EtlError] = []
        for job in list(self.jobs.values()):
            error = self._collect(job)
            if error is not None:
                self.drop(job.table.id)
                ended.append(error)
            elif job.done:
                del self.jobs[job.table.id]
                ended.append(job)
        return ended

    def close(self) -> None:
        """Stop after the chunks that are being read now."""
        self._stopping.set()
        for table in list(self.jobs):
            self.drop(table)
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _poll_barriers(self) -> None:
        waiting = [job for job in self.jobs.values() if job.barrier]
        writers = self._source.writers([job.table for job in waiting]) if waiting else []
        present = {writer.virtual_transaction for writer in writers}
        for job in self.jobs.values():
            if job.barrier:
                job.barrier &= present
                job.barrier_seconds = monotonic() - job.began
            if job.barrier:
                self._notice_barrier(job, writers)
        if through := [job for job in self.jobs.values() if job.barrier == set()]:
            planned = [self._planned(job) for job in through]
            with self._store.together():
                for job, chunks in zip(through, planned, strict=True):
                    if job.reread is None:
                        self._store.add_chunks(job.table.id, job.target.copy_id, chunks)
            for job, chunks in zip(through, planned, strict=True):
                self._submit(job, chunks)
                job.barrier = None  # only now: a job without barrier and chunks would count as done

    def _notice_barrier(self, job: CopyJob, writers: Iterable[Writer]) -> None:
        now = monotonic()
        if now - max(job.began, job.noticed_at) < self._settings.barrier_notice_seconds:
            return
        job.noticed_at = now + _NOTICE_AGAIN_SECONDS
        names = sorted(
            told(writer)
            for writer in writers
            if writer.table == job.table.id and writer.virtual_transaction in (job.barrier or ())
        )
        self._reporter.notice(
            f"The copy of {job.table.id} waits for open transactions that write to it: {', '.join(names)}"
        )

    def _submit(self, job: CopyJob, planned: Sequence[ChunkRecord]) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="copy")
        job.chunks = {chunk.chunk_id: chunk for chunk in planned}
        job.skipped_bytes = job.staged_bytes
        for chunk in planned:
            if not chunk.done:
                future = self._pool.submit(self._copy_chunk, job, chunk)
                future.add_done_callback(lambda _: self._wake())
                job.running[chunk.chunk_id] = future
        self._report(job)

    def _planned(self, job: CopyJob) -> Sequence[ChunkRecord]:
        """The chunks of a copy, planned now unless an earlier process has."""
        if job.reread is not None:
            return [ChunkRecord(chunk_id=f"reread-{job.seen_lsn:X}", relation=0)]
        if known := self._store.chunks(job.target.copy_id):
            return known
        wanted = self._destination.capabilities
        size = max(self._settings.chunk_bytes, wanted.chunk_bytes)
        plans = self._source.plan_chunks(job.table, size, job.target.slices, wanted.most_chunks)
        return [ChunkRecord.of(f"{number:06d}", plan) for number, plan in enumerate(plans)]

    def _copy_chunk(self, job: CopyJob, chunk: ChunkRecord) -> ChunkRecord:
        """Runs in a worker thread."""
        job.reading_since = job.reading_since or monotonic()
        return retry(
            lambda: self._try_chunk(job, chunk),
            what=f"chunk {chunk.chunk_id} of {job.table.id}",
            when=lambda error: (
                isinstance(error, EtlError) and action_for(error) is Action.RETRY and not self._stopping.is_set()
            ),
        )

    def _try_chunk(self, job: CopyJob, chunk: ChunkRecord) -> ChunkRecord:
        if job.reread is not None:
            reading = self._source.read_keys(job.table, job.reread)
        else:
            reading = self._source.read_chunk(job.table, chunk.plan(job.target.slices))
        with reading as reader:
            batches = _unchanged(reader, chunk, job.table.id)
            rows = self._destination.write_table_rows(
                job.target,
                ChunkRows(
                    chunk.chunk_id,
                    job.seen_lsn,
                    reader.taken_at,
                    batches,
                    reread=job.reread is not None,
                    snapshot=reader.snapshot,
                ),
            )
            update = {"rows": rows, "seen_lsn": reader.seen_lsn, "replaced": dict(reader.replaced)}
            finished = chunk.model_copy(update=update)
        if job.reread is None:
            self._store.finish_chunk(job.target.copy_id, finished)
        return finished

    def _collect(self, job: CopyJob) -> EtlError | None:
        progressed = False
        for chunk_id, future in list(job.running.items()):
            if not future.done():
                continue
            del job.running[chunk_id]
            error = future.exception()
            if isinstance(error, EtlError):
                error.table = error.table or str(job.table.id)
                return error
            job.chunks[chunk_id] = future.result()
            progressed = True
        if progressed:
            self._report(job)
        return None

    def _report(self, job: CopyJob) -> None:
        chunks = job.chunks.values()
        self._reporter.copy_progressed(
            CopyProgress(
                table=job.table.id,
                chunks_done=sum(chunk.done for chunk in chunks),
                chunks_total=len(chunks),
                rows_done=sum(chunk.rows or 0 for chunk in chunks),
                rows_total=sum(chunk.rows if chunk.rows is not None else chunk.estimated_rows for chunk in chunks),
                bytes_done=job.staged_bytes,
                bytes_total=sum(chunk.estimated_bytes for chunk in chunks),
                seconds=0.0 if job.reading_since is None else monotonic() - job.reading_since,
                skipped_bytes=job.skipped_bytes,
                barrier_seconds=job.barrier_seconds,
                slices=tuple(each.name for each in job.target.slices),
            )
        )


def told(writer: Writer) -> str:
    """A transaction as people find it at the source."""
    age = "" if writer.age is None else f"open for {writer.age:.0f} s"
    if writer.pid is None:
        about = ", ".join(filter(None, [writer.application or "prepared", age]))
        return f"transaction {writer.virtual_transaction} ({about})"
    about = ", ".join(filter(None, [writer.application or "no application name", writer.state, age]))
    return f"pid {writer.pid} ({about})"


class RelationRewritten(TableError):
    """A table is another one than when its copy began: its rows were moved between blocks, or its columns renamed."""


def _unchanged(reader: ChunkReader, chunk: ChunkRecord, table: TableId) -> Iterable[pa.RecordBatch]:
    """The rows of a chunk; fails at their end, before they are committed, when something else was read than planned."""
    yield from reader
    if not reader.has_its_names:
        raise RelationRewritten(
            f"{table} had its columns renamed while it was copied",
            hint="The copy starts over by itself",
            table=str(table),
        )
    if chunk.filenode and reader.filenode != chunk.filenode:
        raise RelationRewritten(
            f"{table} was rewritten (VACUUM FULL, CLUSTER, TRUNCATE or ALTER TABLE) while it was copied",
            hint="The copy starts over by itself",
            table=str(table),
        )
