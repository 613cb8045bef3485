"""SIGKILL at random moments under traffic: afterwards both sides are equal, nothing lost, nothing twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import yaml

from tests.replication.traffic import TABLES

KILLS = int(os.environ.get("ETL_TEST_KILLS", "50"))
RUNNER = """
import sys
from pathlib import Path
from etl_dagster.pipeline import Pipeline
pipeline = Pipeline.load(Path(sys.argv[1]))
class Never:
    def is_set(self): return False
with pipeline.replicator(wait_seconds=30) as replicator:
    print("running", flush=True)
    replicator.follow(stop=Never())
"""


def _write_config(scenario, path: Path) -> None:
    config = {
        "name": "test",
        "source": {
            "connection": {"dsn": scenario.dsn},
            "publication": {"name": "pub_test", "schemas": ["public"]},
            "slot": {"name": scenario.pipeline.config.source.slot.name},
        },
        "destination": {"type": "duckdb", "path": str(scenario.folder / "warehouse.duckdb")},
        "store": {"type": "sqlite", "path": str(scenario.folder / "state.sqlite")},
        "replication": {
            "refresh_seconds": 0.2,
            "idle_poll_seconds": 0.01,
            "chunk_bytes": 65536,
            "piece_bytes": 65536,
            "min_window_changes": 50,
            "max_window_changes": 2000,
        },
    }
    path.write_text(yaml.safe_dump(config))


def test_kills_at_random_moments_lose_nothing_and_repeat_nothing(scenario, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**31)
    dice = random.Random(seed)
    scenario.execute(TABLES)
    config = tmp_path / "pipeline.yaml"
    _write_config(scenario, config)
    traffic = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("traffic.py")), scenario.dsn, str(seed)], stdout=subprocess.PIPE
    )
    assert traffic.stdout is not None
    traffic.stdout.readline()
    try:
        for number in range(KILLS):
            runner = subprocess.Popen([sys.executable, "-c", RUNNER, str(config)], stdout=subprocess.PIPE)
            assert runner.stdout is not None
            # Some die while they begin, the others at any moment of their work.
            if dice.random() < 0.8:
                runner.stdout.readline()
            time.sleep(dice.random() * 0.6)
            if dice.random() < 0.3:
                scenario.pipeline.close()
                records = scenario.pipeline._store.tables()
                if records:
                    scenario.pipeline.request_resync(dice.choice(sorted(records)))
            assert runner.poll() is None, f"seed {seed}: the process ended by itself before kill {number}"
            runner.send_signal(signal.SIGKILL)
            runner.wait()
            runner.stdout.close()
    finally:
        traffic.kill()
        traffic.wait()
        traffic.stdout.close()
    with scenario.pipeline.replicator(wait_seconds=30) as replicator:
        replicator.sync()
    differences = scenario.pipeline.compare()
    found = {table.name: (difference.missing, difference.extra) for table, difference in differences.items()}
    assert found == {"accounts": (0, 0), "moves": (0, 0), "flags": (0, 0)}, f"seed {seed}"
    with psycopg.connect(scenario.dsn) as source:
        [(moves,)] = source.execute("select count(*) from moves").fetchall()
    assert moves > 0
