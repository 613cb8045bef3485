"""Which pools the copies of a pipeline take part in."""

from typing import Any

import dagster as dg
import pytest

from etl_dagster.config import PipelineConfig
from etl_dagster.orchestration import (
    DuckDBDestinationResource,
    PipelineParts,
    Pools,
    PostgresSourceResource,
    StoreResource,
    build_replication_defs,
)


def parts(name: str = "shop", dsn: str = "postgresql://me:pw@db.example/shop", path: str = "/data/w.duckdb") -> Any:
    return PipelineParts.of(
        PipelineConfig.model_validate(
            {
                "name": name,
                "source": {"connection": {"dsn": dsn}, "publication": {"all_tables": True}},
                "destination": {"type": "duckdb", "path": path},
                "store": {"type": "memory"},
            }
        )
    )


def test_pipelines_share_the_pool_of_what_they_share() -> None:
    one, two = Pools().of(parts()), Pools().of(parts("other", "host=db.example user=you dbname=shop port=5432"))
    assert one == two
    assert one.source.startswith("etl_source_db_example_5432_shop_")
    assert one.destination.startswith("etl_destination_duckdb__data_w_duckdb_")


@pytest.mark.parametrize(
    "dsn", ["postgresql://db.example:5433/shop", "postgresql://db2.example/shop", "host=db.example"]
)
def test_other_sources_have_other_pools(dsn: str) -> None:
    assert Pools().of(parts(dsn=dsn)).source != Pools().of(parts()).source


def test_other_destinations_have_other_pools() -> None:
    assert Pools().of(parts(path="/data/v.duckdb")).destination != Pools().of(parts()).destination


def test_names_tell_no_secret_and_are_ones_that_dagster_takes() -> None:
    names = Pools().of(parts(dsn="postgresql://me:s3cr3t@db.example/a%20very-odd%20näme" + "x" * 80))
    assert "s3cr3t" not in str(names)
    assert names.source.isidentifier()
    assert len(names.source) < 100


def test_a_pool_can_be_named() -> None:
    given = Pools(source="crm", destination="lake").of(parts())
    assert (given.source, given.destination) == ("crm", "lake")


def test_a_run_of_copies_counts_in_both_pools_and_a_micro_batch_in_none() -> None:
    defs = build_replication_defs(parts(), tables=["shop.orders"], pools=Pools(source="crm", destination="lake"))
    pools = {
        name: defs.resolve_job_def(name).graph for name in ("shop__resync_all", "shop__micro_batch", "shop__resume")
    }
    found = {name: {op.pool for op in graph.iterate_op_defs() if op.pool} for name, graph in pools.items()}
    assert found == {"shop__resync_all": {"crm", "lake"}, "shop__micro_batch": set(), "shop__resume": {"crm"}}


def test_a_source_whose_variable_is_not_set_has_the_pool_of_its_pipeline() -> None:
    unset = PipelineParts(
        name="unset",
        source=PostgresSourceResource(dsn=dg.EnvVar("A_VARIABLE_THAT_NOBODY_SETS"), all_tables=True),
        destination=DuckDBDestinationResource(path="unset.duckdb"),
        store=StoreResource(),
    )
    assert Pools().of(unset).source == "etl_source_unset"
