"""The doctor's look at the publication and its tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from etl_dagster.model import CheckResult, ReplicaIdentity, TableSchema
from etl_dagster.postgres import catalog, grants, publication
from etl_dagster.postgres.config import PublicationConfig, SourceConfig
from etl_dagster.postgres.findings import listed, quoted
from etl_dagster.postgres.sessions import Connection, fetch_one

ON_THE_PRIMARY = "A standby can make none; on the primary, run"
_PUBLISHED = """
SELECT pubinsert, pubupdate, pubdelete, pubtruncate, pg_has_role(pubowner, 'USAGE'), pg_get_userbyid(pubowner)
FROM pg_publication WHERE pubname = %s
"""
# What the server asks before it lets an UPDATE of a published table pass.
_IDENTITIES = """
SELECT t.oid, EXISTS (SELECT FROM pg_index i WHERE i.indrelid = t.oid AND i.indisprimary AND i.indimmediate),
       c.relreplident = 'f' OR (c.relreplident <> 'n' AND pg_get_replica_identity_index(t.oid) IS NOT NULL)
FROM unnest(%s::oid[]) t(oid) JOIN pg_class c ON c.oid = t.oid
"""
_OPERATIONS = ("insert", "update", "delete", "truncate")
_NO_TABLE = """
SELECT format('%%s.%%s', n.nspname, c.relname), CASE
    WHEN c.relkind = 'f' THEN 'a foreign table' WHEN c.relkind IN ('v', 'm') THEN 'a view'
    WHEN c.relpersistence = 'u' THEN 'unlogged' ELSE 'no ordinary table' END
