"""The connection to DuckDB; the only module that imports the SDK, and only when a database is opened."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import pyarrow as pa

from etl_dagster.destinations.duckdb.config import DuckDbConfig
from etl_dagster.destinations.duckdb.errors import is_out_of_memory, translate
from etl_dagster.destinations.duckdb.file import Turn, require_duckdb
from etl_dagster.errors import ErrorKind, EtlError

if TYPE_CHECKING:
    import duckdb

logger = logging.getLogger(__name__)

# Measured: what merging rows of text takes per column and thread (staging takes half), and all the rest.
_COLUMN_ROOM = 2 * 1024 * 1024
_ROOM = 64 * 1024 * 1024
# How far the memory limit is raised when it is not enough.
_MOST_GROWTH = 8
# A checkpoint rewrites what the last batches touched: often enough that opening after a kill replays within seconds.
CHECKPOINT_THRESHOLD = "256MB"
# Rows per batch of a result: a multiple of DuckDB's vectors, small enough for wide rows.
_BATCH_ROWS = 64 * 1024


class Session:
    """One cursor; used by one thread at a time."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection) -> None:
        self._cursor = cursor
        self._bound: dict[str, pa.Table | pa.RecordBatchReader] = {}
        self._reader: pa.RecordBatchReader | None = None

    def run(self, sql: str, parameters: Sequence[object] = ()) -> int:
        """Execute, and return the number of rows changed, if it is a statement that changes rows."""
        found = self.rows(sql, parameters)
        return int(found[0][0]) if found and isinstance(found[0][0], int) else 0

    def rows(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        # DuckDB finds Arrow data in local variables. To register it would make a view in the catalogue, which keeps the
        # data alive until the transaction ends, even after it was unregistered.
        etl_rows = self._bound.get("etl_rows")  # noqa: F841
        etl_keys = self._bound.get("etl_keys")  # noqa: F841
        etl_open = self._bound.get("etl_open")  # noqa: F841
        etl_tables = self._bound.get("etl_tables")  # noqa: F841
        return self._cursor.execute(sql, parameters).fetchall()

    def has_table(self, name: str) -> bool:
        """Whether a table of this SQL name exists; to list all tables takes 20 ms where there are thousands."""
        import duckdb

        try:
            self._cursor.execute(f"SELECT 1 FROM {name} LIMIT 0")
        except duckdb.CatalogException:
            return False
        return True

    def reader(self, sql: str) -> pa.RecordBatchReader:
        """Stream the result; the session can do nothing else until the reader is exhausted."""
        self._reader = self._cursor.execute(sql).to_arrow_reader(_BATCH_ROWS)
        return self._reader

    @contextmanager
    def bound(self, **sources: pa.Table | pa.RecordBatchReader) -> Iterator[None]:
        """Make Arrow data readable by name, one of those in `rows`."""
        self._bound = {**self._bound, **sources}
        try:
            yield
        finally:
            self._bound = {name: source for name, source in self._bound.items() if name not in sources}

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit at the end; roll back and raise on any error."""
        self._cursor.begin()
        try:
            yield
            self._cursor.commit()
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        import duckdb

        try:
            self._cursor.rollback()
        except duckdb.TransactionException:
            pass  # a failed commit has rolled back already

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._cursor.close()


def _need(columns: int, config: DuckDbConfig) -> int:
    return _ROOM + columns * config.threads * _COLUMN_ROOM


class Client:
    """One open database file; ``main`` is the session of the one thread that does all but stage chunks."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, config: DuckDbConfig, memory_bytes: int = 0) -> None:
        self._connection = connection
        self._config = config
        self._memory = config.memory_limit_bytes
        self._sessions: WeakSet[Session] = WeakSet()
        self._lock = threading.Lock()
        self._wide = threading.Lock()
        self._inserting = 0
        self.main = self.open_session()
        if memory_bytes > self._memory:
            self._limit(memory_bytes)

    @property
    def memory(self) -> int:
        """Its memory limit, which grows when it is not enough."""
        return self._memory

    @contextmanager
    def session(self) -> Iterator[Session]:
        session = self.open_session()
        try:
            yield session
        finally:
            session.close()

    def open_session(self) -> Session:
        with self._lock:
            session = Session(self._connection.cursor())
            self._sessions.add(session)
            return session

    @contextmanager
    def one_wide_at_a_time(self, columns: int) -> Iterator[None]:
        """Room to insert rows of so many columns; chunks of tables too wide for the limit wait for each other."""
        self.make_room(columns)
        with self._wide if _need(columns, self._config) > self._config.memory_limit_bytes else nullcontext():
            yield

    @contextmanager
    def single_threaded(self) -> Iterator[None]:
        """One thread for each of the inserts inside, which run beside each other on connections of their own.

        With more, every insert leaves a partly filled row group per thread, which the next checkpoint writes again.
        """
        self._count_insert(1)
        try:
            yield
        finally:
            self._count_insert(-1)

    def _count_insert(self, step: int) -> None:
        with self._lock:
            before, self._inserting = self._inserting, self._inserting + step
            if bool(before) != bool(self._inserting):
                self._connection.execute(f"SET threads = {1 if self._inserting else self._config.threads}")

    def make_room(self, columns: int) -> None:
        """Raise the memory limit when a table of so many columns cannot be written within it.

        DuckDB pins some blocks per column and thread, whatever its limit, and fails when it cannot.
        """
        need = _need(columns, self._config)
        with self._lock:
            if need <= self._memory:
                return
            logger.warning("A table of %d columns needs a memory limit of %d MB", columns, need >> 20)
            self._limit(need)

    def _limit(self, memory: int) -> None:
        self._memory = memory
        self._connection.cursor().execute(f"SET memory_limit = '{memory >> 10}KiB'")

    @contextmanager
    def widening(self) -> Iterator[None]:
        """Work that is worth another try when memory ran out: DuckDB cannot spill everything, and the limit is low."""
        limit = self._memory
        try:
            yield
        except EtlError as error:
            if is_out_of_memory(error.__cause__) and self._widen(limit):
                error.kind = ErrorKind.DESTINATION_UNAVAILABLE
            raise

    def _widen(self, limit: int) -> bool:
        """Double the limit that was not enough, unless another thread has; False when it is as high as it may be."""
        with self._lock:
            if self._memory > limit:
                return True
            if limit >= _MOST_GROWTH * self._config.memory_limit_bytes:
                return False
            logger.warning("DuckDB ran out of memory; its limit is %d MB now", 2 * limit >> 20)
            self._limit(2 * limit)
            return True

    def close(self) -> None:
        """Let go of the file; a result that somebody has not read to its end would keep it open."""
        for session in list(self._sessions):
            session.close()
        self._connection.close()


@contextmanager
def translated(doing: str, table: str | None = None) -> Iterator[None]:
    """Raise DuckDB's errors as ours."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        raise translate(error, doing, table) from error


class Feed:
    """Arrow batches from Python, for DuckDB to pull; keeps the error of their producer, which DuckDB would flatten."""

    def __init__(self, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
        self._batches = batches
        self.error: BaseException | None = None
        self.rows = 0
        self.reader = pa.RecordBatchReader.from_batches(schema, self._pull())

    def _pull(self) -> Iterator[pa.RecordBatch]:
        try:
            for batch in self._batches:
                self.rows += batch.num_rows
                yield batch
        except BaseException as error:
            self.error = error
            raise

    @contextmanager
    def own_errors(self) -> Iterator[None]:
        """Raise the producer's own error in place of DuckDB's account of it."""
        import duckdb

        try:
            yield
        except duckdb.Error:
            if self.error is not None:
                raise self.error from None
            raise


def connect(config: DuckDbConfig, memory_bytes: int = 0) -> Client:
    """Open the file, waiting while another process holds it.

    Args:
        memory_bytes: The memory limit that was found necessary when the file was open before.

    Raises:
        ConfigError: DuckDB is not installed.
        DestinationError: The file cannot be opened, or is held for longer than ``lock_timeout_seconds``.
    """
    require_duckdb()
    Path(config.path).parent.mkdir(parents=True, exist_ok=True)
    connection = Turn(config.path, config.lock_timeout_seconds).wait(lambda: _open(config))
    return Client(connection, config, memory_bytes)


def _open(config: DuckDbConfig) -> duckdb.DuckDBPyConnection:
    import duckdb

    connection = duckdb.connect(config.path, config=_settings(config))
    connection.execute("SET TimeZone = 'UTC'")
    # Trying a dictionary on every text costs a third of an insert; FSST makes files of nearly the same size.
    connection.execute(f"SET checkpoint_threshold = '{CHECKPOINT_THRESHOLD}'")
    connection.execute("SET disabled_compression_methods = 'dictionary'")
    return connection


def _settings(config: DuckDbConfig) -> dict[str, str | bool | int | float | list[str]]:
    return {
        "memory_limit": config.memory_limit,
        "threads": config.threads,
        "temp_directory": f"{config.path}.tmp",
        # Keeping the order of rows costs memory and serialises inserts; nothing here depends on it.
        "preserve_insertion_order": False,
        # What DuckDB frees goes back to the system at once, since the memory is shared with a decoder that needs it.
        "allocator_flush_threshold": "16MB",
        "allocator_bulk_deallocation_flush_threshold": "16MB",
        # Results carry UUID and JSON as the Arrow types they came as.
        "arrow_lossless_conversion": True,
    }
