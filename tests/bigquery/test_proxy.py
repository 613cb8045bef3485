"""Google's own client meets every fault that the proxy can make, and the journal says what came through."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.api_core.exceptions import Conflict, Forbidden, GoogleAPICallError, ServiceUnavailable
from google.cloud import bigquery
from requests.exceptions import ConnectionError

from tests.bigquery.fixtures import Dataset
from tests.bigquery.proxy import (
    Answer,
    Call,
    CutAnswer,
    Delay,
    FailJob,
    FaultProxy,
    Hold,
    LoseAnswer,
    LoseRequest,
    Moment,
    Unfinished,
)


@pytest.fixture
def direct(bigquery_dataset: Dataset) -> Iterator[bigquery.Client]:
    with bigquery_dataset.client() as client:
        client.create_dataset(bigquery_dataset.name)
        client.query_and_wait("CREATE TABLE t (id INT64)")
        yield client


@pytest.fixture
def proxied(
    bigquery_dataset: Dataset, bigquery_proxy: FaultProxy, direct: bigquery.Client
) -> Iterator[bigquery.Client]:
    with bigquery_dataset.through(bigquery_proxy).client() as client:
        yield client


def insert(client: bigquery.Client, value: int, job_id: str | None = None, retry: Any = None) -> bigquery.QueryJob:
    sql = f"INSERT INTO t VALUES ({value})"
    job = client.query(sql, job_id=job_id, retry=retry, job_retry=None)
    job.result(retry=retry)
    return job


def load(client: bigquery.Client, dataset: Dataset, *, resumable: bool, job_id: str | None = None) -> bigquery.LoadJob:
    content = io.BytesIO()
    pq.write_table(pa.table({"id": pa.array([1, 2, 3], pa.int64())}), content)
    content.seek(0)
    config = bigquery.LoadJobConfig(source_format="PARQUET", write_disposition="WRITE_APPEND")
    target = f"{dataset.project}.{dataset.name}.t"
    size = None if resumable else content.getbuffer().nbytes
    return client.load_table_from_file(content, target, job_config=config, job_id=job_id, size=size)


@pytest.fixture
def job_id() -> str:
    """Ids of jobs are taken for all of a project, whatever the dataset."""
    return f"job_{uuid4().hex}"


def ids(client: bigquery.Client) -> list[int]:
    return [row.id for row in client.query_and_wait("SELECT id FROM t ORDER BY id")]


def test_without_faults_everything_comes_through_and_is_noted(
    proxied: bigquery.Client, bigquery_proxy: FaultProxy, job_id: str
) -> None:
    insert(proxied, 7, job_id=job_id)
    assert ids(proxied) == [7]
    first = bigquery_proxy.calls[0]
    assert (first.number, first.method, first.job_id, first.job) == (1, "POST", job_id, "query")
    assert b"INSERT INTO t" in first.body


@pytest.mark.parametrize("resumable", [False, True])
def test_uploads_pass(
    proxied: bigquery.Client, bigquery_proxy: FaultProxy, bigquery_dataset: Dataset, resumable: bool, job_id: str
) -> None:
    job = load(proxied, bigquery_dataset, resumable=resumable, job_id=job_id)
    job.result()
    assert ids(proxied) == [1, 2, 3]
    uploads = [(call.method, call.job_id, call.job) for call in bigquery_proxy.calls if "/upload/" in call.path]
    assert uploads == ([("POST", job_id, "load"), ("PUT", job_id, "load")] if resumable else [("POST", job_id, "load")])


def test_an_error_instead_of_an_answer(
    proxied: bigquery.Client, direct: bigquery.Client, bigquery_proxy: FaultProxy
) -> None:
    bigquery_proxy.fault(Answer("rateLimitExceeded"), method="POST", path="/jobs$")
    with pytest.raises(Forbidden) as caught:
        insert(proxied, 1)
    assert caught.value.errors[0]["reason"] == "rateLimitExceeded"
    assert ids(direct) == []
    assert not bigquery_proxy.unused
    insert(proxied, 2)
    assert ids(direct) == [2]


def test_the_nth_call_and_the_next(
    proxied: bigquery.Client, direct: bigquery.Client, bigquery_proxy: FaultProxy
) -> None:
    bigquery_proxy.fault(Answer("backendError"), body="INSERT", nth=2, times=2)
    insert(proxied, 1)
    assert bigquery_proxy.unused
    for value in (2, 3):
        with pytest.raises(ServiceUnavailable):
            insert(proxied, value)
    insert(proxied, 4)
    assert ids(direct) == [1, 4]


def test_a_lost_request_did_nothing_and_a_lost_answer_did(
    proxied: bigquery.Client, direct: bigquery.Client, bigquery_proxy: FaultProxy
) -> None:
    bigquery_proxy.fault(LoseRequest(), body="INSERT")
    with pytest.raises(ConnectionError):
        insert(proxied, 1)
    assert ids(direct) == []
    bigquery_proxy.fault(LoseAnswer(), body="INSERT")
    with pytest.raises(ConnectionError):
        insert(proxied, 2)
    assert ids(direct) == [2]


def test_an_answer_cut_in_the_middle(
    proxied: bigquery.Client, direct: bigquery.Client, bigquery_proxy: FaultProxy
) -> None:
    bigquery_proxy.fault(CutAnswer(), body="INSERT")
    with pytest.raises((OSError, ValueError)):
        insert(proxied, 1)
    assert ids(direct) == [1]


def test_a_lost_answer_of_the_end_of_an_upload(
    proxied: bigquery.Client,
    direct: bigquery.Client,
    bigquery_proxy: FaultProxy,
    bigquery_dataset: Dataset,
    job_id: str,
) -> None:
    bigquery_proxy.fault(LoseAnswer(), method="PUT", path="/upload/", job="load")
    with pytest.raises((OSError, GoogleAPICallError)):
        load(proxied, bigquery_dataset, resumable=True, job_id=job_id).result()
    direct.get_job(job_id).result()
    assert ids(direct) == [1, 2, 3]


@pytest.mark.parametrize("resumable", [False, True])
def test_a_load_that_fails_only_in_its_status(
    proxied: bigquery.Client,
    direct: bigquery.Client,
    bigquery_proxy: FaultProxy,
    bigquery_dataset: Dataset,
    resumable: bool,
    job_id: str,
) -> None:
    bigquery_proxy.fault(FailJob("quotaExceeded", "too many loads"), job="load")
    job = load(proxied, bigquery_dataset, resumable=resumable, job_id=job_id)
    with pytest.raises(Forbidden, match="too many loads"):
        job.result()
    assert proxied.get_job(job_id).error_result["reason"] == "quotaExceeded"
    with pytest.raises(Conflict):
        load(proxied, bigquery_dataset, resumable=False, job_id=job_id)
    load(proxied, bigquery_dataset, resumable=resumable, job_id=f"{job_id}-r2").result()
    assert ids(direct) == [1, 2, 3]


def test_a_query_that_fails_only_in_its_status(
    proxied: bigquery.Client, direct: bigquery.Client, bigquery_proxy: FaultProxy, job_id: str
) -> None:
    bigquery_proxy.fault(FailJob("backendError"), job="query")
    with pytest.raises(GoogleAPICallError) as caught:
        insert(proxied, 1, job_id=job_id)
    assert caught.value.errors[0]["reason"] == "backendError"
    assert ids(direct) == []
    with pytest.raises(Conflict):
        insert(proxied, 1, job_id=job_id)


def test_a_job_that_takes_its_time(proxied: bigquery.Client, bigquery_proxy: FaultProxy) -> None:
    bigquery_proxy.fault(Unfinished(answers=2), job="query")
    job = proxied.query("INSERT INTO t VALUES (1)", job_retry=None)
    assert job.state == "RUNNING"
    job.result()
    assert ids(proxied) == [1]
    asked = [call for call in bigquery_proxy.calls if call.job_id == job.job_id]
    assert len(asked) >= 3


def test_a_slow_answer_and_a_held_one(
    proxied: bigquery.Client, direct: bigquery.Client, bigquery_proxy: FaultProxy
) -> None:
    bigquery_proxy.fault(Delay(0.01), body="VALUES .1.")
    insert(proxied, 1)
    hold = Hold()
    bigquery_proxy.fault(hold, body="VALUES .2.")
    inserting = threading.Thread(target=insert, args=(proxied, 2))
    inserting.start()
    assert hold.reached.wait(30)
    assert ids(direct) == [1]
    hold.release.set()
    inserting.join()
    assert ids(direct) == [1, 2]


KILLED = """
import sys
from tests.bigquery.fixtures import google_client
client = google_client(sys.argv[1], sys.argv[2])
for value in range(1, 100):
    client.query(f"INSERT INTO t VALUES ({value})", job_retry=None).result()
"""


@pytest.mark.parametrize(("moment", "expected"), [("before", [1, 2]), ("after", [1, 2, 3])])
def test_a_process_is_killed_at_a_call(
    direct: bigquery.Client, bigquery_proxy: FaultProxy, bigquery_dataset: Dataset, moment: Moment, expected: list[int]
) -> None:
    started = threading.Event()

    def kill(call: Call, now: Moment) -> bool:
        if b"VALUES (3)" not in call.body or now != moment:
            return False
        started.wait()
        process.kill()
        return True

    with bigquery_proxy.on_call(kill):
        process = subprocess.Popen([sys.executable, "-c", KILLED, bigquery_proxy.url, bigquery_dataset.name])
        started.set()
        assert process.wait(60) < 0
    assert ids(direct) == expected
