"""Is the source ready? Each check passes or says what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from psycopg import sql

from etl_dagster.errors import EtlError
from etl_dagster.model import ReplicaIdentity, TableSchema
from etl_dagster.postgres import catalog, publication, slots
from etl_dagster.postgres.config import SourceConfig
from etl_dagster.postgres.errors import translating
from etl_dagster.postgres.sessions import Connection, connect, fetch_one

OLDEST_VERSION = 140000
STANDBY_SINCE = 160000
_SAMPLE = 5


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One line of the doctor: what was looked at, how it is, and what to do when it is not right."""

    name: str
    passed: bool
    detail: str
    todo: str = ""


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
    name = look.__name__.strip("_").replace("_", " ")
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
    if connection.info.server_version >= STANDBY_SINCE:
        told = "the server is a standby: a slot is made once SELECT pg_log_standby_snapshot() has run on its primary"
        yield CheckResult("standby", True, told)
    else:
        told = "the server is a standby, which offers logical decoding from PostgreSQL 16 on only"
        yield CheckResult("standby", False, told, "Connect to its primary")


def _wal_level(connection: Connection, config: SourceConfig) -> Iterator[CheckResult]:
    level = _setting(connection, "wal_level")
    todo = "" if level == "logical" else "Run ALTER SYSTEM SET wal_level = 'logical' and restart the server"
    yield CheckResult("wal_level", level == "logical", f"wal_level is {level}", todo)


def _room_for_slots(connection: Connection, config: SourceConfig) -> Iterator[CheckResult]:
    used, ours = fetch_one(
        connection,
        "SELECT count(*), count(*) FILTER (WHERE slot_name = %s) FROM pg_replication_slots",
        [config.slot.name],
    )
    most = int(_setting(connection, "max_replication_slots"))
    passed = bool(ours) or used < most
    todo = "" if passed else "Drop a slot that nobody uses, or raise max_replication_slots and restart the server"
    yield CheckResult("max_replication_slots", passed, f"{used} of {most} slots are taken", todo)


def _privileges(connection: Connection, config: SourceConfig) -> Iterator[CheckResult]:
    # On managed services membership in a role of theirs stands in for the attribute.
    role, allowed = fetch_one(
        connection,
        "SELECT current_user, r.rolsuper OR r.rolreplication OR EXISTS (SELECT FROM pg_roles g WHERE g.rolname IN "
        "('rds_replication', 'rds_superuser', 'cloudsqlsuperuser', 'azure_pg_admin') AND pg_has_role(g.oid, 'MEMBER')) "
        "FROM pg_roles r WHERE r.rolname = current_user",
    )
    quoted = _quoted(connection, str(role))
    yield CheckResult(
        "replication privilege",
        bool(allowed),
        f"role {role} may {'' if allowed else 'not '}use replication slots",
        "" if allowed else f"Run ALTER ROLE {quoted} REPLICATION (Amazon RDS: GRANT rds_replication TO {quoted})",
    )


def _publication(connection: Connection, config: SourceConfig) -> Iterator[CheckResult]:
    wanted = config.publication
    found = publication.read_publication(connection, wanted.name)
    if found is not None:
        todo = "" if found.holds_tables or wanted.create else "Add tables: ALTER PUBLICATION … ADD TABLE …"
        state = "holds tables" if found.holds_tables else "holds no table"
        yield CheckResult("publication", not todo, f"publication {wanted.name} exists and {state}", todo)
    else:
        yield _creatable(connection, config)


def _creatable(connection: Connection, config: SourceConfig) -> CheckResult:
    wanted = config.publication
    tables = publication.wanted_tables(connection, wanted)
    statement = publication.create_statement(wanted, tables).as_string(connection) if tables else ""
    absent = f"publication {wanted.name} does not exist"
    if not wanted.create:
        run = statement or f"CREATE PUBLICATION {_quoted(connection, wanted.name)} FOR TABLE …"
        return CheckResult(
            "publication", False, f"{absent} and create is false", f"{publication.WHO_MAY_CREATE}: {run}"
        )
    if not wanted.names_tables:
        todo = "Give schemas, tables or all_tables under source.publication"
        return CheckResult("publication", False, f"{absent} and no tables are named for it", todo)
    if missing := publication.missing_tables(connection, wanted):
        return CheckResult(
            "publication", False, f"no such table: {_listed(missing)}", "Correct source.publication.tables"
        )
    if not tables:
        return CheckResult(
            "publication",
            False,
            f"{absent} and no table matches",
            "Correct schemas, tables or exclude under source.publication",
        )
    if refused := publication.reasons_not_to_create(connection, wanted, tables):
        return CheckResult("publication", False, f"{absent}; {refused}", f"{publication.WHO_MAY_CREATE}: {statement}")
    return CheckResult("publication", True, f"{absent} and will be made for {len(tables)} tables")


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


