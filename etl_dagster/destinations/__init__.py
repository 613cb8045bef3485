"""Where tables are replicated into."""

from etl_dagster.destinations.base import Capabilities, ChunkRows, CopyResult, Destination, WriteResult
from etl_dagster.destinations.config import DestinationConfig
from etl_dagster.destinations.registry import (
    DestinationPlugin,
    destination_types,
    open_destination,
    parse_destination,
)

__all__ = [
    "Capabilities",
    "ChunkRows",
    "CopyResult",
    "Destination",
    "DestinationConfig",
    "DestinationPlugin",
    "WriteResult",
    "destination_types",
    "open_destination",
    "parse_destination",
]
