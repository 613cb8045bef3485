"""Values as text that several databases share: hex digits, uuids, plain decimals, strings of JSON; and the way back."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.arrow.fixed import bitmap

_DIGITS = np.frombuffer(bytes(range(256)).hex().encode(), np.uint16)  # the two digits of every byte
_VALUES = np.zeros(256, np.uint8)
_VALUES[np.frombuffer(b"0123456789", np.uint8)] = np.arange(10)
_VALUES[np.frombuffer(b"abcdef", np.uint8)] = np.arange(10, 16)
_VALUES[np.frombuffer(b"ABCDEF", np.uint8)] = np.arange(10, 16)

_UUID_LENGTH = 36
_DASHES = np.array([8, 13, 18, 23])
_UUID_DIGITS = np.delete(np.arange(_UUID_LENGTH), _DASHES)
_UUID_PATTERN = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"

_Bytes = npt.NDArray[np.uint8]


def hex_digits(array: pa.Array) -> pa.Array:
    """Two digits per byte of binary values."""
    array = array.cast(pa.binary())
    offsets, data = _content(array)
    digits = _DIGITS.take(data[offsets[0] : offsets[-1]])
    places = (offsets - offsets[0]).astype(np.int64) * 2
    validity = _validity(array)
    found = pa.Array.from_buffers(pa.large_string(), len(array), [validity, pa.py_buffer(places), pa.py_buffer(digits)])
    return found.cast(pa.string())


def bytes_of_hex(texts: pa.Array) -> pa.Array:
    """Binary values by their digits, two per byte."""
    offsets, data = _content(texts)
    values = _from_digits(data[offsets[0] : offsets[-1]])
    places = (offsets - offsets[0]) // np.int32(2)
    return pa.Array.from_buffers(
        pa.binary(), len(texts), [_validity(texts), pa.py_buffer(places), pa.py_buffer(values)]
    )


def uuid_texts(storage: pa.Array) -> pa.Array:
    """The usual text of uuids, which are 16 bytes each."""
    size = len(storage)
    data = np.frombuffer(storage.buffers()[1] or b"", np.uint8)[16 * storage.offset : 16 * (storage.offset + size)]
    digits = _DIGITS.take(data).view(np.uint8).reshape(size, 32)
    texts = np.full((size, _UUID_LENGTH), ord("-"), np.uint8)
    at = 0
    for first, last in ((0, 8), (9, 13), (14, 18), (19, 23), (24, 36)):
        texts[:, first:last] = digits[:, at : at + last - first]
        at += last - first
    places = np.arange(0, _UUID_LENGTH * (size + 1), _UUID_LENGTH, dtype=np.int32)
    return pa.Array.from_buffers(pa.string(), size, [_validity(storage), pa.py_buffer(places), pa.py_buffer(texts)])


def uuids_of_texts(texts: pa.Array) -> pa.Array:
    """Uuids, as 16 bytes each, by their usual text."""
    filled = texts.fill_null("0" * 8 + "-0000" * 3 + "-" + "0" * 12)
    if not pc.all(pc.match_substring_regex(filled, _UUID_PATTERN), min_count=0).as_py():
        raise ValueError("text that is no uuid")
    offsets, data = _content(filled)
    digits = data[offsets[0] : offsets[-1]].reshape(len(texts), _UUID_LENGTH)[:, _UUID_DIGITS]
    values = _from_digits(digits.ravel())
    return pa.Array.from_buffers(pa.binary(16), len(texts), [_validity(texts), pa.py_buffer(values)])


def plain_digits(text: pa.Array) -> pa.Array:
    """Decimals as text without the scientific notation that Arrow prefers for small numbers, which are few."""
    scientific = pc.match_substring(text, "E")
    if not pc.any(scientific).as_py():
        return text
    plain = [format(Decimal(value), "f") for value in text.filter(scientific).to_pylist()]
    return pc.replace_with_mask(text, scientific.fill_null(False), pa.array(plain, pa.string()))


def json_strings(texts: pa.Array) -> pa.Array:
    """Strings of JSON with these contents, quotes included; null stays null."""
    offsets, data = _content(texts)
    used: _Bytes = data[offsets[0] : offsets[-1]]
    texts = pc.replace_substring(pc.replace_substring(texts, "\\", "\\\\"), '"', '\\"')
    for code in np.unique(used[used < 32]).tolist():
        texts = pc.replace_substring(texts, chr(code), f"\\u{code:04x}")
    return pc.binary_join_element_wise('"', texts, '"', "")


def _content(array: pa.Array) -> tuple[npt.NDArray[np.int32], _Bytes]:
    """Offsets of binary or text values, and the bytes that these are offsets into."""
    _, places, data = array.buffers()
    if places is None or not len(array):
        return np.zeros(1, np.int32), np.zeros(0, np.uint8)
    offsets = np.frombuffer(places, np.int32)[array.offset : array.offset + len(array) + 1]
    return offsets, np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)


def _validity(array: pa.Array) -> pa.Buffer | None:
    return None if array.null_count == 0 else bitmap(array.is_valid().to_numpy(zero_copy_only=False))


def _from_digits(digits: _Bytes) -> _Bytes:
    values: _Bytes = _VALUES.take(digits)
    return values[0::2] * np.uint8(16) + values[1::2]
