"""What is chosen per table shows in Dagster: landing on the asset, replaced values on its materializations."""

from typing import Any

import dagster as dg
import pytest

from etl_dagster.model import TableChoices
from etl_dagster.orchestration import PipelineParts
from tests.orchestration.project import ITEMS, ORDERS, Project


def choose(project: Project, **choices: Any) -> None:
    """Write other choices into the config, and reload."""
    given = TableChoices.model_validate(choices)
    project.config = project.config.model_copy(update={"defaults": given.defaults, "tables": given.tables})
    project.load()


def spec(project: Project, key: dg.AssetKey) -> dg.AssetSpec:
    return next(found for found in project.defs.resolve_all_asset_specs() if found.key == key)


def test_the_landing_stands_on_the_live_asset_before_any_run(project: Project) -> None:
    choose(project, defaults={"landing": "soft_delete"}, tables={"shop.items": {"landing": "changelog"}})
    orders, items = (spec(project, project.translator.live_key(table)) for table in (ORDERS, ITEMS))
    assert orders.tags["etl/landing"] == orders.metadata["etl/landing"] == "soft_delete"
    assert "deleted rows stay" in str(orders.description)
    assert items.tags["etl/landing"] == "changelog"
    assert "every change is a row" in str(items.description)


def test_choices_of_parts_reach_the_config_of_a_run(project: Project) -> None:
    choose(project, tables={"shop.items": {"landing": "changelog"}})
    parts = PipelineParts.of(project.config)
    assert parts.config_now().choices == project.config.choices == parts.choices


def test_replaced_values_are_told_by_the_copy_and_by_the_live_table(project: Project) -> None:
    project.execute("update shop.orders set amount = 'NaN' where id <= 3")
    choose(project, defaults={"values": "null"})
    project.micro_batch()
    assert project.copies(ORDERS)[0]["etl/replaced_values"] == 3
    project.execute("update shop.orders set amount = 'NaN' where id = 4")
    project.micro_batch()
    live = project.live(ORDERS)[0]
    assert live["etl/replaced_values"] == 4
    assert live["etl/replaced_by_column"] == {"amount": 4}
    assert "etl/replaced_values" not in project.live(ITEMS)[0]


@pytest.mark.parametrize("change", ["add column note text default 'none'", "rename column status to state"])
def test_a_schema_change_that_came_with_the_stream_shows_in_the_column_schema(project: Project, change: str) -> None:
    project.micro_batch()
    project.execute(f"alter table shop.orders {change}", "update shop.orders set amount = 0 where id = 1")
    project.micro_batch()
    names = [column.name for column in project.live(ORDERS)[0]["dagster/column_schema"].columns]
    assert ("note" in names) == ("note" in change)
    assert ("state" in names) == ("state" in change)
    assert len(project.copies(ORDERS)) == 1, "no fresh copy"
    project.assert_equal()