def _wal_retention(connection: Connection, config: SourceConfig) -> Iterator[CheckResult]:
    keep = _setting(connection, "max_slot_wal_keep_size")
    kept = (
        "without limit: a stopped pipeline can fill the disk"
        if keep == "-1"
        else f"up to {keep} MB, then the slot is lost"
    )
    yield CheckResult("max_slot_wal_keep_size", True, f"WAL is kept for slots {kept}")
    idle = _setting(connection, "idle_replication_slot_timeout", "0")
    if idle != "0":
        yield CheckResult("idle_replication_slot_timeout", True, f"a slot unused for {idle} s is lost")


def _tables(connection: Connection, config: SourceConfig) -> Iterator[CheckResult]:
    if publication.read_publication(connection, config.publication.name) is None:
        return
    tables = list(catalog.published_tables(connection, config.publication.name).values())
    yield _readable(connection, tables)
    keyless = [table for table in tables if not table.key]
    for table in keyless:
        yield _keyless(table)
    if tables and not keyless:
        yield CheckResult("keys", True, f"all {len(tables)} tables have a key")


def _readable(connection: Connection, tables: list[TableSchema]) -> CheckResult:
    oids = [table.oid for table in tables]
    rows = connection.execute(
        "SELECT format('%%I', n.nspname), format('%%I.%%I', n.nspname, c.relname) "
        "FROM unnest(%s::oid[]) t(oid) JOIN pg_class c USING (oid) JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE NOT has_schema_privilege(n.oid, 'USAGE') OR NOT has_any_column_privilege(c.oid, 'SELECT')",
        [oids],
    ).fetchall()
    refused = [str(name) for _, name in rows]
    if not refused:
        return CheckResult("select privilege", True, f"all {len(tables)} published tables can be read")
    role = _quoted(connection, connection.info.user)
    schemas = ", ".join(dict.fromkeys(str(schema) for schema, _ in rows))
    todo = f"Run GRANT USAGE ON SCHEMA {schemas} TO {role}; GRANT SELECT ON {', '.join(refused)} TO {role}"
    return CheckResult("select privilege", False, f"cannot read {_listed(refused)}", todo)


def _keyless(table: TableSchema) -> CheckResult:
    quoted = ".".join('"' + part.replace('"', '""') + '"' for part in table.id)
    why = {
        ReplicaIdentity.INDEX: "its replica identity names an index that is gone or not wholly published",
        ReplicaIdentity.FULL: "it has no primary key, and REPLICA IDENTITY FULL names no key",
    }.get(table.replica_identity, "it has no usable primary key among the published columns")
    return CheckResult(
        f"key of {table.id}",
        False,
        f"table {table.id} has no key: {why}",
        f"Choose: ALTER TABLE {quoted} ADD PRIMARY KEY (…); or, with a unique index over columns that are not null, "
        f"ALTER TABLE {quoted} REPLICA IDENTITY USING INDEX …; or exclude it from the publication",
    )


def _setting(connection: Connection, name: str, default: str = "") -> str:
    row = connection.execute("SELECT setting FROM pg_settings WHERE name = %s", [name]).fetchone()
    return str(row[0]) if row else default


def _quoted(connection: Connection, name: str) -> str:
    return sql.Identifier(name).as_string(connection)


def _listed(names: Sequence[object]) -> str:
    shown = ", ".join(map(str, names[:_SAMPLE]))
    return shown if len(names) <= _SAMPLE else f"{shown} and {len(names) - _SAMPLE} more"


_CHECKS: tuple[_Check, ...] = (
    _version,
    _standby,
    _wal_level,
    _room_for_slots,
    _privileges,
    _publication,
    _slot,
    _wal_retention,
    _tables,
)
