"""Destinations by name, loaded when they are used.

A package adds one with an entry point in the group ``etl_dagster.destinations``: its name is the ``type`` of the
config, its object a `DestinationPlugin`. Reading a config loads the config class alone, never a vendor's SDK.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import ValidationError

from etl_dagster.destinations.base import Destination
from etl_dagster.destinations.config import DestinationConfig
from etl_dagster.errors import ConfigError

ENTRY_POINT_GROUP = "etl_dagster.destinations"
BUILT_IN = {
    "memory": "etl_dagster.destinations.memory:PLUGIN",
    "duckdb": "etl_dagster.destinations.duckdb:PLUGIN",
    "bigquery": "etl_dagster.destinations.bigquery:PLUGIN",
}


@dataclass(frozen=True, slots=True)
class DestinationPlugin:
    """What a package provides: the config class, and what makes a destination of a config.

    ``factory`` imports the SDK and raises `ConfigError` with the install hint when it is missing.
    """

    config: type[DestinationConfig]
    factory: Callable[[Any], Destination]


def destination_types() -> list[str]:
    """Every known ``type``."""
    return sorted({*BUILT_IN, *_foreign()})


def parse_destination(mapping: Mapping[str, Any]) -> DestinationConfig:
    """Read the config of a destination by its ``type``.

    Raises:
        ConfigError: The type is unknown, or a field is wrong; names the field's path.
    """
    type_ = mapping.get("type")
    if not isinstance(type_, str):
        raise ConfigError("destination.type is missing", hint=f"Choose one of {', '.join(destination_types())}")
    try:
        return _plugin(type_).config.model_validate(dict(mapping))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(["destination", *map(str, first["loc"])])
        raise ConfigError(f"{path}: {first['msg']}", hint=f"Correct the config of type {type_}") from error


def open_destination(config: DestinationConfig) -> Destination:
    """The destination of a config, not started yet.

    Raises:
        ConfigError: The SDK it needs is not installed.
    """
    return _plugin(config.type).factory(config)


def _plugin(type_: str) -> DestinationPlugin:
    if type_ in BUILT_IN:
        module, _, name = BUILT_IN[type_].partition(":")
        found: object = getattr(import_module(module), name)
    elif type_ in (foreign := _foreign()):
        found = _load(foreign[type_])
    else:
        known = ", ".join(destination_types())
        raise ConfigError(f"destination.type {type_!r} is unknown", hint=f"Choose one of {known}")
    if not isinstance(found, DestinationPlugin):
        raise ConfigError(f"destination.type {type_!r} does not name a DestinationPlugin", hint="Fix its entry point")
    return found


def _foreign() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}


def _load(entry: EntryPoint) -> object:
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"destination.type {entry.name!r} cannot be loaded from {entry.value}",
            hint="Reinstall the package that provides it",
        ) from error
