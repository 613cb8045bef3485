"""Values as BigQuery takes and gives them, in whole columns.

What Parquet cannot carry, or BigQuery has no type for, travels as text: uuids, JSON, intervals in BigQuery's canonical
form, decimals that are too wide. Lists travel as text of JSON too, unless they land as ARRAY: in it elements that JSON
has are what they are, and every other one is a string.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from etl_dagster.arrow.fixed import array_of, bitmap, mask_of, words_of
from etl_dagster.arrow.lists import join_list, map_list
from etl_dagster.arrow.moments import MONTH_DAY_NANO, interval_values
from etl_dagster.arrow.printing import (
    bytes_of_hex,
    hex_digits,
    json_strings,
    plain_digits,
    uuid_texts,
    uuids_of_texts,
)
from etl_dagster.destinations.bigquery.types import NativeType
from etl_dagster.errors import ValueUnrepresentable

_Test = Callable[[pa.DataType], bool]
_Convert = Callable[[pa.Array], pa.Array]

# BigQuery's canonical form: Y-M D H:M:S.F, with a sign for each of the three parts.
_INTERVAL = (
    r"^(?P<years_sign>-?)(?P<years>\d+)-(?P<months>\d+) (?P<days>-?\d+) "
    r"(?P<time_sign>-?)(?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>\d+)\.(?P<micros>\d{6})$"
)
_SPECIAL_FLOATS = {"nan": '"NaN"', "inf": '"Infinity"', "-inf": '"-Infinity"', "-0": "-0.0"}


def encode(values: pa.Array | pa.ChunkedArray, native: NativeType) -> pa.Array | pa.ChunkedArray:
    """Arrow values as Parquet, or text within a query, carries them: by ``native.carried``.

    Raises:
        ValueUnrepresentable: An array has a NULL element, which ARRAY cannot hold, and the policy says to fail.
    """
    if isinstance(values, pa.ChunkedArray):
        return pa.chunked_array([encode(chunk, native) for chunk in values.chunks], native.carried)
    if isinstance(values, pa.DictionaryArray):
        values = values.dictionary_decode()
    if not pa.types.is_list(values.type):
        return _encode(values, native.carried)
    return _array(values, native) if native.is_array else _list_text(values)


def decode(values: pa.Array | pa.ChunkedArray, type_: pa.DataType, native: NativeType) -> pa.Array:
    """What a query returned for ``native.selected``, by the exact Arrow type."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if not pa.types.is_list(type_):
        return _decode(_as_jsonb(values) if native.native == "JSON" else values, type_)
    if native.is_array:
        return map_list(values, lambda elements: _decode(elements, type_.value_type), type_)
    return _list_of_text(values, type_)


def _encode(values: pa.Array, carried: pa.DataType) -> pa.Array:
    """By the first row whose test holds; a type without one is cast."""
    convert = next((convert for test, convert in _ENCODERS if test(values.type)), None)
    return (values if convert is None else convert(values, carried)).cast(carried)


def _decode(values: pa.Array, type_: pa.DataType) -> pa.Array:
    convert = next((convert for test, convert in _DECODERS if test(type_)), None)
    return values.cast(type_) if convert is None else convert(values)


def _is_json(type_: pa.DataType) -> bool:
    return isinstance(type_, pa.JsonType)


def _is_uuid(type_: pa.DataType) -> bool:
    return isinstance(type_, pa.UuidType)


def _storage(values: pa.ExtensionArray, carried: pa.DataType) -> pa.Array:
    return values.storage


def _uuid_texts(values: pa.ExtensionArray, carried: pa.DataType) -> pa.Array:
    return uuid_texts(values.storage)


def _decimals(values: pa.Array, carried: pa.DataType) -> pa.Array:
    return plain_digits(values.cast(carried)) if pa.types.is_string(carried) else values


