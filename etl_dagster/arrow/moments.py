"""Dates, times and intervals.

Infinity is the largest value of the Arrow type and -infinity its negative, which is what DuckDB reads and writes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etl_dagster.arrow.fixed import array_of, integers, primitive, refuse, require_width
from etl_dagster.pgwire import Fields

# PostgreSQL counts from 2000-01-01, Arrow from 1970-01-01.
EPOCH_DAYS = 10_957
EPOCH_MICROSECONDS = EPOCH_DAYS * 86_400_000_000

_INT32 = np.iinfo(np.int32)
_INT64 = np.iinfo(np.int64)
_LONGEST = _INT64.max // 1000  # microseconds
# How Arrow lays an interval out.
MONTH_DAY_NANO = np.dtype([("months", np.int32), ("days", np.int32), ("nanoseconds", np.int64)])


def decode_date(fields: Fields, type_: pa.DataType, column: str) -> pa.Array:
    days = integers(fields, np.int32, column)
    return primitive(fields, type_, _since_1970(days, EPOCH_DAYS, type_))


def decode_timestamp(fields: Fields, type_: pa.DataType, column: str) -> pa.Array:
    moments = integers(fields, np.int64, column)
    return primitive(fields, type_, _since_1970(moments, EPOCH_MICROSECONDS, type_))


def _since_1970(values: npt.NDArray[np.signedinteger], epoch: int, type_: pa.DataType) -> npt.NDArray[np.signedinteger]:
    limits = np.iinfo(values.dtype)
    last = limits.max - epoch - 1  # the largest value itself stands for infinity
    if len(values) == 0 or (values.max() <= last and values.min() > limits.min):
        values += epoch
        return values
    infinite = values == limits.max
    refuse_far((values > last) & ~infinite, type_)
    least = values == limits.min
    values += epoch * ~(infinite | least)
    values[least] = -limits.max
    return values


def refuse_far(bad: npt.NDArray[np.bool_], type_: pa.DataType) -> None:
    """Raise when any moment is too far in the future; the nearest is the last that does not mean infinity."""
    integer = np.int32 if pa.types.is_date(type_) else np.int64
    last = np.iinfo(integer).max - 1

    def nearest(rows: npt.NDArray[np.intp]) -> pa.Array:
        return array_of(np.full(len(rows), last, integer)).view(type_)

    refuse(bad, f"{'date' if pa.types.is_date(type_) else 'timestamp'} too far in the future", nearest)


def decode_interval(fields: Fields, type_: pa.DataType, column: str) -> pa.Array:
    require_width(fields, 16, column)
    micros = fields.words(np.int64)
    days_months = fields.words(np.int64, 8)
    absent = fields.lengths < 0
    micros[absent] = 0
    days_months[absent] = 0
    days, months = days_months >> 32, days_months.astype(np.int32)
    infinite = _infinite(micros, days_months)
    refuse_long(infinite, months, days, micros)
    return primitive(fields, type_, interval_values(months, days, micros))


def refuse_long(
    infinite: npt.NDArray[np.bool_],
    months: npt.NDArray[np.integer],
    days: npt.NDArray[np.integer],
    micros: npt.NDArray[np.int64],
) -> None:
    """Raise when any interval is infinite, or its time part is longer than nanoseconds can be counted.

    The nearest has the longest time part; infinite ones are sent with all parts at their limit.
    """

    def nearest(rows: npt.NDArray[np.intp]) -> pa.Array:
        values = interval_values(months[rows], days[rows], np.clip(micros[rows], -_LONGEST, _LONGEST))
        return pa.Array.from_buffers(pa.month_day_nano_interval(), len(rows), [None, pa.py_buffer(values)])

    refuse(infinite, "infinite interval", nearest)
    refuse((micros > _LONGEST) | (micros < -_LONGEST), "interval with a time part beyond 292 years", nearest)


def interval_values(
    months: npt.NDArray[np.integer], days: npt.NDArray[np.integer], micros: npt.NDArray[np.int64]
) -> npt.NDArray[np.void]:
    """Intervals as Arrow lays them out."""
    values = np.empty(len(months), MONTH_DAY_NANO)
    values["months"] = months
    values["days"] = days
    values["nanoseconds"] = micros * 1000
    return values


def _infinite(micros: npt.NDArray[np.int64], days_months: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Since PostgreSQL 17 an interval is infinite when all its parts are at their limit."""
    greatest = (_INT32.max << 32) | _INT32.max
    least = (_INT32.min << 32) | (1 << 31)
    infinite: npt.NDArray[np.bool_] = (micros == _INT64.max) & (days_months == greatest)
    infinite |= (micros == _INT64.min) & (days_months == least)
    return infinite
