"""When the file is open and when it is let go, so that other processes have their turn.

It is opened by the first use, and closed between uses once it has been idle for a moment or open for long enough.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from etl_dagster.destinations.duckdb.client import Client, connect, translated
from etl_dagster.destinations.duckdb.config import DuckDbConfig
from etl_dagster.errors import DestinationError

logger = logging.getLogger(__name__)

# How long it stays closed at least: several attempts of one who waits.
PAUSE_SECONDS = 0.2
# To close and to open again takes some 50 ms, in which a change would wait: so not at every pause of the traffic.
IDLE_SECONDS = 1.0
# A copy goes on so many times longer than it took to let go: that is 3 % of its time. Most of it is a checkpoint, whose
# work has to be done some time; before the first one nobody knows how long it takes.
_WORK_PER_COST = 30
_FIRST_COST_SECONDS = 1.0
# How long chunks wait, once those before them have ended, for what else uses the file: a batch, or a forgotten reader.
_PATIENCE_SECONDS = 15.0
_START_AGAIN = "Start the pipeline again: it copies afresh what the file lacks"


_NEWEST = """
WITH others AS (SELECT schema_name, table_name FROM _etl.owners WHERE pipeline <> '{owner}'),
marks AS (FROM _etl.watermarks SELECT schema_name, table_name, lsn
          UNION ALL FROM _etl.copies SELECT schema_name, table_name, lsn)
SELECT coalesce(max(lsn), 0) FROM marks ANTI JOIN others USING (schema_name, table_name)
"""


class SharedFile:
    """The database file, opened for as long as it is in use and not much longer; serves many threads."""

    def __init__(self, config: DuckDbConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        # Held while the file is being opened or closed: nobody can use it then. Re-entrant, since a reader that is
        # collected as garbage ends its use wherever its thread happens to be.
        self._turn = threading.Condition(threading.RLock())
        self._client: Client | None = None
        self._started = False
        self._owner = ""
        # The newest of the pipeline's watermarks when it last let go; None before that.
        self._left_at: int | None = None
        self._users: Counter[int] = Counter()
        self._staging = 0
        self._memory = config.memory_limit_bytes
        self._opened_at = self._used_at = 0.0
        self._closed_at = float("-inf")
        self._cost = _FIRST_COST_SECONDS
        # Chunks wait until those that run have ended; since when, and until when at most.
        self._draining = False
        self._waiting_since: float | None = None
        self._patient_until: float | None = None

    @property
    def client(self) -> Client | None:
        """The open file, for those who know that nobody closes it."""
        return self._client

    def start(self, owner: str = "") -> None:
        """Allow uses, by a pipeline."""
        self._owner = owner
        self._left_at = None
        self._started = True

    def stop(self) -> None:
        """Close the file for good, whoever uses it; safe to call twice."""
        with self._turn:
            self._started = False
            self._close()

    @contextmanager
    def use(self, *, staging: bool = False) -> Iterator[Client]:
        """The open file, until the end of the ``with`` block; waits while another process has it.

        Args:
            staging: One of many long uses beside each other, which wait when the file is to be let go.

        Raises:
            DestinationError: It is not started, or another process does not let go of the file.
        """
        thread = threading.get_ident()
        client = self._enter(thread, staging)
        try:
            yield client
        finally:
            self._leave(thread, staging)

    def rest(self, *, idle: bool) -> None:
        """Let go of the file if it is time, at once or when those who use it have ended; what goes wrong is logged."""
        try:
            self._rest(idle=idle)
        except DestinationError as error:
            logger.warning("%s", error)

    def _rest(self, *, idle: bool) -> None:
        with self._turn:
            if self._client is None or self._draining or not self._is_due(idle):
                return
            if self._staging:
                self._draining = True
            elif not self._users:
                self._let_go(self._client)

    def _is_due(self, idle: bool) -> bool:
        share, now = self._config.share_seconds, self._clock()
        if share is None:
            return False
        kept = now - self._opened_at
        if self._staging:
            return kept >= max(share, _WORK_PER_COST * self._cost)
        return kept >= share or (idle and now - self._used_at >= IDLE_SECONDS)

    def _enter(self, thread: int, staging: bool) -> Client:
        with self._turn:
            if not self._started:
                raise DestinationError("The DuckDB destination is not started", hint="Call startup() first")
            if staging and thread not in self._users:
                self._await_drain()
            self._users[thread] += 1
            self._staging += staging
            try:
                return self._client or self._open()
            except BaseException:
                self._leave(thread, staging)
                raise

    def _await_drain(self) -> None:
        while self._draining:
            if self._waiting_since is None:
                self._waiting_since = self._clock()
            left = None if self._patient_until is None else self._patient_until - self._clock()
            if left is not None and left <= 0:
                self._end_drain()
                self._opened_at = self._clock()
            else:
                self._turn.wait(left)

    def _leave(self, thread: int, staging: bool) -> None:
        with self._turn:
            self._users[thread] -= 1
            if not self._users[thread]:
                del self._users[thread]
            self._staging -= staging
            self._used_at = self._clock()
            if self._draining and not self._users and self._client is not None:
                self._let_go(self._client)
            elif self._draining and not self._staging and self._patient_until is None:
                self._patient_until = self._clock() + _PATIENCE_SECONDS
                self._turn.notify_all()

    def _open(self) -> Client:
        if self._left_at is not None and not Path(self._config.path).exists():
            raise DestinationError(f"{self._config.path} is gone", hint=_START_AGAIN)
        time.sleep(max(0.0, self._closed_at + PAUSE_SECONDS - self._clock()))
        self._client = connect(self._config, self._memory)
        self._opened_at = self._used_at = self._clock()
        try:
            self._require_the_same(self._client)
        except BaseException:
            self._close()
            raise
        return self._client

    def _require_the_same(self, client: Client) -> None:
        if self._left_at is not None and self._newest(client) < self._left_at:
            raise DestinationError(f"{self._config.path} is older than we left it", hint=_START_AGAIN)

    def _let_go(self, client: Client) -> None:
        began, copying = self._waiting_since or self._clock(), self._draining
        try:
            self._left_at = self._newest(client)
        finally:
            self._close()
        if copying:
            self._cost = PAUSE_SECONDS + self._closed_at - began

    def _newest(self, client: Client) -> int:
        """The newest watermark of the pipeline's tables and copies, which nobody else may change."""
        try:
            with translated("read the watermarks"):
                found = client.main.rows(_NEWEST.format(owner=self._owner.replace("'", "''")))
        except DestinationError as error:
            error.hint = _START_AGAIN
            raise
        return int(found[0][0])

    def _close(self) -> None:
        client, self._client = self._client, None
        try:
            if client is not None:
                self._memory = client.memory
                with translated("close the file"):
                    client.close()
        finally:
            if client is not None:
                self._closed_at = self._clock()
            self._end_drain()

    def _end_drain(self) -> None:
        self._draining = False
        self._waiting_since = self._patient_until = None
        self._turn.notify_all()
