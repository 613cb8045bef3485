"""However long a copy takes, the slot keeps back no more WAL than the traffic of one window."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from etl_dagster.model import ChunkPlan, TableId, TableSchema
from etl_dagster.pipeline import pipeline as composition
from etl_dagster.postgres import PostgresSource
from etl_dagster.store.base import TableState
from tests.replication.watching import catch_up, parts, running, step_until, sync

T = TableId("public", "t")
ROUNDS = 6
RULE = {"type": "range", "column": "id", "rows": 500}


def _held_back(scenario) -> int:
    """WAL that the slot keeps."""
    name = scenario.pipeline.config.source.slot.name
    query = f"select pg_current_wal_lsn() - restart_lsn from pg_replication_slots where slot_name = '{name}'"
    return int(scenario.source.execute(query).fetchone()[0])


def _written(scenario) -> int:
    return int(scenario.source.execute("select pg_current_wal_lsn() - '0/0'::pg_lsn").fetchone()[0])


@pytest.mark.parametrize("what", ["a first copy", "a re-sync", "slices"])
def test_the_slot_lets_go_of_wal_while_a_copy_takes_long(scenario, monkeypatch, what: str) -> None:
    may_end = threading.Event()
    reading = threading.Event()

    class SlowReader(PostgresSource):
        """Has its snapshots, and does not get on."""

        @contextmanager
        def read_chunk(self, table: TableSchema, plan: ChunkPlan) -> Iterator[Any]:
            with super().read_chunk(table, plan) as reader:
                if table.id == T:
                    reading.set()
                    assert may_end.wait(60)
                yield reader

    scenario.execute(
        "create table noise (id int primary key, v text)",
        "create table t (id int primary key, v text)",
        "insert into t select i, repeat('v', 100) from generate_series(1, 5000) i",
        "analyze t",
    )
    settings = {"chunk_bytes": 65536, "copy_connections": 2, "refresh_seconds": 0.2, "idle_poll_seconds": 0.01}
    scenario.use(**parts(scenario, replication=settings, tables={"public.t": {"partitions": RULE}}))
    if what != "a first copy":
        sync(scenario)
        names = [each.name for each in scenario.pipeline.plan_slices(T)] if what == "slices" else []
        scenario.pipeline.request_resync(T, names[1:3])
    monkeypatch.setattr(composition, "PostgresSource", SlowReader)
    with running(scenario) as replicator:
        step_until(replicator, reading.is_set)
        began, rounds, held = _written(scenario), [], []
        for number in range(ROUNDS):
            before = _written(scenario)
            scenario.execute(
                f"insert into noise select {number} * 10000 + i, repeat('n', 500) from generate_series(1, 10000) i",
                f"update noise set v = 'w' where id % 2 = 0 and id > {number} * 10000",
                f"update t set v = 'round {number}' where id % 50 = {number}",
                "checkpoint",  # tells the decoder which transactions run, as the server does every 15 seconds
            )
            goal = replicator._source.current_position()
            step_until(replicator, lambda goal=goal: replicator.position >= goal)
            rounds.append(_written(scenario) - before)
            held.append(_held_back(scenario))
        assert replicator.records[T].state is TableState.COPYING
        print(f"written {(_written(scenario) - began) >> 10} KiB, by round {[each >> 10 for each in rounds]},")
        print(f"held back after each {[each >> 10 for each in held]}")
        may_end.set()
        catch_up(replicator)
    assert max(held) < 1.5 * max(rounds)
    assert sum(rounds) > 4 * max(held)
    scenario.assert_equal("t", "noise")
