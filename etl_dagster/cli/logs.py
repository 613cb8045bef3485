"""Where log lines and errors go: standard error, so that standard output holds results alone."""

from __future__ import annotations

import logging
import sys
import traceback
from types import TracebackType
from typing import TYPE_CHECKING

from etl_dagster.cli.exits import exit_code_for
from etl_dagster.errors import EtlError

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger("etl_dagster")

_FORMAT = "%(asctime)s %(levelname)-7s %(message)s"


class ConsoleHandler(logging.Handler):
    """Prints records through a console, which keeps them apart from the progress that it draws."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else "dim"
        self._console.print(self.format(record), style=style, markup=False, highlight=False, soft_wrap=True)


def start_logging(handler: logging.Handler | None = None, *, debug: bool = False) -> None:
    """Send the package's records to standard error, or to another handler."""
    if handler is None:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(_FORMAT))
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if debug or logger.level == logging.DEBUG else logging.INFO)


def explain(error: EtlError) -> int:
    """Print what failed, where, and what to do next; returns the exit code."""
    lines = [f"error: {error.message}"]
    if error.table:
        lines.append(f"  table: {error.table}")
    if error.hint:
        lines.append(f"  next:  {error.hint}")
    _write(*lines)
    _trace(error)
    return exit_code_for(error.kind)


def explain_unexpected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What `sys.excepthook` does for an error that nobody foresaw: no pages of code unless asked for."""
    if issubclass(kind, KeyboardInterrupt):
        return
    _write(
        f"error: unexpected {kind.__name__}: {error}",
        "  next:  run the command again with --debug, and report what it prints",
    )
    _trace(error)


def _write(*lines: str) -> None:
    sys.stderr.write("".join(f"{line}\n" for line in lines))


def _trace(error: BaseException) -> None:
    if logger.level == logging.DEBUG:
        traceback.print_exception(error)
