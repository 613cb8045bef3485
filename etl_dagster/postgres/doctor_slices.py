"""The doctor's look at partition rules: how many slices they make, and whether an index finds the rows of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from psycopg import sql

from etl_dagster.errors import EtlError
from etl_dagster.model import CheckResult, KeyRanges, TableSchema, TimeWindows
from etl_dagster.model.slices import MAX_SLICES, TEXT_TYPES
from etl_dagster.postgres.config import SourceConfig
from etl_dagster.postgres.errors import translating
from etl_dagster.postgres.findings import quoted
from etl_dagster.postgres.sessions import Connection, connect
from etl_dagster.postgres.slices import SliceColumn

Rule = TimeWindows | KeyRanges

# Per table: whether it is partitioned at the source, its heaps, their bytes, and those heaps without an index that
# begins with the column, in the collation that slices are compared in. A pattern or bloom class knows no ranges.
_HEAPS = """
SELECT t.place, c.relkind = 'p', count(*),
       (sum(greatest(h.relpages, 0)::bigint) * current_setting('block_size')::bigint)::bigint,
       count(*) FILTER (WHERE NOT EXISTS (
           SELECT FROM pg_index i
           JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am m ON m.oid = x.relam
           JOIN pg_opclass o ON o.oid = i.indclass[0]
           JOIN pg_attribute a ON a.attrelid = h.oid AND a.attname = t.name AND a.attnum = i.indkey[0]
           WHERE i.indrelid = h.oid AND i.indisvalid AND i.indpred IS NULL AND m.amname IN ('btree', 'brin')
             AND o.opcname NOT LIKE ALL ('{%%pattern_ops,%%bloom_ops}')
             AND (NOT t.bytewise OR i.indcollation[0] = '"C"'::regcollation)
             AND (t.bytewise OR i.indcollation[0] = a.attcollation)))
FROM unnest(%s::oid[], %s::name[], %s::bool[]) WITH ORDINALITY t(oid, name, bytewise, place)
JOIN pg_class c ON c.oid = t.oid
CROSS JOIN LATERAL (SELECT relid::oid FROM pg_partition_tree(t.oid) WHERE isleaf
                    UNION SELECT t.oid WHERE c.relkind <> 'p') l
JOIN pg_class h ON h.oid = l.relid
GROUP BY t.place, c.relkind
"""


def check_slices(config: SourceConfig, tables: Sequence[tuple[TableSchema, Rule]]) -> list[CheckResult]:
    """A line for each table with a rule that fits it; what could be better is advice, and fails nothing."""
    if not tables:
        return []
    try:
        with connect(config.connection) as connection, translating("cannot check slices", config.connection.secrets()):
            return list(_results(connection, tables))
    except EtlError as error:
        return [CheckResult("partitions", False, error.message, error.hint)]


def _results(connection: Connection, tables: Sequence[tuple[TableSchema, Rule]]) -> Iterator[CheckResult]:
    bytewise = [_is_compared_bytewise(connection, table, rule) for table, rule in tables]
    oids, names = [table.oid for table, _ in tables], [rule.column for _, rule in tables]
    rows = connection.execute(_HEAPS, [oids, names, bytewise]).fetchall()
    heaps = {int(place) - 1: found for place, *found in rows}
    for place, (table, rule) in enumerate(tables):
        partitioned, count, size, unserved = heaps.get(place, (False, 0, 0, 0))
        told, todo = _slices(rule)
        if unserved:
            name = ".".join(quoted(connection, part) for part in table.id)
            column = quoted(connection, rule.column) + (' COLLATE "C"' if bytewise[place] else "")
            how = "CREATE INDEX" if partitioned else "CREATE INDEX CONCURRENTLY"
            where = f"{unserved} of its {count} partitions" if partitioned else f"the table, {size / 1e6:,.0f} MB"
            told += f"; no index serves: each slice costs the source a scan of {where}"
            todo = [*todo, f"Run {how} ON {name} ({column})"]
        elif count:
            told += "; an index finds them"
        yield CheckResult(f"partitions of {table.id}", True, told, ". ".join(todo))


def _slices(rule: Rule) -> tuple[str, list[str]]:
    if isinstance(rule, KeyRanges):
        return f"ranges of {rule.column}, of about {rule.rows:,} rows each", []
    count = len(rule.begins(datetime.now(UTC)))
    told = f"{count:,} slices, one for each {rule.every} of {rule.column} ({rule.timezone})"
    if count == 1 and rule.start > datetime.now(UTC).date():
        return told, ["Take an earlier start: it is still to come, and until then Dagster has no partition to copy"]
    if count <= MAX_SLICES:
        return told, []
    return told, [f"Take a later start or wider windows: more than {MAX_SLICES:,} slices make Dagster slow"]


def _is_compared_bytewise(connection: Connection, table: TableSchema, rule: Rule) -> bool:
    """Whether the collation is named in conditions, so that only an index of that collation serves."""
    column = next(column for column in table.columns if column.name == rule.column)
    return column.type.oid in TEXT_TYPES and not isinstance(
        SliceColumn(connection, table, column).value, sql.Identifier
    )
