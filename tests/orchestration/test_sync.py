"""Materializing a table's sync copies the table afresh, whoever holds the pipeline."""

import threading
from dataclasses import replace
from time import monotonic, sleep
from typing import Any

import dagster as dg
import pytest

from etl_dagster.model import TableId
from etl_dagster.orchestration.names import ENDING_TAG, PIPELINE_TAG
from etl_dagster.orchestration.parts import PipelineParts
from etl_dagster.orchestration.pools import Pools
from etl_dagster.orchestration.session import build_session
from etl_dagster.orchestration.sync_assets import TableSyncs
from etl_dagster.orchestration.waiting import words
from etl_dagster.pipeline import Pipeline
from etl_dagster.pipeline.status import TableStatus
from etl_dagster.store import TableState
from tests.orchestration.project import ITEMS, ORDERS, QUIET, Project
from tests.orchestration.test_succession import beside_a_follower, started


def sync(project: Project, *tables: TableId, patience_seconds: float = 60.0) -> dg.ExecuteInProcessResult:
    """What a backfill of one partition runs."""
    parts = PipelineParts.of(project.config)
    syncs = TableSyncs(
        parts,
        project.translator,
        dict.fromkeys((ORDERS, ITEMS)),
        Pools().of(parts),
        patience_seconds=patience_seconds,
    )
    return dg.materialize(
        [syncs.assets()],
        selection=[project.translator.sync_key(table) for table in tables],
        partition_key="all",
        instance=project.instance,
        resources={**parts.as_resources(), parts.names.session: build_session(parts)},
        run_config=QUIET,
        raise_on_error=False,
    )


def test_a_sync_copies_one_table_afresh_and_mends_it(project: Project) -> None:
    project.micro_batch()
    project.damage("delete from shop.orders where id <= 100")

    assert sync(project, ORDERS).success

    project.assert_equal()
    copies = project.copies(ORDERS)
    assert len(copies) == 2
    assert copies[0]["dagster/row_count"] == 1000
    assert copies[0]["etl/rows_per_second"] > 0
    assert copies[0]["etl/lsn_end"]
    assert len(project.copies(ITEMS)) == 1
    assert project.live(ORDERS)[0]["etl/copied_rows"] == 1000, "the live table changed on the way"
    assert project.instance.get_runs()[0].tags[PIPELINE_TAG] == "test", "the sensor must see that it is active"


def test_a_sync_before_the_first_micro_batch_begins_the_pipeline(project: Project) -> None:
    assert sync(project, ORDERS).success
    project.assert_equal()
    assert project.copies(ORDERS)[0]["dagster/row_count"] == 1000


def test_several_tables_are_copied_by_one_run(project: Project) -> None:
    project.micro_batch()
    assert sync(project, ORDERS, ITEMS).success
    assert len(project.copies(ORDERS)) == len(project.copies(ITEMS)) == 2


def test_a_table_that_is_taken_out_fails_the_run_after_the_others_are_told(project: Project) -> None:
    project.micro_batch()
    project.execute("update shop.orders set amount = 'NaN' where id = 7")
    result = sync(project, ORDERS, ITEMS)
    assert not result.success
    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert "shop.orders is quarantined" in str(failure.step_failure_data.user_failure_data.description)
    assert len(project.copies(ITEMS)) == 2


def test_a_sync_waits_while_the_process_that_holds_the_pipeline_does_the_copy(project: Project) -> None:
    project.micro_batch()
    project.damage("delete from shop.orders where id <= 100")
    stop, holding = threading.Event(), threading.Event()

    def follow() -> None:
        holder = Pipeline(project.config)
        with holder.replicator() as replicator:
            holding.set()
            replicator.follow(stop=stop)
        holder.close()

    follower = threading.Thread(target=follow)
    follower.start()
    try:
        assert holding.wait(30)
        assert sync(project, ORDERS).success
    finally:
        stop.set()
        follower.join()
    project.assert_equal()
    copies = project.copies(ORDERS)
    assert len(copies) == 2
    assert not {"etl/bytes_per_second", "etl/seconds", "etl/rows_per_second"} & set(copies[0]), "nobody knows them here"


def test_a_run_that_waits_says_for_whom_and_how_far_that_is(project: Project, connect: Any) -> None:
    project.micro_batch()
    batch = started(project)
    writer = connect(autocommit=False)
    writer.execute("update shop.orders set amount = 0 where id = 7")  # which the copy waits for

    def commit_when_told() -> None:
        while not log_lines(project, "holds the pipeline"):
            sleep(0.05)
        writer.commit()

    committer = threading.Thread(target=commit_when_told)
    committer.start()
    beside_a_follower(project, lambda: sync(project, ORDERS))
    committer.join()

    waiting = log_lines(project, "holds the pipeline")[0]
    assert waiting.startswith(f"Run {batch.run_id} holds the pipeline, and does the work of this one: shop.orders is ")
    assert log_lines(project, "What was asked for is done")
    assert len(project.copies(ORDERS)) == 2


def test_a_copy_that_another_process_makes_is_told_with_its_progress() -> None:
    status = TableStatus(ORDERS, TableState.COPYING, None, "", "", None, None, chunks_done=5, chunks_total=12)
    status = replace(status, rows_done=500, rows_total=1200, bytes_done=50 << 20, bytes_total=120 << 20)
    assert words(status) == "shop.orders copied 500 of about 1,200 rows (52.4 of 125.8 MB), chunk 5 of 12"
    status = replace(status, chunks_done=0, chunks_total=0, waits_for=("pid 7 (psql)",))
    assert words(status) == "shop.orders is copying, its copy waits for pid 7 (psql)"
    status = replace(status, state=TableState.READY, waits_for=(), asked=("3 slices",))
    assert words(status) == "shop.orders is ready, its turn is to come (3 slices)"


@pytest.mark.parametrize("changed", [True, False])
def test_a_sync_that_applied_changes_hands_over(project: Project, changed: bool) -> None:
    project.micro_batch()
    if changed:
        project.execute("update shop.items set what = 'new' where order_id = 7")
    began = monotonic()
    result = sync(project, ORDERS)
    assert result.success
    run = project.instance.get_run_by_id(result.run_id)
    assert run is not None
    assert (run.tags.get(ENDING_TAG) == run.run_id) == changed
    assert monotonic() - began < 6
    project.assert_equal()


def log_lines(project: Project, part: str) -> list[str]:
    """Lines of any run's log."""
    runs = project.instance.get_runs()
    entries = [entry for run in runs for entry in project.instance.all_logs(run.run_id)]
    return [entry.user_message for entry in entries if part in entry.user_message]


def test_a_sync_gives_up_with_a_clear_word_when_the_holder_does_nothing(project: Project, monkeypatch) -> None:
    monkeypatch.setattr("etl_dagster.orchestration.session.TURN_SECONDS", 0.05)
    project.micro_batch()
    holder = Pipeline(project.config)
    with holder.replicator():
        result = sync(project, ORDERS, patience_seconds=0.2)
    holder.close()
    assert not result.success
    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert "has held the pipeline" in str(failure.step_failure_data.user_failure_data.description)


def test_the_job_over_all_tables_runs_for_the_one_partition(project: Project) -> None:
    project.micro_batch()
    assert project.run("test__resync_all", partition_key="all").success
    assert len(project.copies(ORDERS)) == len(project.copies(ITEMS)) == 2