def _interval_texts(values: pa.Array, carried: pa.DataType) -> pa.Array:
    parts = words_of(values, MONTH_DAY_NANO)
    years, months = np.divmod(np.abs(parts["months"].astype(np.int64)), 12)
    seconds, micros = np.divmod(np.abs(parts["nanoseconds"]) // 1000, 1_000_000)
    minutes, seconds = np.divmod(seconds, 60)
    hours, minutes = np.divmod(minutes, 60)
    days = parts["days"].astype(np.int64)
    pieces = [_sign(parts["months"]), _text(years), "-", _text(months), " ", _text(days), " "]
    pieces += [_sign(parts["nanoseconds"]), _text(hours), ":", _text(minutes), ":", _text(seconds), "."]
    fraction = pc.utf8_lpad(_text(micros), 6, "0")
    text = pc.binary_join_element_wise(*pieces, fraction, "")
    return pc.if_else(values.is_valid(), text, pa.scalar(None, pa.string()))


def _sign(numbers: npt.NDArray[Any]) -> pa.Array:
    return pc.if_else(mask_of(numbers < 0), "-", "")


def _text(numbers: npt.NDArray[np.int64]) -> pa.Array:
    return array_of(numbers).cast(pa.string())


def _intervals(texts: pa.Array) -> pa.Array:
    parts = pc.extract_regex(texts, _INTERVAL)
    if parts.null_count > texts.null_count:
        raise ValueError("text that is no interval")

    def number(name: str) -> npt.NDArray[np.int64]:
        texts = pc.struct_field(parts, name)
        found: npt.NDArray[np.int64] = pc.fill_null(texts.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
        return found

    def sign(name: str) -> npt.NDArray[np.int64]:
        negative = pc.fill_null(pc.equal(pc.struct_field(parts, name), "-"), False)
        return np.where(negative.to_numpy(zero_copy_only=False), -1, 1)

    months = sign("years_sign") * (number("years") * 12 + number("months"))
    seconds = (number("hours") * 60 + number("minutes")) * 60 + number("seconds")
    micros = sign("time_sign") * (seconds * 1_000_000 + number("micros"))
    values = interval_values(months, number("days"), micros)
    nulls = bitmap(texts.is_valid().to_numpy(zero_copy_only=False))
    return pa.Array.from_buffers(pa.month_day_nano_interval(), len(texts), [nulls, pa.py_buffer(values)])


def _times(values: pa.Array) -> pa.Array:
    if not pa.types.is_string(values.type):
        return values.cast(pa.time64("us"))
    moments = pc.binary_join_element_wise("1970-01-01 ", values, "").cast(pa.timestamp("us"))
    return moments.view(pa.int64()).view(pa.time64("us"))


def _jsons(texts: pa.Array) -> pa.Array:
    return pa.ExtensionArray.from_storage(pa.json_(), texts)


def _uuids(texts: pa.Array) -> pa.Array:
    return pa.ExtensionArray.from_storage(pa.uuid(), uuids_of_texts(texts))


_ENCODERS: tuple[tuple[_Test, Callable[[pa.Array, pa.DataType], pa.Array]], ...] = (
    (_is_uuid, _uuid_texts),
    (_is_json, _storage),
    (pa.types.is_decimal, _decimals),
    (pa.types.is_interval, _interval_texts),
)
_DECODERS: tuple[tuple[_Test, Callable[[pa.Array], pa.Array]], ...] = (
    (_is_uuid, _uuids),
    (_is_json, _jsons),
    (pa.types.is_time, _times),
    (pa.types.is_interval, _intervals),
)


# -- lists ------------------------------------------------------------------------------------------------------------


def _array(values: pa.ListArray, native: NativeType) -> pa.Array:
    """Lists for ARRAY, which has no NULL: an empty one takes its place."""
    elements = values.flatten()
    if elements.null_count and not native.drops_nulls:
        row = int(pc.list_parent_indices(values)[pc.index(elements.is_null(), True).as_py()].as_py())
        raise ValueUnrepresentable(
            "An array has a NULL element, which BigQuery's ARRAY cannot hold",
            hint="Land arrays as JSON (`arrays: json`), or say with the column's `values` what becomes of them "
            "(null or clamp leave them out, text)",
            row=row,
        )
    owners = pc.list_parent_indices(values).filter(elements.is_valid()).to_numpy()
    sizes = np.bincount(owners, minlength=len(values))
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum(sizes, out=offsets[1:])
    encoded = _encode(elements.drop_null(), native.carried.value_type)
    return pa.ListArray.from_arrays(array_of(offsets), encoded)


def _list_text(values: pa.ListArray) -> pa.Array:
    return join_list(values, _elements, "[", "]")


def _elements(values: pa.Array) -> pa.Array:
    """Every element as JSON."""
    plain = next((plain for test, plain in _PLAIN if test(values.type)), None)
    texts = json_strings(_element_texts(values)) if plain is None else plain(values)
    return texts.fill_null("null")


def _element_texts(values: pa.Array) -> pa.Array:
    return hex_digits(values) if pa.types.is_binary(values.type) else _encode(values, pa.string())


def _as_text(values: pa.Array) -> pa.Array:
    return values.cast(pa.string())


def _floats(values: pa.Array) -> pa.Array:
    texts = values.cast(pa.string())
    for text, printed in _SPECIAL_FLOATS.items():
        texts = pc.if_else(pc.equal(texts, text), printed, texts)
    return texts


# Elements that JSON has itself.
_PLAIN: tuple[tuple[_Test, _Convert], ...] = (
    (pa.types.is_boolean, _as_text),
    (pa.types.is_integer, _as_text),
    (pa.types.is_floating, _floats),
)


def _list_of_text(texts: pa.Array, type_: pa.DataType) -> pa.Array:
    element = type_.value_type
    read = _split if any(test(element) for test, _ in _PLAIN) else _read_strings
    lists = read(texts)
    return map_list(lists, lambda elements: _of_texts(elements, element), type_)


def _split(texts: pa.Array) -> pa.Array:
    """Lists of text out of JSON whose elements have neither commas nor escapes."""
    bare = pc.replace_substring_regex(texts, r'[\[\]"\s]', "")
    lists = pc.split_pattern(bare, ",")
    empty = pc.equal(bare, "")
    nothing = pa.scalar([], lists.type)
    lists = pc.if_else(empty, nothing, lists)
    return map_list(lists, _null_for_null, lists.type)


def _null_for_null(elements: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(elements, "null"), pa.scalar(None, elements.type), elements)


def _read_strings(texts: pa.Array) -> pa.Array:
    """Lists of text out of JSON whose elements are strings."""
    lines = pc.binary_join_element_wise('{"v":', texts.fill_null("null"), "}\n", "")
    content = pa.py_buffer(b"".join(lines.cast(pa.binary()).to_numpy(zero_copy_only=False)))
    options = pj.ReadOptions(use_threads=False, block_size=max(content.size, 1))
    schema = pa.schema([("v", pa.list_(pa.string()))])
    if not content.size:
        return pa.array([], schema.field("v").type)
    found = pj.read_json(pa.BufferReader(content), options, pj.ParseOptions(explicit_schema=schema))
    return found.column("v").combine_chunks()


def _of_texts(texts: pa.Array, type_: pa.DataType) -> pa.Array:
    return bytes_of_hex(texts) if pa.types.is_binary(type_) else _decode(texts, type_)


# -- JSON -------------------------------------------------------------------------------------------------------------

_EXPONENT = re.compile(r"\d[eE]")


def _as_jsonb(texts: pa.Array) -> pa.Array:
    """JSON as PostgreSQL prints jsonb. Every distinct text is read once, one by one."""
    distinct = texts.dictionary_encode()
    printed = [_jsonb_text(text) for text in distinct.dictionary.to_pylist()]
    return pa.array(printed, pa.string()).take(distinct.indices)


def _jsonb_text(text: str) -> str:
    value = json.loads(text, object_pairs_hook=_in_jsonb_order)
    if _EXPONENT.search(text):
        return _printed(value)
    printed = json.dumps(value, ensure_ascii=False)
    return _printed(value) if _EXPONENT.search(printed) else printed


def _in_jsonb_order(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(sorted(pairs, key=_jsonb_place)) if len(pairs) > 1 else dict(pairs)


def _jsonb_place(pair: tuple[str, Any]) -> tuple[int, bytes]:
    name = pair[0].encode()
    return len(name), name


def _printed(value: Any) -> str:
    """As ``json.dumps`` prints it, with numbers as PostgreSQL has them: without exponents."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_printed(name)}: {_printed(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_printed, value)) + "]"
    if isinstance(value, float):
        return format(Decimal(repr(value)), "f")
    return json.dumps(value, ensure_ascii=False)
