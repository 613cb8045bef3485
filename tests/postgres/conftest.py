"""A source over the test's own database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from uuid import uuid4

import pytest

from etl_dagster.postgres import PostgresConfig, PostgresSource, PublicationConfig, SlotConfig, SourceConfig

MakeSource = Callable[..., PostgresSource]


def source_config(dsn: str, **publication: object) -> SourceConfig:
    """A config with a slot name of its own; by default everything is published."""
    named = {"name": "p", **(publication or {"all_tables": True})}
    return SourceConfig(
        connection=PostgresConfig(dsn=dsn),
        publication=PublicationConfig.model_validate(named),
        slot=SlotConfig(name=f"s_{uuid4().hex[:12]}"),
    )


@pytest.fixture
def make_source(database: str) -> Iterator[MakeSource]:
    """Sources over the test's database; all are closed afterwards."""
    with ExitStack() as opened:

        def make(config: SourceConfig | None = None, *, through_libpq: bool = False) -> PostgresSource:
            source = PostgresSource(config or source_config(database), through_libpq=through_libpq)
            opened.callback(source.close)
            return source

        yield make


@pytest.fixture
def source(make_source: MakeSource) -> PostgresSource:
    """A source that publishes every table."""
    return make_source()
