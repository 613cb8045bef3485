"""Random histories of a table, against what a source would hold."""

from __future__ import annotations

import pytest

from etl_dagster.destinations.base import Destination
from etl_dagster.testing.destination_contract.place import Place, Suite, content, copied
from etl_dagster.testing.replay import History


class HistoryContract(Suite):
    """Random histories of a table, against what a source would hold."""

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
