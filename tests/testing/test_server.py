"""The server that all other tests stand on."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest

from etl_dagster.testing import server as server_module
from etl_dagster.testing.server import PortTakenError, PostgresServer, ServerError

SMALL = {"shared_buffers": "16MB", "max_connections": "20"}


@pytest.fixture(scope="module")
def initialised() -> Iterator[Path]:
    """A data folder that was initialised and stopped once; its path holds a space."""
    home = server_module._temporary_folder()
    home.chmod(0o755)
    folder = home / "with a space"
    PostgresServer(folder, settings=SMALL).start().stop()
    yield folder
    shutil.rmtree(home)


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def answer(server: PostgresServer, question: str) -> str:
    with psycopg.connect(server.dsn) as connection:
        cursor = connection.execute(question)
        while cursor.nextset():
            continue
        row = cursor.fetchone()
    assert row is not None
    return str(row[0])


def test_a_server_in_a_folder_with_a_space_keeps_its_data_over_a_restart(initialised: Path) -> None:
    with PostgresServer(initialised, settings=SMALL) as server:
        assert answer(server, "create table kept as values (42); select 1") == "1"
    with PostgresServer(initialised, settings=SMALL) as server:
        assert answer(server, "select column1 from kept") == "42"


def test_it_is_a_replication_source(initialised: Path) -> None:
    with PostgresServer(initialised, settings=SMALL | {"max_prepared_transactions": "7"}) as server:
        assert answer(server, "show wal_level") == "logical"
        assert answer(server, "show max_prepared_transactions") == "7"


def test_a_server_that_crashed_starts_again(initialised: Path) -> None:
    server = PostgresServer(initialised, settings=SMALL).start()
    server.stop(mode="immediate")
    assert server.pid is None
    with server:
        assert answer(server, "select 1") == "1"


def test_stopping_twice_is_harmless_and_starting_twice_is_refused(initialised: Path) -> None:
    with PostgresServer(initialised, settings=SMALL) as server:
        with pytest.raises(ServerError, match="already running"):
            server.start()
        server.stop()
        server.stop()


def test_a_port_that_was_taken_in_the_meantime_is_replaced(initialised: Path) -> None:
    server = PostgresServer(initialised, settings=SMALL)
    with taken_port() as port:
        server.port = port
        with server:
            assert server.port != port
            assert answer(server, "show port") == str(server.port)


def test_a_port_that_was_asked_for_is_never_replaced(initialised: Path) -> None:
    with taken_port() as port, pytest.raises(PortTakenError, match=str(port)):
        PostgresServer(initialised, port=port, settings=SMALL).start()


def test_a_setting_that_the_server_refuses_is_told(initialised: Path) -> None:
    with pytest.raises(ServerError, match="no_such_setting"):
        PostgresServer(initialised, settings={"no_such_setting": "1"}).start()


def test_a_temporary_server_leaves_neither_folder_nor_process() -> None:
    with PostgresServer.temporary(settings=SMALL) as server:
        assert server.pid is not None
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    assert not server.folder.exists()
    gone, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    assert len(gone) == len(family)


def test_a_temporary_server_that_cannot_start_leaves_no_folder() -> None:
    server = PostgresServer.temporary(settings={"no_such_setting": "1"})
    with pytest.raises(ServerError), server:
        pass
    assert not server.folder.exists()


def test_the_server_ends_when_its_parent_is_killed(initialised: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from etl_dagster.testing.server import PostgresServer\n"
        "server = PostgresServer(Path(sys.argv[1]), settings={'shared_buffers': '16MB'}, die_with_parent=True)\n"
        "print(server.start().pid, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(initialised)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        _, alive = psutil.wait_procs([server], timeout=30)
    assert alive == []


def test_the_service_user_gets_a_copy_of_programs_it_cannot_reach(tmp_path: Path) -> None:
    """A virtual environment below a private home directory, as root; anybody else runs the programs in place."""
    here = server_module.wheel_bindir()
    account = pwd.getpwuid(os.geteuid()) if os.geteuid() else pwd.getpwnam("nobody")
    package = tmp_path / "etl_private_package"
    (package / "bin").mkdir(parents=True)
    (package / "bin" / "postgres").symlink_to(here / "postgres")
    tmp_path.chmod(0o700)
    copied = server_module._public_copy(package, f"etl-dagster-test-{os.getpid()}")
    try:
        assert server_module._public_copy(package, copied.name) == copied
        assert (copied / package.name / "bin" / "postgres").is_symlink()
        assert server_module._run_as(account if os.geteuid() == 0 else None, "test", "-x", str(copied))
    finally:
        shutil.rmtree(copied)


def test_variables_of_other_servers_do_not_reach_ours(initialised: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGDATA", "/nonexistent")
    monkeypatch.setenv("PGPORT", "1")
    with PostgresServer(initialised, settings=SMALL) as server:
        assert answer(server, "show data_directory") == str(initialised)
