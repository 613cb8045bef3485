"""Tables that are altered while their changes are read, and tables whose messages are held."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etl_dagster.errors import ProtocolError, TableError, ValueUnrepresentable
from etl_dagster.model import (
    ChangeKind,
    ChangeSet,
    Landing,
    Lsn,
    RawChanges,
    TableEvents,
    TableId,
    TableSchema,
    ValuePolicy,
)
from etl_dagster.pgoutput import StreamDecoder
from etl_dagster.pgwire import Frames, frames_from_messages
from tests.decoding.support import Connection, Stream, connect, execute

SHOP = TableId("public", "shop")
INSERT, UPDATE, DELETE, TRUNCATE = ChangeKind
Look = Callable[[TableSchema], TableSchema | None]
WIDE = "(select string_agg(md5(i::text), '') from generate_series(1, 400) i)"


@pytest.fixture
def connection(database: str) -> Iterator[Connection]:
    with connect(database) as opened:
        yield opened


@pytest.fixture
def stream(connection: Connection) -> Stream:
    execute(connection, "create table shop (id int primary key, name text, price numeric(10,2))")
    execute(connection, "create table log (at int, note text); alter table log replica identity full")
    return Stream(connection)


def known(stream: Stream, table: str = "shop", landing: Landing = Landing.MIRROR) -> dict[int, TableSchema]:
    return {oid: schema.model_copy(update={"landing": landing}) for oid, schema in stream.schemas(table).items()}


def looking(stream: Stream) -> Look:
    return lambda schema: stream.schemas(schema.id.name)[schema.oid].model_copy(update={"landing": schema.landing})


def only(events: list[TableEvents]) -> TableEvents:
    (one,) = events
    return one


def told(changes: ChangeSet) -> list[tuple[ChangeKind, dict[str, Any]]]:
    changes.rows.validate(full=True)
    return [(ChangeKind(kind), row) for kind, row in zip(changes.kind, changes.rows.to_pylist(), strict=True)]


def names(table: TableSchema) -> list[str]:
    return [column.name for column in table.columns]


def test_columns_added_dropped_and_renamed_follow_within_one_transaction(
    stream: Stream, connection: Connection
) -> None:
    schemas = known(stream)
    execute(
        connection,
        """begin; insert into shop values (1, 'a', 1); alter table shop add extra int default 7;
           insert into shop values (2, 'b', 2); alter table shop rename name to title;
           alter table shop drop price; update shop set title = 'c' where id = 1; delete from shop where id = 2; commit""",
    )
    decoder = StreamDecoder(schemas, look=looking(stream))
    events = only(decoder.feed(stream.peek()))
    assert decoder.drifted == {}
    assert [names(changes.table) for changes in events.changes] == [
        ["id", "name", "price"],
        ["id", "name", "price", "extra"],
        ["id", "title", "extra"],
    ]
    assert told(events.changes[1])[0][1]["extra"] == 7
    assert told(events.changes[2]) == [
        (UPDATE, {"id": 1, "title": "c", "extra": 7}),
        (DELETE, {"id": 2, "title": None, "extra": None}),
    ]
    assert np.concatenate([changes.ordinal for changes in events.changes]).tolist() == [0, 1, 2, 3]
    assert events.table == events.changes[-1].table == decoder.evolved[SHOP]
    assert [column.attnum for column in events.table.columns] == [1, 2, 4]


def test_a_truncate_between_two_schemas_leaves_what_comes_after(stream: Stream, connection: Connection) -> None:
    schemas = known(stream)
    execute(connection, "insert into shop values (1); alter table shop add extra int; insert into shop values (2)")
    execute(connection, "truncate shop; insert into shop values (3); alter table shop drop name; delete from shop")
    events = only(StreamDecoder(schemas, look=looking(stream)).feed(stream.peek()))
    assert events.truncated_at is not None
    assert [[row["id"] for _, row in told(changes)] for changes in events.changes] == [[3], [3]]
    assert names(events.table) == ["id", "price", "extra"]


def test_the_catalogue_is_asked_once_for_each_contradiction(stream: Stream, connection: Connection) -> None:
    schemas, asked = known(stream), []

    def look(schema: TableSchema) -> TableSchema | None:
        asked.append(names(schema))
        return looking(stream)(schema)

    for _ in range(3):
        execute(connection, "insert into shop values ((random() * 1e9)::int); analyze shop")
    execute(connection, "alter table shop add extra int; insert into shop values (1); comment on table shop is 'x'")
    execute(connection, "alter table shop set (fillfactor = 90); insert into shop values (2)")
    frames = stream.peek()
    decoder = StreamDecoder(schemas, look=look)
    for row in range(len(frames)):
        decoder.feed(frames[row : row + 1])
    assert asked == [["id", "name", "price"]]
    assert names(decoder.evolved[SHOP]) == ["id", "name", "price", "extra"]


def test_an_older_relation_that_comes_again_undoes_nothing(stream: Stream, connection: Connection) -> None:
    execute(
        connection,
        "insert into shop values (1, 'a', 1); alter table shop add extra int; alter table shop rename name to title",
    )
    execute(connection, "insert into shop values (2, 'b', 2, 3)")
    newest = known(stream)
    decoder = StreamDecoder(newest, look=looking(stream))
    events = only(decoder.feed(stream.peek()))
    assert not decoder.drifted
    assert not decoder.evolved
    assert events.table == next(iter(newest.values()))
    assert [told(changes)[0][1]["id"] for changes in events.changes] == [1, 2]
    assert [column.attnum for column in events.changes[0].table.columns] == [1, 2, 3]


@pytest.mark.parametrize(
    "statement", ["alter price type numeric(12,3)", "drop constraint shop_pkey, add primary key (name)"]
)
def test_what_cannot_be_followed_drifts(stream: Stream, connection: Connection, statement: str) -> None:
    schemas = known(stream)
    execute(connection, "insert into shop values (1, 'a', 1)")
    execute(connection, f"alter table shop {statement}; insert into shop values (2, 'b', 2)")
    decoder = StreamDecoder(schemas, look=looking(stream))
    assert len(only(decoder.feed(stream.peek())).changes[0]) == 1
    assert SHOP in decoder.drifted
    declined = StreamDecoder(schemas, look=lambda _: None)
    declined.feed(stream.peek())
    assert declined.drifted == decoder.drifted


def test_a_new_column_whose_text_was_not_asked_for_is_a_drift(stream: Stream, connection: Connection) -> None:
    schemas = known(stream)
    execute(connection, "create type pair as (a int, b int); insert into shop values (1)")
    execute(connection, "alter table shop add both_ pair; insert into shop (id, both_) values (2, '(1,2)')")
    decoder = StreamDecoder(schemas, look=looking(stream))
    assert len(only(decoder.feed(stream.peek())).changes) == 1
    assert "read as text" in decoder.drifted[SHOP]
    decoder = StreamDecoder(schemas, look=looking(stream))
    events = only(decoder.feed(stream.peek(), stream.peek(binary=False)))
    assert told(events.changes[1])[0][1]["both_"] == "(1,2)"


def test_a_changelog_has_its_truncates_among_the_changes(stream: Stream, connection: Connection) -> None:
    schemas = known(stream, landing=Landing.CHANGELOG)
    execute(
        connection, "begin; insert into shop values (1, 'a'); truncate shop; insert into shop values (2, 'b'); commit"
    )
    execute(connection, "truncate shop")
    execute(connection, "truncate shop")
    events = only(StreamDecoder(schemas).feed(stream.peek()))
    assert events.truncated_at is None
    (changes,) = events.changes
    nothing = {"id": None, "name": None, "price": None}
    assert [kind for kind, _ in told(changes)] == [INSERT, TRUNCATE, INSERT, TRUNCATE, TRUNCATE]
    assert [row for kind, row in told(changes) if kind is TRUNCATE] == [nothing] * 3
    assert changes.ordinal.tolist() == [0, 1, 2, 0, 0]
    assert sorted(changes.lsn.tolist()) == changes.lsn.tolist()
    assert changes.xid is not None
    assert changes.xid.dtype == np.uint32
    assert changes.xid[0] == changes.xid[2] < changes.xid[3] < changes.xid[4]


def test_a_changelog_of_truncates_alone_and_across_schemas(stream: Stream, connection: Connection) -> None:
    schemas = known(stream, landing=Landing.CHANGELOG)
    execute(
        connection, "truncate shop; alter table shop add ip inet, add at interval, add u uuid, add j jsonb, add n int[]"
    )
    execute(connection, "truncate shop")
    frames = stream.peek()
    decoder = StreamDecoder(schemas, look=looking(stream))
    events = only(decoder.feed(frames))
    assert [[kind for kind, _ in told(changes)] for changes in events.changes] == [[TRUNCATE], [TRUNCATE]]
    assert names(events.changes[1].table)[3:] == ["ip", "at", "u", "j", "n"]


def test_transaction_ids_are_those_of_the_server(stream: Stream, connection: Connection) -> None:
    schemas = known(stream, landing=Landing.CHANGELOG)
    execute(connection, "insert into shop values (1); insert into shop values (2)")
    execute(connection, "update shop set name = 'a'")
    expected = [int(xid) for (xid,) in execute(connection, "select xmin from shop order by id")]
    frames = stream.peek()
    (changes,) = only(StreamDecoder(schemas).feed(frames)).changes
    assert changes.xid is not None
    assert changes.xid.tolist()[2:] == expected
    assert only(StreamDecoder(known(stream)).feed(frames)).changes[0].xid is None
    decoder, apart = StreamDecoder(schemas), []
    for row in range(len(frames)):
        apart += [one.changes[0].xid for one in decoder.feed(frames[row : row + 1])]
    assert [int(xid[0]) for xid in apart if xid is not None] == changes.xid.tolist()


def test_a_changelog_keeps_what_the_source_sent_of_a_delete(stream: Stream, connection: Connection) -> None:
    execute(connection, "alter table shop replica identity full; insert into shop values (1, 'a', 2)")
    execute(connection, "update shop set name = 'b'; update shop set id = 5; delete from shop")
    (changes,) = only(StreamDecoder(known(stream, landing=Landing.CHANGELOG)).feed(stream.peek())).changes
    kind, row = told(changes)[3]
    assert (kind, row["id"], row["name"], str(row["price"])) == (DELETE, 5, "b", "2.00")
    assert changes.moved is not None
    assert changes.old_keys is not None
    assert changes.moved.tolist() == [False, False, True, False]
    assert changes.old_keys.to_pylist()[2] == {"id": 1}


@pytest.mark.parametrize("landing", Landing)
def test_without_a_key_every_column_is_the_identity(stream: Stream, connection: Connection, landing: Landing) -> None:
    execute(connection, "insert into log values (1, 'a'), (1, 'b'); update log set note = 'c' where note = 'a'")
    execute(connection, "truncate log; insert into log values (2, 'd'); update log set at = 3; delete from log")
    events = StreamDecoder(known(stream, "log", landing)).feed(stream.peek())
    assert len(events) == (2 if landing is Landing.SOFT_DELETE else 1)
    (changes,) = events[-1].changes
    rows = told(changes)
    assert rows[-3:] == [
        (INSERT, {"at": 2, "note": "d"}),
        (UPDATE, {"at": 3, "note": "d"}),
        (DELETE, {"at": 3, "note": "d"}),
    ]
    assert changes.moved is not None
    assert changes.old_keys is not None
    assert changes.moved.tolist()[-3:] == [False, True, False]
    assert changes.old_keys.to_pylist()[-2] == {"at": 2, "note": "d"}
    assert len(rows) == (7 if landing is Landing.CHANGELOG else 3)


def test_where_deleted_rows_are_kept_what_came_before_a_truncate_is_told_too(
    stream: Stream, connection: Connection
) -> None:
    execute(connection, "insert into log values (1, 'a'); truncate log; insert into log values (2, 'b')")
    execute(connection, "truncate log; truncate log")
    events = StreamDecoder(known(stream, "log", Landing.SOFT_DELETE)).feed(stream.peek())
    assert [[told(part) for part in event.changes] for event in events] == [
        [[(INSERT, {"at": 1, "note": "a"})]],
        [[(INSERT, {"at": 2, "note": "b"})]],
        [],
        [],
    ]
    places = [event.truncated_at for event in events]
    assert places[0] is None
    assert places[1:] == sorted(filter(None, places))
    assert all(event.truncated_time > 1_700_000_000_000_000 for event in events[1:])


def test_a_value_that_cannot_be_held_is_named_by_its_key(stream: Stream, connection: Connection) -> None:
    execute(connection, "insert into shop values (41, 'secret', 1), (42, 'secret', 'NaN')")
    with pytest.raises(ValueUnrepresentable, match=r"\(row with id = 42\)") as caught:
        StreamDecoder(known(stream)).feed(stream.peek())
    assert caught.value.table == "public.shop"
    assert "secret" not in str(caught.value)


def test_a_long_key_is_cut_and_a_key_that_fails_is_not_shown(stream: Stream, connection: Connection) -> None:
    execute(connection, "create table odd (k text, n numeric(9,2), v numeric(9,2), primary key (k, n))")
    execute(connection, "insert into odd values (repeat('k', 500), 1, 'NaN')")
    with pytest.raises(ValueUnrepresentable, match=r"row with k = k+…") as caught:
        StreamDecoder(known(stream, "odd")).feed(stream.peek())
    assert len(caught.value.message) < 300
    stream.skip()
    execute(connection, "insert into odd values ('k', 'NaN', 1)")
    with pytest.raises(ValueUnrepresentable) as caught:
        StreamDecoder(known(stream, "odd")).feed(stream.peek())
    assert caught.value.message.endswith("(row with k = k, n = ?)")


def test_values_replaced_by_policy_are_counted(stream: Stream, connection: Connection) -> None:
    execute(connection, "insert into shop values (1, 'a', 'NaN'), (2, 'b', 1), (3, 'c', 'NaN')")
    (schema,) = known(stream).values()
    columns = [column.model_copy(update={"values": ValuePolicy.NULL}) for column in schema.columns]
    decoder = StreamDecoder({schema.oid: schema.model_copy(update={"columns": tuple(columns)})})
    (changes,) = only(decoder.feed(stream.peek())).changes
    assert [row["price"] is None for _, row in told(changes)] == [True, False, True]
    assert decoder.replaced == {SHOP: {"price": 2}}


def same(left: list[TableEvents], right: list[TableEvents]) -> None:
    assert [(one.table, one.truncated_at, len(one.changes)) for one in left] == [
        (one.table, one.truncated_at, len(one.changes)) for one in right
    ]
    for one, other in zip(left, right, strict=True):
        for changes, again in zip(one.changes, other.changes, strict=True):
            assert changes.table == again.table
            assert changes.rows.equals(again.rows)
            for part in ("kind", "lsn", "ordinal", "timestamp", "xid", "moved"):
                assert np.array_equal(getattr(changes, part), getattr(again, part)), part
            assert changes.unchanged.keys() == again.unchanged.keys()
            assert changes.old_keys == again.old_keys


def held(schemas: dict[int, TableSchema], frames: Frames, text: Frames | None, size: int) -> list[RawChanges]:
    decoder = StreamDecoder(schemas, held=schemas)
    found = []
    for start in range(0, len(frames), size):
        part = slice(start, start + size)
        for one in decoder.feed(frames[part], None if text is None else text[part]):
            assert one.held is not None
            assert not one.changes
            found.append(one.held)
    assert not decoder.drifted
    assert not decoder.evolved
    return found


SCRIPT = (
    "insert into shop values (1, 'a', 1), (2, null, 2)",
    "update shop set name = 'z' where id = 2; update shop set id = id + 100",
    "insert into shop (id) select generate_series(500, 540); delete from shop where id > 530",
    "truncate shop, log; insert into shop (id) values (7)",
    "alter table shop add extra inet; insert into shop (id, extra) values (8, '10.0.0.1')",
    "alter table shop drop name; update shop set price = 3; truncate shop",
    "insert into shop (id, price) values (9, 9); insert into log values (1, 'x')",
    "alter table shop replica identity full; update shop set price = 4; delete from shop",
)


@pytest.mark.parametrize("landing", Landing)
@pytest.mark.parametrize("text_only", [False, True])
def test_held_messages_replayed_are_as_if_fed(
    stream: Stream, connection: Connection, landing: Landing, text_only: bool
) -> None:
    schemas = known(stream, landing=landing)
    for statement in SCRIPT:
        execute(connection, statement)
    frames, text = stream.peek(binary=not text_only), None if text_only else stream.peek(binary=False)
    for size in (len(frames), 13, 1):
        look = looking(stream)
        feeding, replaying = StreamDecoder(schemas, look=look), StreamDecoder(schemas, look=look)
        parts = held(schemas, frames, text, size)
        replayed = [one for raw in parts for one in replaying.replay(raw)]
        fed = []
        for start in range(0, len(frames), size):
            part = slice(start, start + size)
            fed += feeding.feed(frames[part], None if text is None else text[part])
        same(replayed, fed)
        assert replaying.evolved == feeding.evolved
        assert names(feeding.evolved[SHOP]) == ["id", "price", "extra"]
        assert feeding.drifted == {}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(picks=st.lists(st.integers(0, 5), min_size=1, max_size=12), cuts=st.integers(1, 20))
def test_any_held_changes_replayed_are_as_if_fed(
    stream: Stream, connection: Connection, picks: list[int], cuts: int
) -> None:
    statements = (
        "insert into shop select coalesce(max(id), 0) + 1, 'n' from shop",
        "update shop set id = id + 1000 where id = (select max(id) from shop)",
        "update shop set name = 'm'",
        "delete from shop where id % 2 = 0",
        "truncate shop",
        "begin; insert into shop (id) values (-1); truncate shop; insert into shop (id) values (-2); delete from shop; commit",
    )
    stream.skip()
    for pick in picks:
        execute(connection, statements[pick])
    frames = stream.peek()
    for landing in Landing:
        schemas = known(stream, landing=landing)
        feeding, replaying = StreamDecoder(schemas), StreamDecoder(schemas)
        replayed = [one for raw in held(schemas, frames, None, cuts) for one in replaying.replay(raw)]
        fed = [one for at in range(0, len(frames), cuts) for one in feeding.feed(frames[at : at + cuts])]
        same(replayed, fed)


def joined(parts: list[RawChanges]) -> RawChanges:
    return RawChanges(
        lsn=np.concatenate([raw.lsn for raw in parts]),
        ordinal=np.concatenate([raw.ordinal for raw in parts]),
        timestamp=np.concatenate([raw.timestamp for raw in parts]),
        xid=np.concatenate([raw.xid for raw in parts]),
        message=pa.concat_arrays([raw.message for raw in parts]),
        text=pa.concat_arrays([raw.text for raw in parts]),
    )


def test_windows_read_in_binary_and_as_text_replay_together(stream: Stream, connection: Connection) -> None:
    schemas = known(stream)
    execute(connection, "insert into shop values (1, 'a', 1.5), (2, 'b', null)")
    binary = held(schemas, stream.peek(), None, 100)
    again = held(schemas, stream.peek(binary=False), None, 100)
    (changes,) = only(StreamDecoder(schemas).replay(joined([*binary, *again]))).changes
    rows = [row for _, row in told(changes)]
    assert rows[:2] == rows[2:]


def test_text_that_was_not_kept_asks_for_a_new_copy(stream: Stream, connection: Connection) -> None:
    execute(connection, "create type both_ as (a int, b int); create table odder (id int primary key, b both_)")
    execute(connection, "insert into odder values (1, '(1,2)')")
    schemas = known(stream, "odder")
    with_text = held(schemas, stream.peek(), stream.peek(binary=False), 100)
    without = held(schemas, stream.peek(), None, 100)
    assert told(only(StreamDecoder(schemas).replay(with_text[0])).changes[0])[0][1]["b"] == "(1,2)"
    for raw in (without[0], joined([*with_text, *without])):
        with pytest.raises(TableError, match="Re-sync") as caught:
            StreamDecoder(schemas).replay(raw)
        assert caught.value.table == "public.odder"


def test_held_messages_tell_one_table_and_where_they_stand(stream: Stream, connection: Connection) -> None:
    execute(connection, "begin; insert into shop values (1); insert into log values (1); truncate shop, log; commit")
    schemas = {**known(stream), **known(stream, "log")}
    parts = StreamDecoder(schemas, held=schemas).feed(stream.peek())
    assert {one.table.id.name for one in parts} == {"shop", "log"}
    for one in parts:
        raw = one.held
        assert raw is not None
        assert raw.text.null_count == len(raw)
        bodies = raw.message.to_pylist()
        # Emptying a table gives it a new file, and so it is announced again.
        assert [body[:1] for body in bodies] == [b"R", b"I", b"R", b"T"]
        assert bodies[3] == b"T" + struct.pack(">IBI", 1, 0, one.table.oid)
        mine = 0 if one.table.id.name == "shop" else 1
        assert raw.ordinal.tolist() == [mine, mine, 2, 2]
        events = only(StreamDecoder(schemas).replay(raw))
        assert events.table == one.table
        assert events.truncated_at == Lsn(int(raw.lsn[3]))


@pytest.mark.parametrize("landing", [Landing.MIRROR, Landing.CHANGELOG])
def test_a_held_message_cut_off_anywhere_is_a_protocol_error(
    stream: Stream, connection: Connection, landing: Landing
) -> None:
    schemas = known(stream, landing=landing)
    execute(connection, "truncate shop; insert into shop values (1, 'abc', 12.5); update shop set id = 2")
    execute(connection, "insert into shop values (3); alter table shop replica identity full; delete from shop")
    frames, look = stream.peek(), looking(stream)
    (raw,) = held(schemas, frames, None, len(frames))
    messages = raw.message.to_pylist()
    assert {message[:1] for message in messages} == {b"R", b"I", b"U", b"T", b"D"}
    StreamDecoder(schemas, look=look).replay(raw)
    for row, message in enumerate(messages):
        for end in [*range(len(message)), None]:
            changed = message + b"\0" if end is None else message[:end]
            cut = pa.array([*messages[:row], changed, *messages[row + 1 :]], pa.binary())
            with pytest.raises(ProtocolError):
                StreamDecoder(schemas, look=look).replay(
                    RawChanges(raw.lsn, raw.ordinal, raw.timestamp, raw.xid, cut, raw.text)
                )


@pytest.mark.parametrize("landing", [Landing.MIRROR, Landing.CHANGELOG])
@pytest.mark.parametrize("hold", [False, True])
def test_a_message_cut_off_anywhere_is_found_at_the_latest_when_it_is_read(
    stream: Stream, connection: Connection, landing: Landing, hold: bool
) -> None:
    schemas = known(stream, landing=landing)
    execute(
        connection, "truncate shop; insert into shop values (1, 'abc', 12.5); update shop set id = 2; delete from shop"
    )
    frames = stream.peek()
    messages = [frames.data[start:end].tobytes() for start, end in zip(frames.starts, frames.ends, strict=True)]
    for row, message in enumerate(messages):
        for end in range(6, len(message)):
            body = message[6:end]
            cut = b"\0\x01" + len(body).to_bytes(4, "big") + body
            decoder = StreamDecoder(schemas, held=schemas if hold else ())
            with pytest.raises(ProtocolError):
                read(decoder, frames_from_messages([*messages[:row], cut, *messages[row + 1 :]]))


def read(decoder: StreamDecoder, frames: Frames) -> None:
    for one in decoder.feed(frames):
        if one.held is not None:
            decoder.replay(one.held)
