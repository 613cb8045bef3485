"""The one table of types: what PostgreSQL calls them, what Arrow holds them as, and how their binary form is read.

A type that is not here — ranges, network addresses, geometry, composites, types of extensions — arrives as the text
that the server prints for it, in a utf8 column.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from etl_dagster.arrow.fixed import Decoder, decode_bool, decode_integer, decode_uuid
from etl_dagster.arrow.moments import decode_date, decode_interval, decode_timestamp
from etl_dagster.arrow.numbers import decode_numeric, numeric_type
from etl_dagster.arrow.text import (
    decode_bytea,
    decode_json,
    decode_jsonb,
    decode_single_char,
    decode_text,
    single_char_texts,
    utf8_array,
)
from etl_dagster.model import Column, PgType, TableSchema, TypeKind, ValuePolicy
from etl_dagster.pgwire import Fields

TYPE_METADATA = b"pg.type"


@dataclass(frozen=True, slots=True)
class TypeFacts:
    """What we know of one PostgreSQL type.

    Attributes:
        arrow: Its Arrow type, by the type modifier where that matters.
        decode: Reads its binary form.
        gaps: It has values that the Arrow type, or that of many a destination, cannot hold; under the policy ``text``
            it lands as text.
        prints: ``decode`` makes that text out of the binary form; without it, the server is asked for the text.
        texts: Takes the server's text as it is sent.
        delimiter: What stands between elements in the text of an array.
    """

    oid: int
    name: str
    arrow: pa.DataType | Callable[[int], pa.DataType]
    decode: Decoder
    gaps: bool = False
    prints: bool = False
    texts: Callable[[Fields], pa.Array] = utf8_array
    delimiter: str = ","

    def arrow_type(self, typmod: int) -> pa.DataType:
        """The Arrow type under this type modifier."""
        return self.arrow if isinstance(self.arrow, pa.DataType) else self.arrow(typmod)


_BUILT_IN = (
    TypeFacts(16, "bool", pa.bool_(), decode_bool),
    TypeFacts(17, "bytea", pa.binary(), decode_bytea),
    TypeFacts(18, "char", pa.utf8(), decode_single_char, texts=single_char_texts),
    TypeFacts(19, "name", pa.utf8(), decode_text),
    TypeFacts(20, "int8", pa.int64(), decode_integer(np.int64)),
    TypeFacts(21, "int2", pa.int16(), decode_integer(np.int16)),
    TypeFacts(23, "int4", pa.int32(), decode_integer(np.int32)),
    TypeFacts(25, "text", pa.utf8(), decode_text),
    TypeFacts(26, "oid", pa.uint32(), decode_integer(np.uint32)),
    TypeFacts(114, "json", pa.json_(), decode_json, prints=True),
    TypeFacts(700, "float4", pa.float32(), decode_integer(np.int32)),
    TypeFacts(701, "float8", pa.float64(), decode_integer(np.int64)),
    TypeFacts(1042, "bpchar", pa.utf8(), decode_text),
    TypeFacts(1043, "varchar", pa.utf8(), decode_text),
    TypeFacts(1082, "date", pa.date32(), decode_date, gaps=True),
    TypeFacts(1083, "time", pa.time64("us"), decode_integer(np.int64), gaps=True),
    TypeFacts(1114, "timestamp", pa.timestamp("us"), decode_timestamp, gaps=True),
    TypeFacts(1184, "timestamptz", pa.timestamp("us", "UTC"), decode_timestamp, gaps=True),
    TypeFacts(1186, "interval", pa.month_day_nano_interval(), decode_interval, gaps=True),
    TypeFacts(1700, "numeric", numeric_type, decode_numeric, gaps=True, prints=True),
    TypeFacts(2950, "uuid", pa.uuid(), decode_uuid),
    TypeFacts(3802, "jsonb", pa.json_(), decode_jsonb, prints=True),
)
TYPES: dict[int, TypeFacts] = {facts.oid: facts for facts in _BUILT_IN}

# Every enum travels as its label in the binary format too.
ENUM = TypeFacts(0, "enum", pa.utf8(), decode_text)

# Types that extensions create, under any OID: what their own name says they are.
_OF_EXTENSIONS = (
    TypeFacts(0, "citext", pa.utf8(), decode_text),
    TypeFacts(0, "geometry", pa.binary(), decode_bytea, delimiter=":"),  # of PostGIS, as EWKB
    TypeFacts(0, "geography", pa.binary(), decode_bytea, delimiter=":"),
)
EXTENSION_TYPES: dict[str, TypeFacts] = {facts.name: facts for facts in _OF_EXTENSIONS}
# The last part of a name as ``format_type`` prints it, without the modifier: public.geometry(Point,4326).
_OWN_NAME = re.compile(r"(?:.*\.)?(\w+)(?:\([^()]*\))?", re.DOTALL)

_NUMERIC = 1700

# Arrays by their catalogue entry, which count from 0: they arrive as text.
_VECTORS = frozenset({22, 30})


def type_facts(type_: PgType) -> TypeFacts | None:
    """The row of the table for a type that is no array; None when it arrives as text."""
    if type_.kind is TypeKind.ENUM:
        return ENUM
    if type_.kind is not TypeKind.BASE:
        return None
    if (facts := TYPES.get(type_.oid)) is not None:
        return facts
    # Only a type's own name says what it is: a domain may be called citext too, and stand for anything.
    if type_.declared_oid not in (0, type_.oid):
        return None
    found = _OWN_NAME.fullmatch(type_.name)
    return EXTENSION_TYPES.get(found[1]) if found else None


def element_type(type_: PgType) -> PgType | None:
    """The element type of an array that can be read as one, under the array's type modifier."""
    if type_.kind is not TypeKind.ARRAY or type_.element is None or type_.oid in _VECTORS:
        return None
    element = type_.element
    return element.model_copy(update={"typmod": type_.typmod}) if element.typmod == -1 else element


