"""Against Google's BigQuery: the contract, a pipeline, and what no emulator can answer for.

Collected only where ``ETL_TEST_BIGQUERY_PROJECT`` names a project; the account is that of application default
credentials, and may make datasets. Every test has a dataset of its own, dropped at its end, whose tables would expire
after a day. ``ETL_TEST_BIGQUERY_LOCATION`` says where datasets are, ``ETL_TEST_BIGQUERY_BUCKET`` is a bucket for
staging, ``ETL_TEST_BIGQUERY_ENDPOINT`` the address of an emulator, to try the suite itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from etl_dagster.destinations.bigquery import BigQueryConfig, BigQueryDestination
from etl_dagster.model import TableId
from etl_dagster.store.base import TableState
from etl_dagster.testing.destination_contract import (
    ChangelogContract,
    ColumnContract,
    CopyContract,
    HeldContract,
    HistoryContract,
    Place,
    SliceContract,
    SliceSoftDeleteContract,
    SoftDeleteContract,
    StreamContract,
    TableContract,
)
from tests.bigquery.traffic import CHOICES, NAMES, TABLES, Traffic

if TYPE_CHECKING:
    from google.cloud.bigquery import Client

    from tests.bigquery.conftest import BigQueryScenario

# Each statement takes seconds there, whatever it does.
pytestmark = pytest.mark.timeout(1800)

PROJECT = os.environ.get("ETL_TEST_BIGQUERY_PROJECT", "")
LOCATION = os.environ.get("ETL_TEST_BIGQUERY_LOCATION", "US")
BUCKET = os.environ.get("ETL_TEST_BIGQUERY_BUCKET")
ENDPOINT = os.environ.get("ETL_TEST_BIGQUERY_ENDPOINT")
STAGINGS: dict[str, dict[str, Any]] = {"directly": {}} | (
    {"through a bucket": {"staging": {"bucket": BUCKET, "prefix": f"etl-test-{uuid4().hex[:8]}/"}}} if BUCKET else {}
)
WAYS = {f"{how}, {way}": each | {"inline_bytes": size} for how, each in STAGINGS.items() for way, size in
        (("within queries", 1 << 20), ("by load jobs", 0))}  # fmt: skip
A_DAY_MS = 24 * 3600 * 1000
TYPES = (
    """create table types (id int primary key, j json, jb jsonb, js jsonb[], n numeric, d numeric(10, 2),
        w numeric(38, 9), b bytea, bs bytea[], u uuid, span interval, day date, at timestamp, tz timestamptz, tod time,
        f float8, fs float4[], ints int[][], texts text[], yes bool, "Größe / 100%" text, "_PARTITIONTIME" int)""",
    r"""insert into types values
        (1, '{"a": [1, 2.5, null, "\u00e9"]}', '{"b": 0.1}', '{null,"{}","1"}', 1e300, -0.01, 12345678901234567890.123456789,
         '\x00ff', '{"\\x00",NULL}', '00000000-0000-0000-0000-0000000000ff', '-1 mon 3 days 04:05:06.789',
         '0001-01-01', '9999-12-31 23:59:59.999999', '0001-01-01 00:00:00+00', '23:59:59.999999', 1e-300, '{NaN,1.5}',
         '{{1,NULL},{3,4}}', '{"",NULL,"a,b"}', true, 'ß', 7),
        (2, 'null', '"null"', '{}', 'NaN', 99999999.99, 0, '', '{}', null, '100 years', '2024-02-29', '2024-02-29',
         'now', '00:00', 'NaN', '{}', '{}', '{}', false, '', null)""",
    "insert into types (id) values (3)",
    "insert into types select -id, j, jb, js, n, d, w, b, bs from types",
)


@dataclass(frozen=True)
class RealDataset:
    """A dataset that exists, and that is the test's own."""

    name: str

    def settings(self) -> dict[str, Any]:
        """The destination's part of a config."""
        found = {"type": "bigquery", "project": PROJECT, "dataset": self.name, "location": LOCATION}
        emulated = {"api_endpoint": ENDPOINT, "credentials": {"type": "anonymous"}} if ENDPOINT else {}
        return found | {"batch_seconds": 0} | emulated

    def client(self) -> Client:
        """Google's own client, with this as the default dataset."""
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import bigquery

        return bigquery.Client(
            project=PROJECT,
            location=LOCATION,
            credentials=AnonymousCredentials() if ENDPOINT else None,
            client_options={"api_endpoint": ENDPOINT} if ENDPOINT else None,
            default_query_job_config=bigquery.QueryJobConfig(default_dataset=f"{PROJECT}.{self.name}"),
        )


