"""What goes wrong between a running pipeline and BigQuery: what passes is waited for, what does not names its remedy."""

from __future__ import annotations

import itertools
import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from etl_dagster.errors import DestinationError, ErrorKind, EtlError
from etl_dagster.model import TableId
from etl_dagster.pipeline import Pipeline
from etl_dagster.retry import without_waiting
from etl_dagster.store.base import TableRecord, TableState
from tests.bigquery.proxy import Answer, CutAnswer, FailJob, Fault, Hold, LoseAnswer, LoseRequest, Unfinished
from tests.bigquery.traffic import CHOICES, NAMES, TABLES, Traffic
from tests.replication.watching import T, catch_up, running, sync

if TYPE_CHECKING:
    from tests.bigquery.conftest import BigQueryScenario
    from tests.bigquery.proxy import FaultProxy

TABLE = (
    "create table t (id int primary key, v text)",
    "insert into t select i, 'v' || i from generate_series(1, 20) i",
    "create table u (id int primary key)",
    "insert into u values (1)",
)
# Calls by what they are about: method, path, job.
CALLS: dict[str, dict[str, Any]] = {
    "query": {"method": "POST", "job": "query"},
    "load": {"job": "load"},
    "copy": {"job": "copy"},
    "a job's end": {"method": "GET", "path": "/jobs/"},
    "a query's rows": {"method": "GET", "path": "/queries/"},
    "tables": {"method": "GET", "path": "/tables"},
}
# Where a process hangs while another one takes its place.
HELD: dict[str, dict[str, Any]] = {
    "a batch": {"body": "MERGE [^;]*public_t"},
    "the beginning of a copy": {"body": "_copy_[0-9a-f]+` "},
    "the swap": {"job": "copy"},
    "the end of a copy": {"body": "finished_rows[^:]*: ?20"},
}
CUT = (
    "select pg_terminate_backend(pid) from pg_stat_activity"
    " where datname = current_database() and pid <> pg_backend_pid()"
)
PASSING: tuple[Fault, ...] = (
    Answer("rateLimitExceeded"),
    Answer("backendError"),
    Answer("internalError"),
    LoseRequest(),
    LoseAnswer(),
    CutAnswer(),
)
FAILING: tuple[Fault, ...] = (FailJob("backendError"), FailJob("jobRateLimitExceeded"), Unfinished(2))


def behind(far: BigQueryScenario, proxy: FaultProxy, **changes: Any) -> None:
    """Go on with a pipeline that reaches BigQuery through the proxy."""
    far.use(destination=far.destination(api_endpoint=proxy.url), **changes)


def record(far: BigQueryScenario, table: TableId = T) -> TableRecord:
    found = far.pipeline.record(table)
    assert found is not None
    return found


def test_troubles_that_pass_with_every_kind_of_call_need_nobody(
    far: BigQueryScenario, bigquery_proxy: FaultProxy
) -> None:
    dice = random.Random(3)
    far.execute(*TABLES)
    behind(far, bigquery_proxy, tables=CHOICES)
    faults = [*itertools.product(CALLS.values(), PASSING)]
    faults += itertools.product([call for call in CALLS.values() if "job" in call], FAILING)
    dice.shuffle(faults)
    for call, fault in faults:
        bigquery_proxy.fault(fault, **call, nth=dice.randint(1, 8))
    with without_waiting(), Traffic(far.dsn, seed=3).running(120):
        sync(far)
        for name in NAMES:
            far.pipeline.request_resync(TableId("public", name))
        sync(far)
    met = len(faults) - len(bigquery_proxy.unused)
    print(f"{met} of {len(faults)} faults were met")
    bigquery_proxy.heal()
    sync(far)
    assert {name: record(far, TableId("public", name)).reason for name in NAMES} == dict.fromkeys(NAMES, "")
    far.assert_equal(*NAMES)
    assert far.select("select id from public_moves group by id having count(*) > 1") == []
    assert far.leftovers() == set()
    assert met > len(faults) / 2


# -- what waiting does not mend ----------------------------------------------------------------------------------------


def test_a_permission_that_is_missing_is_named_and_the_pipeline_goes_on_once_it_is_granted(
    far: BigQueryScenario, bigquery_proxy: FaultProxy
) -> None:
    far.execute(*TABLE)
    behind(far, bigquery_proxy)
    sync(far)
    far.execute("update t set v = 'x'", "insert into u values (2)")
    denied = "Access Denied: Dataset local:d: Permission bigquery.tables.updateData denied on dataset local:d"
    bigquery_proxy.fault(Answer("accessDenied", denied), body="BEGIN TRANSACTION", times=1000)
    with pytest.raises(DestinationError) as raised:
        sync(far)
    assert raised.value.kind is ErrorKind.DESTINATION_REFUSED
    assert "Grant bigquery.tables.updateData, which roles/bigquery.dataEditor has" in raised.value.hint
    assert {record(far).state, record(far, TableId("public", "u")).state} == {TableState.READY}
    bigquery_proxy.heal()
    sync(far)
    far.assert_equal("t", "u")


