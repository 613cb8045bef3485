"""What every type is in BigQuery, and that its values come back as they went, whichever way they take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

import pyarrow as pa
import pytest

from etl_dagster.arrow.types import EXTENSION_TYPES, TYPES, arrow_type, column_type
from etl_dagster.destinations.bigquery.client import Client
from etl_dagster.destinations.bigquery.config import BigQueryConfig
from etl_dagster.destinations.bigquery.encoding import decode, encode
from etl_dagster.destinations.bigquery.inline import inline_rows, inline_source
from etl_dagster.destinations.bigquery.layout import Field
from etl_dagster.destinations.bigquery.naming import bare, quoted
from etl_dagster.destinations.bigquery.parquet import ParquetFile
from etl_dagster.destinations.bigquery.types import CDC_TYPES, NativeType, native_type, plain_type
from etl_dagster.errors import ValueUnrepresentable
from etl_dagster.model import Column, PgType, TypeKind, ValueLimits, ValuePolicy
from etl_dagster.testing.typed_rows import key_values, same_rows, typed_rows, typed_table
from tests.bigquery.fixtures import Dataset

CONFIGS: dict[str, dict[str, str]] = {
    "as they are": {},
    "arrays repeated": {"arrays": "repeated"},
    "json as text": {"json": "string"},
}
LIMITS = ValueLimits()


def make_config(**changes: str) -> BigQueryConfig:
    return BigQueryConfig.model_validate({"project": "my-project", "dataset": "shop", **changes})


CONFIG = make_config()


def column(type_: PgType, *, key: bool = False, policy: ValuePolicy = ValuePolicy.FAIL) -> Column:
    return Column(attnum=1, name="v", type=type_, key_ordinal=0 if key else None, values=policy, limits=LIMITS)


def numeric(precision: int, scale: int) -> PgType:
    return PgType(oid=1700, name="numeric", typmod=((precision << 16) | (scale & 0x7FF)) + 4)


def array_of(element: PgType) -> PgType:
    return PgType(oid=99_999, name=f"{element.name}[]", kind=TypeKind.ARRAY, element=element, typmod=element.typmod)


SCALARS = [PgType(oid=oid, name=facts.name) for oid, facts in TYPES.items()]
SCALARS += [PgType(oid=90_000 + i, name=name) for i, name in enumerate(EXTENSION_TYPES)]
SCALARS += [
    PgType(oid=70_000, name="mood", kind=TypeKind.ENUM),
    PgType(oid=3904, name="int4range", kind=TypeKind.RANGE),
]
ALL_TYPES = [*SCALARS, *map(array_of, SCALARS)]


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("key", [False, True])
@pytest.mark.parametrize("policy", list(ValuePolicy))
def test_every_type_has_a_type_here(changes: dict[str, str], key: bool, policy: ValuePolicy) -> None:
    config = make_config(**changes)
    for type_ in ALL_TYPES:
        wanted = column(type_, key=key, policy=policy)
        native = native_type(wanted, config)
        values = pa.nulls(2, column_type(wanted))
        encoded = encode(values, native)
        assert encoded.type == native.carried, type_.name
        assert native.staged == native.native or native.staged == "STRING"
        assert not key or (native.native != "JSON" and not native.is_array)
        if not native.is_array:
            assert decode(encoded, values.type, native).equals(values), type_.name


def test_every_precision_and_scale_that_has_a_decimal_lands_as_a_number_wherever_one_is_wide_enough() -> None:
    for precision in range(1, 1001):
        for scale in (*range(-3, 50), precision, 1000):
            type_ = arrow_type(numeric(precision, scale))
            native = native_type(column(numeric(precision, scale)), CONFIG).native
            if type_ == pa.utf8():
                assert native == "STRING"
                continue
            whole = type_.precision - type_.scale
            expected = (
                f"NUMERIC({type_.precision}, {type_.scale})"
                if whole <= 29 and type_.scale <= 9
                else f"BIGNUMERIC({type_.precision}, {type_.scale})"
                if whole <= 38 and type_.scale <= 38
                else "STRING"
            )
            assert native == expected


@pytest.mark.parametrize(
    ("type_", "native"),
    [
        (PgType(oid=16, name="bool"), "BOOL"),
        (PgType(oid=26, name="oid"), "INT64"),
        (PgType(oid=700, name="float4"), "FLOAT64"),
        (PgType(oid=1114, name="timestamp"), "DATETIME"),
        (PgType(oid=1184, name="timestamptz"), "TIMESTAMP"),
        (PgType(oid=1186, name="interval"), "STRING"),
        (PgType(oid=2950, name="uuid"), "STRING"),
        (PgType(oid=17, name="bytea"), "BYTES"),
        (PgType(oid=3802, name="jsonb"), "JSON"),
        (array_of(PgType(oid=23, name="int4")), "JSON"),
        (PgType(oid=3904, name="int4range", kind=TypeKind.RANGE), "STRING"),
    ],
)
def test_types_that_people_ask_for(type_: PgType, native: str) -> None:
    assert native_type(column(type_), CONFIG).native == native


def test_json_is_staged_as_text_since_parquet_cannot_bring_it() -> None:
    json = native_type(column(PgType(oid=3802, name="jsonb")), CONFIG)
    assert (json.staged, json.from_staged("x")) == ("STRING", "PARSE_JSON(x, wide_number_mode=>'round')")
    assert json.to_staged("x") == json.selected("x") == "IF(x IS NULL, NULL, TO_JSON_STRING(x))"


def test_under_text_an_array_lands_as_text_however_arrays_land() -> None:
    wanted = column(array_of(PgType(oid=23, name="int4")), policy=ValuePolicy.TEXT)
    assert native_type(wanted, make_config(arrays="repeated")).native == "STRING"


@dataclass(frozen=True)
class Place:
    """A dataset in which columns of values take every way."""

    client: Client
    dataset: Dataset

    def ref(self, name: str) -> str:
        return f"`{self.dataset.project}.{self.dataset.name}.{name}`"

    def staged(self, table: pa.Table, types: Sequence[NativeType]) -> str:
        """A staging table of encoded columns, filled by a load."""
        fields = [Field(name, native.staged) for name, native in zip(table.column_names, types, strict=True)]
        file = ParquetFile()
        for batch in table.to_batches(max_chunksize=2):
            file.append(batch)
        ref = self.ref("staged")
        with file as content:
            key = f"{self.dataset.name}-staged"
            self.client.load(bare(ref), content, fields=fields, job_key=key, create=True, doing="stage")
        return ref

    def native(self, table: pa.Table, types: Sequence[NativeType]) -> str:
        """The live table that comes of it."""
        source, ref = self.staged(table, types), self.ref("live")
        pairs = list(zip(map(quoted, table.column_names), types, strict=True))
        ddl = ", ".join(f"{name} {native.native}" for name, native in pairs)
        values = ", ".join(native.from_staged(name) for name, native in pairs)
        self.client.run(f"CREATE TABLE {ref} ({ddl}); INSERT INTO {ref} SELECT {values} FROM {source}", doing="convert")
        return ref

    def read(self, sql: str) -> pa.Table:
        return pa.Table.from_batches(self.client.read(sql, doing="read"))

    def inlined(self, table: pa.Table, types: Sequence[NativeType]) -> str:
        """A table of its staged types, filled by rows within a query."""
        source, ref = inline_source("p", list(zip(table.column_names, types, strict=True))), self.ref("inlined")
        ddl = ", ".join(
            f"{quoted(name)} {native.staged}" for name, native in zip(table.column_names, types, strict=True)
        )
        script = f"CREATE TABLE {ref} ({ddl}); INSERT INTO {ref} SELECT * FROM {source}"
        self.client.run(script, doing="inline", parameters={"p": inline_rows(table)})
        return ref


@pytest.fixture
def place(bigquery_dataset: Dataset) -> Iterator[Place]:
    client = Client(bigquery_dataset.config())
    client.ensure_dataset()
    yield Place(client, bigquery_dataset)
    client.close()


def _decoded(found: pa.Table, rows: pa.RecordBatch, types: Sequence[NativeType]) -> pa.Table:
    columns = zip(found.columns, rows.columns, types, strict=True)
    arrays = [decode(column, wanted.type, native) for column, wanted, native in columns]
    return pa.Table.from_arrays(arrays, names=rows.schema.names)


def _without_nulls(rows: pa.RecordBatch) -> pa.RecordBatch:
    """What is left of the rows in BigQuery's own arrays."""

    def filled(array: pa.Array) -> pa.Array:
        if not pa.types.is_list(array.type):
            return array
        values = [[each for each in (value or []) if each is not None] for value in _storages(array)]
        storage = pa.array(values, pa.list_(_storage_type(array.type.value_type)))
        if storage.type == array.type:
            return storage
        elements = pa.ExtensionArray.from_storage(array.type.value_type, storage.values)
        return pa.ListArray.from_arrays(storage.offsets, elements)

    return pa.RecordBatch.from_arrays([filled(array) for array in rows.columns], names=rows.schema.names)


