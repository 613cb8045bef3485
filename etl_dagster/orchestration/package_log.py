"""Warnings of the package's own loggers, such as who has the destination's file open, in the log of a run."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import local

PACKAGE = "etl_dagster"


class RunLogHandler(logging.Handler):
    """Passes warnings on to the log of whichever step the run is in.

    Args:
        log: The log as it is now.
    """

    def __init__(self, log: Callable[[], logging.Logger]) -> None:
        super().__init__(logging.WARNING)
        self._log = log
        self._passing = local()

    def emit(self, record: logging.LogRecord) -> None:
        # A log that hands its lines to the package's loggers in turn must not get them again.
        if getattr(self._passing, "on", False):
            return
        self._passing.on = True
        try:
            self._log().log(record.levelno, "%s", record.getMessage())
        finally:
            self._passing.on = False


@contextmanager
def warnings_in(log: Callable[[], logging.Logger]) -> Iterator[None]:
    """Have the package's warnings in a run's log as long as this is open."""
    package, handler = logging.getLogger(PACKAGE), RunLogHandler(log)
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
