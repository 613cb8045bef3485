"""Config of the BigQuery destination; reading it needs none of Google's libraries."""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlencode

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator

from etl_dagster.destinations.config import DestinationConfig, ShownTable
from etl_dagster.model import FrozenModel, TableId, TablePattern

# BigQuery's own default; data stays where it was created first.
LOCATION = "US"
TABLE_NAME = "{schema}_{table}"
# Every batch is billed by the size of the tables it changes, and 25 changes of one table fit into ten seconds.
BATCH_SECONDS = 60.0
# Beside a load job, sending rows within the query saves some two seconds and a load of the day's 1,500 per table;
# a query's request may have 10 MB, the rest of which is for SQL and JSON's escapes.
INLINE_BYTES = 1024 * 1024
MOST_INLINE_BYTES = 4 * 1024 * 1024
# Google's servers answer within two minutes or never.
TIMEOUT_SECONDS = 180.0
# Longer than most of the troubles that Google's own status page has called short.
RETRY_SECONDS = 600.0
# A day: who waits longer waits for ever.
LONGEST_SECONDS = 86_400.0
CONSOLE_URL = "https://console.cloud.google.com/bigquery"
STAGING_PREFIX = "etl-dagster/"
# BigQuery's limit, for clustering and for labels.
MOST_CLUSTER_COLUMNS = 4
MOST_LABELS = 60
# Far beyond any path of use, and less than any key, also in base64.
LONGEST_PATH = 1024
# BigQuery's limit per table.
MOST_PARTITIONS = 10_000

_PROJECT = re.compile(r"(?:[a-z0-9.-]+:)?[a-z][a-z0-9-]{2,61}[a-z0-9]")
_DATASET = re.compile(r"[A-Za-z0-9_]{1,1024}")
_LOCATION = re.compile(r"[A-Za-z]+(?:-[a-z]+\d*)*")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_ACCOUNT = re.compile(r"[a-z0-9][a-z0-9.-]*@[a-z0-9][a-z0-9.-]*\.gserviceaccount\.com")
_ENDPOINT = re.compile(r"https?://[^\s/?#@]+/?")
_GRPC_ENDPOINT = re.compile(r"[^\s/?#@:]+(?::\d{1,5})?")
# What Google allows: letters of any alphabet but no capitals.
_LABEL_KEY = re.compile(r"(?=[^\d_-])[\w-]{1,63}")
_LABEL_VALUE = re.compile(r"[\w-]{0,63}")
_PLACEHOLDER, _BRACES = re.compile(r"\{(?:schema|table)\}"), re.compile(r"[{}]")
_KEY_FIELDS = ("client_email", "private_key", "token_uri")


def _matching(pattern: re.Pattern[str], wanted: str) -> AfterValidator:
    def check(value: str) -> str:
        if pattern.fullmatch(value) is None:
            raise ValueError(wanted)
        return value

    return AfterValidator(check)


def _label_key(value: str) -> str:
    if value != value.lower() or _LABEL_KEY.fullmatch(value) is None:
        raise ValueError("must begin with a letter, then up to 62 small letters, digits, - and _")
    return value


def _label_value(value: str) -> str:
    if value != value.lower() or _LABEL_VALUE.fullmatch(value) is None:
        raise ValueError("must have up to 63 small letters, digits, - and _")
    return value


def _wrapped(data: dict[str, Any], name: str) -> dict[str, Any]:
    """What is refused is kept in the error's details; wrapped, it is kept unreadable."""
    return {**data, name: SecretStr(data[name])}


def _is_content(path: object) -> bool:
    """Whether somebody gave a key file's text, plain or in base64, where its path belongs."""
    return isinstance(path, str) and (
        len(path) > LONGEST_PATH or path.lstrip().startswith("{") or "\n" in path or "PRIVATE KEY" in path
    )


def _table_pattern(value: str) -> str:
    TablePattern.parse(value)
    return value


Dataset = Annotated[str, _matching(_DATASET, "must have letters, digits and _ alone")]
Bucket = Annotated[
    str, _matching(_BUCKET, "must be a bucket's name alone, without gs://: small letters, digits, -, _ and .")
]
Account = Annotated[
    str, _matching(_ACCOUNT, "must be a service account's e-mail address: name@project.iam.gserviceaccount.com")
]
Labels = Annotated[
    dict[Annotated[str, AfterValidator(_label_key)], Annotated[str, AfterValidator(_label_value)]],
    Field(max_length=MOST_LABELS),
]
_IMPERSONATE = Field(
    None,
    description="A service account to act as; needs roles/iam.serviceAccountTokenCreator on it",
    examples=["etl@my-project.iam.gserviceaccount.com"],
)


class DefaultCredentials(FrozenModel):
    """What the environment gives: workload identity, GOOGLE_APPLICATION_CREDENTIALS, or gcloud's login."""

    type: Literal["default"] = "default"
    impersonate: Account | None = _IMPERSONATE


