"""Retry mechanics, in one place: exponential waits with full jitter, bounded in attempts and in total time.

What is worth retrying is the caller's to say (a predicate on the error); this module only counts, waits and gives up.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from pydantic import Field

from etl_dagster.model import FrozenModel

log = logging.getLogger(__name__)

T = TypeVar("T")


class Backoff(FrozenModel):
    """How often and how long to try; the n-th wait is drawn from 0 to ``first_seconds * factor ** n``."""

    first_seconds: float = Field(0.2, gt=0, description="Longest first wait")
    factor: float = Field(2.0, ge=1, description="Growth of the longest wait from one attempt to the next")
    max_seconds: float = Field(30.0, gt=0, description="Longest wait of all")
    max_attempts: int = Field(10, ge=1, description="Attempts in a row without progress, the first one included")
    max_total_seconds: float = Field(300.0, ge=0, description="Time from the first failure until giving up")


class Stop(Protocol):
    """Asked for by somebody who does not want to wait; `threading.Event` is one."""

    def is_set(self) -> bool:
        """Whether it is asked for."""
        ...

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until it is, or until the time is over."""
        ...


class _Switch:
    """Whether waits are skipped or end early, for the whole process, since what is retried may run in other threads."""

    waiting = True
    stop: Stop | None = None


@contextmanager
def stoppable(stop: Stop) -> Iterator[None]:
    """Make waits in all threads end once a stop is asked for, while the block runs."""
    before, _Switch.stop = _Switch.stop, stop
    try:
        yield
    finally:
        _Switch.stop = before


def stopped() -> bool:
    """Whether the process has been asked to stop, so that nothing shall be tried again."""
    return _Switch.stop is not None and _Switch.stop.is_set()


def pause(seconds: float) -> None:
    """Wait that long, or until the process is asked to stop."""
    if _Switch.stop is None:
        time.sleep(seconds)
    else:
        _Switch.stop.wait(seconds)


@contextmanager
def without_waiting() -> Iterator[None]:
    """Make every wait zero seconds long, for tests; attempts are counted as ever."""
    before, _Switch.waiting = _Switch.waiting, False
    try:
        yield
    finally:
        _Switch.waiting = before


class Retrier:
    """Counts the failures of one piece of work and says how long to wait after each.

    Args:
        what: The work, as a log line names it: ``"state store pg.internal/etl"``.
        when: Whether an error is worth another attempt.
    """

    def __init__(self, what: str, *, when: Callable[[Exception], bool], backoff: Backoff | None = None) -> None:
        self.what = what
        self._when = when
        self._backoff = backoff or Backoff()
        self.progressed()

    def progressed(self) -> None:
        """Something succeeded: the next failure is a first one again."""
        self.failures = 0
        self._since = 0.0
        self._longest = self._backoff.first_seconds

    def failed(self, error: Exception) -> float:
        """Seconds to wait before the next attempt; raises ``error`` when there is none."""
        if not self._when(error):
            raise error
        now = time.monotonic()
        self._since = self._since if self.failures else now
        self.failures += 1
        left = self._since + self._backoff.max_total_seconds - now
        if self.failures >= self._backoff.max_attempts or left <= 0:
            error.add_note(f"Gave up on {self.what} after {self.failures} attempts in {now - self._since:.1f} s")
            raise error
        return self._wait(error, left)

    def _wait(self, error: Exception, left: float) -> float:
        wait = min(random.uniform(0, self._longest), left) if _Switch.waiting else 0.0  # noqa: S311
        self._longest = min(self._longest * self._backoff.factor, self._backoff.max_seconds)
        attempts = f"attempt {self.failures} of {self._backoff.max_attempts}"
        # Of errors that are not ours the class alone: a driver's text may hold values.
        told = getattr(error, "message", "") if hasattr(error, "hint") else type(error).__name__
        log.log(
            logging.INFO if self.failures == 1 else logging.WARNING,
            "%s: %s (%s), next in %.1f s",
            self.what,
            told,
            attempts,
            wait,
        )
        return wait


def retry(work: Callable[[], T], *, what: str, when: Callable[[Exception], bool], backoff: Backoff | None = None) -> T:
    """Call ``work`` until it succeeds, fails for another reason, or the backoff is used up."""
    retrier = Retrier(what, when=when, backoff=backoff)
    while True:
        try:
            return work()
        except Exception as error:  # noqa: BLE001  what is not retried is raised again by `failed`
            wait = retrier.failed(error)
        time.sleep(wait)
