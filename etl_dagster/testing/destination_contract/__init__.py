"""The behaviour that every destination owes; authors of destinations run it against theirs.

Provide the fixture ``place`` in a test module and subclass the suites::

    @pytest.fixture
    def place(tmp_path: Path) -> Iterator[Place]:
        place = Place(lambda: MyDestination(MyConfig(path=tmp_path / "x")))
        yield place
        place.close()

    class TestStream(StreamContract): ...
    class TestCopy(CopyContract): ...
    class TestTables(TableContract): ...
    class TestColumns(ColumnContract): ...
    class TestHeld(HeldContract): ...
    class TestSoftDelete(SoftDeleteContract): ...
    class TestChangelog(ChangelogContract): ...
    class TestHistory(HistoryContract): ...
    class TestSlices(SliceContract): ...
    class TestSliceSoftDelete(SliceSoftDeleteContract): ...
"""

from etl_dagster.testing.destination_contract.changelog import ChangelogContract
from etl_dagster.testing.destination_contract.columns import ColumnContract
from etl_dagster.testing.destination_contract.copies import CopyContract
from etl_dagster.testing.destination_contract.held import HeldContract
from etl_dagster.testing.destination_contract.histories import HistoryContract
from etl_dagster.testing.destination_contract.place import Place, chunk, content, copied, landed, origin
from etl_dagster.testing.destination_contract.slices import SliceContract, SliceSoftDeleteContract
from etl_dagster.testing.destination_contract.soft_delete import SoftDeleteContract
from etl_dagster.testing.destination_contract.stream import StreamContract
from etl_dagster.testing.destination_contract.tables import TableContract

__all__ = [
    "ChangelogContract",
    "ColumnContract",
    "CopyContract",
    "HeldContract",
    "HistoryContract",
    "Place",
    "SliceContract",
    "SliceSoftDeleteContract",
    "SoftDeleteContract",
    "StreamContract",
    "TableContract",
    "chunk",
    "content",
    "copied",
    "landed",
    "origin",
]
