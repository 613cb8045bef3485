"""The heaps that hold a table's rows, its own or those of its leaf partitions, as they are measured before a copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from etl_dagster.errors import TableError
from etl_dagster.model import TableId, TableSchema
from etl_dagster.postgres.sessions import Connection

# Asked for each table of a copy of thousands, so it has nothing that takes the planner long.
_HEAP = """
SELECT c.oid, coalesce(pg_relation_filenode(c.oid), 0),
       coalesce(pg_relation_size(c.oid), 0) / current_setting('block_size')::int,
       CASE WHEN c.relpages > 0 AND c.reltuples > 0 THEN c.reltuples / c.relpages ELSE 0 END,
       coalesce(pg_relation_size(c.oid), 0) + coalesce(pg_relation_size(nullif(c.reltoastrelid, 0)), 0)
FROM pg_class c WHERE c.relkind = 'r' AND c.oid """
_OWN = _HEAP + "= %s"
# Given as a list, since the planner takes any tree to have a thousand members, and would read all of pg_class.
_LEAVES = _HEAP + "= ANY(ARRAY(SELECT relid::oid FROM pg_partition_tree(%s) WHERE isleaf))"
# Of all tables at once; a table that is not partitioned is in no tree.
_BYTES = """
SELECT t.oid, sum(coalesce(pg_relation_size(c.oid), 0) + coalesce(pg_relation_size(nullif(c.reltoastrelid, 0)), 0))
FROM unnest(%s::oid[]) t(oid)
CROSS JOIN LATERAL (SELECT t.oid UNION SELECT relid FROM pg_partition_tree(t.oid) WHERE isleaf) h(oid)
JOIN pg_class c ON c.oid = h.oid AND c.relkind = 'r'
GROUP BY t.oid
"""
_NAMES = """
SELECT c.oid, n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY(%s)
"""
_NAME = """
SELECT n.nspname, c.relname, c.relkind = 'p'
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %s
"""


@dataclass(frozen=True, slots=True)
class Heap:
    """One heap.

    Attributes:
        density: Rows in a block, as the last VACUUM or ANALYZE found; 0 when there was none yet.
        bytes: Size of the file, and of the one that holds its large values.
    """

    relation: int
    filenode: int
    blocks: int
    density: float
    bytes: int

    @property
    def rows(self) -> float:
        """Rows expected."""
        return self.density * self.blocks


def read_heaps(connection: Connection, table: TableSchema) -> list[Heap]:
    """The heaps of the table; none for a partitioned table without partitions.

    Raises:
        TableError: The table is gone.
    """
    for query in (_OWN, _LEAVES):
        if found := connection.execute(query, [table.oid]).fetchall():
            return [Heap(*row) for row in found]
    name_of(connection, table, table.oid)  # it is there, only without partitions
    return []


def table_bytes(connection: Connection, tables: Sequence[TableSchema]) -> dict[TableId, int]:
    """Bytes of the heaps of each table with their large values; tables that are gone have none."""
    found = connection.execute(_BYTES, [[table.oid for table in tables]]).fetchall()
    sizes = {oid: int(size) for oid, size in found}
    return {table.id: sizes.get(table.oid, 0) for table in tables}


def heap_names(connection: Connection, heaps: Sequence[Heap]) -> dict[int, tuple[str, str]]:
    """Schema and name of each heap, by its OID; those that are gone are left out."""
    found = connection.execute(_NAMES, [[heap.relation for heap in heaps]])
    return {oid: (str(schema), str(name)) for oid, schema, name in found}


def name_of(connection: Connection, table: TableSchema, oid: int) -> tuple[sql.Composable, bool]:
    """The name of the table or of a partition of it, and whether it is partitioned itself.

    Raises:
        TableError: It is gone.
    """
    row = connection.execute(_NAME, [oid]).fetchone()
    if row is None:
        raise TableError(
            f"table {table.id} or a partition of it no longer exists", hint="Copy it again", table=str(table.id)
        )
    return sql.Identifier(str(row[0]), str(row[1])), bool(row[2])


def rows_of(connection: Connection, table: TableSchema, oid: int) -> sql.Composable:
    """What stands behind FROM to read all rows of the table or of a partition of it, and no others.

    Raises:
        TableError: It is gone.
    """
    name, is_partitioned = name_of(connection, table, oid)
    return name if is_partitioned else sql.SQL("ONLY {}").format(name)
