"""What a table is made of, in BigQuery's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from etl_dagster.destinations.bigquery.config import RangePartition, TimePartition


@dataclass(frozen=True, slots=True)
class Field:
    """A column by its physical name, and its type as DDL writes it: ``NUMERIC(10, 2)``, ``ARRAY<INT64>``."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Layout:
    """How a table is stored.

    Attributes:
        partition_by: By its physical column name.
        expiration_days: When a partition is removed, or a table without partitions as a whole.
        expires_seconds: When the whole table is removed, counted from now; for tables of ours that must not outlive us.
    """

    partition_by: TimePartition | RangePartition | None = None
    cluster_by: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    expiration_days: float | None = None
    expires_seconds: float | None = None
