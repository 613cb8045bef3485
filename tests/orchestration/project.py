"""A Dagster project of one pipeline: a fresh database, a fresh DuckDB file, a fresh instance."""

from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import psycopg

from etl_dagster.config import PipelineConfig
from etl_dagster.model import TableId
from etl_dagster.orchestration import ReplicationTranslator, SensorSettings, build_replication_defs
from etl_dagster.pipeline import Pipeline

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
ORDERS, ITEMS = TableId("shop", "orders"), TableId("shop", "items")


class Project:
    """The definitions of one pipeline, and what a user or the daemon does with them."""

    def __init__(self, dsn: str, folder: Path, source: psycopg.Connection[Any], instance: dg.DagsterInstance) -> None:
        self.folder = folder
        self.source = source
        self.instance = instance
        self.document: dict[str, Any] = {
            "name": "test",
            "source": {
                "connection": {"dsn": dsn},
                "publication": {"schemas": ["shop"]},
                "slot": {"name": slot(dsn)},
            },
            "destination": {"type": "duckdb", "path": str(folder / "warehouse.duckdb")},
            "store": {"type": "sqlite", "path": str(folder / "state.sqlite")},
            "replication": {"refresh_seconds": 0.2, "idle_poll_seconds": 0.02},
        }
        self.config = PipelineConfig.model_validate(self.document)
        self.translator = ReplicationTranslator("test", "duckdb")
        self.load()

    def load(self, **options: Any) -> None:
        """Load the definitions anew, as a reload of the code location does."""
        options = {"sensor": SensorSettings(), "batch_budget_seconds": 0.0} | options
        self.defs = build_replication_defs(self.config, **options)

    def configure(self, **fields: Any) -> None:
        """Other fields of the config, and the definitions that come of it."""
        self.document |= fields
        self.config = PipelineConfig.model_validate(self.document)
        self.load()

    def execute(self, *statements: str) -> None:
        """Run statements at the source."""
        for statement in statements:
            self.source.execute(statement)

    def run(self, job: str, **options: Any) -> dg.ExecuteInProcessResult:
        """Execute a job in this process."""
        options = {"run_config": QUIET, "raise_on_error": False} | options
        return self.defs.resolve_job_def(job).execute_in_process(instance=self.instance, **options)

    def tick(self) -> dg.RunRequest | dg.SkipReason:
        """Evaluate the sensor once."""
        sensor = self.defs.resolve_sensor_def("test__changes")
        resources = {key: self.defs.resources[key] for key in sensor.required_resource_keys}
        with dg.build_sensor_context(self.instance, resources=resources, definitions=self.defs) as context:
            answer = sensor.evaluate_tick(context)
        [*requests] = answer.run_requests or ()
        return requests[0] if requests else dg.SkipReason(answer.skip_message)

    def micro_batch(self) -> dg.ExecuteInProcessResult:
        """Do what the sensor asks for; it has to ask."""
        request = self.tick()
        assert isinstance(request, dg.RunRequest), request
        return self.run("test__micro_batch", asset_selection=request.asset_selection, tags=dict(request.tags))

    def assert_equal(self) -> None:
        """Source and destination hold the same rows."""
        with self.pipeline() as pipeline:
            differences = pipeline.compare()
        assert differences, "no table is live"
        assert not {str(table) for table, found in differences.items() if not found.equal}

    def pipeline(self) -> AbstractContextManager[Pipeline]:
        """The pipeline beside any run."""
        return closing(Pipeline(self.config))

    def damage(self, *statements: str) -> None:
        """Have the destination drift from the source."""
        with duckdb.connect(str(self.folder / "warehouse.duckdb")) as warehouse:
            for statement in statements:
                warehouse.execute(statement)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What the destination says."""
        with duckdb.connect(str(self.folder / "warehouse.duckdb"), read_only=True) as warehouse:
            return warehouse.execute(query).fetchall()

    def partitions(self, table: TableId) -> set[str]:
        """Partitions of the table's sync that Dagster shows as materialized."""
        return set(self.instance.get_materialized_partitions(self.translator.sync_key(table)))

    def materializations(self, key: dg.AssetKey) -> list[dg.AssetMaterialization]:
        """All materializations of an asset, newest first."""
        records = self.instance.fetch_materializations(key, limit=100).records
        return [record.asset_materialization for record in records if record.asset_materialization]

    def live(self, table: TableId) -> list[dict[str, Any]]:
        """Metadata of the live table's materializations, newest first."""
        return [_plain(event) for event in self.materializations(self.translator.live_key(table))]

    def copies(self, table: TableId) -> list[dict[str, Any]]:
        """Metadata of the table's copies, newest first."""
        return [_plain(event) for event in self.materializations(self.translator.sync_key(table))]


def slot(dsn: str) -> str:
    """A slot name of the database's own, since slots are the server's."""
    return f"slot_{psycopg.conninfo.conninfo_to_dict(dsn)['dbname']}"


def _plain(event: dg.AssetMaterialization) -> dict[str, Any]:
    return {name: value.value for name, value in event.metadata.items()}
