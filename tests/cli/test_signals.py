"""The first signal asks a command to finish, the second ends it at once, also while a long call holds Python up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from etl_dagster.cli.signals import stop_on_signals

ROOT = Path(__file__).parents[2]

# Waits in C for a lock that it holds itself, which no signal interrupts, so Python's own handlers never run.
STUCK = """
import ctypes, sys
from etl_dagster.cli.signals import stop_on_signals
with stop_on_signals():
    libc, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(lock)
    print("ready", flush=True)
    libc.pthread_mutex_lock(lock)
"""


def test_the_first_signal_only_asks() -> None:
    with stop_on_signals() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(10)
        assert stop.signum == signal.SIGTERM


def test_afterwards_signals_do_what_they_did_before() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stop_on_signals():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_the_second_signal_ends_the_process_at_once_even_inside_a_long_call() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert "again to stop at once" in process.stderr.readline()
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 143
