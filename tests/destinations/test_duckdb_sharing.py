"""One DuckDB file and several processes: everyone has a turn, and who waits says for whom."""

from __future__ import annotations

import gc
import logging
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
import yaml

from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.duckdb import DuckDbConfig, DuckDbDestination, file, open_reader, sharing
from etl_dagster.errors import DestinationError, ErrorKind
from etl_dagster.model import CopyTarget, Lsn, Route, TableEvents, TableSchema
from etl_dagster.pipeline import Pipeline
from etl_dagster.testing.change_script import Insert, events, make_batch, make_table, raw_changes, rows_batch
from etl_dagster.testing.destination_contract import chunk, content, copied

READER = """
import sys, duckdb
from etl_dagster.destinations.duckdb import open_reader
print("waits for its turn", flush=True)
with open_reader(sys.argv[1]) as connection:
    print(connection.execute("SELECT count(*) FROM shop.orders").fetchall()[0][0], flush=True)
    sys.stdin.readline()
"""
CROWD = """
import sys, threading, time
from etl_dagster.destinations.duckdb import open_reader
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), ended.set()), daemon=True).start()
said = False
while not ended.is_set():
    with open_reader(sys.argv[1]):
        if not said:
            print("reading", flush=True)
        said = True
        time.sleep(0.3)
"""
WRITER = """
import sys
from time import monotonic
from etl_dagster.destinations.duckdb import DuckDbConfig, DuckDbDestination
from etl_dagster.testing.change_script import Insert, events, make_batch, make_table
from etl_dagster.testing.destination_contract import copied
destination = DuckDbDestination(DuckDbConfig(path=sys.argv[1], share_seconds=0))
table = make_table(sys.argv[2])
destination.startup(sys.argv[2])
copied(destination, table, [], copy_id=sys.argv[2])
destination.rest(idle=False)
print("ready", flush=True)
sys.stdin.readline()
for number in range(1, 9):
    destination.write_events(make_batch(100 * number, [[events(table, Insert(100 * number - 50, (number, "v", "V")))]]))
    print(monotonic(), flush=True)
    destination.rest(idle=False)
destination.shutdown()
"""
HOLDER = """
import sys
from etl_dagster.destinations.duckdb import DuckDbConfig, DuckDbDestination
destination = DuckDbDestination(DuckDbConfig(path=sys.argv[1]))
destination.startup()
print("held", flush=True)
sys.stdin.readline()
"""
FOLLOWER = """
import logging, sys, threading
from pathlib import Path
from etl_dagster.pipeline import Pipeline
logging.basicConfig(level=logging.WARNING, format="%(message)s")
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
Pipeline.load(Path(sys.argv[1])).follow(stop)
"""


class Process:
    """A Python program in a process of its own."""

    def __init__(self, code: str, *arguments: str, errors: int | None = None) -> None:
        pipe = subprocess.PIPE
        self._popen = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdin=pipe, stdout=pipe, stderr=errors, text=True
        )
        self.pid = self._popen.pid

    def line(self) -> str:
        """The next line that it prints."""
        assert self._popen.stdout is not None
        return self._popen.stdout.readline().strip()

    def lines_of_errors(self) -> Iterator[str]:
        """What it writes to standard error."""
        assert self._popen.stderr is not None
        return iter(self._popen.stderr)

    def go_on(self) -> None:
        """Send it a line."""
        assert self._popen.stdin is not None
        self._popen.stdin.write("\n")
        self._popen.stdin.flush()

    def end(self) -> None:
        """Let it end by itself."""
        self.go_on()
        assert self._popen.wait(60) == 0

    def kill(self) -> None:
        """End it at once."""
        self._popen.kill()
        self._popen.wait()
        for stream in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            if stream is not None:
                stream.close()


