"""The source: a PostgreSQL database read through psycopg 3."""

from etl_dagster.model import TablePattern
from etl_dagster.postgres.compare import Difference, compare_table
from etl_dagster.postgres.config import (
    PostgresConfig,
    PublicationConfig,
    SlotConfig,
    SourceConfig,
    TlsConfig,
    TlsMode,
)
from etl_dagster.postgres.doctor import check
from etl_dagster.postgres.doctor_slices import check_slices
from etl_dagster.postgres.source import PostgresSource, SourceIdentity

__all__ = [
    "Difference",
    "PostgresConfig",
    "PostgresSource",
    "PublicationConfig",
    "SlotConfig",
    "SourceConfig",
    "SourceIdentity",
    "TablePattern",
    "TlsConfig",
    "TlsMode",
    "check",
    "check_slices",
    "compare_table",
]
