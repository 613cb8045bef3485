"""The demo as its users run it, in small."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests.cli.conftest import CommandLine, wait_until

DEMO_SECONDS = 200.0


def processes_of(folder: Path) -> list[int]:
    """Everything whose command line or working directory is in the folder, zombies left out."""
    entries = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit() and entry.name != str(os.getpid())]
    return [int(entry.name) for entry in entries if _belongs(entry, str(folder))]


def _belongs(process: Path, folder: str) -> bool:
    try:
        command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return folder in command or str((process / "cwd").readlink()).startswith(folder)
    except OSError:
        return False


@pytest.fixture
def demo(cli: CommandLine) -> CommandLine:
    """In a folder with a space, whose every process has to be gone in the end."""
    folder = cli.folder / "my demos"
    folder.mkdir()
    return CommandLine(folder)


def test_the_demo_replicates_compares_and_leaves_nothing_running(demo: CommandLine) -> None:
    result = demo("demo", "--rows", 3000, "--seconds", 3, "--rate", 300, timeout=DEMO_SECONDS)
    assert result.code == 0, result.out + result.err
    assert "Source and destination are equal." in result.out
    for table in ("customers", "products", "orders", "order_items", "payments", "stock", "promotions"):
        assert f"shop.{table}" in result.out
    assert " 0 failed" in result.out
    assert "\x1b" not in result.out
    assert (demo.folder / ".demo" / "warehouse.duckdb").exists()
    wait_until(lambda: processes_of(demo.folder) == [])


def test_with_the_ui_the_demo_stays_until_it_is_stopped_and_finds_a_free_port(demo: CommandLine) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        process = demo.start("demo", "--ui", "--port", taken, "--rows", 1000, "--seconds", 1)
        address = wait_for_address(process)
    assert not address.endswith(f":{taken}")
    with urllib.request.urlopen(f"{address}/server_info", timeout=30) as answer:
        assert answer.status == 200
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0
    wait_until(lambda: processes_of(demo.folder) == [])


def wait_for_address(process: subprocess.Popen[str]) -> str:
    """Read what the demo says until it names the address."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Dagster: "):
            return line.split()[1]
    raise AssertionError(process.communicate()[1])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_demo_that_is_stopped_or_killed_leaves_nothing_running(
    demo: CommandLine, number: signal.Signals, code: int
) -> None:
    process = demo.start("demo", "--rows", 1000)
    assert process.stdout is not None
    assert any("Dagster is starting" in line for line in process.stdout)
    wait_until(lambda: len(processes_of(demo.folder)) > 2)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    wait_until(lambda: processes_of(demo.folder) == [], seconds=120)
