"""A config file is read as meant, or every problem in it is named with its place and a right value."""

from __future__ import annotations

import subprocess
import sys
import traceback
from datetime import date
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from etl_dagster.config import ConfigFileError, PipelineConfig, load_config
from etl_dagster.config.problems import _model_of, _parts, example
from etl_dagster.destinations.duckdb.config import DuckDbConfig
from etl_dagster.model.slices import Every, KeyRanges, NoPartitions, TimeWindows
from etl_dagster.store import MemoryStoreConfig, PostgresStoreConfig, SqliteStoreConfig

MINIMAL = """
name: shop
source:
  connection:
    dsn: postgresql://etl:hunter2@db.example.com/shop
destination:
  type: duckdb
  path: shop.duckdb
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pipeline.yaml"


def _load(file: Path, text: str, **environ: str) -> PipelineConfig:
    file.write_text(text)
    return load_config(file, environ)


def _refused(file: Path, text: str, **environ: str) -> list[str]:
    """The lines of the error, without the file's name; no secret stands in any form of it."""
    with pytest.raises(ConfigFileError) as caught:
        _load(file, text, **environ)
    assert "hunter" not in "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    head, *lines = str(caught.value).split("\n")
    assert head.startswith(f"{file} has ")
    assert all(line.startswith(f"  {file}:") for line in lines)
    return [line.removeprefix(f"  {file}:") for line in lines]


def test_a_minimal_file_gets_names_and_a_store_from_its_own(file: Path) -> None:
    config = _load(file, MINIMAL)
    assert config.source.publication.name == "etl_shop"
    assert config.source.slot.name == "etl_shop"
    assert config.store == SqliteStoreConfig(path=file.parent / ".etl" / "shop.sqlite")
    assert isinstance(config.destination, DuckDbConfig)


def test_names_that_are_given_are_kept(file: Path) -> None:
    text = MINIMAL.replace("destination:", "  publication: {name: etl_dagster}\n  slot: {name: mine}\ndestination:")
    source = _load(file, text).source
    assert (source.publication.name, source.slot.name) == ("etl_dagster", "mine")


def test_paths_start_from_the_folder_of_the_file(file: Path) -> None:
    tls = "    tls: {mode: verify-full, root_cert: certs/ca.pem}\ndestination:"
    config = _load(file, MINIMAL.replace("destination:", tls) + "store: {type: sqlite, path: ../state.sqlite}\n")
    assert isinstance(config.destination, DuckDbConfig)
    assert str(config.destination.path) == str(file.parent / "shop.duckdb")
    assert config.store == SqliteStoreConfig(path=file.parent / ".." / "state.sqlite")
    assert config.source.connection.tls is not None
    assert config.source.connection.tls.root_cert == file.parent / "certs/ca.pem"


def test_absolute_paths_stay(file: Path) -> None:
    config = _load(file, MINIMAL.replace("shop.duckdb", "/data/shop.duckdb"))
    assert isinstance(config.destination, DuckDbConfig)
    assert str(config.destination.path) == "/data/shop.duckdb"


def test_every_store_can_be_chosen(file: Path) -> None:
    assert _load(file, MINIMAL + "store: {type: memory}").store == MemoryStoreConfig()
    store = _load(file, MINIMAL + "store: {type: postgres, dsn: host=db, schema: state}").store
    assert isinstance(store, PostgresStoreConfig)
    assert (store.dsn.get_secret_value(), store.schema_) == ("host=db", "state")


def test_references_are_filled_from_the_environment(file: Path) -> None:
    text = MINIMAL.replace("dsn: postgresql://etl:hunter2@db.example.com/shop", "{fields}").replace(
        "{fields}", 'host: ${HOST}\n    port: ${PORT:-5433}\n    user: "${EMPTY:-etl}"\n    password: a$${b}${PW}c'
    )
    connection = _load(file, text, HOST="db", PW="x${HOST}", EMPTY="").source.connection
    assert (connection.host, connection.port, connection.user) == ("db", 5433, "etl")
    assert connection.password is not None
    assert connection.password.get_secret_value() == "a${b}x${HOST}c"


