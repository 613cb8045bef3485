"""The config of one pipeline: what is replicated, from where, to where, and where its state is kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError, PydanticKnownError

from etl_dagster.destinations.config import DestinationConfig
from etl_dagster.destinations.registry import destination_types, parse_destination
from etl_dagster.errors import ConfigError
from etl_dagster.model import FrozenModel, TableChoices
from etl_dagster.model.choices import PatternText, TableChoice, TableDefaults
from etl_dagster.postgres.config import SourceConfig
from etl_dagster.settings import ReplicationSettings
from etl_dagster.store.config import SqliteStoreConfig, StoreConfig

# Beside the config file, so that a pipeline is moved by moving its folder.
STATE_FOLDER = Path(".etl")
NESTED_ERROR = "nested"


def _destination(value: object) -> object:
    """Through the registry; its errors stay attached, so that each problem can be reported at its field."""
    if not isinstance(value, Mapping):
        return value
    if value.get("type") not in (known := destination_types()):
        tags = ", ".join(map(repr, known))
        raise PydanticKnownError(
            "union_tag_invalid", {"discriminator": "'type'", "tag": str(value.get("type")), "expected_tags": tags}
        )
    try:
        return parse_destination(value)
    except ConfigError as error:
        cause = error.__cause__
        attached = cause if isinstance(cause, ValidationError) else error
        raise PydanticCustomError(NESTED_ERROR, "{message}", {"message": str(error), "error": attached}) from None


def _default_store(validated: dict[str, Any]) -> StoreConfig:
    return SqliteStoreConfig(path=STATE_FOLDER / f"{validated.get('name', 'pipeline')}.sqlite")


class PipelineConfig(FrozenModel):
    """One source, one publication, one slot, one destination.

    Publication and slot are called ``etl_<name>`` unless they are given names.
    """

    # The text of an error would repeat the values, secrets among them.
    model_config = ConfigDict(hide_input_in_errors=True)

    name: str = Field(
        pattern=r"^[a-z0-9_]{1,40}$",
        description="Names the pipeline everywhere: 1 to 40 of a-z, 0-9 and _",
        examples=["shop"],
    )
    source: SourceConfig = Field(examples=[{"connection": {"dsn": "${SOURCE_DSN}"}}])
    destination: Annotated[SerializeAsAny[DestinationConfig], BeforeValidator(_destination)] = Field(
        examples=[{"type": "duckdb", "path": "shop.duckdb"}]
    )
    store: StoreConfig = Field(
        default_factory=_default_store, examples=[{"type": "sqlite", "path": ".etl/shop.sqlite"}]
    )
    replication: ReplicationSettings = Field(ReplicationSettings(), examples=[{"copy_connections": 4}])
    defaults: TableDefaults = Field(TableDefaults(), examples=[{"landing": "soft_delete"}])
    tables: dict[PatternText, TableChoice] = Field({}, examples=[{"public.orders": {"landing": "soft_delete"}}])

    @property
    def choices(self) -> TableChoices:
        """What is chosen per table and per column."""
        return TableChoices(defaults=self.defaults, tables=self.tables)

    @field_validator("source")
    @classmethod
    def _name_publication_and_slot(cls, source: SourceConfig, info: ValidationInfo) -> SourceConfig:
        derived = {"name": f"etl_{info.data.get('name', 'pipeline')}"}
        parts = {"publication": source.publication, "slot": source.slot}
        return source.model_copy(
            update={
                field: part.model_copy(update=derived)
                for field, part in parts.items()
                if "name" not in part.model_fields_set
            }
        )