FROM unnest(%s::text[], %s::text[]) t(schema, name)
JOIN pg_namespace n ON n.nspname = t.schema JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.name
"""


def check_publication(connection: Connection, config: SourceConfig) -> Iterator[CheckResult]:
    """The publication is there, or can be made, and lets every kind of change through."""
    wanted = config.publication
    found = publication.read_publication(connection, wanted.name)
    if found is None:
        yield from _creatable(connection, wanted)
        return
    todo = "" if found.holds_tables or wanted.create else "Add tables: ALTER PUBLICATION … ADD TABLE …"
    state = "holds tables" if found.holds_tables else "holds no table"
    yield CheckResult("publication", not todo, f"publication {wanted.name} exists and {state}", todo)
    *operations, is_owner, owner = fetch_one(connection, _PUBLISHED, [wanted.name])
    withheld = [name for name, published in zip(_OPERATIONS, operations, strict=True) if not published]
    if withheld:
        name = quoted(connection, wanted.name)
        yield CheckResult(
            "published operations",
            False,
            f"publication {wanted.name} withholds {listed(withheld)}: the destination misses those changes",
            f"Run ALTER PUBLICATION {name} SET (publish = '{', '.join(_OPERATIONS)}')",
        )
    if wanted.create and found.ours and not is_owner:
        yield CheckResult(
            "owner of the publication",
            False,
            f"publication {wanted.name} follows the configuration and belongs to {owner}",
            f"Run GRANT {quoted(connection, str(owner))} TO {_role(connection)}; or set create to false",
        )


def _role(connection: Connection) -> str:
    return quoted(connection, str(fetch_one(connection, "SELECT current_user")[0]))


def _creatable(connection: Connection, wanted: PublicationConfig) -> Iterator[CheckResult]:
    tables = publication.wanted_tables(connection, wanted)
    statement = publication.create_statement(wanted, tables).as_string(connection) if tables else ""
    absent = f"publication {wanted.name} does not exist"
    if fetch_one(connection, "SELECT pg_is_in_recovery()")[0]:
        run = statement or f"CREATE PUBLICATION {quoted(connection, wanted.name)} FOR TABLE …"
        yield CheckResult("publication", False, absent, f"{ON_THE_PRIMARY} {run}; then set create to false")
    elif not wanted.create:
        run = statement or f"CREATE PUBLICATION {quoted(connection, wanted.name)} FOR TABLE …"
        told = f"{absent} and create is false"
        yield CheckResult("publication", False, told, f"{publication.WHO_MAY_CREATE}: {run}")
    elif problem := _misnamed(connection, wanted, found=bool(tables)):
        yield CheckResult("publication", False, *problem)
    elif refused := publication.reasons_not_to_create(connection, wanted, tables):
        told = f"{absent}; {refused}"
        yield CheckResult("publication", False, told, f"{publication.WHO_MAY_CREATE}: {statement}")
        yield from grants.check_making(connection, wanted, tables)
    else:
        yield CheckResult("publication", True, f"{absent} and will be made for {len(tables)} tables")


def _misnamed(connection: Connection, wanted: PublicationConfig, *, found: bool) -> tuple[str, str] | None:
    """What is wrong with the tables that the config names, and what to do."""
    absent = f"publication {wanted.name} does not exist"
    if not wanted.names_tables:
        return f"{absent} and no tables are named for it", "Give schemas, tables or all_tables under source.publication"
    if missing := publication.missing_tables(connection, wanted):
        names = [[table.schema for table in missing], [table.name for table in missing]]
        kinds = {str(name): f"{name} ({kind})" for name, kind in connection.execute(_NO_TABLE, names)}
        told = listed([kinds.get(str(table), str(table)) for table in missing])
        if kinds:
            return f"only ordinary tables can be published: {told}", "Leave them out (ALTER TABLE … SET LOGGED helps)"
        return f"no such table: {told}", "Correct source.publication.tables"
    if not found:
        return f"{absent} and no table matches", "Correct schemas, tables or exclude under source.publication"
    return None


def check_tables(connection: Connection, config: SourceConfig) -> Iterator[CheckResult]:
    """The published tables, or those that will be, can be read, and their changes matched with rows."""
    wanted = config.publication
    if publication.read_publication(connection, wanted.name) is not None:
        tables = list(catalog.published_tables(connection, wanted.name).values())
    elif found := publication.wanted_tables(connection, wanted):
        tables = list(catalog.named_tables(connection, found).values())
    else:
        return
    yield from grants.check_tables(connection, config.publication.name, tables)
    keyless = [table for table in tables if not table.key]
    for table in keyless:
        yield _keyless(table)
    if tables and not keyless:
        yield CheckResult("keys", True, f"all {len(tables)} tables have a key")
    yield from _left_out(connection, config, tables)
    yield from _refused_writes(connection, config, tables)


def _left_out(connection: Connection, config: SourceConfig, tables: Sequence[TableSchema]) -> Iterator[CheckResult]:
    found = [f"{table.id}.{name}" for table in tables for name in table.left_out]
    if not found:
        return
    hint = ""
    if connection.info.server_version >= catalog.GENERATED_COLUMNS_SINCE:
        name = quoted(connection, config.publication.name)
        hint = f"; ALTER PUBLICATION {name} SET (publish_generated_columns = stored) brings those that are stored"
    yield CheckResult("generated columns", True, f"left out: {listed(found)}{hint}")


def _keyless(table: TableSchema) -> CheckResult:
    name = _name(table)
    why = {
        ReplicaIdentity.INDEX: "its replica identity names an index that is gone or not wholly published",
        ReplicaIdentity.FULL: "it has no primary key, and REPLICA IDENTITY FULL names no key",
    }.get(table.replica_identity, "it has no usable primary key among the published columns")
    return CheckResult(
        f"key of {table.id}",
        False,
        f"table {table.id} has no key: {why}",
        f"Choose: ALTER TABLE {name} ADD PRIMARY KEY (…); or, with a unique index over columns that are not null, "
        f"ALTER TABLE {name} REPLICA IDENTITY USING INDEX …; or exclude it from the publication",
    )


def _refused_writes(connection: Connection, config: SourceConfig, tables: list[TableSchema]) -> Iterator[CheckResult]:
    """Tables of which the server refuses updates and deletes, for want of a replica identity to publish them with."""
    row = connection.execute(_PUBLISHED, [config.publication.name]).fetchone()
    _, updates, deletes, *_ = row or (True, True, True)
    refused = " and ".join(verb for verb, published in (("UPDATE", updates), ("DELETE", deletes)) if published)
    named = {table.oid: table for table in tables}
    for oid, has_key, has_identity in connection.execute(_IDENTITIES, [list(named)]) if refused else ():
        table = named[oid]
        if not has_identity:
            why, todo = "it has no replica identity", f"REPLICA IDENTITY {'DEFAULT' if has_key else 'FULL'}"
        elif table.replica_identity is ReplicaIdentity.FULL or table.key:
            continue
        else:
            why, todo = "its replica identity has columns that are not published", "REPLICA IDENTITY USING INDEX …"
        yield CheckResult(
            f"replica identity of {table.id}",
            False,
            f"the server refuses {refused} of {table.id} while it is published so: {why}",
            f"Run ALTER TABLE {_name(table)} {todo}{'' if not has_identity else '; or publish those columns too'}",
        )


def _name(table: TableSchema) -> str:
    return ".".join('"' + part.replace('"', '""') + '"' for part in table.id)
