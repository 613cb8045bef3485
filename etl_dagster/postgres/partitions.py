"""What of a table lies in its partitions: the heaps, and the values of rows that are older than a column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from etl_dagster.model import TableId, TableSchema
from etl_dagster.postgres.sessions import Connection

# Tables and all partitions below them. Whether a partition was created as one is nowhere said, but shows: only then are
# its columns' rows, which say that they are inherited, older than the row that links it to its parent. ATTACH writes
# both by one command, and what touches them later leaves another transaction's id, in xmax if it was rolled back.
_TREE = """
WITH RECURSIVE tree(root, relation, links, born) AS (
    SELECT oid, oid, '', true FROM pg_class WHERE oid = ANY(%(relations)s)
  UNION ALL
    SELECT tree.root, i.inhrelid, tree.links || '/' || i.xmin::text, tree.born AND i.xmax = 0 AND EXISTS (
        SELECT FROM pg_attribute a
        WHERE a.attrelid = i.inhrelid AND a.attnum > 0 AND a.attinhcount = 1 AND NOT a.attislocal
          AND a.xmax = 0 AND a.xmin = i.xmin AND a.cmin::text::bigint < i.cmin::text::bigint
    )
    FROM tree JOIN pg_class parent ON parent.oid = tree.relation AND parent.relkind = 'p'
    JOIN pg_inherits i ON i.inhparent = tree.relation AND NOT i.inhdetachpending
)
"""
_FILES = (
    _TREE
    + """
SELECT tree.root, c.oid, c.relfilenode, CASE WHEN tree.root <> c.oid THEN tree.links ELSE (
           SELECT string_agg(a.xmin::text, ',' ORDER BY a.attnum)
           FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0
       ) END, tree.born AND tree.root <> c.oid, c.relkind = 'r'
FROM tree JOIN pg_class c ON c.oid = tree.relation ORDER BY tree.root, c.oid
"""
)

# The columns of a partitioned table never have a missing value of their own. A leaf whose row of the column is as old
# as those of its system columns is not older than the column, and says nothing of it.
_LEAVES_MISSING = (
    _TREE
    + """
SELECT tree.root, a.attname, min(array_to_string(a.attmissingval, '') COLLATE "C"),
       bool_and(a.atthasmissing) AND count(DISTINCT array_to_string(a.attmissingval, '') COLLATE "C") = 1
FROM tree JOIN pg_class c ON c.oid = tree.relation AND c.relkind = 'r'
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE a.atthasmissing OR NOT EXISTS (
    SELECT FROM pg_attribute s WHERE s.attrelid = c.oid AND s.attnum < 0 AND s.xmin = a.xmin
)
GROUP BY tree.root, a.attname
HAVING bool_or(a.atthasmissing)
"""
)


@dataclass(frozen=True, slots=True)
class RelationFile:
    """One heap of a table.

    Attributes:
        attachment: Of a partition, tells when it, and every level up to the table, was attached; another text after it
            was again. Of a table's own heap, tells when each column was last altered; columns that are added stand at
            the end.
        born_partition: It was created as a partition, as was every level up to the table, and was never detached. False
            also where that cannot be told any more.
    """

    relation: int
    filenode: int
    attachment: str
    born_partition: bool


def heap_files(connection: Connection, tables: Sequence[TableSchema]) -> dict[TableId, list[RelationFile]]:
    """The heaps of each table, its own or those of its leaf partitions; tables that are gone are left out."""
    names = {table.oid: table.id for table in tables}
    files: dict[TableId, list[RelationFile]] = {}
    for root, relation, filenode, attachment, born_partition, is_heap in connection.execute(
        _FILES, {"relations": list(names)}
    ):
        heaps = files.setdefault(names[root], [])
        if is_heap:
            heaps.append(RelationFile(relation, filenode, attachment, born_partition))
    return files


def missing_in_leaves(connection: Connection, roots: Sequence[int]) -> dict[int, dict[str, str | None]]:
    """By name of the column, the missing value that all leaf partitions of a partitioned table agree on.

    None where they disagree; columns that have none in any leaf are left out.
    """
    missing: dict[int, dict[str, str | None]] = {root: {} for root in roots}
    if roots:
        for root, name, value, agreed in connection.execute(_LEAVES_MISSING, {"relations": list(roots)}):
            missing[root][name] = value if agreed else None
    return missing
