"""One suite over every store: what `etl_dagster.store.base` promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from pydantic import SecretStr

from etl_dagster.errors import InternalError, StateError
from etl_dagster.model import Column, Lsn, PgType, RangePlan, Slice, TableId, TableSchema, TypeKind
from etl_dagster.store import (
    HISTORY_LENGTH,
    ChunkRecord,
    MemoryStoreConfig,
    PostgresStoreConfig,
    Request,
    RequestKind,
    SlotRecord,
    SqliteStoreConfig,
    Store,
    StoreConfig,
    TableMapping,
    TableRecord,
    TableState,
    open_store,
)
from etl_dagster.store.memory import MemoryStore

ORDERS = TableId("public", "orders")
ODD = TableId('we"ird', "Table 'x'; ?%s {s} ü")
INT = PgType(oid=23, name="integer")
SCHEMA = TableSchema(
    id=ORDERS,
    oid=16400,
    columns=(
        Column(attnum=1, name="id", type=INT, nullable=False, key_ordinal=0),
        Column(attnum=3, name="tags", type=PgType(oid=1007, name="integer[]", kind=TypeKind.ARRAY, element=INT)),
    ),
)

Open = Callable[[str], Store]


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def open_pipeline(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the store of a pipeline, all in one database; twice in memory is the same store twice."""
    config = _config(request, tmp_path)
    in_memory: dict[str, Store] = {}
    with ExitStack() as opened:

        def open_(pipeline: str) -> Store:
            store = in_memory.get(pipeline) or open_store(config, pipeline)
            opened.callback(store.close)
            if isinstance(config, MemoryStoreConfig):
                in_memory[pipeline] = store
            return store

        yield open_


@pytest.fixture
def store(open_pipeline: Open) -> Store:
    return open_pipeline("shop")


def _config(request: pytest.FixtureRequest, folder: Path) -> StoreConfig:
    match request.param:
        case "memory":
            return MemoryStoreConfig()
        case "sqlite":
            return SqliteStoreConfig(path=folder / "state.sqlite")
        case _:
            return PostgresStoreConfig(dsn=SecretStr(request.getfixturevalue("database")), schema='state "of" us')


def _copying(copy_id: str, table: TableId = ORDERS) -> TableRecord:
    return TableRecord(table=table, state=TableState.COPYING, copy_id=copy_id, copy_start=Lsn(7))


def _done(chunk_id: str, seen: int) -> ChunkRecord:
    return ChunkRecord(chunk_id=chunk_id, relation=1, rows=5, seen_lsn=Lsn(seen))


def _chunk(chunk_id: str) -> ChunkRecord:
    return ChunkRecord(chunk_id=chunk_id, relation=1)


def test_a_fresh_store_knows_nothing(store: Store) -> None:
    assert store.slot() is None
    assert store.tables() == {}
    assert store.history(ORDERS) == ()
    assert store.chunks("none") == ()
    assert store.mapping(ORDERS) is None
    assert store.schema(ORDERS) is None
    assert store.schemas() == {}
    assert store.versions(ORDERS) == ()


def test_the_slot_is_replaced_and_forgotten(store: Store) -> None:
    first = SlotRecord(name="etl", system_id="7", created_at=Lsn(1), position=Lsn(2))
    store.save_slot(first)
    moved = first.model_copy(update={"position": Lsn(2**63 + 5)})
    store.save_slot(moved)
    assert store.slot() == moved
    store.save_slot(None)
    assert store.slot() is None


def test_tables_show_the_current_record_and_history_all_of_them(store: Store) -> None:
    records = [TableRecord(table=ORDERS), _copying("a"), TableRecord(table=ORDERS, state=TableState.READY, live=True)]
    for record in records:
        store.save_table(record)
    store.save_table(TableRecord(table=ODD, reason="Grüße"))
    assert store.tables()[ORDERS] == records[-1]
    assert store.tables()[ODD].reason == "Grüße"
    assert list(store.history(ORDERS)) == records


def test_saving_the_current_record_again_changes_nothing(store: Store) -> None:
    record = TableRecord(table=ORDERS)
    store.save_table(record)
    store.save_table(record)
    assert list(store.history(ORDERS)) == [record]


def test_the_history_keeps_the_newest_records_only(store: Store) -> None:
    for rows in range(HISTORY_LENGTH + 5):
        store.save_table(TableRecord(table=ORDERS, rows=rows))
    assert [record.rows for record in store.history(ORDERS)] == list(range(5, HISTORY_LENGTH + 5))


def test_chunks_come_back_as_planned_also_those_planned_later(store: Store) -> None:
    store.save_table(_copying("a"))
    store.add_chunks(ORDERS, "a", [_chunk("9"), _chunk("10")])
    store.add_chunks(ORDERS, "a", [])
    store.add_chunks(ORDERS, "a", [_chunk("0")])
    assert [chunk.chunk_id for chunk in store.chunks("a")] == ["9", "10", "0"]


