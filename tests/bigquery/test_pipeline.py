"""From PostgreSQL into BigQuery: copies under load, the stream, changes of columns, layouts; PostgreSQL is the judge."""

from __future__ import annotations

import json
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from etl_dagster.model import TableId
from etl_dagster.store.base import TableState
from tests.bigquery.traffic import CHOICES, NAMES, TABLES, Traffic
from tests.replication.watching import Following, Journal, running, step_until, sync

if TYPE_CHECKING:
    from tests.bigquery.conftest import BigQueryScenario
    from tests.bigquery.emulator import GcsServer

SMALL_CHUNKS = {"chunk_bytes": 16384, "copy_connections": 2, "refresh_seconds": 0.2, "idle_poll_seconds": 0.01}
T, SLICED = TableId("public", "t"), TableId("public", "sliced")
BUCKET = "staged-by-the-pipeline"
LAYOUT: dict[str, Any] = {
    "labels": {"team": "data"},
    "tables": {
        "public.orders": {
            "partition_by": {"type": "time", "column": "day", "granularity": "month"},
            "cluster_by": ["id"],
            "labels": {"kind": "order"},
        },
        "public.plain": {"partition_by": {"type": "range", "column": "n", "start": 0, "end": 100, "interval": 10}},
        "public.accounts": {"cluster_by": ["owner", "id"]},
    },
}