def test_a_missing_variable_is_named_with_its_field(file: Path) -> None:
    text = MINIMAL.replace("dsn: postgresql", "dsn: ${SHOP_DSN}postgresql").replace("shop.duckdb", "${A}/${B:-b}/${C}")
    assert _refused(file, text) == [
        (
            "5: source.connection.dsn needs the environment variable SHOP_DSN, which is not set"
            " (for example `export SHOP_DSN=…`)"
        ),
        "8: destination.path needs the environment variable A, which is not set (for example `export A=…`)",
        "8: destination.path needs the environment variable C, which is not set (for example `export C=…`)",
    ]


@pytest.mark.parametrize("reference", ["${", "${A", "${1A}", "${A:-${B}}", "${}", "${A-b}"])
def test_a_malformed_reference_is_an_error(file: Path, reference: str) -> None:
    (line,) = _refused(file, MINIMAL.replace("shop.duckdb", f"'{reference}'"), A="a", B="b")
    assert line.startswith("8: destination.path has a reference that is not well formed (for example `${NAME}")


def test_all_problems_are_reported_at_once(file: Path) -> None:
    text = """
name: My Shop
source:
  connection:
    host: db
    port: abc
    pasword: hunter2
  slot: {name: Slot}
  publication: {tables: public.orders}
destination:
  type: duckdb
  threads: 0
  memory_limt: 1GB
store: {type: sqlite}
replication:
  copy_connections: 100
retries: 3
"""
    assert _refused(file, text) == [
        "2: name must match pattern '^[a-z0-9_]{1,40}$', but is 'My Shop' (for example `name: shop`)",
        "6: source.connection.port must be a whole number, but is 'abc' (for example `port: 5432`)",
        (
            "7: source.connection.pasword is not a known field; did you mean password?"
            " (for example `password: ${SOURCE_PASSWORD}`)"
        ),
        "8: source.slot.name must match pattern '^[a-z0-9_]{1,63}$', but is 'Slot' (for example `name: etl_dagster`)",
        "9: source.publication.tables must be a list, but is text (for example `tables: [public.orders, sales.*]`)",
        "10: destination.path is missing (for example `path: shop.duckdb`)",
        "12: destination.threads must be greater than or equal to 1, but is 0 (for example `threads: 2`)",
        (
            "13: destination.memory_limt is not a known field; did you mean memory_limit?"
            " (for example `memory_limit: 128MB`)"
        ),
        "14: store.path is missing (for example `path: .etl/shop.sqlite`)",
        (
            "16: replication.copy_connections must be less than or equal to 64, but is 100"
            " (for example `copy_connections: 2`)"
        ),
        "17: retries is not a known field; known are defaults, destination, name, replication, source, store, tables",
    ]


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ("store: {type: sqlit, path: x}", "store.type must be one of 'memory', 'sqlite', 'postgres', but is 'sqlit'"),
        ("store: {path: x}", "store.type"),
        ("store: sqlite", "store must be"),
        ("replication: 5", "replication must be a group of fields, but is a number"),
        ("replication: {copy_connections: }", "replication.copy_connections must be a whole number, but is empty"),
        ("replication: {copy_connections: 1.5}", "replication.copy_connections must be a whole number, but is 1.5"),
        ("store: {type: postgres, dsn: 123}", "store.dsn must be text, but is a number or date: put it in quotes"),
        ("store: {type: postgres, dsn: {hunter2: hunter2}}", "store.dsn must be text, but is a group of fields"),
    ],
)
def test_a_wrong_value_is_described(file: Path, wrong: str, expected: str) -> None:
    (line,) = _refused(file, MINIMAL + wrong)
    assert line.removeprefix("9: ").startswith(expected)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("{type: tim}", ".type must be one of 'none', 'time', 'range', but is 'tim' (for example `type: time`)"),
        ("{column: id}", ".type is missing (for example `type: time`)"),
        ("{type: time, column: at}", ".start is missing (for example `start: 2026-01-01`)"),
        ("{type: time, column: at, start: 2026-13-01}", ".start must be a day, as year-month-day (for"),
        ("{type: time, column: at, start: 86400}", ".start must be a day, as year-month-day (for"),
        ("{type: time, column: at, start: '86400'}", ".start must be a day, as year-month-day (for"),
        ("{type: time, column: at, start: 2026-01-01 10:00:00}", ".start must be a day, as year-month-day (for"),
        ("{type: time, column: at, start: 0001-01-01}", ".start must be greater than or equal to 1800-01-01, but is"),
        ("{type: time, column: at, start: 2026-01-01, every: year}", ".every must be 'hour', 'day', 'week' or 'month'"),
        (
            "{type: time, column: at, start: 2026-01-01, timezone: europe/berlin}",
            ".timezone is no time zone; did you mean Europe/Berlin? (for example `timezone: UTC`)",
        ),
        ("{type: time, column: at, start: 2026-01-01, timezone: Europe}", ".timezone is no time zone"),
        (
            "{type: time, column: at, start: 2026-01-01, every: hour, timezone: Europe/Berlin}",
            ".timezone has to be left out: windows of an hour begin in UTC (for example `timezone: UTC`)",
        ),
        ("{type: range}", ".column is missing (for example `column: id`)"),
        ("{type: range, column: id, rows: 0}", ".rows must be greater than or equal to 1, but is 0 (for example"),
        ("{type: range, column: id, every: day}", ".every is not a known field; known are column, rows, type"),
        ("time", " must be a group of fields, but is text (for example `partitions: {type: time, column: created_at"),
    ],
)
def test_a_wrong_partition_rule_is_described(file: Path, rule: str, expected: str) -> None:
    (line,) = _refused(file, MINIMAL + f"tables:\n  sales.orders: {{partitions: {rule}}}")
    assert line.startswith(f"10: tables.sales.orders.partitions{expected}")


