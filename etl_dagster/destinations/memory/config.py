"""Config of the in-memory destination."""

from __future__ import annotations

from typing import Literal

from etl_dagster.destinations.config import DestinationConfig


class MemoryConfig(DestinationConfig):
    """Tables in memory; gone with the process."""

    type: Literal["memory"] = "memory"
