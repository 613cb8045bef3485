"""Jobs of BigQuery run once, whatever happens to requests and answers; what is worth it is tried again."""

from __future__ import annotations

import io
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl_dagster.destinations.bigquery import jobs
from etl_dagster.destinations.bigquery.client import Client
from etl_dagster.destinations.bigquery.errors import assertion
from etl_dagster.destinations.bigquery.layout import Field
from etl_dagster.errors import ConfigError, DestinationError, ErrorKind, EtlError, RowIncomplete
from etl_dagster.retry import stoppable, without_waiting
from tests.bigquery.fixtures import Dataset
from tests.bigquery.proxy import (
    Answer,
    Call,
    CutAnswer,
    FailJob,
    Fault,
    FaultProxy,
    Hold,
    LoseAnswer,
    LoseRequest,
    Unfinished,
)

FIELDS = [Field("id", "INT64"), Field("name", "STRING")]
CREATE = "CREATE TABLE `{}` (id INT64, name STRING)"
BIG = 6 * 1024 * 1024  # more than goes up in one request

LOST: list[Any] = [
    pytest.param(LoseRequest(), id="request lost"),
    pytest.param(LoseAnswer(), id="answer lost"),
    pytest.param(CutAnswer(), id="answer cut"),
    pytest.param(Answer("backendError"), id="503"),
    pytest.param(Answer("internalError"), id="500"),
    pytest.param(Answer("badGateway"), id="502"),
    pytest.param(Answer("", status=504), id="504"),
    pytest.param(Answer("rateLimitExceeded"), id="rate limit"),
    pytest.param(Answer("", status=429), id="429"),
    pytest.param(FailJob("backendError"), id="job failed: backend"),
    pytest.param(FailJob("jobInternalError"), id="job failed: internal"),
    pytest.param(FailJob("jobRateLimitExceeded"), id="job failed: rate"),
    pytest.param(Unfinished(2), id="takes long"),
]


@pytest.fixture(autouse=True)
def _no_waits() -> Iterator[None]:
    with without_waiting():
        yield


@pytest.fixture
def opened() -> Iterator[Callable[..., Client]]:
    clients: list[Client] = []

    def open_client(dataset: Dataset, **changes: Any) -> Client:
        clients.append(Client(dataset.config(**changes)))
        return clients[-1]

    yield open_client
    for client in clients:
        client.close()


@pytest.fixture
def direct(bigquery_dataset: Dataset, opened: Callable[..., Client]) -> Client:
    client = opened(bigquery_dataset)
    client.ensure_dataset()
    client.run(CREATE.format(ref(bigquery_dataset)), doing="make a table")
    return client


@pytest.fixture
def client(bigquery_dataset: Dataset, bigquery_proxy: FaultProxy, direct: Client, opened: Any) -> Client:
    return opened(bigquery_dataset.through(bigquery_proxy))


@pytest.fixture
def table(bigquery_dataset: Dataset, direct: Client) -> str:
    return ref(bigquery_dataset)


def ref(dataset: Dataset, name: str = "t") -> str:
    return f"{dataset.project}.{dataset.name}.{name}"


def parquet(*ids: int, name: str = "x") -> io.BytesIO:
    file = io.BytesIO()
    rows = pa.table({"id": pa.array(ids, pa.int64()), "name": pa.array([name] * len(ids), pa.string())})
    pq.write_table(rows, file, compression="none", use_dictionary=False)
    return file


def ids(client: Client, table: str) -> list[int]:
    return [row[0] for row in client.run(f"SELECT id FROM `{table}` ORDER BY id", doing="read")]


def insert(client: Client, table: str, value: int, **options: Any) -> list[tuple[Any, ...]]:
    script = f"BEGIN TRANSACTION; INSERT INTO `{table}` (id) VALUES ({value}); COMMIT TRANSACTION; SELECT {value};"
    return client.run(script, doing="insert a row", **options)


