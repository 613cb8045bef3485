"""Reading big-endian integers at many places of one buffer at once.

Every buffer that leaves `etl_dagster.pgwire` ends in `PADDING` bytes that belong to nobody. So a decoder may read the
fixed head of a value (24 bytes, for an array) wherever a value can begin, and look at the lengths afterwards.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.int64]

PADDING = 32
_SWAP = sys.byteorder == "little"


def padded(*parts: bytes | bytearray | memoryview) -> Bytes:
    """The parts, joined, in a buffer of our own with `PADDING` zero bytes behind."""
    buffer = np.empty(sum(len(part) for part in parts) + PADDING, np.uint8)
    at = 0
    for part in parts:
        buffer[at : at + len(part)] = np.frombuffer(part, np.uint8)
        at += len(part)
    buffer[at:] = 0
    return buffer


def gather(data: Bytes, at: Positions, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """The big-endian integers of type ``dtype`` that begin at each position ``at``.

    Indexing a view whose stride is one byte reads unaligned words without a copy of the buffer (``take`` would make
    one), and swapping afterwards in place is cheaper than indexing a big-endian view and converting it.
    """
    kind = np.dtype(dtype)
    view: npt.NDArray[Any] = np.ndarray((len(data) - kind.itemsize + 1,), kind, buffer=data, strides=(1,))
    found: npt.NDArray[Any] = view[at]
    return found.byteswap(inplace=True) if _SWAP else found
