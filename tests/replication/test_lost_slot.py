"""A slot, a destination or a state that vanished is never passed over in silence."""

from __future__ import annotations

import pytest

from etl_dagster.errors import StateError
from etl_dagster.store.base import TableState


def _begin(scenario) -> str:
    scenario.execute(
        "create table t (id int primary key, v text)", "insert into t select i, 'v' || i from generate_series(1, 50) i"
    )
    scenario.sync()
    return scenario.pipeline.config.source.slot.name


def test_a_missing_slot_leads_to_a_fresh_copy_and_says_so(scenario) -> None:
    slot = _begin(scenario)
    scenario.execute(
        f"select pg_drop_replication_slot('{slot}')",
        "update t set v = 'unseen' where id = 1",
        "delete from t where id = 2",
    )
    summary = scenario.sync()
    assert any("gone" in notice and slot in notice for notice in summary.notices)
    assert scenario.state("t") is TableState.READY
    scenario.assert_equal("t")


def test_a_slot_made_anew_by_somebody_else_is_noticed(scenario) -> None:
    slot = _begin(scenario)
    scenario.execute(
        f"select pg_drop_replication_slot('{slot}')",
        "update t set v = 'unseen' where id = 1",
        f"select pg_create_logical_replication_slot('{slot}', 'pgoutput')",
    )
    summary = scenario.sync()
    assert any("made anew" in notice for notice in summary.notices)
    scenario.assert_equal("t")


def test_a_slot_that_somebody_advanced_is_noticed(scenario) -> None:
    slot = _begin(scenario)
    scenario.execute(
        "delete from t where id = 3", f"select pg_replication_slot_advance('{slot}', pg_current_wal_flush_lsn())"
    )
    summary = scenario.sync()
    assert any("moved" in notice for notice in summary.notices)
    scenario.assert_equal("t")


def test_a_destination_that_lost_its_file_is_filled_again(scenario) -> None:
    _begin(scenario)
    (scenario.folder / "warehouse.duckdb").unlink()
    scenario.execute("update t set v = 'after' where id = 4")
    scenario.use()
    scenario.sync()
    scenario.assert_equal("t")


def test_a_destination_restored_from_an_old_backup_is_noticed(scenario) -> None:
    _begin(scenario)
    file = scenario.folder / "warehouse.duckdb"
    backup = file.read_bytes()
    scenario.execute("update t set v = 'later' where id < 20")
    scenario.sync()
    scenario.pipeline.close()
    file.write_bytes(backup)
    scenario.use()
    summary = scenario.sync()
    assert summary.tables
    scenario.assert_equal("t")


def test_state_that_was_lost_leads_to_a_fresh_copy_from_the_slot_there_is(scenario) -> None:
    _begin(scenario)
    scenario.pipeline.close()
    for file in scenario.folder.glob("state.sqlite*"):
        file.unlink()
    scenario.execute("update t set v = 'after' where id = 4", "delete from t where id = 5")
    scenario.use()
    scenario.sync()
    scenario.assert_equal("t")


def test_state_of_another_cluster_is_refused(scenario) -> None:
    _begin(scenario)
    store = scenario.pipeline._own_store()
    store.save_slot(store.slot().model_copy(update={"system_id": "1"}))
    store.close()
    with pytest.raises(StateError, match="another database cluster"):
        scenario.sync()
