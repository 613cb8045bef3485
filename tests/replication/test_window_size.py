"""How many changes a window holds."""

from __future__ import annotations

from etl_dagster.replication.stream import WindowSizer
from etl_dagster.settings import ReplicationSettings

SETTINGS = ReplicationSettings(min_window_changes=10_000, max_window_changes=1_000_000, target_window_seconds=5)
MICROSECOND = 1e-6


def _settled(
    seconds_each: float, reread_bytes: int = 0, *, batch_seconds: float = 0.0, seconds_once: float = 0.0
) -> int:
    sizer = WindowSizer(SETTINGS, batch_seconds)
    for _ in range(30):
        seconds = sizer.limit * seconds_each + reread_bytes / 330e6 + seconds_once
        sizer.learn(sizer.limit, seconds, reread_bytes)
    return sizer.limit


def test_cheap_changes_come_in_the_largest_windows() -> None:
    assert _settled(2 * MICROSECOND) == 1_000_000


def test_a_slow_destination_gets_windows_that_take_the_target_time() -> None:
    assert 45_000 < _settled(100 * MICROSECOND) < 55_000


def test_a_window_never_falls_below_the_least() -> None:
    assert _settled(1.0) == 10_000


def test_wal_that_is_read_again_each_time_makes_windows_larger_not_smaller() -> None:
    without, with_much = _settled(100 * MICROSECOND), _settled(100 * MICROSECOND, reread_bytes=3_300_000_000)
    assert with_much > 4 * without


def test_a_destination_that_takes_long_whatever_comes_gets_large_windows_where_it_wants_few() -> None:
    slow = {"seconds_each": 30 * MICROSECOND, "seconds_once": 6.0}
    assert _settled(**slow) == 10_000, "six seconds once are more than the target"
    assert _settled(**slow, batch_seconds=60.0) > 250_000


def test_one_that_wants_batches_less_far_apart_than_the_target_changes_nothing() -> None:
    assert _settled(100 * MICROSECOND, batch_seconds=19.0) == _settled(100 * MICROSECOND)
