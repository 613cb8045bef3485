"""Which schema a relation of the stream speaks of: right by the columns' numbers, or not told at all."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl_dagster.model import Column, PgType, TableId, TableSchema
from etl_dagster.pgoutput import Relation, RelationColumn
from etl_dagster.pgoutput.evolution import evolve

INT8, INT4, TEXT = 20, 23, 25
Columns = dict[int, tuple[str, int]]


@dataclass
class Table:
    """A table that is altered, and numbers its columns as the server does."""

    columns: Columns = field(default_factory=lambda: {1: ("id", INT8)})
    natts: int = 1

    def add(self, name: str, type_oid: int = TEXT) -> None:
        self.natts += 1
        self.columns = {**self.columns, self.natts: (name, type_oid)}

    def drop(self, name: str) -> None:
        self.columns = {number: column for number, column in self.columns.items() if column[0] != name}

    def rename(self, name: str, new: str) -> None:
        self.columns = {
            number: (new if column[0] == name else column[0], column[1]) for number, column in self.columns.items()
        }

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.columns.values()]

    def schema(self) -> TableSchema:
        return schema(self.columns, self.natts)

    def relation(self) -> Relation:
        return relation(self.columns)


def schema(columns: Columns, natts: int) -> TableSchema:
    return TableSchema(
        id=TableId("public", "t"),
        oid=7,
        columns=tuple(
            Column(
                attnum=number,
                name=name,
                type=PgType(oid=oid, name=str(oid), declared_oid=oid),
                key_ordinal=0 if number == 1 else None,
            )
            for number, (name, oid) in columns.items()
        ),
        natts=natts,
    )


def relation(columns: Columns) -> Relation:
    streamed = tuple(RelationColumn(name, oid, -1, number == 1) for number, (name, oid) in columns.items())
    return Relation(7, "public", "t", "d", streamed)


def table(*names: str) -> Table:
    made = Table()
    for name in names:
        made.add(name)
    return made


def shape(of: TableSchema) -> list[tuple[int, str]]:
    return [(column.attnum, column.name) for column in of.columns]


def contradicts(known: TableSchema, announced: Relation) -> bool:
    """What the decoder asks first: whether the relation looks different."""
    return [(c.name, c.type.declared_oid) for c in known.columns] != [(c.name, c.type_oid) for c in announced.columns]


def altered(steps: Sequence[tuple[str, int, int]], names: str, types: Sequence[int]) -> list[Table]:
    """The states of a table, each one alteration on from the last."""
    states = [table("a", "b")]
    for step, which, what in steps:
        last = states[-1]
        following = Table(last.columns, last.natts)
        free = [name for name in names if name not in last.names]
        columns = last.names[1:]
        if step == "add" and free:
            following.add(free[what % len(free)], types[which % len(types)])
        elif step == "drop" and columns:
            following.drop(columns[which % len(columns)])
        elif step == "rename" and columns and free:
            following.rename(columns[which % len(columns)], free[what % len(free)])
        states.append(following)
    return states


STEPS = st.tuples(st.sampled_from(("add", "drop", "rename")), st.integers(0, 9), st.integers(0, 9))


@given(
    steps=st.lists(STEPS, min_size=1, max_size=10),
    types=st.sampled_from(((TEXT,), (TEXT, INT4))),
    dropped_before=st.integers(0, 4),
    data=st.data(),
)
def test_a_relation_is_read_by_the_numbers_of_its_columns_or_not_at_all(
    steps: list[tuple[str, int, int]], types: tuple[int, ...], dropped_before: int, data: st.DataObject
) -> None:
    states = altered(steps, "abcde", types)[min(dropped_before, len(steps) - 1) :]
    known, now = states[0].schema(), states[-1].schema()
    announced = data.draw(st.lists(st.booleans(), min_size=len(states), max_size=len(states)))
    for state in [state for state, told in zip(states, announced, strict=True) if told]:
        if not contradicts(known, state.relation()):
            if [column.attnum for column in known.columns] != list(state.columns):
                return  # dropped and added again under the same name: no message tells
            continue
        evolution = evolve(known, state.relation(), now)
        if evolution is None:
            return
        assert [column.attnum for column in evolution.schema.columns] == list(state.columns)
        if evolution.advances:
            known = evolution.schema


def refused(changes: int, seed: int, *, ahead: bool) -> float:
    """Share of contradictions that cannot be followed, in a table of mixed types."""
    chance = random.Random(seed)
    asked = lost = 0
    for _ in range(600):
        steps = [
            (chance.choice(("add", "drop", "rename")), chance.randrange(10), chance.randrange(10))
            for _ in range(4 + changes)
        ]
        states = altered(steps, "abcdefgh", (TEXT, INT4, INT8))[4:]
        told = states[chance.randrange(1, len(states))] if ahead else states[-1]
        if contradicts(states[0].schema(), told.relation()):
            asked += 1
            lost += evolve(states[0].schema(), told.relation(), states[-1].schema()) is None
    return lost / asked


def test_refusals_are_rare() -> None:
    assert refused(1, 1, ahead=False) == 0
    assert refused(2, 2, ahead=False) < 0.06
    assert refused(2, 5, ahead=True) < 0.12
    assert refused(4, 3, ahead=False) < 0.2


def test_added_renamed_and_dropped_at_once() -> None:
    altering = table("a", "b", "c")
    known = altering.schema()
    altering.add("d", INT4)
    altering.rename("b", "e")
    altering.drop("a")
    evolution = evolve(known, altering.relation(), altering.schema())
    assert evolution is not None
    assert evolution.advances
    assert shape(evolution.schema) == [(1, "id"), (3, "e"), (4, "c"), (5, "d")]
    assert evolution.schema.natts == 5
    assert [column.name for column in evolution.schema.key] == ["id"]


def test_swapped_names_are_two_renames() -> None:
    altering = table("a", "b")
    known = altering.schema()
    altering.rename("a", "t")
    altering.rename("b", "a")
    altering.rename("t", "b")
    evolution = evolve(known, altering.relation(), altering.schema())
    assert evolution is not None
    assert shape(evolution.schema) == [(1, "id"), (2, "b"), (3, "a")]


def test_a_column_dropped_later_is_still_there() -> None:
    altering = table("a", "b")
    known = altering.schema()
    altering.add("c")
    announced = altering.relation()
    altering.drop("a")
    evolution = evolve(known, announced, altering.schema())
    assert evolution is not None
    assert shape(evolution.schema) == [(1, "id"), (2, "a"), (3, "b"), (4, "c")]


def test_a_new_column_that_was_renamed_later_has_the_name_of_then() -> None:
    altering = table("a")
    known = altering.schema()
    altering.add("b", INT4)
    announced = altering.relation()
    altering.rename("b", "c")
    evolution = evolve(known, announced, altering.schema())
    assert evolution is not None
    assert shape(evolution.schema) == [(1, "id"), (2, "a"), (3, "b")]


def test_an_older_relation_is_read_with_the_columns_it_has_and_undoes_nothing() -> None:
    altering = table("a")
    older = altering.relation()
    altering.rename("a", "b")
    altering.add("c")
    known = altering.schema()
    evolution = evolve(known, older, altering.schema())
    assert evolution is not None
    assert not evolution.advances
    assert shape(evolution.schema) == [(1, "id"), (2, "b")]


def test_an_older_relation_with_a_column_dropped_since_is_not_read() -> None:
    altering = table("a")
    older = altering.relation()
    altering.drop("a")
    altering.add("b")
    assert evolve(altering.schema(), older, altering.schema()) is None


def test_what_one_name_had_before_and_has_again_is_not_guessed() -> None:
    altering = table("a")
    known = altering.schema()
    altering.rename("a", "c")
    announced = altering.relation()
    altering.drop("c")
    altering.add("c")
    assert evolve(known, announced, altering.schema()) is None


def test_a_column_added_and_dropped_meanwhile_is_not_guessed() -> None:
    altering = table("a")
    known = altering.schema()
    altering.add("b")
    announced = altering.relation()
    altering.drop("b")
    altering.add("c")
    assert evolve(known, announced, altering.schema()) is None


@pytest.mark.parametrize(
    ("known", "announced", "now"),
    [
        ({1: ("id", INT8), 2: ("a", TEXT)}, {1: ("id", INT8), 2: ("a", INT4)}, {1: ("id", INT8), 2: ("a", INT4)}),
        ({1: ("id", INT8)}, {1: ("id", INT4), 2: ("a", TEXT)}, {1: ("id", INT4), 2: ("a", TEXT)}),
        ({1: ("id", INT8)}, {1: ("id", INT8), 2: ("a", TEXT)}, {1: ("id", INT8), 2: ("a", INT4)}),
    ],
)
def test_another_type_is_not_followed(known: Columns, announced: Columns, now: Columns) -> None:
    assert evolve(schema(known, len(known)), relation(announced), schema(now, len(now))) is None


def test_a_column_that_joins_through_the_column_list_is_not_followed() -> None:
    everything = table("a", "b")
    known = schema({1: ("id", INT8), 3: ("b", TEXT)}, 3)
    assert evolve(known, everything.relation(), everything.schema()) is None


def test_a_new_column_is_not_followed_where_nobody_knows_which_numbers_are_new() -> None:
    altering = table("a")
    known = altering.schema().model_copy(update={"natts": 0})
    altering.add("b")
    assert evolve(known, altering.relation(), altering.schema()) is None
    altering.drop("b")
    altering.rename("a", "c")
    assert evolve(known, altering.relation(), altering.schema()) is not None


def test_another_key_or_name_is_not_followed() -> None:
    altering = table("a")
    known = altering.schema()
    altering.add("b")
    now = altering.schema()
    announced = altering.relation()
    other_key = tuple(RelationColumn(c.name, c.type_oid, c.typmod, c.name == "a") for c in announced.columns)
    assert evolve(known, Relation(7, "public", "t", "d", other_key), now) is None
    assert evolve(known, Relation(7, "public", "u", "d", announced.columns), now) is None
    assert evolve(known, announced, now.model_copy(update={"id": TableId("public", "u")})) is None
    assert evolve(known, announced, now) is not None
