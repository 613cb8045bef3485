"""One pipeline taken apart into Dagster resources, and put together again where it runs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import dagster as dg

from etl_dagster.config import PipelineConfig, load_config
from etl_dagster.destinations.config import DestinationConfig
from etl_dagster.errors import ConfigError
from etl_dagster.model import TableChoices
from etl_dagster.orchestration.names import PipelineNames
from etl_dagster.orchestration.resources import (
    ConfigResource,
    DestinationResource,
    PostgresSourceResource,
    StoreResource,
    config_of,
)
from etl_dagster.postgres import SourceConfig
from etl_dagster.settings import ReplicationSettings
from etl_dagster.store import StoreConfig

# Dagster has no public name for the second, a variable that holds a number.
_VARIABLES = (dg.EnvVar, type(dg.EnvVar.int("_")))
_UNSET = re.compile(r'environment variable "([^"]+)" which is not set')


class VariablesUnset(ConfigError):
    """An ``EnvVar`` of a resource has no value here."""


@dataclass(frozen=True)
class PipelineParts:
    """What a pipeline is made of, each part a resource or a config.

    A config is handed to Dagster as an opaque object, so that its secrets show nowhere; a resource shows its fields in
    the UI, with an ``EnvVar`` by its name.
    """

    name: str
    source: PostgresSourceResource | SourceConfig
    destination: DestinationResource | DestinationConfig
    store: StoreResource | StoreConfig
    replication: ReplicationSettings = field(default_factory=ReplicationSettings)
    choices: TableChoices = field(default_factory=TableChoices)

    @classmethod
    def of(cls, given: "PipelineConfig | PipelineParts | Path") -> "PipelineParts":
        """From whatever describes a pipeline."""
        if isinstance(given, PipelineParts):
            return given
        config = load_config(given) if isinstance(given, Path) else given
        return cls(config.name, config.source, config.destination, config.store, config.replication, config.choices)

    @cached_property
    def names(self) -> PipelineNames:
        """Its names in Dagster."""
        return PipelineNames(self.name)

    @property
    def destination_kind(self) -> str:
        """Kind that the destination's tables show."""
        return self.destination.kind if isinstance(self.destination, DestinationResource) else self.destination.type

    @property
    def destination_has_variables(self) -> bool:
        """Whether the destination depends on the environment."""
        return _has_variables(self.destination)

    @property
    def resource_keys(self) -> set[str]:
        """Keys of the three resources."""
        return {self.names.source, self.names.destination, self.names.store}

    def as_resources(self) -> Mapping[str, object]:
        """The three parts under their keys."""
        return {
            self.names.source: self.source,
            self.names.destination: self.destination,
            self.names.store: self.store,
        }

    def config(self, resources: object) -> PipelineConfig:
        """The pipeline's config from the resources of a run or a tick."""
        return self._assemble({key: getattr(resources, key) for key in self.resource_keys})

    def config_now(self) -> PipelineConfig:
        """The same outside of any run, with environment variables resolved now.

        Raises:
            ConfigError: A variable is not set.
        """
        return self._assemble({key: _resolved(part) for key, part in self.as_resources().items()})

    def source_now(self) -> SourceConfig:
        """The source, with environment variables resolved now.

        Raises:
            ConfigError: A variable is not set.
        """
        found = _resolved(self.source)
        assert isinstance(found, SourceConfig)
        return found

    def destination_now(self) -> DestinationConfig:
        """The destination, likewise."""
        found = _resolved(self.destination)
        assert isinstance(found, DestinationConfig)
        return found

    def _assemble(self, parts: Mapping[str, object]) -> PipelineConfig:
        return PipelineConfig.model_validate(
            {
                "name": self.name,
                "source": config_of(parts[self.names.source]),
                "destination": config_of(parts[self.names.destination]),
                "store": config_of(parts[self.names.store]),
                "replication": self.replication,
                "defaults": self.choices.defaults,
                "tables": self.choices.tables,
            }
        )


def _has_variables(value: object) -> bool:
    match value:
        case dg.ConfigurableResource():
            return any(_has_variables(getattr(value, name)) for name in type(value).model_fields)
        case Mapping():
            return any(_has_variables(item) for item in value.values())
        case list():
            return any(_has_variables(item) for item in value)
        case _:
            return isinstance(value, _VARIABLES)


def _resolved(part: object) -> object:
    if not isinstance(part, ConfigResource):
        return part
    try:
        # What is nested in it may want to be closed; a config holds nothing open.
        with part.process_config_and_initialize_cm() as resolved:
            return config_of(resolved)
    except dg.DagsterInvalidConfigError as error:
        problems = [problem.message for problem in error.errors]
        unset = [name for problem in problems for name in _UNSET.findall(problem)]
        if unset:
            raise VariablesUnset(
                f"Not set in the environment: {', '.join(unset)}", hint="Set what is missing"
            ) from error
        problem = problems[0].partition("\n")[0]
        raise ConfigError(f"A resource cannot be resolved: {problem}", hint="Set the variable that it names") from error
