"""Old runs go, with their events, files and logs; what an asset needs to count as materialized stays."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from etl_dagster.orchestration import RetentionPolicy
from etl_dagster.orchestration.names import HOUSEKEEPING_TAG, PIPELINE_TAG
from etl_dagster.orchestration.retention import purge
from tests.orchestration.project import QUIET

KEY = dg.AssetKey("table")
EVERYTHING_OLD = RetentionPolicy(keep_hours=0, keep_runs=0)
SOON = timedelta(minutes=1)


@dg.asset(key=KEY)
def table() -> None:
    """Stands for a live table."""


@dg.op
def idle() -> None:
    """A run that materializes nothing."""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance with files, as `dagster dev` has it."""
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance


def materialize(instance: dg.DagsterInstance, **tags: str) -> str:
    return dg.materialize([table], instance=instance, tags=tags or {PIPELINE_TAG: "test"}, run_config=QUIET).run_id


def run(instance: dg.DagsterInstance, **tags: str) -> str:
    job = dg.GraphDefinition(name="idle_job", node_defs=[idle]).to_job()
    return job.execute_in_process(instance=instance, tags=tags, run_config=QUIET).run_id


def left(instance: dg.DagsterInstance) -> set[str]:
    return {found.run_id for found in instance.get_runs()}


def clean(instance: dg.DagsterInstance, policy: RetentionPolicy = EVERYTHING_OLD) -> int:
    return purge(instance, "test", [KEY], policy, datetime.now(UTC) + SOON)


def test_the_run_of_the_latest_materialization_is_kept(home: dg.DagsterInstance) -> None:
    materialize(home)
    newest = materialize(home)
    idle_later = run(home, **{PIPELINE_TAG: "test"})

    assert clean(home) == 2

    assert left(home) == {newest}
    assert idle_later not in left(home)
    event = home.get_latest_materialization_event(KEY)
    assert event is not None
    assert event.run_id == newest


def test_new_runs_and_the_newest_few_are_kept(home: dg.DagsterInstance) -> None:
    runs = [run(home, **{PIPELINE_TAG: "test"}) for _ in range(5)]
    assert clean(home, RetentionPolicy(keep_hours=1, keep_runs=0)) == 0
    assert clean(home, RetentionPolicy(keep_hours=0, keep_runs=2)) == 3
    assert left(home) == set(runs[-2:])


def test_runs_of_others_and_active_runs_are_not_touched(home: dg.DagsterInstance) -> None:
    other, foreign = run(home, **{PIPELINE_TAG: "other"}), run(home)
    job = dg.GraphDefinition(name="idle_job", node_defs=[idle]).to_job()
    active = home.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags={PIPELINE_TAG: "test"}).run_id
    housekeeping = run(home, **{HOUSEKEEPING_TAG: "test"})
    assert clean(home) == 1
    assert left(home) == {other, foreign, active}
    assert housekeeping not in left(home)


def test_files_go_with_their_run(home: dg.DagsterInstance, tmp_path: Path) -> None:
    gone = run(home, **{PIPELINE_TAG: "test"})
    assert list(tmp_path.rglob(f"*{gone}*"))
    clean(home)
    assert not list(tmp_path.rglob(f"*{gone}*"))


def test_a_pass_ends_when_its_time_is_over_and_the_next_goes_on(home: dg.DagsterInstance) -> None:
    for _ in range(3):
        run(home, **{PIPELINE_TAG: "test"})
    assert clean(home, RetentionPolicy(keep_hours=0, keep_runs=0, max_seconds=1e-9)) == 0
    assert clean(home) == 3


def test_more_runs_than_a_page_are_deleted_past_those_that_are_kept(
    home: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etl_dagster.orchestration.retention._PAGE", 2)
    kept = materialize(home)
    for _ in range(5):
        run(home, **{PIPELINE_TAG: "test"})
    assert clean(home) == 5
    assert left(home) == {kept}