def sent(proxy: FaultProxy) -> list[str]:
    """Ids of the jobs that were sent, in order."""
    return [call.job_id for call in proxy.calls if call.method != "GET" and call.job and call.job_id]


class TestQueries:
    @pytest.mark.parametrize("fault", LOST)
    @pytest.mark.parametrize("key", [None, "batch 7"])
    def test_a_script_runs_once(
        self, client: Client, direct: Client, table: str, bigquery_proxy: FaultProxy, fault: Fault, key: str | None
    ) -> None:
        bigquery_proxy.fault(fault, job="query")
        assert insert(client, table, 1, job_key=key) == [(1,)]
        assert ids(direct, table) == [1]
        assert not bigquery_proxy.unused

    @pytest.mark.parametrize("fault", [LoseRequest(), LoseAnswer(), CutAnswer(), Answer(), Answer("rateLimitExceeded")])
    @pytest.mark.parametrize("path", ["/queries/", "/jobs/"])
    def test_what_happens_while_it_is_waited_for_does_no_harm(
        self, client: Client, direct: Client, table: str, bigquery_proxy: FaultProxy, fault: Fault, path: str
    ) -> None:
        bigquery_proxy.fault(fault, method="GET", path=path, times=3)
        bigquery_proxy.fault(Unfinished(1), job="query")
        assert insert(client, table, 1) == [(1,)]
        assert ids(direct, table) == [1]
        assert len(sent(bigquery_proxy)) == 1

    def test_a_request_that_is_on_its_way_for_long_meets_its_repetition(
        self, client: Client, direct: Client, table: str, bigquery_proxy: FaultProxy, opened: Any, bigquery_dataset: Any
    ) -> None:
        impatient = opened(bigquery_dataset.through(bigquery_proxy), timeout_seconds=1)
        hold = Hold()
        bigquery_proxy.fault(hold, job="query")
        done = threading.Event()

        def release(call: Call, moment: str) -> None:
            if moment == "after" and call.number > 1 and not done.is_set():
                done.set()
                hold.release.set()

        with bigquery_proxy.on_call(release):
            insert(impatient, table, 1)
        assert ids(direct, table) == [1]
        assert len(set(sent(bigquery_proxy))) == 1 < len(sent(bigquery_proxy))

    def test_the_same_key_is_not_run_again_by_the_next_process(self, client: Client, table: str, opened: Any) -> None:
        assert insert(client, table, 1, job_key="k") == insert(client, table, 2, job_key="k") == [(1,)]
        assert ids(client, table) == [1]

    def test_keys_of_other_datasets_are_others(
        self, client: Client, table: str, opened: Any, bigquery_dataset: Any
    ) -> None:
        insert(client, table, 1, job_key="k")
        insert(opened(replace(bigquery_dataset, name="elsewhere")), table, 2, job_key="k")
        assert ids(client, table) == [1, 2]

    def test_what_failed_for_good_is_raised_and_runs_again_once_it_is_mended(self, client: Client, table: str) -> None:
        sql = f"ALTER TABLE `{table}` RENAME COLUMN wrong TO right_one"
        for _ in range(3):
            with pytest.raises(EtlError):
                client.run(sql, doing="rename", job_key="k")
        client.run(f"ALTER TABLE `{table}` ADD COLUMN wrong INT64", doing="mend")
        client.run(sql, doing="rename", job_key="k")
        assert client.columns(table) == ["id", "name", "right_one"]

    def test_a_job_that_failed_is_followed_by_one_of_the_next_id(
        self, client: Client, table: str, bigquery_proxy: FaultProxy
    ) -> None:
        bigquery_proxy.fault(FailJob("backendError"), job="query", times=2)
        insert(client, table, 1, job_key="k")
        first, *others = sent(bigquery_proxy)
        assert first.startswith("etl_")
        assert others == [f"{first}_r2", f"{first}_r3"]

    @pytest.mark.parametrize(
        "message",
        ["Transaction is aborted due to concurrent update against table x", "Could not serialize access to table x"],
    )
    def test_a_conflict_of_transactions_is_tried_again(
        self, client: Client, table: str, bigquery_proxy: FaultProxy, message: str
    ) -> None:
        bigquery_proxy.fault(FailJob("invalidQuery", message), job="query")
        insert(client, table, 1)
        assert ids(client, table) == [1]

    def test_it_gives_up_when_the_time_is_up(
        self, bigquery_dataset: Any, bigquery_proxy: FaultProxy, opened: Any
    ) -> None:
        hasty = opened(bigquery_dataset.through(bigquery_proxy), retry_seconds=0)
        bigquery_proxy.fault(Answer("backendError"), job="query", times=1000)
        with pytest.raises(DestinationError, match="failed to insert a row") as caught:
            insert(hasty, "t", 1)
        assert caught.value.kind is ErrorKind.DESTINATION_UNAVAILABLE

    def test_a_stop_ends_the_attempts(self, client: Client, table: str, bigquery_proxy: FaultProxy) -> None:
        bigquery_proxy.fault(Answer("backendError"), job="query", times=1000)
        stop = threading.Event()

        def ask(call: Call, moment: str) -> bool:
            if call.job == "query" and moment == "before" and len(sent(bigquery_proxy)) >= 3:
                stop.set()
            return False

        with bigquery_proxy.on_call(ask), stoppable(stop), pytest.raises(DestinationError) as caught:
            insert(client, table, 1)
        assert caught.value.kind is ErrorKind.DESTINATION_UNAVAILABLE
        assert len(sent(bigquery_proxy)) == 3

    @pytest.mark.parametrize(
        "reason", ["accessDenied", "quotaExceeded", "billingNotEnabled", "bytesBilledLimitExceeded"]
    )
    @pytest.mark.parametrize("how", [Answer, FailJob])
    def test_what_waiting_does_not_mend_is_raised_at_once(
        self, client: Client, bigquery_proxy: FaultProxy, table: str, reason: str, how: Any
    ) -> None:
        bigquery_proxy.fault(how(reason), job="query")
        with pytest.raises(DestinationError, match=reason) as caught:
            insert(client, table, 1)
        assert caught.value.kind is ErrorKind.DESTINATION_REFUSED
        assert caught.value.hint
        assert len(sent(bigquery_proxy)) == 1

    def test_a_refusal_after_a_lost_answer_is_not_believed(
        self, client: Client, direct: Client, table: str, bigquery_proxy: FaultProxy
    ) -> None:
        bigquery_proxy.fault(LoseAnswer(), job="query")
        bigquery_proxy.fault(Answer("accessDenied"), job="query")
        assert insert(client, table, 1) == [(1,)]
        assert ids(direct, table) == [1]

    def test_parameters_of_every_type(self, client: Client) -> None:
        given = {"text": "ä'\"", "bytes": b"\x00\xff", "number": -(2**63), "list": ["a", ""], "flag": True}
        found = client.run("SELECT @text, @bytes, @number, @list, @flag", doing="read", parameters=given)
        assert found == [tuple(given.values())]

    def test_many_rows_come_whole(self, client: Client) -> None:
        found = client.run("SELECT x FROM UNNEST(GENERATE_ARRAY(1, 25000)) AS x ORDER BY x", doing="read")
        assert found == [(number,) for number in range(1, 25001)]

    def test_assertions_of_our_scripts_are_told_apart(self, client: Client) -> None:
        with pytest.raises(DestinationError) as epoch:
            client.run("ASSERT FALSE AS 'etl: epoch'", doing="write")
        assert epoch.value.kind is ErrorKind.DESTINATION_UNAVAILABLE
        assert assertion(epoch.value) == "epoch"
        with pytest.raises(RowIncomplete) as incomplete:
            client.run("ASSERT FALSE AS 'etl: incomplete Odd schema.t 1'", doing="write")
        assert incomplete.value.table == "Odd schema.t 1"

    def test_values_of_rows_are_in_no_traceback(self, client: Client, caplog: pytest.LogCaptureFixture) -> None:
        secret = f"s3cr{3}t"  # a traceback shows the very lines of this test
        with pytest.raises(EtlError) as caught:
            client.run(f"SELECT CAST('{secret}' AS INT64)", doing="cast", table="public.t")
        assert caught.value.kind is ErrorKind.VALUE
        assert secret not in "".join(traceback.format_exception(caught.value)) + caplog.text

    def test_jobs_carry_labels_location_and_limit(
        self, bigquery_dataset: Any, bigquery_proxy: FaultProxy, opened: Any
    ) -> None:
        limits = {"labels": {"team": "data"}, "maximum_bytes_billed": 10**9}
        opened(bigquery_dataset.through(bigquery_proxy), **limits).run("SELECT 1", doing="read")
        body = bigquery_proxy.calls[0].body
        assert b'"labels": {"team": "data"}' in body
        assert b'"maximumBytesBilled": "1000000000"' in body
        assert b'"location": "US"' in body


