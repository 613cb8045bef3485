"""Is BigQuery ready, and what will it cost? Each line passes or says what to do; nothing is changed.

What cannot be asked is tried as a dry run, which BigQuery checks like the real thing and does not carry out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from etl_dagster.destinations.bigquery.client import Client
from etl_dagster.destinations.bigquery.config import BigQueryConfig
from etl_dagster.destinations.bigquery.errors import DENIED_HINT, grant_hint
from etl_dagster.destinations.bigquery.ledger import LANES
from etl_dagster.destinations.bigquery.naming import INTERNAL, Names, bare, quoted
from etl_dagster.errors import EtlError
from etl_dagster.model import CheckResult, TableId

# Google's list price in the US since July 2023, without a reservation; some regions cost up to twice as much.
DOLLARS_PER_TIB = 6.25
# A query is billed for so much of every table at the least.
LEAST_BILLED_BYTES = 10 * 1024 * 1024
# What somebody should decide on, not find on the bill.
DOLLARS_TO_NOTE = 10.0
# Of a project and day; a large batch takes one for each table that it changes.
LOADS_PER_DAY = 100_000
# What a batch takes from end to end, when the next one follows at once.
SHORTEST_BATCH_SECONDS = 5.0
# Whoever checks waits for the answer.
_PATIENCE_SECONDS = 10.0
_SECONDS_A_DAY = 86_400
_GIB, _TIB = 1 << 30, 1 << 40

# A batch asks the state table for its epoch, and writes into it.
_STATE_QUERIES = 2
_MEANT = "Nothing, if project, dataset and location of the destination are meant so: no location is changed later"
_RESUME = re.compile(r"[,;] then resume\b.*$")
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
        client = Client(_impatient(config))
    except EtlError as error:
        yield _failed("credentials", error)
        return
    try:
        yield from _Check(client, tables).run()
    finally:
        client.close()


def _impatient(config: BigQueryConfig) -> BigQueryConfig:
    fields = ("retry_seconds", "timeout_seconds")
    return config.model_copy(update={name: min(getattr(config, name), _PATIENCE_SECONDS) for name in fields})


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
            yield self._cost()
            yield self._loads()

    def _result(self, name: str, look: Callable[[], str]) -> CheckResult:
        try:
            return CheckResult(name, passed=True, detail=look())
        except EtlError as error:
            return _failed(name, error)

    def _jobs(self) -> str:
        self._client.try_query("SELECT 1", doing="run a query")
        return f"{self._client.identity} may run jobs in {self._config.project} (bigquery.jobs.create)"

    def _dataset(self, name: str) -> Iterator[CheckResult]:
        title = f"dataset {name}"
        try:
            location = self._client.dataset_location(name)
        except EtlError as error:
            yield _failed(title, error)
            return
        if location is None:
            found = self._result(title, lambda: self._may_create(name))
            yield replace(found, todo=_MEANT) if found.passed else found
            return
        yield self._located(title, location)
        yield from self._tables_of(title, name)

    def _may_create(self, dataset: str) -> str:
        location = self._config.location
        self._client.try_query(
            f"CREATE SCHEMA {quoted(f'{self._config.project}.{dataset}')} OPTIONS (location = '{location}')",
            doing="create the dataset",
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
        self._client.try_query(sql, doing="create a table")
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

    def _cost(self) -> CheckResult:
        try:
            per_batch = sum(max(self._bytes(table), LEAST_BILLED_BYTES) for table in self._tables)
        except EtlError as error:
            return _failed("cost", error)
        per_batch += _STATE_QUERIES * LEAST_BILLED_BYTES * min(LANES, len(self._tables))
        tib = per_batch * self._batches_a_day / _TIB
        detail = (
            f"at most {tib:,.2f} TiB or ${tib * DOLLARS_PER_TIB:,.2f} a day without a reservation, if every batch, "
            f"{self._pace:g} s apart, changes all {len(self._tables)} tables ({per_batch / _GIB:,.1f} GiB): each "
            "reads the tables that it changes; partitioning by a column of the key, a longer "
            "destination.batch_seconds and landing as a changelog make it less"
        )
        todo = "Lower the cost, or accept it" if tib * DOLLARS_PER_TIB > DOLLARS_TO_NOTE else ""
        return CheckResult("cost", passed=True, detail=detail, todo=todo)

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
        f"{title}, {permission}", passed=False, detail=f"is missing on {where}", todo=_todo(grant_hint(permission))
    )


def _failed(name: str, error: EtlError) -> CheckResult:
    return CheckResult(name, passed=False, detail=error.message, todo=_todo(error.hint))


def _todo(hint: str) -> str:
    """The hint for somebody who checks at this very moment, and has nothing to resume."""
    if hint == DENIED_HINT:
        return "Grant the account roles/bigquery.user on the project and roles/bigquery.dataEditor on the dataset"
    return _RESUME.sub("", hint)
