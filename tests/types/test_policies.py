"""What each value policy makes of values that cannot be held, and that it leaves all others as they are.

PostgreSQL is the oracle: it says which values are bad, what comes nearest to them, and whether ours are the same.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from etl_dagster.arrow import column_type, read_column, reads_text
from etl_dagster.errors import InternalError, ValueUnrepresentable
from etl_dagster.model import Column, PgType, TypeKind, ValuePolicy
from etl_dagster.pgwire import Fields, padded
from etl_dagster.postgres.text import to_text
from tests.decoding.support import Connection, execute, fields_of, fill
from tests.types.oracle import PRINTED, ROWS, differing, mixed, read

LAST_TIMESTAMP = "'294247-01-10 04:00:54.775806Z'::{}"
BINARY_AND_TEXT = pytest.mark.parametrize("text", [False, True], ids=["binary", "text"])


class Case(NamedTuple):
    """Values of a column, good and bad, and what the server says of them.

    Attributes:
        read_as: The type that our values are read back as.
        bad: Says which values cannot be held.
        nearest: What comes nearest to a bad one.
    """

    declared: str
    literals: list[str | None]
    read_as: str
    bad: str
    nearest: str = "null"
    decimal: tuple[int, int] | None = None


def numbers(seed: int) -> list[str]:
    """Numbers of every size, and those that floats or machine words spoil."""
    draw = random.Random(seed)
    words = [str((1 << bits) + more) for bits in (31, 32, 63, 64, 127, 128, 255) for more in (-1, 0, 1)]
    words += [f"{whole}.{'9' * digits}" for whole in (0, 9, 10**8 - 1, 10**16 - 1) for digits in (1, 4, 5, 20)]
    words += [
        "0.00005",
        "0.000049999",
        "0.5",
        "1.5",
        "2.5",
        "1e-16383",
        "1e5000",
        "0",
        "0.000",
        "1." + "0" * 300,
        "2.50000",
    ]
    random_ones = [f"{draw.getrandbits(draw.randint(1, 260))}e{draw.randint(-60, 40)}" for _ in range(ROWS)]
    return [sign + number for number in words + random_ones for sign in ("", "-")]


def unconstrained(precision: int, scale: int) -> Case:
    most = f"{'9' * precision}e{-scale}::numeric"
    special = "'NaN', 'Infinity', '-Infinity'"
    return Case(
        "numeric",
        mixed(numbers(precision * 100 + scale), ["NaN", "Infinity", "-Infinity"], precision),
        f"numeric({precision},{scale})",
        f"v in ({special}) or abs(v) > {most} or v <> round(v, {scale})",
        f"case when v <> 'NaN' then greatest(-{most}, least({most}, round(v, {scale}))) end",
        (precision, scale),
    )


def declared_numeric(precision: int, scale: int) -> Case:
    draw = random.Random(precision)
    good = [f"{draw.randint(-(10**precision) + 1, 10**precision - 1)}e{-scale}" for _ in range(ROWS)]
    name = f"numeric({precision},{scale})"
    return Case(name, mixed(good, ["NaN"], scale), name, "v = 'NaN'")


def moments(name: str) -> Case:
    draw = random.Random(name)
    good = [f"{draw.randint(1, 290000):04d}-{draw.randint(1, 12):02d}-28 12:34:56.7" for _ in range(ROWS)]
    good += ["4713-01-01 BC", "infinity", "-infinity", "294247-01-10 04:00:54.775806"]
    bad = ["294247-01-10 04:00:54.775807", "294276-12-31 23:59:59.999999", "294250-06-01"]
    last = LAST_TIMESTAMP.format(name)
    return Case(name, mixed(good, bad, 1), name, f"v > {last} and v <> 'infinity'", last)


DECIMALS = [(1, 0), (4, 4), (12, 2), (12, 4), (18, 0), (18, 2), (18, 18), (19, 1), (38, 0), (38, 9), (38, 38), (50, 20)]
CASES = [
    *(declared_numeric(*both) for both in [(12, 2), (18, 2), (38, 20), (50, 3)]),
    *(unconstrained(*both) for both in [*DECIMALS, (76, 0), (76, 30), (76, 76)]),
    moments("timestamp"),
    moments("timestamptz"),
    Case(
        "date", mixed(["4713-01-01 BC", "5874897-12-31", "infinity", "2024-02-29"], ["-infinity"], 1), "date", "false"
    ),
    Case("time", mixed(["24:00", "00:00", "12:34:56.789"], ["23:59:59.999999"], 1), "time", "false"),
]


@BINARY_AND_TEXT
@pytest.mark.parametrize("case", CASES, ids=[f"{case.declared}{case.decimal or ''}" for case in CASES])
def test_bad_values_are_replaced_and_counted_and_good_ones_stay(connection: Connection, case: Case, text: bool) -> None:
    type_ = fill(connection, case.declared, case.literals)
    values = {
        ValuePolicy.NULL: f"case when not ({case.bad}) then v end",
        ValuePolicy.CLAMP: f"case when {case.bad} then {case.nearest} else v end",
    }
    [(bad, first)] = execute(connection, f"select count(*), min(i) from v where {case.bad}")
    for policy, expected in values.items():
        column = Column(attnum=1, name="v", type=type_, values=policy, decimal=case.decimal)
        array, replaced = read(connection, column, text)
        assert replaced == ({"v": bad} if bad else {})
        assert differing(connection, array, case.read_as, expected) == []

    failing = Column(attnum=1, name="v", type=type_, decimal=case.decimal)
    if not bad:
        read(connection, failing, text)
        return
    with pytest.raises(ValueUnrepresentable) as caught:
        read(connection, failing, text)
    assert caught.value.column == "v"
    # Of several kinds of bad values one is named, and which row has the first of that kind.
    assert caught.value.row is not None
    assert caught.value.row >= first
    assert execute(connection, f"select {case.bad} from v where i = {caught.value.row}") == [(True,)]


@pytest.mark.parametrize("case", CASES, ids=[f"{case.declared}{case.decimal or ''}" for case in CASES])
def test_under_text_a_column_is_what_the_server_prints(connection: Connection, case: Case) -> None:
    check_printed(connection, fill(connection, case.declared, case.literals), decimal=case.decimal)


@pytest.mark.parametrize(
    ("declared", "literals"),
    [
        ("numeric(20,4)[]", ["{1.5,NaN}", "{{1,2},{3,4}}", "[0:1]={1,2}", "{}", None]),
        ("text[]", ['{{"a,{","\\""}}', '{"a b",NULL,""}']),
        ("interval", ["1 year 2 mons -3 days 04:05:06.789", "-00:00:00.000001"]),
        ("price", ["1.50", "NaN"]),
        ("prices", ["{1.50,NaN}", "{{1}}"]),
        ("instant", ["294276-12-31Z", "infinity"]),
    ],
)
def test_under_text_nothing_is_refused(connection: Connection, declared: str, literals: list[str | None]) -> None:
    execute(connection, "create domain price as numeric(12,2); create domain prices as numeric(8,3)[]")
    execute(connection, "create domain instant as timestamptz")
    check_printed(connection, fill(connection, declared, literals))


def check_printed(connection: Connection, type_: PgType, decimal: tuple[int, int] | None = None) -> None:
    column = Column(attnum=1, name="v", type=type_, values=ValuePolicy.TEXT, decimal=decimal)
    assert column_type(column) == pa.utf8()
    printed = [text for (text,) in execute(connection, f"select {PRINTED.format('v')} from v order by i")]
    assert read(connection, column, text=True)[0].to_pylist() == printed
    if reads_text(column):
        with pytest.raises(InternalError, match="fetch it as text"):
            read(connection, column, text=False)
    else:
        assert read(connection, column, text=False)[0].to_pylist() == printed


WHOLE = ["bool", "int2", "int4", "int8", "oid", "float4", "float8", "text", "varchar(9)", "char(3)", "name", '"char"']
WHOLE += ["bytea", "uuid", "json", "jsonb", "inet", "int4range", "timetz", "numeric", "numeric(100,2)"]


@pytest.mark.parametrize("declared", WHOLE)
def test_types_that_hold_every_value_are_the_same_under_every_policy(connection: Connection, declared: str) -> None:
    type_ = fill(connection, declared, [None])
    columns = [Column(attnum=1, name="v", type=type_, values=policy) for policy in ValuePolicy]
    assert len({(column_type(column), reads_text(column)) for column in columns}) == 1


LONGEST = "2562047:47:16.854775"
# Declared type, value, what is nearest to it, and how many values are replaced.
SINGLE: list[tuple[str, str, str | None, int]] = [
    ("int4[]", "[0:1]={1,2}", "{1,2}", 1),
    ("int4[]", "[-5:-4]={1,NULL}", "{1,NULL}", 1),
    ("int4[]", "{{1,2},{3,4}}", None, 1),
    ("text[]", "[2:3][-1:0]={{a,b},{c,d}}", None, 1),
    ("text[]", '[2:4]={"a,{","}",NULL}', '{"a,{","}",NULL}', 1),
    ("numeric(40,2)[]", "{1,NaN,3}", "{1.00,NULL,3.00}", 1),
    ("numeric(6,2)[]", "[2:5]={1,NaN,3,NaN}", "{1.00,NULL,3.00,NULL}", 3),
    ("timestamptz[]", "{294276-12-31Z,infinity}", '{"294247-01-10 04:00:54.775806+00",infinity}', 1),
    ("moments", "{294276-12-31Z}", '{"294247-01-10 04:00:54.775806+00"}', 1),
    ("price", "NaN", None, 1),
]
SINCE_15 = [
    ("interval", "2562048 hours", LONGEST, 1),
    ("interval", "1 mon -3 days 2562047788 hours", f"1 mon -3 days {LONGEST}", 1),
    ("interval", "-2562047788 hours -54.775808 secs", f"-{LONGEST}", 1),
    ("interval[]", "{2562048 hours,1 day}", f'{{{LONGEST},"1 day"}}', 1),
]
SINCE_17 = [
    ("interval", "infinity", f"178956970 years 7 mons 2147483647 days {LONGEST}", 1),
    ("interval", "-infinity", f"-178956970 years -8 mons -2147483648 days -{LONGEST}", 1),
]


@BINARY_AND_TEXT
@pytest.mark.parametrize(
    ("declared", "value", "nearest", "count"),
    [
        *SINGLE,
        *(pytest.param(*case, marks=pytest.mark.since(15)) for case in SINCE_15),
        *(pytest.param(*case, marks=pytest.mark.since(17)) for case in SINCE_17),
    ],
)
def test_arrays_and_intervals(
    connection: Connection, declared: str, value: str, nearest: str | None, count: int, text: bool
) -> None:
    execute(connection, "create domain price as numeric(12,2); create domain moments as timestamptz[]")
    type_ = fill(connection, declared, [None, value, None, value])
    column = Column(attnum=1, name="v", type=type_, values=ValuePolicy.CLAMP)
    array, replaced = read(connection, column, text)
    assert replaced == {"v": 2 * count}
    expected = f"case when v is distinct from null then '{nearest}'::{declared} end" if nearest else "null"
    assert differing(connection, array, declared, expected) == []

    array, replaced = read(connection, column.model_copy(update={"values": ValuePolicy.NULL}), text)
    assert replaced["v"] >= 2
    assert array.null_count + (array.flatten().null_count if pa.types.is_list(array.type) else 0) > 2

    with pytest.raises(ValueUnrepresentable) as caught:
        read(connection, column.model_copy(update={"values": ValuePolicy.FAIL}), text)
    assert (caught.value.row, caught.value.column) == (1, "v")


@BINARY_AND_TEXT
def test_the_row_of_a_refused_element_is_named(connection: Connection, text: bool) -> None:
    type_ = fill(connection, "numeric[]", ["{1,2,3}", None, "{}", "{4,5}", "{6,7.12}", "{8.12}"])
    with pytest.raises(ValueUnrepresentable, match=r"2 value\(s\)") as caught:
        read(connection, Column(attnum=1, name="v", type=type_, decimal=(5, 1)), text)
    assert caught.value.row == 4


@BINARY_AND_TEXT
def test_a_decimal_for_numeric_reaches_elements_and_domains_but_no_declared_precision(
    connection: Connection, text: bool
) -> None:
    execute(connection, "create domain exact as numeric; create domain price as numeric(12,2)")
    for declared, arrow in (
        ("numeric", pa.decimal128(9, 3)),
        ("exact", pa.decimal128(9, 3)),
        ("numeric[]", pa.list_(pa.decimal128(9, 3))),
        ("exact[]", pa.list_(pa.decimal128(9, 3))),
        ("price", pa.decimal128(12, 2)),
        ("price[]", pa.list_(pa.decimal128(12, 2))),
        ("numeric(4,1)[]", pa.list_(pa.decimal128(4, 1))),
        ("int4", pa.int32()),
    ):
        type_ = fill(connection, declared, ["{1}" if "[" in declared else "1", None])
        column = Column(attnum=1, name="v", type=type_, decimal=(9, 3))
        assert column_type(column) == arrow
        elements = read(connection, column, text)[0].to_pylist()[0]
        assert elements == ([1] if "[" in declared else 1)


@pytest.mark.parametrize("kind", ["text", "varchar", "json"])
def test_text_that_is_not_utf8(kind: str) -> None:
    oid = {"text": 25, "varchar": 1043, "json": 114}[kind]
    data = b"good" + b'"b\xffd"' + "é".encode()
    fields = Fields(padded(data), np.array([0, 4, 9, 0]), np.array([4, 5, 2, -1], np.int32))
    for policy, expected in ((ValuePolicy.NULL, None), (ValuePolicy.CLAMP, '"b\ufffdd"')):
        replaced: Counter[str] = Counter()
        column = Column(attnum=1, name="v", type=PgType(oid=oid, name=kind), values=policy)
        for text in (False, True):
            array = read_column(column, fields, text=text, replaced=replaced)
            assert array.type == column_type(column)
            assert to_text(array).to_pylist() == ["good", expected, "é", None]
        assert replaced == {"v": 2}
    for policy in (ValuePolicy.FAIL, ValuePolicy.TEXT):
        with pytest.raises(ValueUnrepresentable, match="UTF-8") as caught:
            read_column(Column(attnum=1, name="v", type=PgType(oid=oid, name=kind), values=policy), fields)
        assert caught.value.row == 1


def test_counts_add_up_over_batches_and_columns(connection: Connection) -> None:
    type_ = fill(connection, "numeric(5,2)", ["NaN", "1", "NaN"])
    fields = fields_of(connection, "select v from v")
    replaced: Counter[str] = Counter()
    for name in ("a", "b", "a"):
        read_column(Column(attnum=1, name=name, type=type_, values=ValuePolicy.NULL), fields, replaced=replaced)
    assert replaced == {"a": 4, "b": 2}


def test_a_policy_needs_no_counter() -> None:
    nothing = Fields(padded(), np.empty(0, np.int64), np.empty(0, np.int32))
    for policy in ValuePolicy:
        for kind in (TypeKind.BASE, TypeKind.ENUM):
            column = Column(attnum=1, name="v", type=PgType(oid=1700, name="numeric", kind=kind), values=policy)
            assert read_column(column, nothing).type == column_type(column)
