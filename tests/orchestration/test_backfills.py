"""Backfills as users launch them: through the UI's server, the daemon and runs in processes of their own."""

from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest

from etl_dagster.config import PipelineConfig
from etl_dagster.model import TableId
from etl_dagster.pipeline import Pipeline
from tests.orchestration.deployment import Deployment, deployed
from tests.orchestration.project import ITEMS, ORDERS, Project, slot

EVENTS = TableId("shop", "events")
FIRST = datetime.now(UTC).date() - timedelta(days=13)
RULES = {
    "shop.events": {"partitions": {"type": "time", "column": "at", "every": "day", "start": str(FIRST)}},
    "shop.orders": {"partitions": {"type": "range", "column": "id", "rows": 250}},
}
ALL = {"dagster/partition": "all"}
STARTED, QUEUED = dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.QUEUED


def day(number: int) -> str:
    return str(FIRST + timedelta(days=number))


@pytest.fixture
def sliced(project: Project) -> Project:
    """Two weeks of events, orders in ranges of their id; all copied."""
    project.execute(
        "create table shop.events (id int primary key, at timestamptz, what text)",
        f"insert into shop.events select n, timestamptz '{FIRST} 12:00+00' + n % 14 * interval '1 day', 'as it is'"
        " from generate_series(0, 139) n",
        "analyze shop.orders",
    )
    project.configure(tables=RULES, replication=project.document["replication"] | {"barrier_notice_seconds": 0.2})
    assert project.micro_batch().success
    return project


@pytest.mark.parametrize(
    ("policy", "runs"),
    [("dg.BackfillPolicy.single_run()", 1), ("dg.BackfillPolicy.multi_run(3)", 3), ("BACKFILL_POLICY", 1)],
)
def test_last_week_is_copied_again_and_only_last_week(sliced: Project, tmp_path: Path, policy: str, runs: int) -> None:
    last_week = [day(number) for number in range(6, 13)]
    sliced.execute("update shop.events set what = 'new' where id = 3")
    sliced.damage("update shop.events set what = 'drifted'", "delete from shop.events where id = 80")

    with deployed(tmp_path, sliced.document, policy=policy) as deployment:
        made = deployment.until_backfill(deployment.backfill(sliced.translator.sync_key(EVENTS), last_week))
        shown = deployment.instance.get_materialized_partitions(sliced.translator.sync_key(EVENTS))

    assert len(made) == runs
    assert set(shown) == set(last_week)
    days = sliced.rows("select distinct id % 14 from shop.events where what = 'as it is' order by 1")
    assert [number for (number,) in days] == list(range(6, 13))
    assert sliced.rows("select count(*) from shop.events") == [(140,)]
    assert sliced.rows("select what from shop.events where id = 3") == [("new",)], "the stream went on"


def test_runs_of_one_partition_each_end_in_equality(sliced: Project, tmp_path: Path) -> None:
    keys = sliced.instance.get_dynamic_partitions("test__sync__shop__orders")
    with deployed(tmp_path, sliced.document, policy="dg.BackfillPolicy.multi_run(1)") as deployment:
        deployment.instance.add_dynamic_partitions("test__sync__shop__orders", keys)
        sliced.damage("update shop.orders set status = 'drifted'")
        runs = deployment.until_backfill(deployment.backfill(sliced.translator.sync_key(ORDERS), keys))
    assert len(runs) == len(keys) >= 3
    sliced.assert_equal()


