"""Is the source ready? Each check passes or says what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from etl_dagster.errors import EtlError
from etl_dagster.model import CheckResult
from etl_dagster.postgres import grants, slots
from etl_dagster.postgres.config import SourceConfig
from etl_dagster.postgres.doctor_tables import check_publication, check_tables
from etl_dagster.postgres.errors import translating
from etl_dagster.postgres.findings import setting
from etl_dagster.postgres.sessions import Connection, connect, fetch_one

OLDEST_VERSION = 140000
STANDBY_SINCE = 160000


def check(config: SourceConfig) -> list[CheckResult]:
    """Look at everything replication needs; changes nothing and raises nothing on account of the source."""
    try:
        connection = connect(config.connection)
    except EtlError as error:
        return [CheckResult("connection", False, error.message, error.hint)]
    with connection:
        first = CheckResult("connection", True, f"connected to {config.connection.where()}")
        return [first, *(result for look in _CHECKS for result in _guarded(look, connection, config))]


_Check = Callable[[Connection, SourceConfig], Iterator[CheckResult]]


def _guarded(look: _Check, connection: Connection, config: SourceConfig) -> list[CheckResult]:
    name = look.__name__.removeprefix("check").strip("_").replace("_", " ")
    try:
        with translating(f"cannot check the {name}", config.connection.secrets()):
            return list(look(connection, config))
    except EtlError as error:
        return [CheckResult(name, False, error.message, error.hint)]


def _version(connection: Connection, config: SourceConfig) -> Iterator[CheckResult]:
    found = connection.info.server_version
    passed = found >= OLDEST_VERSION
    yield CheckResult("version", passed, f"PostgreSQL {found // 10000}", "" if passed else "Upgrade to 14 or later")


def _standby(connection: Connection, config: SourceConfig) -> Iterator[CheckResult]:
    if not fetch_one(connection, "SELECT pg_is_in_recovery()")[0]:
        return
    if connection.info.server_version < STANDBY_SINCE:
        told = "the server is a standby, which offers logical decoding from PostgreSQL 16 on only"
        yield CheckResult("standby", False, told, "Connect to its primary")
        return
    told = (
        "the server is a standby: its primary needs wal_level = logical too, and a slot is made once SELECT "
        "pg_log_standby_snapshot() has run there"
    )
    yield CheckResult("standby", True, told)
    yield from _what_a_standby_needs(connection)


def _what_a_standby_needs(connection: Connection) -> Iterator[CheckResult]:
    """Otherwise the primary removes old rows of the catalogue, which invalidates the slot."""
    feedback = setting(connection, "hot_standby_feedback")
    yield CheckResult(
        "hot_standby_feedback",
        feedback == "on",
        f"hot_standby_feedback is {feedback}" + ("" if feedback == "on" else ": vacuum on the primary ends the slot"),
        "" if feedback == "on" else "Run ALTER SYSTEM SET hot_standby_feedback = 'on'; SELECT pg_reload_conf()",
    )
    physical = setting(connection, "primary_slot_name")
    yield CheckResult(
        "primary_slot_name",
        bool(physical),
        f"the primary keeps what the standby needs in slot {physical}"
        if physical
        else "the standby has no slot at its primary: while they are apart, vacuum there ends the slot here",
        ""
        if physical
        else "Run SELECT pg_create_physical_replication_slot('standby_1') on the primary, and on the standby ALTER "
        "SYSTEM SET primary_slot_name = 'standby_1'; SELECT pg_reload_conf()",
    )


def _wal_level(connection: Connection, config: SourceConfig) -> Iterator[CheckResult]:
    level = setting(connection, "wal_level")
    todo = "" if level == "logical" else "Run ALTER SYSTEM SET wal_level = 'logical' and restart the server"
    yield CheckResult("wal_level", level == "logical", f"wal_level is {level}", todo)


def _room_for_slots(connection: Connection, config: SourceConfig) -> Iterator[CheckResult]:
    used, ours = fetch_one(
        connection,
        "SELECT count(*), count(*) FILTER (WHERE slot_name = %s) FROM pg_replication_slots",
        [config.slot.name],
    )
    most = int(setting(connection, "max_replication_slots"))
    passed = bool(ours) or used < most
    todo = "" if passed else "Drop a slot that nobody uses, or raise max_replication_slots and restart the server"
    yield CheckResult("max_replication_slots", passed, f"{used} of {most} slots are taken", todo)


def _privileges(connection: Connection, config: SourceConfig) -> Iterator[CheckResult]:
    yield from grants.check_role(connection)


def _slot(connection: Connection, config: SourceConfig) -> Iterator[CheckResult]:
    name = config.slot.name
    status = slots.read_slot(connection, name)
    if status is None:
        yield CheckResult("slot", True, f"slot {name} does not exist and will be made")
    elif status.lost:
        todo = f"Run SELECT pg_drop_replication_slot('{name}'); its tables are then copied afresh"
        yield CheckResult("slot", False, f"slot {name} has lost WAL that it needs", todo)
    elif status.active_pid is not None:
        error = slots.busy(connection, name)
        yield CheckResult("slot", False, error.message, error.hint)
    else:
        yield CheckResult("slot", True, f"slot {name} keeps back {status.retained_bytes / 1e6:.1f} MB of WAL")


def _failover(connection: Connection, config: SourceConfig) -> Iterator[CheckResult]:
    name = config.slot.name
    if not config.slot.failover:
        return
    try:
        slots.require_failover(connection, name)
    except EtlError as error:
        yield CheckResult("failover", False, error.message, error.hint)
        return
    status = slots.read_slot(connection, name)
    will = "are to keep" if status is not None and status.failover else "will keep, from the next run on,"
    waits = setting(connection, "synchronized_standby_slots")
    ahead = f"the stream waits for {waits}" if waits else "the stream does not wait for them"
    yield CheckResult(
        "failover",
        bool(waits),
        f"standbys {will} a copy of slot {name}; {ahead}",
        ""
        if waits
        else "Name the standbys' physical slots, or the destination may have what a promoted standby lacks: "
        "ALTER SYSTEM SET synchronized_standby_slots = 'standby_1'; SELECT pg_reload_conf()",
    )


def _wal_retention(connection: Connection, config: SourceConfig) -> Iterator[CheckResult]:
    keep = setting(connection, "max_slot_wal_keep_size")
    kept = (
        "without limit: a stopped pipeline can fill the disk"
        if keep == "-1"
        else f"up to {keep} MB, then the slot is lost"
    )
    yield CheckResult("max_slot_wal_keep_size", True, f"WAL is kept for slots {kept}")
    idle = setting(connection, "idle_replication_slot_timeout", "0")
    if idle != "0":
        yield CheckResult("idle_replication_slot_timeout", True, f"a slot unused for {idle} s is lost")


_CHECKS: tuple[_Check, ...] = (
    _version,
    _standby,
    _wal_level,
    _room_for_slots,
    _privileges,
    check_publication,
    _slot,
    _failover,
    _wal_retention,
    check_tables,
)
