"""Retries are bounded in attempts and in time, and start over with progress."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from etl_dagster import retry as module
from etl_dagster.retry import Backoff, Retrier, retry, without_waiting


class Busy(Exception):
    """Worth another attempt."""


def _busy(error: Exception) -> bool:
    return isinstance(error, Busy)


@pytest.fixture
def no_waiting() -> Iterator[None]:
    with without_waiting():
        yield


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.usefixtures("no_waiting")
def test_work_is_repeated_until_it_succeeds() -> None:
    outcomes = iter([Busy(), Busy(), "done"])

    def work() -> str:
        outcome = next(outcomes)
        if isinstance(outcome, Busy):
            raise outcome
        return str(outcome)

    assert retry(work, what="work", when=_busy) == "done"


@pytest.mark.usefixtures("no_waiting")
def test_attempts_are_bounded_and_the_error_says_so() -> None:
    calls = []

    def work() -> None:
        calls.append(1)
        raise Busy

    with pytest.raises(Busy) as caught:
        retry(work, what="the slot", when=_busy, backoff=Backoff(max_attempts=4))
    assert len(calls) == 4
    assert caught.value.__notes__ == ["Gave up on the slot after 4 attempts in 0.0 s"]


def test_another_error_is_raised_at_once() -> None:
    with pytest.raises(KeyError):
        retry(lambda: {}["x"], what="work", when=_busy)


def test_waits_grow_to_their_bound_with_full_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = []
    monkeypatch.setattr(module.random, "uniform", lambda low, high: longest.append((low, high)) or high)
    retrier = Retrier("work", when=_busy, backoff=Backoff(first_seconds=1, factor=3, max_seconds=20))
    assert [retrier.failed(Busy()) for _ in range(5)] == [1, 3, 9, 20, 20]
    assert {low for low, _ in longest} == {0}


def test_total_time_is_bounded_and_the_last_wait_fits(clock: list[float]) -> None:
    retrier = Retrier("work", when=_busy, backoff=Backoff(first_seconds=50, max_seconds=50, max_total_seconds=10))
    retrier.failed(Busy())
    clock[0] += 9.5
    assert retrier.failed(Busy()) <= 0.5
    clock[0] += 0.5
    with pytest.raises(Busy):
        retrier.failed(Busy())


def test_progress_makes_the_next_failure_a_first_one(clock: list[float]) -> None:
    retrier = Retrier("work", when=_busy, backoff=Backoff(max_attempts=2, max_total_seconds=10))
    for _ in range(5):
        retrier.failed(Busy())
        clock[0] += 100
        retrier.progressed()
    retrier.failed(Busy())
    with pytest.raises(Busy):
        retrier.failed(Busy())


@pytest.mark.usefixtures("no_waiting")
def test_a_retry_is_logged_by_name_without_the_text_of_the_error(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        Retrier("the slot", when=_busy, backoff=Backoff(max_attempts=3)).failed(Busy("hunter2"))
    assert caplog.messages == ["the slot: Busy (attempt 1 of 3), next in 0.0 s"]
