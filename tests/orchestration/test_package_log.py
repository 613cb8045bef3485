"""What the package's own loggers warn of during a run stands in the run's log."""

import logging
from itertools import count
from pathlib import Path

import dagster as dg
import pytest

from etl_dagster.model import TableId
from etl_dagster.orchestration import ReplicationTranslator
from etl_dagster.orchestration.package_log import warnings_in
from tests.orchestration.project import ITEMS, ORDERS, Project

DEEP = logging.getLogger("etl_dagster.destinations.somewhere")


class Talkative(ReplicationTranslator):
    """Stands for anything in the package that logs while a run works; says nothing twice."""

    numbers = count()

    def live_key(self, table: TableId) -> dg.AssetKey:
        DEEP.warning("waiting for %s, number %s", table, next(self.numbers))
        DEEP.info("got %s", table)
        return super().live_key(table)


def talkative_run(project: Project) -> list[dg.EventLogEntry]:
    """What the log of a run has of it."""
    project.translator = Talkative("test", "duckdb")
    project.load(translator=project.translator, tables=[ORDERS, ITEMS])
    result = project.micro_batch()
    assert result.success
    entries = project.instance.all_logs(result.run_id)
    assert not any("got " in entry.user_message for entry in entries)
    return [entry for entry in entries if "waiting for" in entry.user_message]


def test_warnings_of_the_package_are_in_the_log_of_the_run(project: Project) -> None:
    entries = talkative_run(project)
    assert all(any(str(table) in entry.user_message for entry in entries) for table in (ORDERS, ITEMS))
    assert {entry.level for entry in entries} == {logging.WARNING}
    assert {entry.step_key for entry in entries} == {"test__live.write_events"}
    assert len({entry.user_message for entry in entries}) == len(entries), "once each"
    assert not logging.getLogger("etl_dagster").handlers


def test_an_instance_that_captures_the_package_by_itself_has_no_line_twice(project: Project, tmp_path: Path) -> None:
    settings = {"python_logs": {"managed_python_loggers": ["etl_dagster"]}}
    with dg.instance_for_test(overrides=settings, temp_dir=str(tmp_path)) as instance:
        project.instance = instance
        entries = talkative_run(project)
    assert entries
    assert len({entry.user_message for entry in entries}) == len(entries)


def test_a_log_that_leads_back_to_the_package_gets_each_line_once(caplog: pytest.LogCaptureFixture) -> None:
    with warnings_in(lambda: logging.getLogger("etl_dagster.run")):
        DEEP.warning("only once")
    assert [(record.name, record.message) for record in caplog.records].count(("etl_dagster.run", "only once")) == 1
    assert len(caplog.records) == 2
