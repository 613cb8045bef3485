"""A deployment as users have it: the committed instance, a code location, the UI's server; its daemon is driven by hand."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import dagster as dg
from dagster._core.execution.backfill import BulkActionStatus
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import PythonFileTarget
from dagster._daemon.backfill import execute_backfill_iteration
from dagster._daemon.run_coordinator import QueuedRunCoordinatorDaemon
from dagster_webserver.app import create_app_from_workspace_process_context

from tests.orchestration.webserver import graphql, served

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 120.0
_CODE = """
from pathlib import Path
import dagster as dg
from etl_dagster.orchestration import SensorSettings, build_replication_defs
from etl_dagster.orchestration.sync_assets import BACKFILL_POLICY

FOLDER = Path(__file__).parent

def pipeline(path):
    return build_replication_defs(
        path,
        sensor=SensorSettings(running=False),
        schedules_running=False,
        batch_budget_seconds=0.0,
        backfill_policy={policy},
    )

@dg.definitions
def defs():
    return dg.Definitions.merge(*map(pipeline, sorted(FOLDER.glob("*.pipeline.yaml"))))
"""
_BACKFILL = """mutation($given: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $given) {
  __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
_LAUNCH = """mutation($given: ExecutionParams!) { launchPipelineExecution(executionParams: $given) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
_AGAIN = """mutation($given: ReexecutionParams!) { launchPipelineReexecution(reexecutionParams: $given) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
_ENDED = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}


class Deployment:
    """What users do in the UI, and what the daemon does then."""

    def __init__(self, context: WorkspaceProcessContext, port: int) -> None:
        self.instance = context.instance
        self._context = context
        self._port = port
        self._queue = QueuedRunCoordinatorDaemon(interval_seconds=1)

    def backfill(self, key: dg.AssetKey, partitions: Sequence[str]) -> str:
        """Launch a backfill; returns its id."""
        given = {"assetSelection": [{"path": key.path}], "partitionNames": list(partitions)}
        answer = graphql(self._port, _BACKFILL, given=given)["launchPartitionBackfill"]
        assert answer["__typename"] == "LaunchBackfillSuccess", answer
        return str(answer["backfillId"])

    def launch(self, job: str, keys: Sequence[dg.AssetKey] = (), tags: dict[str, str] | None = None) -> str:
        """Launch a run of a job; returns its id."""
        location = next(iter(self._context.create_request_context().code_locations))
        [repository] = location.get_repositories()
        selector = {
            "repositoryLocationName": location.name,
            "repositoryName": repository,
            "jobName": job,
            "assetSelection": [{"path": key.path} for key in keys] or None,
        }
        metadata = {"tags": [{"key": key, "value": value} for key, value in (tags or {}).items()]}
        given = {"selector": selector, "mode": "default", "executionMetadata": metadata}
        answer = graphql(self._port, _LAUNCH, given=given)["launchPipelineExecution"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])

    def launch_again_from_failure(self, run_id: str) -> str:
        """Re-execute a run from the step that failed; returns the new run's id."""
        given = {"parentRunId": run_id, "strategy": "FROM_FAILURE"}
        answer = graphql(self._port, _AGAIN, given=given)["launchPipelineReexecution"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])

    def status(self, run_id: str) -> dg.DagsterRunStatus:
        """How a run stands."""
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.status

    def runs_of(self, backfill_id: str) -> list[dg.DagsterRun]:
        """The runs that a backfill has launched."""
        return list(self.instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": backfill_id})))

    def until(self, done: Callable[[], bool]) -> None:
        """Have the daemon work until something is so."""
        deadline = monotonic() + PATIENCE_SECONDS
        while not done():
            assert monotonic() < deadline, [(run.run_id, run.job_name, run.status) for run in self.instance.get_runs()]
            [*_] = execute_backfill_iteration(self._context, logging.getLogger("backfills"))
            [*_] = self._queue.run_iteration(self._context)
            sleep(0.1)

    def until_run(self, run_id: str) -> None:
        """Have a run succeed."""
        self.until(lambda: self.status(run_id) in _ENDED)
        assert self.status(run_id) is dg.DagsterRunStatus.SUCCESS, self.log_of(run_id)

    def until_backfill(self, backfill_id: str) -> list[dg.DagsterRun]:
        """Have a backfill succeed; returns its runs."""
        self.until(lambda: self._backfill_status(backfill_id) is not BulkActionStatus.REQUESTED)
        runs = self.runs_of(backfill_id)
        logs = [self.log_of(run.run_id) for run in runs if run.status is not dg.DagsterRunStatus.SUCCESS]
        assert self._backfill_status(backfill_id) is BulkActionStatus.COMPLETED_SUCCESS, logs
        return runs

    def log_of(self, run_id: str) -> list[str]:
        """The lines of a run's log."""
        return [entry.message for entry in self.instance.all_logs(run_id) if entry.message]

    def _backfill_status(self, backfill_id: str) -> BulkActionStatus:
        found = self.instance.get_backfill(backfill_id)
        assert found is not None
        return found.status


@contextmanager
def deployed(folder: Path, *documents: Mapping[str, Any], policy: str = "BACKFILL_POLICY") -> Iterator[Deployment]:
    """A deployment of the pipelines of these configs, whose sensors are off.

    Args:
        policy: The backfill policy, as code.
    """
    home = folder / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text((ROOT / "dagster_home" / "dagster.yaml").read_text())
    (folder / "defs.py").write_text(_CODE.replace("{policy}", str(policy)))
    for document in documents:
        (folder / f"{document['name']}.pipeline.yaml").write_text(json.dumps(document))
    with (
        dg.DagsterInstance.from_config(str(home)) as instance,
        WorkspaceProcessContext(instance, PythonFileTarget(str(folder / "defs.py"), None, str(ROOT), "etl")) as context,
        served(create_app_from_workspace_process_context(context)) as port,
    ):
        yield Deployment(context, port)
