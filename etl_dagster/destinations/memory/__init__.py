"""The reference destination: tables as Python dicts."""

from etl_dagster.destinations.memory.config import MemoryConfig
from etl_dagster.destinations.memory.core import PLUGIN, MemoryDestination

__all__ = ["PLUGIN", "MemoryConfig", "MemoryDestination"]
