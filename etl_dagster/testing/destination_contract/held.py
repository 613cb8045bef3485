"""Logs that keep the changes of quarantined tables."""

from __future__ import annotations

import pytest

from etl_dagster.destinations.base import Destination
from etl_dagster.model import CopyTarget, EventBatch, Lsn, RawChanges, Route, TableEvents, TableSchema
from etl_dagster.testing.change_script import Insert, events, failing_batch, make_batch, make_table, raw_changes
from etl_dagster.testing.destination_contract.place import Place, Suite, content, copied

_Message = tuple[int, bytes, bytes | None]


def _held(table: TableSchema, *messages: _Message) -> TableEvents:
    return TableEvents(table, held=raw_changes(*messages))


def _batch(position: int, table: TableSchema, *messages: _Message) -> EventBatch:
    return make_batch(position, [[_held(table, *messages)]], {table: Route(live=False, held=True)})


def _read(destination: Destination, table: TableSchema) -> list[_Message]:
    return [message for part in destination.read_held(table) for message in _messages(part)]


def _messages(raw: RawChanges) -> list[_Message]:
    return list(zip(raw.lsn.tolist(), raw.message.to_pylist(), raw.text.to_pylist(), strict=True))


class HeldContract(Suite):
    """Messages are kept raw and in order until the table is released."""

    @pytest.fixture(autouse=True)
    def hold_first(self, destination: Destination, table: TableSchema) -> None:
        copied(destination, table, [(1, "a", "A")])
        destination.hold_table(table)

    def test_a_held_log_begins_empty(self, destination: Destination, table: TableSchema) -> None:
        assert destination.holds() == {table.id: 0}
        assert _read(destination, table) == []

    def test_messages_come_back_as_they_were_and_in_order(self, place: Place, table: TableSchema) -> None:
        first: list[_Message] = [(20, b"R\0relation", None), (20, b"I\xff\0", b"I text"), (21, b"", None)]
        place.destination.write_events(_batch(30, table, *first))
        place.destination.write_events(_batch(40, table, (30, b"U", None)))
        destination = place.reopen()
        assert _read(destination, table) == [*first, (30, b"U", None)]
        assert destination.holds() == {table.id: 40}

    def test_every_number_of_a_message_is_kept(self, destination: Destination, table: TableSchema) -> None:
        lsn, xid = 2**64 - 2, 2**32 - 1
        raw = raw_changes((lsn % 2**31, b"I", None), (lsn % 2**31, b"D", None))
        raw.lsn[:], raw.xid[:] = lsn, xid
        batch = make_batch(2**63 - 1, [[TableEvents(table, held=raw)]], {table: Route(live=False, held=True)})
        destination.write_events(batch)
        (found,) = destination.read_held(table)
        assert (found.lsn.tolist(), found.xid.tolist()) == ([lsn, lsn], [xid, xid])
        assert found.ordinal.tolist() == raw.ordinal.tolist()
        assert found.timestamp.tolist() == raw.timestamp.tolist()

    def test_messages_of_one_change_keep_their_order(self, destination: Destination, table: TableSchema) -> None:
        raw = raw_changes((20, b"relation", None), (20, b"insert", None), (20, b"relation again", None))
        raw.ordinal[:] = 7
        more = raw_changes((20, b"update", None))
        more.ordinal[:] = 7
        pieces = [[TableEvents(table, held=raw)], [TableEvents(table, held=more)]]
        destination.write_events(make_batch(30, pieces, {table: Route(live=False, held=True)}))
        found = [message for _, message, _ in _read(destination, table)]
        assert found == [b"relation", b"insert", b"relation again", b"update"]

    def test_a_replayed_batch_is_held_once(self, destination: Destination, table: TableSchema) -> None:
        destination.write_events(_batch(30, table, (20, b"I", None)))
        destination.write_events(_batch(30, table, (20, b"I", None)))
        destination.write_events(_batch(40, table, (20, b"I", None), (30, b"U", None)))
        assert _read(destination, table) == [(20, b"I", None), (30, b"U", None)]

    def test_a_batch_without_messages_raises_the_watermark(self, destination: Destination, table: TableSchema) -> None:
        destination.write_events(make_batch(50, [], {table: Route(live=False, held=True)}))
        assert destination.holds() == {table.id: 50}

    def test_the_live_table_rests(self, destination: Destination, table: TableSchema) -> None:
        destination.write_events(_batch(30, table, (20, b"I", None)))
        assert content(destination, table) == [(1, "a", "A")]
        assert destination.positions() == {table.id: 10}

    def test_other_tables_of_the_batch_go_on(self, destination: Destination, table: TableSchema) -> None:
        other = make_table("customers")
        copied(destination, other, [], copy_id="c1")
        routes = {table: Route(live=False, held=True), other: Route()}
        piece = [_held(table, (20, b"I", None)), events(other, Insert(21, (1, "o", "O")))]
        destination.write_events(make_batch(30, [piece], routes))
        assert content(destination, other) == [(1, "o", "O")]
        assert _read(destination, table) == [(20, b"I", None)]

    def test_a_batch_whose_source_fails_holds_nothing(self, place: Place, table: TableSchema) -> None:
        batch = failing_batch(30, [[_held(table, (20, b"I", None))]], lambda: RuntimeError("source gone"))
        batch.routes = {table.id: Route(live=False, held=True)}
        with pytest.raises(RuntimeError, match="source gone"):
            place.destination.write_events(batch)
        destination = place.reopen()
        assert _read(destination, table) == []
        assert destination.holds() == {table.id: 0}

    def test_holding_again_keeps_what_is_held(self, destination: Destination, table: TableSchema) -> None:
        destination.write_events(_batch(30, table, (20, b"I", None)))
        destination.hold_table(table)
        assert _read(destination, table) == [(20, b"I", None)]
        assert destination.holds() == {table.id: 30}

    def test_a_released_table_holds_nothing(self, place: Place, table: TableSchema) -> None:
        place.destination.write_events(_batch(30, table, (20, b"I", None)))
        place.destination.release_table(table.id)
        place.destination.release_table(table.id)
        assert place.destination.holds() == {}
        destination = place.reopen()
        assert destination.holds() == {}
        destination.hold_table(table)
        assert _read(destination, table) == []
        assert content(destination, table) == [(1, "a", "A")]

    def test_what_is_held_is_not_in_the_way_of_the_live_table_afterwards(
        self, destination: Destination, table: TableSchema
    ) -> None:
        destination.write_events(_batch(30, table, (20, b"I", None)))
        destination.write_events(make_batch(30, [[events(table, Insert(20, (2, "b", "B")))]], {table: Route()}))
        assert content(destination, table) == [(1, "a", "A"), (2, "b", "B")]
        assert _read(destination, table) == [(20, b"I", None)]

    def test_a_new_copy_ends_the_holding(self, destination: Destination, table: TableSchema) -> None:
        target = CopyTarget(table, "c2")
        destination.truncate_table(target)
        assert destination.holds() == {}
        destination.hold_table(table)
        destination.truncate_table(target)
        assert destination.holds() == {table.id: 0}

    def test_dropping_a_table_drops_what_is_held(self, destination: Destination, table: TableSchema) -> None:
        destination.drop_table(table.id)
        assert destination.holds() == {}

    def test_a_table_that_cannot_be_taken_can_be_held(self, destination: Destination) -> None:
        table = make_table("keyless", key=())
        destination.hold_table(table)
        destination.write_events(_batch(30, table, (20, b"I", None)))
        assert _read(destination, table) == [(20, b"I", None)]

    def test_each_pipeline_has_held_logs_of_its_own(self, destination: Destination, table: TableSchema) -> None:
        destination.write_events(_batch(30, table, (20, b"I", None)))
        destination.startup("other")
        assert destination.holds() == {}
        destination.hold_table(table)
        destination.write_events(_batch(40, table, (20, b"D", None)))
        destination.startup("")
        assert _read(destination, table) == [(20, b"I", None)]
        assert destination.holds() == {table.id: Lsn(30)}
