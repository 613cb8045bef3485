"""Slices of a table: what is copied again by itself, and shown as a partition; and the rules that cut a table.

The slices of one table cover it whole, without overlap: the first one has no lower bound and holds the NULLs too, the
last one has no upper bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from difflib import get_close_matches
from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Literal
from urllib.parse import quote
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from pydantic import Field, ValidationInfo, field_validator

from etl_dagster.model.table import Column, FrozenModel, TableSchema

# Dagster keeps a status for each partition and event, and its pages slow down with their number.
MAX_SLICES = 5000
# As many rows as a slice of a key gets unless the configuration says otherwise: some seconds of copying.
SLICE_ROWS = 1_000_000
FIRST_RANGE = "start"
_RANGE_PREFIX = "from_"
# Far enough from the ends of the calendar for windows of any length and zone.
_OLDEST_START = date(1800, 1, 1)
_NO_DATE = "must be a day, as year-month-day"
_DATE, _TIMESTAMP, _TIMESTAMPTZ = 1082, 1114, 1184
TIME_TYPES = {_DATE: "date", _TIMESTAMP: "timestamp", _TIMESTAMPTZ: "timestamptz"}
TEXT_TYPES = {25: "text", 1043: "varchar"}
INTEGER_TYPES, UUID_TYPE = {21: "int2", 23: "int4", 20: "int8"}, 2950
RANGE_TYPES = INTEGER_TYPES | {UUID_TYPE: "uuid"} | TEXT_TYPES
_Place = tuple[int, bytes]


class Slice(FrozenModel):
    """The rows of a table whose value in one column lies between two bounds: ``lower <= value < upper``.

    Texts are compared by their bytes (collation "C"), at the source and at the destination.

    Attributes:
        name: The key of the partition; unique among the slices of the table.
        attnum: The column.
        lower: As text that the column's type reads; None: no bound.
        upper: Likewise.
        nulls: Rows without a value belong to it too.
        type_oid: The type that the column had when it was cut.
    """

    name: str
    attnum: int
    type_oid: int
    lower: str | None
    upper: str | None
    nulls: bool = False


class Every(StrEnum):
    """Length of a time window."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"  # from Monday
    MONTH = "month"


class NoPartitions(FrozenModel):
    """The table is copied whole."""

    type: Literal["none"] = "none"


class TimeWindows(FrozenModel):
    """Slices by windows of time of a date or timestamp column; they are named by when they begin."""

    type: Literal["time"] = "time"
    column: str = Field(
        min_length=1, description="Column of type date, timestamp or timestamptz", examples=["created_at"]
    )
    every: Every = Field(Every.DAY, description="hour, day, week (from Monday) or month", examples=["day"])
    start: date = Field(
        ge=_OLDEST_START,
        description="Day within the first window; older rows belong to that window too",
        examples=["2026-01-01"],
    )
    timezone: str = Field("UTC", description="Where windows of a timestamptz column begin; hours are always UTC")

    @field_validator("start", mode="before")
    @classmethod
    def _no_number(cls, value: object) -> object:
        """Else a number would count as the seconds since 1970, also one in quotes."""
        if isinstance(value, date):
            return value
        try:
            return date.fromisoformat(value if isinstance(value, str) else "")
        except ValueError as error:
            raise ValueError(_NO_DATE) from error

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, name: str, info: ValidationInfo) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            close = get_close_matches(name, available_timezones(), n=1)
            meant = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"is no time zone{meant}") from error
        if info.data.get("every") is Every.HOUR and name != "UTC":
            raise ValueError("has to be left out: windows of an hour begin in UTC")
        return name

    @property
    def types(self) -> Sequence[int]:
        """OIDs of the types that the column may have."""
        return tuple(TIME_TYPES)

    def begins(self, now: datetime) -> list[datetime]:
        """When each window begins, by the clock of the time zone, up to the one that ``now`` (aware) lies in."""
        end = now.astimezone(ZoneInfo(self.timezone)).replace(tzinfo=None)
        begin = self._floor(datetime.combine(self.start, time.min))
        found = [begin]
        while (begin := self._next(begin)) <= end:
            found.append(begin)
        return found

    def slices(self, column: Column, now: datetime) -> list[Slice]:
        """The slices as they are at ``now``: the last one is the window that it lies in, and all that is to come."""
        begins = self.begins(now)
        bounds = [None, *(self._bound(begin, column) for begin in begins[1:]), None]
        names = [self.name(begin) for begin in begins]
        return _cut(names, bounds, column)

    def name(self, begin: datetime) -> str:
        """The key of the window that begins then, as Dagster's own time windows are keyed."""
        return f"{begin:%Y-%m-%d-%H:%M}" if self.every is Every.HOUR else f"{begin:%Y-%m-%d}"

    def _floor(self, moment: datetime) -> datetime:
        if self.every is Every.WEEK:
            return moment - timedelta(days=moment.weekday())
        return moment.replace(day=1) if self.every is Every.MONTH else moment

    def _next(self, begin: datetime) -> datetime:
        if self.every is Every.MONTH:
            return (begin.replace(day=1) + timedelta(days=32)).replace(day=1)
        days = {Every.DAY: 1, Every.WEEK: 7}
        return begin + (timedelta(hours=1) if self.every is Every.HOUR else timedelta(days=days[self.every]))

    def _bound(self, begin: datetime, column: Column) -> str:
        if column.type.oid == _DATE:
            return f"{begin:%Y-%m-%d}"
        if column.type.oid == _TIMESTAMP:
            return f"{begin:%Y-%m-%d %H:%M:%S}"
        return f"{begin.replace(tzinfo=ZoneInfo(self.timezone)).astimezone(UTC):%Y-%m-%d %H:%M:%S}+00"


