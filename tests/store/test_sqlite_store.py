"""What only the SQLite store can get wrong: files, other processes, versions."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from etl_dagster.errors import StateError
from etl_dagster.model import TableId
from etl_dagster.store import TableRecord
from etl_dagster.store.sqlite import SqliteStore

ORDERS = TableId("public", "orders")

WRITER = """
import sys
from pathlib import Path
from etl_dagster.model import TableId
from etl_dagster.store import ChunkRecord, TableRecord
from etl_dagster.store.sqlite import SqliteStore

store = SqliteStore(Path(sys.argv[1]), "shop")
store.open()
for n in range(1_000_000):
    store.save_table(TableRecord(table=TableId("public", "orders"), rows=n, copy_id="a"))
    store.add_chunks(TableId("public", "orders"), "a", [ChunkRecord(chunk_id=str(n), relation=1)])
    print(n, flush=True)
"""

OPENER = """
import sys
from pathlib import Path
from etl_dagster.store.sqlite import SqliteStore

sys.stdin.read(1)
store = SqliteStore(Path(sys.argv[1]), "shop")
store.open()
store.close()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(path, "shop")
    store.open()
    yield store
    store.close()


def test_what_was_acknowledged_survives_a_kill(path: Path) -> None:
    for _ in range(5):
        acknowledged = _write_until_killed(path, lines=20)
        store = SqliteStore(path, "shop")
        store.open()
        assert acknowledged <= (store.tables()[ORDERS].rows or 0) <= acknowledged + 1
        assert len(store.chunks("a")) >= acknowledged
        store.close()
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        for file in path.parent.glob("state.sqlite*"):
            file.unlink()


def _write_until_killed(path: Path, lines: int) -> int:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(lines):
            writer.stdout.readline()
        os.kill(writer.pid, signal.SIGKILL)
        rest = writer.stdout.read()
    return int(rest.split("\n")[-2]) if rest.count("\n") else lines - 1


def test_processes_may_open_a_new_file_at_once(path: Path) -> None:
    openers = [
        subprocess.Popen([sys.executable, "-c", OPENER, str(path)], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    results = [opener.communicate(b"x")[1] for opener in openers]
    assert [opener.returncode for opener in openers] == [0] * 4, results


def test_commits_are_synced(store: SqliteStore) -> None:
    connection = store._connection
    assert connection is not None
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_the_last_folder_is_made_but_no_tree_of_folders(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / ".etl" / "shop.sqlite", "shop")
    store.open()
    store.close()
    with pytest.raises(StateError, match=r"folder .* cannot be made: No such file.*Point `store.path`"):
        SqliteStore(tmp_path / "no" / "such" / "shop.sqlite", "shop").open()


def test_a_folder_that_cannot_be_written_is_named() -> None:
    with pytest.raises(StateError, match=r"/proc/self/state.sqlite failed: unable to open .*Point `store.path`"):
        SqliteStore(Path("/proc/self/state.sqlite"), "shop").open()


def test_a_file_in_place_of_the_folder_is_named(path: Path) -> None:
    path.write_text("")
    with pytest.raises(StateError, match=r"cannot be made: File exists"):
        SqliteStore(path / "state.sqlite", "shop").open()


def test_a_file_that_is_no_database_is_left_alone(path: Path) -> None:
    path.write_text("name: shop\n" * 1000)
    with pytest.raises(StateError, match="not a database — The file is something else"):
        SqliteStore(path, "shop").open()
    assert path.read_text().startswith("name: shop")


def test_another_applications_database_is_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE runs (id int)")
        connection.commit()
    with pytest.raises(StateError, match="another application's"):
        SqliteStore(path, "shop").open()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("runs",)]


def test_tables_of_a_newer_version_are_refused(store: SqliteStore, path: Path) -> None:
    store.close()
    _change(path, "INSERT INTO store_version VALUES (99)")
    with pytest.raises(StateError, match=r"version 99, this etl-dagster knows version \d+ — Upgrade"):
        store.open()


def test_a_record_of_a_newer_version_is_refused(store: SqliteStore, path: Path) -> None:
    store.save_table(TableRecord(table=ORDERS))
    for newer in ({"mood": "good"}, {"state": "meditating"}):
        body = TableRecord(table=ORDERS).model_dump(mode="json") | newer
        _change(path, "UPDATE table_records SET body = ?", json.dumps(body))
        with pytest.raises(StateError, match=r"TableRecord that this version cannot read \((mood|state)\).*upgrade"):
            store.tables()


def test_a_record_of_an_older_version_takes_defaults(store: SqliteStore, path: Path) -> None:
    store.save_table(TableRecord(table=ORDERS, live=True, rows=3))
    _change(path, "UPDATE table_records SET body = ?", json.dumps({"table": ["public", "orders"], "state": "ready"}))
    assert store.tables()[ORDERS].live is False
    assert store.tables()[ORDERS].rows is None


def test_a_damaged_record_is_an_error(store: SqliteStore, path: Path) -> None:
    store.save_table(TableRecord(table=ORDERS))
    _change(path, "UPDATE table_records SET body = '{'")
    with pytest.raises(StateError, match=r"cannot read .*backup"):
        store.tables()


def _change(path: Path, statement: str, *parameters: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement, parameters)
        connection.commit()


def test_many_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    for round_ in range(10):
        path, together = tmp_path / f"{round_}.sqlite", threading.Barrier(8)

        def use(path: Path = path, together: threading.Barrier = together) -> int:
            store = SqliteStore(path, "shop")
            together.wait()
            store.open()
            try:
                return len(store.tables())
            finally:
                store.close()

        with ThreadPoolExecutor(8) as pool:
            assert [future.result() for future in [pool.submit(use) for _ in range(8)]] == [0] * 8
