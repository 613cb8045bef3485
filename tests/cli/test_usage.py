"""What the destination bills, as the command line shows it; and the example's part on such a destination."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path

import pytest

from etl_dagster.cli.example import EXAMPLE
from etl_dagster.cli.render import run_as_json, show_run, show_status
from etl_dagster.config import load_config
from etl_dagster.destinations.bigquery.config import BigQueryConfig, FileCredentials
from etl_dagster.model import Lsn, TableId
from etl_dagster.pipeline import PipelineStatus, TableStatus
from etl_dagster.replication import BatchReport, LogReporter, RunSummary
from etl_dagster.replication.report import merged, told_usage
from etl_dagster.store.base import TableState

ORDERS = TableId("shop", "orders")
USAGE = {"bytes_processed": 9_000_000, "bytes_billed": 10_485_760, "slot_ms": 2500, "queries": 2, "loads": 0}
TOLD = "10.5 MB billed, 2.5 slot seconds, 2 queries"


def batch(changes: int) -> BatchReport:
    return BatchReport(
        Lsn(1), Lsn(2), {ORDERS: changes} if changes else {}, 1, 1, 0.1, 0.1, None, datetime.now(UTC), usage=USAGE
    )


def test_a_batch_says_what_it_took(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("usage")
    with caplog.at_level(logging.INFO):
        LogReporter(log).batch_applied(batch(3))
        LogReporter(log).batch_applied(merged([batch(3), batch(4)]))
    first, both = caplog.messages
    assert first.endswith(f"({TOLD})")
    assert both.endswith("(21.0 MB billed, 5.0 slot seconds, 4 queries)")


def test_nothing_is_said_where_nothing_is_billed() -> None:
    assert told_usage({}) == ""


def test_the_status_says_what_was_billed_so_far(capsys: pytest.CaptureFixture[str]) -> None:
    table = TableStatus(ORDERS, TableState.READY, 1, "", "", 0, 0.0, 0, 0)
    show_status(PipelineStatus("shop", "etl_shop", Lsn(2), Lsn(2), 0, 0.0, 0, None, [table], usage=USAGE))
    assert TOLD in capsys.readouterr().out


def test_a_run_says_what_was_billed(capsys: pytest.CaptureFixture[str]) -> None:
    summary = RunSummary()
    summary.batch_applied(batch(3))
    summary.batch_applied(BatchReport.of_usage(Lsn(3), {"loads": 4}))
    show_run(summary, {}, 1.0)
    assert f"{TOLD}, 4 loads" in capsys.readouterr().out
    assert run_as_json(summary, {}, 1.0)["usage"] == {**USAGE, "loads": 4}


def test_the_examples_bigquery_reads_as_a_config(tmp_path: Path) -> None:
    before, _, rest = EXAMPLE.partition("destination:\n  type: duckdb\n  path: shop.duckdb\n")
    lines = rest.splitlines()
    end = lines.index("")
    chosen = [line.removeprefix("# ") for line in lines[1:end]]
    path = tmp_path / "pipeline.yaml"
    path.write_text(before + "\n".join([*chosen, *lines[end:]]))
    config = load_config(path, {})
    assert isinstance(config.destination, BigQueryConfig)
    assert isinstance(config.destination.credentials, FileCredentials)
    assert config.destination.options_for(TableId("public", "orders")).partition_by is not None
    assert str(config.destination.credentials.path) == str(tmp_path / "key.json")
