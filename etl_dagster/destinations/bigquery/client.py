"""The connection to BigQuery: requests and jobs that are tried again, and run once, whatever happens on the way.

Google's libraries are imported when a connection is made, and nowhere but here and in the modules that serve this one.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import IO, TYPE_CHECKING, Any, TypeVar

from etl_dagster.destinations.bigquery.config import BigQueryConfig
from etl_dagster.destinations.bigquery.credentials import authorize, identity, session
from etl_dagster.destinations.bigquery.errors import failures, is_denied, is_missing, translate
from etl_dagster.destinations.bigquery.jobs import Jobs, Work
from etl_dagster.destinations.bigquery.layout import Field
from etl_dagster.destinations.bigquery.reading import batches, open_reader
from etl_dagster.destinations.bigquery.resources import parameters_of, schema_of
from etl_dagster.destinations.bigquery.uploads import Bucket, open_bucket
from etl_dagster.destinations.bigquery.usage import Meter, Usage
from etl_dagster.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa
    from google.auth.credentials import Credentials
    from google.cloud import bigquery

log = logging.getLogger(__name__)

T = TypeVar("T")

# Rows of a result that come with the answer that it is there.
_PAGE_ROWS = 10_000
# BigQuery keeps results for a day; what ran before that is known to have run, no more.
_RESULTS_KEPT = timedelta(hours=23)
# A part of a file that did not arrive is sent again that often before the upload begins anew.
_PART_RETRIES = 3
# Google's client sends smaller files together with the job.
_ONE_REQUEST_BYTES = 5 * 1024 * 1024
_TABLES_PER_PAGE = 1000
_READ_SESSIONS = "bigquery.readsessions.create"


@dataclass(frozen=True, slots=True)
class LoadedJob:
    """A load job that has succeeded."""

    rows: int
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TableFacts:
    """What BigQuery says of a table without reading it."""

    columns: list[str]
    rows: int
    bytes: int
    labels: Mapping[str, str]


def require_bigquery() -> None:
    """Raise `ConfigError` with the install hint when Google's libraries are missing."""
    try:
        found = find_spec("google.cloud.bigquery")
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise ConfigError(
            "destination.type: bigquery needs google-cloud-bigquery, which is not installed",
            hint="Run: pip install 'etl-dagster[bigquery]'",
        )


@contextmanager
def translated(doing: str, table: str | None = None) -> Iterator[None]:
    """Raise Google's errors as ours."""
    try:
        yield
    except failures() as error:
        ours = translate(error, doing, table)
        raise ours from ours.__cause__