def test_planning_again_keeps_what_is_done(store: Store) -> None:
    store.add_chunks(ORDERS, "a", [_chunk("1"), _chunk("2")])
    store.finish_chunk("a", _done("1", seen=20))
    store.add_chunks(ORDERS, "a", [_chunk("1"), _chunk("2"), _chunk("3")])
    assert store.chunks("a") == (_done("1", seen=20), _chunk("2"), _chunk("3"))
    assert [chunk.done for chunk in store.chunks("a")] == [True, False, False]


def test_a_chunk_finished_twice_keeps_the_higher_position(store: Store) -> None:
    store.add_chunks(ORDERS, "a", [_chunk("1")])
    for seen in (20, 30, 10):
        store.finish_chunk("a", _done("1", seen))
    assert store.chunks("a") == (_done("1", seen=30),)


def test_only_a_planned_chunk_can_be_finished(store: Store) -> None:
    with pytest.raises(StateError, match="not in the ledger of copy a"):
        store.finish_chunk("a", _done("1", seen=20))
    assert store.chunks("a") == ()


def test_a_chunk_without_its_rows_is_not_finished(store: Store) -> None:
    store.add_chunks(ORDERS, "a", [_chunk("1")])
    with pytest.raises(InternalError, match="not done"):
        store.finish_chunk("a", _chunk("1"))


def test_a_new_copy_forgets_the_chunks_of_the_former(store: Store) -> None:
    store.save_table(_copying("a"))
    store.add_chunks(ORDERS, "a", [_chunk("1")])
    store.add_chunks(ODD, "other", [_chunk("1")])
    store.save_table(_copying("a").model_copy(update={"reason": "still the same copy"}))
    assert store.chunks("a") == (_chunk("1"),)
    store.save_table(_copying("b"))
    assert store.chunks("a") == ()
    store.add_chunks(ORDERS, "b", [_chunk("1")])
    store.save_table(TableRecord(table=ORDERS, state=TableState.READY, live=True))
    assert store.chunks("b") == ()
    assert store.chunks("other") == (_chunk("1"),)


def test_chunks_planned_before_their_copy_is_announced_stay(store: Store) -> None:
    store.add_chunks(ORDERS, "a", [_chunk("1")])
    store.save_table(_copying("a"))
    assert store.chunks("a") == (_chunk("1"),)


def _request(request_id: str, table: TableId = ORDERS) -> Request:
    slices = (Slice(name="it's, one", attnum=1, type_oid=20, lower=None, upper="{5}", nulls=True),)
    return Request(request_id=request_id, table=table, kind=RequestKind.SLICES, slices=slices)


def test_requests_come_back_in_the_order_in_which_they_were_made_until_they_are_taken_up(store: Store) -> None:
    asked = [_request("z"), _request("a", ODD), _request("m")]
    for request in asked:
        store.add_request(request)
    assert list(store.requests()) == asked
    store.remove_requests(["a", "z"])
    store.add_request(late := _request("b"))
    assert list(store.requests()) == [asked[2], late]


def test_a_request_made_twice_is_one_and_one_taken_up_twice_is_gone(store: Store) -> None:
    store.add_request(first := _request("a"))
    store.add_request(_request("a", ODD))
    assert list(store.requests()) == [first]
    store.remove_requests(["a"])
    store.remove_requests(["a", "unknown"])
    assert not store.requests()


def test_a_request_outlives_what_happens_to_its_table(store: Store) -> None:
    store.add_request(asked := _request("a"))
    store.save_table(_copying("c1"))
    store.save_table(TableRecord(table=ORDERS, state=TableState.READY, live=True))
    assert list(store.requests()) == [asked]


def test_a_range_plan_is_replaced_per_table(store: Store) -> None:
    assert store.range_plan(ORDERS) is None
    store.save_range_plan(ORDERS, RangePlan(relation=7, attnum=1, type_oid=20))
    store.save_range_plan(ODD, odd := RangePlan(relation=7, attnum=2, type_oid=20, bounds=("a'b", "ü{s}")))
    store.save_range_plan(ORDERS, newer := RangePlan(relation=7, attnum=1, type_oid=20, bounds=("7",)))
    assert (store.range_plan(ORDERS), store.range_plan(ODD)) == (newer, odd)


def test_what_is_written_together_is_there_at_the_end_or_not_at_all(open_pipeline: Open) -> None:
    store = open_pipeline("shop")
    with store.together():
        store.add_request(asked := _request("a"))
        store.save_table(_copying("c"))
        store.add_chunks(ORDERS, "c", [_chunk("1")])
        assert list(store.requests()) == [asked]
    store.close()
    store.open()
    assert (len(store.requests()), len(store.tables()), len(store.chunks("c"))) == (1, 1, 1)


