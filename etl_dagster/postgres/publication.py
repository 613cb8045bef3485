"""The publication: made and kept as the config says, or checked when it is somebody else's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from psycopg import sql

from etl_dagster.errors import ErrorKind, PublicationError
from etl_dagster.model import TableId
from etl_dagster.postgres.config import PublicationConfig
from etl_dagster.postgres.sessions import Connection, fetch_one

WHO_MAY_CREATE = "Let a superuser, or the tables' owner with CREATE on the database, run"
# A publication with this comment is ours to alter.
MARK = "Managed by etl-dagster: its tables follow the configuration"

_CANDIDATES = """
SELECT n.nspname, c.relname, c.relispartition, root.nspname, root.relname
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN LATERAL (
    SELECT rn.nspname, rc.relname FROM pg_class rc JOIN pg_namespace rn ON rn.oid = rc.relnamespace
    WHERE c.relispartition AND rc.oid = pg_partition_root(c.oid)
) root ON true
WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p'
  AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
ORDER BY 1, 2
"""
_PUBLICATION = """
SELECT p.puballtables, coalesce(obj_description(p.oid, 'pg_publication') = %(mark)s, false),
       EXISTS (SELECT FROM pg_get_publication_tables(p.pubname))
FROM pg_publication p WHERE p.pubname = %(name)s
"""
_MEMBERS = """
SELECT n.nspname, c.relname
FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE p.pubname = %(name)s ORDER BY 1, 2
"""
_MAY_CREATE = """
SELECT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
       has_database_privilege(current_database(), 'CREATE'),
       (SELECT string_agg(format('%%I.%%I', n.nspname, c.relname), ', ')
        FROM unnest(%s::text[], %s::text[]) t(schema, name)
        JOIN pg_namespace n ON n.nspname = t.schema
        JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.name
        WHERE NOT pg_has_role(c.relowner, 'USAGE'))