class TestLoads:
    @pytest.mark.parametrize("fault", LOST)
    @pytest.mark.parametrize("size", ["in one request", "in parts"])
    def test_a_file_is_loaded_once(
        self, client: Client, direct: Client, table: str, bigquery_proxy: FaultProxy, fault: Fault, size: str
    ) -> None:
        bigquery_proxy.fault(fault, job="load")
        file = parquet(1, 2, name="x" if size == "in one request" else "x" * BIG)
        assert client.load(table, file, fields=FIELDS, job_key="c", create=False, doing="load") == 2
        assert ids(direct, table) == [1, 2]
        assert not bigquery_proxy.unused

    def test_a_job_that_is_there_is_not_sent_a_file(
        self, client: Client, table: str, bigquery_proxy: FaultProxy
    ) -> None:
        for _ in range(2):
            file = parquet(1)
            assert client.load(table, file, fields=FIELDS, job_key="c", create=False, doing="load") == 1
        assert len(sent(bigquery_proxy)) == 1
        assert ids(client, table) == [1]

    def test_a_stop_leaves_a_job_that_goes_on_for_long_and_the_next_process_finds_it(
        self, client: Client, table: str, bigquery_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(jobs, "_GRACE_SECONDS", 0.0)
        bigquery_proxy.fault(Unfinished(4), job="load")
        stop = threading.Event()
        stop.set()
        with stoppable(stop), pytest.raises(DestinationError, match="Stopped while BigQuery") as caught:
            client.load(table, parquet(1), fields=FIELDS, job_key="c", create=False, doing="load")
        assert caught.value.kind is ErrorKind.DESTINATION_UNAVAILABLE
        assert client.find_load("c") is not None

    def test_a_load_is_found_by_its_key(self, client: Client, table: str, bigquery_proxy: FaultProxy) -> None:
        assert client.find_load("c") is None
        bigquery_proxy.fault(FailJob("accessDenied"), job="load")
        with pytest.raises(DestinationError):
            client.load(table, parquet(1), fields=FIELDS, job_key="c", create=False, doing="load")
        assert client.find_load("c") is None
        client.load(table, parquet(1), fields=FIELDS, job_key="c", create=False, doing="load", labels={"chunk": "7"})
        found = client.find_load("c")
        assert found is not None
        assert (found.rows, found.labels["chunk"]) == (1, "7")

    def test_many_at_once(self, client: Client, direct: Client, table: str) -> None:
        def load(number: int) -> int:
            return client.load(table, parquet(number), fields=FIELDS, job_key=f"c{number}", create=False, doing="load")

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(load, range(16))) == [1] * 16
        assert ids(direct, table) == list(range(16))
        assert client.take_usage().loads == 16

    def test_a_table_is_made_if_that_is_wanted(self, client: Client, bigquery_dataset: Dataset) -> None:
        target = ref(bigquery_dataset, "made")
        with pytest.raises(EtlError):
            client.load(target, parquet(1), fields=FIELDS, job_key="a", create=False, doing="load", table="public.made")
        client.load(target, parquet(1), fields=FIELDS, job_key="b", create=True, doing="load")
        assert client.columns(target) == ["id", "name"]

    def test_a_broken_file_is_refused(self, client: Client, table: str) -> None:
        with pytest.raises(EtlError, match="invalid"):
            client.load(table, io.BytesIO(b"rubbish"), fields=FIELDS, job_key="c", create=False, doing="load")


