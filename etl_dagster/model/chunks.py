"""Parts of a table that are copied one by one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """One range of heap blocks of one relation (the table or a leaf partition); without an end, all that follow.

    A rewrite of the relation (VACUUM FULL, CLUSTER) gives it another ``filenode`` and moves its rows between blocks
    without any change in the stream, so chunks of two files must never be mixed.
    """

    relation: int
    filenode: int
    first_block: int
    last_block: int | None
    rows: int
