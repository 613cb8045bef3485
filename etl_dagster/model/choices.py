"""What the user chooses per table and per column: how changes land, what becomes of values that cannot be held."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import cached_property
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, Field, model_serializer, model_validator

from etl_dagster.model.patterns import TablePattern
from etl_dagster.model.slices import KeyRanges, NoPartitions, PartitionRule, TimeWindows
from etl_dagster.model.table import (
    Column,
    FrozenModel,
    Landing,
    TableId,
    TableSchema,
    TypeKind,
    ValueLimits,
    ValuePolicy,
)

# Digits of Arrow's widest decimal.
MAX_PRECISION = 76

_NUMERIC_OID = 1700
_MOMENT_OIDS = frozenset({1082, 1083, 1114, 1184})  # date, time, timestamp, timestamptz
_JSON_OIDS = frozenset({114, 3802})  # json, jsonb
_DECIMAL = re.compile(r"decimal\(\s*(\d{1,3})\s*,\s*(\d{1,3})\s*\)")
_RULE_TEXT = "must be text, or decimal(p,s) with 1 <= p <= 76 and 0 <= s <= p; between braces it has to stand in quotes"
Choice = TypeVar("Choice")


class NumericRule(FrozenModel):
    """How ``numeric`` without declared precision lands; written ``text`` or ``decimal(38,9)``.

    Attributes:
        decimal: Precision and scale; None: as text, which holds every digit.
    """

    decimal: tuple[int, int] | None = Field(None, examples=[(38, 9)])

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if isinstance(value, dict | NumericRule):
            return value
        if value == "text":
            return {}
        if not isinstance(value, str) or (found := _DECIMAL.fullmatch(value)) is None:
            raise ValueError(_RULE_TEXT)
        return {"decimal": (int(found[1]), int(found[2]))}

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        if self.decimal is not None:
            precision, scale = self.decimal
            if not (1 <= precision <= MAX_PRECISION and 0 <= scale <= precision):
                raise ValueError(_RULE_TEXT)
        return self

    @model_serializer
    def __str__(self) -> str:
        return "text" if self.decimal is None else f"decimal({self.decimal[0]},{self.decimal[1]})"


_VALUES = Field(
    None,
    description="Values that cannot be held: fail (the table is quarantined), null, clamp or text",
    examples=["clamp"],
)
_NUMERIC = Field(
    None,
    description="numeric without declared precision: text, or decimal(p,s) with 1 <= p <= 76",
    examples=["decimal(38,9)"],
)


class ColumnChoice(FrozenModel):
    """What is chosen for one column; what is None is not chosen here."""

    values: ValuePolicy | None = _VALUES
    numeric: NumericRule | None = _NUMERIC


class TableDefaults(FrozenModel):
    """What is chosen for the tables that say nothing of their own."""

    landing: Landing | None = Field(
        None, description="How changes land: mirror, soft_delete or changelog", examples=["soft_delete"]
    )
    values: ValuePolicy | None = _VALUES
    numeric: NumericRule | None = _NUMERIC


class TableChoice(TableDefaults):
    """What is chosen for the tables that a pattern names, and for their columns by name."""

    partitions: PartitionRule | None = Field(
        None,
        description="Slices that can be copied again by themselves: windows of time, or ranges of a column",
        examples=[{"type": "time", "column": "created_at", "every": "day", "start": "2026-01-01"}],
    )
    columns: dict[str, ColumnChoice] = Field(
        {}, description="By name of the column", examples=[{"amount": {"values": "clamp"}}]
    )


def _readable(text: str) -> str:
    TablePattern.parse(text)
    return text


PatternText = Annotated[str, AfterValidator(_readable)]


class TableChoices(FrozenModel):
    """All choices of a pipeline.

    Each setting is looked up by itself, and the first place that has it wins: the column in the tables that match, the
    tables that match, the defaults, the default of the default. Exact table names come before patterns, and patterns
    in the order in which they are written.
    """

    defaults: TableDefaults = TableDefaults()
    tables: dict[PatternText, TableChoice] = {}

    def apply(self, schema: TableSchema) -> TableSchema:
        """The schema with landing, value policies and decimals as they are chosen."""
        found = [choice for _, choice in self._matching(schema.id)]
        places = [*found, self.defaults]
        columns = tuple(_chosen(column, found, places) for column in schema.columns)
        landing = _first((place.landing for place in places), Landing.MIRROR)
        return schema.model_copy(update={"columns": columns, "landing": landing})

    def partitions(self, schema: TableSchema) -> TimeWindows | KeyRanges | None:
        """The rule that cuts the table into slices; None where there is none, or where it does not fit the table."""
        rule = self.rule(schema.id)
        return None if rule is None or _misfit(rule, schema) else rule

    def rule(self, table: TableId) -> TimeWindows | KeyRanges | None:
        """The rule that was chosen for the table, whether it fits or not."""
        nothing: PartitionRule = NoPartitions()
        rule = _first((choice.partitions for _, choice in self._matching(table)), nothing)
        return None if isinstance(rule, NoPartitions) else rule

    def unmatched(self, schemas: Iterable[TableSchema]) -> list[str]:
        """What the choices name and no table has, or what has no effect; one sentence each, beginning with the field's
        path."""
        known = list(schemas)
        owners: dict[str, list[TableSchema]] = {text: [] for text in self.tables}
        for schema in known:
            for text, _ in self._matching(schema.id):
                owners[text].append(schema)
        return [problem for text in self.tables for problem in self._problems(text, owners[text], known)]

    def _problems(self, text: str, owners: list[TableSchema], known: list[TableSchema]) -> Iterator[str]:
        path = f"tables.{text}"
        if not owners:
            name = str(TablePattern.parse(text).exact or text)
            yield f"{path} names no table of the publication{_meant(name, (str(schema.id) for schema in known))}"
            return
        rule = self.tables[text].partitions
        if rule is not None and not isinstance(rule, NoPartitions):
            for schema in owners:
                if misfit := _misfit(rule, schema):
                    yield f"{path}.partitions does not fit {schema.id}, which is copied whole: {misfit}"
        for name, choice in self.tables[text].columns.items():
            columns = [column for schema in owners for column in schema.columns if column.name == name]
            if not columns:
                names = (column.name for schema in owners for column in schema.columns)
                yield f"{path}.columns.{name} is a column of no table that it could be in{_meant(name, names)}"
            elif choice.values in _REPLACING and all(column.key_ordinal is not None for column in columns):
                yield f"{path}.columns.{name}.values cannot replace values of a key, which stays at fail"
            elif choice.numeric is not None and not any(map(_is_free_numeric, columns)):
                kind = columns[0].type.name
                yield f"{path}.columns.{name}.numeric is for numeric without declared precision, the column is {kind}"

    def _matching(self, table: TableId) -> list[tuple[str, TableChoice]]:
        """Exact names first; as written, since one table can be written in several ways."""
        exact = self._exact.get(table, ())
        patterns = (text for text, pattern in self._patterns if pattern.matches(table))
        return [(text, self.tables[text]) for text in (*exact, *patterns)]

    @cached_property
    def _parsed(self) -> Mapping[str, TablePattern]:
        return {text: TablePattern.parse(text) for text in self.tables}

    @cached_property
    def _exact(self) -> Mapping[TableId, list[str]]:
        found: dict[TableId, list[str]] = {}
        for text, pattern in self._parsed.items():
            if pattern.exact is not None:
                found.setdefault(pattern.exact, []).append(text)
        return found

    @cached_property
    def _patterns(self) -> list[tuple[str, TablePattern]]:
        return [(text, pattern) for text, pattern in self._parsed.items() if pattern.exact is None]


def with_limits(schema: TableSchema, limits: ValueLimits | None) -> TableSchema:
    """The schema with what its destination can hold, at the columns for which that matters."""
    columns = tuple(_limited(column, limits) for column in schema.columns)
    return schema if columns == schema.columns else schema.model_copy(update={"columns": columns})


def _limited(column: Column, limits: ValueLimits | None) -> Column:
    kind = column.type
    scalar = kind.element if kind.kind is TypeKind.ARRAY and kind.element is not None else kind
    # Within an array, documents are text like any other.
    matters = scalar.oid in _MOMENT_OIDS or (kind.oid in _JSON_OIDS and limits is not None and limits.exact_json)
    wanted = limits if matters else None
    return column if column.limits == wanted else column.model_copy(update={"limits": wanted})


def _chosen(column: Column, tables: list[TableChoice], places: list[TableDefaults]) -> Column:
    own = [table.columns[column.name] for table in tables if column.name in table.columns]
    ranked: list[ColumnChoice | TableDefaults] = [*own, *places]
    values = _first((place.values for place in ranked), ValuePolicy.FAIL)
    if column.key_ordinal is not None and values in _REPLACING:
        values = ValuePolicy.FAIL  # two rows whose keys are replaced by the same value would become one
    decimal = None
    if _is_free_numeric(column):
        decimal = _first((place.numeric for place in ranked), NumericRule()).decimal
    if (column.values, column.decimal) == (values, decimal):
        return column
    return column.model_copy(update={"values": values, "decimal": decimal})


def _misfit(rule: TimeWindows | KeyRanges, schema: TableSchema) -> str:
    """Why the rule cannot cut the table; empty when it can."""
    column = next((column for column in schema.columns if column.name == rule.column), None)
    if column is None:
        return f"it has no column {rule.column}{_meant(rule.column, (column.name for column in schema.columns))}"
    if column.type.oid not in rule.types:
        return f"{rule.column} is {column.type.name}, which {rule.type} slices cannot be cut by"
    if column.values is ValuePolicy.TEXT and isinstance(rule, TimeWindows):
        return f"{rule.column} lands as text (values: text), which has another order"
    if schema.landing is Landing.CHANGELOG:
        return "it lands as a changelog, which is copied whole"
    if not schema.key:
        return "it has no key"
    return ""


_REPLACING = (ValuePolicy.NULL, ValuePolicy.CLAMP)


def _first(choices: Iterable[Choice | None], default: Choice) -> Choice:
    return next((choice for choice in choices if choice is not None), default)


def _is_free_numeric(column: Column) -> bool:
    """A numeric, or an array of them, of which nothing says how many digits its values have."""
    kind = column.type
    scalar = kind.element if kind.kind is TypeKind.ARRAY and kind.element is not None else kind
    return scalar.oid == _NUMERIC_OID and kind.typmod == -1 and scalar.typmod == -1


def _meant(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, dict.fromkeys(known), n=1, cutoff=0.75)
    return f"; did you mean {close[0]}?" if close else ""
