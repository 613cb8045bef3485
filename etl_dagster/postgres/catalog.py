"""The published tables as the catalogue describes them, in a handful of set-based queries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from etl_dagster.model import Column, PgType, ReplicaIdentity, TableId, TableSchema, TypeKind
from etl_dagster.postgres.sessions import Connection

# PostgreSQL 14 knows neither column lists nor row filters.
_COLUMN_LISTS_SINCE = 150000

# Publishing through the root, the server lists roots; otherwise leaves. `attrs` is null where there is no column list.
_TABLES = """
SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relreplident AS identity, {attrs} AS attnums,
       {filter} AS row_filter, b.oid || ARRAY(
           SELECT entry.oid FROM (
               SELECT c.oid UNION SELECT relid FROM pg_partition_ancestors(c.oid) UNION
               SELECT relid FROM pg_partition_tree(c.oid)
           ) near(relation) JOIN pg_class r ON r.oid = near.relation CROSS JOIN LATERAL ({entries}) entry(oid)
           ORDER BY 1
       ) AS membership
FROM pg_publication b CROSS JOIN LATERAL pg_get_publication_tables(b.pubname) p
JOIN pg_class c ON c.oid = p.relid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE b.pubname = %(publication)s
ORDER BY n.nspname, c.relname
"""
_ENTRIES = "SELECT e.oid FROM pg_publication_rel e WHERE e.prpubid = b.oid AND e.prrelid = r.oid"
_SCHEMA_ENTRIES = (
    " UNION SELECT e.oid FROM pg_publication_namespace e WHERE e.pnpubid = b.oid AND e.pnnspid = r.relnamespace"
)

# The same of tables that a publication still to be made will hold.
_NAMED_TABLES = """
SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relreplident AS identity, NULL::int2[] AS attnums,
       NULL::text AS row_filter, '{}'::oid[] AS membership
FROM unnest(%(schemas)s::text[], %(names)s::text[]) wanted(schema, name)
JOIN pg_namespace n ON n.nspname = wanted.schema
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.name
ORDER BY n.nspname, c.relname
"""

_COLUMNS = """
SELECT a.attrelid AS relation, a.attnum, a.attname AS name, a.atttypid AS type, a.atttypmod AS typmod,
       format_type(a.atttypid, a.atttypmod) AS type_name, NOT a.attnotnull AS nullable, a.attgenerated AS generated
FROM pg_attribute a
WHERE a.attrelid = ANY(%(relations)s) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
"""

# A deferrable key identifies nothing while a transaction runs, so the server does not send it by default.
_KEYS = """
SELECT i.indrelid AS relation, i.indisprimary AS is_primary, i.indisreplident AS is_identity,
       (i.indkey::int2[])[0:i.indnkeyatts - 1] AS attnums
FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
WHERE i.indrelid = ANY(%(relations)s) AND i.indisvalid AND (i.indisprimary OR i.indisreplident)
  AND (i.indimmediate OR c.relreplident = 'f')
"""

# An array type is one that its element type names as its array; int2vector and oidvector only look like arrays.
_TYPES = """
WITH RECURSIVE needed(oid) AS (
    SELECT unnest(%(types)s::oid[])
  UNION
    SELECT next.oid FROM needed JOIN pg_type t ON t.oid = needed.oid
    CROSS JOIN LATERAL (VALUES (t.typbasetype), (t.typelem)) AS next(oid)
    WHERE next.oid <> 0
)
SELECT t.oid, format_type(t.oid, NULL) AS name, t.typtype AS kind, t.typbasetype AS base, t.typtypmod AS typmod,
       CASE WHEN e.typarray = t.oid THEN e.oid ELSE 0 END AS element
