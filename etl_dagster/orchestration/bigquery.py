"""BigQuery as a Dagster resource that shares project and credentials with the rest of a Dagster project."""

import base64
import json
from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError, field_validator

from etl_dagster.config.document import Document, FieldPath
from etl_dagster.config.problems import problems
from etl_dagster.destinations.bigquery.config import BigQueryConfig
from etl_dagster.destinations.config import DestinationConfig
from etl_dagster.destinations.registry import parse_destination
from etl_dagster.errors import ConfigError
from etl_dagster.orchestration.resources import DestinationResource

try:
    from dagster_gcp import BigQueryResource
except ImportError as error:
    raise ConfigError(
        "The BigQuery resource needs dagster-gcp, which is not installed",
        hint="Run: pip install 'etl-dagster[bigquery]'",
    ) from error

_FIELDS = (
    "dataset",
    "internal_dataset",
    "table_name",
    "labels",
    "tables",
    "batch_seconds",
    "maximum_bytes_billed",
)
# What a path of the config is called here; what is not named comes from ``options``.
_HERE: Mapping[FieldPath, str] = {
    ("project",): "bigquery.project",
    ("location",): "bigquery.location",
    ("credentials", "impersonate"): "impersonate",
    ("credentials",): "bigquery.gcp_credentials",
    ("staging", "bucket"): "staging_bucket",
    ("staging", "prefix"): "staging_prefix",
    **{(name,): name for name in _FIELDS},
}


class BigQueryDestinationResource(DestinationResource):
    """One dataset in BigQuery.

    Credentials are those of ``bigquery``: its ``gcp_credentials``, the key of a service account in base64, or what the
    environment gives. Unlike `BigQueryResource.get_client`, it never changes the environment of the process.

    dagster-gcp's ``GCSResource`` has nothing that a staging bucket would need: it is written with these credentials.
    """

    bigquery: BigQueryResource = Field(description="Project, location and credentials, as the project's assets use it")
    dataset: str = Field(description="Dataset of the tables; made when it is missing")
    internal_dataset: str | None = Field(default=None, description="Dataset of the tables that only we use")
    table_name: str | None = Field(default=None, description="Name of a table, from {schema} and {table}")
    impersonate: str | None = Field(default=None, description="A service account to act as")
    staging_bucket: str | None = Field(default=None, description="Bucket that files go through, without gs://")
    staging_prefix: str | None = Field(default=None, description="Begins the names of all objects in the bucket")
    labels: dict[str, str] = Field(default={}, description="Labels of tables and jobs, for the bill")
    tables: dict[str, Any] = Field(default={}, description="Layout of tables by name or pattern, as in a config file")
    batch_seconds: float | None = Field(default=None, description="How far apart batches are once caught up")
    maximum_bytes_billed: int | None = Field(default=None, description="Most bytes that one query may bill")
    options: dict[str, Any] = Field(default={}, description="Further fields of the config; nothing secret")

    @field_validator("options")
    @classmethod
    def _hold_no_key(cls, options: dict[str, Any]) -> dict[str, Any]:
        # Not a ValueError, whose text would repeat the key.
        credentials = options.get("credentials")
        if isinstance(credentials, dict) and "json" in credentials:
            raise ConfigError(
                "options of the BigQueryDestinationResource hold a key, which Dagster would store and show",
                hint='Give it as BigQueryResource(gcp_credentials=EnvVar("NAME")), the variable in base64',
            )
        return options

    @property
    def kind(self) -> str:
        return "bigquery"

    def to_config(self) -> DestinationConfig:
        fields = self._fields()
        try:
            return parse_destination(fields)
        except ConfigError as error:
            if not isinstance(error.__cause__, ValidationError):
                raise
            # Without the cause, whose details hold the key.
            raise self._told(error.__cause__, fields) from None

    def _fields(self) -> dict[str, Any]:
        key = _key(self.bigquery.gcp_credentials)
        fields: dict[str, Any] = {"type": self.kind, "project": self._project(key)}
        if self.bigquery.location:
            fields["location"] = self.bigquery.location
        fields["credentials"] = self._credentials(key)
        if staging := self._staging():
            fields["staging"] = staging
        given = {name: value for name in _FIELDS if (value := getattr(self, name)) is not None}
        return {**fields, **given, **self.options}

    def _staging(self) -> dict[str, str]:
        if self.staging_prefix is None:
            return {} if self.staging_bucket is None else {"bucket": self.staging_bucket}
        if self.staging_bucket is None:
            raise ConfigError(
                "The BigQueryDestinationResource has a staging_prefix, but no staging_bucket",
                hint="Give both, or leave both out",
            )
        return {"bucket": self.staging_bucket, "prefix": self.staging_prefix}

    def _told(self, error: ValidationError, fields: dict[str, Any]) -> ConfigError:
        """What is wrong in the terms of this resource's fields."""
        found = problems(error, BigQueryConfig, Document(fields))
        told = "; ".join(f"{self._field(problem.path)} {problem.text}".strip() for problem in found)
        return ConfigError(f"BigQueryDestinationResource: {told}", hint="Correct the resource where it is made")

    def _field(self, path: FieldPath) -> str:
        if path[:1] and path[0] not in self.options:
            for length in (2, 1):
                if (name := _HERE.get(path[:length])) is not None:
                    within = () if name == "bigquery.gcp_credentials" else path[length:]
                    return ".".join(map(str, (name, *within)))
        return ".".join(map(str, ("options", *path))) if path else ""

    def _project(self, key: str | None) -> str:
        if self.bigquery.project:
            return self.bigquery.project
        if key is not None and isinstance(found := json.loads(key).get("project_id"), str):
            return found
        raise ConfigError(
            "The BigQueryResource names no project", hint='Give it one: BigQueryResource(project="my-project")'
        )

    def _credentials(self, key: str | None) -> dict[str, str]:
        found = {"type": "default"} if key is None else {"type": "key", "json": key}
        return found if self.impersonate is None else {**found, "impersonate": self.impersonate}


def _key(encoded: str | None) -> str | None:
    """The key in the form that dagster-gcp takes; no message shows any of it."""
    if not encoded:
        return None
    try:
        key = base64.b64decode(encoded).decode()
        if isinstance(json.loads(key), dict):
            return key
    except ValueError:  # of base64, of UTF-8 or of JSON
        pass
    raise ConfigError(
        "gcp_credentials of the BigQueryResource is not the key of a service account in base64",
        hint="Make it with: base64 -w0 key.json",
    )
