"""Values from the server's text, for streams that cannot be had in binary.

Slow beside the binary decoders, and as exact: the same Arrow values, the same refusals. The text is what a session with
``DateStyle`` ISO, ``IntervalStyle`` postgres and time zone UTC prints.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import date
from decimal import ROUND_HALF_UP, Context, Decimal
from functools import cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.arrow.arrays import MANY_DIMENSIONS, Renumber, check_bounds
from etl_dagster.arrow.fixed import bitmap, refuse
from etl_dagster.arrow.moments import interval_values, refuse_far, refuse_long
from etl_dagster.arrow.numbers import NOT_FINITE, outside

_EPOCH = date(1970, 1, 1).toordinal()
_DAY_US = 86_400_000_000
_INT64_MAX = 2**63 - 1
_INT32_MAX = 2**31 - 1
_MOMENT = re.compile(r"(\d+)-(\d\d)-(\d\d)(?: ([\d:.]+))?(?:\+00)?( BC)?")
_UNIT = re.compile(r"([+-]?\d+) (year|mon|day)")
_CLOCK = re.compile(r"([+-]?)(\d+):(\d\d):(\d\d)(?:\.(\d+))?$")
_MONTHS = {"year": 12, "mon": 1, "day": 0}
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_INFINITE = {  # as the binary form has them
    "infinity": (_INT32_MAX, _INT32_MAX, _INT64_MAX),
    "-infinity": (-_INT32_MAX - 1, -_INT32_MAX - 1, -_INT64_MAX - 1),
}

_EXACT = Context(prec=100)  # more digits than any decimal of Arrow has

Parser = Callable[[pa.Array, pa.DataType], pa.Array]


def parse(texts: pa.Array, type_: pa.DataType) -> pa.Array:
    """The values of an Arrow type that is no list.

    Raises:
        Misfits: Values that the Arrow type cannot hold.
    """
    parser = next((parser for applies, parser in _PARSERS if applies(type_)), _cast)
    return parser(texts, type_)


def split_array_texts(
    texts: pa.Array, delimiter: str, renumber: Renumber | None = None
) -> tuple[npt.NDArray[np.int32], pa.Array]:
    """List offsets, and the text of all elements one after another; see `split_elements`."""
    values = texts.to_pylist()
    refuse(_mask("{{" in _bare(text) for text in values), MANY_DIMENSIONS)
    check_bounds(_mask(text is not None and text[0] == "[" for text in values), renumber)
    pattern = _element(delimiter)
    elements = [[] if text is None else _elements(pattern, text[text.index("{") :]) for text in values]
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum([len(some) for some in elements], out=offsets[1:])
    return offsets, pa.array([text for some in elements for text in some], pa.string())


def _bare(text: str | None) -> str:
    """An array's text up to its first element."""
    return "" if text is None else text[text.find("{") :][:2]


@cache
def _element(delimiter: str) -> re.Pattern[str]:
    return re.compile(rf'"((?:[^"\\]|\\.)*)"|([^{delimiter}{{}}"]+)', re.DOTALL)


def _elements(pattern: re.Pattern[str], text: str) -> list[str | None]:
    return [
        _ESCAPED.sub(r"\1", found[1]) if found[1] is not None else None if found[2] == "NULL" else found[2]
        for found in pattern.finditer(text)
    ]


def _mask(bad: Iterable[bool]) -> npt.NDArray[np.bool_]:
    return np.array(list(bad), np.bool_)


def _cast(texts: pa.Array, type_: pa.DataType) -> pa.Array:
    return texts.cast(type_)


def _bools(texts: pa.Array, type_: pa.DataType) -> pa.Array:
    return pc.equal(texts, "t")


def _json(texts: pa.Array, type_: pa.DataType) -> pa.Array:
    return pa.ExtensionArray.from_storage(type_, texts)


def _byteas(texts: pa.Array, type_: pa.DataType) -> pa.Array:
    return pa.array(
        [None if text is None else bytes.fromhex(text.removeprefix("\\x")) for text in texts.to_pylist()], type_
    )


def _uuids(texts: pa.Array, type_: pa.DataType) -> pa.Array:
    found = [None if text is None else bytes.fromhex(text.replace("-", "")) for text in texts.to_pylist()]
    return pa.ExtensionArray.from_storage(type_, pa.array(found, pa.binary(16)))


def _decimals(texts: pa.Array, type_: pa.DataType) -> pa.Array:
    values = [None if text is None else Decimal(text) for text in texts.to_pylist()]
    held = _nearest_decimals(values, type_)

    def nearest(rows: npt.NDArray[np.intp]) -> pa.Array:
        return pa.array([held[row] for row in rows.tolist()], type_)

    refuse(_mask(value is not None and not value.is_finite() for value in values), NOT_FINITE, nearest)
    refuse(_mask(value != near for value, near in zip(values, held, strict=True)), outside(type_), nearest)
    return pa.array(held, type_)


