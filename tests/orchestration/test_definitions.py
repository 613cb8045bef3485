"""What `build_replication_defs` gives, and what it needs to load."""

from pathlib import Path
from time import perf_counter

import dagster as dg
import pytest

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import ConfigError
from etl_dagster.model import Column, PgType, TableId, TableSchema
from etl_dagster.orchestration import (
    DuckDBDestinationResource,
    PipelineParts,
    PostgresSourceResource,
    ReplicationTranslator,
    StoreResource,
    build_replication_defs,
)
from tests.orchestration.project import ITEMS, ORDERS, Project

SECRET = "s3cr3t-of-the-source"
UNREACHABLE = {
    "name": "far",
    "source": {"connection": {"dsn": f"postgresql://me:{SECRET}@127.0.0.1:1/db"}, "publication": {"all_tables": True}},
    "destination": {"type": "memory"},
    "store": {"type": "memory"},
}


def test_each_table_is_a_source_a_partitioned_sync_and_a_live_table_in_line(project: Project) -> None:
    dg.Definitions.validate_loadable(project.defs)
    graph = project.defs.resolve_asset_graph()
    source, copy, live = (
        dg.AssetKey(["test", "source", "shop", "orders"]),
        dg.AssetKey(["test", "sync", "shop", "orders"]),
        dg.AssetKey(["test", "shop", "orders"]),
    )
    assert graph.get(source).is_external
    assert graph.get(copy).parent_keys == {source}
    assert graph.get(copy).partitions_def == dg.StaticPartitionsDefinition(["all"])
    assert graph.get(live).parent_keys == {copy}
    assert graph.get(live).partitions_def is None
    assert graph.get(live).metadata["dagster/table_name"] == "shop.orders"
    assert {graph.get(key).group_name for key in (source, copy, live)} == {"test"}
    assert graph.get(source).kinds == {"postgres"}
    assert graph.get(live).kinds == {"duckdb"}


def test_the_live_tables_are_one_definition_and_so_are_the_syncs(project: Project) -> None:
    definitions = {
        frozenset(found.keys) for found in project.defs.resolve_asset_graph().assets_defs if found.is_executable
    }
    live = frozenset(project.translator.live_key(table) for table in (ORDERS, ITEMS))
    copies = frozenset(project.translator.sync_key(table) for table in (ORDERS, ITEMS))
    assert {live, copies} <= definitions


def test_definitions_load_without_a_source_and_the_sensor_says_why_there_is_nothing(
    instance: dg.DagsterInstance, caplog: pytest.LogCaptureFixture
) -> None:
    defs = build_replication_defs(PipelineConfig.model_validate(UNREACHABLE))
    dg.Definitions.validate_loadable(defs)
    assert "its assets follow on a reload" in caplog.text
    assert SECRET not in caplog.text
    sensor = defs.resolve_sensor_def("far__changes")
    resources = {key: defs.resources[key] for key in sensor.required_resource_keys}
    with (
        dg.build_sensor_context(instance, resources=resources, definitions=defs) as context,
        pytest.raises(Exception, match=r"127\.0\.0\.1") as raised,
    ):
        sensor.evaluate_tick(context)
    assert SECRET not in str(raised.value)


def test_definitions_load_while_a_variable_of_a_resource_is_missing(caplog: pytest.LogCaptureFixture) -> None:
    parts = PipelineParts(
        name="unset",
        source=PostgresSourceResource(dsn=dg.EnvVar("A_VARIABLE_THAT_NOBODY_SETS"), all_tables=True),
        destination=DuckDBDestinationResource(path="unset.duckdb"),
        store=StoreResource(),
    )
    dg.Definitions.validate_loadable(build_replication_defs(parts))
    assert "A_VARIABLE_THAT_NOBODY_SETS" in caplog.text


def test_given_tables_need_no_database() -> None:
    config = PipelineConfig.model_validate(UNREACHABLE)
    defs = build_replication_defs(config, tables=["shop.orders", ITEMS])
    keys = {spec.key for spec in defs.resolve_all_asset_specs()}
    assert {dg.AssetKey(["far", "shop", "orders"]), dg.AssetKey(["far", "shop", "items"])} <= keys


