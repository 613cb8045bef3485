"""What the catalogue says of a table now, held against what is known of it."""

from __future__ import annotations

from collections.abc import Iterable

from etl_dagster.arrow import column_type
from etl_dagster.model import Column, TableSchema
from etl_dagster.pgoutput import keeps_values


def difference(known: TableSchema, now: TableSchema) -> str:
    """What makes the rows brought under ``known`` untrue, so that only a fresh copy helps; empty when nothing does.

    Columns that were added, renamed or dropped are no such difference: they can be followed (`same_columns`). Nor are
    those that got a type which has their values as they were, where their rows were not rewritten (`altered_types`).
    """
    if known.oid != now.oid:
        return "it was dropped and created again in the source"
    if known.row_filter != now.row_filter:
        return "the publication's row filter changed"
    if change := _publication_difference(known, now):
        return change
    if known.landing != now.landing:
        return f"it is to land as {now.landing} instead of {known.landing}"
    return _key_difference(known, now) or _column_difference(known, now) or _rewrite_difference(known, now)


def same_columns(known: TableSchema, now: TableSchema) -> bool:
    """Whether both have the same columns under the same names."""
    return [_shape(column) for column in known.columns] == [_shape(column) for column in now.columns]


def column_changes(known: TableSchema, now: TableSchema) -> str:
    """What happened to the columns, for people."""
    former = {column.attnum: column.name for column in known.columns}
    present = {column.attnum: column.name for column in now.columns}
    added = [f"{name} was added" for attnum, name in present.items() if attnum not in former]
    dropped = [f"{name} was dropped" for attnum, name in former.items() if attnum not in present]
    renamed = [
        f"{former[attnum]} is now {name}"
        for attnum, name in present.items()
        if attnum in former and former[attnum] != name
    ]
    altered = [f"{column.name} is {column.type.name} now" for column in altered_types(known, now)]
    return ", ".join([*added, *renamed, *altered, *dropped])


def altered_types(known: TableSchema, now: TableSchema) -> list[Column]:
    """Columns, as they are now, that have another type than they had."""
    former = {column.attnum: column for column in known.columns}
    return [column for column in now.columns if column.attnum in former and _is_altered(former[column.attnum], column)]


def type_reason(column: Column) -> str:
    """Why a column of another type leads to a fresh copy."""
    return f"column {column.name} is of another type now, or to be read as one"


def _column_difference(known: TableSchema, now: TableSchema) -> str:
    former = {column.attnum: column for column in known.columns}
    gone = [former[attnum] for attnum in former.keys() - {column.attnum for column in now.columns}]
    for column in now.columns:
        before = former.get(column.attnum)
        if before is None and column.attnum <= known.natts:
            return f"column {column.name} joined the publication"
        if before is None and not known.natts:
            return "its columns changed in the source"
        if before is None and _same_look(column, gone):
            return f"column {column.name} was dropped and made again, which its changes do not show"
        if before is not None and _is_altered(before, column) and not keeps_values(before, column):
            return type_reason(column)
    return ""


def _is_altered(before: Column, column: Column) -> bool:
    return _shape(before)[2:] != _shape(column)[2:]


def _key_difference(known: TableSchema, now: TableSchema) -> str:
    if [column.attnum for column in known.key] != [column.attnum for column in now.key]:
        return "its key changed in the source"
    if known.key_index and now.key_index and known.key_index != now.key_index:
        return "its key was dropped and made again, and its rows may have had equal keys meanwhile"
    return ""


def _rewrite_difference(known: TableSchema, now: TableSchema) -> str:
    if _types_altered(known.type_shape, now.type_shape):
        return "a type of its columns was altered, which its changes do not show"
    if known.toast and now.toast and known.toast != now.toast:
        return "it was rewritten, and perhaps unlogged for a while, when its changes are not in the stream"
    return ""


def _types_altered(known: tuple[str, ...], now: tuple[str, ...]) -> bool:
    """Whether types that are in use before and after lost a part, or a composite gained one."""
    before, after = _by_type(known), _by_type(now)
    return any(_lost(before[oid], after[oid]) for oid in before.keys() & after.keys())


def _by_type(shape: Iterable[str]) -> dict[str, set[str]]:
    parts: dict[str, set[str]] = {}
    for part in shape:
        oid, _, text = part.partition(" ")
        parts.setdefault(oid, set()).add(text)
    return parts


def _lost(before: set[str], after: set[str]) -> bool:
    # Only attributes have their number in parentheses; a further label of an enum is in no row that is there.
    return bool(before - after) or any(part.startswith("(") for part in after - before)


def _same_look(column: Column, others: Iterable[Column]) -> bool:
    """Whether another column has the same name and type, so that the stream announces both alike."""
    return any(_shape(column)[1:] == _shape(other)[1:] for other in others)


def _publication_difference(known: TableSchema, now: TableSchema) -> str:
    """The first number is the publication's, the others those of entries that make the table its member.

    One entry that is still there has been there all along.
    """
    before, after = known.membership, now.membership
    if not before or not after:
        return ""
    if before[0] != after[0]:
        return "its publication was altered or made anew, and changes then may be lost"
    if before[1:] == after[1:] or set(before[1:]) & set(after[1:]):
        return ""
    if change := _column_difference(known, now):
        return change
    if {column.attnum for column in known.columns} - {column.attnum for column in now.columns}:
        return "it was out of the publication for a while, or other columns of it are published"
    return "it was out of the publication for a while, and its changes then are lost"


def _shape(column: Column) -> tuple[object, ...]:
    type_ = column.type
    return (column.attnum, column.name, type_.declared_oid, type_.oid, type_.typmod, column_type(column))
