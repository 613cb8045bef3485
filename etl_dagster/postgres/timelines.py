"""Timelines: each failover and each restore begins a new one, and positions beyond that point mean something else."""

from __future__ import annotations

import re
from collections.abc import Iterator

from psycopg import sql

from etl_dagster.model import Lsn
from etl_dagster.postgres.config import PostgresConfig
from etl_dagster.postgres.sessions import run_replication_command

# The name of a WAL file begins with its timeline. What the control file says is older until the next checkpoint.
CURRENT = """
SELECT CASE WHEN NOT pg_is_in_recovery() THEN left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) END
"""
_LINE = re.compile(r"\s*(\d+)\s+([0-9A-Fa-f]+/[0-9A-Fa-f]+)")


def left_timeline(config: PostgresConfig, current: int, former: int) -> Lsn | None:
    """Where the history of the current timeline left a former one; None when it was never on it.

    Raises:
        SourceError: The server cannot be asked.
    """
    command = sql.SQL("TIMELINE_HISTORY {}").format(sql.Literal(current))
    rows = run_replication_command(config, command, f"cannot read the history of timeline {current}")
    history = "".join(_text(content) for _, content in rows)
    return dict(_switches(history)).get(former)


def _text(content: str | bytes) -> str:
    return content.decode(errors="replace") if isinstance(content, bytes) else content


def _switches(history: str) -> Iterator[tuple[int, Lsn]]:
    """A timeline history file has a line for each earlier timeline: its number, where it was left, and why."""
    for line in history.splitlines():
        if (found := _LINE.match(line)) is not None:
            yield int(found[1]), Lsn.parse(found[2])
