"""Who asks a pipeline to stop while BigQuery is away does not wait until it is back."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from etl_dagster.errors import DestinationError
from etl_dagster.retry import stoppable
from tests.bigquery.proxy import Call

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