class TestBucket:
    @pytest.fixture
    def staging(self, gcs_server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage

        monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server.url)
        client = storage.Client("local", AnonymousCredentials())
        bucket = client.bucket("etl-staging")
        if not bucket.exists():
            bucket.create()
        return bucket

    @pytest.mark.parametrize("fault", [LoseAnswer(), Answer("backendError"), FailJob("backendError")])
    def test_files_go_through_the_bucket_and_leave_nothing_there(
        self, staging: Any, bigquery_dataset: Any, bigquery_proxy: FaultProxy, opened: Any, table: str, fault: Fault
    ) -> None:
        through = opened(bigquery_dataset.through(bigquery_proxy), staging={"bucket": staging.name})
        bigquery_proxy.fault(fault, job="load")
        assert through.load(table, parquet(1, 2), fields=FIELDS, job_key="c", create=False, doing="load") == 2
        assert ids(through, table) == [1, 2]
        assert list(staging.list_blobs()) == []

    def test_a_bucket_that_is_missing_is_told(
        self, staging: Any, bigquery_dataset: Any, opened: Any, table: str
    ) -> None:
        through = opened(bigquery_dataset, staging={"bucket": "no-such-bucket"})
        with pytest.raises(DestinationError, match="NotFound") as caught:
            through.load(table, parquet(1), fields=FIELDS, job_key="c", create=False, doing="load", table="public.t")
        assert "destination.staging" in caught.value.hint
        assert caught.value.table is None


