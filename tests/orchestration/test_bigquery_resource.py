"""BigQuery as a resource: credentials shared with the rest of the project, which no one gets to see."""

import base64
import json
import os
import subprocess
import sys
import traceback
from typing import Any

import dagster as dg
import pytest
from dagster_gcp import BigQueryResource

from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.bigquery.config import BigQueryConfig, DefaultCredentials, KeyCredentials
from etl_dagster.errors import ConfigError
from etl_dagster.model import TableId
from etl_dagster.orchestration import (
    BigQueryDestinationResource,
    PipelineParts,
    PostgresSourceResource,
    ReplicationTranslator,
    StoreResource,
    build_replication_defs,
)

ORDERS = TableId("shop", "orders")
SECRET = "do-not-show-this"
KEY = {
    "type": "service_account",
    "project_id": "key-project",
    "client_email": "etl@key-project.iam.gserviceaccount.com",
    "private_key": SECRET,
    "token_uri": "https://oauth2.googleapis.com/token",
}
CREDENTIALS = base64.b64encode(json.dumps(KEY).encode()).decode()


def resource(bigquery: BigQueryResource | None = None, **fields: Any) -> BigQueryDestinationResource:
    return BigQueryDestinationResource(
        bigquery=bigquery or BigQueryResource(project="my-project"), **({"dataset": "shop"} | fields)
    )


def parts(destination: BigQueryDestinationResource) -> PipelineParts:
    return PipelineParts(
        name="far",
        source=PostgresSourceResource(host="127.0.0.1", port=1, database="d", user="u", tables=["shop.orders"]),
        destination=destination,
        store=StoreResource(),
    )


def config_of(destination: BigQueryDestinationResource) -> BigQueryConfig:
    found = parts(destination).destination_now()
    assert isinstance(found, BigQueryConfig)
    return found


def test_without_credentials_those_of_the_environment_are_used() -> None:
    config = config_of(resource())
    assert (config.project, config.dataset) == ("my-project", "shop")
    assert config.credentials == DefaultCredentials()


def test_the_key_of_the_project_resource_becomes_ours_and_the_environment_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEST_GCP_KEY", CREDENTIALS)
    monkeypatch.setenv("TEST_GCP_PROJECT", "env-project")
    monkeypatch.setenv("TEST_DATASET", "env_dataset")
    before = dict(os.environ)
    shared = BigQueryResource(
        project=dg.EnvVar("TEST_GCP_PROJECT"), location="EU", gcp_credentials=dg.EnvVar("TEST_GCP_KEY")
    )

    config = config_of(resource(shared, dataset=dg.EnvVar("TEST_DATASET"), impersonate="a@p.iam.gserviceaccount.com"))

    assert (config.project, config.location, config.dataset) == ("env-project", "EU", "env_dataset")
    assert isinstance(config.credentials, KeyCredentials)
    assert json.loads(config.credentials.json_.get_secret_value()) == KEY
    assert config.credentials.impersonate == "a@p.iam.gserviceaccount.com"
    assert dict(os.environ) == before
    assert SECRET not in repr(config)


def test_a_project_is_taken_from_the_key_and_otherwise_asked_for() -> None:
    assert config_of(resource(BigQueryResource(gcp_credentials=CREDENTIALS))).project == "key-project"
    with pytest.raises(ConfigError, match="names no project"):
        config_of(resource(BigQueryResource()))


