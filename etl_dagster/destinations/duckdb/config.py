"""Config of the DuckDB destination."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field

from etl_dagster.destinations.config import DestinationConfig

_LIMIT = r"^(\d+(?:\.\d+)?)\s*([KMGT])(i?)B$"

# DuckDB spills beyond it; the engine around it needs the rest of what a small machine has.
MEMORY_LIMIT = "128MB"
# Every thread that inserts buffers row groups of its own, so more of them need a higher memory limit.
THREADS = 2
# Long enough for a run that is being stopped to commit and let go of the file.
LOCK_TIMEOUT_SECONDS = 60.0
# Readers wait that long at most under steady traffic, and changes a quarter of a second each time.
SHARE_SECONDS = 5.0


class DuckDbConfig(DestinationConfig):
    """One DuckDB database file, which one process at a time can open for writing."""

    type: Literal["duckdb"] = "duckdb"
    path: str = Field(min_length=1, description="The database file; created when it is missing")
    memory_limit: str = Field(
        MEMORY_LIMIT, pattern=_LIMIT, description="Memory DuckDB may use before it spills; raised when it is not enough"
    )
    threads: int = Field(THREADS, ge=1, le=256, description="Threads DuckDB may use")
    lock_timeout_seconds: float = Field(
        LOCK_TIMEOUT_SECONDS, ge=0, description="How long to wait while another process holds the file"
    )
    share_seconds: float | None = Field(
        SHARE_SECONDS,
        ge=0,
        description="How long the file is kept open under steady traffic before others have a turn; never for null",
    )

    @property
    def memory_limit_bytes(self) -> int:
        """The memory limit as a number."""
        found = re.match(_LIMIT, self.memory_limit)
        assert found is not None
        number, unit, binary = found.groups()
        return int(float(number) * (1024 if binary else 1000) ** (1 + "KMGT".index(unit)))
