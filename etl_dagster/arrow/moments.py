"""Dates, times and intervals.

Infinity is the largest value of the Arrow type and -infinity its negative, which is what DuckDB reads and writes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etl_dagster.arrow.fixed import integers, primitive, refuse, require_width
from etl_dagster.pgwire import Fields, gather

# PostgreSQL counts from 2000-01-01, Arrow from 1970-01-01.
EPOCH_DAYS = 10_957
EPOCH_MICROSECONDS = EPOCH_DAYS * 86_400_000_000

_INT32 = np.iinfo(np.int32)
_INT64 = np.iinfo(np.int64)
_MONTH_DAY_NANO = np.dtype([("months", np.int32), ("days", np.int32), ("nanoseconds", np.int64)])


def decode_date(fields: Fields, type_: pa.DataType, column: str) -> pa.Array:
    days = integers(fields, np.int32, column)
    return primitive(fields, type_, _since_1970(days, EPOCH_DAYS, "date", column))


def decode_timestamp(fields: Fields, type_: pa.DataType, column: str) -> pa.Array:
    moments = integers(fields, np.int64, column)
    return primitive(fields, type_, _since_1970(moments, EPOCH_MICROSECONDS, "timestamp", column))


def _since_1970(
    values: npt.NDArray[np.signedinteger], epoch: int, what: str, column: str
) -> npt.NDArray[np.signedinteger]:
    limits = np.iinfo(values.dtype)
    last = limits.max - epoch - 1  # the largest value itself stands for infinity
    if len(values) == 0 or (values.max() <= last and values.min() > limits.min):
        values += epoch
        return values
    infinite = values == limits.max
    refuse((values > last) & ~infinite, f"{what} too far in the future", column)
    least = values == limits.min
    values += epoch * ~(infinite | least)
    values[least] = -limits.max
    return values


def decode_interval(fields: Fields, type_: pa.DataType, column: str) -> pa.Array:
    require_width(fields, 16, column)
    micros = gather(fields.data, fields.starts, np.int64)
    days_months = gather(fields.data, fields.starts + 8, np.int64)
    absent = fields.lengths < 0
    micros[absent] = 0
    days_months[absent] = 0
    longest = _INT64.max // 1000
    refuse(_infinite(micros, days_months), "infinite interval", column)
    refuse((micros > longest) | (micros < -longest), "interval with a time part beyond 292 years", column)
    values = np.empty(len(fields), _MONTH_DAY_NANO)
    values["days"] = days_months >> 32
    values["months"] = days_months.astype(np.int32)
    values["nanoseconds"] = micros * 1000
    return primitive(fields, type_, values)


def _infinite(micros: npt.NDArray[np.int64], days_months: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Since PostgreSQL 17 an interval is infinite when all its parts are at their limit."""
    greatest = (_INT32.max << 32) | _INT32.max
    least = (_INT32.min << 32) | (1 << 31)
    infinite: npt.NDArray[np.bool_] = (micros == _INT64.max) & (days_months == greatest)
    infinite |= (micros == _INT64.min) & (days_months == least)
    return infinite
