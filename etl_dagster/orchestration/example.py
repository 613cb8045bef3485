"""The example project that ``workspace.yaml`` opens; it needs no database and no variable to open.

It shows the demo's order system. Its sensor is off: switch it on in the UI once the database is there, or name a
pipeline of your own in ``ETL_DAGSTER_CONFIG``, which is then opened instead.
"""

import os
from datetime import date
from pathlib import Path

import dagster as dg

from etl_dagster.model import KeyRanges, TableChoices, TimeWindows
from etl_dagster.model.choices import TableChoice
from etl_dagster.model.slices import Every
from etl_dagster.orchestration.definitions import build_replication_defs
from etl_dagster.orchestration.from_environment import CONFIG_VARIABLE
from etl_dagster.orchestration.parts import PipelineParts
from etl_dagster.orchestration.resources import DuckDBDestinationResource, PostgresSourceResource, StoreResource
from etl_dagster.orchestration.resync_schedule import build_resync_schedule
from etl_dagster.orchestration.sensors import SensorSettings

SCHEMA = "shop"
TABLES = ("customers", "products", "promotions", "orders", "order_items", "payments", "stock")
# Beside Dagster's own files, which are not committed either.
FOLDER = Path("dagster_home/example")

# With a password, give it as dagster.EnvVar("..."): the UI shows the variable's name, never its value.
EXAMPLE = PipelineParts(
    name="example",
    source=PostgresSourceResource(host="127.0.0.1", port=5432, database="postgres", user="postgres", schemas=[SCHEMA]),
    destination=DuckDBDestinationResource(path=str(FOLDER / "warehouse.duckdb")),
    store=StoreResource(path=str(FOLDER / "state.sqlite")),
    choices=TableChoices(
        tables={
            f"{SCHEMA}.orders": TableChoice(
                partitions=TimeWindows(column="placed_at", every=Every.DAY, start=date(2026, 1, 1))
            ),
            f"{SCHEMA}.order_items": TableChoice(partitions=KeyRanges(column="order_id", rows=100_000)),
        }
    ),
)


@dg.definitions
def defs() -> dg.Definitions:
    """The pipeline of the environment, or the example."""
    if path := os.environ.get(CONFIG_VARIABLE):
        return build_replication_defs(Path(path))
    replication = build_replication_defs(
        EXAMPLE,
        tables=[f"{SCHEMA}.{table}" for table in TABLES],
        sensor=SensorSettings(running=False),
        schedules_running=False,
    )
    schedules = [
        build_resync_schedule(EXAMPLE, [f"{SCHEMA}.stock"], "30 3 * * *", running=False),
        # The orders of yesterday once more, every night.
        build_resync_schedule(EXAMPLE, [f"{SCHEMA}.orders"], "45 3 * * *", name="example__orders", running=False),
    ]
    return dg.Definitions.merge(replication, dg.Definitions(schedules=schedules))
