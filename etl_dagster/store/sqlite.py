"""The embedded store: one SQLite file, which several pipelines and processes may share."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar

from etl_dagster.errors import InternalError, StateError
from etl_dagster.retry import Backoff, retry
from etl_dagster.store.sql import SqlStore, Transaction, migrate

T = TypeVar("T")

# Writes take milliseconds; one that waits this long waits for a process that hangs.
BUSY_SECONDS = 30.0

_FOREIGN_TABLES = """SELECT count(*) FROM sqlite_master WHERE type = 'table' AND NOT EXISTS (
    SELECT 1 FROM sqlite_master WHERE name = 'store_version')"""

_UNUSABLE_PATH = "Point `store.path` at a file in a folder that exists and that this user may write to"
_HINTS = {
    sqlite3.SQLITE_CANTOPEN: _UNUSABLE_PATH,
    sqlite3.SQLITE_READONLY: _UNUSABLE_PATH,
    sqlite3.SQLITE_PERM: _UNUSABLE_PATH,
    sqlite3.SQLITE_NOTADB: "The file is something else: point `store.path` at a new file",
    sqlite3.SQLITE_CORRUPT: "The file is damaged: restore it from a backup, or remove it and re-sync all tables",
    sqlite3.SQLITE_BUSY: "Another process holds the file locked: find it with `fuser` or `lsof` and end it",
    sqlite3.SQLITE_FULL: "The disk is full: make room and start again",
    sqlite3.SQLITE_IOERR: "The disk or file system failed: see the system's log",
}
_PRIMARY_CODE = 0xFF
_OPENING = Backoff(first_seconds=0.01, max_seconds=0.2, max_attempts=10_000, max_total_seconds=BUSY_SECONDS)


class SqliteStore(SqlStore):
    """The contract in a file. One connection, which threads take turns with."""

    def __init__(self, path: Path, pipeline: str) -> None:
        super().__init__(pipeline)
        self._path = path
        self._lock = RLock()
        self._connection: sqlite3.Connection | None = None
        self._joint: Transaction | None = None

    def open(self) -> None:
        with self._lock, _translated(self._path):
            if self._connection is None:
                self._make_folder()
                self._connection = _connect(self._path)
                try:
                    self._write(self._prepare)
                except BaseException:
                    self.close()
                    raise

    def close(self) -> None:
        with self._lock, _translated(self._path):
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _read(self, work: Callable[[Transaction], T]) -> T:
        return self._transact("BEGIN", work)

    def _write(self, work: Callable[[Transaction], T]) -> T:
        # The write lock is taken first: one taken after a read could not be waited for.
        return self._transact("BEGIN IMMEDIATE", work)

    @contextmanager
    def together(self) -> Iterator[None]:
        with self._lock, self._transaction("BEGIN IMMEDIATE") as joint:
            self._joint = joint
            try:
                yield
            finally:
                self._joint = None

    def _transact(self, begin: str, work: Callable[[Transaction], T]) -> T:
        with self._lock:
            if self._joint is not None:
                with _translated(self._path):
                    return work(self._joint)
            with self._transaction(begin) as transaction:
                return work(transaction)

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[Transaction]:
        with _translated(self._path):
            if self._connection is None:
                raise InternalError(f"The state store {self._path} is not open")
            with self._connection:
                self._connection.execute(begin)
                yield _SqliteTransaction(self._connection)

    def _make_folder(self) -> None:
        # One level only, so that a mistyped path is an error and not a new tree of folders.
        try:
            self._path.parent.mkdir(exist_ok=True)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise StateError(
                f"The folder {self._path.parent} of the state store cannot be made: {reason}", hint=_UNUSABLE_PATH
            ) from error

    def _prepare(self, transaction: Transaction) -> None:
        ((foreign,),) = transaction.run(_FOREIGN_TABLES)
        if foreign:
            raise StateError(
                f"{self._path} is another application's SQLite database", hint="Point `store.path` at a new file"
            )
        migrate(transaction, str(self._path))


class _SqliteTransaction:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def run(self, statement: str, *parameters: object) -> Sequence[tuple[Any, ...]]:
        return self._connection.execute(statement.format(s=""), parameters).fetchall()

    def run_many(self, statement: str, rows: Iterable[Sequence[object]]) -> None:
        self._connection.executemany(statement.format(s=""), rows)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        # While another process makes the file, this one fails at once, whatever the time-out.
        retry(
            lambda: connection.execute("PRAGMA journal_mode = WAL"),
            what=f"opening {path.name}",
            when=_is_busy,
            backoff=_OPENING,
        )
        # In WAL mode only FULL syncs at each commit.
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def _is_busy(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & _PRIMARY_CODE == sqlite3.SQLITE_BUSY


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & _PRIMARY_CODE
        raise StateError(f"The state store {path} failed: {error}", hint=_HINTS.get(code, "")) from error