FROM needed JOIN pg_type t ON t.oid = needed.oid LEFT JOIN pg_type e ON e.oid = t.typelem
"""

_KINDS = {
    "b": TypeKind.BASE,
    "c": TypeKind.COMPOSITE,
    "e": TypeKind.ENUM,
    "p": TypeKind.PSEUDO,
    "r": TypeKind.RANGE,
    "m": TypeKind.MULTIRANGE,
}


class _Table(NamedTuple):
    oid: int
    schema: str
    name: str
    identity: str
    attnums: Sequence[int] | None
    row_filter: str | None
    membership: Sequence[int]


class _Attribute(NamedTuple):
    relation: int
    attnum: int
    name: str
    type: int
    typmod: int
    type_name: str
    nullable: bool
    generated: str


class _Index(NamedTuple):
    relation: int
    is_primary: bool
    is_identity: bool
    attnums: Sequence[int]


class _Type(NamedTuple):
    oid: int
    name: str
    kind: str
    base: int
    typmod: int
    element: int


_Row = TypeVar("_Row")
_Owned = TypeVar("_Owned", _Attribute, _Index)


def published_tables(connection: Connection, publication: str) -> dict[TableId, TableSchema]:
    """Every table of the publication with its published columns; empty when there is none.

    Raises:
        psycopg.Error: Also when the publication does not exist.
    """
    return _describe(connection, _query_tables(connection, publication))


def named_tables(connection: Connection, tables: Sequence[TableId]) -> dict[TableId, TableSchema]:
    """Those of the tables that exist, as a plain publication of them would hold them."""
    names = {"schemas": [table.schema for table in tables], "names": [table.name for table in tables]}
    return _describe(connection, _rows(connection, _NAMED_TABLES, names, _Table))


def _describe(connection: Connection, tables: Sequence[_Table]) -> dict[TableId, TableSchema]:
    relations = {"relations": [table.oid for table in tables]}
    attributes = _by_relation(_rows(connection, _COLUMNS, relations, _Attribute))
    indexes = _by_relation(_rows(connection, _KEYS, relations, _Index))
    types = _Types.read(connection, {a.type for found in attributes.values() for a in found})
    schemas = (_schema(t, attributes.get(t.oid, []), indexes.get(t.oid, []), types) for t in tables)
    return {schema.id: schema for schema in schemas}


def _query_tables(connection: Connection, publication: str) -> list[_Table]:
    recent = connection.info.server_version >= _COLUMN_LISTS_SINCE
    query = _TABLES.format(
        attrs="p.attrs::int2[]" if recent else "NULL::int2[]",
        filter="pg_get_expr(p.qual, p.relid)" if recent else "NULL::text",
        entries=_ENTRIES + _SCHEMA_ENTRIES if recent else _ENTRIES,
    )
    found = _rows(connection, query, {"publication": publication}, _Table)
    if not found:  # or is there no such publication? Then this is refused
        connection.execute("SELECT FROM pg_get_publication_tables(%s)", [publication])
    return found


def _rows(connection: Connection, query: str, parameters: Mapping[str, object], row: Callable[..., _Row]) -> list[_Row]:
    with connection.cursor() as cursor:
        return [row(*found) for found in cursor.execute(query, parameters)]


def _by_relation(rows: Iterable[_Owned]) -> dict[int, list[_Owned]]:
    grouped: dict[int, list[_Owned]] = {}
    for row in rows:
        grouped.setdefault(row.relation, []).append(row)
    return grouped


def _schema(table: _Table, attributes: list[_Attribute], indexes: list[_Index], types: _Types) -> TableSchema:
    published = [a for a in attributes if _is_published(a, table.attnums)]
    key = _key(ReplicaIdentity(table.identity), indexes, {a.attnum for a in published})
    return TableSchema(
        id=TableId(table.schema, table.name),
        oid=table.oid,
        columns=tuple(_column(a, key, types) for a in published),
        replica_identity=ReplicaIdentity(table.identity),
        row_filter=table.row_filter,
        membership=tuple(table.membership),
    )


def _is_published(attribute: _Attribute, attnums: Sequence[int] | None) -> bool:
    return attribute.attnum in attnums if attnums else not attribute.generated


def _key(identity: ReplicaIdentity, indexes: list[_Index], published: set[int]) -> dict[int, int]:
    """Attnum to place in the key; empty when the stream cannot carry the whole key."""
    by_index = identity is ReplicaIdentity.INDEX
    found = next((i.attnums for i in indexes if (i.is_identity if by_index else i.is_primary)), ())
    return {attnum: place for place, attnum in enumerate(found)} if published.issuperset(found) else {}


def _column(attribute: _Attribute, key: Mapping[int, int], types: _Types) -> Column:
    return Column(
        attnum=attribute.attnum,
        name=attribute.name,
        type=types.resolve(attribute.type, attribute.typmod, name=attribute.type_name),
        nullable=attribute.nullable,
        key_ordinal=key.get(attribute.attnum),
    )


class _Types:
    """The types in use, resolved once each."""

    def __init__(self, rows: Iterable[_Type]) -> None:
        self._rows = {row.oid: row for row in rows}
        self._resolved: dict[tuple[int, int, str], PgType] = {}

    @classmethod
    def read(cls, connection: Connection, oids: set[int]) -> _Types:
        return cls(_rows(connection, _TYPES, {"types": sorted(oids)}, _Type))

    def resolve(self, oid: int, typmod: int, *, name: str) -> PgType:
        wanted = (oid, typmod, name)
        if wanted not in self._resolved:
            self._resolved[wanted] = self._resolve(oid, typmod, name)
        return self._resolved[wanted]

    def _resolve(self, oid: int, typmod: int, name: str) -> PgType:
        row = self._rows[oid]
        while row.base:
            typmod = row.typmod if row.typmod != -1 else typmod
            row = self._rows[row.base]
        element = self._element(row.element, typmod) if row.element else None
        kind = TypeKind.ARRAY if element else _KINDS[row.kind]
        return PgType(oid=row.oid, name=name, typmod=typmod, kind=kind, element=element, declared_oid=oid)

    def _element(self, oid: int, typmod: int) -> PgType:
        # The modifier of varchar(10)[] is that of its elements.
        return self.resolve(oid, typmod, name=self._rows[oid].name)
