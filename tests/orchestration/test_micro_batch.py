"""A micro-batch copies what waits for its copy, applies the stream, and tells Dagster what it did."""

import dagster as dg
import pytest

from etl_dagster.orchestration.checks import QUARANTINE_CHECK
from etl_dagster.orchestration.names import PIPELINE_TAG, UNTIL_TAG
from etl_dagster.pipeline import Pipeline
from tests.orchestration.project import ITEMS, ORDERS, Project


def test_the_first_run_copies_all_tables_and_materializes_copies_and_live_tables(project: Project) -> None:
    result = project.micro_batch()

    assert result.success
    project.assert_equal()
    assert [project.live(ORDERS)[0]["etl/copied_rows"], project.live(ITEMS)[0]["etl/copied_rows"]] == [1000, 500]
    copy = project.copies(ORDERS)[0]
    assert copy["dagster/partition_row_count"] == 1000
    assert copy["etl/seconds"] >= 0
    assert project.instance.get_materialized_partitions(project.translator.sync_key(ORDERS)) == {"all"}


def test_changes_are_applied_and_their_metadata_says_how_many_from_where_to_where_and_how_late(
    project: Project,
) -> None:
    project.micro_batch()
    project.execute("update shop.orders set status = 'paid' where id <= 10", "delete from shop.orders where id = 1000")

    assert project.micro_batch().success

    project.assert_equal()
    live = project.live(ORDERS)[0]
    assert live["etl/changes"] == 11
    assert live["dagster/row_count"] == 999
    assert live["etl/lsn_start"] != live["etl/lsn_end"]
    assert 0 <= live["etl/lag_seconds"] < 60
    columns = {column.name: column for column in live["dagster/column_schema"].columns}
    assert columns["amount"].type == "numeric(12,2)"
    assert columns["id"].constraints.unique
    assert not columns["status"].constraints.nullable


def test_a_table_without_changes_is_not_materialized_by_the_sensors_runs(project: Project) -> None:
    project.micro_batch()
    project.execute("delete from shop.orders where id = 5")
    project.micro_batch()
    assert len(project.live(ORDERS)) == 2
    assert len(project.live(ITEMS)) == 1


def test_a_run_by_hand_syncs_to_now_and_materializes_what_was_selected(project: Project) -> None:
    project.micro_batch()
    project.execute("delete from shop.orders where id = 5")

    key = project.translator.live_key(ITEMS)
    assert project.run("test__micro_batch", asset_selection=[key]).success

    project.assert_equal()
    assert len(project.live(ITEMS)) == 2
    assert project.live(ITEMS)[0]["etl/changes"] == 0
    assert project.live(ORDERS)[0]["etl/changes"] == 1, "changed, though not selected"
    run = project.instance.get_runs()[0]
    assert run.tags[PIPELINE_TAG] == "test", "the sensor must see that it is active"


def test_the_three_steps_run_in_order(project: Project) -> None:
    result = project.micro_batch()
    steps = [event.step_key for event in result.all_events if event.is_step_success]
    assert steps == [f"test__live.{step}" for step in ("truncate_tables", "write_table_rows", "write_events")]


def test_a_table_that_joins_later_is_copied_before_the_definitions_know_it(project: Project) -> None:
    project.micro_batch()
    project.execute("create table shop.late (id int primary key)", "insert into shop.late values (1)")

    assert project.run("test__micro_batch").success

    project.assert_equal()
    late = type(ORDERS)("shop", "late")
    assert project.live(late)[0]["etl/copied_rows"] == 1
    assert project.translator.live_key(late) not in keys(project)
    project.load()
    assert project.translator.live_key(late) in keys(project)


def test_a_bad_table_is_shown_and_does_not_stop_the_others(project: Project) -> None:
    project.execute("create table shop.keyless (n int)", "insert into shop.keyless values (1)")

    assert project.run("test__micro_batch").success

    project.assert_equal()
    check = project.instance.get_latest_asset_check_evaluation_record(
        dg.AssetCheckKey(project.translator.slot_key, QUARANTINE_CHECK)
    )
    assert check is not None
    evaluation = check.evaluation
    assert evaluation is not None
    assert not evaluation.passed
    assert "shop.keyless" in evaluation.metadata["tables"].value


def test_a_run_leaves_the_work_to_the_process_that_holds_the_pipeline(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etl_dagster.orchestration.session.BUSY_SECONDS", 0.0)
    project.micro_batch()
    holder = Pipeline(project.config)
    with holder.replicator():
        result = project.run("test__micro_batch", tags={UNTIL_TAG: "0/1"})
    holder.close()
    assert result.success
    assert len(project.live(ORDERS)) == 1


def test_an_error_fails_the_run_with_what_to_do(project: Project) -> None:
    project.micro_batch()
    wrong = project.config.source.connection.model_copy(update={"dsn": None, "host": "127.0.0.1", "port": 1})
    source = project.config.source.model_copy(update={"connection": wrong})
    project.config = project.config.model_copy(update={"source": source})
    project.load()

    result = project.run("test__micro_batch")

    assert not result.success
    [failure] = [event for event in result.all_events if event.is_step_failure]
    shown = failure.step_failure_data.user_failure_data
    assert shown is not None
    assert shown.metadata["etl/hint"].value
    assert shown.metadata["etl/error_kind"].value == "source_unavailable"


def keys(project: Project) -> set[dg.AssetKey]:
    return {spec.key for spec in project.defs.resolve_all_asset_specs()}