def test_a_permission_that_is_missing_for_one_table_takes_out_that_table(
    far: BigQueryScenario, bigquery_proxy: FaultProxy
) -> None:
    far.execute(*TABLE)
    behind(far, bigquery_proxy)
    sync(far)
    far.execute("update t set v = 'x'", "insert into u values (2)")
    denied = "Access Denied: Table local:d.public_t: Permission bigquery.tables.updateData denied on table"
    bigquery_proxy.fault(Answer("accessDenied", denied), body="MERGE [^;]*public_t", times=1000)
    sync(far)
    assert record(far).state is TableState.QUARANTINED
    assert "Grant bigquery.tables.updateData" in record(far).hint
    far.execute("insert into u values (3)", "delete from t where id < 5")
    sync(far)
    far.assert_equal("u")
    bigquery_proxy.heal()
    far.pipeline.request_resume(T)
    sync(far)
    far.assert_equal("t", "u")


def test_a_quota_of_the_day_takes_out_its_table_until_it_is_resumed(
    far: BigQueryScenario, bigquery_proxy: FaultProxy
) -> None:
    far.execute(*TABLE)
    behind(far, bigquery_proxy)
    used_up = "Quota exceeded: Your table exceeded quota for imports or query appends per table"
    bigquery_proxy.fault(FailJob("quotaExceeded", used_up), job="load", body='"v"', times=1000)
    sync(far)
    assert record(far).state is TableState.QUARANTINED
    assert "1,500 loads of the day" in record(far).hint
    far.execute("insert into u values (2)", "update t set v = 'x' where id = 1")
    sync(far)
    far.assert_equal("u")
    bigquery_proxy.heal()
    far.pipeline.request_resync(T)
    sync(far)
    far.assert_equal("t", "u")


# -- what others do ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("running_meanwhile", [True, False])
def test_a_table_that_somebody_dropped_is_copied_again(far: BigQueryScenario, running_meanwhile: bool) -> None:
    far.execute(*TABLE)
    sync(far)
    with running(far) as replicator:
        replicator.sync()
        if running_meanwhile:
            drop(far, "public_t")
            far.execute("update t set v = 'x'", "insert into u values (2)")
            catch_up(replicator)
            assert record(far).state is TableState.QUARANTINED
            assert "copy the table again" in record(far).hint
            assert far.select("select count(*) from public_u") == [(2,)]
            far.pipeline.request_resync(T)
    if not running_meanwhile:
        drop(far, "public_t")
        far.execute("update t set v = 'x'", "insert into u values (2)")
    sync(far)
    far.assert_equal("t", "u")


def test_a_dataset_that_somebody_dropped_is_filled_again(far: BigQueryScenario) -> None:
    far.execute(*TABLE)
    sync(far)
    with far.dataset.client() as client:
        client.delete_dataset(far.dataset.name, delete_contents=True)
    far.execute("update t set v = 'x'", "insert into u values (2)")
    sync(far)
    far.assert_equal("t", "u")


def drop(far: BigQueryScenario, table: str) -> None:
    with far.dataset.client() as client:
        client.delete_table(f"{far.dataset.name}.{table}")


@pytest.mark.parametrize("held", HELD.values(), ids=HELD)
def test_a_process_that_was_given_up_for_dead_commits_nothing(
    far: BigQueryScenario, bigquery_proxy: FaultProxy, held: dict[str, Any]
) -> None:
    far.execute(*TABLE)
    sync(far)
    behind(far, bigquery_proxy)
    zombie = far.pipeline
    hold = Hold()
    bigquery_proxy.fault(hold, method="POST", **held)
    if held is not HELD["a batch"]:
        zombie.request_resync(T)
    far.execute("update t set v = 'zombie'")
    with ThreadPoolExecutor(1) as thread:
        dying = thread.submit(attempt, zombie)
        assert hold.reached.wait(60), dying.result()
        # Its sessions are cut, and with them goes its right to the pipeline.
        far.execute(CUT)
        far.pipeline = Pipeline(far.config())
        far.execute("update t set v = 'alive' where id < 10", "delete from t where id = 20")
        sync(far)
        far.execute("update t set v = 'later' where id = 1")
        sync(far)
        hold.release.set()
        error = dying.result(60)
    assert error is not None
    assert error.kind in {ErrorKind.PIPELINE_BUSY, ErrorKind.SOURCE_UNAVAILABLE}, error
    far.assert_equal("t", "u")
    far.execute("delete from t where id = 2")
    sync(far)
    far.assert_equal("t", "u")
    assert far.leftovers() == set()
    zombie.close()


def attempt(pipeline: Pipeline) -> EtlError | None:
    """The error that one run ends with."""
    try:
        with pipeline.replicator() as replicator:
            replicator.sync()
    except EtlError as error:
        return error
    return None
