"""What an idle slot keeps back: it moves with the cluster's WAL, and no further than the last record of running
transactions, which the server writes every 15 seconds and at each checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from etl_dagster.postgres import PostgresSource
from tests.conftest import NewServer
from tests.postgres.conftest import source_config

MEGABYTE = 1_000_000


@pytest.fixture
def busy_and_idle(new_server: NewServer) -> Iterator[tuple[psycopg.Connection[Any], PostgresSource]]:
    """Two databases of one server: a connection to the one that is written, and the source in the other."""
    with new_server() as server, psycopg.connect(server.dsn, autocommit=True) as busy:
        busy.execute("create database idle")
        busy.execute("create table w(v text)")
        with psycopg.connect(server.dsn_for("idle"), autocommit=True) as admin:
            admin.execute("create table t(id int primary key); create publication p for table t")
        source = PostgresSource(source_config(server.dsn_for("idle"), create=False))
        source.create_slot()
        yield busy, source
        source.close()


def retained(source: PostgresSource) -> int:
    """WAL kept back after the slot was moved to the end."""
    source.advance_slot(source.current_position())
    status = source.slot()
    assert status is not None
    return status.retained_bytes


def write(busy: psycopg.Connection[Any]) -> None:
    busy.execute("insert into w select repeat('x', 1000) from generate_series(1, 5000)")


def test_an_idle_database_beside_a_busy_one_keeps_little_wal(
    busy_and_idle: tuple[psycopg.Connection[Any], PostgresSource],
) -> None:
    busy, source = busy_and_idle
    for _ in range(3):
        write(busy)
        assert retained(source) > 4 * MEGABYTE
        busy.execute("checkpoint")
        assert retained(source) < MEGABYTE / 10


def test_heartbeats_alone_move_the_position_and_not_what_is_kept(
    busy_and_idle: tuple[psycopg.Connection[Any], PostgresSource],
) -> None:
    busy, source = busy_and_idle
    write(busy)
    before = source.current_position()
    for _ in range(3):
        source.heartbeat()
        assert retained(source) > 4 * MEGABYTE
    assert source.current_position() > before
    busy.execute("checkpoint")
    source.heartbeat()
    assert retained(source) < MEGABYTE / 10


def test_an_open_transaction_anywhere_in_the_cluster_keeps_wal(
    busy_and_idle: tuple[psycopg.Connection[Any], PostgresSource],
) -> None:
    busy, source = busy_and_idle
    with psycopg.connect(busy.info.dsn) as writer:
        writer.execute("insert into w values ('open')")
        write(busy)
        busy.execute("checkpoint")
        assert retained(source) > 4 * MEGABYTE
        writer.commit()
        busy.execute("checkpoint")
        assert retained(source) < MEGABYTE / 10