def _nearest_decimals(values: Iterable[Decimal | None], type_: pa.DataType) -> list[Decimal | None]:
    """Rounded half away from zero, as PostgreSQL rounds; the largest that there is; None for NaN."""
    most = Decimal((0, (9,) * type_.precision, -type_.scale))
    return [None if value is None else _nearest_decimal(value, most) for value in values]


def _nearest_decimal(value: Decimal, most: Decimal) -> Decimal | None:
    if value.is_nan():
        return None
    if value.copy_abs() <= most:  # abs() would round to the digits of the context
        value = value.quantize(most, ROUND_HALF_UP, _EXACT)
    return max(most.copy_negate(), min(value, most))


def _dates(texts: pa.Array, type_: pa.DataType) -> pa.Array:
    found = [None if text is None else _infinity(text, _INT32_MAX) or _moment(text)[0] for text in texts.to_pylist()]
    return pa.array(found, pa.int32()).view(type_)


def _timestamps(texts: pa.Array, type_: pa.DataType) -> pa.Array:
    found = [None if text is None else _infinity(text, _INT64_MAX) or _micros(text) for text in texts.to_pylist()]
    refuse_far(_mask(value is not None and value > _INT64_MAX for value in found), type_)
    return pa.array(found, pa.int64()).view(type_)


def _infinity(text: str, greatest: int) -> int:
    """The number that stands for infinity; 0 for a finite moment."""
    return {"infinity": greatest, "-infinity": -greatest}.get(text, 0)


def _micros(text: str) -> int:
    days, micros = _moment(text)
    found = days * _DAY_US + micros
    return found if found < _INT64_MAX else _INT64_MAX + 1  # the largest stands for infinity


def _moment(text: str) -> tuple[int, int]:
    """Days since 1970 and microseconds of the day."""
    found = _MOMENT.fullmatch(text)
    if found is None:
        raise ValueError(text)
    year = 1 - int(found[1]) if found[5] else int(found[1])
    # The calendar repeats every 400 years of 146097 days.
    near = year % 400 + 400
    days = date(near, int(found[2]), int(found[3])).toordinal() - _EPOCH + (year - near) // 400 * 146_097
    return days, _time_of_day(found[4]) if found[4] else 0


def _time_of_day(text: str) -> int:
    hours, minutes, seconds = text.split(":")
    whole, _, fraction = seconds.partition(".")
    return (int(hours) * 3600 + int(minutes) * 60 + int(whole)) * 1_000_000 + int(fraction.ljust(6, "0"))


def _times(texts: pa.Array, type_: pa.DataType) -> pa.Array:
    found = [None if text is None else _time_of_day(text) for text in texts.to_pylist()]
    return pa.array(found, pa.int64()).view(type_)


def _intervals(texts: pa.Array, type_: pa.DataType) -> pa.Array:
    values = [text or "" for text in texts.to_pylist()]
    parts = [_INFINITE.get(text) or (*_units(text), _clock(text)) for text in values]
    months, days, micros = np.array(parts, np.int64).reshape(-1, 3).T
    refuse_long(_mask(text in _INFINITE for text in values), months, days, micros)
    nulls = bitmap(texts.is_valid().to_numpy(zero_copy_only=False))
    return pa.Array.from_buffers(type_, len(texts), [nulls, pa.py_buffer(interval_values(months, days, micros))])


def _units(text: str) -> tuple[int, int]:
    """Months and days."""
    units = _UNIT.findall(text)
    months = sum(int(number) * _MONTHS[unit] for number, unit in units)
    return months, sum(int(number) for number, unit in units if unit == "day")


def _clock(text: str) -> int:
    """Microseconds of the part that is no months and no days."""
    found = _CLOCK.search(text)
    if found is None:
        return 0
    sign, hours, minutes, seconds, fraction = found.groups(default="")
    micros = (int(hours) * 3600 + int(minutes) * 60 + int(seconds)) * 1_000_000 + int(fraction.ljust(6, "0"))
    return -micros if sign == "-" else micros


_PARSERS: tuple[tuple[Callable[[pa.DataType], bool], Parser], ...] = (
    (pa.types.is_boolean, _bools),
    (lambda type_: isinstance(type_, pa.JsonType), _json),
    (lambda type_: isinstance(type_, pa.UuidType), _uuids),
    (pa.types.is_binary, _byteas),
    (pa.types.is_decimal, _decimals),
    (pa.types.is_date32, _dates),
    (pa.types.is_timestamp, _timestamps),
    (pa.types.is_time, _times),
    (pa.types.is_interval, _intervals),
)
