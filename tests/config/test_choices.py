"""What a user chooses per table and column reaches the schema, and what names nothing is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from etl_dagster.config import ConfigFileError, PipelineConfig, load_config
from etl_dagster.model import Column, Landing, PgType, TableChoices, TableId, TableSchema, TypeKind, ValuePolicy
from etl_dagster.model.choices import ColumnChoice, NumericRule, TableChoice

FREE = PgType(oid=1700, name="numeric")
DECLARED = PgType(oid=1700, name="numeric(12,2)", typmod=(12 << 16 | 2) + 4)
MINIMAL = """
name: shop
source:
  connection: {dsn: postgresql://etl@db.example.com/shop}
destination: {type: memory}
"""


def table(name: str, **columns: PgType) -> TableSchema:
    made = [Column(attnum=n, name=column, type=type_) for n, (column, type_) in enumerate(columns.items(), 1)]
    return TableSchema(id=TableId.parse(name), oid=1, columns=tuple(made))


ORDERS = table("orders", id=PgType(oid=20, name="bigint"), amount=FREE, price=DECLARED)


def choices(**given: Any) -> TableChoices:
    return TableChoices.model_validate(given)


def column(schema: TableSchema, name: str) -> Column:
    return next(column for column in schema.columns if column.name == name)


def test_without_choices_a_schema_stays_as_the_catalogue_has_it() -> None:
    assert TableChoices().apply(ORDERS) == ORDERS


def test_what_is_derived_of_the_columns_is_of_the_chosen_ones() -> None:
    first, *others = ORDERS.columns
    known = ORDERS.model_copy(update={"columns": (first.model_copy(update={"key_ordinal": 0}), *others)})
    assert known.key_indexes == (0,)
    chosen = choices(defaults={"values": "clamp"}).apply(known)
    assert chosen.key == (chosen.columns[0],)
    assert chosen.key_indexes == (0,)


def test_the_column_wins_over_its_table_and_the_table_over_the_defaults() -> None:
    schema = choices(
        defaults={"values": "clamp", "landing": "changelog"},
        tables={"public.orders": {"values": "text", "columns": {"amount": {"values": "null"}}}},
    ).apply(ORDERS)
    assert schema.landing is Landing.CHANGELOG
    assert [found.values for found in schema.columns] == [ValuePolicy.TEXT, ValuePolicy.NULL, ValuePolicy.TEXT]


def test_an_exact_name_wins_over_patterns_and_the_first_pattern_over_the_next() -> None:
    given = choices(
        tables={
            "public.*": {"landing": "changelog", "values": "clamp"},
            "or*": {"landing": "soft_delete", "values": "text"},
            '"public"."orders"': {"landing": "mirror"},
        }
    )
    assert given.apply(ORDERS).landing is Landing.MIRROR
    assert given.apply(ORDERS).columns[0].values is ValuePolicy.CLAMP, "each setting is looked up by itself"
    assert given.apply(table("items")).landing is Landing.CHANGELOG
    assert given.apply(table("other.orders")) == table("other.orders")


def test_a_column_that_a_pattern_names_wins_over_the_table_that_is_named_exactly() -> None:
    given = choices(tables={"orders": {"values": "clamp"}, "*": {"columns": {"amount": {"values": "null"}}}})
    assert column(given.apply(ORDERS), "amount").values is ValuePolicy.NULL


def test_the_rule_for_numeric_is_for_those_without_declared_precision_alone() -> None:
    array = PgType(oid=1231, name="numeric[]", kind=TypeKind.ARRAY, element=FREE)
    declared = PgType(oid=1231, name="numeric(9,2)[]", kind=TypeKind.ARRAY, element=FREE, typmod=DECLARED.typmod)
    domain = PgType(oid=1700, name="price", declared_oid=90001)
    of_domains = PgType(
        oid=90002, name="cents[]", kind=TypeKind.ARRAY, element=DECLARED.model_copy(update={"declared_oid": 90003})
    )
    schema = table("t", a=FREE, b=DECLARED, c=array, d=declared, e=domain, f=of_domains, g=PgType(oid=25, name="text"))
    chosen = choices(defaults={"numeric": "decimal(38,9)"}).apply(schema)
    assert [found.decimal for found in chosen.columns] == [(38, 9), None, (38, 9), None, (38, 9), None, None]
    assert TableChoices().apply(chosen) == schema, "a choice that is taken back is gone"


def test_a_column_can_take_back_the_rule_of_its_table() -> None:
    given = choices(
        defaults={"numeric": "decimal(38,9)"}, tables={"orders": {"columns": {"amount": {"numeric": "text"}}}}
    )
    assert column(given.apply(ORDERS), "amount").decimal is None


@pytest.mark.parametrize(
    ("text", "expected"), [("text", None), ("decimal(1,0)", (1, 0)), ("decimal( 76 , 76 )", (76, 76))]
)
def test_a_rule_for_numeric_is_read(text: str, expected: tuple[int, int] | None) -> None:
    assert NumericRule.model_validate(text).decimal == expected


@pytest.mark.parametrize(
    "wrong", ["decimal", "decimal(0,0)", "decimal(77,0)", "decimal(3,4)", "decimal(3,-1)", "numeric(3,1)", "", 5, None]
)
def test_a_rule_for_numeric_that_cannot_be_is_refused(wrong: object) -> None:
    with pytest.raises(ValidationError, match="must be text, or decimal"):
        NumericRule.model_validate(wrong)


def test_choices_survive_a_trip_through_json() -> None:
    given = choices(
        defaults={"numeric": "decimal(38,9)"}, tables={"orders": {"columns": {"amount": {"values": "null"}}}}
    )
    assert TableChoices.model_validate_json(given.model_dump_json()) == given


def test_in_python_none_chooses_nothing() -> None:
    given = TableChoices(tables={"orders": TableChoice(values=None, columns={"amount": ColumnChoice(values=None)})})
    assert given.apply(ORDERS) == ORDERS


def test_names_that_no_table_or_column_has_are_told_with_what_was_meant() -> None:
    given = choices(
        tables={
            "orders": {"columns": {"amuont": {"values": "null"}, "price": {"numeric": "text"}, "amount": {}}},
            "public.ordrs": {},
            "audit.*": {},
        }
    )
    assert given.unmatched([ORDERS]) == [
        "tables.orders.columns.amuont is a column of no table that it could be in; did you mean amount?",
        "tables.orders.columns.price.numeric is for numeric without declared precision, the column is numeric(12,2)",
        "tables.public.ordrs names no table of the publication; did you mean public.orders?",
        "tables.audit.* names no table of the publication",
    ]
    assert choices(tables={"public.orders": {}, "o*": {"columns": {"id": {}}}}).unmatched([ORDERS]) == []


def test_a_column_of_a_pattern_needs_one_table_that_has_it() -> None:
    given = choices(tables={"*": {"columns": {"amount": {"values": "null"}}}})
    assert given.unmatched([ORDERS, table("items")]) == []


def test_ten_thousand_tables_named_one_by_one_are_looked_up_at_once() -> None:
    names = [f"public.t{n}" for n in range(10_000)]
    given = choices(tables={name: {"landing": "soft_delete"} for name in names})
    schemas = [given.apply(table(name)) for name in names]
    assert {schema.landing for schema in schemas} == {Landing.SOFT_DELETE}
    assert given.unmatched(schemas) == []


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pipeline.yaml"


def _load(file: Path, more: str) -> PipelineConfig:
    file.write_text(MINIMAL + more)
    return load_config(file, {})


def test_choices_are_written_at_the_top_of_the_file(file: Path) -> None:
    config = _load(
        file,
        """
defaults: {landing: mirror, values: fail, numeric: text}
tables:
  public.orders: {landing: soft_delete, columns: {amount: {values: "null"}}}
  audit.*: {landing: changelog, numeric: "decimal(38, 9)"}
""",
    )
    assert config.choices.apply(ORDERS).landing is Landing.SOFT_DELETE
    assert column(config.choices.apply(ORDERS), "amount").values is ValuePolicy.NULL
    assert config.choices.apply(table("audit.log", n=FREE)).columns[0].decimal == (38, 9)


@pytest.mark.parametrize("word", ["null", "NULL", '"null"', "Null"])
def test_the_word_null_is_the_policy_also_without_quotes(file: Path, word: str) -> None:
    config = _load(
        file, f"defaults: {{values: {word}}}\ntables: {{orders: {{columns: {{values: {{values: {word}}}}}}}}}"
    )
    assert config.defaults.values is ValuePolicy.NULL
    assert config.tables["orders"].columns["values"].values is ValuePolicy.NULL


def test_a_policy_that_is_left_empty_is_not_chosen(file: Path) -> None:
    config = _load(file, "defaults:\n  values:\n  landing: mirror\n")
    assert config.defaults.values is None
    assert config.choices.apply(ORDERS).columns[0].values is ValuePolicy.FAIL


def test_elsewhere_null_is_still_nothing(file: Path) -> None:
    assert _load(file, "defaults: {landing: null, numeric: null}").defaults.landing is None


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (
            "defaults: {landing: mirrored}",
            (
                "defaults.landing must be 'mirror', 'soft_delete' or 'changelog', but is 'mirrored'"
                " (for example `landing: soft_delete`)"
            ),
        ),
        ("defaults: {values: ~x}", "defaults.values must be 'fail', 'null', 'clamp' or 'text', but is '~x'"),
        ("defaults: {columns: {}}", "defaults.columns is not a known field; known are landing, numeric, values"),
        (
            "defaults: {numeric: 'decimal(99,1)'}",
            (
                "defaults.numeric must be text, or decimal(p,s) with 1 <= p <= 76 and 0 <= s <= p; between braces it has to"
                " stand in quotes (for example `numeric: decimal(38,9)`)"
            ),
        ),
        ("defaults: {numeric: 5}", "defaults.numeric must be text, or decimal(p,s)"),
        ("tables: [orders]", "tables must be a group of fields, but is a list"),
        (
            "tables: {a.b.c: {}}",
            (
                "tables.a.b.c 'a.b.c' is not a table: write schema.table, schema.* or"
                ' "Odd.schema"."Table name" (for example `public.orders: {landing: soft_delete}`)'
            ),
        ),
        ("tables: {5: {}}", "tables.5 has a name that is not text: put it in quotes"),
        (
            "tables: {sales.orders: changelog}",
            (
                "tables.sales.orders must be a group of fields, but is text"
                " (for example `public.orders: {landing: soft_delete}`)"
            ),
        ),
        (
            "tables: {orders: {lnding: mirror}}",
            "tables.orders.lnding is not a known field; did you mean landing? (for example `landing: soft_delete`)",
        ),
        (
            "tables: {orders: {columns: {amount: clamp}}}",
            "tables.orders.columns.amount must be a group of fields, but is text (for example `amount: {values: clamp}`)",
        ),
        (
            "tables: {orders: {columns: {amount: {vales: clamp}}}}",
            "tables.orders.columns.amount.vales is not a known field; did you mean values? (for example `values: clamp`)",
        ),
        (
            "tables: {landing: {columns: {values: {values: some}}}}",
            "tables.landing.columns.values.values must be 'fail', 'null', 'clamp' or 'text', but is 'some'",
        ),
        ("tables: {orders: {}, orders: {}}", "tables.orders is given twice"),
    ],
)
def test_a_wrong_choice_is_named_with_its_path_and_a_right_one(file: Path, wrong: str, expected: str) -> None:
    with pytest.raises(ConfigFileError) as caught:
        _load(file, wrong)
    (line,) = str(caught.value).splitlines()[1:]
    assert line.removeprefix(f"  {file}:6: ").startswith(expected)