class KeyRanges(FrozenModel):
    """Slices by ranges of an integer, uuid or text column, cut so that each has about as many rows."""

    type: Literal["range"] = "range"
    column: str = Field(
        min_length=1, description="Column of type smallint, integer, bigint, uuid, text or varchar", examples=["id"]
    )
    rows: int = Field(
        SLICE_ROWS,
        ge=1,
        description="Rows that a slice should have; more when there were too many slices",
        examples=[SLICE_ROWS],
    )

    @property
    def types(self) -> Sequence[int]:
        """OIDs of the types that the column may have."""
        return tuple(RANGE_TYPES)


PartitionRule = Annotated[NoPartitions | TimeWindows | KeyRanges, Field(discriminator="type")]


class RangePlan(FrozenModel):
    """Where the ranges of a table begin, as they were planned; they stay as they are, only the last one is cut again.

    Attributes:
        relation: OID of the table that was planned.
        attnum: The column.
        type_oid: Its type.
        bounds: Lower bounds of the second range and those after it, ascending.
    """

    relation: int
    attnum: int
    type_oid: int
    bounds: tuple[str, ...] = ()

    def fits(self, schema: TableSchema, column: Column) -> bool:
        """Whether it was made for this table and column, and not for one that was there before."""
        return (self.relation, self.attnum, self.type_oid) == (schema.oid, column.attnum, column.type.oid)

    def slices(self, column: Column) -> list[Slice]:
        """The slices of the plan."""
        return _cut([FIRST_RANGE, *map(range_name, self.bounds)], [None, *self.bounds, None], column)


def range_name(bound: str) -> str:
    """The key of the range that begins there; what Dagster or its pages do not take is percent-encoded."""
    return _RANGE_PREFIX + quote(bound, safe="").replace(".", "%2E")


def merge_slices(slices: Iterable[Slice]) -> list[Slice]:
    """The same rows in as few slices as can be: in order of column and bounds, apart from each other, none empty.

    A window is empty where a time zone leaves out a day.
    """
    merged: list[Slice] = []
    for part in sorted(slices, key=_begin):
        if part.lower is not None and part.upper is not None and _place(part, part.lower) >= _place(part, part.upper):
            continue
        if merged and merged[-1].attnum == part.attnum and _touch(merged[-1], part):
            merged[-1] = _join(merged[-1], part)
        else:
            merged.append(part)
    return merged


def _begin(part: Slice) -> tuple[int, bool, _Place]:
    return part.attnum, part.lower is not None, (0, b"") if part.lower is None else _place(part, part.lower)


def _touch(left: Slice, right: Slice) -> bool:
    return left.upper is None or right.lower is None or _place(left, left.upper) >= _place(right, right.lower)


def _join(left: Slice, right: Slice) -> Slice:
    upper = None
    if left.upper is not None and right.upper is not None:
        upper = max(left.upper, right.upper, key=lambda bound: _place(left, bound))
    return left.model_copy(update={"upper": upper, "nulls": left.nulls or right.nulls})


def _place(part: Slice, bound: str) -> _Place:
    """Where a bound stands among those of its type; windows of time are written so that their texts are in order."""
    if part.type_oid in INTEGER_TYPES:
        return int(bound), b""
    return (UUID(bound).int, b"") if part.type_oid == UUID_TYPE else (0, bound.encode())


def _cut(names: Sequence[str], bounds: Sequence[str | None], column: Column) -> list[Slice]:
    return [
        Slice(
            name=name,
            attnum=column.attnum,
            type_oid=column.type.oid,
            lower=lower,
            upper=upper,
            nulls=lower is None,
        )
        for name, (lower, upper) in zip(names, pairwise(bounds), strict=True)
    ]
