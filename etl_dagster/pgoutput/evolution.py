"""Which schema a relation message of the stream speaks of, when it is not the one known.

A relation message gives names and types in the order of the columns' numbers, but not the numbers, and only the number
says which column is which. Two schemas have them: the one known, from before, and that of the catalogue, from after,
perhaps by several alterations. So every way to number the relation's columns that agrees with both is weighed by the
renames that it takes beyond those which the two schemas show, and the cheapest is believed when no other comes near.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from heapq import nsmallest

from etl_dagster.arrow import column_type, reads_text
from etl_dagster.model import Column, TableSchema, TypeKind
from etl_dagster.pgoutput.messages import Relation, RelationColumn

# With these the columns flagged in the stream are those of the key; FULL flags all, NOTHING none.
IDENTITIES_WITH_KEY = frozenset("di")
# By how many renames nobody saw another reading must be worse than the one that is believed. With 3, a hundred thousand
# random histories of a table with three to five names brought no wrong reading; with 2, a few of the longest did.
MARGIN = 3


# text and varchar
_TEXTS = frozenset([25, 1043])


@dataclass(frozen=True, slots=True)
class Evolution:
    """The schema that a relation speaks of; its columns are those of the relation, one by one.

    Attributes:
        advances: It is newer than the one known. If not, an older relation came again, or nothing that matters changed.
    """

    schema: TableSchema
    advances: bool


def type_differs(known: Column, streamed: RelationColumn) -> bool:
    """Compare with the declared type, because the stream announces domains, not what they stand for."""
    type_ = known.type
    if type_.declared_oid == 0:
        return False
    if type_.declared_oid != streamed.type_oid:
        return True
    return type_.declared_oid == type_.oid and type_.typmod != streamed.typmod


def keeps_values(known: Column, now: Column) -> bool:
    """Whether the same bytes are the same value in both types, which land alike.

    Then a column that got the other type has the values it had, unless its rows were rewritten: an expression behind
    USING that is more than the column itself always rewrites them, and nothing but that tells of it.
    """
    types = (known.type, now.type)
    if not all(type_.kind is TypeKind.BASE and type_.declared_oid == type_.oid for type_ in types):
        return False
    oids = {type_.oid for type_ in types}
    lands_alike = column_type(known) == column_type(now) and reads_text(known) == reads_text(now)
    return (len(oids) == 1 or oids <= _TEXTS) and lands_alike


def evolve(known: TableSchema, relation: Relation, now: TableSchema) -> Evolution | None:
    """Work out the schema of a relation that contradicts the one known.

    Args:
        now: What the catalogue says at some time after the relation.

    Returns:
        None when there is no schema that agrees with all three, or more than one that is likely.
    """
    if not _same_table(known, relation, now):
        return None
    numbers = _number(_Columns(known, now), relation.columns)
    if numbers is None or not _same_key(known, relation, numbers):
        return None
    return _evolution(known, relation, now, numbers)


def _same_table(known: TableSchema, relation: Relation, now: TableSchema) -> bool:
    if not (known.id == now.id == (relation.schema, relation.name)) or known.oid != now.oid:
        return False
    return [column.attnum for column in known.key] == [column.attnum for column in now.key]


def _same_key(known: TableSchema, relation: Relation, numbers: Sequence[int]) -> bool:
    if relation.replica_identity not in IDENTITIES_WITH_KEY:
        return {column.attnum for column in known.key} <= set(numbers)
    flagged = [number for number, column in zip(numbers, relation.columns, strict=True) if column.key]
    return flagged == sorted(column.attnum for column in known.key)


def _evolution(known: TableSchema, relation: Relation, now: TableSchema, numbers: Sequence[int]) -> Evolution | None:
    former = {column.attnum: column for column in known.columns}
    present = {column.attnum: column for column in now.columns}
    columns = []
    for number, streamed in zip(numbers, relation.columns, strict=True):
        column, later = former.get(number), present.get(number)
        if column is not None and later is not None and type_differs(column, streamed):
            column = column.model_copy(update={"type": later.type})
        if column is not None and later is not None and column.name == later.name:
            columns.append(column)  # another name in the stream is one that it had before
        elif column is not None:
            columns.append(column.model_copy(update={"name": streamed.name}))
        elif later is not None and known.natts:
            columns.append(later.model_copy(update={"name": streamed.name, "key_ordinal": None}))
        else:
            return None  # a column that neither schema describes
    if len({column.name for column in columns}) < len(columns):
        return None
    newest = max(known.natts, *numbers) if known.natts else 0
    schema = known.model_copy(update={"columns": tuple(columns), "natts": newest})
    older = any(number in present and number not in numbers for number in former)
    return Evolution(schema, advances=not older and schema.columns != _in_order(known))


def _in_order(table: TableSchema) -> tuple[Column, ...]:
    return tuple(sorted(table.columns, key=lambda column: column.attnum))


class _Age(Enum):
    """When a relation was in force: after the schema known, or before it; what that costs.

    An older relation comes only where changes are read again, so what reads well as a newer one is one.
    """

    NEWER = 0
    OLDER = 2


@dataclass(frozen=True, slots=True, eq=False)
class _Path:
    """Numbers given to the first columns of a relation, the last of them here, and the unseen renames they take."""

    cost: int
    number: int = 0
    before: _Path | None = None

    @property
    def numbers(self) -> tuple[int, ...]:
        found, path = [], self
        while path.before is not None:
            found.append(path.number)
            path = path.before
        return tuple(reversed(found))


class _Columns:
    """All numbers that a table's columns ever had, and what is known of each."""

    def __init__(self, known: TableSchema, now: TableSchema) -> None:
        self.known = {column.attnum: column for column in known.columns}
        self.now = {column.attnum: column for column in now.columns}
        self.given_out = max(known.natts, *self.known, 0)
        self.last = max(self.given_out, now.natts, *self.now, 0)

    @property
    def joined(self) -> bool:
        """Old columns have come in through a column list."""
        return any(number <= self.given_out and number not in self.known for number in self.now)

    def may_lack(self, number: int, age: _Age) -> bool:
        """A relation of that age may be without the column though it has later ones."""
        return number not in self.now if age is _Age.NEWER else number not in self.known

    def may_end(self, number: int, age: _Age) -> bool:
        """A relation of that age may have been in force before the column was added."""
        return age is _Age.OLDER or number > self.given_out

    def cost(self, number: int, streamed: RelationColumn, age: _Age) -> int | None:
        """Renames nobody saw, if the streamed column has this number; None when it cannot have it."""
        known, now = self.known.get(number), self.now.get(number)
        told = known or now
        if told is None:
            return self._cost_of_dropped(number, age)
        if type_differs(told, streamed) and not self._is_altered(number, streamed, age):
            return None
        names = [column.name for column in (known, None if age is _Age.OLDER else now) if column is not None]
        return sum(name != streamed.name for name in names) - (len(set(names)) - 1)

    def _is_altered(self, number: int, streamed: RelationColumn, age: _Age) -> bool:
        """The column has its new type by then, and the values that it had."""
        known, now = self.known.get(number), self.now.get(number)
        if known is None or now is None or age is _Age.OLDER:
            return False
        return keeps_values(known, now) and not type_differs(now, streamed)

    def _cost_of_dropped(self, number: int, age: _Age) -> int | None:
        """Of a column that neither schema has, and so of any name and any type."""
        if number > self.given_out:
            return 0
        return 1 if age is _Age.OLDER else None


