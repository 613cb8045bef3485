"""Values that Arrow holds and a destination does not follow the column's policy; PostgreSQL says which and what is near."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from etl_dagster.arrow import column_type, read_column, reads_text
from etl_dagster.arrow.changes import missing_value
from etl_dagster.errors import ValueUnrepresentable
from etl_dagster.model import Column, PgType, TypeKind, ValueLimits, ValuePolicy, with_limits
from etl_dagster.pgwire import Fields, padded
from etl_dagster.testing.change_script import INT8, TEXT, make_table
from tests.decoding.support import Connection, execute, fill
from tests.types.oracle import PRINTED, ROWS, differing, mixed, read
from tests.types.test_policies import Case

LIMITS = ValueLimits()
BINARY_AND_TEXT = pytest.mark.parametrize("text", [False, True], ids=["binary", "text"])


def moments(name: str) -> Case:
    draw = random.Random(name)
    good = [f"{draw.randint(1, 9999):04d}-{draw.randint(1, 12):02d}-28 12:34:56.7" for _ in range(ROWS)]
    good += ["0001-01-01 00:00", "9999-12-31 23:59:59.999999"]
    bad = ["4713-01-01 BC", "0001-12-31 23:59:59.999999 BC", "10000-01-01", "infinity", "-infinity"]
    first, last = f"'0001-01-01 00:00'::{name}", f"'9999-12-31 23:59:59.999999'::{name}"
    if name != "date":
        bad += ["294276-12-31 23:59:59.999999"]
    else:
        first, last = "'0001-01-01'::date", "'9999-12-31'::date"
    return Case(
        name,
        mixed(good, bad, 1),
        name,
        f"v < {first} or v > {last}",
        f"case when v < {first} then {first} else {last} end",
    )


CASES = [
    moments("timestamp"),
    moments("timestamptz"),
    moments("date"),
    Case(
        "time",
        mixed(["00:00", "12:34:56.789", "23:59:59.999999"], ["24:00"], 1),
        "time",
        "v = '24:00'",
        "'23:59:59.999999'::time",
    ),
]


@BINARY_AND_TEXT
@pytest.mark.parametrize("case", CASES, ids=[case.declared for case in CASES])
def test_moments_beyond_are_replaced_and_counted_and_the_others_stay(
    connection: Connection, case: Case, text: bool
) -> None:
    type_ = fill(connection, case.declared, case.literals)
    values = {
        ValuePolicy.NULL: f"case when not ({case.bad}) then v end",
        ValuePolicy.CLAMP: f"case when {case.bad} then {case.nearest} else v end",
    }
    [(bad,)] = execute(connection, f"select count(*) from v where {case.bad}")
    for policy, expected in values.items():
        array, replaced = read(connection, limited(type_, policy), text)
        assert replaced == {"v": bad}
        assert differing(connection, array, case.read_as, expected) == []
    with pytest.raises(ValueUnrepresentable, match="cannot hold") as caught:
        read(connection, limited(type_, ValuePolicy.FAIL), text)
    assert caught.value.column == "v"
    assert execute(connection, f"select {case.bad} from v where i = {caught.value.row}") == [(True,)]


@BINARY_AND_TEXT
@pytest.mark.parametrize("case", CASES, ids=[case.declared for case in CASES])
def test_elements_of_arrays_have_the_same_limits(connection: Connection, case: Case, text: bool) -> None:
    arrays: list[str | None] = [
        None if literal is None else f'{{"{literal}",NULL,"2000-01-01 12:00"}}' for literal in case.literals
    ]
    type_ = fill(connection, f"{case.declared}[]", arrays)
    element = case.bad.replace("v ", "v[1] ")
    [(bad,)] = execute(connection, f"select count(*) from v where {element}")
    array, replaced = read(connection, limited(type_, ValuePolicy.CLAMP), text)
    assert replaced == {"v": bad}
    nearest = f"case when {element} then {case.nearest.replace('v ', 'v[1] ')} else v[1] end"
    expected = f"case when v is not null then array[{nearest}, null, v[3]] end"
    assert differing(connection, array, f"{case.declared}[]", expected) == []
    with pytest.raises(ValueUnrepresentable) as caught:
        read(connection, limited(type_, ValuePolicy.FAIL), text)
    assert execute(connection, f"select {element} from v where i = {caught.value.row}") == [(True,)]


@pytest.mark.parametrize("declared", ["timestamp", "timestamptz", "date", "time", "json", "jsonb", "date[]"])
def test_under_text_such_a_column_is_what_the_server_prints(connection: Connection, declared: str) -> None:
    literals: dict[str, list[str | None]] = {
        "time": ["24:00", None, "12:00"],
        "json": ['{"b":1e400,  "a":[1.50]}', None, '"x"'],
        "date[]": ["{infinity,2000-01-01}", None, "{NULL}"],
    }
    literals["jsonb"] = literals["json"]
    moments: list[str | None] = ["infinity", "4713-01-01 BC", None, "2024-02-29"]
    column = limited(fill(connection, declared, literals.get(declared, moments)), ValuePolicy.TEXT)
    assert column_type(column) == pa.utf8()
    printed = [text for (text,) in execute(connection, f"select {PRINTED.format('v')} from v order by i")]
    assert read(connection, column, text=True)[0].to_pylist() == printed
    if not reads_text(column):
        assert read(connection, column, text=False)[0].to_pylist() == printed


def test_a_destination_with_wider_limits_takes_what_lies_between(connection: Connection) -> None:
    type_ = fill(connection, "timestamp", ["4713-01-01 BC", "294276-12-31", "0044-03-15 BC", "10000-01-01"])
    wide = ValueLimits(first_year=-99, last_year=12_000)
    array, replaced = read(connection, limited(type_, ValuePolicy.CLAMP, wide), text=False)
    assert replaced == {"v": 2}
    near = "case i when 0 then '0100-01-01 BC' when 1 then '12000-12-31 23:59:59.999999' else v end"
    assert differing(connection, array, "timestamp", near.replace("else v", "else v::text")) == []
    midnight = limited(fill(connection, "time", ["24:00"]), ValuePolicy.FAIL, ValueLimits(midnight=True))
    assert differing(connection, read(connection, midnight, text=False)[0], "time", "v") == []


def number_cases() -> tuple[list[str], list[str]]:
    """JSON numbers that an integer of 64 bits or a double prints again, and such that none does."""
    draw = random.Random(5)
    good = ["0", "-1", "9223372036854775807", "-9223372036854775808", "18446744073709551615", "1e300", "1E5", "5e-324"]
    good += ["0.915908", "286954.5962", "1.50", "100000000000000000000", "-0.0", "1.7976931348623157e308", "2e+10"]
    good += [repr(draw.uniform(-1e6, 1e6)) for _ in range(300)]
    good += [repr(draw.random() * 10 ** draw.randint(-300, 300)) for _ in range(300)]
    good += [str(draw.randint(-(2**63), 2**64 - 1)) for _ in range(100)]
    bad = [
        "18446744073709551616",
        "-9223372036854775809",
        "1e400",
        "-1e400",
        "0.1000000000000000055",
        "12345678901234567.5",
    ]
    bad += ["3.14159265358979323846", "123456789012345678901234567890", "9007199254740993.0", "1.00000000000000000001"]
    bad += [f"{draw.randint(10**17, 10**18)}.{draw.randint(1, 9)}" for _ in range(50)]
    return good, bad


@BINARY_AND_TEXT
@pytest.mark.parametrize("declared", ["json", "jsonb"])
@pytest.mark.parametrize(
    "document", ["{}", "[{}]", '{{"a": {}, "b": [1, {}]}}', '{{"1e400": "x", "n":{}}}', "[[1,\n{}]]"]
)
def test_json_numbers_that_no_double_prints_again_are_misfits(
    connection: Connection, declared: str, document: str, text: bool
) -> None:
    good, bad = number_cases()
    literals: list[str | None] = [document.format(*[number] * 2) for number in [*good, *bad]]
    type_ = fill(
        connection, declared, [None if literal is None else literal.replace("\n", " ") for literal in literals]
    )
    array, replaced = read(connection, limited(type_, ValuePolicy.CLAMP), text)
    found = array.storage.to_pylist()
    # jsonb writes the digits of numbers out, and then there may be more of them than a double prints.
    if declared == "json":
        assert [place for place, value in enumerate(found) if value is None] == list(range(len(good), len(literals)))
        assert replaced == {"v": len(bad)}
    assert all(value is None for value in found[len(good) :])
    for number, value in zip(good, found, strict=False):
        assert value is not None, number


def test_digits_within_strings_are_no_numbers() -> None:
    texts = ['{"a": "12345678901234567890123.5", "1e400": "[1e400, ", "b": "\\",1e400"}', '"x: 1e400"', '"1e400"']
    assert read_json(texts) == texts


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ('"\\ud83d\\ude00"', False),
        ('"\\ud83d"', True),
        ('["\\ude00\\ud83d"]', True),
        ('"\\\\ud83d"', False),
        ("[" * 500 + "]" * 500, False),
        ("[" * 501 + "]" * 501, True),
        ('{"a":' * 501 + "1" + "}" * 501, True),
        ('"' + "[" * 2000 + '"', False),
        ("[" + "[],{}," * 400 + "1]", False),
        ("1" * 5000, True),
    ],
)
def test_json_that_an_exact_parser_refuses_for_another_reason_is_a_misfit(text: str, bad: bool) -> None:
    assert read_json(["1", text]) == ["1", None if bad else text]


def test_the_refusal_of_json_names_every_reason_that_it_may_have() -> None:
    with pytest.raises(ValueUnrepresentable, match="half a surrogate pair, or over 500 levels"):
        read_json(['"\\ud83d"'], ValuePolicy.FAIL)


@pytest.mark.parametrize("policy", list(ValuePolicy))
def test_the_value_of_rows_older_than_a_column_has_limits_too(policy: ValuePolicy) -> None:
    column = limited(PgType(oid=1082, name="date"), policy).model_copy(update={"missing": "infinity"})
    if policy is ValuePolicy.FAIL:
        with pytest.raises(ValueUnrepresentable):
            missing_value(column)
        return
    expected = {ValuePolicy.NULL: None, ValuePolicy.CLAMP: "9999-12-31", ValuePolicy.TEXT: "infinity"}[policy]
    found = missing_value(column).to_pylist()[0]
    assert (None if found is None else str(found)) == expected


def test_limits_go_to_the_columns_for_which_they_matter() -> None:
    dates = PgType(oid=1182, name="date[]", kind=TypeKind.ARRAY, element=PgType(oid=1082, name="date"))
    jsonbs = PgType(oid=3807, name="jsonb[]", kind=TypeKind.ARRAY, element=PgType(oid=3802, name="jsonb"))
    types = {"id": INT8, "t": TEXT, "d": PgType(oid=1082, name="date"), "ds": dates, "js": jsonbs}
    types |= {"j": PgType(oid=3802, name="jsonb"), "i": PgType(oid=1186, name="interval")}
    table = make_table(columns=types)
    assert with_limits(table, None) is table
    found = with_limits(table, LIMITS)
    assert [column.name for column in found.columns if column.limits == LIMITS] == ["d", "ds", "j"]
    inexact = with_limits(found, ValueLimits(exact_json=False))
    assert [column.name for column in inexact.columns if column.limits is not None] == ["d", "ds"]
    assert with_limits(found, None) == table


def limited(type_: PgType, policy: ValuePolicy, limits: ValueLimits = LIMITS) -> Column:
    return Column(attnum=1, name="v", type=type_, values=policy, limits=limits)


def read_json(texts: list[str], policy: ValuePolicy = ValuePolicy.NULL) -> list[str | None]:
    data = [text.encode() for text in texts]
    lengths = np.array([len(each) for each in data], np.int32)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    column = limited(PgType(oid=114, name="json"), policy)
    found: list[str | None] = read_column(column, Fields(padded(b"".join(data)), starts, lengths)).storage.to_pylist()
    return found