def _storage_type(type_: pa.DataType) -> pa.DataType:
    return type_.storage_type if isinstance(type_, pa.BaseExtensionType) else type_


def _storages(array: pa.ListArray) -> list[list[object] | None]:
    values = array.values.storage if isinstance(array.values, pa.ExtensionArray) else array.values
    found: list[list[object] | None] = pa.ListArray.from_arrays(
        array.offsets, values, mask=array.is_null() if array.null_count else None
    ).to_pylist()
    return found


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_values_of_every_type_come_back_as_they_went(place: Place, changes: dict[str, str]) -> None:
    config = place.dataset.config(**changes)
    # Of arrays with NULLs, BigQuery's own keep what is not NULL.
    columns = [each.model_copy(update={"values": ValuePolicy.NULL}) for each in typed_table().columns]
    types = [native_type(each, config) for each in columns]
    rows = typed_rows(LIMITS)
    expected = pa.Table.from_batches([_without_nulls(rows) if config.arrays == "repeated" else rows])
    encoded = [encode(values, native) for values, native in zip(rows.columns, types, strict=True)]
    staged = pa.Table.from_arrays(encoded, names=rows.schema.names)

    live = place.native(staged, types)
    selected = ", ".join(native.selected(quoted(n)) + f" AS c{i}" for i, (n, native) in enumerate(_named(rows, types)))
    found = _decoded(place.read(f"SELECT {selected} FROM {live}"), rows, types)
    assert [name for name in rows.schema.names if not same_rows(*_pair(found, expected, name), "id")] == []

    back = ", ".join(f"{native.to_staged(quoted(n))} AS c{i}" for i, (n, native) in enumerate(_named(rows, types)))
    found = _decoded(place.read(f"SELECT {back} FROM {live}"), rows, types)
    assert [name for name in rows.schema.names if not same_rows(*_pair(found, expected, name), "id")] == []

    travelling = [i for i, native in enumerate(types) if native.inline("x") is not None]
    assert {rows.schema.names[i] for i in range(len(types))} - {rows.schema.names[i] for i in travelling} == (
        {"deep", *(name for name, native in _named(rows, types) if native.is_array)}
    )
    some, kinds = staged.select(travelling), [types[i] for i in travelling]
    inlined = place.inlined(some, kinds)
    names = [quoted(name) for name in some.column_names]
    differing = " UNION ALL ".join(
        f"SELECT '{i}' AS n FROM {inlined} AS a JOIN {live} AS b ON a.id = b.id WHERE"
        f" {native.comparable(native.from_staged(f'a.{name}'))} IS DISTINCT FROM {native.comparable(f'b.{name}')}"
        for i, (name, native) in enumerate(zip(names, kinds, strict=True))
    )
    assert place.client.run(differing, doing="compare") == []
    found = _decoded(place.read(f"SELECT * FROM {inlined}"), rows.select(travelling), kinds)
    wanted = expected.select(travelling)
    texts = {name for name, native in _named(rows, types) if native.native == "JSON"}
    assert [n for n in wanted.column_names if n not in texts and not same_rows(*_pair(found, wanted, n), "id")] == []


