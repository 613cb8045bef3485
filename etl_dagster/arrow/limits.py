"""Values that Arrow holds and a destination does not: dates and times out of its range, numbers beyond its JSON."""

from __future__ import annotations

import json
import re
from datetime import date
from decimal import Decimal
from itertools import accumulate
from math import isfinite

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.arrow.fixed import Misfits, Nearest, array_of
from etl_dagster.model import ValueLimits

_EPOCH = date(1970, 1, 1).toordinal()
_DAY_US = 86_400_000_000
# The calendar repeats every 400 years of so many days.
_ERA_YEARS, _ERA_DAYS = 400, 146_097

# Numbers that may be too much for a double or an integer of 64 bits: 19 digits, 16 around a point, or an exponent.
_LONG = "|".join(["[0-9]{19}", *(rf"[0-9]{{{whole}}}\.[0-9]{{{16 - whole}}}" for whole in range(1, 17)), "[0-9.]+[eE]"])
_SUSPICIOUS_NUMBER = rf"(?:^|[\[:,\s])-?(?:[0-9]*)(?:{_LONG})"
# What stands between the numbers, true, false and null of a document.
_BETWEEN = r'(?:"(?:[^"\\]|\\.)*"|[\[\]{},:\s])+'
_SURROGATE = r"\\u[dD][89a-fA-F]"
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_INTEGER_DIGITS = 20  # of 64 bits, with its sign
# Where BigQuery's JSON ends, and others end later.
_DEEPEST = 500
_UNREADABLE = f"JSON with a number that no double holds exactly, half a surrogate pair, or over {_DEEPEST} levels"

_Bools = npt.NDArray[np.bool_]


def refuse_beyond(array: pa.Array, limits: ValueLimits) -> None:
    """Raise `Misfits` when any value is beyond what a destination can hold."""
    if isinstance(array.type, pa.JsonType):
        if limits.exact_json:
            _refuse(_unreadable(array.storage), _UNREADABLE, None)
        return
    if (span := _span(array.type, limits)) is None:
        return
    first, last = span
    values = _integers(array)
    ends = pc.min_max(values)
    least, most = ends["min"].as_py(), ends["max"].as_py()
    if least is None or (first <= least and most <= last):
        return
    numbers = values.fill_null(first).to_numpy(zero_copy_only=False)
    _refuse(
        (numbers < first) | (numbers > last),
        "time 24:00:00" if pa.types.is_time(array.type) else f"a year not of {limits.first_year} to {limits.last_year}",
        lambda rows: nearest_within(array.take(array_of(rows)), limits),
    )


def _refuse(bad: _Bools, what: str, nearest: Nearest | None) -> None:
    if bad.any():
        raise Misfits(bad, what, nearest, "the destination")


def nearest_within(array: pa.Array, limits: ValueLimits) -> pa.Array:
    """The values, or what comes nearest to them within the limits."""
    if (span := _span(array.type, limits)) is None:
        return array
    values = _integers(array)
    low, high = (pa.scalar(end, values.type) for end in span)
    return pc.min_element_wise(pc.max_element_wise(values, low, skip_nulls=False), high, skip_nulls=False).view(
        array.type
    )


def _integers(array: pa.Array) -> pa.Array:
    return array.view(pa.int32() if pa.types.is_date32(array.type) else pa.int64())


def _span(type_: pa.DataType, limits: ValueLimits) -> tuple[int, int] | None:
    """First and last value that can be held, as Arrow counts them; None where the limits say nothing of the type."""
    first, last = _first_day(limits.first_year), _first_day(limits.last_year + 1)
    if pa.types.is_date32(type_):
        return first, last - 1
    if pa.types.is_timestamp(type_):
        return first * _DAY_US, last * _DAY_US - 1
    if pa.types.is_time64(type_) and not limits.midnight:
        return 0, _DAY_US - 1
    return None


def _first_day(year: int) -> int:
    """Days from 1970 to the first one of a year, which may lie before Christ or after 9999."""
    near = year % _ERA_YEARS + _ERA_YEARS
    return date(near, 1, 1).toordinal() - _EPOCH + (year - near) // _ERA_YEARS * _ERA_DAYS


def _unreadable(texts: pa.Array) -> _Bools:
    """Which documents an exact parser refuses; the few that could be such are looked at by their parts."""
    bad = np.zeros(len(texts), np.bool_)
    for suspicious, judge in ((_numbers_to_judge, _inexact), (_has_surrogates, _lone), (_may_be_deep, _too_deep)):
        rows = np.flatnonzero(suspicious(texts).fill_null(False).to_numpy(zero_copy_only=False))
        if len(rows):
            bad[rows] |= judge(texts.take(array_of(rows)))
    return bad


def _numbers_to_judge(texts: pa.Array) -> pa.Array:
    return pc.match_substring_regex(texts, _SUSPICIOUS_NUMBER)


def _has_surrogates(texts: pa.Array) -> pa.Array:
    return pc.match_substring_regex(texts, _SURROGATE)


def _may_be_deep(texts: pa.Array) -> pa.Array:
    # A document that short cannot be deep, and nearly all are.
    long = pc.greater(pc.binary_length(texts), 2 * _DEEPEST)
    if not pc.any(long).as_py():
        return long
    brackets = pc.add(pc.count_substring(texts, "["), pc.count_substring(texts, "{"))
    return pc.and_(long, pc.greater(brackets, _DEEPEST))


def _inexact(texts: pa.Array) -> _Bools:
    """Documents with a number that is another one once an integer of 64 bits or a double has held it."""
    parts = pc.split_pattern_regex(texts, _BETWEEN)
    tokens, owners = pc.list_flatten(parts), pc.list_parent_indices(parts).to_numpy()
    numbers = np.flatnonzero(pc.match_substring_regex(tokens, "^-?[0-9]").to_numpy(zero_copy_only=False))
    tokens = tokens.take(array_of(numbers))
    printed = tokens.cast(pa.float64()).cast(pa.string())
    others = np.flatnonzero(pc.not_equal(tokens, printed).to_numpy(zero_copy_only=False))
    bad = np.zeros(len(texts), np.bool_)
    for place, token in zip(others.tolist(), tokens.take(array_of(others)).to_pylist(), strict=True):
        if not _is_exact(token):
            bad[owners[numbers[place]]] = True
    return bad


def _is_exact(number: str) -> bool:
    if number.lstrip("-").isdigit() and len(number) <= _INTEGER_DIGITS and -(2**63) <= int(number) < 2**64:
        return True
    held = float(number)
    return isfinite(held) and Decimal(number) == Decimal(repr(held))


def _lone(texts: pa.Array) -> _Bools:
    """Documents with half of a surrogate pair, which is no character."""
    return np.array([_has_half(text) for text in texts.to_pylist()], np.bool_)


def _has_half(text: str) -> bool:
    strings = [json.loads(string) for string in _STRING.findall(text)]
    return any("\ud800" <= character <= "\udfff" for string in strings for character in string)


def _too_deep(texts: pa.Array) -> _Bools:
    return np.array([_depth(text) > _DEEPEST for text in texts.to_pylist()], np.bool_)


def _depth(text: str) -> int:
    steps: dict[str, int] = {"[": 1, "{": 1, "]": -1, "}": -1}
    return max(accumulate(steps.get(each, 0) for each in _STRING.sub("", text)), default=0)