@pytest.fixture
def bigquery_dataset() -> Iterator[RealDataset]:
    """What stands in for the emulator's."""
    from google.cloud import bigquery

    made = RealDataset(f"etl_test_{uuid4().hex[:12]}")
    with made.client() as client:
        dataset = bigquery.Dataset(f"{PROJECT}.{made.name}")
        dataset.location = LOCATION
        dataset.default_table_expiration_ms = A_DAY_MS
        client.create_dataset(dataset)
        try:
            yield made
        finally:
            client.delete_dataset(made.name, delete_contents=True, not_found_ok=True)


@pytest.fixture
def place(bigquery_dataset: RealDataset) -> Iterator[Place]:
    config = BigQueryConfig.model_validate(bigquery_dataset.settings())
    place = Place(lambda: BigQueryDestination(config))
    yield place
    place.close()


class TestStream(StreamContract): ...


class TestCopy(CopyContract): ...


class TestTables(TableContract): ...


class TestColumns(ColumnContract): ...


class TestHeld(HeldContract): ...


class TestSoftDelete(SoftDeleteContract): ...


class TestChangelog(ChangelogContract): ...


class TestHistory(HistoryContract): ...


class TestSlices(SliceContract): ...


class TestSliceSoftDelete(SliceSoftDeleteContract): ...


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_pipeline_under_load_ends_equal(far: BigQueryScenario, way: dict[str, Any]) -> None:
    far.execute(*TABLES)
    far.use(tables=CHOICES, destination=patient(far, way))
    with Traffic(far.dsn, seed=1).running(150):
        far.sync()
        far.pipeline.request_resync(TableId("public", "accounts"))
        far.pipeline.request_resync(TableId("public", "sliced"), slices(far)[1:2])
        far.sync()
    far.sync()
    assert {name: far.state(name) for name in NAMES} == dict.fromkeys(NAMES, TableState.READY)
    far.assert_equal(*NAMES)
    assert far.leftovers() == set()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_kind_of_value_arrives_as_it_was(far: BigQueryScenario, way: dict[str, Any]) -> None:
    far.execute(*TYPES)
    far.use(destination=patient(far, way), defaults={"values": "text"})
    far.sync()
    far.execute("update types set id = id + 10, texts = '{x}'", "delete from types where id = 12", TYPES[1])
    far.sync()
    far.assert_equal("types")
    found = far.select("select json_value(j, '$.a[1]'), json_value(jb, '$.b') from public_types where id = 1")
    assert found == [("2.5", "0.1")]


def test_check_finds_everything_in_order(far: BigQueryScenario) -> None:
    far.execute("create table t (id int primary key, j jsonb)", "insert into t values (1, '{}')")
    far.use(destination=patient(far, {}))
    assert [result for result in far.pipeline.check() if not result.passed] == []
    far.sync()
    assert [result for result in far.pipeline.check() if not result.passed] == []


def patient(far: BigQueryScenario, way: dict[str, Any]) -> dict[str, Any]:
    """The destination's part of the config, with the waits of who is in no hurry."""
    return far.destination(retry_seconds=600, **way)


def slices(far: BigQueryScenario) -> list[str]:
    return [each.name for each in far.pipeline.plan_slices(TableId("public", "sliced"))]
