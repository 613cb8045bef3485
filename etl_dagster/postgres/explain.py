"""What the planner expects of reading a table: asked before a copy, of a query that is not run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from etl_dagster.postgres.sessions import Connection, fetch_one

_Node = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scan:
    """How one heap is read: through an index that finds the rows wanted, or block by block."""

    schema: str
    name: str
    rows: int
    cost: float
    by_index: bool


@dataclass(frozen=True, slots=True)
class Explained:
    """The plan of a query: what it costs, how it reads each heap, and whether it has to sort."""

    cost: float
    scans: tuple[Scan, ...]
    sorts: bool


def explain_rows(connection: Connection, source: sql.Composable, condition: sql.Composable) -> Explained:
    """The plan of reading the rows ``t`` that fulfil a condition."""
    # The system column keeps the planner from reading an index alone, which cannot give what the copy wants.
    return explain(connection, sql.SQL("SELECT t.ctid FROM {} AS t WHERE {}").format(source, condition))


def explain(connection: Connection, query: sql.Composable) -> Explained:
    """The plan of a query."""
    (found,) = fetch_one(connection, sql.SQL("EXPLAIN (FORMAT JSON, VERBOSE) {}").format(query).as_bytes(connection))
    top: _Node = found[0]["Plan"]
    nodes = list(_walk(top))
    scans = tuple(_scan(node) for node in nodes if "Relation Name" in node)
    return Explained(top["Total Cost"], scans, any(node["Node Type"].endswith("Sort") for node in nodes))


def _walk(node: _Node) -> Iterator[_Node]:
    yield node
    for child in node.get("Plans", ()):
        yield from _walk(child)


def _scan(node: _Node) -> Scan:
    # A partial index may be read as a whole, without a condition: then a part of the slice would cost as much.
    indexes = [below for below in _walk(node) if "Index Name" in below]
    by_index = bool(indexes) and all("Index Cond" in index for index in indexes)
    return Scan(node["Schema"], node["Relation Name"], node["Plan Rows"], node["Total Cost"], by_index)