def _named(rows: pa.RecordBatch, types: Sequence[NativeType]) -> list[tuple[str, NativeType]]:
    return list(zip(rows.schema.names, types, strict=True))


def _pair(found: pa.Table, expected: pa.Table, name: str) -> tuple[pa.Table, pa.Table]:
    names = ["id"] if name == "id" else ["id", name]
    return found.select(names), expected.select(names)


def test_keys_are_comparable_and_come_back(place: Place) -> None:
    columns = [each.model_copy(update={"key_ordinal": 0}) for each in typed_table().columns]
    types = [native_type(each, place.dataset.config()) for each in columns]
    rows = typed_rows(LIMITS)
    assert all(native.native == native.staged for native in types)
    encoded = [encode(values, native) for values, native in zip(rows.columns, types, strict=True)]
    live = place.native(pa.Table.from_arrays(encoded, names=rows.schema.names), types)
    keys = ", ".join(native.comparable(quoted(name)) for name, native in _named(rows, types))
    sql = f"SELECT * FROM {live} QUALIFY ROW_NUMBER() OVER (PARTITION BY {keys} ORDER BY id) = 1"
    found = _decoded(place.read(sql), rows, types)
    assert same_rows(found, pa.Table.from_batches([rows]), "id")


def test_floats_that_are_equal_to_postgresql_are_one_key(place: Place) -> None:
    float8, int8 = plain_type(pa.float64()), plain_type(pa.int64())
    values = pa.array([float("nan"), float("nan"), 0.0, -0.0, 0.1, 0.1 + 2**-55, float("inf"), -float("inf")])
    rows = pa.table({"id": pa.array(range(8)), "v": values})
    live = place.native(rows, [int8, float8])
    found = place.client.run(
        f"SELECT MIN(id), COUNT(*) FROM {live} GROUP BY {float8.comparable('v')} ORDER BY 1", doing="group"
    )
    assert found == [(0, 2), (2, 2), (4, 1), (5, 1), (6, 1), (7, 1)]


