"""The emulator does what the tests of the destination take for granted, and refuses what BigQuery refuses."""

from __future__ import annotations

import io
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.api_core.exceptions import BadRequest, GoogleAPICallError
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery, bigquery_storage, storage
from google.cloud.bigquery_storage_v1.services.big_query_read.transports import BigQueryReadGrpcTransport

from tests.bigquery.emulator import Emulator, GcsServer
from tests.bigquery.fixtures import Dataset


@pytest.fixture
def client(bigquery_dataset: Dataset) -> Iterator[bigquery.Client]:
    with bigquery_dataset.client() as client:
        client.create_dataset(bigquery_dataset.name)
        yield client


def rows(client: bigquery.Client, query: str, **config: Any) -> list[tuple[Any, ...]]:
    job = client.query(query, job_config=bigquery.QueryJobConfig(**config), job_retry=None)
    return [tuple(row.values()) for row in job.result()]


def parquet(**columns: Any) -> io.BytesIO:
    content = io.BytesIO()
    pq.write_table(pa.table(columns), content)
    content.seek(0)
    return content


def test_rows_and_jobs_outlive_a_kill(client: bigquery.Client, bigquery_emulator: Emulator) -> None:
    rows(client, "CREATE TABLE t (id INT64) CLUSTER BY id")
    job = client.query("INSERT INTO t VALUES (1), (2)")
    job.result()
    bigquery_emulator.restart()
    assert rows(client, "SELECT id FROM t ORDER BY id") == [(1,), (2,)]
    again = client.get_job(job.job_id)
    assert isinstance(again, bigquery.QueryJob)
    assert (again.state, again.num_dml_affected_rows) == ("DONE", 2)
    table = client.get_table(job.default_dataset.table("t"))
    assert table.clustering_fields == ["id"]


def test_a_script_commits_all_or_nothing(client: bigquery.Client) -> None:
    rows(client, "CREATE TABLE t (id INT64, v STRING); CREATE TABLE state (epoch INT64); INSERT INTO state VALUES (1)")
    script = """
        BEGIN TRANSACTION;
        ASSERT (SELECT epoch FROM state) = @epoch AS 'moved on';
        MERGE t USING (
            SELECT CAST(JSON_VALUE(r, '$[0]') AS INT64) AS id, JSON_VALUE(r, '$[1]') AS v
            FROM UNNEST(JSON_QUERY_ARRAY(@rows)) AS r
        ) AS s ON t.id = s.id
        WHEN MATCHED THEN UPDATE SET v = s.v WHEN NOT MATCHED THEN INSERT (id, v) VALUES (s.id, s.v);
        UPDATE state SET epoch = epoch + 1 WHERE TRUE;
        COMMIT TRANSACTION;
    """

    def run(epoch: int, content: str) -> None:
        parameters = [
            bigquery.ScalarQueryParameter("epoch", "INT64", epoch),
            bigquery.ScalarQueryParameter("rows", "STRING", content),
        ]
        rows(client, script, query_parameters=parameters)

    run(1, '[["1", "a"], ["2", null]]')
    run(2, '[["1", "b"]]')
    with pytest.raises(BadRequest, match="moved on"):
        run(2, '[["3", "c"]]')
    with pytest.raises(BadRequest, match="at most one source row"):
        run(3, '[["1", "d"], ["1", "e"]]')
    assert rows(client, "SELECT id, v FROM t ORDER BY id") == [(1, "b"), (2, None)]
    assert rows(client, "SELECT epoch FROM state") == [(3,)]


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE u (id INT64)",
        "CREATE OR REPLACE TABLE t AS SELECT 1 AS id",
        "ALTER TABLE t ADD COLUMN more INT64",
        "DROP TABLE t",
    ],
)
def test_a_transaction_takes_no_permanent_definitions(client: bigquery.Client, statement: str) -> None:
    rows(client, "CREATE TABLE t (id INT64)")
    with pytest.raises(BadRequest, match="not supported inside of a transaction"):
        rows(client, f"BEGIN TRANSACTION; INSERT INTO t VALUES (1); {statement}; COMMIT TRANSACTION;")
    assert rows(client, "SELECT * FROM t") == []


def test_a_transaction_takes_temporary_tables(client: bigquery.Client) -> None:
    rows(client, "CREATE TABLE t (id INT64)")
    rows(
        client,
        "BEGIN TRANSACTION; CREATE TEMP TABLE s AS SELECT 1 AS id; INSERT INTO t SELECT id FROM s; DROP TABLE s;"
        "COMMIT TRANSACTION;",
    )
    assert rows(client, "SELECT * FROM t") == [(1,)]


def test_a_transaction_changes_a_hundred_tables(client: bigquery.Client) -> None:
    rows(client, "".join(f"CREATE TABLE t{number} (id INT64);" for number in range(101)))
    changes = [f"INSERT INTO t{number} VALUES (1);" for number in range(101)]
    rows(client, f"BEGIN TRANSACTION; {''.join(changes[:100])} COMMIT TRANSACTION;")
    with pytest.raises(BadRequest, match="at most 100 tables"):
        rows(client, f"BEGIN TRANSACTION; {''.join(changes)} COMMIT TRANSACTION;")