Start = Callable[..., Process]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts processes that end with the test."""
    started: list[Process] = []

    def process(code: str, *arguments: str, errors: int | None = None) -> Process:
        started.append(Process(code, *arguments, errors=errors))
        return started[-1]

    yield process
    for each in started:
        each.kill()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "it.duckdb")


@contextmanager
def opened(path: str, **settings: Any) -> Iterator[DuckDbDestination]:
    """A destination that lets go of the file whenever it may."""
    destination = DuckDbDestination(DuckDbConfig(path=path, **{"share_seconds": 0, **settings}))
    destination.startup()
    try:
        yield destination
    finally:
        destination.shutdown()


@pytest.fixture
def destination(path: str) -> Iterator[DuckDbDestination]:
    with opened(path) as destination:
        yield destination


@pytest.fixture
def table(destination: DuckDbDestination) -> TableSchema:
    table = make_table()
    copied(destination, table, [(1, "a", "A")])
    return table


@contextmanager
def whenever(text: str, act: Callable[[], None]) -> Iterator[list[str]]:
    """Act once the file's log says so; collects what it says."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())
            if text in said[-1]:
                act()

    listener = Listener()
    file.logger.addHandler(listener)
    try:
        yield said
    finally:
        file.logger.removeHandler(listener)


def insert(destination: DuckDbDestination, table: TableSchema, number: int) -> None:
    change = events(table, Insert(100 * number - 50, (number, "v", "V")))
    destination.write_events(make_batch(100 * number, [[change]]))


