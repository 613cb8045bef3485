"""Every type of a live server as the type of a column, and values for each of them, made out of those of base types."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from tests.types.values import INSIDE_OF_INDEXES, MADE, VALUES

Connection = psycopg.Connection[Any]

# Offered by the server or not: what a stock server brings along, and pgvector.
EXTENSIONS = (
    *("hstore", "citext", "ltree", "vector", "cube", "seg", "isn", "intarray", "pg_trgm", "lo", "earthdistance"),
    *("tablefunc", "btree_gist", "bloom"),
)

# Kinds of types that a stock server has none of.
OWN_TYPES = """
create schema "odd "" schema.x";
create type mood as enum ('sad', '', 'it''s "ok", {really}', 'très gai');
create type "odd "" schema.x"."Odd , Type" as enum ('a', '"');
create type no_labels as enum ();
create domain price as numeric(12,2);
create domain cheap as price check (value < 10);
create domain label as varchar(5);
create domain exact as numeric;
create domain mood_d as mood;
create domain moods_d as mood[];
create domain prices_d as numeric(8,3)[];
create domain codes_d as char(3)[];
create domain net_d as inet;
create domain "odd "" schema.x".citext as inet;
create type pair as (a int, "b "" c" text, p price, m mood, n numeric, at timestamptz, parts int[], d bytea);
create type nested as (p pair, many pair[], r int4range, last text);
create type no_fields as ();
create domain pair_d as pair;
create domain pairs_d as pair[];
create type floats as range (subtype = float8, multirange_type_name = "many Floats");
create type texts as range (subtype = text);
create type price_range as range (subtype = price);
create domain small_range as int4range;
create domain small_ranges as int4multirange;
create domain small_ranges_d as small_ranges;
create domain grid as price[];
create table has_default (id int default 1, a int, b int);
insert into has_default select i, i % 10, i % 10 from generate_series(1, 1000) i;
create statistics has_statistics (ndistinct, dependencies, mcv) on a, b from has_default;
analyze has_default;
alter table has_default drop column b;
"""

# Arrays with the modifiers that a column can have but a type cannot.
MODIFIED = (
    *("numeric(12,2)", "numeric(38,10)", "numeric(50,5)", "numeric(76,0)", "numeric(100,50)", "varchar(6000)"),
    *("char(7)", "bit(1)", "varbit(100)", "time(3)", "timestamp(0)", "timestamptz(3)", "interval(3)", "interval day"),
)

_TYPES = """
select t.oid::int, t.typname, format_type(t.oid, null), t.typtype, t.typbasetype::int,
       format_type(t.typbasetype, t.typtypmod),
       case when e.typarray = t.oid then e.oid else 0 end::int, coalesce(r.rngsubtype, 0)::int,
       coalesce(m.rngtypid, 0)::int,
       array(select a.atttypid::int from pg_attribute a
             where a.attrelid = t.typrelid and a.attnum > 0 and not attisdropped order by attnum),
       exists (select from pg_constraint c where c.contypid = t.oid),
       t.typsend <> 0
