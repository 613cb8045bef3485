"""Does the role have what replication needs? One line for each thing that is missing, with the statement to run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from etl_dagster.model import CheckResult, TableSchema
from etl_dagster.postgres.config import PublicationConfig
from etl_dagster.postgres.findings import quoted
from etl_dagster.postgres.sessions import Connection, fetch_one

# On managed services membership in a role of theirs stands in for the attribute.
_REPLICATION = """
SELECT current_user, r.rolsuper OR r.rolreplication OR EXISTS (SELECT FROM pg_roles g WHERE g.rolname IN
    ('rds_replication', 'rds_superuser', 'cloudsqlsuperuser', 'azure_pg_admin') AND pg_has_role(g.oid, 'MEMBER'))
FROM pg_roles r WHERE r.rolname = current_user
"""
# What everybody may call, unless it was revoked.
_CALLED = [
    "pg_control_system",
    "pg_create_logical_replication_slot",
    "pg_current_snapshot",
    "pg_drop_replication_slot",
    "pg_logical_emit_message",
    "pg_logical_slot_peek_binary_changes",
    "pg_replication_slot_advance",
    "pg_try_advisory_lock",
]
_REVOKED = """
SELECT format('%%s(%%s)', proname, pg_get_function_identity_arguments(oid))
FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = ANY(%s)
  AND NOT has_function_privilege(oid, 'EXECUTE') ORDER BY 1
"""
# A copy reads each heap by itself, and rows by key through the root; so both have to be readable. A heap is read by
# ranges of ctid, which wants a grant of its own where single columns are granted. The row filter's columns are read
# too: the publication's entry depends on them.
_NEEDED = """
WITH named(root, name) AS (SELECT * FROM unnest(%(roots)s::oid[], %(names)s::text[])),
needed(root, name) AS (
    SELECT root, name FROM named
    UNION SELECT root, 'ctid' FROM named
    UNION SELECT d.refobjid, a.attname FROM pg_publication_rel e JOIN pg_publication b ON b.oid = e.prpubid
    JOIN pg_depend d ON d.classid = 'pg_publication_rel'::regclass AND d.objid = e.oid AND d.refobjsubid > 0
    JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
    WHERE b.pubname = %(publication)s AND d.refobjid = ANY(%(roots)s::oid[])
),
read(root, relation) AS (
    SELECT t.root, r.relation FROM (SELECT DISTINCT root FROM named) t CROSS JOIN LATERAL (
        SELECT t.root UNION SELECT p.relid FROM pg_partition_tree(t.root) p WHERE p.isleaf
    ) r(relation)
)
"""
_UNUSABLE_SCHEMAS = (
    _NEEDED
    + """
SELECT DISTINCT n.nspname
FROM read JOIN pg_class c ON c.oid = read.relation JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE NOT has_schema_privilege(n.oid, 'USAGE') ORDER BY 1
"""
)
_UNREADABLE = (
    _NEEDED
    + """
SELECT n.nspname, c.relname, array_agg(a.attname::text ORDER BY a.attnum) FILTER (WHERE NOT granted),
       bool_or(granted AND a.attnum > 0)
FROM read JOIN needed USING (root)
JOIN pg_class c ON c.oid = read.relation JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = needed.name
CROSS JOIN LATERAL (SELECT has_column_privilege(c.oid, a.attnum, 'SELECT')
    OR (a.attname = 'ctid' AND c.relkind = 'p')) p(granted)
GROUP BY 1, 2 HAVING NOT bool_and(granted) ORDER BY 1, 2
"""
)
_HIDDEN = (
    _NEEDED
    + """
SELECT DISTINCT n.nspname, c.relname, pg_has_role(c.relowner, 'USAGE')
FROM read JOIN pg_class c ON c.oid = read.relation JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relrowsecurity AND row_security_active(c.oid) ORDER BY 1, 2
"""
)
_OWNERSHIP = """
SELECT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
       has_database_privilege(current_database(), 'CREATE'), current_database()
