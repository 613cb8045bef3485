"""One-dimensional arrays: the fields of all elements of all rows, to be decoded as one column."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from etl_dagster.arrow.fixed import refuse
from etl_dagster.errors import ProtocolError
from etl_dagster.pgwire import Fields, check, gather

_HEADER = 12  # number of dimensions, flags, element type
_ONE_DIMENSION = _HEADER + 8  # then the size and the lower bound
_Sizes = npt.NDArray[np.int64]

MANY_DIMENSIONS = "multi-dimensional array"
Renumber = Callable[[int], None]


def split_elements(
    fields: Fields, column: str, renumber: Renumber | None = None
) -> tuple[npt.NDArray[np.int32], Fields]:
    """Arrow list offsets, and the elements of all rows one after another.

    Args:
        renumber: Let arrays that do not count from 1 do so, and tell it how many there are.

    Raises:
        Misfits: An array has more dimensions than one, or does not count from 1.
        ProtocolError: The bytes are not those of an array.
    """
    sizes = _sizes(fields, column, renumber)
    offsets = np.zeros(len(fields) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    if offsets[-1] > np.iinfo(np.int32).max:
        raise ProtocolError(f"Arrays of column {column!r}", offset=0, need=int(offsets[-1]), have=2**31 - 1)
    elements = _uniform(fields, sizes, offsets) or _walk(fields, sizes, offsets)
    return offsets.astype(np.int32), elements


def _sizes(fields: Fields, column: str, renumber: Renumber | None) -> _Sizes:
    present = fields.present
    ends = fields.starts + fields.lengths
    check(~present | (fields.lengths >= _HEADER), fields.starts, ends, _HEADER, f"Array of column {column!r}")
    dimensions = gather(fields.data, fields.starts, np.int32) * present
    refuse(dimensions > 1, MANY_DIMENSIONS)
    filled = dimensions == 1
    right = (fields.lengths >= _ONE_DIMENSION) & filled | (fields.lengths == _HEADER) & (dimensions == 0) | ~present
    check(right, fields.starts, ends, _ONE_DIMENSION, f"Array of column {column!r}")
    bounds = gather(fields.data, fields.starts + _HEADER, np.int64) * filled
    check_bounds(filled & ((bounds & 0xFFFFFFFF) != 1), renumber)
    sizes: _Sizes = bounds >> 32
    possible = (sizes >= 0) & (4 * sizes <= np.maximum(fields.lengths - _ONE_DIMENSION, 0))
    check(possible, fields.starts, ends, _ONE_DIMENSION, f"Array size of column {column!r}")
    return sizes


def check_bounds(shifted: npt.NDArray[np.bool_], renumber: Renumber | None) -> None:
    """Refuse arrays that do not count from 1, or say how many there are."""
    if renumber is None:
        refuse(shifted, "array that does not count from 1")
    elif count := int(np.count_nonzero(shifted)):
        renumber(count)


def _uniform(fields: Fields, sizes: _Sizes, offsets: _Sizes) -> Fields | None:
    """The elements where all of them have one width, as those of fixed-width types have."""
    filled = np.flatnonzero(sizes)
    if len(filled) == 0:
        return Fields(fields.data, np.empty(0, np.int64), np.empty(0, np.int32))
    width = int(gather(fields.data, fields.starts[filled[:1]] + _ONE_DIMENSION, np.int32)[0])
    if width < 0 or ((fields.lengths - _ONE_DIMENSION)[filled] != sizes[filled] * (4 + width)).any():
        return None
    nth = np.arange(offsets[-1]) - np.repeat(offsets[:-1], sizes)
    at = np.repeat(fields.starts + _ONE_DIMENSION, sizes) + nth * (4 + width)
    lengths = gather(fields.data, at, np.int32)
    return Fields(fields.data, at + 4, lengths) if (lengths == width).all() else None


def _walk(fields: Fields, sizes: _Sizes, offsets: _Sizes) -> Fields:
    """The elements step by step: the first of every row, then the second of every row that has one …"""
    starts = np.zeros(int(offsets[-1]), np.int64)
    lengths = np.zeros(int(offsets[-1]), np.int32)
    rows = np.flatnonzero(sizes)
    at = fields.starts[rows] + _ONE_DIMENSION
    ends = (fields.starts + fields.lengths)[rows]
    nth = 0
    while len(rows):
        width = gather(fields.data, at, np.int32)
        step = 4 + np.where(width == -1, 0, width.view(np.uint32).astype(np.int64))
        check(at + step <= ends, at, ends, 4, "Array element is cut off")
        starts[offsets[rows] + nth] = at + 4
        lengths[offsets[rows] + nth] = width
        at += step
        nth += 1
        more = sizes[rows] > nth
        check(more | (at == ends), at, ends, 0, "Array goes on behind its last element")
        rows, at, ends = rows[more], at[more], ends[more]
    return Fields(fields.data, starts, lengths)
