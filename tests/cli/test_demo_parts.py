"""The parts of the demo: its folder, the processes that it starts, the traffic."""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path

import psycopg
import pytest

from etl_dagster.demo.folder import MARKER, DemoFolder
from etl_dagster.demo.processes import Service
from etl_dagster.demo.schema import create_order_system, table_sizes
from etl_dagster.demo.traffic import ACTIONS, COUNTER, OFFICE, WAREHOUSE, Traffic, Worker
from etl_dagster.errors import ConfigError, EtlError, StateError
from tests.cli.conftest import wait_until

ROWS = 2000


def alive(pid: int) -> bool:
    """A process that waits for its parent to read its exit code counts as gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def service(folder: Path, program: str) -> Service:
    command = [sys.executable, "-c", program]
    return Service("It", command, env=os.environ, cwd=folder, log=folder / "it.log", grace_seconds=0.5)


def test_a_folder_that_is_not_the_demos_is_never_emptied(tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    with pytest.raises(ConfigError, match="not made by a demo"), DemoFolder(tmp_path).claimed():
        pass
    assert precious.read_text() == "mine"


def test_the_demos_own_folder_is_emptied_at_the_next_start(tmp_path: Path) -> None:
    folder = DemoFolder(tmp_path / "a folder")
    with folder.claimed():
        folder.write("postgresql://postgres@127.0.0.1:1/postgres")
        assert folder.config.exists()
    with folder.claimed():
        assert [entry.name for entry in folder.root.iterdir()] == [MARKER]


def test_two_demos_in_one_folder_are_refused(tmp_path: Path) -> None:
    with (
        DemoFolder(tmp_path / "demo").claimed(),
        pytest.raises(StateError, match="Another demo is running"),
        DemoFolder(tmp_path / "demo").claimed(),
    ):
        pass


def test_a_service_ends_with_all_that_it_started(tmp_path: Path) -> None:
    program = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.signal(15, signal.SIG_IGN); signal.pause()"])
print(child.pid, flush=True)
time.sleep(1000)
"""
    log = tmp_path / "it.log"
    with service(tmp_path, program) as running:
        wait_until(lambda: log.read_text().endswith("\n"))
        running.check()
        child = int(log.read_text())
        assert alive(child)
    wait_until(lambda: not alive(child))


def test_a_service_that_dies_shows_the_end_of_its_log(tmp_path: Path) -> None:
    failing = service(tmp_path, "raise SystemExit('no such module: shop')")
    with failing, pytest.raises(EtlError, match="no such module: shop"):
        wait_until(lambda: failing.check() is not None)


def test_the_order_system_has_about_the_rows_that_were_asked_for(database: str) -> None:
    create_order_system(database, ROWS)
    with psycopg.connect(database) as connection:
        counts = {
            table: connection.execute(f"select count(*) from shop.{table}").fetchone()
            for table in (*table_sizes(ROWS), "promotions")
        }
        toasted = connection.execute(
            "select pg_relation_size(reltoastrelid) > 0 from pg_class where oid = 'shop.products'::regclass"
        ).fetchone()
    assert {table: count for table, (count,) in counts.items()} == {**table_sizes(ROWS), "promotions": 50}
    assert toasted == (True,)


@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_every_kind_of_traffic_works(database: str, action: str) -> None:
    create_order_system(database, ROWS)
    worker = Worker(database, table_sizes(ROWS), rate=1e6, seed=7, actions={action: 1})
    stop = threading.Event()
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    wait_until(lambda: worker.tally.transactions + worker.tally.rolled_back >= 5)
    stop.set()
    thread.join()
    assert (worker.tally.rolled_back > 0) == (action == "change_mind")
    assert (worker.tally.changes > 0) == (action != "change_mind")


def test_all_kinds_of_traffic_are_in_use() -> None:
    assert COUNTER.keys() | WAREHOUSE.keys() | OFFICE.keys() == ACTIONS.keys()


def test_traffic_keeps_the_rate_and_stops(database: str) -> None:
    create_order_system(database, ROWS)
    traffic = Traffic(database, table_sizes(ROWS), rate=500)
    traffic.start()
    wait_until(lambda: traffic.tally.changes > 500)
    traffic.stop()
    traffic.check()
    done = traffic.tally
    assert done.truncates >= 1
    with psycopg.connect(database) as connection:
        assert connection.execute("select count(*) from shop.promotions").fetchone() == (50,)
    assert traffic.tally == done


def test_traffic_that_fails_says_so(database: str) -> None:
    traffic = Traffic(database, table_sizes(ROWS), rate=500)
    traffic.start()
    with pytest.raises(psycopg.ProgrammingError):
        wait_until(lambda: traffic.check() is not None)
    traffic.stop()


def test_the_ui_gets_another_port_when_its_own_is_taken() -> None:
    from etl_dagster.demo.run import free_port_near

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        assert free_port_near(taken) != taken
    assert free_port_near(taken) == taken
