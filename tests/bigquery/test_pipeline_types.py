"""Every type that PostgreSQL lists, as a column, into BigQuery: what is copied and what is streamed, within queries or not.

PostgreSQL is the oracle: types are those that it lists, values those that it makes, and it judges what came back.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from etl_dagster.model import ValuePolicy
from etl_dagster.model.choices import TableDefaults
from etl_dagster.pipeline import Pipeline
from tests.types.conftest import Everything, everything
from tests.types.test_every_type import check_equal, config_of, sync, write
from tests.types.walk import execute

if TYPE_CHECKING:
    from tests.bigquery.fixtures import Dataset

__all__ = ["everything"]


@pytest.fixture(params=[1 << 20, 0], ids=["within queries", "by load jobs"])
def pipeline(
    request: pytest.FixtureRequest, everything: Everything, tmp_path: Path, bigquery_dataset: Dataset
) -> Iterator[Pipeline]:
    changes = {
        "destination": bigquery_dataset.config(batch_seconds=0, inline_bytes=request.param),
        "defaults": TableDefaults(values=ValuePolicy.TEXT),
    }
    made = Pipeline(config_of(everything.dsn, tmp_path).model_copy(update=changes))
    yield made
    made.close()


def test_every_type_arrives_as_it_was(everything: Everything, pipeline: Pipeline) -> None:
    for filled in everything.tables:
        execute(everything.walk.connection, f"truncate {filled.name}")
        execute(everything.walk.connection, f"insert into {filled.name} select * from {filled.name}_source")
    sync(pipeline)
    check_equal(pipeline, everything)
    for filled in everything.tables:
        execute(everything.walk.connection, f"update {filled.name} set id = -id - 1 where id % 3 = 0")
        write(everything, filled, every=3)
        execute(everything.walk.connection, f"delete from {filled.name} where id < -4")
    sync(pipeline)
    check_equal(pipeline, everything)
