"""Names in BigQuery: what it allows, kept; what it does not, replaced."""

from __future__ import annotations

import pytest

from etl_dagster.destinations.admission import require_column_names
from etl_dagster.destinations.bigquery.config import BigQueryConfig
from etl_dagster.destinations.bigquery.naming import Names, bare, fold, quoted
from etl_dagster.errors import TableError
from etl_dagster.model import CDC_COLUMNS, PgType, TableId
from etl_dagster.testing.change_script import INT8, TEXT, make_table

NAMES = Names(BigQueryConfig(project="my-project", dataset="shop"))


@pytest.mark.parametrize(
    ("name", "physical"),
    [
        ("id", "id"),
        ("Größe %s", "Größe %s"),
        ("名前", "名前"),
        ("2nd", "2nd"),
        ("a-b", "a-b"),
        ("a'b<c>#d|e&f=g+h:i", "a'b<c>#d|e&f=g+h:i"),
        ('i"d', "i_d"),
        ("a.b", "a_b"),
        ("price ($)", "price ___"),
        ("tab\tand\nline", "tab_and_line"),
        ("back\\slash`tick", "back_slash_tick"),
        ("🚲", "_"),
    ],
)
def test_a_column_keeps_every_character_that_is_allowed(name: str, physical: str) -> None:
    assert NAMES.column(name) == physical


@pytest.mark.parametrize(
    ("name", "physical"),
    [
        ("_CHANGE_TYPE", "_ETL_CHANGE_TYPE"),
        ("_change_type_2", "_ETL_change_type_2"),
        ("_PARTITIONTIME", "_ETL_PARTITIONTIME"),
        ("_TABLE_SUFFIX", "_ETL_TABLE_SUFFIX"),
        ("_FILE_NAME", "_ETL_FILE_NAME"),
        ("_row_timestamp", "_ETL_row_timestamp"),
        ("__root__", "_ETL__root__"),
        ("_colidentifier_1", "_ETL_colidentifier_1"),
        ("_Change_Sequence_Number", "_ETL_Change_Sequence_Number"),
        ("_LSN", "_LSN"),
        ("_partial", "_partial"),
    ],
)
def test_a_reserved_prefix_gets_ours_in_front(name: str, physical: str) -> None:
    assert NAMES.column(name) == physical


def test_a_name_becomes_a_reserved_one_only_after_its_characters_were_replaced() -> None:
    assert NAMES.column("!TABLE_x") == "_ETL_TABLE_x"


@pytest.mark.parametrize(
    "columns",
    [
        {"id": INT8, "a.b": TEXT, "a_b": TEXT},
        {"id": INT8, "Größe": TEXT, "GRÖSSE": TEXT, "größe": TEXT},
        {"id": INT8, "_etl_change_type": TEXT},
        {"id": INT8, "_timestamp": TEXT},
    ],
)
def test_columns_that_would_have_one_name_are_refused(columns: dict[str, PgType]) -> None:
    with pytest.raises(TableError):
        require_column_names(make_table(columns=columns), fold=lambda name: fold(NAMES.column(name)))


def test_the_cdc_columns_do_not_collide_with_each_other() -> None:
    assert len({fold(NAMES.column(name)) for name in CDC_COLUMNS}) == len(CDC_COLUMNS)


@pytest.mark.parametrize(
    ("table", "name"),
    [
        (TableId("public", "orders"), "public_orders"),
        (TableId("Some Schéma", 'my "odd".table; --'), "Some Schéma_my _odd__table_ --"),
        (TableId("sales", "día$20240101"), "sales_día_20240101"),
        (TableId("_etl", "state"), "t_etl_state"),
        (TableId("_ETL", "state"), "t_ETL_state"),
    ],
)
def test_a_table_is_called_by_the_template_without_what_is_not_allowed(table: TableId, name: str) -> None:
    assert NAMES.table_name(table) == name
    assert NAMES.live(table) == f"`my-project.shop.{name}`"
    assert bare(NAMES.live(table)) == f"my-project.shop.{name}"


def test_the_template_is_the_configs() -> None:
    names = Names(BigQueryConfig(project="my-project", dataset="shop", table_name="raw_{table}"))
    assert names.table_name(TableId("public", "t")) == names.table_name(TableId("other", "t")) == "raw_t"


def test_own_tables_are_in_the_internal_dataset_where_there_is_one() -> None:
    assert NAMES.internal("state_1") == "`my-project.shop._etl_state_1`"
    other = Names(BigQueryConfig(project="my-project", dataset="shop", internal_dataset="etl"))
    assert other.internal("state_1") == "`my-project.etl._etl_state_1`"
    assert other.live(TableId("public", "t")) == "`my-project.shop.public_t`"


def test_quotes_hold_whatever_a_name_has() -> None:
    assert quoted("a`b\\c") == "`a\\`b\\\\c`"
