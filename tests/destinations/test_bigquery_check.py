"""`check` says of everything that BigQuery takes whether it is there, and what a day costs; it changes nothing."""

from __future__ import annotations

from typing import Any

import pytest

from etl_dagster.destinations.bigquery.check import DOLLARS_PER_TIB, LOADS_PER_DAY, check
from etl_dagster.destinations.bigquery.client import Client
from etl_dagster.destinations.bigquery.config import BigQueryConfig
from etl_dagster.model import CheckResult, TableId
from etl_dagster.retry import without_waiting
from tests.bigquery.fixtures import Dataset
from tests.bigquery.proxy import Answer, FaultProxy

ORDERS = TableId("public", "orders")
PERMISSIONS = ("create", "list", "get", "getData", "updateData", "update", "delete")


def results(config: BigQueryConfig, tables: dict[TableId, int] | None = None) -> dict[str, CheckResult]:
    with without_waiting():
        return {result.name: result for result in check(config, tables or {})}


@pytest.fixture
def made(bigquery_dataset: Dataset) -> Dataset:
    client = Client(bigquery_dataset.config())
    client.ensure_dataset()
    table = f"{bigquery_dataset.project}.{bigquery_dataset.name}.public_orders"
    client.run(f"CREATE TABLE `{table}` (id INT64)", doing="make a table")
    client.close()
    return bigquery_dataset


def test_all_is_well(made: Dataset) -> None:
    found = results(made.config(), {ORDERS: 0})
    assert all(result.passed for result in found.values())
    dataset = f"dataset {made.name}"
    permissions = [f"{dataset}, bigquery.tables.{permission}" for permission in PERMISSIONS]
    assert list(found) == ["jobs", dataset, *permissions, "cost", "load jobs"]


def test_nothing_is_changed(bigquery_dataset: Dataset, bigquery_proxy: FaultProxy) -> None:
    found = results(bigquery_dataset.through(bigquery_proxy).config(internal_dataset="test_missing"), {ORDERS: 10**9})
    assert "is missing, and made in US" in found[f"dataset {bigquery_dataset.name}"].detail
    assert "is missing, and made in US" in found["dataset test_missing"].detail
    assert "no location is changed later" in found["dataset test_missing"].todo
    for call in bigquery_proxy.calls:
        assert call.method == "GET" or b'"dryRun": true' in call.body or call.path.endswith(":testIamPermissions")
    with bigquery_dataset.client() as client:
        assert bigquery_dataset.name not in [each.dataset_id for each in client.list_datasets()]


def test_a_dataset_elsewhere_is_told(made: Dataset) -> None:
    found = results(made.config(location="EU"))[f"dataset {made.name}"]
    assert not found.passed
    assert "is in US, but destination.location is EU" in found.detail
    assert "Set destination.location to US" in found.todo


def test_a_permission_that_is_missing_is_told_with_what_grants_it(made: Dataset, bigquery_proxy: FaultProxy) -> None:
    denied = "Access Denied: Dataset d: Permission bigquery.tables.create denied on dataset d"
    bigquery_proxy.fault(Answer("accessDenied", denied), body="CREATE TABLE")
    bigquery_proxy.fault(Answer("", status=200), path=":testIamPermissions$")  # an empty list of permissions
    found = results(made.through(bigquery_proxy).config(), {ORDERS: 0})
    lacking = {name.rpartition(".")[2]: result for name, result in found.items() if not result.passed}
    assert list(lacking) == ["create", "get", "getData", "updateData", "update", "delete"]
    for name, result in lacking.items():
        assert f"Grant bigquery.tables.{name}, which roles/bigquery.dataEditor has" in result.todo


def test_without_jobs_the_rest_is_not_asked(made: Dataset, bigquery_proxy: FaultProxy) -> None:
    denied = "Access Denied: Project local: User does not have bigquery.jobs.create permission in project local."
    bigquery_proxy.fault(Answer("accessDenied", denied), job="query")
    found = results(made.through(bigquery_proxy).config(), {ORDERS: 0})
    assert list(found) == ["jobs"]
    assert "roles/bigquery.jobUser" in found["jobs"].todo


def test_nobody_there_and_no_credentials_are_results(bigquery_dataset: Dataset) -> None:
    away = results(bigquery_dataset.config(api_endpoint="http://127.0.0.1:9", retry_seconds=0))
    assert [result.passed for result in away.values()] == [False]
    nobody = results(bigquery_dataset.config(credentials={"type": "file", "path": "/nonexistent/key.json"}))
    assert list(nobody) == ["credentials"]
    assert "/nonexistent/key.json cannot be read" in nobody["credentials"].detail


def test_the_bucket_is_looked_at(made: Dataset, gcs_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server.url)
    found = results(made.config(staging={"bucket": "no-such-bucket"}))
    lines = [result for name, result in found.items() if name.startswith("bucket no-such-bucket")]
    assert lines
    assert not any(result.passed for result in lines)
    assert all(result.todo for result in lines)


def test_the_most_that_a_day_costs(made: Dataset) -> None:
    tables = {ORDERS: 100 << 30, TableId("public", "tiny"): 1}
    found = results(made.config(batch_seconds=3600), tables)["cost"]
    # The second table and both tables' states are billed as 10 MiB at the least.
    tib = 24 * ((100 << 30) + (1 + 2 * 2) * 10 * (1 << 20)) / (1 << 40)
    assert f"at most {tib:,.2f} TiB or ${tib * DOLLARS_PER_TIB:,.2f} a day" in found.detail
    assert "all 2 tables" in found.detail
    assert found.passed
    assert found.todo, "somebody has to decide"
    assert not results(made.config(batch_seconds=3600), {ORDERS: 1})["cost"].todo


def test_a_refusal_that_names_no_permission_names_roles_and_not_this_check(
    made: Dataset, bigquery_proxy: FaultProxy
) -> None:
    bigquery_proxy.fault(Answer("accessDenied", "Access Denied"), job="query")
    found = results(made.through(bigquery_proxy).config())["jobs"]
    assert "roles/bigquery.dataEditor" in found.todo
    assert "etl-dagster check" not in found.todo
    assert "failed to run a query" in found.detail


def test_nothing_is_to_be_resumed_after_a_check(made: Dataset, bigquery_proxy: FaultProxy) -> None:
    bigquery_proxy.fault(Answer("", status=200), path=":testIamPermissions$")
    found = results(made.through(bigquery_proxy).config(), {ORDERS: 0})
    assert [result for result in found.values() if not result.passed]
    assert not [result for result in found.values() if "resume" in result.todo]


def test_more_load_jobs_than_a_project_has(made: Dataset) -> None:
    tables = {TableId("public", f"t{number}"): 0 for number in range(1 + LOADS_PER_DAY // (86_400 // 5))}
    small = results(made.config(batch_seconds=0), tables)["load jobs"]
    assert small.passed
    assert "small batches need none" in small.detail
    assert not results(made.config(batch_seconds=0, inline_bytes=0), tables)["load jobs"].passed