class Gate:
    """The batches of a chunk that is being staged until the gate is opened."""

    def __init__(self, table: TableSchema, key: int) -> None:
        self._batch = rows_batch(table, [(key, "staged", "S")])
        self.begun = threading.Event()
        self.open = threading.Event()

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        self.begun.set()
        assert self.open.wait(60)
        yield self._batch


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def generous(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies let go whenever they are asked to, whatever it costs them."""
    monkeypatch.setattr(sharing, "_WORK_PER_COST", 0)


def staging(pool: ThreadPoolExecutor, destination: DuckDbDestination, target: CopyTarget, gate: Gate) -> Future[int]:
    """One chunk on its way."""
    number = str(id(gate))
    return pool.submit(destination.write_table_rows, target, replace(chunk(target.table, number, []), batches=gate))


# -- turns ------------------------------------------------------------------------------------------------------------


def test_a_file_at_rest_can_be_read_and_written_by_others(
    destination: DuckDbDestination, table: TableSchema, path: str
) -> None:
    destination.rest(idle=True)
    with duckdb.connect(path, read_only=True) as reader:
        assert reader.execute("SELECT id FROM shop.orders").fetchall() == [(1,)]
    with duckdb.connect(path) as writer:
        writer.execute("CREATE TABLE notes AS SELECT 42 AS x")
    insert(destination, table, 2)
    assert [row[0] for row in content(destination, table)] == [1, 2]


def test_the_file_stays_open_between_changes_that_follow_each_other(path: str) -> None:
    with opened(path, share_seconds=3600) as destination:
        destination.rest(idle=False)
        destination.rest(idle=True)
        assert destination._client is not None


def test_the_file_is_let_go_when_nothing_comes_for_a_moment(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "IDLE_SECONDS", 0)
    with opened(path, share_seconds=3600) as destination:
        destination.rest(idle=False)
        assert destination._client is not None
        destination.rest(idle=True)
        assert destination._client is None


def test_a_file_that_is_never_shared_stays_open(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "IDLE_SECONDS", 0)
    with opened(path, share_seconds=None) as destination:
        destination.rest(idle=True)
        assert destination._client is not None


def test_a_writer_waits_for_a_reader_and_says_so(
    destination: DuckDbDestination, table: TableSchema, path: str, start: Start
) -> None:
    destination.rest(idle=True)
    reader = start(READER, path)
    assert [reader.line(), reader.line()] == ["waits for its turn", "1"]
    with whenever("Waiting", reader.end) as said:
        insert(destination, table, 2)
    assert f"(PID {reader.pid})" in said[0]
    assert "slot keeps their WAL" in said[0]
    assert [row[0] for row in content(destination, table)] == [1, 2]


def test_a_reader_that_never_ends_makes_the_destination_unavailable(path: str, start: Start) -> None:
    with opened(path, lock_timeout_seconds=0) as destination:
        table = make_table()
        copied(destination, table, [(1, "a", "A")])
        destination.rest(idle=True)
        reader = start(READER, path)
        assert [reader.line(), reader.line()] == ["waits for its turn", "1"]
        with pytest.raises(DestinationError, match=rf"PID {reader.pid}.*WAL.*open_reader") as caught:
            insert(destination, table, 2)
        assert caught.value.kind is ErrorKind.DESTINATION_UNAVAILABLE
        reader.kill()
        insert(destination, table, 2)
        assert [row[0] for row in content(destination, table)] == [1, 2]


def test_two_processes_write_one_file_in_turns(path: str, start: Start) -> None:
    writers = [start(WRITER, path, name) for name in ("one", "two")]
    assert [writer.line() for writer in writers] == ["ready", "ready"]
    for writer in writers:
        writer.go_on()
    times = [[float(writer.line()) for _ in range(8)] for writer in writers]
    assert max(times[0][0], times[1][0]) < min(times[0][-1], times[1][-1]), "one has waited for the other's end"
    for name in ("one", "two"):
        with opened(path) as destination:
            assert [row[0] for row in content(destination, make_table(name))] == list(range(1, 9))


def test_a_killed_process_frees_the_file(path: str, start: Start) -> None:
    holder = start(HOLDER, path)
    assert holder.line() == "held"
    with whenever("Waiting", holder.kill) as said, opened(path) as destination:
        assert destination.positions() == {}
    assert f"PID {holder.pid}" in said[0]


# -- readers ----------------------------------------------------------------------------------------------------------


def test_a_reader_waits_for_its_turn(
    destination: DuckDbDestination, table: TableSchema, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "NOTICE_EVERY_SECONDS", 0.1)
    with (
        whenever("lets go between batches", lambda: destination.rest(idle=True)) as said,
        open_reader(path) as reader,
    ):
        assert reader.execute("SELECT id FROM shop.orders").fetchall() == [(1,)]
    assert "this process itself" in said[0]
    with pytest.raises(duckdb.InvalidInputException):
        open_reader(path).execute("DELETE FROM shop.orders")


def test_a_reader_is_told_who_keeps_it_waiting(path: str, start: Start) -> None:
    holder = start(HOLDER, path)
    holder.line()
    with pytest.raises(DestinationError, match=f"PID {holder.pid}") as caught:
        open_reader(path, timeout_seconds=0)
    assert caught.value.kind is ErrorKind.DESTINATION_UNAVAILABLE


def test_readers_who_are_always_there_stand_back_for_a_writer(
    path: str, start: Start, destination: DuckDbDestination, table: TableSchema
) -> None:
    destination.shutdown()
    readers = [start(CROWD, path) for _ in range(4)]
    for reader in readers:
        assert reader.line() == "reading"
    destination.startup()
    copied(destination, table, [(2, "n", "b")], copy_id="again")
    destination.shutdown()
    for reader in readers:
        reader.end()


def test_a_file_that_is_not_there_cannot_be_read(path: str) -> None:
    with pytest.raises(DestinationError, match="does not exist"):
        open_reader(path)


def test_a_connection_of_our_own_process_is_waited_for(
    destination: DuckDbDestination, table: TableSchema, path: str
) -> None:
    destination.rest(idle=True)
    reader = duckdb.connect(path, read_only=True)
    with whenever("Waiting", reader.close) as said:
        insert(destination, table, 2)
    assert "this process itself" in said[0]


# -- long copies ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("generous")
def test_a_reader_gets_in_while_several_threads_copy(
    destination: DuckDbDestination, table: TableSchema, path: str, pool: ThreadPoolExecutor, start: Start
) -> None:
    target = CopyTarget(table, "c1")
    destination.truncate_table(target)
    first, second, third = (Gate(table, key) for key in (1, 2, 3))
    running = [staging(pool, destination, target, gate) for gate in (first, second)]
    assert first.begun.wait(60)
    assert second.begun.wait(60)
    destination.rest(idle=False)
    waiting = staging(pool, destination, target, third)
    insert(destination, table, 5)  # the stream does not wait for chunks
    reader = start(READER, path)
    assert reader.line() == "waits for its turn"
    first.open.set()
    assert running[0].result(60) == 1
    assert not third.begun.is_set()
    second.open.set()
    assert running[1].result(60) == 1
    assert reader.line() == "2"
    assert not third.begun.is_set()
    third.open.set()
    reader.end()
    assert waiting.result(60) == 1
    assert destination.finish_copy(target, Lsn(500)).rows == 3


def test_a_copy_does_not_let_go_for_as_long_as_it_would_cost_much(
    destination: DuckDbDestination, table: TableSchema, pool: ThreadPoolExecutor
) -> None:
    target = CopyTarget(table, "c1")
    destination.truncate_table(target)
    gates = [Gate(table, key) for key in (1, 2)]
    running = [staging(pool, destination, target, gates[0])]
    assert gates[0].begun.wait(60)
    destination.rest(idle=False)
    running.append(staging(pool, destination, target, gates[1]))
    assert gates[1].begun.wait(60)
    for gate in gates:
        gate.open.set()
    assert [each.result(60) for each in running] == [1, 1]


@pytest.mark.usefixtures("generous")
def test_who_uses_the_file_already_does_not_wait(
    destination: DuckDbDestination, table: TableSchema, pool: ThreadPoolExecutor
) -> None:
    target = CopyTarget(table, "c1")
    destination.truncate_table(target)
    gate = Gate(table, 1)
    running = staging(pool, destination, target, gate)
    assert gate.begun.wait(60)
    reader = destination.read_table(table)
    destination.rest(idle=False)
    assert destination.write_table_rows(target, chunk(table, "own", [(2, "b", "B")])) == 1
    gate.open.set()
    assert running.result(60) == 1
    assert destination._client is not None
    assert reader.read_all().num_rows == 1
    assert destination._client is None, "the last use has ended"


@pytest.mark.usefixtures("generous")
def test_a_forgotten_reader_does_not_stop_a_copy(
    destination: DuckDbDestination, table: TableSchema, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "_PATIENCE_SECONDS", 0.1)
    target = CopyTarget(table, "c1")
    destination.truncate_table(target)
    gates = [Gate(table, key) for key in (1, 2)]
    running = staging(pool, destination, target, gates[0])
    assert gates[0].begun.wait(60)
    forgotten = destination.read_table(table)
    destination.rest(idle=False)
    waiting = staging(pool, destination, target, gates[1])
    for gate in gates:
        gate.open.set()
    assert [running.result(60), waiting.result(60)] == [1, 1]
    forgotten.close()


def test_a_reader_that_nobody_reads_ends_with_its_last_reference(
    destination: DuckDbDestination, table: TableSchema
) -> None:
    unread = destination.read_table(table)
    destination.rest(idle=True)
    assert destination._client is not None
    del unread
    gc.collect()
    destination.rest(idle=True)
    assert destination._client is None


def test_a_held_log_keeps_the_file_open_while_it_is_read(destination: DuckDbDestination, table: TableSchema) -> None:
    destination.hold_table(table)
    held = TableEvents(table, held=raw_changes((20, b"I", None), (20, b"D", None)))
    destination.write_events(make_batch(100, [[held]], {table: Route(live=False, held=True)}))
    reading = destination.read_held(table)
    assert len(next(reading)) == 2
    destination.rest(idle=True)
    assert destination._client is not None
    assert list(reading) == []
    destination.rest(idle=True)
    assert destination._client is None


# -- what it finds when it comes back ---------------------------------------------------------------------------------


def test_the_memory_that_was_needed_is_given_again(destination: DuckDbDestination) -> None:
    with destination._file.use() as client:
        client.make_room(200)
        needed = client.memory
    destination.rest(idle=True)
    with destination._file.use() as client:
        assert client.memory == needed > destination.config.memory_limit_bytes
        limit = "SELECT value FROM duckdb_settings() WHERE name = 'memory_limit'"
        assert client.main.rows(limit) == [(f"{needed / 2**20:.1f} MiB",)]


def test_a_file_that_was_removed_meanwhile_is_not_made_anew(
    destination: DuckDbDestination, table: TableSchema, path: str
) -> None:
    destination.rest(idle=True)
    Path(path).unlink()
    with pytest.raises(DestinationError, match="is gone"):
        insert(destination, table, 2)
    assert not Path(path).exists()


def test_an_older_file_put_in_its_place_is_noticed(
    destination: DuckDbDestination, table: TableSchema, path: str
) -> None:
    destination.rest(idle=True)
    shutil.copy(path, f"{path}.backup")
    insert(destination, table, 2)
    destination.rest(idle=True)
    shutil.copy(f"{path}.backup", path)
    for _ in range(2):
        with pytest.raises(DestinationError, match="older than we left it"):
            insert(destination, table, 3)
    destination.shutdown()
    destination.startup()
    assert destination.positions() == {table.id: Lsn(10)}


# -- pipelines --------------------------------------------------------------------------------------------------------


class Source:
    """A source database, and pipelines from it into one file."""

    def __init__(self, dsn: str, folder: Path, connection: Any) -> None:
        self._dsn = dsn
        self._folder = folder
        self._connection = connection
        self.path = str(folder / "it.duckdb")

    def configured(self, name: str) -> Path:
        """The config of a pipeline that replicates one table, which is made."""
        self._connection.execute(f"CREATE TABLE {name} (id bigint PRIMARY KEY)")
        config = {
            "name": name,
            "source": {
                "connection": {"dsn": self._dsn},
                "publication": {"name": f"pub_{name}", "tables": [f"public.{name}"]},
                "slot": {"name": f"{name}_{self._dsn.rsplit('/', 1)[-1].partition('?')[0]}"},
            },
            "destination": {"type": "duckdb", "path": self.path, "share_seconds": 0.5},
            "store": {"type": "sqlite", "path": str(self._folder / f"{name}.sqlite")},
            "replication": {"idle_poll_seconds": 0.02},
        }
        made = self._folder / f"{name}.yaml"
        made.write_text(yaml.safe_dump(config))
        PipelineConfig.model_validate(config)
        return made

    def add(self, table: str, key: int) -> None:
        """One row more."""
        self._connection.execute(f"INSERT INTO {table} VALUES ({key})")

    def sync(self, config: Path) -> None:
        """Copy and catch up."""
        pipeline = Pipeline.load(config)
        with pipeline.replicator(wait_seconds=30) as replicator:
            replicator.sync()
        pipeline.close()

    def read(self, table: str) -> int:
        """Rows at the destination."""
        with open_reader(self.path) as reader:
            return int(reader.execute(f"SELECT count(*) FROM public.{table}").fetchall()[0][0])


@pytest.fixture
def source(database: str, tmp_path: Path, connect: Any) -> Source:
    return Source(database, tmp_path, connect())


class Traffic:
    """Rows that are added to a table all the time."""

    def __init__(self, source: Source, *tables: str) -> None:
        self._source = source
        self._tables = tables
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.rows = 0

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            self.rows += 1
            for table in self._tables:
                self._source.add(table, self.rows)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_readers_open_the_file_between_the_batches_of_a_pipeline(source: Source, start: Start) -> None:
    config = source.configured("moves")
    source.sync(config)
    follower = start(FOLLOWER, str(config))
    with Traffic(source, "moves") as traffic:
        seen = [0]
        while len(seen) < 4:
            found = source.read("moves")
            assert found >= seen[-1]
            if found > seen[-1]:
                seen.append(found)
    follower.end()
    source.sync(config)
    assert source.read("moves") == traffic.rows


def test_a_pipeline_waits_for_a_reader_and_loses_nothing(source: Source, start: Start) -> None:
    config = source.configured("moves")
    source.sync(config)
    follower = start(FOLLOWER, str(config), errors=subprocess.PIPE)
    reader = start(READER.replace("shop.orders", "public.moves"), source.path)
    assert [reader.line(), reader.line()] == ["waits for its turn", "0"]
    with Traffic(source, "moves") as traffic:
        said = next(line for line in follower.lines_of_errors() if "Waiting" in line)
        assert f"PID {reader.pid}" in said
        reader.end()
        while source.read("moves") == 0:
            pass
    follower.end()
    source.sync(config)
    assert source.read("moves") == traffic.rows


def test_two_pipelines_in_two_processes_share_a_file(source: Source, start: Start) -> None:
    configs = [source.configured(name) for name in ("one", "two")]
    followers = [start(FOLLOWER, str(config)) for config in configs]
    for config in configs:
        source.sync(config)
    with Traffic(source, "one", "two") as traffic:
        seen = {"one": 0, "two": 0}
        while min(seen.values()) < 20:
            seen = {name: source.read(name) for name in seen}
    for follower in followers:
        follower.end()
    for config, name in zip(configs, seen, strict=True):
        source.sync(config)
        assert source.read(name) == traffic.rows
