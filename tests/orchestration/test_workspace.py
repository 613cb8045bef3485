"""What `dagster dev` does in a fresh clone: the workspace opens with no variable set, and the UI's server answers."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster_webserver.app import create_app_from_workspace_process_context

from tests.orchestration.webserver import graphql, served

ROOT = Path(__file__).parents[2]
OURS = ("DAGSTER", "ETL", "PG")


def bare_environment(home: Path) -> dict[str, str]:
    """As in a new shell, with nothing of Dagster's or ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return kept | {"DAGSTER_HOME": str(home)}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A copy of the committed instance, so that the test leaves nothing in the repository."""
    (tmp_path / "dagster.yaml").write_text((ROOT / "dagster_home" / "dagster.yaml").read_text())
    return tmp_path


def test_the_workspace_opens_with_no_variable_set(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "definitions", "validate", "-w", "workspace.yaml"],
        cwd=ROOT,
        env=bare_environment(home),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Validation successful for code location etl_dagster" in done.stderr + done.stdout


def test_the_instance_is_accepted_by_dagster(home: Path) -> None:
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert type(instance.run_coordinator).__name__ == "QueuedRunCoordinator"
        assert instance.get_concurrency_config().run_queue_config is not None
        assert not instance.telemetry_enabled
    assert yaml.safe_load((home / "dagster.yaml").read_text())["retention"]["sensor"]


@pytest.fixture
def ask(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The UI's server, asked as the browser does."""
    for name in [name for name in os.environ if name.startswith(OURS)]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(ROOT)
    with (
        dg.DagsterInstance.from_config(str(home)) as instance,
        WorkspaceProcessContext(instance, WorkspaceFileTarget([str(ROOT / "workspace.yaml")])) as context,
        served(create_app_from_workspace_process_context(context)) as port,
    ):
        yield lambda text: graphql(port, text)


def test_the_ui_shows_lineage_jobs_sensor_schedules_and_resources(ask: Any) -> None:
    nodes = ask("{ assetNodes { assetKey { path } dependencyKeys { path } isPartitioned isExecutable } }")["assetNodes"]
    found = {"/".join(node["assetKey"]["path"]): node for node in nodes}
    assert found["example/shop/orders"]["dependencyKeys"] == [{"path": ["example", "sync", "shop", "orders"]}]
    assert found["example/sync/shop/orders"]["isPartitioned"]
    assert not found["example/source/shop/orders"]["isExecutable"]
    [repository] = ask(
        "{ repositoriesOrError { ... on RepositoryConnection { nodes {"
        " jobs { name } sensors { name } schedules { name }"
        " allTopLevelResourceDetails { name configFields { name } } } } } }"
    )["repositoriesOrError"]["nodes"]
    assert "example__micro_batch" in {job["name"] for job in repository["jobs"]}
    assert [sensor["name"] for sensor in repository["sensors"]] == ["example__changes"]
    assert {schedule["name"] for schedule in repository["schedules"]} == {
        "example__retention_schedule",
        "example__health_schedule",
        "example__resync_all_schedule",
        "example__orders",
    }
    assert "example__source" in {resource["name"] for resource in repository["allTopLevelResourceDetails"]}


def test_every_location_loads_without_error(ask: Any) -> None:
    [entry] = ask(
        "{ workspaceOrError { ... on Workspace { locationEntries { name locationOrLoadError { __typename } } } } }"
    )["workspaceOrError"]["locationEntries"]
    assert entry == {"name": "etl_dagster", "locationOrLoadError": {"__typename": "RepositoryLocation"}}