"""


@dataclass(frozen=True, slots=True)
class Publication:
    """What the server knows of the publication."""

    all_tables: bool
    ours: bool
    holds_tables: bool


@dataclass(frozen=True, slots=True)
class Candidate:
    """A table that could be published; ``root`` is the partitioned table that it is a part of."""

    id: TableId
    root: TableId | None


def read_publication(connection: Connection, name: str) -> Publication | None:
    """The publication, or None when there is none."""
    row = connection.execute(_PUBLICATION, {"name": name, "mark": MARK}).fetchone()
    return Publication(*map(bool, row)) if row else None


def prepare(connection: Connection, config: PublicationConfig) -> None:
    """Bring the publication to what the config says.

    Raises:
        PublicationError: It is missing and not ours to make, or holds no table.
        psycopg.Error: The server refuses.
    """
    found = read_publication(connection, config.name)
    if found is None:
        _require_creatable(connection, config)
        _create(connection, config)
    elif config.create and found.ours and not found.all_tables:
        _alter(connection, config)
    elif config.create and config.names_tables and not found.all_tables:
        _require_members(connection, config)
    _require_tables(connection, config)


def wanted_tables(connection: Connection, config: PublicationConfig) -> list[TableId]:
    """The tables that the config asks for; a partitioned table stands for its partitions."""
    candidates = _candidates(connection)
    wanted = {candidate.id for candidate in candidates if config.wants(candidate.id)}
    return [c.id for c in candidates if c.id in wanted and c.root not in wanted]


def missing_tables(connection: Connection, config: PublicationConfig) -> list[TableId]:
    """Tables that the config names outright and that do not exist."""
    existing = {candidate.id for candidate in _candidates(connection)}
    named = [pattern.exact for pattern in config.included() if pattern.exact]
    return [table for table in named if table not in existing]


def create_statement(config: PublicationConfig, tables: Sequence[TableId]) -> sql.Composed:
    """``CREATE PUBLICATION`` as we would run it."""
    what = sql.SQL("ALL TABLES") if _is_all(config) else sql.SQL("TABLE {}").format(_table_list(tables))
    return sql.SQL("CREATE PUBLICATION {} FOR {} WITH (publish_via_partition_root = true)").format(
        sql.Identifier(config.name), what
    )


def reasons_not_to_create(connection: Connection, config: PublicationConfig, tables: Sequence[TableId]) -> str:
    """What the role lacks to make the publication; empty when nothing."""
    named = [[table.schema for table in tables], [table.name for table in tables]]
    is_super, may_create, foreign = fetch_one(connection, _MAY_CREATE, named)
    if is_super:
        return ""
    if _is_all(config):
        return "only a superuser may publish all tables"
    if not may_create:
        return "the role lacks CREATE on the database"
    return f"the role does not own {foreign}" if foreign else ""


def _is_all(config: PublicationConfig) -> bool:
    return config.all_tables and not config.exclude


def _table_list(tables: Iterable[TableId]) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(*table) for table in tables)


def _candidates(connection: Connection) -> list[Candidate]:
    rows = connection.execute(_CANDIDATES).fetchall()
    return [
        Candidate(TableId(str(schema), str(name)), TableId(str(root_schema), str(root)) if is_part else None)
        for schema, name, is_part, root_schema, root in rows
    ]


def _require_creatable(connection: Connection, config: PublicationConfig) -> None:
    if config.create and config.names_tables:
        return
    if config.create:
        raise PublicationError(
            f"publication {config.name} does not exist and the configuration names no tables for it",
            hint="Give tables, schemas or all_tables under source.publication",
        )
    tables = wanted_tables(connection, config) if config.names_tables else []
    statement = create_statement(config, tables) if tables or _is_all(config) else _example(config)
    raise PublicationError(
        f"publication {config.name} does not exist and create is false",
        hint=f"Run: {statement.as_string(connection)}",
    )


def _example(config: PublicationConfig) -> sql.Composed:
    return sql.SQL("CREATE PUBLICATION {} FOR ALL TABLES WITH (publish_via_partition_root = true)").format(
        sql.Identifier(config.name)
    )


def _create(connection: Connection, config: PublicationConfig) -> None:
    missing = missing_tables(connection, config)
    if missing:
        raise PublicationError(
            f"no such table: {', '.join(map(str, missing))}",
            hint="Correct source.publication.tables (upper and lower case count), or create the table",
        )
    tables = wanted_tables(connection, config)
    if not tables and not _is_all(config):
        raise PublicationError(
            f"no table matches what publication {config.name} is to hold",
            hint="Correct schemas, tables or exclude under source.publication",
        )
    statement = create_statement(config, tables)
    if refused := reasons_not_to_create(connection, config, tables):
        raise PublicationError(
            f"cannot make publication {config.name}: {refused}",
            hint=f"{WHO_MAY_CREATE}: {statement.as_string(connection)}",
            kind=ErrorKind.SOURCE_REFUSED,
        )
    with connection.transaction():
        connection.execute(statement)
        connection.execute(
            sql.SQL("COMMENT ON PUBLICATION {} IS {}").format(sql.Identifier(config.name), sql.Literal(MARK))
        )


def _alter(connection: Connection, config: PublicationConfig) -> None:
    """Add and drop what differs; SET TABLE would lose column lists and row filters that somebody added."""
    wanted = wanted_tables(connection, config)
    members = _members(connection, config.name)
    added = [table for table in wanted if table not in members]
    dropped = [table for table in members if table not in wanted] if wanted else []
    with connection.transaction():
        for verb, tables in (("ADD", added), ("DROP", dropped)):
            if tables:
                connection.execute(_alter_statement(config.name, verb, tables))


def _alter_statement(name: str, verb: str, tables: Sequence[TableId]) -> sql.Composed:
    return sql.SQL("ALTER PUBLICATION {} {} TABLE {}").format(sql.Identifier(name), sql.SQL(verb), _table_list(tables))


def _members(connection: Connection, name: str) -> list[TableId]:
    rows = connection.execute(_MEMBERS, {"name": name}).fetchall()
    return [TableId(str(schema), str(table)) for schema, table in rows]


def _require_members(connection: Connection, config: PublicationConfig) -> None:
    rows = connection.execute(
        "SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = %s", [config.name]
    )
    published = {TableId(str(schema), str(name)) for schema, name in rows}
    candidates = {candidate.id: candidate.root for candidate in _candidates(connection)}
    by_leaves = {candidates[table] for table in published if table in candidates}
    absent = [t for t in wanted_tables(connection, config) if t not in published and t not in by_leaves]
    if absent:
        statement = _alter_statement(config.name, "ADD", absent).as_string(connection)
        raise PublicationError(
            f"publication {config.name}, which somebody else made, lacks {', '.join(map(str, absent))}",
            hint=f"Run: {statement}; or let etl-dagster make one of another name",
        )


def _require_tables(connection: Connection, config: PublicationConfig) -> None:
    found = read_publication(connection, config.name)
    if found is not None and not found.holds_tables:
        raise PublicationError(
            f"publication {config.name} holds no table",
            hint="Add tables to it (ALTER PUBLICATION … ADD TABLE …), or to source.publication",
        )
