"""The words in which the doctor says what it found."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql

from etl_dagster.postgres.sessions import Connection

_SAMPLE = 5


def quoted(connection: Connection, *name: str) -> str:
    """An identifier as it is written in SQL."""
    return sql.Identifier(*name).as_string(connection)


def listed(names: Sequence[object]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(map(str, names[:_SAMPLE]))
    return shown if len(names) <= _SAMPLE else f"{shown} and {len(names) - _SAMPLE} more"


def setting(connection: Connection, name: str, default: str = "") -> str:
    """A server setting, in its own unit; the default where the server does not know it."""
    row = connection.execute("SELECT setting FROM pg_settings WHERE name = %s", [name]).fetchone()
    return str(row[0]) if row else default
