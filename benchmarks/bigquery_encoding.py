"""Arrow to the Parquet file that a BigQuery load job takes: rows per second on one core, encoding included.

Beside it `pyarrow.parquet.write_table` writes the same values as the Arrow types that Parquet has itself, with its
defaults: what somebody would write who need not care for BigQuery. Both run in one process, in turn, on one core.
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable
from functools import partial
from tempfile import TemporaryFile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from etl_dagster.arrow.fixed import array_of
from etl_dagster.arrow.types import column_type
from etl_dagster.destinations.bigquery.config import BigQueryConfig
from etl_dagster.destinations.bigquery.encoding import encode
from etl_dagster.destinations.bigquery.parquet import ParquetFile
from etl_dagster.destinations.bigquery.types import NativeType, native_type
from etl_dagster.model import Column, PgType

ROWS = 1_000_000
BATCH_ROWS = 64 * 1024
ROUNDS = 5
_MONEY = ((12 << 16) | 2) + 4  # numeric(12,2)
_CONFIG = BigQueryConfig(project="benchmark", dataset="benchmark")

_TYPES = {
    "int8": PgType(oid=20, name="bigint"),
    "int4": PgType(oid=23, name="integer"),
    "bool": PgType(oid=16, name="boolean"),
    "numeric": PgType(oid=1700, name="numeric(12,2)", typmod=_MONEY),
    "text 20": PgType(oid=25, name="text"),
    "text 60": PgType(oid=25, name="text"),
    "timestamptz": PgType(oid=1184, name="timestamp with time zone"),
    "date": PgType(oid=1082, name="date"),
    "uuid": PgType(oid=2950, name="uuid"),
    "jsonb": PgType(oid=3802, name="jsonb"),
}
_COLUMNS = [Column(attnum=i + 1, name=name, type=type_) for i, (name, type_) in enumerate(_TYPES.items())]
_NATIVE: list[NativeType] = [native_type(column, _CONFIG) for column in _COLUMNS]


def _text(template: str, numbers: np.ndarray[tuple[int], np.dtype[np.int64]], length: int) -> pa.Array:
    text = pc.binary_join_element_wise(template, array_of(numbers).cast(pa.string()), " ")
    return pc.utf8_slice_codeunits(pc.utf8_rpad(text, length, "x"), 0, length)


def _rows(count: int) -> pa.Table:
    """Values as different from each other as those of a table usually are."""
    random = np.random.default_rng(0)
    ids = np.arange(count, dtype=np.int64)
    some = random.integers(0, 100_000, count)
    documents = pc.binary_join_element_wise('{"n": ', array_of(some).cast(pa.string()), ', "of": [1, 2.5]}', "")
    values = [
        array_of(ids),
        array_of(some.astype(np.int32)),
        pc.less(array_of(some), 50_000),
        array_of(random.integers(0, 10**7, count)).cast(pa.decimal128(21, 2)),
        _text("customer", some, 20),
        _text("a note that somebody wrote about it", ids, 60),
        array_of(1_700_000_000_000_000 + ids * 1_234_567).view(pa.timestamp("us", "UTC")),
        array_of((19_000 + ids % 1000).astype(np.int32)).view(pa.date32()),
        pa.Array.from_buffers(pa.binary(16), count, [None, pa.py_buffer(random.bytes(16 * count))]),
        documents,
    ]
    arrays = [
        pa.ExtensionArray.from_storage(type_, value) if isinstance(type_, pa.BaseExtensionType) else value.cast(type_)
        for type_, value in zip(map(column_type, _COLUMNS), values, strict=True)
    ]
    return pa.table(arrays, names=list(_TYPES))


def ours(rows: pa.Table) -> int:
    """Encode and write batch by batch, as chunks of a copy come; returns the file's size."""
    file = ParquetFile()
    for batch in rows.to_batches(max_chunksize=BATCH_ROWS):
        encoded = [encode(column, native) for column, native in zip(batch.columns, _NATIVE, strict=True)]
        file.append(pa.RecordBatch.from_arrays(encoded, names=rows.column_names))
    return file.finish()


def plain(rows: pa.Table) -> int:
    """The values as they are, by what Parquet holds them as."""
    columns = [
        pa.chunked_array([chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk for chunk in column.chunks])
        for column in rows.columns
    ]
    with TemporaryFile() as file:
        pq.write_table(pa.table(columns, names=rows.column_names), file)
        return file.tell()


def _seconds(run: Callable[[], int]) -> tuple[float, int]:
    start = time.perf_counter()
    size = run()
    return time.perf_counter() - start, size


def main() -> None:
    """Measure both in turn, and print the best of each."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    pa.set_cpu_count(1)
    rows = _rows(ROWS)
    best: dict[str, tuple[float, int]] = {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ours(rows)
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    for contender in (ours, plain) * ROUNDS:
        taken = _seconds(partial(contender, rows))
        best[contender.__name__] = min(taken, best.get(contender.__name__, taken))
    for each, (seconds, size) in best.items():
        print(f"{each:>6}: {ROWS / seconds:>10,.0f} rows/s, {size / 1e6:.0f} MB")
    figures = {
        "bigquery_encoding_rows_per_s": round(ROWS / best["ours"][0]),
        "bigquery_encoding_vs_write_table": round(best["plain"][0] / best["ours"][0], 2),
        "bigquery_encoding_more_rss_mb": round(more / 1024),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
