"""The rare messages of pgoutput, read one by one: relations and truncates."""

from __future__ import annotations

from dataclasses import dataclass

from etl_dagster.errors import ProtocolError


class MessageReader:
    """Takes values off one message from the front; owns the position and its bounds.

    Args:
        body: The message, from its tag on.
        offset: Where it stands in the stream, for errors.
    """

    def __init__(self, body: bytes, offset: int) -> None:
        self._body = body
        self._offset = offset
        self._at = 0

    def unsigned(self, size: int) -> int:
        """A big-endian number of ``size`` bytes."""
        return int.from_bytes(self._take(size), "big")

    def signed(self, size: int) -> int:
        """A big-endian two's complement number of ``size`` bytes."""
        return int.from_bytes(self._take(size), "big", signed=True)

    def text(self) -> str:
        """A string that ends in a zero byte."""
        end = self._body.find(b"\0", self._at)
        if end < 0:
            rest = len(self._body) - self._at
            raise ProtocolError("String without end", offset=self._offset + self._at, need=rest + 1, have=rest)
        name = self._body[self._at : end]
        self._at = end + 1
        try:
            return name.decode()
        except UnicodeDecodeError:
            offset = self._offset + end - len(name)
            raise ProtocolError("Name is not UTF-8", offset=offset, need=len(name), have=len(name)) from None

    def finish(self) -> None:
        """Check that nothing is left."""
        if left := len(self._body) - self._at:
            raise ProtocolError("Message goes on behind its end", offset=self._offset + self._at, need=0, have=left)

    def _take(self, size: int) -> bytes:
        taken = self._body[self._at : self._at + size]
        if len(taken) < size:
            raise ProtocolError("Message is cut off", offset=self._offset + self._at, need=size, have=len(taken))
        self._at += size
        return taken


@dataclass(frozen=True, slots=True)
class RelationColumn:
    """A column as the stream announces it; ``key`` when it is part of the replica identity."""

    name: str
    type_oid: int
    typmod: int
    key: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """A table as the stream announces it before its first change, and again after it was altered."""

    oid: int
    schema: str
    name: str
    replica_identity: str
    columns: tuple[RelationColumn, ...]


@dataclass(frozen=True, slots=True)
class Truncate:
    """Tables emptied by one statement."""

    relations: tuple[int, ...]
    cascade: bool
    restart_identity: bool


def parse_relation(body: bytes, offset: int = 0) -> Relation:
    """Read an ``R`` message."""
    reader = MessageReader(body, offset)
    reader.unsigned(1)
    oid, schema, name = reader.unsigned(4), reader.text(), reader.text()
    identity = chr(reader.unsigned(1))
    columns = tuple(_parse_column(reader) for _ in range(reader.unsigned(2)))
    reader.finish()
    # The stream leaves out the name of the schema pg_catalog.
    return Relation(oid, schema or "pg_catalog", name, identity, columns)


def _parse_column(reader: MessageReader) -> RelationColumn:
    flags = reader.unsigned(1)
    return RelationColumn(reader.text(), reader.unsigned(4), reader.signed(4), bool(flags & 1))


def parse_truncate(body: bytes, offset: int = 0) -> Truncate:
    """Read a ``T`` message."""
    reader = MessageReader(body, offset)
    reader.unsigned(1)
    count, options = reader.unsigned(4), reader.unsigned(1)
    relations = tuple(reader.unsigned(4) for _ in range(count))
    reader.finish()
    return Truncate(relations, bool(options & 1), bool(options & 2))


def truncate_of(body: bytes, relation: int) -> bytes:
    """A ``T`` message of several relations as one of a single relation."""
    return body[:1] + (1).to_bytes(4, "big") + body[5:6] + relation.to_bytes(4, "big")
