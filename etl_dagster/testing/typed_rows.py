"""A table of every Arrow type that rows arrive in, with the values that are easily lost."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.arrow.limits import nearest_within
from etl_dagster.arrow.lists import map_list
from etl_dagster.arrow.types import arrow_schema
from etl_dagster.model import PgType, TableSchema, TypeKind, ValueLimits
from etl_dagster.testing.change_script import INT8, TEXT, make_table

_DAY_US = 86_400_000_000
# How infinity travels in our Arrow data.
_FOREVER, _NEVER = 2**63 - 1, -(2**63 - 1)
_LAST_DAY, _FIRST_DAY = 2**31 - 1, -(2**31 - 1)
_BC = -(62_200_000_000 * 1_000_000)


def _numeric(precision: int, scale: int) -> PgType:
    return PgType(oid=1700, name=f"numeric({precision},{scale})", typmod=((precision << 16) | scale) + 4)


def _base(oid: int, name: str) -> PgType:
    return PgType(oid=oid, name=name)


def _array(oid: int, element: PgType) -> PgType:
    return PgType(oid=oid, name=f"{element.name}[]", kind=TypeKind.ARRAY, element=element, typmod=element.typmod)


def _view(values: list[int | None], storage: pa.DataType, type_: pa.DataType) -> pa.Array:
    return pa.array(values, storage).view(type_)


def _list(values: pa.Array) -> pa.Array:
    """Four rows: the values, NULL, an empty list, one NULL in a list."""
    size = len(values)
    items = pa.concat_arrays([values, pa.nulls(1, values.type)])
    return pa.ListArray.from_arrays(pa.array([0, None, size, size, size + 1], pa.int32()), items)


_NAN = float("nan")
_TIMESTAMPS = _view([_FOREVER, _NEVER, _BC, None], pa.int64(), pa.timestamp("us", "UTC"))
_DATES = _view([_LAST_DAY, _FIRST_DAY, -800_000, None], pa.int32(), pa.date32())
_SMALL = [Decimal("0.0000000001"), Decimal("-9" * 1 + "9" * 30), Decimal(0), None]
_BIG = [Decimal("1" * 60 + ".0000000001"), Decimal("0.0000000001"), Decimal(0), None]
_UUIDS = pa.array([b"\0" * 16, b"\xff" * 16, bytes(range(16)), None], pa.uuid())
_JSON = pa.array(['{"a": [1, null]}', "null", '""', None], pa.json_())

# name, Postgres type, four values
_COLUMNS: tuple[tuple[str, PgType, pa.Array], ...] = (
    ("id", INT8, pa.array([1, 2, 3, 4], pa.int64())),
    ("bool", _base(16, "bool"), pa.array([True, False, True, None])),
    ("int2", _base(21, "int2"), pa.array([2**15 - 1, -(2**15), 0, None], pa.int16())),
    ("int4", _base(23, "int4"), pa.array([2**31 - 1, -(2**31), 0, None], pa.int32())),
    ("int8", _base(20, "int8"), pa.array([2**63 - 1, -(2**63), 0, None], pa.int64())),
    ("oid", _base(26, "oid"), pa.array([2**32 - 1, 0, 1, None], pa.uint32())),
    ("float4", _base(700, "float4"), pa.array([float("inf"), float("-inf"), 1.5, None], pa.float32())),
    ("float8", _base(701, "float8"), pa.array([1e308, 5e-324, -0.0, None], pa.float64())),
    ("money", _numeric(12, 2), pa.array([Decimal("9999999999.99"), Decimal("-0.01"), Decimal("0.00"), None])),
    ("deep", _numeric(38, 10), pa.array([Decimal("0.0000000001"), Decimal("-" + "9" * 28), Decimal(0), None])),
    ("wide", _numeric(76, 10), pa.array(_BIG, pa.decimal256(76, 10))),
    ("numeric", _base(1700, "numeric"), pa.array(["1.00", "NaN", "-Infinity", None])),
    ("text", TEXT, pa.array(["", "Zoë 🚲\n\t'\"", " trailing ", None])),
    ("bytea", _base(17, "bytea"), pa.array([b"", b"\0\xff", b"\\x00", None], pa.binary())),
    ("date", _base(1082, "date"), _DATES),
    ("time", _base(1083, "time"), _view([_DAY_US, 0, _DAY_US - 1, None], pa.int64(), pa.time64("us"))),
    ("timestamp", _base(1114, "timestamp"), _view([_FOREVER, _NEVER, _BC, None], pa.int64(), pa.timestamp("us"))),
    ("timestamptz", _base(1184, "timestamptz"), _TIMESTAMPS),
    (
        "interval",
        _base(1186, "interval"),
        pa.array([(-14, 3, 4_000), (0, 0, 0), (0, -1, _DAY_US * 1000), None], pa.month_day_nano_interval()),
    ),
    ("uuid", _base(2950, "uuid"), _UUIDS),
    ("jsonb", _base(3802, "jsonb"), _JSON),
    ("range", PgType(oid=3904, name="int4range", kind=TypeKind.RANGE), pa.array(["[1,2)", "empty", "(,)", None])),
    ("int4s", _array(1007, _base(23, "int4")), _list(pa.array([1, None, 3], pa.int32()))),
    ("texts", _array(1009, TEXT), _list(pa.array(["", None, "x"]))),
    ("bools", _array(1000, _base(16, "bool")), _list(pa.array([True, None, False]))),
    ("uuids", _array(2951, _base(2950, "uuid")), _list(_UUIDS)),
    ("jsonbs", _array(3807, _base(3802, "jsonb")), _list(_JSON)),
    ("wides", _array(1231, _numeric(76, 10)), _list(pa.array(_BIG, pa.decimal256(76, 10)))),
    ("stamps", _array(1185, _base(1184, "timestamptz")), _list(_TIMESTAMPS)),
    ("dates", _array(1182, _base(1082, "date")), _list(_DATES)),
)

_KEY_TYPES = {"text", "uuid", "numeric", "wide", "money", "timestamptz", "bytea", "float8", "date"}

# Three values of each type that makes a key worth testing.
KEY_VALUES: dict[str, tuple[PgType, pa.Array]] = {
    name: (type_, values.take(pa.array([1, 2, 0]))) for name, type_, values in _COLUMNS if name in _KEY_TYPES
} | {"texts": (_array(1009, TEXT), pa.array([["a"], ["a", None], []]))}


def typed_table() -> TableSchema:
    """The table's schema."""
    return make_table("every type", columns={name: type_ for name, type_, _ in _COLUMNS})