@pytest.mark.parametrize("open_pipeline", ["sqlite", "postgres"], indirect=True)
def test_an_error_undoes_what_was_to_be_written_together(store: Store) -> None:
    with ExitStack() as stack:
        stack.enter_context(pytest.raises(ZeroDivisionError))
        stack.enter_context(store.together())
        store.add_request(_request("a"))
        raise ZeroDivisionError
    assert not store.requests()
    store.add_request(_request("b"))
    assert len(store.requests()) == 1


def test_threads_wait_for_what_is_written_together(store: Store) -> None:
    with ThreadPoolExecutor(1) as pool:
        with store.together():
            store.add_request(_request("a"))
            other = pool.submit(store.add_request, _request("b"))
            store.add_request(_request("c"))
        other.result()
    assert {request.request_id for request in store.requests()} == {"a", "b", "c"}


def test_a_mapping_is_remembered_per_table(store: Store) -> None:
    store.save_mapping(TableMapping(table=ORDERS, destination_table="old"))
    store.save_mapping(TableMapping(table=ORDERS, destination_table="shop.orders"))
    store.save_mapping(TableMapping(table=ODD, destination_table="x"))
    assert store.mapping(ORDERS) == TableMapping(table=ORDERS, destination_table="shop.orders")
    assert store.mapping(ODD) == TableMapping(table=ODD, destination_table="x")


def test_a_schema_gets_a_version_only_when_it_changes(store: Store) -> None:
    first = store.save_schema(SCHEMA, Lsn(5))
    assert store.save_schema(SCHEMA, Lsn(9)) == first
    wider = SCHEMA.model_copy(update={"columns": (*SCHEMA.columns, Column(attnum=4, name="note", type=INT))})
    second = store.save_schema(wider, Lsn(11))
    back = store.save_schema(SCHEMA, Lsn(12))
    assert [(version.version, version.lsn) for version in (first, second, back)] == [(1, 5), (2, 11), (3, 12)]
    assert store.versions(ORDERS) == (first, second, back)
    assert store.schema(ORDERS) == back
    assert store.schemas() == {ORDERS: back}
    assert back.schema_.key == SCHEMA.key


def test_everything_is_there_after_the_store_was_closed(store: Store) -> None:
    slot = SlotRecord(name="etl", system_id="7", created_at=Lsn(1), position=Lsn(2))
    store.save_slot(slot)
    store.save_table(_copying("a"))
    store.add_chunks(ORDERS, "a", [_chunk("1")])
    version = store.save_schema(SCHEMA, Lsn(5))
    before = store.tables()
    store.close()
    store.close()
    store.open()
    store.open()
    assert (store.slot(), store.tables(), store.chunks("a")) == (slot, before, (_chunk("1"),))
    assert store.schema(ORDERS) == version


def test_two_pipelines_in_one_database_do_not_see_each_other(open_pipeline: Open) -> None:
    shop, bank = open_pipeline("shop"), open_pipeline("bank")
    shop.save_table(_copying("a"))
    shop.add_chunks(ORDERS, "a", [_chunk("1")])
    shop.save_schema(SCHEMA, Lsn(5))
    shop.save_mapping(TableMapping(table=ORDERS, destination_table="x"))
    bank.save_slot(SlotRecord(name="bank", system_id="7", created_at=Lsn(1), position=Lsn(2)))
    bank.save_table(TableRecord(table=ORDERS))
    assert shop.chunks("a") == (_chunk("1"),)
    assert shop.tables()[ORDERS].state is TableState.COPYING
    assert shop.slot() is None
    assert (bank.chunks("a"), bank.schemas(), bank.mapping(ORDERS)) == ((), {}, None)


def test_threads_may_call_at_once(store: Store) -> None:
    store.add_chunks(ORDERS, "a", [_chunk(str(n)) for n in range(40)])

    def work(n: int) -> int:
        store.finish_chunk("a", _done(str(n), seen=n))
        store.save_table(_copying("a").model_copy(update={"rows": n}))
        store.save_schema(SCHEMA, Lsn(n))
        return len(store.tables())

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(work, range(40))) == {1}
    assert all(chunk.done for chunk in store.chunks("a"))
    assert sorted(record.rows or 0 for record in store.history(ORDERS)) == list(range(40))
    assert len(store.versions(ORDERS)) == 1


def test_two_openings_of_one_pipeline_may_write_at_once(open_pipeline: Open) -> None:
    # An operator's command beside a running pipeline.
    stores = [open_pipeline("shop"), open_pipeline("shop")]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: stores[n % 2].save_table(TableRecord(table=ORDERS, rows=n)), range(40)))
    assert sorted(record.rows or 0 for record in stores[0].history(ORDERS)) == list(range(40))


def test_a_store_that_is_not_open_says_so(open_pipeline: Open) -> None:
    store = open_pipeline("shop")
    store.close()
    if not isinstance(store, MemoryStore):
        with pytest.raises(InternalError, match="is not open"):
            store.tables()
