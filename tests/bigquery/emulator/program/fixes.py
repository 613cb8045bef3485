"""What the emulator does otherwise than BigQuery, put right."""

from __future__ import annotations

from typing import Any

import strict
from duckdb.sqltypes import DuckDBPyType
from local_bigquery.catalog import metadata, tables
from local_bigquery.engine import database, types
from local_bigquery.errors import BigQueryError
from local_bigquery.jobs import copy, runner
from local_bigquery.models import Table, TableFieldSchema
from local_bigquery.sql import rules
from local_bigquery.sql.dialect import macro
from sqlglot import exp

# BigQuery's canonical form, "Y-M D H:M:S.ffffff": the sign stands in front of each of its three parts.
INTERVAL_MACROS = r"""
CREATE MACRO bq.main._interval_part(text, part) AS CAST(nullif(regexp_extract(
    text, '^([+-]?)(\d+)-(\d+) ([+-]?\d+) ([+-]?)(\d+):(\d+):(\d+(?:\.\d+)?)$', part), '') AS DOUBLE);
CREATE MACRO bq.main._interval_sign(text, part) AS CASE WHEN regexp_extract(
    text, '^([+-]?)(\d+)-(\d+) ([+-]?\d+) ([+-]?)(\d+):(\d+):(\d+(?:\.\d+)?)$', part) = '-' THEN -1 ELSE 1 END;
CREATE MACRO bq.main._to_interval(text) AS CASE
    WHEN text IS NULL THEN NULL
    WHEN bq.main._interval_part(text, 2) IS NULL THEN CAST(text AS INTERVAL)
    ELSE to_months(CAST(bq.main._interval_sign(text, 1) * (
            bq.main._interval_part(text, 2) * 12 + bq.main._interval_part(text, 3)) AS INTEGER))
        + to_days(CAST(bq.main._interval_part(text, 4) AS INTEGER))
        + to_microseconds(CAST(round(bq.main._interval_sign(text, 5) * (
            (bq.main._interval_part(text, 6) * 60 + bq.main._interval_part(text, 7)) * 60
            + bq.main._interval_part(text, 8)) * 1000000) AS BIGINT))
    END;
"""

MOST_DIGITS = 38
NUMERIC_DIGITS = 29

_original_copy = copy.run
_original_duckdb_type = types.duckdb_type
_original_scalar = types._scalar


def apply() -> None:
    """Put them in; before the first connection."""
    runner.HANDLERS["copy"] = _copy
    rules.NODE_RULES.append(_interval_of_text)
    types.duckdb_type = _duckdb_type
    types._scalar = _scalar
    connect = database._connect

    def with_macros() -> Any:
        connection = connect()
        if connection not in _prepared:
            connection.execute(INTERVAL_MACROS)
            _prepared.append(connection)
        return connection

    database._connect = with_macros


_prepared: list[Any] = []


def _duckdb_type(field: TableFieldSchema) -> str:
    """BIGNUMERIC has 76 digits, DuckDB's decimals have 38: with parameters, they are where they are needed."""
    if field.type not in ("BIGNUMERIC", "BIGDECIMAL") or not 0 < int(field.precision or 0) <= MOST_DIGITS:
        return _original_duckdb_type(field)
    name = f"DECIMAL({field.precision}, {field.scale or 0})"
    return f"{name}[]" if field.mode == "REPEATED" else name


def _scalar(kind: DuckDBPyType) -> tuple[str, str]:
    """DuckDB's decimal is either; more digits before the point than NUMERIC has make it a BIGNUMERIC."""
    if kind.id == "decimal":
        precision, scale = (value for _, value in kind.children)
        if precision - scale > NUMERIC_DIGITS:
            return "BIGNUMERIC", str(kind)
    return _original_scalar(kind)


def _interval_of_text(node: exp.Expression, context: Any) -> exp.Expression:
    text = isinstance(node, exp.Cast) and not isinstance(node.this, exp.Interval)
    if not text or not node.to.is_type(exp.DataType.Type.INTERVAL):
        return node
    return macro("_to_interval", exp.cast(node.this, "TEXT"))


def _copy(cur: Any, config: Any, upload: str | None) -> Any:
    """A copy has the layout and the columns' parameters of what it was made of."""
    source = tables.reference((config.sourceTables or [config.sourceTable])[0])
    destination = tables.reference(config.destinationTable)
    replaces = config.writeDisposition == "WRITE_TRUNCATE" or not tables.exists(*destination)
    existing = strict.layout_of(destination)
    if replaces and existing is not None and existing != strict.layout_of(source):
        raise BigQueryError("invalid", "Incompatible table partitioning or clustering specification")
    result = _original_copy(cur, config, upload)
    stored = metadata.load(Table, *source)
    if stored and replaces and config.operationType not in copy.CLONES:
        kept = {"schema", *tables.LAYOUT}
        layout = {name: stored.dump().get(name) for name in kept}
        target = metadata.load(Table, *destination) or tables.defaults(*destination)
        tables.record(*destination, Table.model_validate(target.dump() | layout))
    return result