def typed_rows(limits: ValueLimits | None = None) -> pa.RecordBatch:
    """Its rows, with other values in place of those that a destination cannot hold."""
    schema = arrow_schema(typed_table())
    pairs = zip(_COLUMNS, schema, strict=True)
    columns = [within(values.cast(field.type), limits) for (_, _, values), field in pairs]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def key_values(name: str, limits: ValueLimits | None = None) -> pa.Array:
    """Three values of `KEY_VALUES` that a destination can hold."""
    return within(KEY_VALUES[name][1], limits)


def within(values: pa.Array, limits: ValueLimits | None) -> pa.Array:
    """The values, with those beyond the limits at the limits, one step apart so that they stay different."""
    if limits is None:
        return values
    if pa.types.is_list(values.type):
        return map_list(values, lambda elements: within(elements, limits), values.type)
    held = nearest_within(values, limits)
    if held.equals(values):
        return values
    before, after = _numbers(values), _numbers(held).copy()
    raised, lowered = after > before, after < before
    after += ((np.cumsum(raised) - 1) * raised - (np.cumsum(lowered) - 1) * lowered).astype(after.dtype)
    return pc.if_else(values.is_valid(), pa.array(after).view(values.type), pa.scalar(None, values.type))


def _numbers(moments: pa.Array) -> npt.NDArray[np.int64]:
    whole = pa.int32() if pa.types.is_date32(moments.type) else pa.int64()
    numbers: npt.NDArray[np.int64] = moments.view(whole).fill_null(0).to_numpy(zero_copy_only=False)
    return numbers


def same_rows(found: pa.Table, expected: pa.Table, order: str) -> bool:
    """Whether two tables hold the same rows, NaN being equal to itself."""
    one, other = found.sort_by(order), expected.sort_by(order)
    return one.schema.types == other.schema.types and all(
        _same_values(left.combine_chunks(), right.combine_chunks())
        for left, right in zip(one.columns, other.columns, strict=True)
    )


def _same_values(left: pa.Array, right: pa.Array) -> bool:
    if pa.types.is_floating(left.type):
        bits = np.dtype(f"i{left.type.bit_width // 8}")
        pairs = [column.fill_null(0).to_numpy().view(bits) for column in (left, right)]
        return left.is_null().equals(right.is_null()) and bool((pairs[0] == pairs[1]).all())
    return bool(left.equals(right))
