"""Arrow columns as the text that Postgres reads, in whole columns.

Infinite dates and timestamps are the extreme integers (`INFINITY_*`), as everywhere in this package.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.arrow.fixed import words_of
from etl_dagster.arrow.lists import join_list
from etl_dagster.arrow.printing import hex_digits

_INT64_MAX = np.iinfo(np.int64).max
_INT32_MAX = np.iinfo(np.int32).max
_DAY_US = 86_400_000_000
# What Arrow prints as four-digit years; other dates are few and take the slow way.
_FIRST_DAY = (date(1, 1, 1) - date(1970, 1, 1)).days
_LAST_DAY = (date(9999, 12, 31) - date(1970, 1, 1)).days


def to_text(array: pa.Array) -> pa.Array:
    """The values as text that the type's input function reads; nulls stay null."""
    if isinstance(array, pa.ExtensionArray):
        return to_text(array.storage)
    for applies, convert in _CONVERSIONS:
        if applies(array.type):
            return convert(array)
    return array.cast(pa.string())


def _bytea(array: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise("\\x", hex_digits(array), "")


def _date(array: pa.Array) -> pa.Array:
    days = _integers(array, np.int32).astype(np.int64)
    return _dated(array, days, _INT32_MAX, days, np.zeros_like(days))


def _timestamp(array: pa.Array) -> pa.Array:
    array = array.cast(pa.timestamp("us", array.type.tz))
    micros = _integers(array, np.int64)
    days, rest = np.divmod(micros, _DAY_US)
    plain = array.cast(pa.int64()).cast(pa.timestamp("us"))
    return _dated(plain, micros, _INT64_MAX, days, rest)


def _dated(
    array: pa.Array,
    raw: npt.NDArray[np.int64],
    infinity: int,
    days: npt.NDArray[np.int64],
    micros: npt.NDArray[np.int64],
) -> pa.Array:
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    odd = ((days < _FIRST_DAY) | (days > _LAST_DAY)) & valid
    epoch = pa.scalar(0, pa.int32()).cast(array.type) if _is_date(array) else pa.scalar(0, pa.timestamp("us"))
    usual = pc.if_else(pa.array(odd), epoch, array)
    text = usual.cast(pa.string())
    if not odd.any():
        return text
    values = [
        _odd(int(raw[at]), infinity, int(days[at]), int(micros[at]), _is_date(array)) for at in np.flatnonzero(odd)
    ]
    return pc.replace_with_mask(text, pa.array(odd), pa.array(values, pa.string()))


def _is_date(array: pa.Array) -> bool:
    return bool(pa.types.is_date(array.type))


def _odd(raw: int, infinity: int, days: int, micros: int, is_date: bool) -> str:
    """Text of an infinity, or of a date outside the years 1 to 9999."""
    if abs(raw) >= infinity:
        return "infinity" if raw > 0 else "-infinity"
    # The calendar repeats every 400 years of 146097 days.
    eras, day = divmod(days, 146_097)
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)
    year = moment.year + 400 * eras
    era, year = (" BC", 1 - year) if year < 1 else ("", year)
    time = "" if is_date else f" {_time_of_day(micros)}"
    return f"{year:04d}-{moment:%m-%d}{time}{era}"


def _time_of_day(micros: int) -> str:
    seconds, fraction = divmod(micros, 1_000_000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{fraction:06d}"


def _time(array: pa.Array) -> pa.Array:
    micros = array.cast(pa.time64("us")).cast(pa.int64())
    midnight = pc.equal(micros, _DAY_US)
    usual = pc.if_else(midnight, 0, micros).cast(pa.time64("us")).cast(pa.string())
    return pc.if_else(midnight, "24:00:00", usual)


_INTERVAL = np.dtype([("months", "<i4"), ("days", "<i4"), ("nanos", "<i8")])


def _interval(array: pa.Array) -> pa.Array:
    parts = words_of(array, _INTERVAL)
    seconds = parts["nanos"] // 1_000_000_000
    units = (
        (parts["months"], " mons"),
        (parts["days"], " days"),
        (seconds // 3600, " hours"),  # PostgreSQL 14 reads no more seconds than fit 32 bits
        (seconds % 3600, " secs"),
        (parts["nanos"] % 1_000_000_000 // 1000, " us"),
    )
    words = [
        pc.binary_join_element_wise(pa.array(np.ascontiguousarray(number)).cast(pa.string()), unit, "")
        for number, unit in units
    ]
    return pc.if_else(array.is_valid(), pc.binary_join_element_wise(*words, " "), pa.scalar(None, pa.string()))


def _list(array: pa.Array) -> pa.Array:
    return join_list(array, _elements, "{", "}")


def _elements(array: pa.Array) -> pa.Array:
    escaped = pc.replace_substring(pc.replace_substring(to_text(array), "\\", "\\\\"), '"', '\\"')
    return pc.fill_null(pc.binary_join_element_wise('"', escaped, '"', ""), "NULL")


def _integers(array: pa.Array, dtype: type[np.signedinteger[Any]]) -> npt.NDArray[Any]:
    whole = pa.int32() if dtype is np.int32 else pa.int64()
    found: npt.NDArray[Any] = pc.fill_null(array.cast(whole), 0).to_numpy(zero_copy_only=False)
    return found


_CONVERSIONS: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.Array], pa.Array]], ...] = (
    (pa.types.is_fixed_size_binary, hex_digits),  # uuid
    (lambda kind: pa.types.is_binary(kind) or pa.types.is_large_binary(kind), _bytea),
    (pa.types.is_date32, _date),
    (pa.types.is_timestamp, _timestamp),
    (pa.types.is_time, _time),
    (pa.types.is_interval, _interval),
    (lambda kind: pa.types.is_list(kind) or pa.types.is_large_list(kind), _list),
)
