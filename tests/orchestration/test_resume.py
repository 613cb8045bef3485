"""A quarantined table is shown with the way back, and a job has it go on where it stopped."""

from typing import Any

import dagster as dg
import pytest

from etl_dagster.model import TableChoices
from etl_dagster.orchestration.checks import QUARANTINE_CHECK
from etl_dagster.orchestration.names import PIPELINE_TAG
from tests.orchestration.project import ITEMS, ORDERS, Project

RESUME = "test__resume"


@pytest.fixture
def broken(project: Project) -> Project:
    """A pipeline whose orders were taken out by an amount that no decimal has."""
    project.micro_batch()
    project.execute("update shop.orders set amount = 'NaN' where id = 7", "delete from shop.orders where id > 900")
    project.micro_batch()
    return project


def mend(project: Project) -> None:
    """Allow for such values."""
    given = TableChoices.model_validate({"tables": {"shop.orders": {"columns": {"amount": {"values": "null"}}}}})
    project.config = project.config.model_copy(update={"tables": given.tables})
    project.load()


def resume(project: Project, *tables: str) -> dg.ExecuteInProcessResult:
    return project.run(RESUME, run_config={"tables": list(tables)})


def failure(result: dg.ExecuteInProcessResult) -> str:
    [event] = [event for event in result.all_events if event.is_step_failure]
    return str(event.step_failure_data.user_failure_data.description)


def verdict(project: Project) -> tuple[bool, Any, str]:
    """The newest verdict on quarantined tables."""
    key = dg.AssetCheckKey(project.translator.slot_key, QUARANTINE_CHECK)
    record = project.instance.get_latest_asset_check_evaluation_record(key)
    assert record is not None
    assert record.evaluation is not None
    found = record.evaluation
    return bool(found.passed), found.metadata["tables"].value, str(found.description)


@pytest.mark.parametrize("job", ["test__health", None], ids=["by the health job", "by the run itself"])
def test_the_check_tells_cause_and_key_and_both_ways_back(broken: Project, job: str | None) -> None:
    if job:
        broken.run(job)
    passed, tables, words = verdict(broken)
    assert not passed
    [(name, about)] = tables.items()
    assert name == "shop.orders"
    assert "amount" in about["cause"]
    assert "7" in about["cause"], "the key of a row is told"
    assert f'{RESUME} with {{"tables": ["shop.orders"]}}' in about["in_dagster"]
    assert "test/sync/shop/orders" in about["in_dagster"]
    assert words.startswith(f"shop.orders: {about['cause']} — ")


def test_a_resumed_table_goes_on_where_it_stopped(broken: Project) -> None:
    mend(broken)
    assert resume(broken, "shop.orders").success
    live = broken.live(ORDERS)[0]
    assert live["dagster/row_count"] == 900
    assert live["etl/replaced_by_column"] == {"amount": 1}
    assert len(broken.copies(ORDERS)) == 1, "no fresh copy"
    assert verdict(broken)[0]
    assert broken.instance.get_runs()[0].tags[PIPELINE_TAG] == "test"
    assert isinstance(broken.tick(), dg.SkipReason)


def test_a_resume_whose_cause_is_not_mended_fails_with_the_cause(broken: Project) -> None:
    result = resume(broken, "shop.orders")
    assert not result.success
    assert "shop.orders is still quarantined" in failure(result)
    assert not verdict(broken)[0]
    assert isinstance(broken.tick(), dg.SkipReason), "nobody tries it again and again"


def test_a_resume_that_the_command_line_asked_for_is_work_for_the_sensor(broken: Project) -> None:
    from etl_dagster.pipeline import Pipeline

    mend(broken)
    pipeline = Pipeline(broken.config)
    pipeline.request_resume(ORDERS)
    pipeline.close()
    request = broken.tick()
    assert isinstance(request, dg.RunRequest)
    assert broken.translator.live_key(ORDERS) in (request.asset_selection or [])
    broken.micro_batch()
    assert broken.live(ORDERS)[0]["dagster/row_count"] == 900
    assert verdict(broken)[0]


@pytest.mark.parametrize(
    ("table", "said"), [(str(ITEMS), "is not quarantined, it is ready"), ("shop.nothing", "has no table shop.nothing")]
)
def test_a_table_that_cannot_be_resumed_is_refused_by_name(broken: Project, table: str, said: str) -> None:
    result = resume(broken, table)
    assert not result.success
    assert said in failure(result)


def test_materializing_the_sync_brings_a_quarantined_table_back_too(broken: Project) -> None:
    mend(broken)
    assert broken.run("test__resync_all", partition_key="all").success
    assert broken.live(ORDERS)[0]["dagster/row_count"] == 900
    assert verdict(broken)[0]
