"""SIGKILL between any two calls to BigQuery: afterwards both sides are equal, nothing lost, nothing twice, nothing left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from etl_dagster.model import TableId
from etl_dagster.retry import retry
from etl_dagster.store.base import TableState
from tests.bigquery.traffic import CHOICES, NAMES, TABLES, Traffic
from tests.replication.watching import sync, written_config

if TYPE_CHECKING:
    from tests.bigquery.conftest import BigQueryScenario
    from tests.bigquery.proxy import Call, FaultProxy, Moment

KILLS = int(os.environ.get("ETL_TEST_KILLS", "30"))
# A process that lives longer than this many calls has done everything that it does.
MOST_CALLS = 60
PATIENCE_SECONDS = 60.0
SETTINGS = {
    "refresh_seconds": 0.2,
    "idle_poll_seconds": 0.01,
    "chunk_bytes": 16384,
    "copy_connections": 2,
    "min_window_changes": 50,
    "max_window_changes": 2000,
}
# Is ready before it is needed: whoever starts takes longer to import than to work.
RUNNER = """
import faulthandler, sys
from pathlib import Path
faulthandler.enable()
import etl_dagster.destinations.bigquery.client, google.cloud.bigquery
from etl_dagster.destinations.bigquery import core
from etl_dagster.pipeline import Pipeline
core.CHUNK_BYTES, core.PIECE_BYTES = 16384, 65536
pipeline = Pipeline.load(Path(sys.argv[1]))
class Never:
    def is_set(self): return False
sys.stdin.readline()
pipeline.follow(Never(), wait_seconds=30)
"""


class Killer:
    """Kills a process at one of its calls, before it is forwarded or after it was answered."""

    def __init__(self, process: subprocess.Popen[str], at: int, moment: Moment) -> None:
        self._process = process
        self._left = at
        self.moment = moment
        self._lock = threading.Lock()
        self.call: Call | None = None
        self.done = threading.Event()

    def __call__(self, call: Call, moment: Moment) -> bool:
        with self._lock:
            if moment == self.moment and self.call is None:
                self._left -= 1
                if not self._left:
                    self.call = call
                    self._process.kill()
                    self.done.set()
            return self.call is not None


def test_kills_between_any_two_calls_lose_nothing_and_repeat_nothing(
    far: BigQueryScenario, bigquery_proxy: FaultProxy, tmp_path: Path
) -> None:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    dice = random.Random(seed)
    far.execute(*TABLES)
    parts = {"replication": SETTINGS, "tables": CHOICES}
    through = far.dataset.through(bigquery_proxy).settings() | far.destination(inline_bytes=20_000)
    through["api_endpoint"] = bigquery_proxy.url
    config = written_config(far, tmp_path, destination=through, **parts)
    far.use(**parts)
    spare = _started(config)
    with Traffic(far.dsn, seed).running():
        for number in range(KILLS):
            runner, spare = spare, _started(config)
            killer = Killer(runner, dice.randint(1, MOST_CALLS), dice.choice(("before", "after")))
            with bigquery_proxy.on_call(killer):
                _go(runner)
                _ask(far, dice)
                wait_for(killer, runner, f"seed {seed}: kill {number}")
            print(f"kill {number}: {killer.moment} {_what(bigquery_proxy, killer.call)}")
    spare.kill()
    spare.communicate()
    # What the last process has sent may still be running; who comes next is told that somebody else has written.
    retry(lambda: sync(far), what="the last sync", when=lambda error: "Another process" in str(error))
    assert {name: far.state(name) for name in NAMES} == dict.fromkeys(NAMES, TableState.READY), f"seed {seed}"
    far.assert_equal(*NAMES)
    assert far.select("select id from public_moves group by id having count(*) > 1") == []
    assert far.leftovers() == set()


def wait_for(killer: Killer, runner: subprocess.Popen[str], what: str) -> None:
    """Until the process is dead by the killer's hand; one that hangs says where."""
    ends = time.monotonic() + PATIENCE_SECONDS
    while not killer.done.wait(0.05) and runner.poll() is None:
        if time.monotonic() > ends:
            runner.send_signal(signal.SIGABRT)
    assert runner.stderr is not None
    said = runner.stderr.read()
    runner.stderr.close()
    assert runner.wait() == -signal.SIGKILL, f"{what}: {said}"


# What a script is for, by words that only such a script has.
_SCRIPTS = (
    ("taking over", "lsn = t.lsn + 1"),
    ("conversion", " AS SELECT "),
    ("swap", '\\"finished_rows\\":'),
    ("begin a copy", "CREATE TABLE IF NOT EXISTS"),
    ("columns", "ALTER TABLE"),
    ("merge", "etl_state"),
)


def _what(proxy: FaultProxy, call: Call | None) -> str:
    """What the call was about, for who reads how the test went."""
    assert call is not None
    started = next((each for each in proxy.calls if each.job and each.job_id and each.job_id == call.job_id), call)
    text = started.body.decode(errors="replace")
    script = next((name for name, words in _SCRIPTS if words in text), "") if started.job == "query" else ""
    return f"{call.method} {started.job or call.path.rpartition('/')[2]} {script}"


def _started(config: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUNNER, str(config)], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _go(runner: subprocess.Popen[str]) -> None:
    assert runner.stdin is not None
    runner.stdin.write("\n")
    runner.stdin.close()


def _ask(far: BigQueryScenario, dice: random.Random) -> None:
    """Sometimes have a table copied again, or some of its slices."""
    table = TableId("public", dice.choice(NAMES))
    record = far.pipeline.record(table)
    if record is None or dice.random() < 0.5:
        return
    ready = record.state is TableState.READY
    names = [each.name for each in far.pipeline.plan_slices(table)] if ready and table.name == "sliced" else []
    far.pipeline.request_resync(table, names[1:2] if dice.random() < 0.7 else [])