def test_a_partition_rule_is_read(file: Path) -> None:
    rules = """
tables:
  sales.orders: {partitions: {type: time, column: at, every: month, start: 2025-06-01, timezone: Europe/Berlin}}
  sales.items: {partitions: {type: range, column: id, rows: 5000}}
  sales.audit: {partitions: {type: none}}
"""
    tables = _load(file, MINIMAL + rules).tables
    assert tables["sales.orders"].partitions == TimeWindows(
        column="at", every=Every.MONTH, start=date(2025, 6, 1), timezone="Europe/Berlin"
    )
    assert tables["sales.items"].partitions == KeyRanges(column="id", rows=5000)
    assert tables["sales.audit"].partitions == NoPartitions()


def test_values_from_the_environment_are_not_shown(file: Path) -> None:
    text = MINIMAL + "replication: {copy_connections: '${N}'}\nstore: {type: '${N}'}"
    first, second = _refused(file, text, N="hunter2")
    assert "replication.copy_connections must be a whole number, but is text" in first
    assert "store.type must be one of 'memory', 'sqlite', 'postgres', but is text" in second


@pytest.mark.parametrize("type_", ["duck", "5", "[]", "${T}"])
def test_an_unknown_destination_lists_the_known(file: Path, type_: str) -> None:
    (line,) = _refused(file, MINIMAL.replace("type: duckdb", f"type: {type_}"), T="hunter2")
    assert line.startswith("7: destination.type must be one of ")
    assert "'duckdb', 'memory'" in line


@pytest.mark.parametrize("type_", ["BigQuery", "big_query", "Big-Query", "bigquerry"])
def test_a_destination_that_is_nearly_known_is_suggested(file: Path, type_: str) -> None:
    (line,) = _refused(file, MINIMAL.replace("type: duckdb", f"type: {type_}"))
    assert line.endswith("(for example `type: bigquery`)")


BIGQUERY = MINIMAL.replace("type: duckdb", "type: bigquery").replace("path: shop.duckdb\n", "project: my-project\n")
BIGQUERY += "  dataset: shop\n  "


