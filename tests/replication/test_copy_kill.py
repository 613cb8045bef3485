"""SIGKILL in the middle of parallel copies, whole ones and of slices, under traffic: what was read stays read."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from etl_dagster.store.base import TableRecord, TableState
from tests.replication.traffic import MORE_TABLES, TABLES
from tests.replication.watching import parts, written_config

KILLS = int(os.environ.get("ETL_TEST_KILLS", "50"))
# Follows, and writes down which chunks it begins to read and which it has finished.
RUNNER = """
import os, sys
from pathlib import Path
from etl_dagster.pipeline import Pipeline
from etl_dagster.replication.copying import Copier
journal = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
read = Copier._try_chunk
def watched(self, job, chunk):
    name = f"{job.target.copy_id} {chunk.chunk_id} {len(job.target.slices)}"
    if job.reread is not None:
        return read(self, job, chunk)
    os.write(journal, f"begun {name}\\n".encode())
    found = read(self, job, chunk)
    os.write(journal, f"done {name}\\n".encode())
    return found
Copier._try_chunk = watched
class Never:
    def is_set(self): return False
with Pipeline.load(Path(sys.argv[1])).replicator(wait_seconds=30) as replicator:
    print("running", flush=True)
    replicator.follow(stop=Never())
"""
SETTINGS = {
    "refresh_seconds": 0.2,
    "idle_poll_seconds": 0.01,
    "chunk_bytes": 32768,
    "copy_connections": 3,
    "piece_bytes": 65536,
    "min_window_changes": 50,
    "max_window_changes": 2000,
}
RULES = {
    "public.plain": {"partitions": {"type": "range", "column": "id", "rows": 2000}},
    "public.accounts": {"partitions": {"type": "range", "column": "id", "rows": 500}},
    "public.orders": {"partitions": {"type": "time", "column": "day", "every": "month", "start": "2026-01-01"}},
}


def _ask(scenario, dice: random.Random) -> None:
    """Have one table copied that is not being copied, or some of its slices."""
    scenario.pipeline.close()
    records = scenario.pipeline._store.tables()
    ready: list[TableRecord] = [record for record in records.values() if record.state is TableState.READY]
    if len(ready) < len(records) - 1:
        return
    table = dice.choices(ready, [5 if record.table.name in ("plain", "orders") else 1 for record in ready])[0].table
    names = [each.name for each in scenario.pipeline.plan_slices(table)]
    some = dice.sample(names, dice.randint(1, len(names) - 1)) if len(names) > 1 and dice.random() < 0.5 else []
    scenario.pipeline.request_resync(table, some)


def test_copies_killed_anywhere_go_on_where_they_were(scenario, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**31)
    dice = random.Random(seed)
    scenario.execute(TABLES, MORE_TABLES)
    scenario.use(**parts(scenario, "pub_own", replication=SETTINGS, tables=RULES))
    scenario.execute("create publication pub_own for tables in schema public with (publish_via_partition_root = true)")
    config = written_config(scenario, tmp_path, publication="pub_own", replication=SETTINGS, tables=RULES)
    journal = tmp_path / "journal"
    journal.touch()
    scenario.sync()
    traffic = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("traffic.py")), scenario.dsn, str(seed), "more"],
        stdout=subprocess.PIPE,
    )
    assert traffic.stdout is not None
    traffic.stdout.readline()
    unfinished = 0
    try:
        for number in range(KILLS):
            command = [sys.executable, "-c", RUNNER, str(config), str(journal)]
            runner = subprocess.Popen(command, stdout=subprocess.PIPE)
            assert runner.stdout is not None
            runner.stdout.readline()
            _ask(scenario, dice)
            if dice.random() < 0.8:
                _wait_for_a_chunk(journal)
            time.sleep(dice.random() * 0.5)
            assert runner.poll() is None, f"seed {seed}: the process ended by itself before kill {number}"
            runner.send_signal(signal.SIGKILL)
            runner.wait()
            runner.stdout.close()
            copying = [r for r in scenario.pipeline._store.tables().values() if r.state is TableState.COPYING]
            unfinished += any(_in_the_middle(scenario, record) for record in copying)
    finally:
        traffic.kill()
        traffic.wait()
        traffic.stdout.close()
    # What was written meanwhile is many windows of the size above.
    scenario.use(**parts(scenario, "pub_own", tables=RULES))
    with scenario.pipeline.replicator(wait_seconds=30) as replicator:
        replicator.sync()
    found = {table.name: (each.missing, each.extra) for table, each in scenario.pipeline.compare().items()}
    assert found == dict.fromkeys(("accounts", "moves", "flags", "plain", "orders"), (0, 0)), f"seed {seed}"
    _assert_read_once(journal, seed)
    print(f"{unfinished} of {KILLS} kills were in the middle of a copy")
    assert KILLS < 20 or unfinished >= KILLS / 10


def _wait_for_a_chunk(journal: Path) -> None:
    """Until the process reads something, if it has anything to copy."""
    before, ends = journal.stat().st_size, time.monotonic() + 2
    while journal.stat().st_size == before and time.monotonic() < ends:
        time.sleep(0.01)


def _in_the_middle(scenario, record: TableRecord) -> bool:
    done = [chunk.done for chunk in scenario.pipeline._store.chunks(record.copy_id or "")]
    return any(done) and not all(done)


def _assert_read_once(journal: Path, seed: int) -> None:
    """A chunk that was finished is not begun again."""
    finished: set[str] = set()
    counts: Counter[tuple[str, bool]] = Counter()
    for line in journal.read_text().splitlines():
        what, chunk = line.split(" ", 1)
        if what == "done":
            finished.add(chunk)
        else:
            assert chunk not in finished, f"seed {seed}: read again: {chunk}"
        counts[what, chunk.split()[-1] != "0"] += 1
    print(f"chunks: {dict(counts)}")