class TestCopies:
    @pytest.mark.parametrize("fault", LOST)
    def test_a_copy_takes_the_place_of_its_target(
        self, client: Client, direct: Client, table: str, bigquery_dataset: Dataset, bigquery_proxy: Any, fault: Fault
    ) -> None:
        target = ref(bigquery_dataset, "u")
        insert(direct, table, 1)
        bigquery_proxy.fault(fault, job="copy")
        client.copy(table, target, job_key="swap 1", doing="copy")
        insert(direct, table, 2)
        client.copy(table, target, job_key="swap 1", doing="copy")
        assert ids(direct, target) == [1]
        client.copy(table, target, job_key="swap 2", doing="copy")
        assert ids(direct, target) == [1, 2]


class TestReading:
    @pytest.mark.parametrize("storage", ["gRPC", "REST"])
    def test_rows_come_as_arrow_in_their_order(self, bigquery_dataset: Any, opened: Any, storage: str) -> None:
        changes = {} if storage == "gRPC" else {"storage_api_endpoint": None}
        client = opened(bigquery_dataset, **changes)
        sql = "SELECT x, CAST(x AS STRING) AS s FROM UNNEST(GENERATE_ARRAY(1, 30000)) AS x ORDER BY x"
        read = pa.Table.from_batches(list(client.read(sql, doing="read")))
        assert read["x"].to_pylist() == list(range(1, 30001))
        assert list(client.read("SELECT 1 AS x FROM UNNEST([1]) WHERE FALSE", doing="read")) == []

    def test_a_page_that_is_lost_is_asked_for_again(
        self, bigquery_dataset: Any, bigquery_proxy: FaultProxy, opened: Any
    ) -> None:
        client = opened(bigquery_dataset.through(bigquery_proxy), storage_api_endpoint=None)
        bigquery_proxy.fault(LoseAnswer(), path="/queries/", nth=3)
        sql = "SELECT x FROM UNNEST(GENERATE_ARRAY(1, 30000)) AS x ORDER BY x"
        assert sum(batch.num_rows for batch in client.read(sql, doing="read")) == 30000
        assert not bigquery_proxy.unused

    def test_what_is_not_read_to_its_end_lets_go(self, bigquery_dataset: Any, opened: Any) -> None:
        client = opened(bigquery_dataset)
        reading = client.read("SELECT x FROM UNNEST(GENERATE_ARRAY(1, 30000)) AS x", doing="read")
        assert next(reading).num_rows
        reading.close()
        assert client.run("SELECT 1", doing="read") == [(1,)]

    def test_an_account_that_may_not_use_the_storage_api_reads_without(
        self, bigquery_dataset: Any, opened: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        server = grpc.server(ThreadPoolExecutor(2), handlers=[NobodyMay()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            client = opened(bigquery_dataset, storage_api_endpoint=f"127.0.0.1:{port}")
            sql = "SELECT x FROM UNNEST(GENERATE_ARRAY(1, 30000)) AS x"
            for _ in range(2):
                assert sum(batch.num_rows for batch in client.read(sql, doing="read")) == 30000
        finally:
            server.stop(None).wait()
        assert caplog.text.count("lacks bigquery.readsessions.create") == 1


class NobodyMay(grpc.GenericRpcHandler):
    """Refuses every call, as Google does when a permission is missing."""

    def service(self, call: Any) -> Any:
        def refuse(request: bytes, context: Any) -> None:
            details = "Permission 'bigquery.readsessions.create' denied on resource"
            context.abort(grpc.StatusCode.PERMISSION_DENIED, details)

        return grpc.unary_unary_rpc_method_handler(refuse)


class TestTables:
    @pytest.mark.parametrize("fault", [LoseRequest(), LoseAnswer(), Answer("backendError"), Answer("", status=429)])
    def test_requests_about_tables_are_repeated(
        self, client: Client, bigquery_dataset: Dataset, bigquery_proxy: FaultProxy, fault: Fault
    ) -> None:
        made = ref(bigquery_dataset, "made")
        for method, path in [("GET", "/tables$"), ("GET", "/tables/made$"), ("DELETE", "made$")]:
            bigquery_proxy.fault(fault, method=method, path=path)
        client.run(CREATE.format(made), doing="make a table")
        assert client.table_names("ma") == {"made"}
        assert (client.columns(made), client.rows(made)) == (["id", "name"], 0)
        client.drop_table(made)
        assert client.columns(made) is client.rows(made) is None
        assert not bigquery_proxy.unused

    def test_the_dataset_is_made_where_it_should_be(self, bigquery_dataset: Dataset, opened: Any) -> None:
        client = opened(bigquery_dataset, location="EU")
        assert client.dataset_location(bigquery_dataset.name) is None
        assert client.table_names() == set()
        client.ensure_dataset()
        client.ensure_dataset()
        assert client.dataset_location(bigquery_dataset.name) == "EU"
        with pytest.raises(ConfigError, match=r"destination.location is US, but .* is in EU"):
            opened(bigquery_dataset).ensure_dataset()

    def test_nobody_there_is_told(self, bigquery_dataset: Any, opened: Any) -> None:
        nobody = opened(bigquery_dataset, api_endpoint="http://127.0.0.1:9", retry_seconds=0)
        with pytest.raises(DestinationError, match="ConnectionError") as caught:
            nobody.ensure_dataset()
        assert caught.value.kind is ErrorKind.DESTINATION_UNAVAILABLE


def test_what_jobs_took_is_counted_until_it_is_taken(client: Client, table: str, bigquery_dataset: Dataset) -> None:
    client.take_usage()
    insert(client, table, 1)
    client.load(table, parquet(2), fields=FIELDS, job_key="c", create=False, doing="load")
    client.copy(table, ref(bigquery_dataset, "u"), job_key="s", doing="copy")
    taken = client.take_usage()
    assert (taken.queries, taken.loads, taken.copies) == (1, 1, 1)
    assert set(taken.as_mapping()) == {"bytes_processed", "bytes_billed", "slot_ms", "queries", "loads", "copies"}
    assert client.take_usage().queries == 0
