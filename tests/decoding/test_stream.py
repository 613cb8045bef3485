"""The stream decoder, fed with what a real slot delivers."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from etl_dagster.errors import InternalError, ProtocolError, ValueUnrepresentable
from etl_dagster.model import ChangeKind, ChangeSet, Lsn, TableEvents, TableId
from etl_dagster.pgoutput import StreamDecoder
from etl_dagster.pgwire import Frames, frames_from_messages
from tests.decoding.support import Connection, Stream, connect, execute

INSERT, UPDATE, DELETE = ChangeKind.INSERT, ChangeKind.UPDATE, ChangeKind.DELETE
WIDE = "(select string_agg(md5(i::text), '') from generate_series(1, 400) i)"


@pytest.fixture
def connection(database: str) -> Iterator[Connection]:
    with connect(database) as opened:
        yield opened


@pytest.fixture
def stream(connection: Connection) -> Stream:
    execute(connection, "create table shop (id int primary key, name text, price numeric(10,2), photo text)")
    execute(connection, "alter table shop alter photo set storage external")
    return Stream(connection)


def only(events: list[TableEvents]) -> ChangeSet:
    (one,) = events
    (changes,) = one.changes
    return changes


def decode(stream: Stream, *tables: str) -> tuple[list[TableEvents], StreamDecoder]:
    decoder = StreamDecoder(stream.schemas(*tables))
    text = stream.peek(binary=False) if any(map(_has_text, tables)) else None
    return decoder.feed(stream.peek(), text), decoder


def _has_text(table: str) -> bool:
    return table == "odd"


def told(changes: ChangeSet) -> list[tuple[ChangeKind, dict[str, Any]]]:
    changes.rows.validate(full=True)
    return [(ChangeKind(kind), row) for kind, row in zip(changes.kind, changes.rows.to_pylist(), strict=True)]


def test_inserts_updates_and_deletes_come_in_commit_order(stream: Stream, connection: Connection) -> None:
    before = datetime.now(UTC)
    execute(connection, "insert into shop values (1, 'a', 1.5), (2, null, 2.25)")
    execute(connection, "begin; update shop set name = 'b' where id = 1; delete from shop where id = 2; commit")
    events, decoder = decode(stream, "shop")
    changes = only(events)
    rows = [(kind, row["id"], row["name"], row["price"] and str(row["price"])) for kind, row in told(changes)]
    assert rows == [
        (INSERT, 1, "a", "1.50"),
        (INSERT, 2, None, "2.25"),
        (UPDATE, 1, "b", "1.50"),
        (DELETE, 2, None, None),
    ]
    assert changes.ordinal.tolist() == [0, 1, 0, 1]
    assert changes.lsn[0] == changes.lsn[1] < changes.lsn[2] == changes.lsn[3]
    assert changes.kind.dtype == np.int8
    assert changes.lsn.dtype == np.uint64
    assert changes.moved is None
    assert changes.old_keys is None
    assert changes.unchanged == {}
    assert decoder.changes == 4
    assert decoder.transactions == 2
    assert not decoder.in_transaction
    assert decoder.position is not None
    assert decoder.position > int(changes.lsn[3])
    assert decoder.newest_commit is not None
    assert before - timedelta(seconds=5) < decoder.newest_commit < datetime.now(UTC) + timedelta(seconds=5)
    assert int(changes.timestamp[3]) == round(decoder.newest_commit.timestamp() * 1_000_000)


def test_a_changed_key_comes_with_the_old_one(stream: Stream, connection: Connection) -> None:
    execute(connection, "insert into shop values (1, 'a'), (2, 'b')")
    execute(connection, "update shop set id = id + 10 where id = 2; update shop set name = 'c'")
    changes = only(decode(stream, "shop")[0])
    assert changes.moved is not None
    assert changes.old_keys is not None
    assert changes.moved.tolist() == [False, False, True, False, False]
    assert changes.old_keys.to_pylist()[2] == {"id": 2}
    assert changes.rows.column("id").to_pylist() == [1, 2, 12, 1, 12]


def test_composite_and_wide_keys_that_change(stream: Stream, connection: Connection) -> None:
    execute(connection, "create table pair (v text, a text, b numeric, primary key (b, a))")
    execute(connection, "insert into pair values ('x', 'a long enough key', 1.5)")
    execute(connection, "update pair set a = 'a long enough kez'; update pair set b = 2; update pair set v = 'y'")
    changes = only(decode(stream, "pair")[0])
    assert changes.moved is not None
    assert changes.old_keys is not None
    assert changes.moved.tolist() == [False, True, True, False]
    assert changes.old_keys.schema.names == ["b", "a"]
    assert changes.old_keys.to_pylist()[1:3] == [
        {"b": "1.5", "a": "a long enough key"},
        {"b": "1.5", "a": "a long enough kez"},
    ]


def test_an_unchanged_toast_value_is_marked_not_null(stream: Stream, connection: Connection) -> None:
    execute(connection, f"insert into shop values (1, 'a', 1, {WIDE}), (2, 'a', 1, null)")
    execute(connection, "update shop set name = 'b'; update shop set photo = 'small'")
    changes = only(decode(stream, "shop")[0])
    assert list(changes.unchanged) == [3]
    assert changes.unchanged[3].tolist() == [False, False, True, False, False, False]
    assert [photo and len(photo) for photo in changes.rows.column("photo").to_pylist()] == [
        12_800,
        None,
        None,
        None,
        5,
        5,
    ]


def test_replica_identity_full_fills_toast_and_keeps_only_the_key_of_a_delete(
    stream: Stream, connection: Connection
) -> None:
    execute(connection, "alter table shop replica identity full")
    execute(connection, f"insert into shop values (1, 'a', 1, {WIDE})")
    execute(connection, "update shop set name = 'b'; update shop set id = 5; delete from shop")
    changes = only(decode(stream, "shop")[0])
    assert changes.unchanged == {}
    assert [photo and len(photo) for photo in changes.rows.column("photo").to_pylist()] == [
        12_800,
        12_800,
        12_800,
        None,
    ]
    assert changes.moved is not None
    assert changes.moved.tolist() == [False, False, True, False]
    assert told(changes)[3] == (DELETE, {"id": 5, "name": None, "price": None, "photo": None})


def test_an_unchanged_toasted_key_is_read_from_the_old_key(stream: Stream, connection: Connection) -> None:
    execute(connection, "create table long (id int, k text not null, v int)")
    execute(connection, "alter table long alter k set storage external")
    execute(connection, "create unique index long_k on long (md5(k)); drop index long_k")
    execute(connection, "alter table long replica identity full")
    schema = next(iter(stream.schemas("long").values()))
    key = [column.model_copy(update={"key_ordinal": 0 if column.name == "k" else None}) for column in schema.columns]
    execute(connection, f"insert into long values (1, {WIDE}, 1); update long set v = 2")
    decoder = StreamDecoder({schema.oid: schema.model_copy(update={"columns": tuple(key)})})
    changes = only(decoder.feed(stream.peek()))
    assert [len(k) for k in changes.rows.column("k").to_pylist()] == [12_800, 12_800]
    assert changes.moved is None


def test_a_truncate_leaves_only_what_came_after(stream: Stream, connection: Connection) -> None:
    execute(
        connection, "insert into shop values (1, 'a'); truncate shop; insert into shop values (2, 'b'); truncate shop"
    )
    execute(connection, "insert into shop values (3, 'c')")
    (events,), _ = decode(stream, "shop")
    changes = only([events])
    assert changes.rows.column("id").to_pylist() == [3]
    assert events.truncated_at is not None
    assert Lsn(0) < events.truncated_at < int(changes.lsn[0])


def test_a_truncate_alone_is_told_for_each_of_its_tables(stream: Stream, connection: Connection) -> None:
    execute(connection, "create table other (id int primary key); insert into other values (1); truncate shop, other")
    events, _ = decode(stream, "shop", "other")
    assert {one.table.id.name for one in events} == {"shop", "other"}
    assert all(one.truncated_at is not None and not one.changes for one in events)


def test_ordinals_count_truncates_and_span_tables_and_feeds(stream: Stream, connection: Connection) -> None:
    execute(connection, "create table other (id int primary key)")
    execute(
        connection,
        """begin; insert into shop values (1); insert into other values (1); truncate shop;
           insert into shop values (2); insert into other values (2); commit; insert into other values (3)""",
    )
    frames, schemas = stream.peek(), stream.schemas("shop", "other")
    whole = {one.table.id.name: only([one]) for one in StreamDecoder(schemas).feed(frames)}
    assert whole["shop"].ordinal.tolist() == [3]
    assert whole["other"].ordinal.tolist() == [1, 4, 0]
    decoder = StreamDecoder(schemas)
    seen = []
    for row in range(len(frames)):
        for one in decoder.feed(frames[row : row + 1]):
            if one.table.id.name == "other":
                seen += [(int(c.lsn[0]), int(c.ordinal[0]), int(c.timestamp[0])) for c in one.changes]
    other = whole["other"]
    assert seen == list(zip(other.lsn.tolist(), other.ordinal.tolist(), other.timestamp.tolist(), strict=True))


def test_any_split_of_the_stream_gives_the_same_changes(stream: Stream, connection: Connection) -> None:
    execute(connection, "create table other (id bigint primary key, at timestamptz)")
    for number in range(30):
        execute(
            connection, f"insert into shop values ({number}, 'n', {number}); insert into other values ({number}, now())"
        )
    execute(connection, "update shop set name = 'm' where id % 3 = 0; delete from other where id < 5")
    frames, schemas = stream.peek(), stream.schemas("shop", "other")
    expected = _by_table(StreamDecoder(schemas).feed(frames))
    for size in (1, 2, 7, 50):
        decoder = StreamDecoder(schemas)
        parts = [one for start in range(0, len(frames), size) for one in decoder.feed(frames[start : start + size])]
        assert _by_table(parts) == expected
        assert decoder.changes == 75


def _by_table(events: list[TableEvents]) -> dict[TableId, list[Any]]:
    found: dict[TableId, list[Any]] = {}
    for one in events:
        for changes in one.changes:
            found.setdefault(one.table.id, []).extend(
                zip(changes.lsn.tolist(), changes.ordinal.tolist(), told(changes), strict=True)
            )
    return found


def test_tables_nobody_asked_for_are_left_out_and_named(stream: Stream, connection: Connection) -> None:
    execute(connection, "create table other (id int primary key); insert into other values (1); truncate other")
    events, decoder = decode(stream, "shop")
    assert events == []
    assert decoder.unknown == {("public", "other")}
    assert decoder.changes == 1


def test_a_column_without_binary_decoder_is_read_from_the_text_stream(stream: Stream, connection: Connection) -> None:
    execute(connection, "create type pair as (a int, b text)")
    execute(connection, "create table odd (ip inet primary key, r int4range, p pair, n numeric(6,2), note text)")
    execute(
        connection, "insert into odd values ('10.0.0.1', '[1,5)', '(1,x)', 1.5, 'a'), ('::1', null, null, null, null)"
    )
    execute(connection, "update odd set ip = '10.0.0.2' where n = 1.5; delete from odd where ip = '::1'")
    events, decoder = decode(stream, "odd")
    changes = only(events)
    assert decoder.needs_text
    assert [row["ip"] for _, row in told(changes)] == ["10.0.0.1", "::1", "10.0.0.2", "::1"]
    assert told(changes)[0][1]["r"] == "[1,5)"
    assert told(changes)[0][1]["p"] == "(1,x)"
    assert str(told(changes)[0][1]["n"]) == "1.50"
    assert changes.old_keys is not None
    assert changes.old_keys.to_pylist()[2] == {"ip": "10.0.0.1"}
    with pytest.raises(InternalError, match="read as text"):
        StreamDecoder(stream.schemas("odd")).feed(stream.peek())


def test_the_text_stream_must_be_the_same_stream(stream: Stream, connection: Connection) -> None:
    execute(connection, "insert into shop values (1, 'a')")
    frames = stream.peek()
    with pytest.raises(ProtocolError, match="another"):
        StreamDecoder(stream.schemas("shop")).feed(frames, frames[:-1])


DRIFTS = [
    ("alter table shop add extra int", "column extra is new"),
    ("alter table shop drop column name", "column name is gone"),
    ("alter table shop rename column name to title", "column name is gone"),
    ("alter table shop alter price type numeric(12,3)", "column price is no longer numeric"),
    ("alter table shop alter name type varchar(9)", "column name is no longer text"),
    ("alter table shop drop constraint shop_pkey, add primary key (name)", "the key is now"),
    ("alter table shop rename to store", "the table is now public.store"),
]


@pytest.mark.parametrize(("statement", "reason"), DRIFTS)
def test_a_table_that_is_altered_drifts_from_there_on(
    stream: Stream, connection: Connection, statement: str, reason: str
) -> None:
    execute(connection, "create table other (id int primary key)")
    schemas = stream.schemas("shop", "other")
    execute(connection, "insert into shop values (1, 'a', 1)")
    execute(connection, statement)
    table = "store" if "store" in statement else "shop"
    execute(connection, f"update {table} set price = 2; truncate {table}; insert into other values (1)")
    decoder = StreamDecoder(schemas)
    events = {one.table.id.name: one for one in decoder.feed(stream.peek())}
    assert reason in decoder.drifted[TableId("public", "shop")]
    assert events["shop"].truncated_at is None
    assert only([events["shop"]]).rows.column("id").to_pylist() == [1]
    assert len(only([events["other"]])) == 1


def test_domains_enums_and_a_dropped_column_are_no_drift(stream: Stream, connection: Connection) -> None:
    execute(connection, "create type mood as enum ('sad', 'gai'); create domain price as numeric(8,2)")
    execute(connection, "create table felt (gone int, p price, m mood, id int primary key, ps price[])")
    execute(connection, "alter table felt drop column gone")
    execute(connection, "insert into felt values (1.5, 'gai', 1, '{2.5}')")
    events, decoder = decode(stream, "felt")
    assert decoder.drifted == {}
    assert told(only(events))[0][1]["m"] == "gai"


def test_columns_are_matched_by_name(stream: Stream, connection: Connection) -> None:
    execute(connection, "insert into shop values (1, 'a', 2)")
    schema = next(iter(stream.schemas("shop").values()))
    turned = schema.model_copy(update={"columns": tuple(reversed(schema.columns))})
    changes = only(StreamDecoder({schema.oid: turned}).feed(stream.peek()))
    assert changes.rows.schema.names == ["photo", "price", "name", "id"]
    assert changes.rows.column("name").to_pylist() == ["a"]


def test_logical_messages_types_and_origins_do_not_disturb(stream: Stream, connection: Connection) -> None:
    execute(connection, "create type mood as enum ('sad'); create table felt (id int primary key, m mood)")
    execute(connection, "select pg_replication_origin_create('far'), pg_replication_origin_session_setup('far')")
    execute(connection, "select pg_logical_emit_message(false, 'app', 'outside any transaction')")
    execute(
        connection,
        "begin; insert into felt values (1, 'sad'); select pg_logical_emit_message(true, 'app', 'd'); commit",
    )
    events, decoder = decode(stream, "felt")
    assert len(only(events)) == 1
    assert decoder.transactions == 1
    assert {bytes(body[6:7]) for body in bodies(stream.peek())} >= {b"M", b"Y", b"O"}


def test_a_value_that_arrow_cannot_hold_names_the_table(stream: Stream, connection: Connection) -> None:
    execute(connection, "insert into shop values (1, 'a', 'NaN')")
    with pytest.raises(ValueUnrepresentable, match="'price' has 1 value") as caught:
        decode(stream, "shop")
    assert caught.value.table == "public.shop"


def bodies(frames: Frames) -> list[bytes]:
    return [frames.data[start:end].tobytes() for start, end in zip(frames.starts, frames.ends, strict=True)]


def _again(messages: list[bytes], row: int, body: bytes) -> Frames:
    """The stream with one message replaced; the tuple around it says its new length."""
    changed = b"\0\x01" + len(body).to_bytes(4, "big") + body
    return frames_from_messages([*messages[:row], changed, *messages[row + 1 :]])


def test_a_message_cut_off_anywhere_is_a_protocol_error(stream: Stream, connection: Connection) -> None:
    execute(
        connection, "truncate shop; insert into shop values (1, 'abc', 12.5); update shop set id = 2; delete from shop"
    )
    execute(connection, "alter table shop replica identity full; insert into shop values (1, 'a')")
    execute(connection, "update shop set name = null; delete from shop")
    messages, schemas = bodies(stream.peek()), stream.schemas("shop")
    StreamDecoder(schemas).feed(frames_from_messages(messages))
    cut = {message[6:7] for message in messages}
    assert cut == {b"B", b"R", b"I", b"U", b"D", b"T", b"C"}
    for row, message in enumerate(messages):
        for end in range(6, len(message)):
            with pytest.raises(ProtocolError):
                StreamDecoder(schemas).feed(_again(messages, row, message[6:end]))
        with pytest.raises(ProtocolError):
            StreamDecoder(schemas).feed(_again(messages, row, message[6:] + b"\0"))
        with pytest.raises(ProtocolError, match="not one message"):
            StreamDecoder(schemas).feed(frames_from_messages([*messages[:row], message[:-1], *messages[row + 1 :]]))


def test_messages_out_of_order_or_of_unknown_kind_are_protocol_errors(stream: Stream, connection: Connection) -> None:
    execute(connection, "insert into shop values (1, 'abc', 12.5, null)")
    begin, relation, insert, commit = bodies(stream.peek())
    schemas = stream.schemas("shop")
    for messages, match in (
        ([relation, insert], "'I' out of order"),
        ([begin, relation, insert, begin], "'B' out of order"),
        ([commit], "'C' out of order"),
        ([begin, relation, commit, insert], "'I' out of order"),
        ([begin, insert, commit], "not announced"),
        ([begin, insert, relation, commit], "not announced"),
        ([begin, relation, insert.replace(b"I", b"S", 1)], "unknown kind 'S'"),
        ([begin, relation, insert.replace(b"N", b"K", 1)], "without the tuple"),
    ):
        with pytest.raises(ProtocolError, match=match):
            StreamDecoder(schemas).feed(frames_from_messages(messages))


def test_damage_in_any_byte_is_found_or_decodes_without_a_crash(stream: Stream, connection: Connection) -> None:
    execute(connection, "insert into shop values (1, 'abc', 12.5, null); update shop set id = 2")
    messages, schemas = bodies(stream.peek()), stream.schemas("shop")
    for row, message in enumerate(messages):
        for at in range(6, len(message)):
            for flip in (0x01, 0x80, 0xFF):
                damaged = bytearray(message)
                damaged[at] ^= flip
                try:
                    StreamDecoder(schemas).feed(
                        frames_from_messages([*messages[:row], bytes(damaged), *messages[row + 1 :]])
                    )
                except (ProtocolError, ValueUnrepresentable):
                    continue
