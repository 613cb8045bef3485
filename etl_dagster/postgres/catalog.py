"""The published tables as the catalogue describes them, in a handful of set-based queries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from etl_dagster.model import Column, PgType, ReplicaIdentity, TableId, TableSchema, TypeKind
from etl_dagster.postgres.partitions import missing_in_leaves
from etl_dagster.postgres.sessions import Connection

# PostgreSQL 14 knows neither column lists nor row filters nor schemas as members.
_COLUMN_LISTS_SINCE = 150000
GENERATED_COLUMNS_SINCE = 180000

# Publishing through the root, the server lists roots; otherwise leaves. `attrs` is null where there is no column list.
_TABLES = """
SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relreplident AS identity, c.relnatts AS natts,
       c.relkind = 'p' AS is_partitioned, {attrs} AS attnums, {filter} AS row_filter, b.oid AS publication,
       {toast} AS toast
FROM pg_publication b CROSS JOIN LATERAL pg_get_publication_tables(b.pubname) p
JOIN pg_class c ON c.oid = p.relid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE b.pubname = %(publication)s AND (%(relation)s::oid IS NULL OR c.oid = %(relation)s)
ORDER BY n.nspname, c.relname
"""

# Any change of a publication's options leaves another transaction's id in its row; a change of its entries does not.
_PUBLICATION = "SELECT ('x' || left(md5(oid || '/' || xmin), 15))::bit(60)::bigint FROM pg_publication WHERE oid = %s"

# Entries of a publication for the table itself, for what it is a partition of, for their schemas; those for its
# partitions publish these alone. An entry that reaches a partition from above is another one after the partition was
# detached and attached again, which shows in the id of the transaction that linked it to its parent. So is an entry of
# a schema after the table was moved out of the schema and back, which shows in the row that makes it depend on it.
_ENTRIES = """
WITH RECURSIVE near(root, relation, links) AS (
    SELECT oid, oid, '' FROM unnest(%(relations)s::oid[]) AS oid
  UNION ALL
    SELECT near.root, i.inhparent, near.links || '/' || i.xmin::text
    FROM near JOIN pg_inherits i ON i.inhrelid = near.relation
    JOIN pg_class parent ON parent.oid = i.inhparent AND parent.relkind = 'p'
)
SELECT near.root AS relation, CASE WHEN near.links = '' THEN e.oid::bigint
    ELSE ('x' || left(md5(e.oid || near.links), 15))::bit(60)::bigint END AS entry
FROM near JOIN pg_publication_rel e ON e.prrelid = near.relation AND e.prpubid = %(publication)s
"""
_SCHEMA_ENTRIES = """
UNION SELECT near.root, ('x' || left(md5(e.oid || near.links || '@' || moved.by), 15))::bit(60)::bigint
FROM near JOIN pg_class r ON r.oid = near.relation
JOIN pg_publication_namespace e ON e.pnnspid = r.relnamespace AND e.pnpubid = %(publication)s
CROSS JOIN LATERAL (
    SELECT coalesce(min(d.xmin::text), '') AS by FROM pg_depend d
    WHERE d.classid = 'pg_class'::regclass AND d.objid = r.oid AND d.objsubid = 0
      AND d.refclassid = 'pg_namespace'::regclass
) moved
"""

# ALTER TABLE gives a table that it rewrites another TOAST table; VACUUM FULL, CLUSTER and TRUNCATE do not. A table with
# an entry of its own cannot be set unlogged.
_TOAST = """CASE WHEN NOT EXISTS (
    SELECT FROM pg_publication_rel e WHERE e.prrelid = c.oid AND e.prpubid = b.oid
) THEN c.reltoastrelid ELSE 0 END"""

# The same of tables that a publication still to be made will hold.
_NAMED_TABLES = """
SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relreplident AS identity, c.relnatts AS natts,
       c.relkind = 'p' AS is_partitioned, NULL::int2[] AS attnums, NULL::text AS row_filter, NULL::oid AS publication,
       0 AS toast