def _number(columns: _Columns, streamed: Sequence[RelationColumn]) -> tuple[int, ...] | None:
    """The one likely numbering of a relation's columns."""
    if columns.joined:
        return None
    newer = _Walk(columns, streamed, _Age.NEWER, sys.maxsize).paths()
    older = _Walk(columns, streamed, _Age.OLDER, newer[0].cost + MARGIN if newer else sys.maxsize).paths()
    costs: dict[tuple[int, ...], int] = {}
    for path in sorted([*newer, *older], key=lambda path: path.cost):
        costs.setdefault(path.numbers, path.cost)
    ranked = list(costs.items())[:2]
    if not ranked or (len(ranked) == 2 and ranked[1][1] - ranked[0][1] < MARGIN):
        return None
    return ranked[0][0]


@dataclass(frozen=True, slots=True)
class _Walk:
    """Goes through all numbers that a table's columns ever had, each of which a relation of that age has or lacks.

    Attributes:
        limit: What costs as much is of no interest.
    """

    columns: _Columns
    streamed: Sequence[RelationColumn]
    age: _Age
    limit: int

    def paths(self) -> Sequence[_Path]:
        """The two cheapest numberings."""
        complete = len(self.streamed)
        reached: dict[int, Sequence[_Path]] = {0: [_Path(self.age.value)]}
        ended: list[_Path] = []
        for number in range(1, self._last + 1):
            if self.columns.may_end(number, self.age):
                ended += reached.get(complete, ())
            reached = self._step(number, reached)
        return _cheapest([*ended, *reached.get(complete, ())])

    @property
    def _last(self) -> int:
        return self.columns.last if self.age is _Age.NEWER else self.columns.given_out

    def _step(self, number: int, reached: dict[int, Sequence[_Path]]) -> dict[int, Sequence[_Path]]:
        """How far each path comes with one more number; those that can no longer come to the end are left out."""
        found: dict[int, list[_Path]] = {}
        fewest = len(self.streamed) - (self._last - number)
        for count, paths in reached.items():
            if self.columns.may_lack(number, self.age) and count >= fewest:
                found.setdefault(count, []).extend(paths)
            if fewest - 1 <= count < len(self.streamed):
                found.setdefault(count + 1, []).extend(self._taken(number, count, paths))
        return {count: _cheapest(paths) for count, paths in found.items() if paths}

    def _taken(self, number: int, count: int, paths: Iterable[_Path]) -> Iterator[_Path]:
        cost = self.columns.cost(number, self.streamed[count], self.age)
        if cost is not None:
            yield from (_Path(path.cost + cost, number, path) for path in paths if path.cost + cost < self.limit)


def _cheapest(paths: Iterable[_Path]) -> Sequence[_Path]:
    return nsmallest(2, dict.fromkeys(paths), key=lambda path: path.cost)