def test_a_backfill_never_keeps_the_stream_waiting_nor_another_pipeline_of_its_source(
    sliced: Project, tmp_path: Path, database: str, connect: Any
) -> None:
    other = sliced.document | {
        "name": "other",
        "source": sliced.document["source"] | {"slot": {"name": f"{slot(database)}_2"}},
        "destination": {"type": "duckdb", "path": str(tmp_path / "other.duckdb")},
        "store": {"type": "sqlite", "path": str(tmp_path / "other.sqlite")},
    }
    run_once(other)  # a new slot would have to wait for the transaction, too
    sliced.damage("update shop.events set what = 'drifted' where id % 14 = 4")
    writer = connect(autocommit=False)
    writer.execute("insert into shop.events values (1000, now(), 'open')")  # which the copy has to wait for

    with deployed(tmp_path, sliced.document, other) as deployment:
        backfill = deployment.backfill(sliced.translator.sync_key(EVENTS), [day(4)])
        deployment.until(lambda: _waits_for(deployment, backfill, writer))

        for number in range(3):
            goal = _write(sliced, number)
            deployment.until(lambda goal=goal: _applied(sliced) >= goal)
        [run] = deployment.runs_of(backfill)
        assert run.status is STARTED, "all this while the copy waits"

        behind = deployment.launch("other__resync_all", [dg.AssetKey(["other", "sync", "shop", "items"])], ALL)
        deployment.until_run(deployment.launch("other__micro_batch"))
        assert deployment.status(behind) is QUEUED, "copies of one source take turns"
        assert deployment.status(run.run_id) is STARTED

        writer.commit()
        deployment.until_backfill(backfill)
        deployment.until_run(behind)
    sliced.assert_equal()


def test_a_run_from_the_failed_step_on_sees_through_what_was_asked_before(
    sliced: Project, tmp_path: Path, connect: Any
) -> None:
    sliced.damage("delete from shop.items where order_id <= 10")
    writer = connect(autocommit=False)
    writer.execute("update shop.items set what = 'open' where order_id = 400")
    with deployed(tmp_path, sliced.document) as deployment:
        run_id = deployment.launch("test__resync_all", [sliced.translator.sync_key(ITEMS)], ALL)
        deployment.until(lambda: any("open transaction" in line for line in deployment.log_of(run_id)))
        run = deployment.instance.get_run_by_id(run_id)
        assert run is not None
        deployment.instance.run_launcher.terminate(run_id)
        deployment.until(
            lambda: deployment.status(run_id) in (dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.FAILURE)
        )
        writer.commit()
        again = deployment.launch_again_from_failure(run_id)
        deployment.until_run(again)
        steps = {entry.step_key for entry in deployment.instance.all_logs(again) if entry.step_key}
    assert steps == {"test__sync.copy_tables"}
    with sliced.pipeline() as pipeline:
        assert not pipeline.pending().tables_to_copy
    sliced.assert_equal()


def test_a_run_from_the_failed_step_on_copies_again_what_was_quarantined(sliced: Project, tmp_path: Path) -> None:
    sliced.execute("update shop.orders set amount = 'NaN' where id = 7")
    with deployed(tmp_path, sliced.document | {"tables": {}}) as deployment:
        run_id = deployment.launch("test__resync_all", [sliced.translator.sync_key(ORDERS)], ALL)
        deployment.until(lambda: deployment.status(run_id) is dg.DagsterRunStatus.FAILURE)
        sliced.execute("update shop.orders set amount = 1 where id = 7")
        deployment.until_run(deployment.launch_again_from_failure(run_id))
    sliced.assert_equal()


def run_once(document: Mapping[str, Any]) -> None:
    """Copy the tables of another pipeline, and catch up."""
    with closing(Pipeline(PipelineConfig.model_validate(document))) as pipeline, pipeline.replicator() as replicator:
        replicator.sync()


def _waits_for(deployment: Deployment, backfill: str, writer: psycopg.Connection[Any]) -> bool:
    """A run of the backfill tells in its log whom it waits for."""
    lines = [line for run in deployment.runs_of(backfill) for line in deployment.log_of(run.run_id)]
    return any(str(writer.info.backend_pid) in line for line in lines)


def _write(project: Project, number: int) -> int:
    """A change of another table, and of the one that is copied; returns the position behind them."""
    project.execute(
        f"update shop.orders set amount = {number} where id = 7",
        f"update shop.events set what = 'changed {number}' where id = 8",
    )
    with project.pipeline() as pipeline:
        return pipeline.current_position()


def _applied(project: Project) -> int:
    with project.pipeline() as pipeline:
        return pipeline.applied_position() or 0
