"""The logical replication slot: created, looked at, moved, dropped."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import psycopg
from psycopg import sql

from etl_dagster.errors import ConfigError, ErrorKind, SlotError
from etl_dagster.model import Lsn
from etl_dagster.postgres.config import SourceConfig
from etl_dagster.postgres.sessions import Connection, fetch_one, run_replication_command

PLUGIN = "pgoutput"
_POLL_SECONDS = 0.1
_CONFLICTS_SINCE = 160000
_INVALIDATION_SINCE = 170000
FAILOVER_SINCE = 170000
_PROMOTE = "Connect to the primary (target_session_attrs=primary in the dsn lets libpq find it), or promote this server"

_STATUS = """
SELECT slot_name, active_pid, confirmed_flush_lsn - '0/0'::pg_lsn, restart_lsn - '0/0'::pg_lsn,
       coalesce(wal_status = 'lost', false) OR restart_lsn IS NULL OR {invalid},
       coalesce({position} - restart_lsn, 0), plugin, database, database = current_database(),
       {failover}, {synced} AND pg_is_in_recovery()
FROM pg_replication_slots WHERE slot_name = %(name)s
"""

# In every database: a slot begins where all transactions that write now have ended.
_WRITING = """
SELECT 'pid ' || pid || ' ' || application_name, xact_start FROM pg_stat_activity
WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
UNION ALL SELECT 'prepared transaction ' || gid, prepared FROM pg_prepared_xacts ORDER BY 2
"""
logger = logging.getLogger("etl_dagster")


@dataclass(frozen=True, slots=True)
class SlotStatus:
    """What the server says of the slot."""

    name: str
    active_pid: int | None
    confirmed: Lsn
    restart: Lsn
    lost: bool
    retained_bytes: int
    failover: bool = False


def read_slot(connection: Connection, name: str) -> SlotStatus | None:
    """The slot, or None when there is none.

    Raises:
        SlotError: A slot of that name exists that is not ours to read, or not yet: a standby keeps it for its primary.
    """
    row = connection.execute(_status_query(connection), {"name": name}).fetchone()
    if row is None:
        return None
    _, pid, confirmed, restart, lost, retained, plugin, database, is_here, failover, is_copy = row
    if plugin != PLUGIN or not is_here:
        raise SlotError(
            f"slot {name} exists with plugin {plugin or 'none (physical)'} in database {database or 'none'}",
            kind=ErrorKind.SOURCE_SETTINGS,
            hint="Choose another name under source.slot",
        )
    if is_copy:
        raise SlotError(
            f"slot {name} of this server is the copy that a standby keeps of its primary's",
            kind=ErrorKind.SOURCE_UNAVAILABLE,
            hint=_PROMOTE,
        )
    return SlotStatus(name, pid, Lsn(confirmed or 0), Lsn(restart or 0), lost, max(0, int(retained)), failover)


def prepare_failover(connection: Connection, config: SourceConfig) -> None:
    """Have standbys keep a copy of the slot, where the config asks for it; one that is still to be made is made so.

    Raises:
        ConfigError: The server is too old.
        SlotError: The server is a standby, or somebody reads the slot.
    """
    if not config.slot.failover:
        return
    name = config.slot.name
    require_failover(connection, name)
    status = read_slot(connection, name)
    if status is not None and not status.failover:
        command = sql.SQL("ALTER_REPLICATION_SLOT {} (FAILOVER true)").format(sql.Identifier(name))
        run_replication_command(config.connection, command, f"cannot have standbys keep slot {name}")
        logger.info("Standbys that synchronize slots keep a copy of slot %s from now on", name)


def require_failover(connection: Connection, name: str) -> None:
    """Raise unless this server can have a slot that its standbys keep a copy of."""
    version = connection.info.server_version
    if version < FAILOVER_SINCE:
        raise ConfigError(
            f"source.slot.failover needs PostgreSQL 17, the server is PostgreSQL {version // 10000}",
            hint="Leave failover out: after a failover, all tables are then copied afresh by themselves",
        )
    if fetch_one(connection, "SELECT pg_is_in_recovery()")[0]:
        raise SlotError(
            f"slot {name} is to survive a failover, and this server is a standby",
            kind=ErrorKind.SOURCE_UNAVAILABLE,
            hint=f"{_PROMOTE}; to replicate from the standby itself, leave source.slot.failover out",
        )


def create_slot(connection: Connection, name: str, *, failover: bool = False) -> Lsn:
    """Make the slot; waits for the transactions that run now, and says so. Returns where it starts.

    Args:
        failover: Have standbys keep a copy of it.
    """
    if failover:
        require_failover(connection, name)
    _tell_who_is_waited_for(connection, name)
    create = "pg_create_logical_replication_slot(%s, %s" + (", failover => true)" if failover else ")")
    try:
        row = fetch_one(connection, f"SELECT lsn - '0/0'::pg_lsn FROM {create}".encode(), [name, PLUGIN])
    except psycopg.errors.DuplicateObject as error:
        raise SlotError(
            f"slot {name} exists already",
            kind=ErrorKind.SOURCE_SETTINGS,
            hint=f"Choose another name under source.slot, or drop it: SELECT pg_drop_replication_slot('{name}')",
        ) from error
    return Lsn(row[0])


def _tell_who_is_waited_for(connection: Connection, name: str) -> None:
    if fetch_one(connection, "SELECT pg_is_in_recovery()")[0]:
        logger.warning(
            "Making the slot %s on a standby waits until its primary tells which transactions run there, which an idle "
            "one does not: run SELECT pg_log_standby_snapshot() on the primary",
            name,
        )
    running = connection.execute(_WRITING).fetchall()
    if running:
        who = ", ".join(f"{who} (since {since:%H:%M:%S})" for who, since in running)
        logger.warning("Making the slot %s waits until transactions that are open now have ended: %s", name, who)


def advance_slot(connection: Connection, name: str, position: Lsn) -> None:
    """Move the slot's confirmed position forward; never back, and not at all when it is there already.

    Raises:
        SlotError: The slot is missing, lost or busy.
    """
    status = require_slot(connection, name)
    if position <= status.confirmed:
        return
    connection.execute("SELECT pg_replication_slot_advance(%s, %s::pg_lsn)", [name, str(position)])


def drop_slot(connection: Connection, name: str) -> None:
    """Drop the slot; one that is gone already is as good."""
    try:
        connection.execute("SELECT pg_drop_replication_slot(%s)", [name])
    except psycopg.errors.UndefinedObject:
        return


def require_slot(connection: Connection, name: str) -> SlotStatus:
    """The slot, which has to be there with its WAL."""
    status = read_slot(connection, name)
    if status is None:
        raise SlotError(
            f"slot {name} does not exist",
            hint="If it was dropped, changes since then are lost: create it again and copy its tables afresh",
        )
    if status.lost:
        raise SlotError(
            f"slot {name} has lost WAL that it needs",
            hint=f"Run SELECT pg_drop_replication_slot('{name}') and copy its tables afresh; raise "
            "max_slot_wal_keep_size so that it does not happen again",
        )
    return status


def moved(name: str, confirmed: Lsn, read: Lsn) -> SlotError:
    """The error of a slot that somebody else has advanced or made anew while we read it."""
    return SlotError(
        f"slot {name} was moved or made anew by somebody else: it stands at {confirmed}, read was up to {read} only",
        hint="Start again: its tables are copied afresh then",
    )


def wait_until_free(connection: Connection, name: str, timeout: float) -> None:
    """Return once nobody holds the slot.

    Raises:
        SlotError: It is missing, lost, or still busy when the time is over.
    """
    deadline = time.monotonic() + timeout
    while require_slot(connection, name).active_pid is not None:
        if time.monotonic() >= deadline:
            raise busy(connection, name)
        time.sleep(_POLL_SECONDS)


def busy(connection: Connection, name: str) -> SlotError:
    """The error of a slot that another client holds."""
    row = connection.execute(
        "SELECT s.active_pid, a.application_name FROM pg_replication_slots s LEFT JOIN pg_stat_activity a "
        "ON a.pid = s.active_pid WHERE s.slot_name = %s",
        [name],
    ).fetchone()
    if row is None or row[0] is None:
        who, hint = "another process, which has just ended", "Try again"
    else:
        who = f"server process {row[0]} ({row[1] or 'an unnamed application'})"
        hint = f"Stop that client, or end it: SELECT pg_terminate_backend({row[0]})"
    return SlotError(f"slot {name} is in use by {who}", kind=ErrorKind.SLOT_BUSY, hint=hint)


def _status_query(connection: Connection) -> str:
    version = connection.info.server_version
    invalid = "false"
    if version >= _INVALIDATION_SINCE:
        invalid = "invalidation_reason IS NOT NULL"
    elif version >= _CONFLICTS_SINCE:
        invalid = "coalesce(conflicting, false)"
    # pg_current_wal_flush_lsn() fails on a standby, so it may not even be planned as a constant there.
    position = "(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END)"
    is_recent = version >= FAILOVER_SINCE
    failover, synced = ("failover", "synced") if is_recent else ("false", "false")
    return _STATUS.format(invalid=invalid, position=position, failover=failover, synced=synced)
