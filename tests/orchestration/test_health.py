"""The checks say when a table is out, the destination is behind, or the slot holds back much WAL."""

import dagster as dg

from etl_dagster.orchestration import HealthPolicy
from etl_dagster.orchestration.checks import LAG_CHECK, QUARANTINE_CHECK, WAL_CHECK
from tests.orchestration.project import Project


def verdicts(project: Project) -> dict[str, bool]:
    result = project.run("test__health")
    assert result.success
    return {found.check_name: bool(found.passed) for found in result.get_asset_check_evaluations()}


def test_a_pipeline_that_is_well_passes_all_checks(project: Project) -> None:
    project.micro_batch()
    assert verdicts(project) == {QUARANTINE_CHECK: True, LAG_CHECK: True, WAL_CHECK: True}


def test_lag_and_retained_wal_past_their_limits_fail_their_checks(project: Project) -> None:
    project.micro_batch()
    project.load(health=HealthPolicy(max_lag_seconds=0, max_retained_bytes=0))
    project.execute("delete from shop.orders where id = 1")
    assert verdicts(project) == {QUARANTINE_CHECK: True, LAG_CHECK: False, WAL_CHECK: False}


def test_a_quarantined_table_fails_its_check_with_what_to_do(project: Project) -> None:
    project.execute("create table shop.keyless (n int)")
    project.run("test__micro_batch")
    assert not verdicts(project)[QUARANTINE_CHECK]
    record = project.instance.get_latest_asset_check_evaluation_record(
        dg.AssetCheckKey(project.translator.slot_key, QUARANTINE_CHECK)
    )
    assert record is not None
    assert record.evaluation is not None
    assert "primary key" in str(record.evaluation.metadata["tables"].value)
