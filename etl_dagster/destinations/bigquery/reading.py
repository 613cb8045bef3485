"""Results as Arrow: through the Storage Read API where it can be reached, through the REST API otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from etl_dagster.destinations.bigquery.config import AnonymousCredentials, BigQueryConfig

if TYPE_CHECKING:
    import pyarrow as pa
    from google.auth.credentials import Credentials
    from google.cloud.bigquery_storage import BigQueryReadClient

# Batches that wait to be taken, of about a megabyte each.
_QUEUED = 4
_PAGE_ROWS = 10_000
# Up to so many, the REST API has sent them before the other has opened a session.
_FEW_ROWS, _FEW_BYTES = 1000, 4 * 1024 * 1024
# Finds a connection that a firewall has dropped in silence.
_KEEPALIVE = [("grpc.keepalive_time_ms", 30_000), ("grpc.keepalive_timeout_ms", 10_000)]


def open_reader(config: BigQueryConfig, credentials: Credentials) -> BigQueryReadClient | None:
    """The Storage Read API; None where there is none, as beside an emulator or a private REST endpoint."""
    endpoint = config.storage_api_endpoint
    if find_spec("google.cloud.bigquery_storage") is None or (endpoint is None and config.api_endpoint is not None):
        return None
    from google.cloud.bigquery_storage import BigQueryReadClient

    if not isinstance(config.credentials, AnonymousCredentials):
        options = {"api_endpoint": endpoint} if endpoint else None
        return BigQueryReadClient(credentials=credentials, client_options=options)
    import grpc
    from google.cloud.bigquery_storage_v1.services.big_query_read.transports import BigQueryReadGrpcTransport

    assert endpoint is not None
    channel = grpc.insecure_channel(endpoint, options=_KEEPALIVE)
    return BigQueryReadClient(transport=BigQueryReadGrpcTransport(channel=channel))


def batches(
    job: Any, reader: BigQueryReadClient | None, timeout_seconds: float, retry_seconds: float
) -> Iterator[pa.RecordBatch]:
    """The rows of a query that is done; few of them are in memory at once."""
    from google.cloud.bigquery.retry import DEFAULT_RETRY

    retry = DEFAULT_RETRY.with_timeout(retry_seconds)
    rows = job.result(page_size=_PAGE_ROWS, retry=retry, timeout=timeout_seconds, job_retry=None)
    if (rows.total_rows or 0) <= _FEW_ROWS and (job.total_bytes_processed or 0) <= _FEW_BYTES:
        reader = None
    found = rows.to_arrow_iterable(bqstorage_client=reader, max_queue_size=_QUEUED, max_stream_count=1)
    return (batch for batch in found if batch.num_rows)
