"""One pipeline, put together from its config: what people and Dagster ask of it."""

from etl_dagster.pipeline.pipeline import IDLE_WAL_BYTES, Pipeline
from etl_dagster.pipeline.status import Comparison, Pending, PipelineStatus, TableStatus

__all__ = ["IDLE_WAL_BYTES", "Comparison", "Pending", "Pipeline", "PipelineStatus", "TableStatus"]