"""
_FOREIGN = """
SELECT t.schema, t.name, pg_get_userbyid(c.relowner)
FROM unnest(%s::text[], %s::text[]) t(schema, name)
JOIN pg_namespace n ON n.nspname = t.schema JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.name
WHERE NOT pg_has_role(c.relowner, 'USAGE') ORDER BY 1, 2
"""


def check_role(connection: Connection) -> Iterator[CheckResult]:
    """Replication, and the functions that replication calls."""
    role, allowed = fetch_one(connection, _REPLICATION)
    name = quoted(connection, str(role))
    yield CheckResult(
        "replication privilege",
        bool(allowed),
        f"role {role} may {'' if allowed else 'not '}use replication slots",
        "" if allowed else f"Run ALTER ROLE {name} REPLICATION (Amazon RDS: GRANT rds_replication TO {name})",
    )
    for (function,) in connection.execute(_REVOKED, [_CALLED]).fetchall():
        yield CheckResult(
            f"execute privilege on {str(function).partition('(')[0]}",
            False,
            f"role {role} may not call {function}",
            f"Run GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {name}",
        )


def check_tables(connection: Connection, publication: str, tables: Sequence[TableSchema]) -> Iterator[CheckResult]:
    """Reading the published tables, wholly."""
    columns = [(table.oid, column.name) for table in tables for column in table.columns]
    needed = {
        "publication": publication,
        "roots": [oid for oid, _ in columns],
        "names": [name for _, name in columns],
    }
    role = quoted(connection, str(fetch_one(connection, "SELECT current_user")[0]))
    missing = [
        *(_usage(connection, role, str(schema)) for (schema,) in connection.execute(_UNUSABLE_SCHEMAS, needed)),
        *(_select(connection, role, *row) for row in connection.execute(_UNREADABLE, needed)),
    ]
    yield from missing
    if not missing:
        yield CheckResult("select privilege", True, f"all {len(tables)} published tables can be read")
    for schema, table, is_owner in connection.execute(_HIDDEN, needed).fetchall():
        yield _hidden(connection, role, (str(schema), str(table)), is_owner=bool(is_owner))


def _usage(connection: Connection, role: str, schema: str) -> CheckResult:
    return CheckResult(
        f"usage privilege on schema {schema}",
        False,
        f"schema {schema} holds published tables and may not be used",
        f"Run GRANT USAGE ON SCHEMA {quoted(connection, schema)} TO {role}",
    )


def _select(
    connection: Connection, role: str, schema: str, table: str, columns: Sequence[str], some: bool
) -> CheckResult:
    name = quoted(connection, schema, table)
    if some:
        listed = ", ".join(quoted(connection, column) for column in columns)
        detail, todo = f"columns {listed} of {name} cannot be read", f"Run GRANT SELECT ({listed}) ON {name} TO {role}"
    else:
        detail, todo = f"{name} cannot be read", f"Run GRANT SELECT ON {name} TO {role}"
    return CheckResult(f"select privilege on {schema}.{table}", False, detail, todo)


def _hidden(connection: Connection, role: str, table: tuple[str, str], *, is_owner: bool) -> CheckResult:
    name = quoted(connection, *table)
    own = f"; or ALTER TABLE {name} NO FORCE ROW LEVEL SECURITY" if is_owner else ""
    return CheckResult(
        f"row-level security of {'.'.join(table)}",
        False,
        f"policies may hide rows of {name} from a copy, while the stream brings all of them",
        f"Run ALTER ROLE {role} BYPASSRLS{own}; or exclude the table from the publication",
    )


def check_making(
    connection: Connection, config: PublicationConfig, tables: Sequence[tuple[str, str]]
) -> Iterator[CheckResult]:
    """What making the publication takes: ``CREATE`` on the database and the tables' ownership."""
    is_super, may_create, database = fetch_one(connection, _OWNERSHIP)
    if is_super or (config.all_tables and not config.exclude):
        return
    role = quoted(connection, str(fetch_one(connection, "SELECT current_user")[0]))
    if not may_create:
        yield CheckResult(
            "create privilege",
            False,
            f"the role may not make a publication in database {database}",
            f"Run GRANT CREATE ON DATABASE {quoted(connection, str(database))} TO {role}",
        )
    names = [[schema for schema, _ in tables], [name for _, name in tables]]
    for schema, table, owner in connection.execute(_FOREIGN, names).fetchall():
        name = quoted(connection, str(schema), str(table))
        yield CheckResult(
            f"owner of {schema}.{table}",
            False,
            f"{name} belongs to {owner}, and only its owner may publish it",
            f"Run GRANT {quoted(connection, str(owner))} TO {role}; or ALTER TABLE {name} OWNER TO {role}",
        )
