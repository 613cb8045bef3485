"""From the fields of one column to an Arrow array, under the column's value policy.

A decoder that meets values which its Arrow type cannot hold raises `Misfits`, and so does what the destination cannot
hold (`Column.limits`). What the policy makes of them is done here, in one place: they are taken out, the rest is
decoded again, and what comes nearest is put in where the policy says so. So the policies cost nothing as long as all
values can be held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.arrow.arrays import Renumber, split_elements
from etl_dagster.arrow.fixed import Misfits, array_of, bitmap, mask_of, validity
from etl_dagster.arrow.limits import nearest_within, refuse_beyond
from etl_dagster.arrow.parsing import parse, split_array_texts
from etl_dagster.arrow.text import utf8_array
from etl_dagster.arrow.types import column_type, element_type, read_type, reads_text, type_facts
from etl_dagster.errors import InternalError, ProtocolError, ValueUnrepresentable
from etl_dagster.model import Column, PgType, ValueLimits, ValuePolicy
from etl_dagster.pgwire import Fields

Values = TypeVar("Values", Fields, pa.Array)


def read_column(
    column: Column, fields: Fields, *, text: bool = False, replaced: Counter[str] | None = None
) -> pa.Array:
    """Decode one column under its value policy.

    Args:
        fields: Its values in the server's binary format.
        text: The values are the server's text instead.
        replaced: Counts, by name of the column, values that the policy replaced.

    Raises:
        ProtocolError: Bytes that are no value of the type.
        ValueUnrepresentable: Values that the Arrow type, or the destination, cannot hold, and the policy says to fail.
    """
    if not text and reads_text(column):
        raise InternalError(
            f"Column {column.name!r} of type {column.type.name} has no binary decoder; fetch it as text"
        )
    counted: Counter[str] = Counter() if replaced is None else replaced
    rule = _Rule(column.name, column.values, counted, column.limits)
    read = _read_text if text else _read_binary
    return read(read_type(column), column_type(column), fields, rule)


def decode_column(type_: PgType, fields: Fields, *, text: bool = False, column: str = "") -> pa.Array:
    """Decode values of a type, as a column of that type without a value policy; it gets the type of `arrow_type`."""
    return read_column(Column(attnum=0, name=column, type=type_), fields, text=text)


@dataclass(frozen=True, slots=True)
class _Rule:
    """What becomes of misfits in one column."""

    column: str
    policy: ValuePolicy
    replaced: Counter[str]
    limits: ValueLimits | None

    def hold(self, values: pa.Array) -> pa.Array:
        """The values, if the destination can hold them."""
        if self.limits is not None:
            refuse_beyond(values, self.limits)
        return values

    @property
    def renumber(self) -> Renumber | None:
        return self.count if self.policy is ValuePolicy.CLAMP else None

    def count(self, values: int) -> None:
        self.replaced[self.column] += values

    def settle(self, values: Values, decode: Callable[[Values], pa.Array]) -> pa.Array:
        """Decode; what does not fit is replaced as the policy says."""
        try:
            return decode(values)
        except Misfits as found:
            misfits = found
        if self.policy not in (ValuePolicy.NULL, ValuePolicy.CLAMP):
            self._fail(misfits)
        self.count(int(np.count_nonzero(misfits.bad)))
        rest = self.settle(_without(values, misfits.bad), decode)
        if self.policy is ValuePolicy.NULL or misfits.nearest is None:
            return rest
        rows = np.flatnonzero(misfits.bad)
        nearest = misfits.nearest(rows)
        return _put(rest, rows, nearest if self.limits is None else nearest_within(nearest, self.limits))

    def _fail(self, misfits: Misfits) -> NoReturn:
        count = int(np.count_nonzero(misfits.bad))
        raise ValueUnrepresentable(
            f"Column {self.column!r} has {count} value(s) that {misfits.holder} cannot hold: {misfits.what}",
            hint="Correct the values at the source, or say with the column's `values` what becomes of them "
            "(null, clamp, text), or leave the column or the table out",
            row=int(np.argmax(misfits.bad)),
            column=self.column,
        )


@contextmanager
def _rows_of(offsets: npt.NDArray[np.integer]) -> Iterator[None]:
    """Name the row of an element that is refused."""
    try:
        yield
    except ValueUnrepresentable as error:
        if error.row is not None:
            error.row = int(np.searchsorted(offsets, error.row, side="right")) - 1
        raise


def _without(values: Values, bad: npt.NDArray[np.bool_]) -> Values:
    """The values with NULL where they are bad."""
    if isinstance(values, Fields):
        return Fields(values.data, values.starts, np.where(bad, np.int32(-1), values.lengths))
    return pc.if_else(mask_of(bad), pa.scalar(None, values.type), values)


def _put(array: pa.Array, rows: npt.NDArray[np.intp], values: pa.Array) -> pa.Array:
    if isinstance(array, pa.ExtensionArray):
        return pa.ExtensionArray.from_storage(array.type, _put(array.storage, rows, values))
    places = np.arange(len(array))
    places[rows] = len(array) + np.arange(len(rows))
    return pa.concat_arrays([array, values]).take(array_of(places))


def _read_binary(type_: PgType, target: pa.DataType, fields: Fields, rule: _Rule) -> pa.Array:
    element = element_type(type_)
    if element is not None:
        return rule.settle(fields, lambda fields: _read_list(element, target, fields, rule))
    facts = type_facts(type_)
    assert facts is not None
    return rule.settle(fields, lambda fields: rule.hold(facts.decode(fields, target, rule.column)))


def _read_list(element: PgType, target: pa.DataType, fields: Fields, rule: _Rule) -> pa.Array:
    offsets, elements = split_elements(fields, rule.column, rule.renumber)
    with _rows_of(offsets):
        values = _read_binary(element, target.value_type, elements, rule)
    return pa.Array.from_buffers(target, len(fields), [validity(fields), pa.py_buffer(offsets)], children=[values])


def _read_text(type_: PgType, target: pa.DataType, fields: Fields, rule: _Rule) -> pa.Array:
    facts = type_facts(type_)
    texts = rule.settle(fields, utf8_array if facts is None else facts.texts)
    try:
        return _parse(type_, target, texts, rule)
    except (ValueError, ArithmeticError, LookupError):  # whose messages would show the value
        at, have = (int(values[0]) for values in (fields.starts, fields.lengths))
        raise ProtocolError(f"Text of column {rule.column!r}, no {type_.name},", offset=at, need=1, have=have) from None


def _parse(type_: PgType, target: pa.DataType, texts: pa.Array, rule: _Rule) -> pa.Array:
    element = element_type(type_) if pa.types.is_list(target) else None
    if element is None:
        return rule.settle(texts, lambda texts: rule.hold(parse(texts, target)))
    return rule.settle(texts, lambda texts: _parse_list(element, target, texts, rule))


def _parse_list(element: PgType, target: pa.DataType, texts: pa.Array, rule: _Rule) -> pa.Array:
    facts = type_facts(element)
    offsets, elements = split_array_texts(texts, "," if facts is None else facts.delimiter, rule.renumber)
    with _rows_of(offsets):
        values = _parse(element, target.value_type, elements, rule)
    nulls = bitmap(texts.is_valid().to_numpy(zero_copy_only=False))
    return pa.Array.from_buffers(target, len(texts), [nulls, pa.py_buffer(offsets)], children=[values])
