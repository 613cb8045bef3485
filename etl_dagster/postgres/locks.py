"""Locks: who writes to a table (a copy's barrier), and who runs the pipeline (its fence)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from time import monotonic, sleep

import psycopg

from etl_dagster.errors import ErrorKind, StateError
from etl_dagster.model import TableId, TableSchema
from etl_dagster.postgres.sessions import Connection, fetch_one

# Held by those who write rows, and by DDL that rewrites them. Not ShareUpdateExclusiveLock: that is vacuum.
WRITE_MODES = ("RowExclusiveLock", "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock")

# A prepared transaction keeps its locks, and the virtual transaction that it had, without a process; the lock on its
# own transaction id leads to its name.
_WRITERS = """
WITH wanted AS (
    SELECT root, coalesce(part.relid, root) AS relation
    FROM unnest(%(tables)s::oid[]) root LEFT JOIN LATERAL pg_partition_tree(root) part ON true
)
SELECT DISTINCT l.virtualtransaction, w.root, l.pid,
       coalesce(a.application_name, 'prepared ' || quote_literal(x.gid), ''),
       coalesce(a.xact_start, x.prepared),
       -- Hidden from roles without pg_read_all_stats, which is not the same as just now.
       CASE WHEN coalesce(a.xact_start, x.prepared) IS NOT NULL
            THEN greatest(0, extract(epoch FROM now() - coalesce(a.xact_start, x.prepared))::float8) END,
       coalesce(a.state, CASE WHEN x.gid IS NOT NULL THEN 'prepared' END, '')
FROM pg_locks l JOIN wanted w ON w.relation = l.relation
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
LEFT JOIN pg_locks own ON l.pid IS NULL AND own.pid IS NULL AND own.locktype = 'transactionid'
  AND own.virtualtransaction = l.virtualtransaction
LEFT JOIN pg_prepared_xacts x ON x.transaction = own.transactionid
WHERE l.locktype = 'relation' AND l.granted AND l.mode = ANY(%(modes)s)
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.pid IS DISTINCT FROM pg_backend_pid()
ORDER BY 5
"""

# A standby does not see its primary's locks, but knows which transactions run there: any of them may be a writer. Its
# snapshots do not list them, so each transaction id between their limits is asked for.
_RUNNING = """
SELECT 'primary/' || xid
FROM (SELECT pg_current_snapshot() AS now WHERE pg_is_in_recovery()) snapshot
CROSS JOIN generate_series(pg_snapshot_xmin(now)::text::bigint, pg_snapshot_xmax(now)::text::bigint - 1) xid
WHERE pg_xact_status(xid::text::xid8) = 'in progress' ORDER BY xid
"""

_FENCE_CLASS = zlib.crc32(b"etl-dagster") - (1 << 31)
_HAND_OVER_SECONDS = 5.0
_POLL_SECONDS = 0.01
_HOLDER = """
SELECT l.pid, a.application_name FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
  AND l.classid::bigint = %s::bigint & 4294967295 AND l.objid::bigint = %s::bigint & 4294967295
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@dataclass(frozen=True, slots=True)
class Writer:
    """A transaction that holds a write lock on a table.

    Attributes:
        pid: None for a prepared transaction, and on a standby.
        since: When it began; None where that is hidden from our role.
        age: Seconds since then, by the server's clock.
        state: As ``pg_stat_activity`` says it ("active", "idle in transaction"), or "prepared"; empty when unknown.
    """

    virtual_transaction: str
    table: TableId
    pid: int | None
    application: str
    since: datetime | None
    age: float | None = None
    state: str = ""


def writers(connection: Connection, tables: Sequence[TableSchema]) -> list[Writer]:
    """Who holds a write lock on any of the tables or their partitions, oldest first."""
    names = {table.oid: table.id for table in tables}
    running = [str(row[0]) for row in connection.execute(_RUNNING)]
    if running:
        return [Writer(xid, table, None, "on the primary", None) for xid in running for table in names.values()]
    rows = connection.execute(_WRITERS, {"tables": list(names), "modes": list(WRITE_MODES)}).fetchall()
    return [
        Writer(str(vxid), names[root], pid, str(application), at, age, str(state))
        for vxid, root, pid, application, at, age, state in rows
    ]


def take_fence(connection: Connection, name: str) -> None:
    """Take the session's advisory lock of the slot's name; it ends with the session.

    Raises:
        StateError: Another session holds it.
    """
    deadline = monotonic() + _HAND_OVER_SECONDS
    while not _try_fence(connection, name):
        holder = connection.execute(_HOLDER, [_FENCE_CLASS, _key(name)]).fetchone()
        if holder is not None or monotonic() >= deadline:
            raise StateError(
                f"another process runs the pipeline of slot {name}: {_told(holder)}",
                kind=ErrorKind.PIPELINE_BUSY,
                hint="Wait for it to end, or stop it",
            )
        sleep(_POLL_SECONDS)  # it ended between the two questions


def _try_fence(connection: Connection, name: str) -> bool:
    (taken,) = fetch_one(connection, "SELECT pg_try_advisory_lock(%s::int, %s::int)", [_FENCE_CLASS, _key(name)])
    return bool(taken)


def release_fence(connection: Connection, name: str) -> None:
    """Let go of the lock at once: the end of a session reaches the server only after a moment."""
    with suppress(psycopg.Error):
        connection.execute("SELECT pg_advisory_unlock(%s::int, %s::int)", [_FENCE_CLASS, _key(name)])


def is_fence_held(connection: Connection, name: str) -> bool:
    """Whether any session holds the lock that `take_fence` takes."""
    return connection.execute(_HOLDER, [_FENCE_CLASS, _key(name)]).fetchone() is not None


def fence_lost(name: str) -> StateError:
    """The error of a pipeline whose lock ended with its connection."""
    return StateError(
        f"the connection that held the lock of the pipeline of slot {name} is gone; another process may run it now",
        kind=ErrorKind.PIPELINE_BUSY,
        hint="Start again; nothing is lost",
    )


def _key(name: str) -> int:
    return zlib.crc32(name.encode()) - (1 << 31)


def _told(holder: tuple[object, ...] | None) -> str:
    if holder is None:
        return "it has just ended"
    return f"server process {holder[0]} of {holder[1] or 'an unnamed application'}"