class KeyCredentials(FrozenModel):
    """A service account's key as text."""

    type: Literal["key"] = "key"
    json_: SecretStr = Field(
        alias="json", description="The key file's content", examples=["${BIGQUERY_KEY}"], repr=False
    )
    impersonate: Account | None = _IMPERSONATE

    @model_validator(mode="before")
    @classmethod
    def _wrap_secrets(cls, data: Any) -> Any:
        return _wrapped(data, "json") if isinstance(data, dict) and isinstance(data.get("json"), str) else data

    @field_validator("json_")
    @classmethod
    def _is_a_key(cls, value: SecretStr) -> SecretStr:
        try:
            key = json.loads(value.get_secret_value())
        except ValueError:  # the decoder's message may quote the key
            raise ValueError("is not JSON; give the content of the key file that Google Cloud made") from None
        if not isinstance(key, dict) or key.get("type") != "service_account":
            raise ValueError("is not the key of a service account: its type has to be service_account")
        if missing := [name for name in _KEY_FIELDS if not isinstance(key.get(name), str)]:
            raise ValueError(f"lacks {', '.join(missing)}; give the whole content of the key file")
        return value


class FileCredentials(FrozenModel):
    """A file with a service account's key, or with the description of a workload identity federation."""

    type: Literal["file"] = "file"
    path: str = Field(min_length=1, description="The file", examples=["/run/secrets/bigquery.json"])
    impersonate: Account | None = _IMPERSONATE

    @model_validator(mode="before")
    @classmethod
    def _wrap_keys(cls, data: Any) -> Any:
        return _wrapped(data, "path") if isinstance(data, dict) and _is_content(data.get("path")) else data

    @field_validator("path", mode="before")
    @classmethod
    def _is_a_path(cls, value: Any) -> Any:
        if isinstance(value, SecretStr):
            # pydantic takes no TypeError
            raise ValueError("is the content of a key file, not its path; give it as type: key, json: ...")  # noqa: TRY004
        return value


class AnonymousCredentials(FrozenModel):
    """None, for an emulator; takes an ``api_endpoint``."""

    type: Literal["anonymous"] = "anonymous"


Credentials = Annotated[
    DefaultCredentials | KeyCredentials | FileCredentials | AnonymousCredentials, Field(discriminator="type")
]


class GcsStaging(FrozenModel):
    """A bucket that files go through on their way into BigQuery."""

    bucket: Bucket = Field(description="In the dataset's location, or a multi-region around it", examples=["my-etl"])
    prefix: str = Field(
        STAGING_PREFIX,
        max_length=512,
        description="Begins the names of all objects; a lifecycle rule may delete what is older than a day",
    )


class TimePartition(FrozenModel):
    """Partitions by a date or time."""

    type: Literal["time"] = "time"
    column: str = Field(min_length=1, description="A date, timestamp or timestamptz column", examples=["created_at"])
    granularity: Literal["hour", "day", "month", "year"] = Field("day", description="How long a partition is")


class RangePartition(FrozenModel):
    """Partitions by ranges of an integer."""

    type: Literal["range"] = "range"
    column: str = Field(min_length=1, description="An integer column", examples=["customer_id"])
    start: int = Field(description="First value of the first partition", examples=[0])
    end: int = Field(description="First value after the last partition", examples=[100_000_000])
    interval: int = Field(ge=1, description="Values per partition", examples=[1_000_000])

    @model_validator(mode="after")
    def _is_in_bounds(self) -> Self:
        if self.end <= self.start:
            raise ValueError("end has to be greater than start")
        if (self.end - self.start) / self.interval > MOST_PARTITIONS:
            raise ValueError(f"more than {MOST_PARTITIONS} partitions; choose a longer interval")
        return self


Partition = Annotated[TimePartition | RangePartition, Field(discriminator="type")]


