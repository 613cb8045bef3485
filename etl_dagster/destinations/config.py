"""What all destination configs share."""

from __future__ import annotations

from typing import NamedTuple

from etl_dagster.model import FrozenModel, TableId


class ShownTable(NamedTuple):
    """How people find a live table at its destination.

    Attributes:
        name: Its full name there, as other tools of the destination write it.
        url: Where it is shown; empty where there is no such place.
    """

    name: str
    url: str = ""


class DestinationConfig(FrozenModel):
    """Base of every destination's config; ``type`` picks the destination."""

    type: str

    def shown(self, table: TableId) -> ShownTable | None:
        """How people find a live table; None where nothing would be added to its name at the source."""
        return None
