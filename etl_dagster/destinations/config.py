"""What all destination configs share."""

from __future__ import annotations

from etl_dagster.model import FrozenModel


class DestinationConfig(FrozenModel):
    """Base of every destination's config; ``type`` picks the destination."""

    type: str
