"""Records as stored text: JSON that a later version may extend with fields that have a default."""

from __future__ import annotations

from typing import TypeVar

from pydantic import ValidationError

from etl_dagster.errors import InternalError, StateError
from etl_dagster.model import FrozenModel
from etl_dagster.store.base import ChunkRecord

Record = TypeVar("Record", bound=FrozenModel)

# How pydantic calls what only a newer version can have written.
_FROM_NEWER = frozenset({"extra_forbidden", "enum", "literal_error"})


def encode(record: FrozenModel) -> str:
    """The record as JSON."""
    return record.model_dump_json(by_alias=True)


def decode(kind: type[Record], text: str) -> Record:
    """Read a record back; fields that it lacks take their default.

    Raises:
        StateError: A newer version wrote it, or it is no such record.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        problems = error.errors(include_input=False, include_url=False, include_context=False)
        names = ", ".join(".".join(map(str, problem["loc"])) or "JSON" for problem in problems)
        newer = any(problem["type"] in _FROM_NEWER for problem in problems)
        raise StateError(
            f"The state store holds a {kind.__name__} that this version cannot read ({names})",
            hint="A newer etl-dagster wrote it: upgrade this installation" if newer else "Restore it from a backup",
        ) from error


def finished(planned: ChunkRecord | None, chunk: ChunkRecord, copy_id: str) -> ChunkRecord:
    """What the ledger holds once ``chunk`` is done, given what it holds now."""
    if not chunk.done or chunk.seen_lsn is None:
        raise InternalError(f"Chunk {chunk.chunk_id} of copy {copy_id} is not done")
    if planned is None:
        raise StateError(
            f"Chunk {chunk.chunk_id} is not in the ledger of copy {copy_id}",
            hint="Its copy was started over meanwhile; the new copy reads these rows again",
        )
    if planned.seen_lsn is not None and planned.seen_lsn > chunk.seen_lsn:
        return planned
    return chunk
