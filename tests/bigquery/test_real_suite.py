"""The suite for Google's BigQuery, which CI cannot run there, works: tried against the emulator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.bigquery.emulator import Emulator

SUITE = Path(__file__).with_name("test_real.py")
# One of each kind: the contract's, values, a look at the setup.
CHOSEN = "TestStream and inserts_updates or every_kind or check_finds"


def test_the_suite_for_the_real_bigquery_runs(bigquery_emulator: Emulator) -> None:
    environment = os.environ | {
        "ETL_TEST_BIGQUERY_PROJECT": bigquery_emulator.project,
        "ETL_TEST_BIGQUERY_ENDPOINT": bigquery_emulator.url,
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(SUITE), "-k", CHOSEN]
    found = subprocess.run(command, check=False, env=environment, stdout=subprocess.PIPE, text=True)
    assert found.returncode == 0, found.stdout
    assert "4 passed" in found.stdout
