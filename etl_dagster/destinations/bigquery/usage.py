"""What work at BigQuery took, for the bill."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True, slots=True)
class Usage:
    """Counted over all jobs; the unit stands at a name's end.

    Attributes:
        bytes_billed: What queries are billed by in projects without reservations.
        slot_ms: What they are billed by in those with.
    """

    bytes_processed: int = 0
    bytes_billed: int = 0
    slot_ms: int = 0
    queries: int = 0
    loads: int = 0
    copies: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def as_mapping(self) -> Mapping[str, int]:
        return asdict(self)


class Meter:
    """Adds up what several threads use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sum = Usage()

    def add(self, usage: Usage) -> None:
        with self._lock:
            self._sum += usage

    def take(self) -> Usage:
        """What was added since this was called last."""
        with self._lock:
            taken, self._sum = self._sum, Usage()
            return taken
