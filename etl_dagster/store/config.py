"""Where the engine keeps its state."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from etl_dagster.model import FrozenModel

SCHEMA = "etl_dagster"
# Longer names are cut off by Postgres in silence.
_MAX_IDENTIFIER = 63


class MemoryStoreConfig(FrozenModel):
    """Nothing outlives the process: for tests and for looking around."""

    type: Literal["memory"] = "memory"


class SqliteStoreConfig(FrozenModel):
    """A file beside the pipeline; its folder is made when only that is missing."""

    type: Literal["sqlite"] = "sqlite"
    path: Path = Field(description="The file; made when missing", examples=[".etl/shop.sqlite"])


class PostgresStoreConfig(FrozenModel):
    """A schema in a Postgres database, best one that is not replicated."""

    type: Literal["postgres"] = "postgres"
    dsn: SecretStr = Field(
        description="Connection string", examples=["${STATE_DSN}", "postgresql://etl:secret@db.example.com:5432/etl"]
    )
    schema_: str = Field(
        SCHEMA, alias="schema", min_length=1, max_length=_MAX_IDENTIFIER, description="Schema for the store's tables"
    )


StoreConfig = Annotated[MemoryStoreConfig | SqliteStoreConfig | PostgresStoreConfig, Field(discriminator="type")]