def test_too_many_entries_are_told_in_plain_words(file: Path) -> None:
    labels = ", ".join(f"l{number}: x" for number in range(61))
    (line,) = _refused(file, BIGQUERY + f"labels: {{{labels}}}\n")
    assert "destination.labels must have at most 60 entries (for example" in line


def test_the_example_is_of_the_type_that_was_meant(file: Path) -> None:
    options = "{partition_by: {type: range, column: id, start: 5, end: 1, interval: 1}}"
    (line,) = _refused(file, BIGQUERY + f"tables: {{public.t: {options}}}\n")
    assert "end has to be greater than start (for example `partition_by: {type: range, " in line


def test_a_dsn_beside_fields_is_an_error_of_the_connection(file: Path) -> None:
    (line,) = _refused(file, MINIMAL.replace("destination:", "    host: db\ndestination:"))
    assert line.startswith("4: source.connection give either dsn or fields")


def test_keys_given_twice_are_all_named(file: Path) -> None:
    text = MINIMAL + "name: other\n" + "store: {type: memory, type: memory}\n"
    assert _refused(file, text) == [
        "9: name is given twice, first in line 2",
        "10: store.type is given twice, first in line 10",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: shop\n  source: [", "2: is not valid YAML in column 9: mapping values are not allowed here"),
        ("name: 'hunter2", "1: is not valid YAML in column"),
        ("password: *hunter2", "1: is not valid YAML in column 11: a value that begins with *"),
        ("password: !hunter2 x", "1: is not valid YAML in column 11: a value that begins with *"),
        ("password: !hunter2!x y", "1: is not valid YAML in column 11: found undefined tag handle '…'"),
        ("password: @hunter2", "1: is not valid YAML in column 11: found character '@' that cannot start any token"),
        ("password: \thunter2\x07", " is not valid YAML: a character"),
        ("a: &a [*a]", "1: is not valid YAML in column"),
        ("a: 1\n---\nb: 2", "2: is not valid YAML in column"),
        ("", " is empty (for example `name: shop`)"),
        ("- name: shop", "1: is not a group of fields"),
        ("? [hunter2]\n: 1", "1: is not valid YAML"),
    ],
)
def test_what_is_not_yaml_says_where(file: Path, text: str, expected: str) -> None:
    (line,) = _refused(file, text)
    assert line.startswith(expected)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigFileError, match="cannot be read: No such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigFileError, match="cannot be read: Is a directory"):
        load_config(tmp_path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("name: Grüße".encode("latin-1"))
    with pytest.raises(ConfigFileError, match="is not UTF-8 text"):
        load_config(latin)


def test_secrets_do_not_show_in_the_config(file: Path) -> None:
    config = _load(file, MINIMAL + "store: {type: postgres, dsn: 'host=db password=hunter2'}")
    assert "hunter2" not in repr(config) + str(config) + config.model_dump_json()


def test_a_config_made_in_python_keeps_secrets_out_of_its_errors() -> None:
    with pytest.raises(ValidationError) as caught:
        PipelineConfig.model_validate({"name": "hunter 2", "source": {"connection": "hunter2"}, "destination": 1})
    assert "hunter" not in str(caught.value)


def test_every_field_has_an_example() -> None:
    assert [path for path, line in _examples(PipelineConfig, ()) if not line] == []


def _examples(model: type[BaseModel], path: tuple[str, ...]) -> list[tuple[tuple[str, ...], str]]:
    found = []
    for name, field in model.model_fields.items():
        found.append(((*path, name), example(field.alias or name, field)))
        for part in _parts(field.annotation):
            inner = _model_of(part, None)
            if inner is not None and part is inner:
                found += _examples(inner, (*path, name))
    return found


def test_reading_a_config_loads_no_sdk(file: Path) -> None:
    file.write_text(MINIMAL)
    script = """
import sys
from pathlib import Path
from etl_dagster.config import load_config

load_config(Path(sys.argv[1]))
print(sorted({"duckdb", "dagster", "google.cloud"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
