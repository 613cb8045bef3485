"""From a config to an open store; drivers are imported only for the store that needs them."""

from __future__ import annotations

from etl_dagster.store.base import Store
from etl_dagster.store.config import MemoryStoreConfig, PostgresStoreConfig, SqliteStoreConfig


def open_store(config: MemoryStoreConfig | SqliteStoreConfig | PostgresStoreConfig, pipeline: str) -> Store:
    """The pipeline's store, open.

    Raises:
        StateError: It cannot be opened.
    """
    store = _build(config, pipeline)
    store.open()
    return store


def _build(config: MemoryStoreConfig | SqliteStoreConfig | PostgresStoreConfig, pipeline: str) -> Store:
    match config:
        case MemoryStoreConfig():
            from etl_dagster.store.memory import MemoryStore

            return MemoryStore()
        case SqliteStoreConfig(path=path):
            from etl_dagster.store.sqlite import SqliteStore

            return SqliteStore(path, pipeline)
        case PostgresStoreConfig():
            from etl_dagster.store.postgres import PostgresStore

            return PostgresStore(config, pipeline)
