"""Is BigQuery ready, and what will it cost? Each line passes or says what to do; nothing is changed.

What cannot be asked is tried as a dry run, which BigQuery checks like the real thing and does not carry out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from etl_dagster.destinations.bigquery.client import Client
from etl_dagster.destinations.bigquery.config import BigQueryConfig
from etl_dagster.destinations.bigquery.errors import grant_hint
from etl_dagster.destinations.bigquery.naming import INTERNAL, Names, bare, quoted
from etl_dagster.errors import EtlError
from etl_dagster.model import CheckResult, TableId

# Google's list price in the US since July 2023, without a reservation; some regions cost up to twice as much.
DOLLARS_PER_TIB = 6.25
# A query is billed for so much of every table at the least.
LEAST_BILLED_BYTES = 10 * 1024 * 1024
# Of a project and day; a large batch takes one for each table that it changes.
LOADS_PER_DAY = 100_000
# What a batch takes from end to end, when the next one follows at once.
SHORTEST_BATCH_SECONDS = 5.0
# Whoever checks waits for the answer.
_PATIENCE_SECONDS = 10.0
_SECONDS_A_DAY = 86_400
_GIB, _TIB = 1 << 30, 1 << 40

_ON_TABLES = (
    "bigquery.tables.get",
    "bigquery.tables.getData",
    "bigquery.tables.updateData",
    "bigquery.tables.update",
    "bigquery.tables.delete",
)
_ON_BUCKETS = ("storage.objects.create", "storage.objects.get", "storage.objects.delete")
_PROBE = f"{INTERNAL}check"


def check(config: BigQueryConfig, tables: Mapping[TableId, int]) -> Iterator[CheckResult]:
    """Look at everything that the destination needs; see `Destination.check`."""
    try:
        client = Client(config.model_copy(update={"retry_seconds": min(config.retry_seconds, _PATIENCE_SECONDS)}))
    except EtlError as error:
        yield _failed("credentials", error)
        return
    try:
        yield from _Check(client, tables).run()
    finally:
        client.close()


class _Check:
    def __init__(self, client: Client, tables: Mapping[TableId, int]) -> None:
        self._client = client
        self._config = client.config
        self._tables = tables
        self._names = Names(client.config)

    def run(self) -> Iterator[CheckResult]:
        yield (first := self._result("jobs", self._jobs))
        if not first.passed:  # the rest would say the same
            return
        for dataset in dict.fromkeys([self._config.dataset, self._config.internal_dataset or self._config.dataset]):
            yield from self._dataset(dataset)
        if self._config.staging is not None:
            yield from self._bucket(self._config.staging.bucket)
        if self._tables:
            yield self._result("cost", self._cost)
            yield self._loads()

    def _result(self, name: str, look: Callable[[], str]) -> CheckResult:
        try:
            return CheckResult(name, passed=True, detail=look())
        except EtlError as error:
            return _failed(name, error)

    def _jobs(self) -> str:
        self._client.try_query("SELECT 1")
        return f"{self._client.identity} may run jobs in {self._config.project} (bigquery.jobs.create)"

    def _dataset(self, name: str) -> Iterator[CheckResult]:
        title = f"dataset {name}"
        try:
            location = self._client.dataset_location(name)
        except EtlError as error:
            yield _failed(title, error)
            return
        if location is None:
            yield self._result(title, lambda: self._may_create(name))
            return
        yield self._located(title, location)
        yield from self._tables_of(title, name)

    def _may_create(self, dataset: str) -> str:
        location = self._config.location
        self._client.try_query(
            f"CREATE SCHEMA {quoted(f'{self._config.project}.{dataset}')} OPTIONS (location = '{location}')"
        )
        return f"is missing, and made in {location} at the start (bigquery.datasets.create)"

    def _located(self, title: str, location: str) -> CheckResult:
        if location.upper() == self._config.location.upper():
            return CheckResult(title, passed=True, detail=f"is in {location}")
        return CheckResult(
            title,
            passed=False,
            detail=f"is in {location}, but destination.location is {self._config.location}",
            todo=f"Set destination.location to {location}, or choose another dataset",
        )

    def _tables_of(self, title: str, dataset: str) -> Iterator[CheckResult]:
        probe = quoted(f"{self._config.project}.{dataset}.{_PROBE}")
        yield self._result(f"{title}, bigquery.tables.create", lambda: self._tried(f"CREATE TABLE {probe} (x INT64)"))
        try:
            names = self._client.names_in(dataset)
        except EtlError as error:
            yield _failed(f"{title}, bigquery.tables.list", error)
            return
        yield CheckResult(f"{title}, bigquery.tables.list", passed=True, detail=f"{len(names)} tables")
        if sample := self._sample(names):
            yield from self._on_table(title, f"{self._config.project}.{dataset}.{sample}")

    def _tried(self, sql: str) -> str:
        self._client.try_query(sql)
        return "granted"

    def _sample(self, names: Sequence[str]) -> str | None:
        """A table of ours to ask about: permissions on a table that does not exist cannot be told."""
        live = {self._names.table_name(table) for table in self._tables}
        return next((name for name in sorted(names) if name in live or name.startswith(INTERNAL)), None)

    def _on_table(self, title: str, ref: str) -> Iterator[CheckResult]:
        try:
            held = self._client.held_on_table(ref, _ON_TABLES)
        except EtlError as error:
            yield _failed(f"{title}, permissions", error)
            return
        yield from (_permission(title, permission, held, ref) for permission in _ON_TABLES)

    def _bucket(self, bucket: str) -> Iterator[CheckResult]:
        title = f"bucket {bucket}"
        try:
            held = self._client.held_on_bucket(_ON_BUCKETS)
        except EtlError as error:
            yield _failed(title, error)
            return
        yield from (_permission(title, permission, held, bucket) for permission in _ON_BUCKETS)

    def _cost(self) -> str:
        per_batch = sum(max(self._bytes(table), LEAST_BILLED_BYTES) for table in self._tables)
        tib = per_batch * self._batches_a_day / _TIB
        return (
            f"at most {tib:,.2f} TiB or ${tib * DOLLARS_PER_TIB:,.2f} a day without a reservation, if every batch, "
            f"{self._pace:g} s apart, changes all {len(self._tables)} tables ({per_batch / _GIB:,.1f} GiB): each "
            "reads the tables that it changes; partitioning by a column of the key, a longer "
            "destination.batch_seconds and landing as a changelog make it less"
        )

    def _bytes(self, table: TableId) -> int:
        """As BigQuery has it, else as the source does."""
        found = self._client.facts(bare(self._names.live(table)))
        return found.bytes if found is not None and found.bytes else self._tables[table]

    def _loads(self) -> CheckResult:
        most = self._batches_a_day * len(self._tables)
        detail = f"at most {most:,.0f} load jobs a day of the {LOADS_PER_DAY:,} that a project has"
        if most <= LOADS_PER_DAY:
            return CheckResult("load jobs", passed=True, detail=detail)
        if self._config.inline_bytes:
            return CheckResult("load jobs", passed=True, detail=f"{detail}, but small batches need none")
        todo = "Raise destination.batch_seconds, or let small batches do without load jobs: inline_bytes above 0"
        return CheckResult("load jobs", passed=False, detail=detail, todo=todo)

    @property
    def _pace(self) -> float:
        return max(self._config.batch_seconds, SHORTEST_BATCH_SECONDS)

    @property
    def _batches_a_day(self) -> float:
        return _SECONDS_A_DAY / self._pace


def _permission(title: str, permission: str, held: set[str], where: str) -> CheckResult:
    if permission in held:
        return CheckResult(f"{title}, {permission}", passed=True, detail="granted")
    return CheckResult(
        f"{title}, {permission}", passed=False, detail=f"is missing on {where}", todo=grant_hint(permission)
    )


def _failed(name: str, error: EtlError) -> CheckResult:
    return CheckResult(name, passed=False, detail=error.message, todo=error.hint)
