"""A following pipeline outlives what passes by itself; who asks it to stop meanwhile does not wait until it has."""

from __future__ import annotations

import _thread
import threading
from typing import TYPE_CHECKING

import pytest

from etl_dagster.errors import DestinationError
from etl_dagster.retry import stoppable, without_waiting
from etl_dagster.store.base import TableState
from tests.bigquery.proxy import Call, FailJob

if TYPE_CHECKING:
    from tests.bigquery.conftest import BigQueryScenario
    from tests.bigquery.proxy import FaultProxy

TABLE = ("create table t (id int primary key)", "insert into t select generate_series(1, 20)")
# Longer than any test may take.
RETRY_SECONDS = 3600


@pytest.mark.timeout(60)
def test_a_stop_while_bigquery_is_away_is_obeyed(far: BigQueryScenario, bigquery_proxy: FaultProxy) -> None:
    far.execute(*TABLE)
    far.use(destination=far.destination(api_endpoint=bigquery_proxy.url, retry_seconds=RETRY_SECONDS))
    with far.pipeline.replicator() as replicator:
        replicator.sync()
    stop = threading.Event()

    def lose(call: Call, moment: str) -> bool:
        if moment == "before" and call.job == "query" and not stop.is_set():
            asked.append(call)
            if len(asked) == 3:
                stop.set()
            return True
        return False

    asked: list[Call] = []
    with far.pipeline.replicator() as replicator:
        far.execute("insert into t values (100)")
        with bigquery_proxy.on_call(lose), stoppable(stop):
            replicator.follow(stop=stop)
    assert len(asked) == 3
    with far.pipeline.replicator() as replicator:
        replicator.sync()
    far.assert_equal("t")


@pytest.mark.timeout(60)
def test_a_start_while_bigquery_is_away_can_be_stopped(far: BigQueryScenario, bigquery_proxy: FaultProxy) -> None:
    far.execute(*TABLE)
    far.use(destination=far.destination(api_endpoint=bigquery_proxy.url, retry_seconds=RETRY_SECONDS))
    stop = threading.Event()

    def lose(_call: Call, _moment: str) -> bool:
        stop.set()
        return True

    with bigquery_proxy.on_call(lose), stoppable(stop), pytest.raises(DestinationError):
        far.pipeline.follow(stop)


class Arrived:
    """A stop once the row is there."""

    def __init__(self, far: BigQueryScenario) -> None:
        self._far = far

    def is_set(self) -> bool:
        return self._far.select("select count(*) from public_t where id = 100") == [(1,)]


@pytest.mark.timeout(120)
def test_a_quota_of_the_project_is_waited_for_and_no_table_pays_for_it(
    far: BigQueryScenario, bigquery_proxy: FaultProxy
) -> None:
    far.execute(*TABLE)
    far.use(destination=far.destination(api_endpoint=bigquery_proxy.url))
    far.sync()
    far.execute("insert into t values (100)")
    used_up = "Custom quota exceeded: Your usage exceeded the custom quota for QueryUsagePerDay"
    # The engine gives up after ten attempts and the pipeline begins anew, which fails a few times as well.
    bigquery_proxy.fault(FailJob("quotaExceeded", used_up), job="query", body="BEGIN TRANSACTION", times=10)
    bigquery_proxy.fault(FailJob("quotaExceeded", used_up), job="query", times=3, nth=11)
    with without_waiting():
        records = far.pipeline.follow(Arrived(far))
    assert not bigquery_proxy.unused
    assert [record.state for record in records.values()] == [TableState.READY]


def test_a_check_makes_nothing_and_does_not_wait_for_who_is_away(
    far: BigQueryScenario, bigquery_proxy: FaultProxy
) -> None:
    far.execute(*TABLE)
    dataset = f"dataset {far.dataset.name}"
    found = {result.name: result for result in far.pipeline.check()}
    assert "is missing, and made in US at the start" in found[dataset].detail
    with far.dataset.client() as client:
        assert far.dataset.name not in [each.dataset_id for each in client.list_datasets()]
    far.use(destination=far.destination(api_endpoint=bigquery_proxy.url, retry_seconds=RETRY_SECONDS))
    with bigquery_proxy.on_call(lambda _call, _moment: True), without_waiting():
        away = far.pipeline.check()
    assert [result.name for result in away if not result.passed] == ["jobs"]


@pytest.mark.timeout(60)
def test_an_interrupt_does_not_wait_for_copies_that_try_again(
    far: BigQueryScenario, bigquery_proxy: FaultProxy
) -> None:
    far.execute(*TABLE)
    far.use(destination=far.destination(api_endpoint=bigquery_proxy.url, retry_seconds=RETRY_SECONDS))
    lost: list[Call] = []

    def lose(call: Call, moment: str) -> bool:
        if call.job != "load" or moment != "before":
            return False
        lost.append(call)
        if len(lost) == 2:
            _thread.interrupt_main()
        return True

    with (
        pytest.raises(KeyboardInterrupt),
        bigquery_proxy.on_call(lose),
        far.pipeline.replicator() as replicator,
    ):
        replicator.sync()
    far.sync()
    far.assert_equal("t")
