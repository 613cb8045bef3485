"""``numeric``: exact decimals, and exact text where no precision is declared.

On the wire a numeric is four int16 (digit count, weight, sign, display scale) and base-10000 digits; digit ``k`` is
worth ``10000 ** (weight - k)``. Leading and trailing zero digits are not sent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.arrow.fixed import array_of, bitmap, mask_of, primitive, refuse, validity, wrong_length
from etl_dagster.pgwire import Fields, gather

_HEADER = 8
_NEGATIVE, _NAN, _PLUS_INFINITY, _MINUS_INFINITY = 0x4000, 0xC000, 0xD000, 0xF000
_SPECIAL_TEXT = {_NAN: "NaN", _PLUS_INFINITY: "Infinity", _MINUS_INFINITY: "-Infinity"}
NOT_FINITE = "NaN or infinity in a numeric"
_WORD_DIGITS = 19  # decimal digits that always fit an unsigned 64-bit word
_WIDEST = 8  # 32-bit limbs of the widest decimal, which hold one digit more than it has
_LIMB = np.uint64(0xFFFFFFFF)
_U64 = npt.NDArray[np.uint64]
_I64 = npt.NDArray[np.int64]


def numeric_type(typmod: int) -> pa.DataType:
    """The decimal that holds every finite value of ``numeric`` with this type modifier, or text.

    A scale below zero (thousands, say) becomes 0 with as many more digits, and a precision below the scale is raised to
    it, because destinations know neither.
    """
    if typmod < 4:
        return pa.utf8()
    precision, scale = ((typmod - 4) >> 16) & 0xFFFF, (((typmod - 4) & 0x7FF) ^ 0x400) - 0x400
    precision = max(precision - min(scale, 0), scale)
    if precision > 76:
        return pa.utf8()
    return (pa.decimal128 if precision <= 38 else pa.decimal256)(precision, max(scale, 0))


def outside(type_: pa.DataType) -> str:
    """What a finite number is that this decimal type cannot hold."""
    return f"numeric outside numeric({type_.precision},{type_.scale}), or with more digits than that"


def decode_numeric(fields: Fields, type_: pa.DataType, column: str) -> pa.Array:
    numbers = _parse(fields, column)
    if pa.types.is_decimal(type_):
        return _decimals(fields, numbers, type_)
    return _texts(fields, numbers)


@dataclass(frozen=True, slots=True)
class _Numbers:
    """Parsed headers; NULL looks like zero."""

    data: npt.NDArray[np.uint8]
    digits_at: _I64
    count: _I64
    weight: _I64
    sign: _I64
    dscale: _I64

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> _Numbers:
        return _Numbers(
            self.data, self.digits_at[rows], self.count[rows], self.weight[rows], self.sign[rows], self.dscale[rows]
        )

    def __len__(self) -> int:
        return len(self.count)


def _parse(fields: Fields, column: str) -> _Numbers:
    header = gather(fields.data, fields.starts, np.int64)
    absent = fields.lengths < 0
    header[absent] = 0
    count = (header >> 48) & 0xFFFF
    good = (fields.lengths == _HEADER + 2 * count) | absent
    if not good.all():
        row = int(np.argmin(good))
        raise wrong_length(fields, row, _HEADER + 2 * int(count[row]), column)
    weight = (header << 16) >> 48
    return _Numbers(fields.data, fields.starts + _HEADER, count, weight, (header >> 16) & 0xFFFF, header & 0xFFFF)


def _decimals(fields: Fields, numbers: _Numbers, type_: pa.DataType) -> pa.Array:
    def nearest(rows: npt.NDArray[np.intp]) -> pa.Array:
        return _nearest(numbers[rows], type_)

    refuse(numbers.sign >= _NAN, NOT_FINITE, nearest)
    precision, scale = type_.precision, type_.scale
    negative = numbers.sign == _NEGATIVE
    if precision < _WORD_DIGITS and precision + -scale % 4 <= _WORD_DIGITS:
        word, fits = _word(numbers, precision, scale)
        signed = word.view(np.int64)
        np.negative(signed, out=signed, where=negative)
        values = np.empty((len(fields), 2), np.int64)
        values[:, 0] = signed
        values[:, 1] = signed >> 63
    else:
        limbs, fits = _limbs(numbers, precision, scale, type_.bit_width // 32)
        _negate(limbs, negative)
        values = np.stack(limbs, axis=1).astype(np.uint32).view(np.int64)
    refuse(~fits, outside(type_), nearest)
    return primitive(fields, type_, values)


def _nearest(numbers: _Numbers, type_: pa.DataType) -> pa.Array:
    """Rounded half away from zero, as PostgreSQL rounds; the largest that there is; null for NaN."""
    # One digit more than the scale has decides how to round, whatever follows it.
    columns, in_range, _ = _aligned_digits(numbers, type_.precision + 1, type_.scale + 1)
    limbs = _round_off(_horner(columns, _WIDEST))
    most = _limbs_of(10**type_.precision - 1)
    over = ~in_range | (numbers.sign >= _NAN) | _exceeds(limbs, most)
    limbs = [np.where(over, greatest, limb) for limb, greatest in zip(limbs, most, strict=True)]
    _negate(limbs, (numbers.sign == _NEGATIVE) | (numbers.sign == _MINUS_INFINITY))
    values = np.stack(limbs[: type_.bit_width // 32], axis=1).astype(np.uint32)
    return pa.Array.from_buffers(type_, len(numbers), [bitmap(numbers.sign != _NAN), pa.py_buffer(values)])


def _round_off(limbs: list[_U64]) -> list[_U64]:
    """Divide by ten, rounding halves up."""
    limbs[0] = limbs[0] + np.uint64(5)
    for place in range(len(limbs) - 1):
        limbs[place + 1] = limbs[place + 1] + (limbs[place] >> np.uint64(32))
        limbs[place] = limbs[place] & _LIMB
    rest = np.zeros_like(limbs[0])
    for place in reversed(range(len(limbs))):
        part = (rest << np.uint64(32)) + limbs[place]
        limbs[place], rest = np.divmod(part, np.uint64(10))
    return limbs


def _limbs_of(number: int) -> list[np.uint64]:
    return [np.uint64(number >> 32 * place & 0xFFFFFFFF) for place in range(_WIDEST)]


def _exceeds(limbs: list[_U64], most: list[np.uint64]) -> npt.NDArray[np.bool_]:
    above = np.zeros(len(limbs[0]), np.bool_)
    for limb, greatest in zip(limbs, most, strict=True):  # what a greater place says counts more
        above = (limb > greatest) | ((limb == greatest) & above)
    return above


def _word(numbers: _Numbers, precision: int, scale: int) -> tuple[_U64, npt.NDArray[np.bool_]]:
    """``|value| * 10**scale`` where it has no more than `_WORD_DIGITS` digits, and where that is exact."""
    most = int(numbers.count.max(initial=0))
    value = _four_digits(numbers, 0)
    small: npt.NDArray[np.bool_] | np.bool_ = np.True_  # whether the digits make no more than a word
    if most > 4:
        more = np.clip(numbers.count - 4, 0, 4)
        small = (numbers.count <= 8) & (value < _TOO_MANY.take(more))
        value = value * _POWERS_10000.take(more) + _four_digits(numbers, 4)
    # The last digit's place, counted in base-10000 digits from the last one that the scale can need.
    shift = numbers.weight - numbers.count + (1 + -(-scale // 4))
    shift[numbers.count == 0] = 0
    spare = 10 ** (-scale % 4)
    limits = np.array([(10**precision - 1) * spare // 10000**power for power in range(len(_POWERS_10000))], np.uint64)
    power = np.clip(shift, 0, len(_POWERS_10000) - 1)
    fits = (shift == power) & (value <= limits.take(power)) & small
    value *= _POWERS_10000.take(power)
    if spare == 1:
        return value, fits
    word = value // np.uint64(spare)
    fits &= word * np.uint64(spare) == value
    return word, fits


_POWERS_10000 = np.array([10000**power for power in range(5)], np.uint64)
# What the first four digits must stay below for a word to hold them and 0 to 4 digits more.
_TOO_MANY = np.array([(2**64) // 10000**more for more in range(1, 5)], np.uint64)
_TOO_MANY = np.concatenate([np.array([2**64 - 1], np.uint64), _TOO_MANY])


def _four_digits(numbers: _Numbers, first: int) -> _U64:
    """The number that the digits ``first`` to ``first + 3`` make, those that are there."""
    at = numbers.digits_at if first == 0 else np.minimum(numbers.digits_at + 2 * first, len(numbers.data) - 8)
    digits = gather(numbers.data, at, np.uint64)
    digits >>= (16 * np.clip(4 + first - numbers.count, 0, 4)).astype(np.uint64)
    # Two digits per 32-bit half at once, then the halves.
    even = np.uint64(0x0000FFFF0000FFFF)
    pairs = (digits & even) + ((digits >> np.uint64(16)) & even) * np.uint64(10_000)
    return (pairs & np.uint64(0xFFFFFFFF)) + (pairs >> np.uint64(32)) * np.uint64(100_000_000)


def _limbs(numbers: _Numbers, precision: int, scale: int, width: int) -> tuple[list[_U64], npt.NDArray[np.bool_]]:
    """``|value| * 10**scale`` as ``width`` 32-bit limbs, least first, and where that is exact."""
    columns, in_range, exact = _aligned_digits(numbers, precision, scale)
    return _horner(columns, width), in_range & exact


def _horner(columns: list[_U64], width: int) -> list[_U64]:
    """The limbs of a number by its base-10000 digits, greatest first."""
    limbs = [np.zeros_like(columns[0]) for _ in range(width)]
    for digits in columns:
        carry = digits
        for place in range(width):
            carry = limbs[place] * np.uint64(10_000) + carry
            limbs[place] = carry & _LIMB
            carry = carry >> np.uint64(32)
    return limbs


def _aligned_digits(
    numbers: _Numbers, precision: int, scale: int
) -> tuple[list[_U64], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Base-10000 digits of ``|value| * 10**scale``, greatest first.

    Also where none is missing in front of them, and where none is missing behind them.
    """
    whole, part = -(-(precision - scale) // 4), -(-scale // 4)
    zero = numbers.count == 0
    in_range = zero | (numbers.weight < whole)
    exact = zero | (numbers.weight - numbers.count + 1 >= -part)
    columns = [_digit(numbers, numbers.weight - weight) for weight in range(whole - 1, -part - 1, -1)]
    if whole and (precision - scale) % 4:
        in_range &= columns[0] < np.uint64(10 ** ((precision - scale) % 4))
    if spare := -scale % 4:
        exact &= columns[-1] % np.uint64(10**spare) == 0
        columns = _shift_right(columns, spare)
    return columns, in_range, exact


def _digit(numbers: _Numbers, index: _I64) -> _U64:
    there = (index >= 0) & (index < numbers.count)
    digits = gather(numbers.data, numbers.digits_at + 2 * index * there, np.uint16)
    return (digits * there).astype(np.uint64)


def _shift_right(columns: list[_U64], places: int) -> list[_U64]:
    """Divide a base-10000 number by ``10**places``, dropping the remainder."""
    low, high = np.uint64(10**places), np.uint64(10 ** (4 - places))
    above = [np.zeros_like(columns[0]), *columns[:-1]]
    return [(left % low) * high + digits // low for left, digits in zip(above, columns, strict=True)]


def _negate(limbs: list[_U64], where: npt.NDArray[np.bool_]) -> None:
    """Two's complement of the rows in ``where``."""
    if not where.any():
        return
    mask = np.uint64(0xFFFFFFFF) * where.astype(np.uint64)
    carry = where.astype(np.uint64)
    for place, limb in enumerate(limbs):
        total = (limb ^ mask) + carry
        limbs[place] = total & np.uint64(0xFFFFFFFF)
        carry = total >> np.uint64(32)


def _texts(fields: Fields, numbers: _Numbers) -> pa.Array:
    """What the server prints, grouped by display scale; numbers of more than 38 digits one by one."""
    whole_digits = 4 * np.maximum(numbers.weight + 1, 0) * (numbers.count > 0)
    group = np.where((numbers.sign < _NAN) & (whole_digits + numbers.dscale <= 36), numbers.dscale, -1)
    rows: list[_I64] = []
    texts: list[pa.Array] = []
    for dscale in np.unique(group).tolist():
        of_group = np.flatnonzero(group == dscale)
        rows.append(of_group)
        texts.append(_plain_texts(numbers[of_group], dscale) if dscale >= 0 else _odd_texts(numbers[of_group]))
    if len(texts) == 1:
        found = texts[0]
    else:
        found = pa.concat_arrays([pa.array([], pa.utf8()), *texts])
        found = found.take(array_of(np.argsort(np.concatenate([np.empty(0, np.int64), *rows]), kind="stable")))
    if validity(fields) is None:
        return found
    return pc.if_else(mask_of(fields.present), found, pa.scalar(None, pa.utf8()))


def _plain_texts(numbers: _Numbers, dscale: int) -> pa.Array:
    whole = max(int((numbers.weight * (numbers.count > 0)).max(initial=0)) + 1, 1) * 4
    if whole + dscale + -dscale % 4 <= _WORD_DIGITS - 1:
        word, fits = _word(numbers, whole + dscale, dscale)
        magnitude = array_of(word.view(np.int64)).cast(pa.utf8())
    else:
        limbs, fits = _limbs(numbers, whole + dscale, dscale, 4)
        values = np.stack(limbs, axis=1).astype(np.uint32)
        decimals = pa.Array.from_buffers(pa.decimal128(38, 0), len(numbers), [None, pa.py_buffer(values)])
        magnitude = decimals.cast(pa.utf8())
    if not fits.all():  # more digits than the display scale shows: no server stores that, but it can be sent
        return _odd_texts(numbers)
    if dscale:
        magnitude = pc.utf8_lpad(magnitude, dscale + 1, "0")
        magnitude = pc.binary_replace_slice(magnitude, -dscale, -dscale, ".")
    negative = numbers.sign == _NEGATIVE
    if not negative.any():
        return magnitude
    return pc.if_else(mask_of(negative), pc.binary_join_element_wise("-", magnitude, ""), magnitude)


def _odd_texts(numbers: _Numbers) -> pa.Array:
    return pa.array([_one_text(numbers, row) for row in range(len(numbers))], pa.utf8())


def _one_text(numbers: _Numbers, row: int) -> str:
    sign, weight, dscale = int(numbers.sign[row]), int(numbers.weight[row]), int(numbers.dscale[row])
    if sign >= _NAN:
        return _SPECIAL_TEXT[sign]
    at, count = int(numbers.digits_at[row]), int(numbers.count[row])
    digits = numbers.data[at : at + 2 * count].view(">u2").tolist()
    whole = "".join(f"{digit:04d}" for digit in digits[: max(weight + 1, 0)])
    whole += "0000" * max(weight + 1 - count, 0)
    part = "0000" * max(-weight - 1, 0) + "".join(f"{digit:04d}" for digit in digits[max(weight + 1, 0) :])
    text = (whole.lstrip("0") or "0") + ("." + part[:dscale].ljust(dscale, "0") if dscale else "")
    return "-" + text if sign == _NEGATIVE else text
