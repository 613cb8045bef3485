"""The store in a Postgres database, for pipelines that run on more than one machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import RLock
from typing import Any, TypeVar, cast

import psycopg
from psycopg import conninfo, sql

from etl_dagster.errors import ErrorKind, InternalError, StateError
from etl_dagster.retry import Backoff, retry
from etl_dagster.store.config import PostgresStoreConfig
from etl_dagster.store.sql import SqlStore, Transaction, migrate

T = TypeVar("T")

# A fail-over of a managed server takes about this long; longer is for the operator to see.
RECONNECT = Backoff(first_seconds=0.2, max_seconds=5.0, max_attempts=20, max_total_seconds=60.0)
# Fill what the DSN leaves open. A connection whose peer has vanished is noticed within a minute.
CONNECTION_DEFAULTS = {
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
}
# Writes take milliseconds; one that waits this long waits for a process that hangs.
SESSION_SETTINGS = """SELECT set_config('lock_timeout', '30s', false), set_config('statement_timeout', '60s', false),
    set_config('synchronous_commit', CASE setting WHEN 'off' THEN 'on' ELSE setting END, false)
    FROM current_setting('synchronous_commit') setting"""

_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended(?, 0))"
_SCHEMA_EXISTS = "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = ?)"
_CREATE_SCHEMA = "CREATE SCHEMA {schema}"

_GRANT = "Grant the store's user CREATE on the database, or make it the owner of the schema `store.schema`"
# By the beginning of the SQLSTATE.
_HINTS = {
    "08": "See that the server runs and that `store.dsn` names its host and port",
    "28": "Check user and password in `store.dsn`",
    "3D000": "Create the database that `store.dsn` names",
    "42501": _GRANT,
    "25006": "The server is read-only: point `store.dsn` at the primary",
    "53": "The server is out of connections, memory or disk: make room and start again",
    "55P03": "Another session holds the store's lock: look for it in pg_stat_activity and end it",
    "57P": "The server is stopping or the session was ended: start again once it is up",
}
_NO_CONNECTION = "08000"
_GONE = ("08", "57P")


class PostgresStore(SqlStore):
    """The contract in one schema. One connection, which threads take turns with; opened again when it breaks."""

    def __init__(self, config: PostgresStoreConfig, pipeline: str) -> None:
        super().__init__(pipeline)
        self._config = config
        self._where = f"{config.schema_} in PostgreSQL"
        self._lock = RLock()
        self._connection: psycopg.Connection[Any] | None = None
        self._opened = False
        self._joint: Transaction | None = None

    def open(self) -> None:
        with self._lock, self._translated():
            if not self._opened:
                self._attempt(self._prepare)
                self._opened = True

    def close(self) -> None:
        with self._lock:
            self._disconnect()
            self._opened = False

    def _read(self, work: Callable[[Transaction], T]) -> T:
        return self._transact(work)

    def _write(self, work: Callable[[Transaction], T]) -> T:
        def alone(on: Transaction) -> T:
            on.run(_LOCK, f"{self._config.schema_}/{self._pipeline}")
            return work(on)

        return self._transact(alone)

    @contextmanager
    def together(self) -> Iterator[None]:
        with self._lock, self._translated():
            self._require_open()
            with self._transaction() as joint:
                joint.run(_LOCK, f"{self._config.schema_}/{self._pipeline}")
                self._joint = joint
                try:
                    yield
                finally:
                    self._joint = None

    def _transact(self, work: Callable[[Transaction], T]) -> T:
        with self._lock, self._translated():
            self._require_open()
            if self._joint is not None:
                return work(self._joint)
            what = f"State store {self._where}"
            return retry(lambda: self._attempt(work), what=what, when=_is_gone, backoff=RECONNECT)

    def _require_open(self) -> None:
        if not self._opened:
            raise InternalError(f"The state store {self._where} is not open")

    def _attempt(self, work: Callable[[Transaction], T]) -> T:
        with self._transaction() as transaction:
            return work(transaction)

    @contextmanager
    def _transaction(self) -> Iterator[Transaction]:
        connection = self._connected()
        with connection.transaction(), connection.cursor() as cursor:
            yield _PostgresTransaction(cursor, self._config.schema_)

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is not None and self._connection.closed:
            self._disconnect()
        if self._connection is None:
            self._connection = _connect(self._config.dsn.get_secret_value(), self._pipeline)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _prepare(self, on: Transaction) -> None:
        on.run(_LOCK, self._config.schema_)
        ((exists,),) = on.run(_SCHEMA_EXISTS, self._config.schema_)
        if not exists:
            on.run(_CREATE_SCHEMA)
        migrate(on, self._where)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            kind = ErrorKind.STATE_UNAVAILABLE if _is_gone(error) else ErrorKind.STATE
            raise StateError(
                f"The state store {self._where} failed: {_text(error)}", hint=_hint(_state(error)), kind=kind
            ) from error
        finally:
            if not self._opened:
                self._disconnect()


class _PostgresTransaction:
    def __init__(self, cursor: psycopg.Cursor[Any], schema: str) -> None:
        self._cursor = cursor
        self._schema = sql.Identifier(schema)

    def run(self, statement: str, *parameters: object) -> Sequence[tuple[Any, ...]]:
        self._cursor.execute(self._composed(statement), parameters)
        return self._cursor.fetchall() if self._cursor.description else []

    def run_many(self, statement: str, rows: Iterable[Sequence[object]]) -> None:
        self._cursor.executemany(self._composed(statement), rows)

    def _composed(self, statement: str) -> sql.Composed:
        template = sql.SQL(cast("Any", statement.replace("?", "%s")))
        return template.format(s=sql.SQL("{}.").format(self._schema), schema=self._schema)


def _connect(dsn: str, pipeline: str) -> psycopg.Connection[Any]:
    parameters = CONNECTION_DEFAULTS | {"application_name": f"etl-dagster store {pipeline}"} | _parsed(dsn)
    # Prepared statements and poolers do not go together, and these statements are cheap to plan.
    connection = psycopg.connect("", autocommit=True, prepare_threshold=None, **cast("Any", parameters))
    connection.execute(SESSION_SETTINGS)
    return connection


def _parsed(dsn: str) -> dict[str, Any]:
    """The DSN's parts; the driver's own words about a wrong one repeat the password."""
    try:
        parts = conninfo.conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        parts = {"host": "@"}
    if "@" in str(parts.get("host", "")):
        raise StateError(
            "`store.dsn` is not a connection string",
            hint="Write it like postgresql://user:password@host:5432/database, special characters as %40",
            kind=ErrorKind.CONFIG,
        )
    return dict(parts)


def _state(error: psycopg.Error) -> str:
    return error.sqlstate or (_NO_CONNECTION if isinstance(error, psycopg.OperationalError) else "")


def _is_gone(error: Exception) -> bool:
    return isinstance(error, psycopg.Error) and _state(error).startswith(_GONE)


def _hint(state: str) -> str:
    return next((hint for prefix, hint in _HINTS.items() if state.startswith(prefix)), "")


def _text(error: psycopg.Error) -> str:
    """The server's first line; what follows may quote statements and rows."""
    return str(error.diag.message_primary or error).strip().partition("\n")[0]
