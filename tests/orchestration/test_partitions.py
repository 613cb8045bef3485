"""A partition rule of a table becomes the partitions of its sync, and copying some of them mends these slices alone."""

from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import pytest

from etl_dagster.model import KeyRanges, Lsn, TableId, TimeWindows
from etl_dagster.model.slices import Every
from etl_dagster.orchestration import ReplicationTranslator
from etl_dagster.orchestration.metadata import TableCopy, sync_metadata
from etl_dagster.orchestration.partitions import partitions_for
from etl_dagster.replication import CopyProgress
from etl_dagster.store import TableRecord, TableState
from tests.orchestration.project import ITEMS, ORDERS, QUIET, Project

EVENTS = TableId("shop", "events")
FIRST = datetime.now(UTC).date() - timedelta(days=9)
RULES = {
    "shop.events": {"partitions": {"type": "time", "column": "at", "every": "day", "start": str(FIRST)}},
    "shop.orders": {"partitions": {"type": "range", "column": "id", "rows": 250}},
}
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


def day(number: int) -> str:
    return str(FIRST + timedelta(days=number))


@pytest.fixture
def sliced(project: Project) -> Project:
    """Ten days of events, orders in ranges of their id, items without a rule; all copied."""
    project.execute(
        "create table shop.events (id int primary key, at timestamptz, what text)",
        f"insert into shop.events select n, timestamptz '{FIRST} 12:00+00' + n % 10 * interval '1 day', 'as it is'"
        " from generate_series(0, 99) n",
        "analyze shop.orders",
    )
    project.configure(tables=RULES)
    assert project.micro_batch().success
    project.load()
    return project


def sync(project: Project, table: TableId, *keys: str, tags: dict[str, str] | None = None) -> dg.ExecuteInProcessResult:
    """Materialize partitions of a table's sync: one by its key, several as a backfill's run has them."""
    if len(keys) > 1:
        tags = {RANGE_START: keys[0], RANGE_END: keys[-1]} | (tags or {})
    return dg.materialize(
        [found for found in project.defs.assets if isinstance(found, dg.AssetsDefinition)],
        selection=[project.translator.sync_key(table)],
        partition_key=keys[0] if len(keys) == 1 else None,
        tags=tags,
        instance=project.instance,
        resources=dict(project.defs.resources),
        run_config=QUIET,
        raise_on_error=False,
    )


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/Havana", "Asia/Beirut", "Pacific/Apia"])
@pytest.mark.parametrize("every", Every)
def test_windows_are_keyed_as_dagster_keys_them(every: Every, zone: str) -> None:
    zone = "UTC" if every is Every.HOUR else zone
    start = date(2023, 10, 18)
    rule = TimeWindows(column="at", every=every, start=start, timezone=zone)
    definition = partitions_for(rule, "")
    moments = [
        datetime(2024, 1, 1, tzinfo=ZoneInfo(zone)),
        datetime(2024, 3, 31, 0, 59, 59, tzinfo=UTC),
        datetime(2024, 3, 31, 1, 0, tzinfo=UTC),
        datetime(2024, 10, 27, 0, 30, tzinfo=ZoneInfo(zone)),
        datetime(2024, 11, 3, 5, 30, tzinfo=UTC),
        datetime(2024, 11, 4, tzinfo=ZoneInfo(zone)),
    ]
    for now in moments:
        assert [rule.name(begin) for begin in rule.begins(now)] == list(definition.get_partition_keys(current_time=now))


def test_days_that_a_time_zone_left_out_are_no_partitions() -> None:
    rule = TimeWindows(column="at", every=Every.DAY, start=date(2011, 12, 28), timezone="Pacific/Apia")
    now = datetime(2012, 1, 2, tzinfo=UTC)
    keys = list(partitions_for(rule, "").get_partition_keys(current_time=now))
    assert [rule.name(begin) for begin in rule.begins(now)] == keys


def test_each_table_has_the_partitions_of_its_rule(sliced: Project) -> None:
    graph = sliced.defs.resolve_asset_graph()
    partitions = {
        table: graph.get(sliced.translator.sync_key(table)).partitions_def for table in (EVENTS, ORDERS, ITEMS)
    }
    assert isinstance(partitions[EVENTS], dg.TimeWindowPartitionsDefinition)
    assert partitions[EVENTS].get_last_partition_key() == day(9), "today is a partition"
    assert partitions[ORDERS] == dg.DynamicPartitionsDefinition(name="test__sync__shop__orders")
    assert partitions[ITEMS] == dg.StaticPartitionsDefinition(["all"])
    dg.Definitions.validate_loadable(sliced.defs)


