"""Tables, columns and types as the source's catalogue describes them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict


class FrozenModel(BaseModel):
    """Immutable, and refuses fields that it does not know."""

    # A refused value may hold a password, so messages do not show it.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class TableId(NamedTuple):
    """A table's full name in the source."""

    schema: str
    name: str

    @classmethod
    def parse(cls, text: str) -> TableId:
        """Read ``schema.name``; the schema is ``public`` when it is left out."""
        schema, dot, name = text.partition(".")
        return cls(schema, name) if dot else cls("public", schema)

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


class TypeKind(StrEnum):
    """How the catalogue classes a type; domains are resolved away before."""

    BASE = "base"
    ENUM = "enum"
    ARRAY = "array"
    COMPOSITE = "composite"
    RANGE = "range"
    MULTIRANGE = "multirange"
    PSEUDO = "pseudo"


class ValuePolicy(StrEnum):
    """What becomes of values that a column's Arrow type, or the destination, cannot hold."""

    FAIL = "fail"  # the table is quarantined
    NULL = "null"  # NULL takes their place; counted
    CLAMP = "clamp"  # the nearest value that can be held takes their place, NULL where there is none; counted
    TEXT = "text"  # a column whose type has such values lands as the text that PostgreSQL prints


class ValueLimits(FrozenModel):
    """What a destination can hold of the dates, times and JSON that Arrow can hold.

    Attributes:
        first_year: First year of dates and timestamps; BC and -infinity lie before it.
        last_year: Last year of dates and timestamps; infinity lies after it.
        midnight: Times of day may be 24:00:00.
        exact_json: JSON has only numbers that an integer of 64 bits or a double holds exactly, whole characters, and at
            most 500 levels.
    """

    first_year: int = 1
    last_year: int = 9999
    midnight: bool = False
    exact_json: bool = True


class Landing(StrEnum):
    """How the changes of a table land at the destination."""

    MIRROR = "mirror"  # the present state
    SOFT_DELETE = "soft_delete"  # the present state, and deleted rows as they were, marked
    CHANGELOG = "changelog"  # every change, appended


class PgType(FrozenModel):
    """A column's type with its domains resolved, since a domain travels as its base type.

    Attributes:
        oid: OID of the resolved type (for ``CREATE DOMAIN d AS int``, that of ``int4``).
        name: The declared type as ``format_type`` prints it, for people.
        typmod: Type modifier in force (of the innermost domain that sets one), -1 when there is none.
        kind: Class of the resolved type.
        element: Resolved element type of an array.
        declared_oid: OID of the type as declared, which the stream's relation messages carry: that of the domain.
    """

    oid: int
    name: str
    typmod: int = -1
    kind: TypeKind = TypeKind.BASE
    element: PgType | None = None
    declared_oid: int = 0


class Column(FrozenModel):
    """One column of a table.

    Attributes:
        attnum: The number that identifies the column for its whole life, through renames.
        key_ordinal: Place in the key that identifies a row, counted from 0; None outside the key.
        values: What becomes of values that cannot be held.
        decimal: Precision and scale to read a ``numeric`` without declared precision with; None: it lands as text.
        missing: Text of the value that rows have which are older than the column (``pg_attribute.attmissingval``).
        limits: What the destination can hold of its values; None where it holds all that Arrow does, or where limits do
            not matter to the column's type.
    """

    attnum: int
    name: str
    type: PgType
    nullable: bool = True
    key_ordinal: int | None = None
    values: ValuePolicy = ValuePolicy.FAIL
    decimal: tuple[int, int] | None = None
    missing: str | None = None
    limits: ValueLimits | None = None


class ReplicaIdentity(StrEnum):
    """What the source writes to the WAL to identify an updated or deleted row (``pg_class.relreplident``)."""

    DEFAULT = "d"
    FULL = "f"
    INDEX = "i"
    NOTHING = "n"


class TableSchema(FrozenModel):
    """What is replicated of a table: its published columns, in attnum order, and its key.

    Generated columns that the publication leaves out are not among ``columns``.

    Attributes:
        membership: A number that tells the publication and how it was altered last, then those of its entries (for the
            table, its ancestors, their schemas) that make the table a member; new ones mean that changes may have gone
            unpublished. Empty when unknown.
        key_index: OID of the constraint, or of the index, that makes the key one; another one means that there may have
            been rows with equal keys. 0 when unknown.
        type_shape: Labels of the enums and attributes of the composites that the columns' types lead to, each as text
            that begins with the OID of its type.
        toast: OID of the TOAST table, where the table may be set unlogged while it is published; another one means that
            it may have been, for a while. 0 when it does not matter or there is none.
        natts: Highest attnum that the table has ever given out; columns beyond it are new. 0 when unknown.
        landing: How changes land.
        left_out: Names of generated columns, which the publication does not carry.
    """

    id: TableId
    oid: int
    columns: tuple[Column, ...]
    replica_identity: ReplicaIdentity = ReplicaIdentity.DEFAULT
    row_filter: str | None = None
    membership: tuple[int, ...] = ()
    key_index: int = 0
    type_shape: tuple[str, ...] = ()
    toast: int = 0
    natts: int = 0
    landing: Landing = Landing.MIRROR
    left_out: tuple[str, ...] = ()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        copied = super().model_copy(update=update, deep=deep)
        for derived in ("key", "key_indexes", "identity_indexes"):
            copied.__dict__.pop(derived, None)  # pydantic copies cached properties too, which may no longer be true
        return copied

    @cached_property
    def key(self) -> tuple[Column, ...]:
        """The key columns in key order; empty when the table has no key."""
        found = [column for column in self.columns if column.key_ordinal is not None]
        return tuple(sorted(found, key=lambda column: column.key_ordinal or 0))

    @cached_property
    def key_indexes(self) -> tuple[int, ...]:
        """Positions of the key columns within ``columns``, in key order."""
        return tuple(self.columns.index(column) for column in self.key)

    @cached_property
    def identity_indexes(self) -> tuple[int, ...]:
        """Positions of the columns that tell which row a change is about: the key; without a key, all of them."""
        return self.key_indexes or tuple(range(len(self.columns)))
