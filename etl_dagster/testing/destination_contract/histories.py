"""Random histories of a table, against what a source would hold and what the reference holds."""

from __future__ import annotations

import pytest

from etl_dagster.destinations.base import Destination
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.errors import RowIncomplete
from etl_dagster.model import Landing
from etl_dagster.testing.change_script import make_batch
from etl_dagster.testing.destination_contract.place import Place, Suite, content, copied, landed, present
from etl_dagster.testing.evolution import Evolution
from etl_dagster.testing.replay import History, lsn_of


class HistoryContract(Suite):
    """Random histories of a table."""

    @pytest.fixture
    def reference(self) -> MemoryDestination:
        return MemoryDestination()

    @pytest.mark.parametrize("seed", range(12))
    def test_a_streamed_history_ends_as_at_the_source(self, destination: Destination, seed: int) -> None:
        history = History.random(seed, transactions=60)
        copied(destination, history.table, history.rows_after(-1), at=0)
        for first, last in history.cuts(seed, upto=60):
            destination.write_events(history.batch(first, last, pieces=1 + seed % 3))
            assert content(destination, history.table) == history.sorted_rows(last)

    @pytest.mark.parametrize("seed", range(12))
    def test_a_copy_during_a_history_ends_as_at_the_source(self, place: Place, seed: int) -> None:
        history = History.random(seed + 1000, transactions=80)
        end = history.copy_into(place.destination, seed, place.reopen)
        assert content(place.destination, history.table) == history.sorted_rows(end)
        place.destination.write_events(history.batch(end + 1, 79))
        assert content(place.destination, history.table) == history.sorted_rows(79)

    @pytest.mark.parametrize("landing", [Landing.SOFT_DELETE, Landing.CHANGELOG])
    @pytest.mark.parametrize("seed", range(5))
    def test_a_streamed_history_lands_as_in_the_reference(
        self, destination: Destination, reference: MemoryDestination, seed: int, landing: Landing
    ) -> None:
        history = History.random(seed + 2000, transactions=60, landing=landing)
        for each in (destination, reference):
            copied(each, history.table, history.rows_after(-1), at=0)
        for first, last in history.cuts(seed, upto=60):
            for each in (destination, reference):
                each.write_events(history.batch(first, last, pieces=1 + seed % 3))
            assert landed(destination, history.table) == landed(reference, history.table)
            assert present(destination, history.table) == history.sorted_rows(last)

    @pytest.mark.parametrize("landing", [Landing.SOFT_DELETE, Landing.CHANGELOG])
    @pytest.mark.parametrize("seed", range(5))
    def test_a_copy_during_a_history_lands_as_in_the_reference(
        self, place: Place, reference: MemoryDestination, seed: int, landing: Landing
    ) -> None:
        history = History.random(seed + 3000, transactions=80, landing=landing)
        end = history.copy_into(place.destination, seed, place.reopen)
        assert history.copy_into(reference, seed, lambda: reference) == end
        assert landed(place.destination, history.table) == landed(reference, history.table)
        assert present(place.destination, history.table) == history.sorted_rows(end)
        # Once more, now over a table that is there.
        end = history.copy_into(place.destination, seed + 50, place.reopen)
        assert history.copy_into(reference, seed + 50, lambda: reference) == end
        assert landed(place.destination, history.table) == landed(reference, history.table)
        assert present(place.destination, history.table) == history.sorted_rows(end)

    @pytest.mark.parametrize("landing", [Landing.MIRROR, Landing.SOFT_DELETE])
    @pytest.mark.parametrize("seed", range(6))
    def test_rows_that_enter_a_filter_are_refused_or_right(
        self, destination: Destination, seed: int, landing: Landing
    ) -> None:
        history = History.random(seed + 4000, transactions=60, landing=landing, entering=0.15)
        copied(destination, history.table, history.rows_after(-1), at=0)
        for first, last in history.cuts(seed, upto=60):
            try:
                destination.write_events(history.batch(first, last, pieces=1 + seed % 3))
            except RowIncomplete:
                destination.drop_table(history.table.id)
                rows = history.rows_after(last)
                copied(destination, history.table, rows, copy_id=f"c{last}", at=lsn_of(last + 1))
            assert present(destination, history.table) == history.sorted_rows(last)

    @pytest.mark.parametrize("landing", [Landing.MIRROR, Landing.SOFT_DELETE])
    @pytest.mark.parametrize("seed", range(6))
    def test_rows_that_enter_a_filter_during_a_copy_end_as_at_the_source(
        self, place: Place, seed: int, landing: Landing
    ) -> None:
        history = History.random(seed + 5000, transactions=100, landing=landing, entering=0.5)
        end = history.copy_into(place.destination, seed, place.reopen)
        assert present(place.destination, history.table) == history.sorted_rows(end)

    @pytest.mark.parametrize("landing", list(Landing))
    @pytest.mark.parametrize("seed", range(5))
    def test_columns_that_change_land_as_in_the_reference(
        self, destination: Destination, reference: MemoryDestination, seed: int, landing: Landing
    ) -> None:
        history = Evolution(seed, landing, transactions=50)
        for each in (destination, reference):
            copied(each, history.schema(-1), history.rows_after(-1), at=0)
        table = history.schema(-1)
        for last, pieces in history.batches(seed):
            for each in (destination, reference):
                each.write_events(make_batch(lsn_of(last + 1), pieces))
            table = pieces[-1][-1].table if pieces else table
            assert landed(destination, table) == landed(reference, table)
            if landing is not Landing.CHANGELOG and table == history.schema(last):
                assert present(destination, table) == history.rows_after(last)