FROM unnest(%(schemas)s::text[], %(names)s::text[]) wanted(schema, name)
JOIN pg_namespace n ON n.nspname = wanted.schema
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.name
ORDER BY n.nspname, c.relname
"""

# One table of a publication that publishes all columns of it. Unlike the server's own functions for it, this waits for
# nobody's lock on the table.
_WHOLE_TABLE = """
SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relreplident AS identity, c.relnatts AS natts,
       c.relkind = 'p' AS is_partitioned, NULL::int2[] AS attnums, NULL::text AS row_filter, b.oid AS publication,
       0 AS toast
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_publication b ON b.pubname = %(publication)s
WHERE c.oid = %(relation)s
"""
_NO_COLUMN_LISTS = "NOT EXISTS (SELECT FROM pg_publication_rel e WHERE e.prpubid = b.oid AND e.prattrs IS NOT NULL)"
_NO_GENERATED_COLUMNS = "b.pubgencols = 'n'"

# attmissingval is an array of one element of the column's type. Joining the elements of an array prints them as their
# type does; the text of the array would have to be read again by the rules of that type, whose delimiter may differ.
_COLUMNS = """
SELECT a.attrelid AS relation, a.attnum, a.attname AS name, a.atttypid AS type, a.atttypmod AS typmod,
       format_type(a.atttypid, a.atttypmod) AS type_name, NOT a.attnotnull AS nullable, a.attgenerated AS generated,
       CASE WHEN a.atthasmissing THEN array_to_string(a.attmissingval, '') END AS missing
FROM pg_attribute a
WHERE a.attrelid = ANY(%(relations)s) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
"""

# Columns that a rewrite of the table may have given a value in rows that are older than they are: a default of the
# column or of its domain, perhaps volatile, a sequence, an expression; or one that was needed and is gone by now.
_FILLED = """
WITH RECURSIVE type_of(attnum, oid) AS (
    SELECT attnum, atttypid FROM pg_attribute
    WHERE attrelid = %(relation)s AND attnum > %(natts)s AND NOT attisdropped
  UNION ALL
    SELECT type_of.attnum, t.typbasetype FROM type_of JOIN pg_type t ON t.oid = type_of.oid WHERE t.typtype = 'd'
)
SELECT a.attnum FROM pg_attribute a
WHERE a.attrelid = %(relation)s AND a.attnum > %(natts)s AND (
    a.atthasdef OR a.attnotnull OR a.attidentity <> '' OR EXISTS (
        SELECT FROM type_of JOIN pg_type t ON t.oid = type_of.oid
        WHERE type_of.attnum = a.attnum AND (t.typnotnull OR t.typdefault IS NOT NULL)
    )
)
"""

# A deferrable key identifies nothing while a transaction runs: its rows may pass through states with equal keys.
# REINDEX CONCURRENTLY makes another index, but keeps the constraint.
_KEYS = """
SELECT i.indrelid AS relation, i.indisprimary AS is_primary, i.indisreplident AS is_identity,
       (i.indkey::int2[])[0:i.indnkeyatts - 1] AS attnums, coalesce(c.oid, i.indexrelid) AS identifier
FROM pg_index i
LEFT JOIN pg_constraint c ON c.conrelid = i.indrelid AND c.conindid = i.indexrelid AND c.contype IN ('p', 'u')
WHERE i.indrelid = ANY(%(relations)s) AND i.indisvalid AND (i.indisprimary OR i.indisreplident) AND i.indimmediate
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