@pytest.mark.parametrize(
    "credentials", [SECRET, "!!!", base64.b64encode(SECRET.encode()).decode(), json.dumps(KEY), "W10="]
)
def test_credentials_that_are_none_are_refused_and_not_repeated(credentials: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(resource(BigQueryResource(project="p-roject", gcp_credentials=credentials)))
    assert "base64" in str(caught.value)
    assert credentials not in f"{caught.value!r} {caught.value}"


def test_a_key_that_lacks_something_is_refused_and_not_repeated() -> None:
    short = base64.b64encode(json.dumps({**KEY, "token_uri": None}).encode()).decode()
    with pytest.raises(ConfigError, match="token_uri") as caught:
        config_of(resource(BigQueryResource(project="my-project", gcp_credentials=short)))
    assert SECRET not in str(caught.value)


def test_every_field_arrives_and_what_is_left_out_keeps_its_default() -> None:
    config = config_of(
        resource(
            internal_dataset="etl",
            table_name="{table}",
            staging_bucket="my-bucket",
            labels={"team": "data"},
            tables={"shop.orders": {"cluster_by": ["id"], "partition_by": {"type": "time", "column": "at"}}},
            batch_seconds=120.0,
            maximum_bytes_billed=100_000_000,
            options={"json": "string", "arrays": "repeated"},
        )
    )
    plain = config_of(resource())
    assert (config.internal_dataset, config.table_name, config.json_, config.arrays) == (
        "etl",
        "{table}",
        "string",
        "repeated",
    )
    assert config.staging is not None
    assert config.staging.bucket == "my-bucket"
    assert config.labels == {"team": "data"}
    assert config.options_for(ORDERS).cluster_by == ("id",)
    assert (config.batch_seconds, config.maximum_bytes_billed) == (120.0, 100_000_000)
    assert plain == BigQueryConfig(project="my-project", dataset="shop")


@pytest.mark.parametrize(
    ("bigquery", "fields", "told"),
    [
        (BigQueryResource(project="My P"), {}, "bigquery.project must be a project's id"),
        (BigQueryResource(project="my-project", location="a b"), {}, "bigquery.location must be a location"),
        (BigQueryResource(project="my-project", gcp_credentials="e30="), {}, "bigquery.gcp_credentials is not the key"),
        (None, {"dataset": "a-b"}, "dataset must have letters"),
        (None, {"staging_bucket": "gs://x"}, "staging_bucket must be a bucket's name"),
        (None, {"staging_prefix": "x/"}, "has a staging_prefix, but no staging_bucket"),
        (None, {"impersonate": "x"}, "impersonate must be a service account's e-mail address"),
        (None, {"batch_seconds": -1.0}, "batch_seconds must be greater than or equal to 0"),
        (None, {"options": {"jsn": "string"}}, "options.jsn is not a known field; did you mean json?"),
        (
            None,
            {"tables": {"shop.orders": {"partition_by": {"type": "tim", "column": "at"}}}},
            "tables.shop.orders.partition_by.type must be one of 'time', 'range', but is 'tim'",
        ),
    ],
)
def test_definitions_say_what_is_wrong_by_the_names_of_the_resource(
    bigquery: BigQueryResource | None, fields: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        build_replication_defs(parts(resource(bigquery, **fields)), tables=[ORDERS])
    assert told in str(caught.value)
    assert "Value error" not in str(caught.value)


def test_a_variable_of_a_wrong_value_is_told_and_the_definitions_load(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TEST_DATASET", "a-b")
    made = build_replication_defs(parts(resource(dataset=dg.EnvVar("TEST_DATASET"))), tables=[ORDERS])
    assert live_metadata(made)["dagster/table_name"] == "shop.orders"
    assert "Pipeline far: BigQueryDestinationResource: dataset must have letters" in caplog.text


def test_variables_that_are_not_set_are_named_and_no_trouble_while_definitions_load(
    caplog: pytest.LogCaptureFixture,
) -> None:
    described = parts(resource(dataset=dg.EnvVar("NOT_SET_DATASET"), table_name=dg.EnvVar("NOT_SET_NAME")))
    build_replication_defs(described, tables=[ORDERS])
    assert not caplog.text
    with pytest.raises(ConfigError, match="Not set in the environment: NOT_SET_DATASET, NOT_SET_NAME"):
        config_of(described.destination)  # type: ignore[arg-type]


def test_a_key_among_the_options_is_refused_and_not_repeated() -> None:
    credentials = {"type": "key", "json": json.dumps(KEY)}
    with pytest.raises(ConfigError, match="hold a key") as caught:
        resource(options={"credentials": credentials})
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def live_metadata(defs: dg.Definitions) -> dict[str, Any]:
    key = ReplicationTranslator("far", "bigquery").live_key(ORDERS)
    (spec,) = [spec for spec in defs.resolve_all_asset_specs() if spec.key == key]
    assert spec.kinds == {"bigquery"}
    return dict(spec.metadata)


def test_live_tables_show_their_names_and_the_console() -> None:
    metadata = live_metadata(build_replication_defs(parts(resource()), tables=[ORDERS]))
    assert metadata["dagster/table_name"] == "my-project.shop.shop_orders"
    assert metadata["etl/console"].url == (
        "https://console.cloud.google.com/bigquery?p=my-project&d=shop&t=shop_orders&page=table"
    )


def test_a_config_file_shows_them_too() -> None:
    config = PipelineConfig.model_validate(
        {
            "name": "far",
            "source": {"connection": {"dsn": "postgresql://u@127.0.0.1:1/d"}, "publication": {"schemas": ["shop"]}},
            "destination": {"type": "bigquery", "project": "my-project", "dataset": "shop"},
            "store": {"type": "memory"},
        }
    )
    metadata = live_metadata(build_replication_defs(config, tables=[ORDERS]))
    assert metadata["dagster/table_name"] == "my-project.shop.shop_orders"


def test_definitions_load_while_variables_are_missing_and_beside_the_shared_resource() -> None:
    shared = BigQueryResource(project=dg.EnvVar("NOT_SET_PROJECT"), gcp_credentials=dg.EnvVar("NOT_SET_KEY"))
    made = build_replication_defs(parts(resource(shared)), tables=[ORDERS])
    assert live_metadata(made)["dagster/table_name"] == "shop.orders"
    dg.Definitions.validate_loadable(dg.Definitions.merge(made, dg.Definitions(resources={"bigquery": shared})))


def test_a_run_gets_the_key_and_nothing_that_is_stored_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from dagster._core.remote_representation.external_data import RepositorySnap

    monkeypatch.setenv("TEST_GCP_KEY", CREDENTIALS)
    shared = BigQueryResource(project="my-project", gcp_credentials=dg.EnvVar("TEST_GCP_KEY"))
    described = parts(resource(shared))
    seen = []

    @dg.op(required_resource_keys=described.resource_keys)
    def look(context: dg.OpExecutionContext) -> None:
        seen.append(described.config(context.resources).destination)

    @dg.job(resource_defs=dict(described.as_resources()))
    def job() -> None:
        look()

    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(instance=instance)
        events = "".join(str(entry) for entry in instance.all_logs(result.run_id))
    defs = build_replication_defs(described, tables=[ORDERS])
    stored = dg.serialize_value(RepositorySnap.from_def(defs.get_repository_def()))
    (config,) = seen
    assert isinstance(config, BigQueryConfig)
    assert isinstance(config.credentials, KeyCredentials)
    for text in (stored, events, repr(defs), repr(config)):
        assert SECRET not in text
        assert CREDENTIALS not in text
    assert "TEST_GCP_KEY" in stored


def test_who_does_not_use_it_does_not_load_googles_libraries() -> None:
    code = (
        "import sys, etl_dagster.orchestration as o; from etl_dagster.config import PipelineConfig\n"
        "assert not [m for m in sys.modules if m.split('.')[0] in ('google', 'dagster_gcp')], sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_the_extra_it_says_how_to_get_it() -> None:
    code = (
        "import sys; sys.modules['dagster_gcp'] = None\n"
        "import etl_dagster.orchestration as o\n"
        "from etl_dagster.errors import ConfigError\n"
        "try: o.BigQueryDestinationResource\n"
        "except ConfigError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "etl-dagster[bigquery]" in done.stdout
