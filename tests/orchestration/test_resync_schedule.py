"""A schedule copies tables afresh: whole ones, or the window of time that is over."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pytest

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import ConfigError
from etl_dagster.orchestration import build_replication_defs, build_resync_schedule
from tests.orchestration.project import ITEMS, ORDERS, Project

DAILY = {"type": "time", "column": "at", "every": "day", "start": "2026-01-01", "timezone": "Europe/Berlin"}
HOURLY = {"type": "time", "column": "at", "every": "hour", "start": "2026-11-01"}
RANGES = {"type": "range", "column": "id"}


def config(rules: Mapping[str, Any]) -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "name": "far",
            "source": {"connection": {"host": "127.0.0.1", "port": 1}, "publication": {"all_tables": True}},
            "destination": {"type": "memory"},
            "store": {"type": "memory"},
            "tables": {table: {"partitions": rule} for table, rule in rules.items()},
        }
    )


def requested(rules: Mapping[str, Any], at: datetime, **options: Any) -> dg.RunRequest | str:
    """What the schedule asks for at a moment."""
    tables = list(rules)
    schedule = build_resync_schedule(config(rules), tables, "30 3 * * *", **options)
    defs = build_replication_defs(config(rules), tables=tables)
    defs = dg.Definitions.merge(defs, dg.Definitions(schedules=[schedule]))
    dg.Definitions.validate_loadable(defs)
    with dg.build_schedule_context(
        dg.DagsterInstance.ephemeral(), repository_def=defs.get_repository_def(), scheduled_execution_time=at
    ) as context:
        answer = schedule.evaluate_tick(context)
    return answer.run_requests[0] if answer.run_requests else str(answer.skip_message)


@pytest.mark.parametrize(
    ("at", "window", "key"),
    [
        (datetime(2026, 11, 23, 3, 30, tzinfo=UTC), "previous", "2026-11-22"),
        (datetime(2026, 11, 22, 23, 0, tzinfo=UTC), "previous", "2026-11-22"),  # midnight in Berlin
        (datetime(2026, 11, 22, 22, 59, tzinfo=UTC), "previous", "2026-11-21"),
        (datetime(2026, 11, 23, 3, 30, tzinfo=UTC), "current", "2026-11-23"),
        (datetime(2026, 3, 29, 22, 30, tzinfo=UTC), "previous", "2026-03-29"),  # a day of 23 hours
    ],
)
def test_one_window_of_the_time_of_the_tick(at: datetime, window: str, key: str) -> None:
    request = requested({"shop.orders": DAILY, "shop.payments": DAILY}, at, window=window)
    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == key


def test_windows_of_an_hour() -> None:
    request = requested({"shop.orders": HOURLY}, datetime(2026, 11, 23, 3, 30, tzinfo=UTC))
    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == "2026-11-23-02:00"


def test_before_the_first_window_is_over_nothing_is_asked_for() -> None:
    assert "not over yet" in str(requested({"shop.orders": DAILY}, datetime(2026, 1, 1, 12, tzinfo=UTC)))


def test_tables_that_are_cut_in_different_ways_are_refused_by_name() -> None:
    rules = {"shop.orders": DAILY, "shop.clicks": HOURLY}
    with pytest.raises(ConfigError, match=r"shop\.orders: .*shop\.clicks: "):
        build_resync_schedule(config(rules), ["shop.orders", "shop.clicks"], "30 3 * * *")
    with pytest.raises(ConfigError, match=r"shop\.orders: .*shop\.stock: 'all'"):
        build_resync_schedule(config(rules), ["shop.orders", "shop.stock"], "30 3 * * *")


def test_ranges_are_of_no_time() -> None:
    with pytest.raises(ConfigError, match=r"shop\.lines are cut in ranges"):
        build_resync_schedule(config({"shop.lines": RANGES}), ["shop.lines"], "30 3 * * *")


def test_tables_without_a_rule_are_copied_whole(project: Project) -> None:
    project.micro_batch()
    schedule = build_resync_schedule("test", ["shop.orders"], "30 3 * * *")
    project.defs = dg.Definitions.merge(project.defs, dg.Definitions(schedules=[schedule]))
    with dg.build_schedule_context(
        project.instance,
        repository_def=project.defs.get_repository_def(),
        scheduled_execution_time=datetime(2026, 11, 23, 3, 30, tzinfo=UTC),
    ) as context:
        [request] = schedule.evaluate_tick(context).run_requests or ()
    assert project.run(schedule.job_name, partition_key=request.partition_key, tags=dict(request.tags)).success
    assert len(project.copies(ORDERS)) == 2
    assert len(project.copies(ITEMS)) == 1


@pytest.mark.parametrize(
    ("rules", "window", "name", "about"),
    [
        ({"shop.orders": DAILY}, "previous", "far__resync_orders_previous_day", "Copies the day before again: "),
        ({"shop.orders": HOURLY}, "current", "far__resync_orders_current_hour", "Copies the present hour again: "),
        ({"shop.orders": {"type": "none"}}, "previous", "far__resync_all_schedule", "Copies afresh: "),
        (
            {f"shop.t {n}": DAILY for n in range(5)},
            "previous",
            "far__resync_t_0_t_1_t_2_and_2_more_previous_day",
            "Copies the day before again: ",
        ),
    ],
)
def test_a_schedule_is_named_after_what_it_copies(rules: Mapping[str, Any], window: Any, name: str, about: str) -> None:
    schedule = build_resync_schedule(config(rules), list(rules), "30 3 * * *", window=window)
    assert schedule.name == name
    assert schedule.description == f"{about}{', '.join(rules)}"
    assert build_resync_schedule(config(rules), list(rules), "30 3 * * *", name="mine").name == "mine"
