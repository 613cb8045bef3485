"""What the contract does not ask: layouts, limits of BigQuery's, crashes between its steps, other processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from etl_dagster.destinations.base import Destination
from etl_dagster.destinations.bigquery import BigQueryDestination, core
from etl_dagster.destinations.bigquery.config import BigQueryConfig
from etl_dagster.errors import DestinationError, ErrorKind, EtlError, TableError
from etl_dagster.model import CopyTarget, Landing, Lsn, PgType, Route, TableSchema
from etl_dagster.testing.change_script import (
    INT8,
    TEXT,
    UNCHANGED,
    Delete,
    Insert,
    Update,
    altered,
    events,
    make_batch,
    make_table,
    story,
)
from etl_dagster.testing.destination_contract import content, copied
from etl_dagster.testing.replay import History
from tests.bigquery.fixtures import Dataset
from tests.bigquery.proxy import Answer, FaultProxy, LoseAnswer

Open = Callable[..., BigQueryDestination]
_JSONB = PgType(oid=3802, name="jsonb")
_STAMP = PgType(oid=1184, name="timestamp with time zone")


@pytest.fixture
def opened(bigquery_dataset: Dataset) -> Iterator[Open]:
    """Destinations on the dataset of the test, by changes of its config."""
    made: list[BigQueryDestination] = []

    def open_(at: Dataset = bigquery_dataset, *, owner: str = "", **changes: Any) -> BigQueryDestination:
        destination = BigQueryDestination(at.config(**changes))
        made.append(destination)
        destination.startup(owner)
        return destination

    yield open_
    for destination in made:
        destination.shutdown()


def of_one_lane(destination: BigQueryDestination, count: int, **choices: Any) -> list[TableSchema]:
    """Tables that one script brings in."""
    lane = destination._ledger.lane
    first, *others = (make_table(f"t{i}", **choices) for i in range(100 * count))
    return [first, *(table for table in others if lane(table.id) == lane(first.id))][:count]


def tables_in(dataset: Dataset) -> set[str]:
    with dataset.client() as google:
        return {table.table_id for table in google.list_tables(dataset.name)}


class TestLayout:
    """How tables are stored."""

    @pytest.mark.parametrize("more", [{}, {"doc": _JSONB}], ids=["copied", "converted"])
    def test_a_table_is_laid_out_as_configured(
        self, opened: Open, bigquery_dataset: Dataset, more: dict[str, PgType]
    ) -> None:
        options = {
            "partition_by": {"type": "time", "column": "at", "granularity": "month"},
            "cluster_by": ["name", "id"],
            "labels": {"team": "sales"},
        }
        table = make_table(columns={"id": INT8, "name": TEXT, "at": _STAMP, **more})
        destination = opened(tables={"shop.orders": options}, labels={"env": "test"})
        copied(destination, table, [])
        with bigquery_dataset.client() as google:
            found = google.get_table(f"{bigquery_dataset.name}.shop_orders")
        assert (found.time_partitioning.field, found.time_partitioning.type_) == ("at", "MONTH")
        assert found.clustering_fields == ["name", "id"]
        assert found.labels == {"team": "sales", "env": "test"}

    def test_another_partitioning_comes_with_the_next_copy(self, opened: Open, bigquery_dataset: Dataset) -> None:
        table = make_table()
        copied(opened(), table, [(1, "a", "A")])
        ranges = {"partition_by": {"type": "range", "column": "id", "start": 0, "end": 100, "interval": 10}}
        destination = opened(tables={"shop.*": ranges})
        copied(destination, table, [(1, "a", "A"), (2, "b", "B")], copy_id="c1", at=20)
        destination.write_events(make_batch(40, [[events(table, Update(30, (2, "x", UNCHANGED)))]]))
        assert content(destination, table) == [(1, "a", "A"), (2, "x", "B")]

    @pytest.mark.parametrize("more", [{}, {"doc": _JSONB}], ids=["copied", "converted"])
    def test_another_key_comes_with_the_next_copy(
        self, opened: Open, bigquery_dataset: Dataset, more: dict[str, PgType]
    ) -> None:
        columns, doc = {"id": INT8, "name": TEXT, **more}, [None] * len(more)
        destination = opened()
        copied(destination, make_table(columns=columns), [(1, "a", *doc)])
        table = make_table(columns=columns, key=["name", "id"])
        copied(destination, table, [(1, "a", *doc), (2, "b", *doc)], copy_id="c1", at=20)
        with bigquery_dataset.client() as google:
            assert google.get_table(f"{bigquery_dataset.name}.shop_orders").clustering_fields == ["name", "id"]

    @pytest.mark.parametrize("column", ["nothing", "name"])
    def test_a_column_that_cannot_partition_a_table_is_told(self, opened: Open, column: str) -> None:
        destination = opened(tables={"shop.orders": {"partition_by": {"type": "time", "column": column}}})
        with pytest.raises(TableError, match=column) as caught:
            destination.truncate_table(CopyTarget(make_table(), "c1"))
        assert "destination.tables.shop.orders.partition_by" in caught.value.hint

    def test_a_key_that_is_renamed_stays_what_the_table_is_clustered_by(
        self, opened: Open, bigquery_dataset: Dataset
    ) -> None:
        table = make_table()
        destination = opened()
        copied(destination, table, [(1, "a", "A")])
        renamed = altered(table, rename={"id": "number"})
        destination.write_events(make_batch(30, [[events(renamed, Insert(20, (2, "b", "B")))]]))
        with bigquery_dataset.client() as google:
            assert google.get_table(f"{bigquery_dataset.name}.shop_orders").clustering_fields == ["number"]

    def test_the_column_of_the_partitions_cannot_be_renamed(self, opened: Open) -> None:
        ranges = {"partition_by": {"type": "range", "column": "id", "start": 0, "end": 100, "interval": 10}}
        destination, table = opened(tables={"shop.*": ranges}), make_table()
        copied(destination, table, [])
        renamed = altered(table, rename={"id": "number"})
        with pytest.raises(TableError, match="partitioned by 'id'"):
            destination.write_events(make_batch(30, [[events(renamed, Insert(20, (2, "b", "B")))]]))


class TestNames:
    """What tables are called."""

    def test_two_tables_of_one_name_are_refused_from_the_start(self, opened: Open) -> None:
        one, other = make_table("c", schema="a_b"), make_table("b_c", schema="a")
        destination = opened()
        destination.truncate_table(CopyTarget(one, "c1"))
        with pytest.raises(TableError, match="a_b_c"):
            destination.truncate_table(CopyTarget(other, "c2"))

    def test_internal_tables_may_live_elsewhere(self, opened: Open, bigquery_dataset: Dataset) -> None:
        inside = f"{bigquery_dataset.name}_internal"
        destination, table = opened(internal_dataset=inside, table_name="{table}"), make_table()
        copied(destination, table, [(1, "a", "A")])
        assert tables_in(bigquery_dataset) == {"orders"}
        with bigquery_dataset.client() as google:
            google.delete_dataset(inside, delete_contents=True)


class TestSteps:
    """A batch that ends between its steps, and is tried again."""

    @pytest.fixture
    def table(self) -> TableSchema:
        return make_table()

    @pytest.mark.parametrize("shorter", [False, True])
    @pytest.mark.parametrize("body", ["RENAME COLUMN", "MERGE"])
    def test_renames_that_were_announced_are_carried_out_once(
        self,
        opened: Open,
        bigquery_dataset: Dataset,
        bigquery_proxy: FaultProxy,
        table: TableSchema,
        body: str,
        shorter: bool,
    ) -> None:
        destination = opened(bigquery_dataset.through(bigquery_proxy))
        copied(destination, table, [(1, "a", "A"), (2, "b", "B")])
        changed = altered(table, rename={"id": "number", "name": "title"}, add={"extra": (TEXT, "old")})
        before, after = Update(20, (1, "x", UNCHANGED)), Insert(30, (3, "c", "C", "new"))
        whole = [[story((table, [before]), (changed, [after]))]]
        bigquery_proxy.fault(
            Answer("accessDenied"),
            method="POST",
            path="/jobs$",
            body=f"`public|shop_orders.*{body}|{body}.*shop_orders",
            times=9,
        )
        with pytest.raises(EtlError):
            destination.write_events(make_batch(40, whole))
        bigquery_proxy.heal()
        destination = opened()
        if shorter:
            destination.write_events(make_batch(25, [[story((table, [before]))]]))
        destination.write_events(make_batch(40, whole))
        assert content(destination, changed) == [(1, "x", "A", "old"), (2, "b", "B", "old"), (3, "c", "C", "new")]

    def test_what_cannot_be_cleared_up_does_not_undo_a_batch(self, opened: Open, bigquery_dataset: Dataset) -> None:
        destination = opened(inline_bytes=0)
        one, other = of_one_lane(destination, 2, landing=Landing.CHANGELOG)
        for number, table in enumerate((one, other)):
            copied(destination, table, [], copy_id=f"c{number}")
        pieces = [[events(table, Insert(20, (1, "a", "A"))) for table in (one, other)]]
        destination.write_events(make_batch(30, pieces))
        assert content(destination, one) == content(destination, other) == [(1, "a", "A")]
        assert not [name for name in tables_in(bigquery_dataset) if "_stage_" in name]

    def test_a_batch_whose_answer_is_lost_is_applied_once(
        self, opened: Open, bigquery_dataset: Dataset, bigquery_proxy: FaultProxy
    ) -> None:
        table = make_table(landing=Landing.CHANGELOG)
        destination = opened(bigquery_dataset.through(bigquery_proxy))
        copied(destination, table, [])
        bigquery_proxy.fault(LoseAnswer(), method="POST", path="/jobs$")
        destination.write_events(make_batch(30, [[events(table, Insert(20, (1, "a", "A")))]]))
        assert content(destination, table) == [(1, "a", "A")]


class TestProcesses:
    """More than one process of one pipeline."""

    def test_who_is_overtaken_applies_nothing_twice(self, opened: Open) -> None:
        table = make_table(landing=Landing.CHANGELOG)
        first = opened()
        copied(first, table, [])
        second = opened()
        second.write_events(make_batch(30, [[events(table, Insert(20, (1, "a", "A")))]]))
        with pytest.raises(DestinationError, match="Another process") as caught:
            first.write_events(make_batch(30, [[events(table, Insert(20, (1, "a", "A")))]]))
        assert caught.value.kind is ErrorKind.DESTINATION_UNAVAILABLE
        for _ in range(2):
            with pytest.raises(DestinationError) as caught:
                first.hold_table(table)
            assert caught.value.kind is ErrorKind.PIPELINE_BUSY
        batch = [[events(table, Insert(20, (1, "a", "A")), Insert(30, (2, "b", "B")))]]
        second.write_events(make_batch(40, batch))
        assert content(second, table) == [(1, "a", "A"), (2, "b", "B")]
        assert second.holds() == {}

    def test_who_only_looks_removes_nothing(
        self, opened: Open, bigquery_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        destination = opened()
        left = f"_etl_{destination._ledger.prefix}stage_left"
        with bigquery_dataset.client() as google:
            google.query_and_wait(f"CREATE TABLE {bigquery_dataset.name}.{left} (a INT64)")
        opened().positions()
        opened().truncate_table(make_table("one"))
        assert left in tables_in(bigquery_dataset)
        monkeypatch.setattr(core, "LEFTOVER_AGE", timedelta(0))
        opened().truncate_table(make_table("two"))
        assert left not in tables_in(bigquery_dataset)


class TestLimits:
    """What BigQuery allows in one script."""

    def test_batches_over_many_tables(self, opened: Open) -> None:
        destination = opened()
        tables = of_one_lane(destination, 47)
        for table in tables:
            destination.truncate_table(table)
        pieces = [[events(table, Insert(20, (1, "a", "A"))) for table in tables]]
        destination.write_events(make_batch(30, pieces))
        assert all(content(destination, table) == [(1, "a", "A")] for table in tables[::10])
        assert set(destination.positions().values()) == {30}

    def test_a_wide_table(self, opened: Open) -> None:
        table = make_table(columns={"id": INT8, **{f"column number {i}": TEXT for i in range(320)}})
        destination = opened()
        values = [str(i) for i in range(320)]
        copied(destination, table, [(1, *values), (2, *values)])
        kept = [UNCHANGED] * 319
        destination.write_events(make_batch(30, [[events(table, Update(20, (1, "x", *kept)), Delete(20, (2,)))]]))
        assert content(destination, table) == [(1, "x", *values[1:])]

    @pytest.mark.parametrize("text", ["漢" * 300_000, '"\\\n' * 110_000], ids=["three bytes", "escaped"])
    def test_texts_that_grow_within_a_request(self, opened: Open, text: str) -> None:
        destination = opened(inline_bytes=1024 * 1024)
        tables = of_one_lane(destination, 8)
        for table in tables:
            destination.truncate_table(table)
        destination.write_events(make_batch(40, [[events(table, Insert(20, (1, "a", text))) for table in tables]]))
        assert all(content(destination, table) == [(1, "a", text)] for table in tables)


class TestIdleTables:
    """Tables that a batch does not concern."""

    def test_one_script_raises_the_watermarks_of_all(
        self, opened: Open, bigquery_dataset: Dataset, bigquery_proxy: FaultProxy
    ) -> None:
        destination = opened(bigquery_dataset.through(bigquery_proxy))
        tables = [make_table(f"t{i}") for i in range(12)]
        for table in tables:
            destination.truncate_table(table)
        routes = {table: Route() for table in tables}
        before = len(bigquery_proxy.calls)
        destination.write_events(make_batch(30, [[events(tables[3], Insert(20, (1, "a", "A")))]], routes))
        started = [call for call in bigquery_proxy.calls[before:] if call.method == "POST"]
        assert len(started) == 1
        assert set(destination.positions().values()) == {30}
        assert set(opened().positions().values()) == {30}

    def test_it_is_not_said_of_others(self, opened: Open) -> None:
        destination = opened()
        routed, unrouted, later = make_table("routed"), make_table("unrouted"), make_table("later")
        for table in (routed, unrouted):
            destination.truncate_table(table)
        destination.write_events(make_batch(30, [], {routed: Route()}))
        destination.truncate_table(CopyTarget(later, "c1"))
        destination.hold_table(unrouted)
        destination = opened()
        assert destination.positions() == {routed.id: 30, unrouted.id: 0}
        assert destination.copies() == {"c1": 0}
        assert destination.holds() == {unrouted.id: 0}


@pytest.mark.parametrize("landing", list(Landing))
@pytest.mark.parametrize(
    "changes",
    [{"inline_bytes": 0}, {"arrays": "repeated", "json": "string"}],
    ids=["all by load jobs", "other types"],
)
def test_histories_end_as_at_the_source(opened: Open, landing: Landing, changes: dict[str, Any]) -> None:
    destination: Destination = opened(**changes)
    history = History.random(7, transactions=40, landing=landing)
    end = history.copy_into(destination, 7, lambda: destination)
    destination.write_events(history.batch(end + 1, 39, pieces=3))
    if landing is Landing.MIRROR:
        assert content(destination, history.table) == history.sorted_rows(39)
    assert destination.row_count(history.table.id) is not None


def test_a_config_loads_no_sdk_and_a_start_tells_what_is_missing(bigquery_dataset: Dataset) -> None:
    config: BigQueryConfig = bigquery_dataset.config()
    destination = BigQueryDestination(config)
    with pytest.raises(DestinationError, match="not started"):
        destination.positions()
    assert replace(destination.capabilities, batch_seconds=0.0).limits is not None
    assert Lsn(0) == 0
