"""Connections to the source: how each kind is set up, kept, lent and thrown away."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from typing import Any, LiteralString

import psycopg
from psycopg import pq, sql

from etl_dagster.postgres.config import PostgresConfig
from etl_dagster.postgres.errors import translating

# Values have to look the same whoever's role or database settings apply; a pinned search path keeps a function that
# somebody put into a schema of theirs from standing in for the system's, and makes every printed name qualified.
_SETTINGS = {
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "search_path": "pg_catalog",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "default_transaction_isolation": "read committed",
}
# The backend of a killed client would otherwise decode to the end of its window before it notices, holding the slot.
_CHECK_INTERVAL = "SET client_connection_check_interval = '1s'"
# A window is materialised by the server before it is streamed; this much of it stays out of temporary files.
_SLOT_WORK_MEM = "64MB"
_MAX_IDLE = 8
_CANCEL_SECONDS = 2.0

Connection = psycopg.Connection[tuple[Any, ...]]


class Purpose(Enum):
    """What a session is for; decides its time-outs."""

    ORDINARY = "ordinary"
    COPY = "copy"
    SLOT = "slot"
    FENCE = "fence"


def connect(config: PostgresConfig, purpose: Purpose = Purpose.ORDINARY) -> Connection:
    """Open a session in autocommit, set up for its purpose.

    Raises:
        SourceError: The server cannot be reached or refuses.
    """
    with translating(f"cannot connect to {config.where()}", config.secrets()):
        connection = psycopg.Connection.connect(**config.parameters(), autocommit=True, prepare_threshold=None)  # type: ignore[arg-type]
        try:
            _set_up(connection, config, purpose)
        except BaseException:
            connection.close()
            raise
    return connection


def run_replication_command(config: PostgresConfig, command: sql.Composed, doing: str) -> Sequence[tuple[Any, ...]]:
    """Run a command that only the replication protocol has, such as ``ALTER_REPLICATION_SLOT``; returns its rows.

    Raises:
        SourceError: The server cannot be reached or refuses.
    """
    parameters = config.parameters() | {"replication": "database"}
    with (
        translating(doing, config.secrets()),
        psycopg.Connection.connect(**parameters, autocommit=True) as connection,  # type: ignore[arg-type]
    ):
        # A cursor that sends no parameters: the protocol's commands know only the simple query.
        found = psycopg.ClientCursor(connection).execute(command)
        return found.fetchall() if found.description else ()


def _set_up(connection: Connection, config: PostgresConfig, purpose: Purpose) -> None:
    settings = _SETTINGS | _timeouts(config, purpose)
    if purpose is Purpose.SLOT:
        settings["work_mem"] = _SLOT_WORK_MEM
    connection.execute(
        sql.SQL("; ").join(
            sql.SQL("SET {} = {}").format(sql.Identifier(name), _value(name, value)) for name, value in settings.items()
        )
    )
    # Not every platform of the server can watch a socket, and those refuse the setting.
    with suppress(psycopg.errors.InvalidParameterValue):
        connection.execute(_CHECK_INTERVAL)


def _value(name: str, value: str) -> sql.Composable:
    # A list setting quoted as a whole would be one name with a comma in it.
    return sql.SQL(", ").join(map(sql.Literal, value.split(", "))) if name == "DateStyle" else sql.Literal(value)


def _timeouts(config: PostgresConfig, purpose: Purpose) -> dict[str, str]:
    if purpose is Purpose.ORDINARY:
        return {"statement_timeout": str(config.statement_timeout_ms), "lock_timeout": str(config.lock_timeout_ms)}
    return {"statement_timeout": "0", "lock_timeout": "0"}


class Sessions:
    """The connections of one source: one for ordinary queries, kept open, and a pool of busy ones by purpose."""

    def __init__(self, config: PostgresConfig) -> None:
        self.config = config
        self._lock = threading.RLock()
        self._ordinary: Connection | None = None
        self._idle: dict[Purpose, list[Connection]] = {purpose: [] for purpose in Purpose}

    @contextmanager
    def ordinary(self, doing: str, *, table: str | None = None) -> Iterator[Connection]:
        """The shared session, held alone; psycopg's errors become ours, told as ``doing``."""
        with self._lock:
            if self._ordinary is None or not is_usable(self._ordinary):
                self._ordinary = connect(self.config)
            with translating(doing, self.config.secrets(), table=table):
                yield self._ordinary

    @contextmanager
    def lend(self, purpose: Purpose, doing: str, *, table: str | None = None) -> Iterator[Connection]:
        """A session of one's own; kept for the next when it comes back idle, closed otherwise."""
        connection = self._take(purpose)
        try:
            with translating(doing, self.config.secrets(), table=table):
                yield connection
        except BaseException:
            abandon(connection)
            raise
        self._give_back(purpose, connection)

    def close(self) -> None:
        """Close all idle sessions."""
        with self._lock:
            idle = [connection for pool in self._idle.values() for connection in pool]
            for pool in self._idle.values():
                pool.clear()
            if self._ordinary is not None:
                idle.append(self._ordinary)
                self._ordinary = None
        for connection in idle:
            connection.close()

    def _take(self, purpose: Purpose) -> Connection:
        while True:
            with self._lock:
                found = self._idle[purpose].pop() if self._idle[purpose] else None
            if found is None:
                return connect(self.config, purpose)
            if is_usable(found):
                return found

    def _give_back(self, purpose: Purpose, connection: Connection) -> None:
        if is_usable(connection):
            with self._lock:
                if len(self._idle[purpose]) < _MAX_IDLE:
                    self._idle[purpose].append(connection)
                    return
        connection.close()


def is_usable(connection: Connection) -> bool:
    """Whether the session is open, idle, and not known to be cut off; costs no round trip."""
    if connection.closed or connection.pgconn.transaction_status != pq.TransactionStatus.IDLE:
        connection.close()
        return False
    return not is_cut_off(connection)


def is_cut_off(connection: Connection) -> bool:
    """Whether the server has closed an idle session; what it had to say is read on the way."""
    if connection.closed:
        return True
    try:
        # The server's last words come first, and only behind them the end of the stream.
        connection.pgconn.consume_input()
        connection.pgconn.consume_input()
    except psycopg.OperationalError:
        connection.close()
        return True
    return bool(connection.pgconn.status == pq.ConnStatus.BAD)


def abandon(connection: Connection) -> None:
    """Close a session in the middle of something and have the server stop it, slot and locks released."""
    if connection.closed:
        return
    if connection.pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
        with suppress(psycopg.Error):
            connection.cancel_safe(timeout=_CANCEL_SECONDS)
    connection.close()


def fetch_one(
    connection: Connection, query: LiteralString | bytes, parameters: Sequence[Any] | None = None
) -> tuple[Any, ...]:
    """The single row of a query that always has one; without parameters, ``%`` in it is a character like others."""
    row = connection.execute(query, parameters).fetchone()
    assert row is not None
    return row
