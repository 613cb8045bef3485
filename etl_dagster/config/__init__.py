"""The config of a pipeline and the file it is read from."""

from etl_dagster.config.document import Problem
from etl_dagster.config.loading import ConfigFileError, load_config
from etl_dagster.config.model import PipelineConfig

__all__ = ["ConfigFileError", "PipelineConfig", "Problem", "load_config"]