class TableOptions(FrozenModel):
    """How one table is laid out; used when the table is made, that is, by its next copy."""

    partition_by: Partition | None = Field(
        None,
        description="A column that never changes, best one of the key, so that a batch reads few partitions",
        examples=[
            {"type": "time", "column": "created_at", "granularity": "day"},
            {"type": "range", "column": "customer_id", "start": 0, "end": 100_000_000, "interval": 1_000_000},
        ],
    )
    cluster_by: tuple[str, ...] | None = Field(
        None,
        description="Up to 4 columns; the key when left out, none for []",
        examples=[["customer_id", "id"]],
    )
    labels: Labels = Field({}, description="Labels of the table, beside those of all", examples=[{"team": "sales"}])
    expiration_days: float | None = Field(
        None, gt=0, description="When a partition is removed, or a table without partitions as a whole", examples=[90]
    )

    @field_validator("cluster_by")
    @classmethod
    def _are_few_columns(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        columns = value or ()
        if len(columns) > MOST_CLUSTER_COLUMNS:
            raise ValueError(f"must name at most {MOST_CLUSTER_COLUMNS} columns")
        if len(set(columns)) < len(columns) or not all(columns):
            raise ValueError("names a column twice, or an empty one")
        return value


class BigQueryConfig(DestinationConfig):
    """One dataset, in which every table is a table."""

    type: Literal["bigquery"] = "bigquery"
    project: Annotated[str, _matching(_PROJECT, "must be a project's id: small letters, digits and -")] = Field(
        description="Google Cloud project that holds the dataset and pays for the jobs", examples=["my-project"]
    )
    dataset: Dataset = Field(description="Dataset of the tables; made when it is missing", examples=["shop"])
    location: Annotated[str, _matching(_LOCATION, "must be a location: US, EU, europe-west3, ...")] = Field(
        LOCATION, description="Where the dataset is, or is made", examples=["EU"]
    )
    internal_dataset: Dataset | None = Field(
        None, description="Dataset of the tables that only we use (_etl_...), in the same location", examples=["etl"]
    )
    table_name: str = Field(
        TABLE_NAME, description="Name of a table, from {schema} and {table}", examples=["{schema}_{table}"]
    )
    credentials: Credentials = Field(
        DefaultCredentials(), description="Who connects", examples=[{"type": "key", "json": "${BIGQUERY_KEY}"}]
    )
    staging: GcsStaging | None = Field(
        None, description="Send files through Cloud Storage, not straight to BigQuery", examples=[{"bucket": "my-etl"}]
    )
    labels: Labels = Field({}, description="Labels of tables and jobs, for the bill", examples=[{"team": "data"}])
    tables: dict[Annotated[str, AfterValidator(_table_pattern)], TableOptions] = Field(
        {},
        description="Layout of tables by name or pattern; an exact name wins, then what stands first",
        examples=[{"public.orders": {"partition_by": {"type": "time", "column": "created_at"}}}],
    )
    json_: Literal["native", "string"] = Field(
        "native", alias="json", description="json and jsonb as BigQuery's JSON, or as text to the letter"
    )
    arrays: Literal["json", "repeated"] = Field(
        "json", description="Arrays as JSON, which holds NULLs, or as ARRAY, which holds none"
    )
    batch_seconds: float = Field(
        BATCH_SECONDS,
        ge=0,
        le=LONGEST_SECONDS,
        description="How far apart batches are once caught up; each reads the tables it changes",
    )
    maximum_bytes_billed: int | None = Field(
        None, ge=10 * 1024 * 1024, description="Most bytes that one query may bill; it fails at no cost beyond"
    )
    inline_bytes: int = Field(
        INLINE_BYTES,
        ge=0,
        le=MOST_INLINE_BYTES,
        description="Changes up to this size are sent within the query, larger ones by a load job; 0: never",
    )
    timeout_seconds: float = Field(
        TIMEOUT_SECONDS, ge=1, le=LONGEST_SECONDS, description="Longest silence of a single request"
    )
    retry_seconds: float = Field(
        RETRY_SECONDS, ge=0, le=LONGEST_SECONDS, description="How long one request or job is tried again"
    )
    api_endpoint: (
        Annotated[str, _matching(_ENDPOINT, "must be http://host:port or https://host, without a path")] | None
    ) = Field(None, description="Another address of the API: a private one, or an emulator's")
    storage_api_endpoint: Annotated[str, _matching(_GRPC_ENDPOINT, "must be host:port, without http://")] | None = (
        Field(None, description="Another address of the Storage Read API; without TLS for anonymous credentials")
    )

    @model_validator(mode="after")
    def _name_tells_tables_apart(self) -> Self:
        if _BRACES.search(_PLACEHOLDER.sub("", self.table_name)):
            raise ValueError("table_name may hold {schema} and {table} alone between braces")
        if "{table}" not in self.table_name:
            raise ValueError("table_name has to hold {table}, since all tables would have one name")
        if self.table_name.startswith("_etl_"):
            raise ValueError("table_name must not begin with _etl_, as the destination's own tables do")
        return self

    @model_validator(mode="after")
    def _anonymous_has_an_endpoint(self) -> Self:
        if isinstance(self.credentials, AnonymousCredentials) and self.api_endpoint is None:
            raise ValueError("credentials of type anonymous are for an emulator: give its api_endpoint")
        return self

    def shown(self, table: TableId) -> ShownTable:
        from etl_dagster.destinations.bigquery.naming import Names  # which is made of a config

        name = Names(self).table_name(table)
        address = urlencode({"p": self.project, "d": self.dataset, "t": name, "page": "table"})
        return ShownTable(f"{self.project}.{self.dataset}.{name}", f"{CONSOLE_URL}?{address}")

    def options_for(self, table: TableId) -> TableOptions:
        """The layout of a table: by its exact name, else by the first pattern that matches."""
        for pattern, options in self._layouts:
            if pattern.matches(table):
                return options
        return TableOptions()

    @cached_property
    def _layouts(self) -> list[tuple[TablePattern, TableOptions]]:
        parsed = [(TablePattern.parse(text), options) for text, options in self.tables.items()]
        return sorted(parsed, key=lambda entry: entry[0].exact is None)
