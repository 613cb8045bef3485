"""Parts of a table that are copied one by one."""

from __future__ import annotations

from dataclasses import dataclass

from etl_dagster.model.slices import Slice


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """One range of heap blocks of one relation (the table or a leaf partition), or of the rows there within slices.

    A rewrite of the relation (VACUUM FULL, CLUSTER) gives it another ``filenode`` and moves its rows between blocks
    without any change in the stream, so chunks of two files must never be mixed.

    Attributes:
        relation: OID of the relation; that of a partitioned table stands for all its leaves.
        filenode: Its file when it was planned; 0 where no file matters, because blocks do not.
        first_block: First heap block of the range.
        last_block: First block after the range; None: all that follow.
        rows: Rows expected.
        bytes: Bytes of the heap expected.
        slices: Only the rows of the range that lie in one of these; empty: all. What is copied is named by the slices
            that were asked for; these are made of them, joined or cut, and their names say nothing.
        more: OIDs of further relations, which are read as a whole, or all of the slices in them.
    """

    relation: int
    filenode: int
    first_block: int
    last_block: int | None
    rows: int
    bytes: int = 0
    slices: tuple[Slice, ...] = ()
    more: tuple[int, ...] = ()