def test_two_transactions_that_mutate_one_table_do_not_both_commit(client: bigquery.Client) -> None:
    """Even when they change other rows: as in BigQuery, it is the table that counts."""
    rows(client, "CREATE TABLE t (id INT64, v INT64); INSERT INTO t VALUES (1, 0), (2, 0)")
    sessions = []
    for _ in range(2):
        job = client.query("BEGIN TRANSACTION", job_config=bigquery.QueryJobConfig(create_session=True))
        job.result()
        sessions.append([bigquery.ConnectionProperty("session_id", job.session_info.session_id)])
    first, second = sessions
    rows(client, "UPDATE t SET v = 1 WHERE id = 1", connection_properties=first)
    with pytest.raises(BadRequest, match="aborted due to concurrent update"):
        rows(client, "UPDATE t SET v = 1 WHERE id = 2", connection_properties=second)
    rows(client, "COMMIT TRANSACTION", connection_properties=first)
    rows(client, "ROLLBACK TRANSACTION", connection_properties=second)
    assert rows(client, "SELECT id, v FROM t ORDER BY id") == [(1, 1), (2, 0)]
    rows(client, "UPDATE t SET v = 2 WHERE id = 2")


def test_sizes_are_limited(client: bigquery.Client) -> None:
    with pytest.raises(BadRequest, match="query is too large"):
        rows(client, f"SELECT '{'x' * (1 << 20)}'")
    for megabytes, fits in ((9, True), (11, False)):
        parameter = bigquery.ScalarQueryParameter("p", "STRING", "x" * (megabytes << 20))
        if fits:
            assert rows(client, "SELECT LENGTH(@p)", query_parameters=[parameter]) == [(9 << 20,)]
        else:
            with pytest.raises(GoogleAPICallError, match="payload size exceeds"):
                rows(client, "SELECT LENGTH(@p)", query_parameters=[parameter])


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("CREATE TABLE u (_CHANGE_TYPE STRING)", "Illegal field name"),
        ("CREATE TABLE u AS SELECT 1 AS _Partition_of", "Illegal field name"),
        ("ALTER TABLE t ADD COLUMN _FILE_name STRING", "Illegal field name"),
        ("ALTER TABLE t RENAME COLUMN v TO _table_v", "Illegal field name"),
        ("CREATE TABLE u (x FLOAT64) CLUSTER BY x", "Clustering"),
        ("CREATE TABLE u (x JSON) CLUSTER BY x", "Clustering"),
        ("CREATE TABLE u (a INT64, b INT64, c INT64, d INT64, e INT64) CLUSTER BY a, b, c, d, e", "Clustering"),
        ("CREATE OR REPLACE TABLE t CLUSTER BY v AS SELECT 1 AS id, 'v' AS v", "different partitioning"),
        ("ALTER TABLE t RENAME COLUMN id TO key", "clustered"),
        ("ALTER TABLE t DROP COLUMN id", "clustered"),
        ("ALTER TABLE t ALTER COLUMN n SET DATA TYPE INT64", "assignable"),
        ("ALTER TABLE t ALTER COLUMN v SET DATA TYPE JSON", "assignable"),
    ],
)
def test_definitions_are_refused(client: bigquery.Client, statement: str, message: str) -> None:
    rows(client, "CREATE TABLE t (id INT64, v STRING, n NUMERIC) CLUSTER BY id")
    with pytest.raises(BadRequest, match=message):
        rows(client, statement)
    assert {table.table_id for table in client.list_tables(client.default_query_job_config.default_dataset)} == {"t"}


def test_columns_are_renamed_and_widened(client: bigquery.Client) -> None:
    rows(client, "CREATE TABLE t (id INT64, `a b` STRING, c STRING, n NUMERIC(10, 2)) CLUSTER BY id")
    rows(client, "INSERT INTO t VALUES (1, 'ab', 'c', 1.5)")
    rows(client, "ALTER TABLE t RENAME COLUMN `a b` TO d, RENAME COLUMN c TO `a b`")
    rows(client, "ALTER TABLE t ALTER COLUMN n SET DATA TYPE NUMERIC(12, 2)")
    rows(client, "ALTER TABLE t ALTER COLUMN n SET DATA TYPE FLOAT64")
    assert rows(client, "SELECT id, `a b`, d, n FROM t") == [(1, "c", "ab", 1.5)]


def test_intervals_are_read_in_their_canonical_form(client: bigquery.Client) -> None:
    ((positive, negative, nothing),) = rows(
        client,
        "SELECT CAST('1-2 3 4:5:6.789' AS INTERVAL), CAST('-1-2 3 -4:5:6' AS INTERVAL), "
        "CAST(CAST(NULL AS STRING) AS INTERVAL)",
    )
    assert (positive.years, positive.months, positive.days, positive.microseconds) == (1, 2, 3, 789000)
    assert (negative.years, negative.days, negative.hours, negative.seconds) == (-1, 3, -4, -6)
    assert nothing is None


