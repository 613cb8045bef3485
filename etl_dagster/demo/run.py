"""The demo from beginning to end."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from etl_dagster.demo.folder import DemoFolder
from etl_dagster.demo.narrator import Narrator
from etl_dagster.demo.processes import Service
from etl_dagster.demo.schema import create_order_system, table_sizes
from etl_dagster.demo.traffic import Tally, Traffic
from etl_dagster.errors import EtlError
from etl_dagster.model import TableId
from etl_dagster.orchestration.run_log import LiveTableLog, RunCounts, RunLog
from etl_dagster.pipeline import Pipeline, PipelineStatus
from etl_dagster.postgres import Difference
from etl_dagster.store.base import TableState
from etl_dagster.testing.server import PostgresServer, ServerError, free_port

_POLL_SECONDS = 0.5
# Dagster's processes need some ten seconds here, and several times that on a busy machine.
_FIRST_RUN_SECONDS = 180.0
_CATCH_UP_SECONDS = 180.0
# Short, so that a short demo sees several runs.
_BATCH_BUDGET_SECONDS = 10.0
# The sensor tries again after a failure; one that lasts has been seen by then.
_TOLERATED_FAILURES = 2
# Something to watch in the UI, day and night.
_SLOW_RATE = 20
_SETTLED = {TableState.READY, TableState.QUARANTINED}


@dataclass(frozen=True)
class DemoOptions:
    """What the user asked for.

    Attributes:
        rows: Rows to begin with, in all.
        seconds: How long traffic goes on once replication has begun.
        rate: Changes per second.
        port: Port of the UI; another one when it is taken.
    """

    folder: Path
    rows: int
    seconds: float
    rate: int
    ui: bool
    port: int


@dataclass(frozen=True)
class DemoResult:
    """What there is to show at the end.

    Attributes:
        lags: What the status of each live table said, looked at twice a second while traffic ran.
    """

    status: PipelineStatus
    tables: Mapping[TableId, LiveTableLog]
    differences: Mapping[TableId, Difference]
    runs: RunCounts
    tally: Tally
    lags: Mapping[TableId, Sequence[float]]
    seconds: float

    @property
    def equal(self) -> bool:
        """Every table is live and equal to its source."""
        live = {table.table for table in self.status.tables}
        return live == set(self.differences) and all(found.equal for found in self.differences.values())


class Demo:
    """One demo; everything that it starts ends with the ``with`` block."""

    def __init__(self, options: DemoOptions, narrator: Narrator) -> None:
        self.options = options
        self.folder = DemoFolder(options.folder)
        self._say = narrator.say
        self._narrator = narrator
        self._stack = ExitStack()
        self._lags: dict[TableId, list[float]] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Server, data, traffic and Dagster, from nothing."""
        with self.folder.claimed(), self._stack:
            self._start_source()
            self._start_dagster()
            yield

    def _start_source(self) -> None:
        self.server = self._postgres()
        self._say(f"PostgreSQL is up: {self.server.dsn}")
        create_order_system(self.server.dsn, self.options.rows)
        self._say(f"An order system with {self.options.rows:,} rows is in it")
        self.folder.write(self.server.dsn)
        self.pipeline = Pipeline.load(self.folder.config)
        self._stack.callback(self.pipeline.close)
        self.traffic = self._start_traffic(self.options.rate)

    def _postgres(self) -> PostgresServer:
        """In the work folder; elsewhere when the user that it runs as under root may not go there."""
        try:
            return self._stack.enter_context(PostgresServer(self.folder.postgres, die_with_parent=True))
        except ServerError as error:
            if os.geteuid() != 0:
                raise EtlError(str(error), hint="The demo needs a PostgreSQL server of its own") from error
            return self._stack.enter_context(PostgresServer.temporary(die_with_parent=True))

    def _start_traffic(self, rate: float) -> Traffic:
        traffic = Traffic(self.server.dsn, table_sizes(self.options.rows), rate)
        self._stack.callback(traffic.stop)
        traffic.start()
        return traffic

    def _start_dagster(self) -> None:
        self.runs = self._stack.enter_context(RunLog(self.folder.dagster_home, self.pipeline.name))
        self.runs.prepare()
        command = [sys.executable, "-m", "dagster._daemon", "run", "-w", str(self.folder.workspace)]
        if self.options.ui:
            self.port = free_port_near(self.options.port)
            where = ["-w", str(self.folder.workspace), "-h", "127.0.0.1", "-p", str(self.port)]
            command = [sys.executable, "-m", "dagster", "dev", *where]
        self.dagster = Service(
            "Dagster",
            command,
            env={
                **os.environ,
                "DAGSTER_HOME": str(self.folder.dagster_home),
                "DAGSTER_DISABLE_TELEMETRY": "1",
                "ETL_DAGSTER_CONFIG": str(self.folder.config),
                "ETL_DAGSTER_BATCH_BUDGET_SECONDS": str(_BATCH_BUDGET_SECONDS),
            },
            cwd=self.folder.root,
            log=self.folder.logs / "dagster.log",
        )
        self._stack.enter_context(self.dagster)
        self._say(f"Dagster is starting; its log: {self.folder.logs / 'dagster.log'}")

    def replicate(self) -> None:
        """Wait for Dagster to begin, let traffic run, stop it, and wait until everything has arrived."""
        self._wait(lambda: bool(self._status.tables), _FIRST_RUN_SECONDS, "Dagster's sensor did not start a run")
        self._say("Dagster's sensor has started a run: tables are being copied, and traffic goes on")
        end = time.monotonic() + self.options.seconds
        self._wait(lambda: self._sample_lag() and time.monotonic() >= end, self.options.seconds + 60, "")
        self.traffic.stop()
        self._say(f"Traffic has stopped after {self.traffic.tally.changes:,} changes; waiting for the last of them")
        self._wait(self._has_arrived, _CATCH_UP_SECONDS, "The destination did not catch up")

    def _sample_lag(self) -> bool:
        for table in self._status.tables:
            if table.lag_seconds is not None:
                self._lags.setdefault(table.table, []).append(table.lag_seconds)
        return True

    def _has_arrived(self) -> bool:
        settled = all(table.state in _SETTLED for table in self._status.tables)
        return settled and not self._counts.active and not self.pipeline.pending().work

    def _wait(self, condition: Callable[[], bool], seconds: float, problem: str) -> None:
        deadline = time.monotonic() + seconds
        while True:
            self._look()
            if condition():
                return
            if time.monotonic() > deadline:
                raise EtlError(
                    f"{problem} within {seconds:.0f} s. The end of Dagster's log:\n{self.dagster.tail()}",
                    hint=f"Look into {self.folder.root}, which is kept",
                )
            time.sleep(_POLL_SECONDS)

    def _look(self) -> None:
        self.dagster.check()
        self.traffic.check()
        self._status = self.pipeline.status()
        self._counts = self.runs.runs()
        if self._counts.failed > _TOLERATED_FAILURES:
            raise EtlError(
                f"Dagster's runs fail. The end of its log:\n{self.dagster.tail()}",
                hint=f"Look into {self.folder.root}, which is kept",
            )
        self._narrator.progress(self._progress())

    def _progress(self) -> str:
        traffic = f"traffic {self.traffic.tally.changes:,} changes"
        if not self._status.tables:
            return f"Waiting for Dagster's first run, {traffic}"
        ready = sum(table.state is TableState.READY for table in self._status.tables)
        lag = self._status.lag_seconds
        return (
            f"{ready} of {len(self._status.tables)} tables live, {traffic}, "
            f"lag {'-' if lag is None else f'{lag:.1f} s'}, runs {self._counts.total} ({self._counts.active} active)"
        )

    def compare(self) -> DemoResult:
        """Compare both sides; nothing may write any more."""
        self._say("Comparing every row of both sides")
        self._look()
        tables = [table.table for table in self._status.tables]
        differences = self.pipeline.compare()
        return DemoResult(
            status=self._status,
            tables=self.runs.live_tables(tables),
            differences=differences,
            runs=self._counts,
            tally=self.traffic.tally,
            lags=self._lags,
            seconds=self._narrator.seconds,
        )

    def go_on(self, wait: Callable[[float], bool]) -> None:
        """Keep Dagster and slow traffic going until the wait says that it was interrupted."""
        self.traffic = self._start_traffic(_SLOW_RATE)
        while not wait(_POLL_SECONDS):
            self.dagster.check()
            self.traffic.check()


def free_port_near(wanted: int) -> int:
    """The wanted port, or a free one when somebody listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return free_port()
    return wanted
