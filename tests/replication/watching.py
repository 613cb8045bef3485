"""What the scenario tests share: a journal of what the engine reports, and ways to go on with a pipeline."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import duckdb
import yaml

from etl_dagster.model import TableId, TableSchema
from etl_dagster.replication import BatchReport, CopyProgress, Replicator
from etl_dagster.store.base import TableRecord, TableState

# The catalogue is asked when the process begins, and then not again: only the stream tells of what changes.
STREAM_ONLY = {"refresh_seconds": 1000, "idle_poll_seconds": 0.02}
# The catalogue is asked in every step, and so is nearly always ahead of the stream.
EAGER = {"refresh_seconds": 0.0001, "idle_poll_seconds": 0.02}
T = TableId("public", "t")
DEADLINE_SECONDS = 60.0


class Deadline:
    """A stop that turns on by itself, so that a hang is a failed test."""

    def __init__(self, seconds: float = DEADLINE_SECONDS) -> None:
        self._ends = monotonic() + seconds

    def is_set(self) -> bool:
        return monotonic() > self._ends


class Journal:
    """A reporter that keeps everything, and lets a test act in the middle of a copy.

    Args:
        on_progress: Called when chunks of a copy were planned or finished.
        on_change: Called when a table enters another state.
    """

    def __init__(
        self,
        on_progress: Callable[[CopyProgress], None] | None = None,
        on_change: Callable[[TableRecord], None] | None = None,
    ) -> None:
        self.records: list[TableRecord] = []
        self.schemas: list[tuple[TableId, str]] = []
        self.notices: list[str] = []
        self.progress: list[CopyProgress] = []
        self.batches: list[BatchReport] = []
        self.waiting: list[str] = []
        self._on_progress = on_progress
        self._on_change = on_change

    def copies(self, table: str | TableId = T) -> int:
        """How often the table was begun to be copied."""
        wanted = table if isinstance(table, TableId) else TableId("public", table)
        begun = [record for record in self.records if record.table == wanted and record.state is TableState.COPYING]
        return len({record.copy_id for record in begun})

    def quarantines(self, table: str = "t") -> int:
        """How often the table was taken out."""
        return sum(record.table.name == table and record.state is TableState.QUARANTINED for record in self.records)

    def replaced(self, table: TableId = T) -> dict[str, int]:
        """Values of the stream that the policy replaced."""
        total: dict[str, int] = {}
        for batch in self.batches:
            for column, count in batch.replaced.get(table, {}).items():
                total[column] = total.get(column, 0) + count
        return total

    def table_changed(self, record: TableRecord) -> None:
        self.records.append(record)
        if self._on_change is not None:
            self._on_change(record)

    def schema_changed(self, table: TableId, schema: TableSchema, what: str) -> None:
        self.schemas.append((table, what))

    def copy_progressed(self, progress: CopyProgress) -> None:
        self.progress.append(progress)
        if self._on_progress is not None:
            self._on_progress(progress)

    def batch_applied(self, batch: BatchReport) -> None:
        self.batches.append(batch)

    def notice(self, message: str) -> None:
        self.notices.append(message)


def after_chunks(scenario, *statements: str, to_the_end: bool = True) -> Journal:
    """A journal that runs the next statement at the source after each finished chunk of a copy.

    Args:
        to_the_end: The copy has to have as many chunks as there are statements.
    """
    waiting = list(statements)

    def act(progress: CopyProgress) -> None:
        if progress.chunks_done and waiting:
            scenario.execute(waiting.pop(0))

    made = Journal(on_progress=act)
    made.waiting = waiting if to_the_end else []
    return made


@contextmanager
def running(scenario, journal: Journal | None = None) -> Iterator[Replicator]:
    """A replicator that is open while the block runs."""
    with scenario.pipeline.replicator(journal or Journal()) as replicator:
        yield replicator


def catch_up(replicator: Replicator) -> None:
    """Copy and catch up, within a minute."""
    stop = Deadline()
    replicator.sync(stop=stop)
    assert not stop.is_set(), f"the sync did not end: {dict(replicator.records)}"


def sync(scenario, journal: Journal | None = None) -> Journal:
    """One process that copies, catches up, and catches up with what was written meanwhile."""
    journal = journal or Journal()
    with running(scenario, journal) as replicator:
        catch_up(replicator)
        catch_up(replicator)
    assert not journal.waiting, "the copy had fewer steps than the test needs"
    return journal


def step_until(replicator: Replicator, reached: Callable[[], Any]) -> None:
    """Single steps until something holds."""
    stop = Deadline()
    while not reached():
        assert not stop.is_set(), f"it did not happen: {dict(replicator.records)}"
        if not replicator.step():
            threading.Event().wait(0.01)


def step_into(replicator: Replicator, table: TableId, state: TableState) -> None:
    """Single steps until the table is in the state."""
    step_until(replicator, lambda: table in replicator.records and replicator.records[table].state is state)


def select(scenario, query: str) -> list[tuple[Any, ...]]:
    """What the destination answers; nobody may have it open."""
    with duckdb.connect(str(scenario.folder / "warehouse.duckdb"), read_only=True) as connection:
        return connection.execute(query).fetchall()


def columns(scenario, table: str = "t", schema: str = "public") -> list[str]:
    """Names of the columns of a table at the destination, without ours."""
    query = (
        "select column_name from duckdb_columns() where schema_name = ? and table_name = ?"
        " and column_name not in ('_CHANGE_TYPE', '_LSN', '_TIMESTAMP', '_UNCHANGED') order by column_index"
    )
    with duckdb.connect(str(scenario.folder / "warehouse.duckdb"), read_only=True) as connection:
        return [name for (name,) in connection.execute(query, [schema, table]).fetchall()]


def parts(scenario, publication: str | None = None, **changes: Any) -> dict[str, Any]:
    """Parts of a config, with a publication that the test keeps itself."""
    if publication is not None:
        changes["source"] = {
            "connection": {"dsn": scenario.dsn},
            "publication": {"name": publication, "create": False},
            "slot": {"name": scenario.pipeline.config.source.slot.name},
        }
    return {"replication": {"refresh_seconds": 0.2, "idle_poll_seconds": 0.02}, **changes}


def publish(scenario, what: str, **changes: Any) -> None:
    """Make the publication ``pub_own`` and use it."""
    scenario.execute(f"create publication pub_own {what}")
    scenario.use(**parts(scenario, "pub_own", **changes))


class Following:
    """A pipeline on its way through statements at the source.

    Either one process that hears of changes from the stream alone, or one process after the other, each of which asks
    the catalogue first.
    """

    def __init__(self, scenario, *, restarts: bool, **settings: Any) -> None:
        self.scenario = scenario
        self.journal = Journal()
        self.restarts = restarts
        self._settings = {**STREAM_ONLY, **settings}
        self._open: Any = None

    def begin(self, *statements: str, **changes: Any) -> None:
        """The first statements, and the first sync."""
        self.scenario.execute(*statements)
        self.use(**changes)
        self.then()

    def use(self, **changes: Any) -> None:
        """Go on with another config."""
        self.close()
        self.scenario.use(**{"replication": self._settings, **changes})

    def then(self, *statements: str) -> None:
        """More statements, and what follows from them."""
        self.scenario.execute(*statements)
        if self._open is None:
            self._open = self.scenario.pipeline.replicator(self.journal)
            self._replicator = self._open.__enter__()
        catch_up(self._replicator)
        if self.restarts:
            self.close()

    def together(self, *statements: str) -> None:
        """More statements, in one transaction, and what follows from them."""
        with self.scenario.source.transaction():
            self.scenario.execute(*statements)
        self.then()

    def close(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None

    def end(self, *tables: str, copies: int | None = None) -> None:
        """A last process looks at everything; then both sides are equal, and no table was copied more often."""
        self.close()
        sync(self.scenario, self.journal)
        states = [record.state for record in self.scenario.pipeline._store.tables().values()]
        assert TableState.QUARANTINED not in states, [(r.table, r.reason) for r in self.journal.records if r.reason]
        self.scenario.assert_equal(*tables)
        if copies is not None:
            reasons = [record.reason for record in self.journal.records if record.reason]
            assert {table: self.journal.copies(table) for table in tables} == dict.fromkeys(tables, copies), reasons


RUNNER = """
import sys
from pathlib import Path
from etl_dagster.pipeline import Pipeline
pipeline = Pipeline.load(Path(sys.argv[1]))
class Tells:
    def __getattr__(self, name): return lambda *arguments: None
    def batch_applied(self, batch): print("batch", flush=True)
    def table_changed(self, record): print(record.table.name, record.state, flush=True)
