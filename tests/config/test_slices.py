"""Slices cover a table whole and without overlap, whatever the rule and the moment."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl_dagster.model import Column, PgType, RangePlan, Slice, TimeWindows
from etl_dagster.model.slices import Every, range_name

STAMPTZ, STAMP, DATE, BIGINT, TEXT = (
    Column(attnum=2, name="c", type=PgType(oid=oid, name=name))
    for oid, name in ((1184, "timestamptz"), (1114, "timestamp"), (1082, "date"), (20, "bigint"), (25, "text"))
)
NOW = datetime(2026, 11, 23, 6, 30, tzinfo=UTC)
MOMENTS = st.datetimes(datetime.combine(date(2025, 1, 1), time.min), datetime.combine(date(2027, 12, 31), time.min))


def _holding(slices: Sequence[Slice], value: str | None) -> list[str]:
    if value is None:
        return [each.name for each in slices if each.nulls]
    return [
        each.name
        for each in slices
        if (each.lower is None or each.lower <= value) and (each.upper is None or value < each.upper)
    ]


@given(MOMENTS, st.sampled_from(list(Every)), st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kathmandu"]))
def test_every_instant_lies_in_one_window_which_is_named_by_its_begin(
    moment: datetime, every: Every, timezone: str
) -> None:
    zone = "UTC" if every is Every.HOUR else timezone
    rule = TimeWindows(column="c", every=every, start=date(2026, 10, 1), timezone=zone)
    slices = rule.slices(STAMPTZ, NOW)
    (name,) = _holding(slices, f"{moment:%Y-%m-%d %H:%M:%S}+00")
    local = moment.replace(tzinfo=UTC).astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    begin = datetime.fromisoformat(f"{name[:10]}T{name[11:]}" if every is Every.HOUR else name)
    assert begin <= local or name == slices[0].name
    assert _holding(slices, None) == [slices[0].name]


@pytest.mark.parametrize(
    ("every", "start", "names"),
    [
        (Every.HOUR, "2026-11-23", ["2026-11-23-00:00", "2026-11-23-01:00", "2026-11-23-06:00"]),
        (Every.DAY, "2026-11-20", ["2026-11-20", "2026-11-21", "2026-11-23"]),
        (Every.WEEK, "2026-11-05", ["2026-11-02", "2026-11-09", "2026-11-23"]),
        (Every.MONTH, "2025-12-31", ["2025-12-01", "2026-01-01", "2026-11-01"]),
    ],
)
def test_the_first_window_is_the_one_that_the_start_lies_in_and_the_last_one_is_now(
    every: Every, start: str, names: list[str]
) -> None:
    slices = TimeWindows(column="c", every=every, start=date.fromisoformat(start)).slices(STAMP, NOW)
    assert [slices[0].name, slices[1].name, slices[-1].name] == names
    assert (slices[0].lower, slices[-1].upper) == (None, None)


def test_days_begin_at_the_midnight_of_their_zone_also_when_clocks_change() -> None:
    rule = TimeWindows(column="c", start=date(2026, 3, 28), timezone="Europe/Berlin")
    found = rule.slices(STAMPTZ, datetime(2026, 3, 31, tzinfo=UTC))
    assert [each.upper for each in found] == [
        "2026-03-28 23:00:00+00",
        "2026-03-29 22:00:00+00",
        "2026-03-30 22:00:00+00",
        None,
    ]


def test_columns_without_a_zone_are_cut_by_the_clock_they_show() -> None:
    rule = TimeWindows(column="c", start=date(2026, 11, 22), timezone="Europe/Berlin")
    assert [each.upper for each in rule.slices(STAMP, NOW)] == ["2026-11-23 00:00:00", None]
    assert [each.upper for each in rule.slices(DATE, NOW)] == ["2026-11-23", None]


def test_a_start_that_is_still_to_come_gives_one_window_with_everything() -> None:
    (only,) = TimeWindows(column="c", start=date(2030, 1, 1)).slices(DATE, NOW)
    assert (only.lower, only.upper, only.nulls) == (None, None, True)


def test_ranges_cover_everything_and_their_names_do_not_depend_on_what_follows() -> None:
    before = RangePlan(relation=7, attnum=2, type_oid=20, bounds=("10", "20")).slices(BIGINT)
    after = RangePlan(relation=7, attnum=2, type_oid=20, bounds=("10", "20", "30")).slices(BIGINT)
    assert [(each.lower, each.upper, each.nulls) for each in before] == [
        (None, "10", True),
        ("10", "20", False),
        ("20", None, False),
    ]
    assert [each.name for each in before] == ["start", "from_10", "from_20"] == [each.name for each in after][:3]


@given(st.lists(st.text(), min_size=1, unique=True))
def test_names_of_text_ranges_are_unique_and_plain(bounds: list[str]) -> None:
    names = ["start", *map(range_name, bounds)]
    assert len(set(names)) == len(names)
    assert all(
        name.isascii() and name.replace("%", "").replace("-", "").replace("_", "").replace("~", "").isalnum()
        for name in names
    )
