"""What the decoding tests ask of a server: types, copies in binary, and peeks at a slot."""

from __future__ import annotations

from typing import Any

import psycopg
import pyarrow as pa

from etl_dagster.arrow import decode_column
from etl_dagster.model import Column, PgType, ReplicaIdentity, TableId, TableSchema, TypeKind
from etl_dagster.pgwire import Fields, Frames, frames_from_messages, split_copy_rows

Connection = psycopg.Connection[Any]
_KINDS = {
    "b": TypeKind.BASE,
    "e": TypeKind.ENUM,
    "c": TypeKind.COMPOSITE,
    "r": TypeKind.RANGE,
    "m": TypeKind.MULTIRANGE,
}
SLOT, PUBLICATION = "decoding", "decoding"


def connect(dsn: str) -> Connection:
    """An autocommit connection."""
    return psycopg.connect(dsn, autocommit=True)


def execute(connection: Connection, statement: str) -> list[tuple[Any, ...]]:
    """Run one statement, or several at once; return the rows of a query."""
    cursor = connection.execute(statement)
    return cursor.fetchall() if cursor.description else []


def pg_type(connection: Connection, oid: int, typmod: int = -1) -> PgType:
    """The type as the catalogue has it, domains resolved."""
    kind, name, element, base, base_typmod = execute(
        connection,
        f"""select typtype, format_type(oid, {typmod}), case when typcategory = 'A' then typelem else 0 end,
                   typbasetype, typtypmod from pg_type where oid = {oid}""",
    )[0]
    if kind == "d":
        resolved = pg_type(connection, base, base_typmod)
        return resolved.model_copy(update={"name": name, "declared_oid": oid})
    return PgType(
        oid=oid,
        name=name,
        typmod=typmod,
        kind=TypeKind.ARRAY if element else _KINDS.get(kind, TypeKind.PSEUDO),
        element=pg_type(connection, element) if element else None,
        declared_oid=oid,
    )


def table_schema(connection: Connection, name: str) -> TableSchema:
    """A table of the schema public, keyed by its replica identity or else its primary key."""
    found = execute(connection, f"select oid, relreplident, relnatts from pg_class where oid = '{name}'::regclass")
    oid, identity, natts = found[0]
    wanted = "indisreplident" if identity == "i" else "indisprimary"
    key = execute(connection, f"select unnest(indkey::int2[]) from pg_index where indrelid = {oid} and {wanted}")
    order = {attnum: place for place, (attnum,) in enumerate(key)}
    rows = execute(
        connection,
        f"""select attnum, attname, atttypid, atttypmod, attnotnull from pg_attribute
            where attrelid = {oid} and attnum > 0 and not attisdropped order by attnum""",
    )
    columns = tuple(
        Column(
            attnum=attnum,
            name=column,
            type=pg_type(connection, type_oid, typmod),
            nullable=not notnull,
            key_ordinal=order.get(attnum),
        )
        for attnum, column, type_oid, typmod, notnull in rows
    )
    return TableSchema(
        id=TableId("public", name), oid=oid, columns=columns, replica_identity=ReplicaIdentity(identity), natts=natts
    )


def copy_messages(connection: Connection, query: str) -> list[bytes]:
    """The COPY messages of a query in binary."""
    with connection.cursor().copy(f"copy ({query}) to stdout (format binary)") as copy:
        return [bytes(message) for message in copy]


def copy_frames(connection: Connection, query: str) -> Frames:
    """The tuples of a query in binary."""
    return frames_from_messages(copy_messages(connection, query))


def fields_of(connection: Connection, query: str) -> Fields:
    """The only column of a query."""
    return split_copy_rows(copy_frames(connection, query), 1)[0]


def fill(connection: Connection, declared: str, literals: list[str | None]) -> PgType:
    """Make the table ``v(i, v)`` with these values; returns the type of v."""
    execute(connection, f"drop table if exists v; create table v (i int, v {declared})")
    with connection.cursor().copy("copy v from stdin") as copy:
        for number, literal in enumerate(literals):
            copy.write_row((number, literal))
    oid, typmod = execute(
        connection, "select atttypid, atttypmod from pg_attribute where attrelid = 'v'::regclass and attname = 'v'"
    )[0]
    return pg_type(connection, oid, typmod)


def decoded(connection: Connection, type_: PgType) -> pa.Array:
    """What the decoder makes of the table ``v``."""
    array = decode_column(type_, fields_of(connection, "select v from v order by i"), column="v")
    array.validate(full=not pa.types.is_time(array.type))  # Arrow's time has no 24:00:00, its representation has
    return array


def oracle(connection: Connection, expression: str) -> list[str | None]:
    """What the server says of each row of ``v``, as text."""
    return [text for (text,) in execute(connection, f"select ({expression})::text from v order by i")]


class Stream:
    """A publication of all tables and a slot, peeked at and then moved."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        execute(connection, f"create publication {PUBLICATION} for all tables")
        execute(connection, f"select pg_create_logical_replication_slot('{SLOT}', 'pgoutput')")

    def peek(self, *, binary: bool = True, limit: str = "null") -> Frames:
        """Everything since the slot's position, without moving it."""
        return frames_from_messages(self.messages(binary=binary, limit=limit))

    def messages(self, *, binary: bool = True, limit: str = "null") -> list[bytes]:
        """The COPY messages of a peek."""
        return copy_messages(
            self.connection,
            f"""select data from pg_logical_slot_peek_binary_changes('{SLOT}', null, {limit}, 'proto_version', '1',
                'publication_names', '{PUBLICATION}', 'messages', 'true', 'binary', '{binary}')""",
        )

    def skip(self) -> None:
        """Move the slot to the end of the log."""
        execute(self.connection, f"select pg_replication_slot_advance('{SLOT}', pg_current_wal_lsn())")

    def schemas(self, *names: str) -> dict[int, TableSchema]:
        """Schemas of these tables by OID."""
        found = [table_schema(self.connection, name) for name in names]
        return {schema.oid: schema for schema in found}