class Never:
    def is_set(self): return False
with pipeline.replicator(Tells(), wait_seconds=30) as replicator:
    print("running", flush=True)
    replicator.follow(stop=Never())
"""


@contextmanager
def process(scenario, folder: Path, **changes: Any) -> Any:
    """A process that follows; it is killed at the end of the block. Gives a function that waits for what it says."""
    path = written_config(scenario, folder, **changes)
    scenario.pipeline.close()
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, str(path)], stdout=subprocess.PIPE, text=True)
    assert runner.stdout is not None
    lines = iter(runner.stdout.readline, "")
    silence = threading.Timer(DEADLINE_SECONDS, runner.kill)
    silence.start()
    try:
        yield lambda wanted: next(line for line in lines if wanted in line)
    finally:
        silence.cancel()
        runner.send_signal(signal.SIGKILL)
        runner.wait()
        runner.stdout.close()


def written_config(scenario, folder: Path, **changes: Any) -> Path:
    """The pipeline's config in a file, for a process of its own."""
    config = {
        "name": "test",
        "source": {
            "connection": {"dsn": scenario.dsn},
            "publication": {"name": "pub_test", "schemas": ["public"]},
            "slot": {"name": scenario.pipeline.config.source.slot.name},
        },
        "destination": {"type": "duckdb", "path": str(scenario.folder / "warehouse.duckdb")},
        "store": {"type": "sqlite", "path": str(scenario.folder / "state.sqlite")},
        **parts(scenario, **changes),
    }
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


MEASURED = """
import json, sys, time
from pathlib import Path
from etl_dagster.pipeline import Pipeline
from etl_dagster.replication import RunSummary
pipeline = Pipeline.load(Path(sys.argv[1]))
summary = RunSummary()
began = time.monotonic()
with pipeline.replicator(summary) as replicator:
    entered = time.monotonic()
    replicator.sync()
    synced = time.monotonic()
ended = time.monotonic()
[peak] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(json.dumps({"enter": entered - began, "sync": synced - entered, "exit": ended - synced,
    "peak_mb": int(peak.split()[1]) // 1024, "quarantined": [r.reason for r in summary.quarantined.values()]}))
"""


def measured_sync(scenario, folder: Path, **changes: Any) -> dict[str, Any]:
    """Copy and catch up in a process of its own; seconds to enter, to sync and to exit, and its peak memory in MB."""
    path = written_config(scenario, folder, **changes)
    scenario.pipeline.close()
    command = [sys.executable, "-c", MEASURED, str(path)]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=1.5 * DEADLINE_SECONDS).stdout
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    assert not found["quarantined"], found
    return found


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Say how long the block took, in the output of the test."""
    began = monotonic()
    yield
    print(f"{what}: {monotonic() - began:.1f} s")