# What the enums and composites consist of that types lead to, by type. Rows hold it, but no change shows in them.
_SHAPES = """
WITH RECURSIVE used(type, oid) AS (
    SELECT oid, oid FROM unnest(%(types)s::oid[]) AS oid
  UNION
    SELECT used.type, next.oid FROM used JOIN pg_type t ON t.oid = used.oid
    CROSS JOIN LATERAL (
        SELECT t.typbasetype UNION SELECT t.typelem
        UNION SELECT r.rngsubtype FROM pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)
        UNION SELECT a.atttypid FROM pg_attribute a
        WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    ) AS next(oid)
    WHERE next.oid <> 0
)
SELECT used.type, e.enumtypid || ' ' || e.oid || ' ' || e.enumlabel AS part
FROM used JOIN pg_enum e ON e.enumtypid = used.oid
UNION ALL
SELECT used.type, t.oid || ' (' || a.attnum || ') ' || a.attname || ' ' || a.atttypid
FROM used JOIN pg_type t ON t.oid = used.oid AND t.typtype = 'c'
JOIN pg_attribute a ON a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
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
    natts: int
    is_partitioned: bool
    attnums: Sequence[int] | None
    row_filter: str | None
    publication: int | None
    toast: int


class _Attribute(NamedTuple):
    relation: int
    attnum: int
    name: str
    type: int
    typmod: int
    type_name: str
    nullable: bool
    generated: str
    missing: str | None


class _Entry(NamedTuple):
    relation: int
    entry: int


class _Index(NamedTuple):
    relation: int
    is_primary: bool
    is_identity: bool
    attnums: Sequence[int]
    identifier: int


_NO_INDEX = _Index(0, False, False, (), 0)


class _Type(NamedTuple):
    oid: int
    name: str
    kind: str
    base: int
    typmod: int
    element: int


_NOT_FOLLOWED = ("row_filter", "membership", "key_index", "type_shape", "toast")

_Row = TypeVar("_Row")
_Owned = TypeVar("_Owned", _Attribute, _Index, _Entry)


def published_tables(connection: Connection, publication: str) -> dict[TableId, TableSchema]:
    """Every table of the publication with its published columns; empty when there is none.

    Raises:
        psycopg.Error: Also when the publication does not exist.
    """
    return {table.id: table for table in _describe(connection, _query_tables(connection, publication))}


def current_table(connection: Connection, publication: str, known: TableSchema) -> TableSchema | None:
    """The table of the same OID as it is now, when a row can be carried over from what it was.

    None when it is gone, or when it has a new column in which older rows may have a value that nobody can tell. What
    says whether changes went unseen is left as known, for `published_tables` to tell.

    Raises:
        psycopg.Error: Also when the publication does not exist.
    """
    for found in _describe(connection, _query_table(connection, publication, known.oid)):
        table = found.model_copy(update={name: getattr(known, name) for name in _NOT_FOLLOWED})
        filled = connection.execute(_FILLED, {"relation": known.oid, "natts": known.natts}).fetchall()
        doubtful = {attnum for (attnum,) in filled}
        in_leaves = missing_in_leaves(connection, [known.oid])[known.oid]
        disagreed = {name for name, value in in_leaves.items() if value is None}
        former = {column.attnum for column in known.columns}
        added = [c for c in table.columns if c.attnum not in former and c.missing is None]
        if not any(column.attnum in doubtful or column.name in disagreed for column in added):
            return table
    return None


def named_tables(connection: Connection, tables: Sequence[TableId]) -> dict[TableId, TableSchema]:
    """Those of the tables that exist, as a plain publication of them would hold them."""
    names = {"schemas": [table.schema for table in tables], "names": [table.name for table in tables]}
    return {table.id: table for table in _describe(connection, _rows(connection, _NAMED_TABLES, names, _Table))}


def _describe(connection: Connection, tables: Sequence[_Table]) -> list[TableSchema]:
    relations = {"relations": [table.oid for table in tables]}
    attributes = _by_relation(_rows(connection, _COLUMNS, relations, _Attribute))
    missing = missing_in_leaves(connection, [table.oid for table in tables if table.is_partitioned])
    for root, values in missing.items():
        attributes[root] = [a._replace(missing=values.get(a.name)) for a in attributes.get(root, [])]
    indexes = _by_relation(_rows(connection, _KEYS, relations, _Index))
    types = _Types.read(connection, {a.type for found in attributes.values() for a in found})
    members = _memberships(connection, tables)
    return [
        _schema(t, attributes.get(t.oid, []), indexes.get(t.oid, []), types, members.get(t.oid, ())) for t in tables
    ]


def _memberships(connection: Connection, tables: Sequence[_Table]) -> dict[int, tuple[int, ...]]:
    """By OID of the table, what tells the publication and its entries that make the table a member."""
    oid = next((table.publication for table in tables), None)
    found = None if oid is None else connection.execute(_PUBLICATION, [oid]).fetchone()
    if found is None:
        return {}
    query = _ENTRIES + _SCHEMA_ENTRIES if _is_recent(connection) else _ENTRIES
    parameters = {"publication": oid, "relations": [table.oid for table in tables]}
    entries = _by_relation(_rows(connection, query, parameters, _Entry))
    return {t.oid: (found[0], *sorted({e.entry for e in entries.get(t.oid, ())})) for t in tables}


def _is_recent(connection: Connection) -> bool:
    return connection.info.server_version >= _COLUMN_LISTS_SINCE


def _query_table(connection: Connection, publication: str, relation: int) -> list[_Table]:
    """The table of this OID; its row filter is left out."""
    conditions = [_WHOLE_TABLE]
    if _is_recent(connection):
        conditions.append(_NO_COLUMN_LISTS)
    if connection.info.server_version >= GENERATED_COLUMNS_SINCE:
        conditions.append(_NO_GENERATED_COLUMNS)
    names = {"publication": publication, "relation": relation}
    found = _rows(connection, " AND ".join(conditions), names, _Table)
    return found or _query_tables(connection, publication, relation)


def _query_tables(connection: Connection, publication: str, relation: int | None = None) -> list[_Table]:
    """The tables of the publication, or the one of this OID."""
    recent = _is_recent(connection)
    query = _TABLES.format(
        attrs="p.attrs::int2[]" if recent else "NULL::int2[]",
        filter="pg_get_expr(p.qual, p.relid)" if recent else "NULL::text",
        toast=_TOAST,
    )
    found = _rows(connection, query, {"publication": publication, "relation": relation}, _Table)
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


def _schema(
    table: _Table, attributes: list[_Attribute], indexes: list[_Index], types: _Types, membership: tuple[int, ...]
) -> TableSchema:
    published = [a for a in attributes if _is_published(a, table.attnums)]
    index = _key_index(ReplicaIdentity(table.identity), indexes)
    key = _key(index, {a.attnum for a in published})
    return TableSchema(
        id=TableId(table.schema, table.name),
        oid=table.oid,
        columns=tuple(_column(a, key, types) for a in published),
        replica_identity=ReplicaIdentity(table.identity),
        row_filter=table.row_filter,
        membership=membership,
        key_index=index.identifier if key else 0,
        toast=table.toast,
        type_shape=tuple(sorted({part for a in published for part in types.shapes.get(a.type, ())})),
        left_out=tuple(a.name for a in attributes if a.generated and not _is_published(a, table.attnums)),
        natts=table.natts,
    )


def _is_published(attribute: _Attribute, attnums: Sequence[int] | None) -> bool:
    return attribute.attnum in attnums if attnums else not attribute.generated


def _key_index(identity: ReplicaIdentity, indexes: list[_Index]) -> _Index:
    by_index = identity is ReplicaIdentity.INDEX
    return next((i for i in indexes if (i.is_identity if by_index else i.is_primary)), _NO_INDEX)


def _key(index: _Index, published: set[int]) -> dict[int, int]:
    """Attnum to place in the key; empty when the stream cannot carry the whole key."""
    places = {attnum: place for place, attnum in enumerate(index.attnums)}
    return places if published.issuperset(places) else {}


def _column(attribute: _Attribute, key: Mapping[int, int], types: _Types) -> Column:
    return Column(
        attnum=attribute.attnum,
        name=attribute.name,
        type=types.resolve(attribute.type, attribute.typmod, name=attribute.type_name),
        nullable=attribute.nullable,
        key_ordinal=key.get(attribute.attnum),
        missing=attribute.missing,
    )


class _Types:
    """The types in use, resolved once each."""

    def __init__(self, rows: Iterable[_Type], shapes: Mapping[int, Sequence[str]]) -> None:
        self.shapes = shapes
        self._rows = {row.oid: row for row in rows}
        self._resolved: dict[tuple[int, int, str], PgType] = {}

    @classmethod
    def read(cls, connection: Connection, oids: set[int]) -> _Types:
        types = {"types": sorted(oids)}
        shapes: dict[int, list[str]] = {}
        for oid, part in connection.execute(_SHAPES, types):
            shapes.setdefault(oid, []).append(part)
        return cls(_rows(connection, _TYPES, types, _Type), shapes)

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
