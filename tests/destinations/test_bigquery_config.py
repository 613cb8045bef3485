"""What BigQuery's config takes, refuses and shows."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from etl_dagster.destinations.bigquery.config import BigQueryConfig, RangePartition, TimePartition
from etl_dagster.destinations.registry import parse_destination
from etl_dagster.errors import ConfigError
from etl_dagster.model import TableId

LEAST = {"type": "bigquery", "project": "my-project", "dataset": "shop"}
SECRET = "-----BEGIN PRIVATE KEY-----s3cr3t"
KEY = {
    "type": "service_account",
    "client_email": "etl@my-project.iam.gserviceaccount.com",
    "private_key": SECRET,
    "token_uri": "https://oauth2.googleapis.com/token",
}


def config(**fields: Any) -> BigQueryConfig:
    return BigQueryConfig.model_validate(LEAST | fields)


def test_project_and_dataset_are_enough() -> None:
    found = config()
    assert (found.location, found.table_name, found.credentials.type) == ("US", "{schema}_{table}", "default")
    assert found.options_for(TableId("public", "orders")).cluster_by is None


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"project": "Has Spaces"}, "project"),
        ({"dataset": "has-dash"}, "dataset"),
        ({"dataset": "shop", "internal_dataset": "a.b"}, "internal_dataset"),
        ({"location": "somewhere else"}, "location"),
        ({"location": "US' OR '"}, "location"),
        ({"table_name": "{schema}"}, ""),
        ({"table_name": "{table}_{column}"}, ""),
        ({"table_name": "{table.__class__}{x"}, ""),
        ({"table_name": "{table:>1000000000}"}, ""),
        ({"table_name": "{table!r}"}, ""),
        ({"table_name": "{{x}}_{table}"}, ""),
        ({"table_name": "_etl_{table}"}, ""),
        ({"staging": {"bucket": "gs://bucket"}}, "staging.bucket"),
        ({"labels": {"Team": "data"}}, "labels.Team.[key]"),
        ({"labels": {"team": "Data Team"}}, "labels.team"),
        ({"tables": {"a.b.c": {}}}, "tables.a.b.c.[key]"),
        ({"tables": {"public.t": {"cluster_by": ["a", "b", "c", "d", "e"]}}}, "tables.public.t.cluster_by"),
        ({"tables": {"public.t": {"cluster_by": ["a", "a"]}}}, "tables.public.t.cluster_by"),
        ({"tables": {"public.t": {"partition_by": {"type": "time"}}}}, "tables.public.t.partition_by.time.column"),
        ({"batch_seconds": -1}, "batch_seconds"),
        ({"batch_seconds": float("inf")}, "batch_seconds"),
        ({"batch_seconds": float("nan")}, "batch_seconds"),
        ({"retry_seconds": float("inf")}, "retry_seconds"),
        ({"timeout_seconds": 86_401}, "timeout_seconds"),
        ({"inline_bytes": 100_000_000}, "inline_bytes"),
        ({"maximum_bytes_billed": 1}, "maximum_bytes_billed"),
        ({"api_endpoint": "127.0.0.1:9050"}, "api_endpoint"),
        ({"storage_api_endpoint": "http://127.0.0.1:9060"}, "storage_api_endpoint"),
        ({"credentials": {"type": "anonymous"}}, ""),
        ({"credentials": {"type": "default", "impersonate": "somebody"}}, "credentials.default.impersonate"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_what_is_wrong_is_told_with_its_path(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(ValidationError) as caught:
        config(**fields)
    assert ".".join(map(str, caught.value.errors()[0]["loc"])) == path


@pytest.mark.parametrize("end", [0, -5, 10_001])
def test_a_range_has_between_one_and_ten_thousand_partitions(end: int) -> None:
    RangePartition(column="id", start=0, end=10_000, interval=1)
    with pytest.raises(ValidationError, match=r"end has to be greater|more than 10000 partitions"):
        RangePartition(column="id", start=0, end=end, interval=1)


def test_the_exact_name_wins_then_the_first_pattern() -> None:
    found = config(
        tables={
            "public.*": {"cluster_by": ["a"]},
            "*.orders": {"cluster_by": ["b"]},
            "public.orders": {"partition_by": {"type": "time", "column": "at"}},
        }
    )
    assert found.options_for(TableId("public", "orders")).partition_by == TimePartition(column="at")
    assert found.options_for(TableId("public", "items")).cluster_by == ("a",)
    assert found.options_for(TableId("sales", "orders")).cluster_by == ("b",)
    assert found.options_for(TableId("sales", "items")).cluster_by is None


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        (SECRET, "is not JSON"),
        (json.dumps({**KEY, "type": "authorized_user"}), "not the key of a service account"),
        (json.dumps([SECRET]), "not the key of a service account"),
        (json.dumps({name: value for name, value in KEY.items() if name != "token_uri"}), "lacks token_uri"),
    ],
)
def test_a_key_that_is_none_is_refused_and_not_shown(key: str, wrong: str) -> None:
    given = LEAST | {"credentials": {"type": "key", "json": key}}
    with pytest.raises(ConfigError, match=f"destination.credentials.key.json: .*{wrong}") as caught:
        parse_destination(given)
    chain = f"{caught.value} {caught.value.__cause__!r} {caught.value.__cause__.errors()!r}"  # type: ignore[union-attr]
    assert "s3cr3t" not in chain


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(KEY),
        json.dumps(KEY, indent=2),
        SECRET,
        f"s3cr3t\n{SECRET}",
        f"s3cr3t{base64.b64encode(json.dumps({**KEY, 'private_key': SECRET * 40}).encode()).decode()}",
    ],
)
def test_a_key_in_the_place_of_its_path_is_refused_and_not_shown(content: str) -> None:
    given = LEAST | {"credentials": {"type": "file", "path": content}}
    with pytest.raises(
        ConfigError, match=r"destination.credentials.file.path: .*is the content of a key file"
    ) as caught:
        parse_destination(given)
    chain = f"{caught.value} {caught.value.__cause__!r} {caught.value.__cause__.errors()!r}"  # type: ignore[union-attr]
    assert "s3cr3t" not in chain


def test_a_key_is_shown_nowhere() -> None:
    found = config(credentials={"type": "key", "json": json.dumps(KEY)})
    assert found.credentials.json_.get_secret_value() == json.dumps(KEY)  # type: ignore[union-attr]
    assert "s3cr3t" not in f"{found!r} {found} {found.model_dump()} {found.model_dump_json()}"


def test_reading_a_config_takes_none_of_googles_libraries() -> None:
    code = (
        "import sys; from etl_dagster.destinations.registry import parse_destination; "
        f"parse_destination({LEAST!r}); print([name for name in sys.modules if name.startswith(('google', 'grpc'))])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_without_googles_libraries_the_hint_says_what_to_install() -> None:
    code = f"""
import sys
from etl_dagster.destinations.bigquery.client import Client
from etl_dagster.destinations.registry import parse_destination
from etl_dagster.errors import ConfigError

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("google"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
try:
    Client(parse_destination({LEAST!r}))
except ConfigError as error:
    print(error.hint)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told == "Run: pip install 'etl-dagster[bigquery]'\n"
