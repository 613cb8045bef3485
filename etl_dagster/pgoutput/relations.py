"""What the stream says of a table, held against what the catalogue said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from etl_dagster.arrow import arrow_schema, reads_text
from etl_dagster.model import Column, TableSchema
from etl_dagster.pgoutput.evolution import IDENTITIES_WITH_KEY, type_differs
from etl_dagster.pgoutput.messages import Relation


@dataclass(frozen=True)
class Binding:
    """A relation of the stream and the table it stands for.

    Attributes:
        table: None when nobody asked for this relation.
        drift: What differs from ``table``; then its changes cannot be read into it. Empty when nothing does.
        followed: The table's schema was worked out from the relation; its columns are in the relation's order, perhaps
            under other names.
    """

    relation: Relation
    table: TableSchema | None
    drift: str = ""
    followed: bool = False

    @property
    def readable(self) -> TableSchema | None:
        """The table, when changes can be read into it."""
        return None if self.drift else self.table

    @cached_property
    def places(self) -> tuple[int, ...]:
        """For each column of the table, its place in the stream's tuples."""
        assert self.table is not None
        if self.followed:
            return tuple(range(len(self.table.columns)))
        names = [column.name for column in self.relation.columns]
        return tuple(names.index(column.name) for column in self.table.columns)

    @cached_property
    def schema(self) -> pa.Schema:
        """Arrow schema of the rows."""
        assert self.table is not None
        return arrow_schema(self.table)

    @cached_property
    def text_places(self) -> frozenset[int]:
        """Places in the stream's tuples of columns that must be read as text."""
        if self.readable is None:
            return frozenset()
        columns = zip(self.readable.columns, self.places, strict=True)
        return frozenset(place for column, place in columns if reads_text(column))


def bind(relation: Relation, table: TableSchema | None) -> Binding:
    """Hold a relation against the table of its OID."""
    if table is None:
        return Binding(relation, None)
    return Binding(relation, table, "; ".join(_differences(relation, table)))


def _differences(relation: Relation, table: TableSchema) -> Iterator[str]:
    if (relation.schema, relation.name) != tuple(table.id):
        yield f"the table is now {relation.schema}.{relation.name}"
    streamed = {column.name: column for column in relation.columns}
    known = {column.name: column for column in table.columns}
    for name in known.keys() - streamed.keys():
        yield f"column {name} is gone"
    for name in streamed.keys() - known.keys():
        yield f"column {name} is new"
    if known.keys() == streamed.keys() and list(streamed) != [column.name for column in _in_order(table)]:
        yield "columns have taken each other's names"
    for name in known.keys() & streamed.keys():
        if type_differs(known[name], streamed[name]):
            yield f"column {name} is no longer {known[name].type.name}"
    if relation.replica_identity in IDENTITIES_WITH_KEY:
        yield from _key_difference(relation, table)


def _in_order(table: TableSchema) -> list[Column]:
    """As the stream announces them: by number."""
    return sorted(table.columns, key=lambda column: column.attnum)


def _key_difference(relation: Relation, table: TableSchema) -> Iterator[str]:
    streamed = sorted(column.name for column in relation.columns if column.key)
    if streamed != sorted(column.name for column in table.key):
        yield f"the key is now ({', '.join(streamed)})"