def test_parquet_fills_bytes_but_no_json(client: bigquery.Client, bigquery_dataset: Dataset) -> None:
    config = bigquery.LoadJobConfig(
        source_format="PARQUET",
        schema=[bigquery.SchemaField("b", "BYTES"), bigquery.SchemaField("j", "STRING")],
    )
    columns = {"b": pa.array([b"\x00\xff", None]), "j": pa.array(['{"a": 1}', None])}
    target = f"{bigquery_dataset.project}.{bigquery_dataset.name}.t"
    client.load_table_from_file(parquet(**columns), target, job_config=config).result()
    assert rows(client, "SELECT * FROM t ORDER BY b") == [(None, None), (b"\x00\xff", '{"a": 1}')]
    rows(client, "CREATE TABLE u (b BYTES, j JSON)")
    refused = client.load_table_from_file(
        parquet(**columns),
        f"{bigquery_dataset.project}.{bigquery_dataset.name}.u",
        job_config=bigquery.LoadJobConfig(source_format="PARQUET", write_disposition="WRITE_APPEND"),
    )
    with pytest.raises(BadRequest, match="JSON"):
        refused.result()


def test_a_copy_has_the_layout_of_its_source(client: bigquery.Client, bigquery_dataset: Dataset) -> None:
    rows(client, "CREATE TABLE t (id INT64, n NUMERIC(10, 2)) CLUSTER BY id")
    rows(client, "CREATE TABLE u (other INT64) CLUSTER BY other")
    name = f"{bigquery_dataset.project}.{bigquery_dataset.name}"
    config = bigquery.CopyJobConfig(write_disposition="WRITE_TRUNCATE")
    with pytest.raises(BadRequest, match="Incompatible"):
        client.copy_table(f"{name}.t", f"{name}.u", job_config=config).result()
    client.copy_table(f"{name}.t", f"{name}.w", job_config=config).result()
    copied = client.get_table(f"{name}.w")
    assert copied.clustering_fields == ["id"]
    assert [(column.name, column.precision) for column in copied.schema] == [("id", None), ("n", 10)]


def test_files_in_a_bucket_are_loaded(
    client: bigquery.Client, bigquery_dataset: Dataset, gcs_server: GcsServer
) -> None:
    bucket = f"bucket-{bigquery_dataset.name.replace('_', '-')}"
    files = storage.Client(
        project="local", credentials=AnonymousCredentials(), client_options={"api_endpoint": gcs_server.url}
    )
    files.create_bucket(bucket).blob("staged/one.parquet").upload_from_file(parquet(id=pa.array([1, 2])))
    client.load_table_from_uri(
        f"gs://{bucket}/staged/one.parquet",
        f"{bigquery_dataset.project}.{bigquery_dataset.name}.t",
        job_config=bigquery.LoadJobConfig(source_format="PARQUET"),
    ).result()
    assert rows(client, "SELECT id FROM t ORDER BY id") == [(1,), (2,)]


def test_rows_are_read_as_arrow(client: bigquery.Client, bigquery_dataset: Dataset) -> None:
    rows(client, "CREATE TABLE t (id INT64, n NUMERIC)")
    rows(client, "INSERT INTO t VALUES (1, 2.5)")
    reader = bigquery_storage.BigQueryReadClient(
        transport=BigQueryReadGrpcTransport(channel=grpc.insecure_channel(bigquery_dataset.emulator.grpc))
    )
    table = client.query("SELECT * FROM t").to_arrow(bqstorage_client=reader)
    assert table.to_pylist()[0]["id"] == 1


def test_numbers_of_38_digits(client: bigquery.Client, bigquery_dataset: Dataset) -> None:
    whole, deep = Decimal("9" * 38), Decimal("-9999999999999999999999999999.0000000001")
    schema = [
        bigquery.SchemaField("whole", "BIGNUMERIC", precision=38, scale=0),
        bigquery.SchemaField("deep", "BIGNUMERIC", precision=38, scale=10),
    ]
    content = parquet(whole=pa.array([whole], pa.decimal128(38, 0)), deep=pa.array([deep], pa.decimal128(38, 10)))
    name = f"{bigquery_dataset.project}.{bigquery_dataset.name}"
    config = bigquery.LoadJobConfig(source_format="PARQUET", schema=schema)
    client.load_table_from_file(content, f"{name}.s", job_config=config).result()
    rows(client, "CREATE TABLE t (whole BIGNUMERIC(38, 0), deep BIGNUMERIC(38, 10))")
    rows(client, "INSERT INTO t SELECT whole, deep FROM s")
    for table in ("s", "t"):
        assert rows(client, f"SELECT whole, deep FROM {table}") == [(whole, deep)]
        assert [column.field_type for column in client.get_table(f"{name}.{table}").schema] == ["BIGNUMERIC"] * 2
