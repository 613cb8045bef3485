"""A project over a fresh database with two tables, on an instance that lasts as long as the test."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from tests.orchestration.project import Project


@pytest.fixture
def instance() -> Any:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


@pytest.fixture
def project(database: str, tmp_path: Path, connect: Any, instance: dg.DagsterInstance) -> Project:
    source = connect()
    source.execute("create schema shop")
    source.execute("create table shop.orders (id bigint primary key, status text not null, amount numeric(12,2))")
    source.execute("create table shop.items (order_id bigint, line int, what text, primary key (order_id, line))")
    source.execute("insert into shop.orders select n, 'placed', n / 3.0 from generate_series(1, 1000) n")
    source.execute("insert into shop.items select n, 1, 'thing ' || n from generate_series(1, 500) n")
    return Project(database, tmp_path, source, instance)