def test_json_keeps_every_number_that_has_passed_the_limits(place: Place) -> None:
    numbers = [
        "0.915908",
        "286954.5962",
        "9223372036854775807",
        "-9223372036854775808",
        "18446744073709551615",
        "1e300",
    ]
    numbers += ["0.30000000000000004", "100000000000000000000", "2.2250738585072014e-308", "-0.5", "123456789.12345678"]
    texts = [f'{{"n": {number}, "bb": [], "a": "x"}}' for number in numbers]
    json = native_type(column(PgType(oid=3802, name="jsonb")), place.dataset.config())
    values = pa.ExtensionArray.from_storage(pa.json_(), pa.array(texts))
    live = place.native(
        pa.table({"i": pa.array(range(len(texts))), "v": encode(values, json)}), [plain_type(pa.int64()), json]
    )
    found = decode(place.read(f"SELECT {json.selected('v')} AS v FROM {live} ORDER BY i").column("v"), pa.json_(), json)
    plain = {"1e300": "1" + "0" * 300, "2.2250738585072014e-308": f"0.{'0' * 307}22250738585072014"}
    assert found.storage.to_pylist() == [
        f'{{"a": "x", "n": {plain.get(number, number)}, "bb": []}}' for number in numbers
    ]


def test_the_cdc_columns_have_types(place: Place) -> None:
    assert [native.native for native in CDC_TYPES.values()] == ["STRING", "NUMERIC(29, 0)", "TIMESTAMP", "JSON"]
    lsn, unchanged = CDC_TYPES["_LSN"], CDC_TYPES["_UNCHANGED"]
    numbers = pa.array([Decimal(2**96 - 1), Decimal(0), None], pa.decimal128(38, 0))
    names = pa.array([["a", 'it"s'], [], None], pa.list_(pa.string()))
    types = [plain_type(pa.int64()), lsn, unchanged]
    table = pa.table([pa.array([0, 1, 2]), encode(numbers, lsn), encode(names, unchanged)], names=["i", "l", "u"])
    live = place.native(table, types)
    found = place.read(f"SELECT {lsn.selected('l')} AS l, {unchanged.selected('u')} AS u FROM {live} ORDER BY i")
    assert decode(found.column("l"), numbers.type, lsn).equals(numbers)
    assert decode(found.column("u"), names.type, unchanged).equals(names)


def test_an_array_with_a_null_is_refused_where_arrays_have_none() -> None:
    config = make_config(arrays="repeated")
    values = pa.array([[1], None, [], [2, None], [None]], pa.list_(pa.int32()))
    type_ = array_of(PgType(oid=23, name="int4"))
    with pytest.raises(ValueUnrepresentable, match="NULL element") as caught:
        encode(values, native_type(column(type_), config))
    assert caught.value.row == 3
    for policy in (ValuePolicy.NULL, ValuePolicy.CLAMP):
        found = encode(values, native_type(column(type_, policy=policy), config))
        assert found.to_pylist() == [[1], [], [], [2], []]


def test_every_kind_of_key_has_three_values_within_the_limits() -> None:
    assert len(key_values("date", LIMITS).unique()) == 3
    assert len(key_values("timestamptz", LIMITS).unique()) == 3
