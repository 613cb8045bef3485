"""One part of the state: a table of BigQuery's, all of which a process keeps in memory.

Its *epoch* makes that safe: every transaction asserts the epoch that the process knows and raises it, so what a process
has not seen is never overwritten, and of two processes that believe to be the pipeline's only one, none can undo what
the other has done.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from etl_dagster.destinations.bigquery.client import Client
from etl_dagster.destinations.bigquery.state import IDLE_KEY, Change, Entry, Key, body_of, require, text_of
from etl_dagster.errors import DestinationError, ErrorKind
from etl_dagster.model import Lsn

_EPOCH = "epoch"
# One statement, so that there is never more than one epoch.
_CREATE = (
    "CREATE TABLE IF NOT EXISTS {0} AS"
    f" SELECT '{_EPOCH}' AS kind, '' AS id, CAST(0 AS INT64) AS lsn, CAST(NULL AS STRING) AS body"
)
_SET = (
    "MERGE {0} AS t USING (SELECT JSON_VALUE(r, '$[0]') AS kind, JSON_VALUE(r, '$[1]') AS id,"
    " CAST(JSON_VALUE(r, '$[2]') AS INT64) AS lsn, JSON_VALUE(r, '$[3]') AS body,"
    " JSON_VALUE(r, '$[4]') IS NOT NULL AS gone FROM UNNEST(JSON_QUERY_ARRAY(@etl_state)) AS r) AS s"
    " ON t.kind = s.kind AND t.id = s.id WHEN MATCHED AND s.gone THEN DELETE"
    " WHEN MATCHED THEN UPDATE SET lsn = s.lsn, body = COALESCE(s.body, t.body)"
    " WHEN NOT MATCHED AND NOT s.gone THEN INSERT (kind, id, lsn, body) VALUES (s.kind, s.id, s.lsn, s.body)"
)
# What fails after the transaction must not look as if the transaction had.
_HARMLESS = "BEGIN\n{0};\nEXCEPTION WHEN ERROR THEN\nSELECT 1;\nEND"


class Lane:
    """Commits one change after the other; different lanes do so beside each other.

    Args:
        ref: SQL name of its table, which is made by the first commit.
        writers: Processes that may have written: this one first of all, and those that had when it began.
        lift: What all lanes know of an entry that this one has read.
        learn: Is told what this one says of idle tables.
    """

    def __init__(
        self,
        client: Client,
        ref: str,
        writers: list[str | None],
        lift: Callable[[Key, Entry], Entry],
        learn: Callable[[Entry], None],
    ) -> None:
        self._client = client
        self._ref = ref
        self._writers = writers
        self._lift = lift
        self._learn = learn
        self._lock = threading.RLock()
        self._epoch: int | None = None
        self._entries: dict[Key, Entry] | None = None

    @property
    def entries(self) -> Mapping[Key, Entry]:
        """All that it holds; read anew after a failure."""
        with self._lock:
            if self._entries is None:
                rows = [row[1:] for row in self._client.run(self.selection(0), doing="read its own tables")]
                if _writer(rows) not in self._writers:
                    raise _overtaken()
                self.take(rows)
                self.raise_watermarks()
            assert self._entries is not None
            return self._entries

    @property
    def epoch(self) -> int | None:
        """Raised by every commit, whoever makes it; None before the first one."""
        with self._lock:
            self.entries  # noqa: B018 -- reads it
            return self._epoch

    def selection(self, number: int) -> str:
        """A query for all rows, which begin with this number."""
        return f"SELECT {number} AS lane, kind, id, lsn, body FROM {self._ref}"

    def begin(self, rows: Sequence[Sequence[Any]]) -> None:
        """Believe what its table holds when the process begins, and who wrote it: a script may outlive its process."""
        self._writers.append(_writer(rows))
        self.take(rows)

    def take(self, rows: Sequence[Sequence[Any]]) -> None:
        """Believe what its table holds; no rows: it may not exist yet."""
        with self._lock:
            self._epoch = next((lsn for kind, _, lsn, _ in rows if kind == _EPOCH), None)
            self._entries = {
                (kind, id_): Entry(Lsn(lsn), body_of(kind, body)) for kind, id_, lsn, body in rows if kind != _EPOCH
            }
            self._tell(self._entries)

    def _tell(self, entries: Mapping[Key, Entry]) -> None:
        if (idle := entries.get(IDLE_KEY)) is not None:
            self._learn(idle)

    def raise_watermarks(self) -> None:
        """Take into account what was said of idle tables."""
        with self._lock:
            if self._entries is not None:
                self._entries = {key: self._lift(key, entry) for key, entry in self._entries.items()}

    def commit(self, change: Change, *, doing: str, table: str | None) -> None:
        """Carry a change out; what it says of the state is true afterwards, here and there.

        Raises:
            EtlError: It was not carried out, or nobody knows; then the state is read anew before it is used.
        """
        with self._lock:
            self.entries  # noqa: B018 -- reads them, and with them the epoch
            script = ";\n".join(self._statements(change))
            parameters = {**change.parameters, "etl_state": json.dumps(self._rows(change))}
            entries, self._entries = self._entries, None
            self._client.run(script, doing=doing, table=table, parameters=parameters)
            self._entries = _changed(entries or {}, change)
            self._epoch = (self._epoch or 0) + 1
            self._tell(self._entries)

    def _statements(self, change: Change) -> list[str]:
        expected = f"(SELECT lsn FROM {self._ref} WHERE kind = '{_EPOCH}') = {self._epoch or 0}"
        return [
            *([_CREATE.format(self._ref)] if self._epoch is None else []),
            *change.ddl,
            "BEGIN TRANSACTION",
            require(expected, "epoch"),
            *change.statements,
            _SET.format(self._ref),
            "COMMIT TRANSACTION",
            *([_HARMLESS.format(";\n".join(change.afterwards))] if change.afterwards else []),
        ]

    def _rows(self, change: Change) -> list[list[str | None]]:
        rows: list[list[str | None]] = [[_EPOCH, "", str((self._epoch or 0) + 1), self._writers[0], None]]
        for (kind, id_), entry in change.state.items():
            lsn = None if entry is None else str(int(entry.lsn))
            rows.append([kind, id_, lsn, text_of(entry), "gone" if entry is None else None])
        rows += [[kind, id_, str(int(lsn)), None, None] for (kind, id_), lsn in change.positions.items()]
        return rows


def _writer(rows: Sequence[Sequence[Any]]) -> str | None:
    return next((body for kind, _, _, body in rows if kind == _EPOCH), None)


def _overtaken() -> DestinationError:
    """Somebody has written who had not when this process began: it is not the pipeline's any more."""
    return DestinationError(
        "Another process of this pipeline has written to the dataset since this one began",
        hint="See that only one process runs the pipeline; this one ends, and changes nothing more",
        kind=ErrorKind.PIPELINE_BUSY,
    )


def _changed(entries: Mapping[Key, Entry], change: Change) -> dict[Key, Entry]:
    changed = dict(entries)
    for key, entry in change.state.items():
        if entry is None:
            changed.pop(key, None)
        else:
            changed[key] = entry
    for key, lsn in change.positions.items():
        changed[key] = replace(changed[key], lsn=lsn)
    return changed