def has_binary_decoder(type_: PgType) -> bool:
    """Whether values of this type are read from their binary form; if not, they must be fetched as text."""
    element = element_type(type_)
    return has_binary_decoder(element) if element is not None else type_facts(type_) is not None


def arrow_type(type_: PgType) -> pa.DataType:
    """The Arrow type of a column of this type."""
    if not has_binary_decoder(type_):
        return pa.utf8()
    element = element_type(type_)
    if element is not None:
        return pa.list_(arrow_type(element))
    facts = type_facts(type_)
    assert facts is not None
    return facts.arrow_type(type_.typmod)


def read_type(column: Column) -> PgType:
    """The type that the values of a column are read as: with the precision that the column gives to its numerics."""
    if column.decimal is None:
        return column.type
    precision, scale = column.decimal
    return _with_precision(column.type, ((precision << 16) | scale) + 4)


def _with_precision(type_: PgType, typmod: int) -> PgType:
    element = element_type(type_)
    if element is not None:
        return type_.model_copy(update={"element": _with_precision(element, typmod)})
    lands_as_text = type_.oid == _NUMERIC and arrow_type(type_) == pa.utf8()
    return type_.model_copy(update={"typmod": typmod}) if lands_as_text else type_


def reads_text(column: Column) -> bool:
    """Whether the column's values must be fetched as the server's text."""
    if not has_binary_decoder(column.type):
        return True
    facts = type_facts(column.type)
    return _lands_as_text(column) and not (facts is not None and facts.prints)


def column_type(column: Column) -> pa.DataType:
    """The Arrow type of a column, under its value policy."""
    return pa.utf8() if _lands_as_text(column) else arrow_type(read_type(column))


def _lands_as_text(column: Column) -> bool:
    """Whether the policy makes text of the column, for the values that its type has and its Arrow type has not."""
    if column.values is not ValuePolicy.TEXT or not has_binary_decoder(column.type):
        return False
    facts = type_facts(column.type)
    if facts is None:
        return True  # every array may have several dimensions
    return facts.gaps or (facts.arrow == pa.json_() and column.limits is not None and column.limits.exact_json)


def arrow_schema(table: TableSchema) -> pa.Schema:
    """The Arrow schema of a table's rows. All fields are nullable, since a delete fills only the key."""
    return pa.schema(
        pa.field(column.name, column_type(column), metadata={TYPE_METADATA: column.type.name.encode()})
        for column in table.columns
    )
