"""Bytes as the server sends them: protocol messages and COPY tuples. No I/O."""

from etl_dagster.pgwire.frames import CopyOutStream, Frames, frames_from_messages
from etl_dagster.pgwire.gather import PADDING, gather, padded
from etl_dagster.pgwire.tuples import Fields, check, split_copy_rows

__all__ = [
    "PADDING",
    "CopyOutStream",
    "Fields",
    "Frames",
    "check",
    "frames_from_messages",
    "gather",
    "padded",
    "split_copy_rows",
]
