"""Signals of a long command: the first one asks it to finish what it has in hand, the second one ends it at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from etl_dagster.retry import stoppable

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = "\x1b[?25h"
_CLOSE = 0  # no signal has this number


class Stop:
    """Asks a long command to stop; knows which signal wanted it."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.signum: int | None = None

    def is_set(self) -> bool:
        """Whether to stop."""
        return self._event.is_set()

    def set(self) -> None:
        """Ask for the stop."""
        self._event.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until the stop is asked for, or the time is over."""
        return self._event.wait(timeout)

    def receive(self, signum: int) -> None:
        """React to one signal."""
        if self.signum is not None:
            _end_at_once(signum)
        self.signum = signum
        _say(f"{signal.Signals(signum).name}: finishing the batch in hand; send it again to stop at once")
        self.set()


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """A `Stop` that SIGINT and SIGTERM set, while the block runs; for the main thread.

    Python runs signal handlers between two of its own instructions only, which a merge of a minute would hold up.
    The wake-up descriptor is written when the signal arrives, and another thread reads it.
    """
    stop = Stop()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    former_descriptor = signal.set_wakeup_fd(writing)
    former = {number: signal.signal(number, _ignore) for number in _SIGNALS}
    listener = threading.Thread(target=_listen, args=(reading, stop), name="signals", daemon=True)
    listener.start()
    try:
        with stoppable(stop):
            yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(former_descriptor)
        os.write(writing, bytes([_CLOSE]))
        listener.join()
        os.close(writing)
        os.close(reading)


def _listen(descriptor: int, stop: Stop) -> None:
    while number := os.read(descriptor, 1)[0]:
        if number in _SIGNALS:
            stop.receive(number)


def _ignore(_signum: int, _frame: FrameType | None) -> None:
    """The listener does the work; a handler must exist, or the default one would end the process."""


def _end_at_once(signum: int) -> None:
    if sys.stderr.isatty():
        os.write(2, _SHOW_CURSOR.encode())
    _say("stopped at once; what was committed is safe, and the next run goes on from there")
    os._exit(128 + signum)


def _say(text: str) -> None:
    # Not through logging: the main thread may hold its locks.
    os.write(2, f"{text}\n".encode())
