"""Parts of a table that are copied one by one."""

from __future__ import annotations

from dataclasses import dataclass

from etl_dagster.model.slices import Slice


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """One range of heap blocks of one relation (the table or a leaf partition), or of the rows there within a slice.

    A rewrite of the relation (VACUUM FULL, CLUSTER) gives it another ``filenode`` and moves its rows between blocks
    without any change in the stream, so chunks of two files must never be mixed.

    Attributes:
        relation: OID of the relation; that of a partitioned table stands for all its leaves.
        filenode: Its file when it was planned; 0 where no file matters, because blocks do not.
        first_block: First heap block of the range.
        last_block: First block after the range; None: all that follow.
        rows: Rows expected.
        bytes: Bytes of the heap expected.
        slice: Only these rows of the range: the slice that is copied, or a part of it.
    """

    relation: int
    filenode: int
    first_block: int
    last_block: int | None
    rows: int
    bytes: int = 0
    slice: Slice | None = None
