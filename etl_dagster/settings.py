"""Settings of the engine; every default is a named constant with its reason."""

from __future__ import annotations

from pydantic import Field

from etl_dagster.model import FrozenModel

# A window costs a fixed re-read of the WAL between the slot's restart and confirmed positions, so it should be big; a
# destination holds what a batch changes until it commits, so four times as many take 150 MB more and save nothing.
MAX_WINDOW_CHANGES = 250_000
MIN_WINDOW_CHANGES = 20_000
TARGET_WINDOW_SECONDS = 5.0
# A window over WAL that holds nothing for us is repeated from its start after a kill, so it is bounded too.
MAX_WINDOW_WAL_BYTES = 1024 * 1024 * 1024
# One merge scans the destination's key column once, so pieces should be big; a piece is held in memory twice.
PIECE_BYTES = 24 * 1024 * 1024
# Small enough to repeat after a kill and to spread over connections, large enough that its fixed costs vanish.
CHUNK_BYTES = 64 * 1024 * 1024
COPY_CONNECTIONS = 2
# Each has a change log at the destination and a place in every look at locks; those of thousands would be in the way.
COPYING_TABLES = 64
IDLE_POLL_SECONDS = 0.2
BUSY_SLOT_TIMEOUT_SECONDS = 60.0
BARRIER_NOTICE_SECONDS = 10.0
# How often a following process asks the catalogue for tables that joined or left the publication.
REFRESH_SECONDS = 10.0


class ReplicationSettings(FrozenModel):
    """How the engine works; nothing here changes what arrives."""

    max_window_changes: int = Field(MAX_WINDOW_CHANGES, ge=1, description="Most change messages read in one window")
    min_window_changes: int = Field(MIN_WINDOW_CHANGES, ge=1, description="Fewest change messages worth a window")
    max_window_wal_bytes: int = Field(MAX_WINDOW_WAL_BYTES, ge=65536, description="Most WAL scanned in one window")
    target_window_seconds: float = Field(TARGET_WINDOW_SECONDS, gt=0, description="Time one window should take")
    piece_bytes: int = Field(PIECE_BYTES, ge=1024, description="Bytes of decoded changes merged at once")
    chunk_bytes: int = Field(CHUNK_BYTES, ge=8192, description="Heap bytes of one chunk of a copy")
    copy_connections: int = Field(COPY_CONNECTIONS, ge=1, le=64, description="Connections that copy at once")
    copying_tables: int = Field(COPYING_TABLES, ge=1, description="Tables whose copies are under way at once")
    idle_poll_seconds: float = Field(IDLE_POLL_SECONDS, gt=0, description="Pause of `follow` when nothing changed")
    busy_slot_timeout_seconds: float = Field(
        BUSY_SLOT_TIMEOUT_SECONDS, ge=0, description="How long to wait for a slot that a dead client still holds"
    )
    refresh_seconds: float = Field(
        REFRESH_SECONDS,
        gt=0,
        description="How often the publication is looked at again; seldomer where it holds thousands of tables",
    )
    barrier_notice_seconds: float = Field(
        BARRIER_NOTICE_SECONDS, gt=0, description="After how long a copy says which transactions it waits for"
    )