from pg_type t left join pg_type e on e.oid = t.typelem
left join pg_range r on r.rngtypid = t.oid left join pg_range m on m.rngmultitypid = t.oid
order by t.oid
"""
_COLUMNS_PER_TABLE = 120
_MOST_VALUES = 16  # of one type


class Type(NamedTuple):
    """One row of pg_type."""

    oid: int
    typname: str
    name: str
    kind: str
    base: int
    base_name: str
    element: int
    subtype: int
    range: int
    attributes: list[int]
    constrained: bool
    sends: bool


class Walk:
    """The types of one database."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._values: dict[int, list[str]] = {}

    @cached_property
    def types(self) -> dict[int, Type]:
        """All of pg_type."""
        return {row[0]: Type(*row) for row in self.connection.execute(_TYPES)}

    def is_pseudo(self, oid: int) -> bool:
        """Whether this is no type of values, or is made of one that is none."""
        type_ = self.types[oid]
        parts = (*type_.attributes, type_.element, type_.base)
        return type_.kind == "p" or any(self.is_pseudo(part) for part in parts if part)

    def sends(self, oid: int) -> bool:
        """Whether the type has a binary form that all of its parts have too."""
        type_ = self.types[oid]
        parts = (*type_.attributes, type_.element, type_.base, type_.subtype, type_.range)
        return type_.sends and all(self.sends(part) for part in parts if part)

    def refusal(self, type_: Type) -> str | None:
        """The server's SQLSTATE for a column of this type."""
        try:
            with self.connection.transaction():
                execute(self.connection, f"create temp table refused (c {type_.name}) on commit drop")
        except psycopg.Error as error:
            return error.sqlstate
        return None

    def unknown(self) -> set[str]:
        """Base types that nobody has thought of."""
        known = VALUES.keys() | MADE.keys() | INSIDE_OF_INDEXES
        return {t.name for t in self.types.values() if t.kind == "b" and not t.element and t.typname not in known}

    def values(self, oid: int) -> list[str]:
        """Expressions for values of a type; empty when there are none."""
        if oid not in self._values:
            type_ = self.types[oid]
            self._values[oid] = self._valid(type_, list(dict.fromkeys(self._make(type_)))[:_MOST_VALUES])
        return self._values[oid]

    def _valid(self, type_: Type, values: list[str]) -> list[str]:
        if not type_.constrained and type_.typname != "xml":
            return values
        return [value for value in values if self._holds(value)]

    def _holds(self, value: str) -> bool:
        try:
            self.connection.execute(f"select {value}")
        except (psycopg.errors.CheckViolation, psycopg.errors.FeatureNotSupported):  # a server built without libxml
            return False
        return True

    def _make(self, type_: Type) -> Iterator[str]:
        if type_.element:
            yield from self._arrays(type_)
        elif type_.kind == "b":
            yield from _base(type_)
        elif type_.kind == "e":
            labels = self.connection.execute("select enumlabel from pg_enum where enumtypid = %s", [type_.oid])
            yield from (f"{literal(label)}::{type_.name}" for (label,) in labels)
        elif type_.kind == "d":
            own = [literal(value) for value in VALUES.get(type_.typname, ())] if type_.constrained else []
            yield from (f"(({value})::{type_.base_name})::{type_.name}" for value in own or self._fitting(type_))
        elif type_.kind == "c":
            yield from self._composites(type_)
        elif type_.kind == "r":
            yield from self._ranges(type_)
        elif type_.kind == "m":
            yield f"'{{}}'::{type_.name}"
            yield from (f"{type_.name}({value})" for value in self.values(type_.range))

    def _fitting(self, type_: Type) -> list[str]:
        """Values of the base type that its modifier admits and that our Arrow type can hold."""
        if "numeric(" not in type_.base_name:
            return self.values(type_.base)
        plain = ["0", "1.5", "-2.25", "9999.99"]
        return [f"array[{number}, null]" for number in plain] if type_.base_name.endswith("[]") else plain

    def _arrays(self, type_: Type) -> Iterator[str]:
        yield f"'{{}}'::{type_.name}"
        yield f"array[null]::{type_.name}"
        values = self.values(type_.element)
        if self._is_array(type_.element):  # the constructor would make one array of more dimensions out of them
            texts = ", ".join(f"concat({value})" for value in values)
            if values:
                yield f"(array[{texts}, null]::text[]::text)::{type_.name}"
            return
        some = values[:7]
        for given in ([*some, "null"], some[::-1], *([value] for value in some[:3])):
            if given:
                yield f"array[{', '.join(given)}]::{type_.name}"

    def _is_array(self, oid: int) -> bool:
        type_ = self.types[oid]
        return bool(type_.element) or (type_.kind == "d" and self._is_array(type_.base))

    def _composites(self, type_: Type) -> Iterator[str]:
        attributes = [self.values(oid) for oid in type_.attributes]
        for nth in range(3):
            values = (found[nth % len(found)] if found else "null" for found in attributes)
            yield f"row({', '.join(values)})::{type_.name}"
        yield f"row({', '.join(['null'] * len(attributes))})::{type_.name}"

    def _ranges(self, type_: Type) -> Iterator[str]:
        subtype = self.types[type_.subtype].name
        values = self.values(type_.subtype)
        yield f"'empty'::{type_.name}"
        yield f"{type_.name}(null, null)"
        for left, right in pairwise(values):
            yield f"{type_.name}(least({left}, {right})::{subtype}, greatest({left}, {right})::{subtype})"
            yield f"{type_.name}({left}, null)"

    def columns(self, *, sent: bool) -> list[tuple[str, list[str]]]:
        """Declared type and values of every column that can be: of those that the server sends in binary, or others."""
        types = [t for t in self.types.values() if not self.is_pseudo(t.oid) and self.sends(t.oid) == sent]
        found = [(t.name, self.values(t.oid)) for t in types]
        if not sent:
            return found
        modified = [(name, [f"{literal(v)}::{name}" for v in _of_modified(name)]) for name in MODIFIED]
        return [*found, *modified, *((f"{name}[]", [f"array[{v}, null]" for v in made]) for name, made in modified)]


def _base(type_: Type) -> Iterator[str]:
    if type_.typname in MADE:
        yield MADE[type_.typname]
    yield from (f"{literal(value)}::{type_.name}" for value in VALUES.get(type_.typname, ()))


def _of_modified(name: str) -> list[str]:
    plain = re.split(r"[ (]", name)[0]
    if plain in ("numeric", "char"):
        return ["0", "-1", "12.5"]
    return VALUES[plain]


def literal(text: str) -> str:
    """A string constant."""
    return sql.Literal(text).as_string(None)


class Filled(NamedTuple):
    """A table whose columns ``c0``, ``c1`` … have these types."""

    name: str
    types: list[str]
    rows: int


def make_tables(walk: Walk, name: str, *, sent: bool) -> list[Filled]:
    """Tables of all types, and with ``_source`` behind their names the same filled with values."""
    columns = sorted(walk.columns(sent=sent), key=lambda column: len(column[1]))
    starts = range(0, len(columns), _COLUMNS_PER_TABLE)
    return [_make_table(walk, f"{name}_{first}", columns[first : first + _COLUMNS_PER_TABLE]) for first in starts]


def _make_table(walk: Walk, name: str, columns: list[tuple[str, list[str]]]) -> Filled:
    declared = ", ".join(f"c{n} {type_}" for n, (type_, _) in enumerate(columns))
    rows = max(len(values) for _, values in columns) + 1
    execute(walk.connection, f"create table {name} (id int primary key, {declared})")
    execute(walk.connection, f"create table {name}_source (like {name})")
    for row in range(rows):
        given = ", ".join(_value(values, row, rows) for _, values in columns)
        execute(walk.connection, f"insert into {name}_source values ({row}, {given})")
    return Filled(name, [type_ for type_, _ in columns], rows)


def _value(values: list[str], row: int, rows: int) -> str:
    return "null" if not values or row == rows - 1 else values[row % len(values)]


def execute(connection: Connection, statement: str) -> None:
    """Run one statement, or several at once."""
    connection.execute(statement)