def test_two_pipelines_share_a_code_location() -> None:
    one = build_replication_defs(PipelineConfig.model_validate(UNREACHABLE), tables=["orders"])
    two = build_replication_defs(PipelineConfig.model_validate(UNREACHABLE | {"name": "near"}), tables=["orders"])
    dg.Definitions.validate_loadable(dg.Definitions.merge(one, two))


def test_parts_given_as_resources_run_with_secrets_from_the_environment(
    project: Project, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = PipelineParts(
        name="parts",
        source=PostgresSourceResource(
            dsn=dg.EnvVar("TEST_SOURCE_DSN"), schemas=["shop"], slot=f"parts_{database[-8:]}"
        ),
        destination=DuckDBDestinationResource(path=str(tmp_path / "parts.duckdb")),
        store=StoreResource(path=str(tmp_path / "parts.sqlite")),
    )
    defs = build_replication_defs(parts, tables=[ORDERS])
    dg.Definitions.validate_loadable(defs)
    monkeypatch.setenv("TEST_SOURCE_DSN", database)
    assert defs.resolve_job_def("parts__micro_batch").execute_in_process(instance=project.instance).success
    assert project.instance.get_latest_materialization_event(dg.AssetKey(["parts", "shop", "orders"]))


def test_no_secret_is_in_what_dagster_stores_of_the_definitions() -> None:
    from dagster._core.remote_representation.external_data import RepositorySnap

    defs = build_replication_defs(PipelineConfig.model_validate(UNREACHABLE), tables=["shop.orders"])
    assert SECRET not in dg.serialize_value(RepositorySnap.from_def(defs.get_repository_def()))
    assert SECRET not in repr(defs)


@pytest.mark.parametrize(
    "name", ["order lines", "order-lines", "order.lines", 'say "hi"', "größe", "a/b", "UPPER", "x" * 63]
)
def test_any_table_name_becomes_a_key_and_keeps_its_real_name_beside(name: str) -> None:
    table = TableId("my schema", name)
    defs = build_replication_defs(PipelineConfig.model_validate(UNREACHABLE), tables=[table])
    dg.Definitions.validate_loadable(defs)
    names = {spec.metadata.get("dagster/table_name") for spec in defs.resolve_all_asset_specs()}
    assert str(table) in names


def test_names_that_look_alike_get_different_keys_that_do_not_depend_on_each_other() -> None:
    translator = ReplicationTranslator("p", "duckdb")
    tables = [TableId("s", name) for name in ("a_b", "a.b", "a-b", "a b")]
    tables += [TableId("a", "b__c"), TableId("a__b", "c")]
    assert len({translator.live_key(table) for table in tables}) == len(tables)
    assert translator.live_key(TableId("s", "a_b")) == dg.AssetKey(["p", "s", "a_b"])
    defs = build_replication_defs(PipelineConfig.model_validate(UNREACHABLE), tables=tables)
    dg.Definitions.validate_loadable(defs)


def test_a_translator_that_gives_two_tables_one_key_is_refused_by_name() -> None:
    class Careless(ReplicationTranslator):
        def live_key(self, table: TableId) -> dg.AssetKey:
            return dg.AssetKey(["live"])

    with pytest.raises(ConfigError, match=r"shop\.orders and shop.items get the same asset key live"):
        build_replication_defs(
            PipelineConfig.model_validate(UNREACHABLE), tables=[ORDERS, ITEMS], translator=Careless("far", "memory")
        )


def test_a_thousand_tables_load_in_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    tables = {TableId("s", f"t{n}"): _table(n) for n in range(1000)}
    began = perf_counter()
    defs = build_replication_defs(PipelineConfig.model_validate(UNREACHABLE), tables=tables)
    dg.Definitions.validate_loadable(defs)
    seconds = perf_counter() - began
    with capsys.disabled():
        print(f"\n1,000 tables: definitions loaded and validated in {seconds:.2f} s")
    assert seconds < 30


def _table(number: int) -> TableSchema:
    columns = tuple(
        Column(attnum=n + 1, name=f"c{n}", type=PgType(oid=23, name="integer"), key_ordinal=0 if n == 0 else None)
        for n in range(10)
    )
    return TableSchema(id=TableId("s", f"t{number}"), oid=number + 1, columns=columns)
