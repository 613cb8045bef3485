"""The file among those who want it: DuckDB lets one process write it, or many read it, and fails for all the others.

So everyone waits for a turn: writers here and in `connect`, readers in `open_reader`. Nothing in this package may open
the file by other means, not even to read a byte: the lock is the operating system's, which lifts it as soon as the
process closes any handle on the file.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from etl_dagster.destinations.duckdb.errors import translate
from etl_dagster.errors import ConfigError, DestinationError, ErrorKind

if TYPE_CHECKING:
    import duckdb

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Beside the database: who waits to write holds a lock on it, and `open_reader` stands back meanwhile. DuckDB lets any
# number of readers in together, so that without it there might always be one.
QUEUE_SUFFIX = ".queue"

# Long enough for readers who are there to end and the writer to come in; where several write in turns somebody always
# waits to write, and a reader must have its turn among them.
STAND_BACK_SECONDS = 5.0
# An attempt takes a millisecond, and a holder lets go for `sharing.PAUSE_SECONDS`.
POLL_SECONDS = 0.03
# Shorter waits are the ordinary case of taking turns, and nobody has to act.
NOTICE_AFTER_SECONDS = 1.0
NOTICE_EVERY_SECONDS = 15.0
READER_TIMEOUT_SECONDS = 60.0

_LOCKED, _OTHER_SETTINGS = "Could not set lock", "different configuration"
_HOLDER = re.compile(r"Conflicting lock is held in (.*?\(PID \d+\)(?: by user [^.\s]+)?)")
_THIS_PROCESS = "this process itself, which has it open with other settings,"
_WRITER_MEANWHILE = "changes wait at the source meanwhile, whose slot keeps their WAL"
_WRITER_HINT = (
    "Have it close the file, or end it; who reads should open the file for one query at a time, with `open_reader`"
)
_READER_HINT = "Try again; a run that copies large tables lets others in between chunks only"


class Held(Exception):
    """Somebody else has the file open; the text says who."""


def attempt(path: str, opened: Callable[[], T]) -> T:
    """Open the file now.

    Raises:
        Held: It is not our turn.
        DestinationError: DuckDB cannot open it for any other reason.
    """
    import duckdb

    try:
        return opened()
    except duckdb.Error as error:
        holder = _holder(error)
        if holder is None:
            raise translate(error, f"open {path}") from error
        raise Held(holder) from error


def _holder(error: duckdb.Error) -> str | None:
    """Who has the file; None when that is not what is wrong."""
    text = str(error)
    if _OTHER_SETTINGS in text:
        return _THIS_PROCESS
    if _LOCKED not in text:
        return None
    found = _HOLDER.search(text)
    return found[1] if found else f"another process ({text.partition('. See also')[0]})"


class Turn:
    """Waits until the file is free, and says for whom.

    Args:
        reads: Stand back for a while when somebody waits to write; a writer has the others stand back.
        meanwhile: What it means that we wait, for the log.
        hint: What to do when it has taken too long.
        notice_after_seconds: When the log first says so.
    """

    def __init__(
        self,
        path: str,
        timeout_seconds: float,
        *,
        reads: bool = False,
        meanwhile: str = _WRITER_MEANWHILE,
        hint: str = _WRITER_HINT,
        notice_after_seconds: float = NOTICE_AFTER_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._timeout = timeout_seconds
        self._reads = reads
        self._meanwhile = meanwhile
        self._hint = hint
        self._notice_after = notice_after_seconds
        self._clock = clock

    def wait(self, opened: Callable[[], T]) -> T:
        """What ``opened`` returns, once it does.

        Raises:
            DestinationError: Of kind ``DESTINATION_UNAVAILABLE`` when somebody has the file for too long.
        """
        with _Queue(self._path, reads=self._reads) as queue:
            return self._wait(opened, queue)

    def _wait(self, opened: Callable[[], T], queue: _Queue) -> T:
        began = self._clock()
        notice = first = began + self._notice_after
        while True:
            try:
                if self._reads and self._clock() < began + STAND_BACK_SECONDS:
                    queue.stand_back()
                found = attempt(self._path, opened)
            except Held as held:
                if not self._reads:
                    queue.announce()
                if self._clock() >= began + self._timeout:
                    raise self._too_long(held) from held
                if self._clock() >= notice:
                    logger.warning("Waiting for %s: %s has it open; %s", self._path, held, self._meanwhile)
                    notice = self._clock() + NOTICE_EVERY_SECONDS
                time.sleep(POLL_SECONDS)
            else:
                if notice > first:
                    logger.info("Got %s after %.1f s", self._path, self._clock() - began)
                return found

    def _too_long(self, held: Held) -> DestinationError:
        return DestinationError(
            f"{self._path} is not free after {self._timeout:g} s: {held} has it open; {self._meanwhile}",
            hint=self._hint,
            kind=ErrorKind.DESTINATION_UNAVAILABLE,
        )


class _Queue:
    """Tells readers that somebody waits to write; where the file for it cannot be written, nobody is told.

    What a process holds ends with it, however it ends.
    """

    def __init__(self, path: str, *, reads: bool) -> None:
        self._path = path + QUEUE_SUFFIX
        self._flags = os.O_RDONLY if reads else os.O_RDWR | os.O_CREAT
        self._file: int | None = None

    def __enter__(self) -> Self:
        with suppress(OSError):
            self._file = os.open(self._path, self._flags, 0o666)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)

    def announce(self) -> None:
        """Have those who would read stand back until the end; other writers may wait too."""
        if self._file is not None:
            with suppress(BlockingIOError):
                fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def stand_back(self) -> None:
        """Raise `Held` while somebody waits to write."""
        if self._file is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Held("a process that waits to write") from error
        fcntl.flock(self._file, fcntl.LOCK_UN)


def require_duckdb() -> None:
    """Import the SDK.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import duckdb  # noqa: F401
    except ImportError as error:
        hint = "pip install 'etl-dagster[duckdb]'"
        raise ConfigError("The destination type duckdb needs the package duckdb", hint=hint) from error


def open_reader(path: str, timeout_seconds: float = READER_TIMEOUT_SECONDS) -> duckdb.DuckDBPyConnection:
    """A read-only connection to a file that a pipeline writes to, as soon as it is our turn.

    It shows what the pipeline had committed when it let go of the file. The pipeline waits until the connection is
    closed, so close it after each query, best with a ``with`` statement.

    Raises:
        ConfigError: DuckDB is not installed.
        DestinationError: There is no such file, or nobody let go of it within ``timeout_seconds``.
    """
    require_duckdb()
    import duckdb

    turn = Turn(
        path,
        timeout_seconds,
        reads=True,
        meanwhile="it lets go between batches",
        hint=_READER_HINT,
        notice_after_seconds=NOTICE_EVERY_SECONDS,
    )
    return turn.wait(lambda: duckdb.connect(path, read_only=True))
