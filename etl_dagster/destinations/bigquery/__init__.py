"""BigQuery: one dataset, tables replicated as tables."""

from etl_dagster.destinations.bigquery.config import BigQueryConfig
from etl_dagster.destinations.bigquery.core import PLUGIN, BigQueryDestination

__all__ = ["PLUGIN", "BigQueryConfig", "BigQueryDestination"]
