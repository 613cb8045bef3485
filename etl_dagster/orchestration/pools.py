"""Concurrency pools of table syncs: one per source, one per destination."""

import hashlib
from collections.abc import Callable

from pydantic import SecretStr

from etl_dagster.destinations.config import DestinationConfig
from etl_dagster.errors import ConfigError
from etl_dagster.model import FrozenModel
from etl_dagster.orchestration.names import safe_name
from etl_dagster.orchestration.parts import PipelineParts
from etl_dagster.postgres import SourceConfig

_READABLE = 60
_LOCAL = {"host": "localhost", "port": "5432", "dbname": ""}


class Pools(FrozenModel):
    """Names of the pools that the copies of a pipeline take part in; those not given come from what they protect, so
    that pipelines with the same source or destination share them.

    Attributes:
        source: Runs that copy from one source.
        destination: Runs that copy into one destination.
    """

    source: str | None = None
    destination: str | None = None

    def of(self, parts: PipelineParts) -> "PoolNames":
        """Both names for a pipeline."""
        return PoolNames(
            source=self.source or _named("etl_source", parts, lambda: _source(parts.source_now())),
            destination=self.destination
            or _named("etl_destination", parts, lambda: _destination(parts.destination_now())),
        )


class PoolNames(FrozenModel):
    """Both names, settled."""

    source: str
    destination: str


def _named(prefix: str, parts: PipelineParts, identity: Callable[[], str]) -> str:
    try:
        text = identity()
    except ConfigError:  # a variable that is not set here: then nothing runs here either
        return f"{prefix}_{parts.names.group}"
    return f"{prefix}_{safe_name(text)[-_READABLE:].strip('_')}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _source(config: SourceConfig) -> str:
    given = config.connection.parameters()
    return " ".join(given.get(name, default) for name, default in _LOCAL.items())


def _destination(config: DestinationConfig) -> str:
    """What has to be given for a destination is what tells it from others; the rest says how it is used."""
    required = (name for name, field in type(config).model_fields.items() if field.is_required())
    values = (getattr(config, name) for name in required if name != "type")
    return " ".join([config.type, *(str(value) for value in values if not isinstance(value, SecretStr))])
