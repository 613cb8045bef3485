"""Rows on their way into a script: few travel in its parameters, many by a load job into a table of their own.

A parameter costs nothing: no job, no quota, no seconds of waiting. So a pipeline with many small tables needs one query
per batch and no load job at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import count
from types import TracebackType
from typing import Self

import pyarrow as pa

from etl_dagster.destinations.bigquery.client import Client
from etl_dagster.destinations.bigquery.config import BigQueryConfig
from etl_dagster.destinations.bigquery.encoding import encode
from etl_dagster.destinations.bigquery.inline import inline_rows, inline_source
from etl_dagster.destinations.bigquery.layout import Field
from etl_dagster.destinations.bigquery.ledger import Ledger
from etl_dagster.destinations.bigquery.naming import bare
from etl_dagster.destinations.bigquery.parquet import ParquetFile
from etl_dagster.destinations.bigquery.state import new_token, sent_bytes
from etl_dagster.destinations.bigquery.types import NativeType
from etl_dagster.errors import EtlError

# A request may have 10 MB, and holds the script and the state besides.
_MOST_INLINE_BYTES = 6_000_000
# What takes rows apart again is repeated wherever a script reads them, and a script may have 1 MB.
_MOST_INLINE_COLUMNS = 300
_LOADS_AT_ONCE = 8


class Stage:
    """Where the rows of one operation wait; a context, at whose end its files are gone."""

    def __init__(self, client: Client, ledger: Ledger, config: BigQueryConfig) -> None:
        self._client = client
        self._ledger = ledger
        self._config = config
        self._stack = ExitStack()
        self._numbers = count()
        self._loaded: list[str] = []

    def __enter__(self) -> Self:
        self._threads = self._stack.enter_context(ThreadPoolExecutor(_LOADS_AT_ONCE))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._clear_up()
        self._stack.close()

    def _clear_up(self) -> None:
        """Remove what no script has removed; what stays is removed when the destination is started again."""
        with suppress(EtlError):
            for ref in self._loaded:
                self._client.drop_table(bare(ref))

    def heap(self, fields: Sequence[tuple[str, NativeType]], table: str | None = None) -> Heap:
        """A new collection of rows with these columns."""
        return Heap(fields, self._config.inline_bytes, table)

    def place(self, heaps: Iterable[Heap]) -> None:
        """Bring heaps to where one script can read them all; several threads may do so."""
        large, room = [], _MOST_INLINE_BYTES
        for heap in heaps:
            if heap.source:
                continue
            text = heap.inline(room)
            if text is None:
                large.append(heap)
            else:
                room -= sent_bytes(text)
                heap.put_inline(f"etl_{next(self._numbers)}", text)
        list(self._threads.map(self._load, large))

    def _load(self, heap: Heap) -> None:
        token = new_token()
        ref = self._ledger.own("stage", token)
        self._loaded.append(ref)
        with heap.file() as file:
            self._client.load(
                bare(ref),
                file,
                fields=[Field(name, type_.staged) for name, type_ in heap.fields],
                job_key=f"stage-{token}",
                create=True,
                doing="stage changes",
                table=heap.table,
            )
        heap.source, heap.leftover = ref, f"DROP TABLE IF EXISTS {ref}"


class Heap:
    """Rows in memory while they are few, and in a Parquet file from then on.

    Attributes:
        source: SQL of a relation with these rows, once they are placed; what it needs is in ``parameters``.
        leftover: The statement that removes them, if they need one.
    """

    def __init__(self, fields: Sequence[tuple[str, NativeType]], inline_bytes: int, table: str | None) -> None:
        self.fields = fields
        inline = len(fields) <= _MOST_INLINE_COLUMNS and all(type_.inline("x") is not None for _, type_ in fields)
        self._inline_bytes = inline_bytes if inline else -1
        self.table = table
        self._parts: list[pa.Table] = []
        self._file: ParquetFile | None = None
        self.rows = 0
        self.source = ""
        self.leftover = ""
        self.parameters: dict[str, object] = {}

    def add(self, columns: Sequence[pa.Array | pa.ChunkedArray]) -> None:
        """Append rows, in Arrow's own types."""
        names = [name for name, _ in self.fields]
        encoded = [encode(column, type_) for column, (_, type_) in zip(columns, self.fields, strict=True)]
        part = pa.table(encoded, names=names)
        self.rows += len(part)
        if self._file is not None:
            self._file.append(part)
            return
        self._parts.append(part)
        if sum(each.nbytes for each in self._parts) > self._inline_bytes:
            self._spill()

    def _spill(self) -> ParquetFile:
        if self._file is None:
            self._file = ParquetFile()
            for part in self._parts:
                self._file.append(part)
            self._parts = []
        return self._file

    def inline(self, room: int) -> str | None:
        """The rows as text, if they are few enough."""
        if self._file is not None:
            return None
        text = inline_rows(pa.concat_tables(self._parts)) if self._parts else "[]"
        return text if sent_bytes(text) <= room else None

    def put_inline(self, parameter: str, text: str) -> None:
        self.source, self.parameters = inline_source(parameter, self.fields), {parameter: text}

    def file(self) -> ParquetFile:
        return self._spill()
