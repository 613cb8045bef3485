"""`demo`."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from etl_dagster.cli import render
from etl_dagster.cli.exits import ExitCode
from etl_dagster.cli.logs import start_logging
from etl_dagster.demo.narrator import Narrator
from etl_dagster.demo.run import Demo, DemoOptions
from etl_dagster.demo.summary import show_result


class _Interrupted(SystemExit):
    """A signal asked the demo to end; its code is what the process exits with."""


def run_demo_command(*, folder: Path, rows: int, seconds: float, rate: int, ui: bool, port: int, debug: bool) -> int:
    """Run the demo, and clean up after it however it ends."""
    start_logging(debug=debug)
    options = DemoOptions(folder=folder, rows=rows, seconds=seconds, rate=rate, ui=ui, port=port)
    console = render.results_console()
    with _unwinding_on_signals(), Narrator(console) as narrator:
        demo = Demo(options, narrator)
        with demo.running():
            demo.replicate()
            code = _finish(demo, narrator, console)
    console.print(f"Files: {demo.folder.root}", soft_wrap=True)
    return code


def _finish(demo: Demo, narrator: Narrator, console: Console) -> int:
    if not demo.options.ui:
        demo.dagster.stop()
    result = demo.compare()
    with narrator.paused():
        show_result(console, result)
    if demo.options.ui:
        _stay(demo, narrator, console)
    return ExitCode.OK if result.equal else ExitCode.FAILED


def _stay(demo: Demo, narrator: Narrator, console: Console) -> None:
    """Until Ctrl-C, which is the natural end and therefore no failure."""
    console.print(f"\nDagster: [bold]http://127.0.0.1:{demo.port}[/]   PostgreSQL: {demo.server.dsn}", soft_wrap=True)
    console.print("Slow traffic goes on. Press Ctrl-C to end.")
    narrator.progress("following slow traffic")
    try:
        demo.go_on(threading.Event().wait)
    except (_Interrupted, KeyboardInterrupt):
        narrator.say("Stopping")


@contextmanager
def _unwinding_on_signals() -> Iterator[None]:
    """SIGINT and SIGTERM leave through every clean-up; further ones do not disturb it, and it does not take long."""

    def leave(signum: int, _frame: FrameType | None) -> None:
        for number in former:
            signal.signal(number, signal.SIG_IGN)
        raise _Interrupted(128 + signum)

    former = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
