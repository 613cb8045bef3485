"""A code location for one pipeline: the one whose config file the environment names, with its sensor on."""

import os
from pathlib import Path

import dagster as dg

from etl_dagster.errors import ConfigError
from etl_dagster.orchestration.definitions import BATCH_BUDGET_SECONDS, build_replication_defs
from etl_dagster.orchestration.sensors import SensorSettings

CONFIG_VARIABLE = "ETL_DAGSTER_CONFIG"
BUDGET_VARIABLE = "ETL_DAGSTER_BATCH_BUDGET_SECONDS"


@dg.definitions
def defs() -> dg.Definitions:
    """Loaded by Dagster's processes, not when the module is imported."""
    path = os.environ.get(CONFIG_VARIABLE)
    if not path:
        raise ConfigError(
            f"The environment variable {CONFIG_VARIABLE} is not set",
            hint=f"Set it to the path of the pipeline's YAML file: {CONFIG_VARIABLE}=etl-dagster.yaml",
        )
    return build_replication_defs(
        Path(path),
        sensor=SensorSettings(running=True),
        batch_budget_seconds=float(os.environ.get(BUDGET_VARIABLE) or BATCH_BUDGET_SECONDS),
    )
