"""A Dagster project into BigQuery: first copy, micro-batches and copies by hand, through the resource."""

from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import psycopg
from dagster_gcp import BigQueryResource

from etl_dagster.orchestration import (
    BigQueryDestinationResource,
    PipelineParts,
    PostgresSourceResource,
    ReplicationTranslator,
    StoreResource,
    build_replication_defs,
)
from etl_dagster.pipeline import Pipeline
from tests.orchestration.project import ORDERS, QUIET, Project

if TYPE_CHECKING:
    from tests.bigquery.fixtures import Dataset


def test_a_project_replicates_into_bigquery(
    project: Project, database: str, tmp_path: Path, bigquery_dataset: "Dataset"
) -> None:
    settings = bigquery_dataset.settings()
    parts = PipelineParts(
        name="far",
        source=PostgresSourceResource(
            dsn=database, schemas=["shop"], slot=f"far_{psycopg.conninfo.conninfo_to_dict(database)['dbname']}"
        ),
        destination=BigQueryDestinationResource(
            bigquery=BigQueryResource(project=bigquery_dataset.project),
            dataset=bigquery_dataset.name,
            batch_seconds=0.0,
            options={name: settings[name] for name in ("credentials", "api_endpoint", "storage_api_endpoint")},
        ),
        store=StoreResource(path=str(tmp_path / "far.sqlite")),
    )
    defs = build_replication_defs(parts, tables=["shop.orders", "shop.items"])

    def run(job: str, **options: object) -> None:
        result = defs.resolve_job_def(job).execute_in_process(
            instance=project.instance,
            run_config=QUIET,
            **options,  # type: ignore[arg-type]
        )
        assert result.success

    run("far__micro_batch")
    project.execute("delete from shop.orders where id <= 10", "update shop.items set what = 'new' where order_id = 7")
    run("far__micro_batch")
    run("far__resync_all", partition_key="all")
    pipeline = Pipeline(parts.config_now())
    try:
        found = pipeline.compare()
    finally:
        pipeline.close()
    assert {table: difference.equal for table, difference in found.items()} == dict.fromkeys(found, True)
    assert found[ORDERS].rows == 990
    (latest,) = project.instance.fetch_observations(ReplicationTranslator("far", "bigquery").slot_key, limit=1).records
    assert latest.asset_observation is not None
    told = latest.asset_observation.metadata
    assert isinstance(told["etl/queries"], dg.IntMetadataValue)
    assert isinstance(told["etl/loads"], dg.IntMetadataValue)
    assert told["etl/bytes_billed"].value is not None
