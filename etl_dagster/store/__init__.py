"""What the engine remembers between processes."""

from etl_dagster.store.base import (
    HISTORY_LENGTH,
    ChunkRecord,
    Request,
    RequestKind,
    SchemaStore,
    SchemaVersion,
    SlotRecord,
    StateStore,
    Store,
    TableMapping,
    TableRecord,
    TableState,
)
from etl_dagster.store.config import MemoryStoreConfig, PostgresStoreConfig, SqliteStoreConfig, StoreConfig
from etl_dagster.store.opening import open_store

__all__ = [
    "HISTORY_LENGTH",
    "ChunkRecord",
    "MemoryStoreConfig",
    "PostgresStoreConfig",
    "Request",
    "RequestKind",
    "SchemaStore",
    "SchemaVersion",
    "SlotRecord",
    "SqliteStoreConfig",
    "StateStore",
    "Store",
    "StoreConfig",
    "TableMapping",
    "TableRecord",
    "TableState",
    "open_store",
]
