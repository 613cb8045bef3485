"""Source, destinations and stores as Dagster resources; secrets come through `dagster.EnvVar`.

Dagster refuses pydantic's ``SecretStr``, so secrets are plain strings here: give them as ``EnvVar("NAME")``, which the
UI shows by name. A literal secret would be shown as it is.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import BaseModel, Field, SecretStr

from etl_dagster.destinations.config import DestinationConfig
from etl_dagster.destinations.registry import parse_destination
from etl_dagster.model import FrozenModel
from etl_dagster.postgres import PostgresConfig, PublicationConfig, SlotConfig, SourceConfig
from etl_dagster.store import MemoryStoreConfig, PostgresStoreConfig, SqliteStoreConfig


class ConfigResource(dg.ConfigurableResource[object], ABC):
    """A resource that stands for one of our configs; it opens nothing itself."""

    @abstractmethod
    def to_config(self) -> FrozenModel:
        """Our config, with every ``EnvVar`` resolved."""


class PostgresSourceResource(ConfigResource):
    """The database to replicate from: connection, publication, slot."""

    dsn: str | None = Field(default=None, description="Connection string; holds a password, so give an EnvVar")
    host: str | None = Field(default=None, description="Server, when there is no dsn")
    port: int | None = Field(default=None, description="TCP port, when there is no dsn")
    database: str | None = Field(default=None, description="Database, when there is no dsn")
    user: str | None = Field(default=None, description="Role that may replicate, when there is no dsn")
    password: str | None = Field(default=None, description="Its password, as an EnvVar")
    publication: str | None = Field(default=None, description="Name of the publication; etl_<pipeline> when not given")
    create_publication: bool = Field(
        default=True, description="Make the publication, and keep its tables as they are given here"
    )
    tables: list[str] = Field(default=[], description="schema.table, with * as wildcard")
    schemas: list[str] = Field(default=[], description="All tables of these schemas")
    all_tables: bool = Field(default=False, description="Every table of the database")
    exclude: list[str] = Field(default=[], description="Tables to leave out")
    slot: str | None = Field(default=None, description="Name of the replication slot; etl_<pipeline> when not given")

    def to_config(self) -> SourceConfig:
        return SourceConfig(
            connection=PostgresConfig(
                dsn=_secret(self.dsn),
                host=self.host,
                port=self.port,
                database=self.database,
                user=self.user,
                password=_secret(self.password),
            ),
            publication=PublicationConfig(
                **_named(self.publication),
                create=self.create_publication,
                tables=tuple(self.tables),
                schemas=tuple(self.schemas),
                all_tables=self.all_tables,
                exclude=tuple(self.exclude),
            ),
            slot=SlotConfig(**_named(self.slot)),
        )


class DestinationResource(ConfigResource):
    """A place to replicate into; one subclass per destination."""

    @abstractmethod
    def to_config(self) -> DestinationConfig: ...

    @property
    @abstractmethod
    def kind(self) -> str:
        """Kind that its tables show in Dagster, and the ``type`` of its config."""


class DuckDBDestinationResource(DestinationResource):
    """A DuckDB file."""

    path: str = Field(description="The database file; made when missing")

    @property
    def kind(self) -> str:
        return "duckdb"

    def to_config(self) -> DestinationConfig:
        return parse_destination({"type": self.kind, "path": self.path})


class MemoryDestinationResource(DestinationResource):
    """Tables in memory, gone with the process: to try things out."""

    @property
    def kind(self) -> str:
        return "memory"

    def to_config(self) -> DestinationConfig:
        return parse_destination({"type": self.kind})


class StoreResource(ConfigResource):
    """Where the pipeline keeps its state: a file, or a schema in a Postgres database."""

    path: str | None = Field(default=None, description="SQLite file; made when missing")
    dsn: str | None = Field(default=None, description="Connection string of a Postgres database instead, as an EnvVar")
    db_schema: str = Field(default="etl_dagster", description="Schema in that database")

    def to_config(self) -> SqliteStoreConfig | PostgresStoreConfig | MemoryStoreConfig:
        if self.dsn is not None:
            return PostgresStoreConfig(dsn=SecretStr(self.dsn), schema=self.db_schema)
        if self.path is not None:
            return SqliteStoreConfig(path=Path(self.path))
        return MemoryStoreConfig()


def config_of(value: object) -> BaseModel:
    """The config behind a resource; a config that was given as it is stands for itself."""
    if isinstance(value, ConfigResource):
        return value.to_config()
    assert isinstance(value, BaseModel)
    return value


def _named(name: str | None) -> dict[str, Any]:
    # What is left out is named after the pipeline, by its config.
    return {} if name is None else {"name": name}


def _secret(value: str | None) -> SecretStr | None:
    return None if value is None else SecretStr(value)