def test_a_translator_may_divide_a_table_otherwise(sliced: Project) -> None:
    class Whole(ReplicationTranslator):
        def partitions(self, table: TableId, rule: TimeWindows | KeyRanges | None = None) -> Any:
            return super().partitions(table, None if table == EVENTS else rule)

    sliced.translator = Whole("test", "duckdb")
    sliced.load(translator=sliced.translator)
    assert sync(sliced, EVENTS, "all").success
    assert sliced.copies(EVENTS)[0]["dagster/row_count"] == 100


def test_after_a_whole_copy_all_partitions_are_there_and_materialized(sliced: Project) -> None:
    assert sliced.partitions(EVENTS) == {day(number) for number in range(10)}
    ranges = sliced.instance.get_dynamic_partitions("test__sync__shop__orders")
    assert ranges[0] == "start"
    assert 3 <= len(ranges) <= 5
    assert sliced.partitions(ORDERS) == set(ranges)
    assert sliced.partitions(ITEMS) == {"all"}
    assert sliced.copies(EVENTS)[0]["dagster/row_count"] == 100


def test_of_many_partitions_the_newest_are_shown(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etl_dagster.orchestration.reporting.MAX_PARTITION_EVENTS", 6)
    project.execute("create table shop.events (id int primary key, at timestamptz)")
    project.configure(tables={"shop.events": RULES["shop.events"]})
    assert project.micro_batch().success
    assert project.partitions(EVENTS) == {day(8), day(9)}, "three tables share six events"


def test_a_partition_is_copied_again_and_nothing_else(sliced: Project) -> None:
    sliced.damage("update shop.events set what = 'drifted'", "delete from shop.events where id % 10 = 4 and id > 50")

    assert sync(sliced, EVENTS, day(4)).success

    assert sliced.rows("select count(*) from shop.events where id % 10 = 4 and what = 'as it is'") == [(10,)]
    assert sliced.rows("select count(*) from shop.events where id % 10 <> 4 and what = 'drifted'") == [(90,)]
    copy = sliced.copies(EVENTS)[0]
    assert copy["dagster/partition_row_count"] == 10
    assert "dagster/row_count" not in copy
    assert {"etl/copied_bytes", "etl/bytes_per_second", "etl/barrier_seconds", "etl/copy_seconds"} <= set(copy)


def test_a_range_of_partitions_is_one_copy(sliced: Project) -> None:
    sliced.damage("update shop.events set what = 'drifted'")

    assert sync(sliced, EVENTS, day(2), day(5)).success

    assert sliced.rows("select distinct id % 10 from shop.events where what = 'as it is' order by 1") == [
        (2,),
        (3,),
        (4,),
        (5,),
    ]
    copy = sliced.copies(EVENTS)[0]
    assert [copy["etl/partitions"], copy["etl/first_partition"], copy["etl/last_partition"]] == [4, day(2), day(5)]
    assert copy["etl/copied_rows"] == 40


def test_all_partitions_are_a_copy_of_the_whole_table(sliced: Project) -> None:
    sliced.damage("delete from shop.events where id > 7")
    assert sync(sliced, EVENTS, day(0), day(9)).success
    sliced.assert_equal()
    assert sliced.copies(EVENTS)[0]["dagster/row_count"] == 100


def test_a_range_of_keys_is_copied_again(sliced: Project) -> None:
    keys = sliced.instance.get_dynamic_partitions("test__sync__shop__orders")
    sliced.damage("update shop.orders set status = 'drifted'")
    assert sync(sliced, ORDERS, keys[1]).success
    [(lowest, highest, count)] = sliced.rows(
        "select min(id), max(id), count(*) from shop.orders where status = 'placed'"
    )
    assert lowest > 1
    assert highest < 1000
    assert count == highest - lowest + 1 == sliced.copies(ORDERS)[0]["dagster/partition_row_count"]


def test_the_last_range_is_cut_again_once_it_has_grown(sliced: Project) -> None:
    before = sliced.instance.get_dynamic_partitions("test__sync__shop__orders")
    sliced.execute(
        "insert into shop.orders select n, 'placed', 1 from generate_series(1001, 3000) n", "analyze shop.orders"
    )
    sliced.micro_batch()
    assert sync(sliced, ORDERS, before[-1]).success
    after = sliced.instance.get_dynamic_partitions("test__sync__shop__orders")
    assert after[: len(before)] == before
    assert len(after) > len(before)
    sliced.assert_equal()


def test_a_run_of_other_ranges_leaves_the_last_one_to_who_asks_for_it_later(sliced: Project) -> None:
    keys = sliced.instance.get_dynamic_partitions("test__sync__shop__orders")
    sliced.execute(
        "insert into shop.orders select n, 'placed', 1 from generate_series(1001, 3000) n", "analyze shop.orders"
    )
    sliced.micro_batch()
    sliced.damage("update shop.orders set status = 'drifted' where id > 700")
    for key in keys:
        assert sync(sliced, ORDERS, key).success
    sliced.assert_equal()


def test_a_rule_on_another_column_replaces_the_ranges(sliced: Project) -> None:
    before = set(sliced.instance.get_dynamic_partitions("test__sync__shop__orders"))
    sliced.configure(tables={"shop.orders": {"partitions": {"type": "range", "column": "status", "rows": 100}}})
    sliced.execute("update shop.orders set amount = 0 where id = 1")
    assert sliced.micro_batch().success
    after = set(sliced.instance.get_dynamic_partitions("test__sync__shop__orders"))
    assert after.isdisjoint(before - {"start"})


def test_dagster_is_told_the_ranges_again_when_it_has_forgotten_them(sliced: Project) -> None:
    before = sliced.instance.get_dynamic_partitions("test__sync__shop__orders")
    for key in before:
        sliced.instance.delete_dynamic_partition("test__sync__shop__orders", key)
    sliced.execute("update shop.orders set amount = 0 where id = 1")
    assert sliced.micro_batch().success
    assert sliced.instance.get_dynamic_partitions("test__sync__shop__orders") == before


def test_a_partition_that_is_no_slice_any_more_fails_with_a_word_and_copies_nothing(sliced: Project) -> None:
    sliced.execute("alter table shop.events rename column at to moment", "delete from shop.events where id = 99")
    assert sliced.micro_batch().success

    result = sync(sliced, EVENTS, day(3))

    assert not result.success
    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert "does not fit" in str(failure.step_failure_data.user_failure_data.description)


def test_slices_that_another_process_was_asked_for_are_shown_too(sliced: Project) -> None:
    sliced.damage("update shop.events set what = 'drifted'")
    with sliced.pipeline() as pipeline:
        pipeline.request_resync(EVENTS, [day(6), day(7)])
    before = len(sliced.copies(EVENTS))
    assert sliced.micro_batch().success
    assert sliced.rows("select count(*) from shop.events where what = 'as it is'") == [(20,)]
    events = sliced.materializations(sliced.translator.sync_key(EVENTS))
    assert {event.partition for event in events[: len(events) - before]} == {day(6), day(7)}


def test_a_partition_that_could_not_be_copied_is_not_shown_as_materialized(sliced: Project) -> None:
    sliced.execute("alter table shop.events drop column at")  # before any process has seen it
    before = len(sliced.copies(EVENTS))
    assert not sync(sliced, EVENTS, day(3)).success
    assert len(sliced.copies(EVENTS)) == before


def test_a_rule_that_does_not_fit_is_told_when_the_definitions_are_loaded(
    sliced: Project, caplog: pytest.LogCaptureFixture
) -> None:
    rule = RULES["shop.events"]["partitions"] | {"column": "att"}
    sliced.configure(tables={"shop.events": {"partitions": rule}, "shop.gone": {"landing": "changelog"}})
    [line] = caplog.messages
    assert "tables.shop.events.partitions does not fit shop.events" in line
    assert "it has no column att" in line


def test_what_another_run_has_staged_has_no_rate_here() -> None:
    record = TableRecord(table=EVENTS, state=TableState.READY, rows=10)
    progress = CopyProgress(EVENTS, 2, 2, 10, 10, bytes_done=500, bytes_total=500, skipped_bytes=500)
    copy = TableCopy(record, progress, None, Lsn(1), record.updated_at)
    found = sync_metadata(copy, ["all"], whole=True)
    assert found["etl/copied_rows"] == 10
    assert found["etl/copied_bytes"] == 500
    assert not {"etl/bytes_per_second", "etl/copy_seconds", "etl/rows_per_second"} & set(found)
