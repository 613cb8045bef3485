"""A destination that bills for each batch: when runs are asked for, and what they tell of the bill."""

from time import monotonic

import dagster as dg
import pytest

from etl_dagster.orchestration import HealthPolicy, ReplicationTranslator
from etl_dagster.orchestration.checks import LAG_CHECK
from etl_dagster.orchestration.names import ENDING_TAG
from tests.billed import BATCH_BYTES, billed  # noqa: F401
from tests.orchestration.project import ORDERS, QUIET, Project
from tests.orchestration.test_health import verdicts

LONG = 1000.0


def bill(project: Project, batch_seconds: float) -> None:
    """Have the project's destination bill."""
    path = str(project.folder / "warehouse.duckdb")
    project.configure(destination={"type": "billed", "path": path, "batch_seconds": batch_seconds})


def test_the_next_run_is_asked_for_when_a_batch_is_due(project: Project) -> None:
    bill(project, LONG)
    project.micro_batch()
    project.execute("delete from shop.orders where id = 1")
    project.micro_batch()
    project.execute("delete from shop.orders where id = 2")

    answer = project.tick()

    assert isinstance(answer, dg.SkipReason)
    assert "the next batch is due in" in str(answer.skip_message)
    bill(project, 0.001)
    project.micro_batch()
    project.assert_equal()


def test_the_pause_between_batches_is_no_lag(project: Project) -> None:
    for seconds, passed in ((0.001, False), (LONG, True)):
        bill(project, seconds)
        project.load(health=HealthPolicy(max_lag_seconds=0))
        project.micro_batch()
        project.execute("update shop.orders set id = id")
        assert verdicts(project)[LAG_CHECK] is passed


def test_a_table_that_waits_for_its_copy_does_not_wait_for_a_batch(project: Project) -> None:
    bill(project, LONG)
    project.micro_batch()
    project.execute("delete from shop.orders where id = 1")
    project.micro_batch()
    with project.pipeline() as pipeline:
        pipeline.request_resync(ORDERS)
    assert isinstance(project.tick(), dg.RunRequest)
    project.micro_batch()
    assert isinstance(project.tick(), dg.SkipReason)


def test_a_run_neither_waits_out_its_budget_nor_for_a_successor(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etl_dagster.orchestration.succession.HANDOVER_SECONDS", 60.0)
    bill(project, LONG)
    project.load(batch_budget_seconds=60.0)
    project.micro_batch()
    project.execute("delete from shop.orders where id = 1")
    began = monotonic()
    result = project.micro_batch()
    assert monotonic() - began < 30
    run = project.instance.get_run_by_id(result.run_id)
    assert run is not None
    assert ENDING_TAG not in run.tags


def test_what_a_run_cost_is_metadata_of_the_pipeline(project: Project) -> None:
    bill(project, 0.0)
    project.micro_batch()
    project.execute("delete from shop.orders where id = 1")
    project.micro_batch()
    slot = ReplicationTranslator("test", "billed").slot_key
    (latest,) = project.instance.fetch_observations(slot, limit=1).records
    observed = latest.asset_observation
    assert observed is not None
    assert observed.metadata["etl/bytes_billed"].value == BATCH_BYTES
    assert observed.metadata["etl/slot_ms"].value == 1500
    assert observed.metadata["etl/queries"].value == 1


def test_a_copy_by_hand_tells_its_cost_too(project: Project) -> None:
    bill(project, 0.0)
    project.micro_batch()
    assert project.run("test__resync_all", run_config=QUIET, partition_key="all").success
    slot = ReplicationTranslator("test", "billed").slot_key
    (latest,) = project.instance.fetch_observations(slot, limit=1).records
    assert latest.asset_observation is not None
    assert latest.asset_observation.metadata["etl/loads"].value == 2
