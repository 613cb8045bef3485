"""Messages kept raw, and read back."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from etl_dagster.arrow import binary_array
from etl_dagster.errors import ProtocolError
from etl_dagster.model import RawChanges
from etl_dagster.pgoutput.messages import truncate_of
from etl_dagster.pgoutput.stories import Feed, Rows, Story
from etl_dagster.pgoutput.transactions import Places
from etl_dagster.pgoutput.tuples import Messages
from etl_dagster.pgwire import Fields, padded


def keep(relation: int, story: Story, feed: Feed) -> RawChanges:
    """All messages about one relation. A truncate of several names this one alone."""
    rows = story.all_rows
    ordinal = feed.places.ordinal(rows)
    announced = np.isin(rows, story.announcements)
    message = _raw(feed.messages, rows)
    text = pa.nulls(len(rows), pa.binary()) if feed.text is None else _raw(feed.text, rows)
    if story.truncates:
        truncated = np.isin(rows, story.truncates)
        message = _replaced(message, truncated, relation)
        text = text if feed.text is None else _replaced(text, truncated, relation)
    return RawChanges(
        lsn=feed.places.lsn(rows),
        ordinal=ordinal + announced,  # counted are changes only: an announcement has the place of what follows it
        timestamp=feed.places.timestamp(rows),
        xid=feed.places.xid(rows),
        message=message,
        text=text,
    )


def open_raw(raw: RawChanges) -> Feed:
    """Messages as they were fed. One without text stands for its text too, so that its values show that it lacks it."""
    places = Places(
        transaction=np.arange(len(raw)),
        rank=raw.ordinal,
        lsns=raw.lsn,
        times=raw.timestamp,
        first_ranks=np.zeros(len(raw), np.int64),
        xids=raw.xid,
    )
    texts = None if raw.text.null_count == len(raw) else _messages(pc.coalesce(raw.text, raw.message))
    return Feed(_messages(raw.message), texts, places)


def _raw(messages: Messages, rows: Rows) -> pa.Array:
    at = messages.at[rows]
    return binary_array(Fields(messages.data, at, (messages.ends[rows] - at).astype(np.int32)))


def _replaced(messages: pa.Array, truncated: npt.NDArray[np.bool_], relation: int) -> pa.Array:
    alone = [truncate_of(message.as_py(), relation) for message in messages.filter(pa.array(truncated))]
    return pc.replace_with_mask(messages, pa.array(truncated), pa.array(alone, pa.binary()))


def _messages(raw: pa.Array) -> Messages:
    if raw.null_count:
        raise ProtocolError("A held message is missing", offset=0, need=1, have=0)
    _, offset_buffer, data_buffer = raw.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32)[raw.offset : raw.offset + len(raw) + 1].astype(np.int64)
    data = padded(memoryview(data_buffer)[int(offsets[0]) : int(offsets[-1])])
    at, ends = offsets[:-1] - offsets[0], offsets[1:] - offsets[0]
    if not (at < ends).all():
        raise ProtocolError("A held message is empty", offset=int(at[np.argmin(at < ends)]), need=1, have=0)
    return Messages(data, at, ends, data[at])