class Client:
    """One connection; safe to use from several threads.

    A ``job_key`` makes the job run once for all time: called again with the same key, also by another process, the
    methods wait for the job that is there, and give its result (rows for a day after it ran, none later). Without one
    it runs once per call. A job that failed counts as one that never was.

    Tables are named ``project.dataset.table``. Errors are raised as ours, after what is worth it has been tried again
    for ``retry_seconds``.
    """

    def __init__(self, config: BigQueryConfig) -> None:
        require_bigquery()
        self.config = config
        self._credentials = authorize(config)
        self._http = session(self._credentials)
        self._google: Any = _google_client(config, self._credentials, self._http)
        self._meter = Meter()
        self._timeout = config.timeout_seconds
        scope = f"{config.project}/{config.dataset}"
        self._jobs = Jobs(self._find_job, scope, config.retry_seconds, config.timeout_seconds)
        self._bucket: Bucket | None = None
        if config.staging is not None:
            self._bucket = open_bucket(config, self._credentials, self._http)
        self._lock = threading.Lock()
        self._reader: Any = None
        self._readerless = False

    def close(self) -> None:
        """Close all connections."""
        self._close_reader()
        self._google.close()
        self._http.close()

    def take_usage(self) -> Usage:
        """What jobs took since this was called last."""
        return self._meter.take()

    @property
    def identity(self) -> str:
        """Who is connected, as far as the credentials say."""
        return identity(self._credentials)

    def run(
        self,
        sql: str,
        *,
        doing: str,
        table: str | None = None,
        parameters: Mapping[str, object] | None = None,
        job_key: str | None = None,
    ) -> list[tuple[Any, ...]]:
        """Run a statement or a script, and return the rows of its last statement; none unless it is a query."""
        config = self._query_config(parameters or {})
        work = Work(job_key, partial(self._query, sql, config), self._rows)
        return self._jobs.run(work, doing, table)

    def read(
        self, sql: str, *, doing: str, table: str | None = None, parameters: Mapping[str, object] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The rows of a query, in bounded memory; no batch at all when there are none."""
        work = Work(None, partial(self._query, sql, self._query_config(parameters or {})), self._finished_query)
        job = self._jobs.run(work, doing, table)
        with translated(doing, table):
            yield from self._batches(job)

    def load(
        self,
        table_ref: str,
        file: IO[bytes],
        *,
        fields: Sequence[Field],
        job_key: str,
        create: bool,
        doing: str,
        table: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> int:
        """Append a Parquet file of exactly these columns, and return its rows.

        Args:
            create: Make the table when it is missing.
            labels: Of the job, found again by `find_load`.
        """
        config = self._load_config(fields, create, labels or {})
        send = self._staged_load if self._bucket is not None else self._direct_load
        work = Work(job_key, partial(send, table_ref, file, config), self._finished_load, heavy=True)
        return self._jobs.run(work, doing, table)

    def find_load(
        self, job_key: str, *, doing: str = "look for a load job", table: str | None = None
    ) -> LoadedJob | None:
        """The load of this key if it has succeeded, or does now; None when it was never sent, or failed."""
        job = self._jobs.succeeded(job_key, doing, table)
        return None if job is None else LoadedJob(job.output_rows or 0, dict(job.labels))

    def copy(self, source_ref: str, target_ref: str, *, job_key: str, doing: str, table: str | None = None) -> None:
        """Put a copy of a table in the place of another, which need not exist."""
        from google.cloud import bigquery

        config = bigquery.CopyJobConfig(
            write_disposition="WRITE_TRUNCATE", create_disposition="CREATE_IF_NEEDED", labels=self.config.labels
        )

        def send(job_id: str) -> Any:
            return self._google.copy_table(
                source_ref, target_ref, job_id=job_id, job_config=config, retry=None, timeout=self._timeout
            )

        self._jobs.run(Work(job_key, send, self._finished_copy), doing, table)

    def ensure_dataset(self) -> None:
        """Have the datasets, in the location of the config."""
        for name in dict.fromkeys([self.config.dataset, self.config.internal_dataset or self.config.dataset]):
            self._ensure_dataset(f"{self.config.project}.{name}")

    def drop_table(self, ref: str, *, doing: str = "drop a table", table: str | None = None) -> None:
        """Drop a table, if it exists."""
        self._call(partial(self._google.delete_table, ref, not_found_ok=True), doing, table)

    def cluster(self, ref: str, columns: Sequence[str], *, doing: str, table: str | None = None) -> None:
        """Have a table clustered by other columns, or by none."""
        from google.cloud import bigquery

        wanted = bigquery.Table(ref)
        wanted.clustering_fields = list(columns) or None
        self._call(partial(self._google.update_table, wanted, ["clustering_fields"]), doing, table)

    def table_names(self, prefix: str = "") -> set[str]:
        """Names of the tables of both datasets; none when there are no datasets."""
        datasets = {self.config.dataset, self.config.internal_dataset or self.config.dataset}
        return {name for dataset in datasets for name in self.names_in(dataset) if name.startswith(prefix)}

    def old_tables(self, prefix: str, age: timedelta) -> set[str]:
        """Names, in both datasets, of tables that were made longer ago than that."""
        found: set[str] = set()
        for dataset in {self.config.dataset, self.config.internal_dataset or self.config.dataset}:
            tables = self._listed(dataset)
            made = {table.table_id: table.created for table in tables if table.table_id.startswith(prefix)}
            found |= {name for name, at in made.items() if at is not None and at <= datetime.now(UTC) - age}
        return found

    def names_in(self, dataset: str) -> list[str]:
        """Names of the tables of a dataset; none when there is no dataset."""
        return [table.table_id for table in self._listed(dataset)]

    def _listed(self, dataset: str) -> list[bigquery.table.TableListItem]:
        ref = f"{self.config.project}.{dataset}"

        def request(**options: Any) -> list[bigquery.table.TableListItem]:
            return list(self._google.list_tables(ref, page_size=_TABLES_PER_PAGE, **options))

        return self._found(request, "list the tables") or []

    def columns(self, ref: str, *, doing: str = "look at a table", table: str | None = None) -> list[str] | None:
        """Names of a table's columns, in their order; None when there is no table."""
        found = self.facts(ref, doing=doing, table=table)
        return None if found is None else found.columns

    def rows(self, ref: str, *, doing: str = "count a table's rows", table: str | None = None) -> int | None:
        """How many rows a table has, without reading it; None when there is no table."""
        found = self.facts(ref, doing=doing, table=table)
        return None if found is None else found.rows

    def facts(self, ref: str, *, doing: str = "look at a table", table: str | None = None) -> TableFacts | None:
        """What BigQuery says of a table; None when there is none."""
        found = self._found(partial(self._google.get_table, ref), doing, table)
        if found is None:
            return None
        names = [each.name for each in found.schema]
        return TableFacts(names, found.num_rows or 0, found.num_bytes or 0, dict(found.labels))

    def dataset_location(self, name: str) -> str | None:
        """Where a dataset of the project is; None when there is none."""
        found = self._found(partial(self._google.get_dataset, f"{self.config.project}.{name}"), "look at the dataset")
        return None if found is None else str(found.location)

    def try_query(self, sql: str, *, doing: str = "try a query") -> int:
        """Have a query looked at without running it, and return the bytes that it would read."""
        from google.cloud import bigquery

        config = bigquery.QueryJobConfig(dry_run=True, use_query_cache=False)
        job = self._call(partial(self._google.query, sql, job_config=config, job_retry=None), doing)
        return int(job.total_bytes_processed or 0)

    def held_on_table(self, ref: str, permissions: Sequence[str]) -> set[str]:
        """Which of the permissions the account has on a table."""
        answer = self._call(
            partial(self._google.test_iam_permissions, ref, list(permissions)), "test the permissions on a table"
        )
        return set(answer.get("permissions", ()))

    def held_on_bucket(self, permissions: Sequence[str]) -> set[str]:
        """Which of the permissions the account has on the staging bucket."""
        assert self._bucket is not None
        bucket = self._bucket
        return self._jobs.call(lambda: bucket.held(list(permissions)), "test the permissions on the bucket")

    def _call(self, request: Callable[..., T], doing: str, table: str | None = None) -> T:
        return self._jobs.call(partial(request, retry=None, timeout=self._timeout), doing, table)

    def _found(self, request: Callable[..., T], doing: str, table: str | None = None) -> T | None:
        def find(**options: Any) -> T | None:
            try:
                return request(**options)
            except failures() as error:
                if is_missing(error):
                    return None
                raise

        return self._call(find, doing, table)

    def _find_job(self, job_id: str) -> Any:
        return self._google.get_job(job_id, location=self.config.location, retry=None, timeout=self._timeout)

    def _query_config(self, parameters: Mapping[str, object]) -> bigquery.QueryJobConfig:
        from google.cloud import bigquery

        config = bigquery.QueryJobConfig(query_parameters=parameters_of(parameters), labels=self.config.labels)
        if self.config.maximum_bytes_billed is not None:
            config.maximum_bytes_billed = self.config.maximum_bytes_billed
        return config

    def _query(self, sql: str, config: bigquery.QueryJobConfig, job_id: str) -> Any:
        return self._google.query(
            sql, job_config=config, job_id=job_id, retry=None, timeout=self._timeout, job_retry=None
        )

    def _rows(self, job: Any) -> list[tuple[Any, ...]]:
        if job.ended is not None and datetime.now(UTC) - job.ended > _RESULTS_KEPT:
            return []
        rows = job.result(page_size=_PAGE_ROWS, retry=None, timeout=self._timeout, job_retry=None)
        found = [row.values() for row in rows]
        self._count_query(job)
        return found

    def _finished_query(self, job: Any) -> Any:
        job.result(retry=None, timeout=self._timeout, job_retry=None)
        self._count_query(job)
        return job

    def _batches(self, job: Any) -> Iterator[pa.RecordBatch]:
        reader = self._open_reader()
        try:
            yield from batches(job, reader, self._timeout, self.config.retry_seconds)
        except failures() as error:
            if reader is None or not is_denied(error, _READ_SESSIONS):
                raise
            log.warning("Results are read the slow way, since the account lacks %s", _READ_SESSIONS)
        else:
            return
        # Sessions are made before the first row, so nothing is read twice.
        self._readerless = True
        yield from batches(job, None, self._timeout, self.config.retry_seconds)

    def _open_reader(self) -> Any:
        with self._lock:
            if self._reader is None and not self._readerless:
                self._reader = open_reader(self.config, self._credentials)
            return None if self._readerless else self._reader

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.transport.close()
            self._reader = None

    def _count_query(self, job: Any) -> None:
        self._meter.add(
            Usage(
                bytes_processed=job.total_bytes_processed or 0,
                bytes_billed=job.total_bytes_billed or 0,
                slot_ms=job.slot_millis or 0,
                queries=1,
            )
        )

    def _load_config(self, fields: Sequence[Field], create: bool, labels: Mapping[str, str]) -> bigquery.LoadJobConfig:
        from google.cloud import bigquery

        parquet = bigquery.ParquetOptions()
        parquet.enable_list_inference = True
        config = bigquery.LoadJobConfig(
            source_format="PARQUET",
            schema=schema_of(fields),
            write_disposition="WRITE_APPEND",
            create_disposition="CREATE_IF_NEEDED" if create else "CREATE_NEVER",
            labels=self.config.labels | dict(labels),
        )
        config.parquet_options = parquet
        # Otherwise names with blanks, accents or other scripts are refused.
        config.column_name_character_map = "V2"
        return config

    def _direct_load(self, table_ref: str, file: IO[bytes], config: bigquery.LoadJobConfig, job_id: str) -> Any:
        size = file.seek(0, os.SEEK_END)
        return self._google.load_table_from_file(
            file,
            table_ref,
            rewind=True,
            size=size,
            num_retries=_PART_RETRIES if size >= _ONE_REQUEST_BYTES else 0,
            job_id=job_id,
            job_config=config,
            timeout=self._timeout,
        )

    def _staged_load(self, table_ref: str, file: IO[bytes], config: bigquery.LoadJobConfig, job_id: str) -> Any:
        assert self._bucket is not None
        address = self._bucket.put(job_id, file)
        return self._google.load_table_from_uri(
            address, table_ref, job_id=job_id, job_config=config, retry=None, timeout=self._timeout
        )

    def _finished_load(self, job: Any) -> int:
        self._jobs.watch(job, "wait for a load job")
        if self._bucket is not None:
            self._forget(self._bucket, job.job_id)
        _require_success(job)
        self._meter.add(Usage(loads=1))
        return job.output_rows or 0

    def _finished_copy(self, job: Any) -> None:
        self._jobs.watch(job, "wait for a copy job")
        _require_success(job)
        self._meter.add(Usage(copies=1))

    def _forget(self, bucket: Bucket, name: str) -> None:
        """Remove a staged file; one that stays costs little, and a rule of the bucket may remove it."""
        try:
            bucket.remove(name)
        except failures() as error:
            if not is_missing(error):
                log.warning("A staged file stays in the bucket: %s", translate(error, "remove it").message)

    def _ensure_dataset(self, ref: str) -> None:
        from google.cloud import bigquery

        dataset = self._found(partial(self._google.get_dataset, ref), "look at the dataset")
        if dataset is None:
            wanted = bigquery.Dataset(ref)
            wanted.location = self.config.location
            wanted.labels = dict(self.config.labels)
            dataset = self._call(partial(self._google.create_dataset, wanted, exists_ok=True), "create the dataset")
        if dataset.location and dataset.location.upper() != self.config.location.upper():
            raise ConfigError(
                f"destination.location is {self.config.location}, but the dataset {ref} is in {dataset.location}",
                hint=f"Set destination.location to {dataset.location}, or choose another dataset",
            )


def _require_success(job: Any) -> None:
    if job.error_result is not None:
        raise job.exception()


def _google_client(config: BigQueryConfig, credentials: Credentials, http: object) -> bigquery.Client:
    from google.api_core.client_info import ClientInfo
    from google.cloud import bigquery

    options = {"api_endpoint": config.api_endpoint} if config.api_endpoint else None
    return bigquery.Client(
        project=config.project,
        credentials=credentials,
        _http=http,  # type: ignore[arg-type]
        location=config.location,
        client_options=options,
        client_info=ClientInfo(user_agent=f"etl-dagster/{_version()}"),
    )


def _version() -> str:
    try:
        return version("etl-dagster")
    except PackageNotFoundError:
        return "unknown"
