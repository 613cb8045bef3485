"""BigQuery: one dataset, tables replicated as tables."""

from etl_dagster.destinations.bigquery.config import BigQueryConfig

__all__ = ["BigQueryConfig"]