@pytest.fixture
def bucket(gcs_server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket that the destination stages its files in."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server.url)
    if not (gcs_server.folder / BUCKET).exists():
        body = json.dumps({"name": BUCKET}).encode()
        headers = {"Content-Type": "application/json"}
        urllib.request.urlopen(
            urllib.request.Request(f"{gcs_server.url}/storage/v1/b?project=x", body, headers)
        ).close()
    return BUCKET


# -- under load --------------------------------------------------------------------------------------------------------


def copied_and_followed_under_load(far: BigQueryScenario, **destination: Any) -> None:
    """Everything that can happen to tables, from before their copy until all of it has arrived."""
    far.execute(*TABLES)
    far.use(replication=SMALL_CHUNKS, tables=CHOICES, destination=far.destination(**destination))
    with Traffic(far.dsn, seed=5).running(200):
        sync(far)
        with running(far) as replicator:
            far.pipeline.request_resync(TableId("public", "accounts"))
            far.pipeline.request_resync(SLICED, [far.pipeline.plan_slices(SLICED)[1].name])
            step_until(replicator, lambda: not far.pipeline._store.requests())
            replicator.sync()
    sync(far)
    far.assert_equal(*NAMES)
    assert far.leftovers() == set()


def test_copies_and_stream_under_load(far: BigQueryScenario) -> None:
    copied_and_followed_under_load(far)


def test_every_change_by_a_load_job_through_a_bucket_into_tables_of_other_layouts(
    far: BigQueryScenario, bucket: str, gcs_server: GcsServer
) -> None:
    copied_and_followed_under_load(far, inline_bytes=0, staging={"bucket": bucket}, **LAYOUT)
    with far.dataset.client() as client:
        orders, accounts, moves = (
            client.get_table(f"{far.dataset.name}.public_{name}") for name in ("orders", "accounts", "moves")
        )
    assert orders.time_partitioning is not None
    assert (orders.time_partitioning.field, orders.time_partitioning.type_) == ("day", "MONTH")
    assert (orders.clustering_fields, orders.labels) == (["id"], {"team": "data", "kind": "order"})
    assert accounts.clustering_fields == ["owner", "id"]
    assert moves.clustering_fields == ["id"]
    assert moves.labels == {"team": "data"}
    assert not [path for path in (gcs_server.folder / bucket).rglob("*") if path.is_file()]


# -- changes of columns ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restarts", [False, True], ids=["one process", "many"])
@pytest.mark.parametrize("landing", ["mirror", "soft_delete", "changelog"])
def test_columns_come_go_and_are_renamed_without_a_copy(far: BigQueryScenario, landing: str, restarts: bool) -> None:
    following = Following(far, restarts=restarts)
    # A changelog keeps what was said at the time, so rows from before a new column have no default in it.
    seven, moment = ("", "") if landing == "changelog" else ("default 7", "default '2026-01-02 03:04:05.678901+00'")
    following.begin(
        "create table t (id int primary key, v text, big text, j jsonb)",
        "alter table t alter big set storage external",
        "insert into t select i, 'v' || i, repeat('b' || i, 2000), '{\"a\": 1}' from generate_series(1, 50) i",
        defaults={"landing": landing},
    )
    following.together(
        "update t set v = 'before' where id < 4",
        f"alter table t add column n int {seven}",
        "update t set v = 'between', n = null where id = 1",
        "alter table t rename column v to w",
        "delete from t where id = 2",
        f"alter table t add column at timestamptz {moment}",
    )
    following.then("alter table t rename column id to nr", "update t set w = 'renamed' where nr < 6")
    following.then("update t set nr = nr + 100 where nr between 10 and 12", "alter table t drop column j")
    following.then('alter table t rename column n to "Größe %"', "insert into t (nr, w) values (60, 'new')")
    following.end("t", copies=1)
    assert far.leftovers() == set()


def test_a_truncate_and_what_follows_it(far: BigQueryScenario) -> None:
    following = Following(far, restarts=False)
    following.begin(
        "create table t (id int primary key, v text)",
        "create table kept (id int primary key, v text)",
        "insert into t select i, 'v' || i from generate_series(1, 50) i",
        "insert into kept select i, 'v' || i from generate_series(1, 50) i",
        tables={"public.kept": {"landing": "soft_delete"}},
    )
    following.together("insert into t values (51, 'gone')", "truncate t, kept", "insert into t values (1, 'after')")
    following.end("t", "kept", copies=1)
    assert far.select("select _ETL_CHANGE_TYPE, count(*) from public_kept group by 1") == [("delete", 50)]


def test_a_type_that_changes_leads_to_a_copy_of_that_table(far: BigQueryScenario) -> None:
    following = Following(far, restarts=False)
    following.begin(
        "create table t (id int primary key, v text)",
        "insert into t select i, i::text from generate_series(1, 50) i",
        "create table u (id int primary key)",
    )
    following.then("alter table t alter v type bigint using v::bigint", "insert into t values (51, 51)")
    following.end("t", copies=2)
    assert following.journal.copies(TableId("public", "u")) == 1
    assert far.select("select v from public_t where id = 51") == [(51,)]


def test_tables_and_columns_of_any_name(far: BigQueryScenario) -> None:
    following = Following(far, restarts=False)
    following.begin(
        'create table "Größe / 100%" ("Id" int primary key, "_change_" text, "a.b c`d" text, "select" int)',
        'create table "_lsn" ("_PARTITIONTIME" int primary key, "_table_x" text, "_lsn_" int)',
        """insert into "Größe / 100%" values (1, 'x', 'y', 2)""",
        """insert into "_lsn" values (1, 'x', 3)""",
    )
    following.then(
        """update "Größe / 100%" set "a.b c`d" = 'z', "select" = 3""",
        """insert into "_lsn" values (2, 'y', 4)""",
        """alter table "_lsn" rename column "_table_x" to "_FILE_" """,
        """update "_lsn" set "_FILE_" = 'w' where "_PARTITIONTIME" = 1""",
    )
    following.end("Größe / 100%", "_lsn", copies=1)


def test_own_tables_in_a_dataset_of_their_own(far: BigQueryScenario) -> None:
    other = f"{far.dataset.name}_etl"
    far.execute("create table t (id int primary key)", "insert into t values (1)")
    far.use(destination=far.destination(internal_dataset=other, table_name="{table}"))
    try:
        sync(far)
        far.execute("insert into t values (2)")
        sync(far)
        far.assert_equal("t")
        assert far.tables() == {"t"}
    finally:
        with far.dataset.client() as client:
            client.delete_dataset(other, delete_contents=True, not_found_ok=True)


# -- values ------------------------------------------------------------------------------------------------------------

MOMENTS = (
    "create table t (id int primary key, d date, ts timestamp, tz timestamptz, j jsonb)",
    """insert into t values
        (1, 'infinity', '-infinity', '9999-12-31 23:59:59.999999+00', '{"a": 1}'),
        (2, '10000-01-01', '0001-01-01 BC', '0001-01-01 00:00+00', '[12345678901234567890123]'),
        (3, '0001-01-01', '9999-12-31 23:59:59.999999', 'infinity', '0.1')""",
)
MORE_MOMENTS = """insert into t select id + 10, d, ts, tz, j from t where id < 10"""
FIRST, LAST = "0001-01-01", "9999-12-31"


def as_bigquery_has_it(policy: str, kind: str, column: str) -> str:
    """What PostgreSQL makes of a column's values within BigQuery's limits."""
    last = f"'{LAST}'::{kind}" if kind == "date" else f"'{LAST} 23:59:59.999999'::{kind}"
    first = f"'{FIRST}'::{kind}"
    if policy == "clamp":
        return f"greatest({first}, least({last}, {column}))"
    return f"case when {column} between {first} and {last} then {column} end"


@pytest.mark.parametrize("policy", ["null", "clamp"])
def test_values_beyond_bigquery_follow_the_policy(far: BigQueryScenario, policy: str) -> None:
    far.execute("set timezone = 'UTC'", *MOMENTS)
    far.use(defaults={"values": policy})
    sync(far)
    far.execute(MORE_MOMENTS)
    journal = sync(far)
    assert far.state("t") is TableState.READY
    kinds = {"d": "date", "ts": "timestamp", "tz": "timestamptz"}
    wanted = ", ".join(as_bigquery_has_it(policy, kind, name) for name, kind in kinds.items())
    expected = far.source.execute(f"select id, {wanted} from t order by id").fetchall()
    assert far.select("select id, d, ts, tz from public_t order by id") == expected
    assert journal.replaced() == {"d": 2, "ts": 2, "tz": 1, "j": 1}


def test_values_beyond_bigquery_are_kept_as_text(far: BigQueryScenario) -> None:
    far.execute(*MOMENTS)
    far.use(defaults={"values": "text"})
    sync(far)
    far.execute(MORE_MOMENTS)
    sync(far)
    far.assert_equal("t")


@pytest.mark.parametrize("when", ["copied", "streamed"])
def test_a_value_that_cannot_be_held_takes_out_its_table_alone(far: BigQueryScenario, when: str) -> None:
    far.execute(MOMENTS[0], "create table u (id int primary key)", "insert into u values (1)")
    if when == "streamed":
        sync(far)
    far.execute(MOMENTS[1], "insert into u values (2)")
    sync(far)
    record = far.pipeline.record(T)
    assert record is not None
    assert record.state is TableState.QUARANTINED
    assert "a year not of 1 to 9999" in (record.reason or "")
    far.assert_equal("u")
    far.execute("delete from t where id < 4", "insert into t values (5, now(), now(), now(), '{}')")
    far.pipeline.request_resync(T)
    sync(far, Journal())
    far.assert_equal("t", "u")
