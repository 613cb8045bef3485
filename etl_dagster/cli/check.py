"""`check`: what is set up and what is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.markup import escape

from etl_dagster.cli import render
from etl_dagster.cli.exits import ExitCode
from etl_dagster.errors import EtlError
from etl_dagster.model import CheckResult
from etl_dagster.pipeline import Pipeline

LOCK_FIELD = "lock_timeout_seconds"
LOCK_SECONDS = 1.0


def run_check(config: Path, *, as_json: bool) -> int:
    """Examine everything, show each line, and fail when one does."""
    pipeline = _impatient(Pipeline.load(config))
    results = [_excused(pipeline, result) for result in pipeline.check()]
    passed = all(result.passed for result in results)
    if as_json:
        render.print_json(_as_json(pipeline.name, results, passed))
    else:
        _show(config, results)
    return ExitCode.OK if passed else ExitCode.FAILED


def _impatient(pipeline: Pipeline) -> Pipeline:
    """The same pipeline, which does not wait until a destination that another process holds is free."""
    config, destination = pipeline.config, pipeline.config.destination
    if LOCK_FIELD not in type(destination).model_fields:
        return pipeline
    hasty = destination.model_copy(update={LOCK_FIELD: LOCK_SECONDS})
    return Pipeline(config.model_copy(update={"destination": hasty}))


def _excused(pipeline: Pipeline, result: CheckResult) -> CheckResult:
    """A destination that the running pipeline itself holds is no fault."""
    if result.passed or result.name != "destination":
        return result
    try:
        held = pipeline.is_held()
    except EtlError:  # the source's own line says why
        return result
    return replace(result, passed=True, detail="in use by the running pipeline", todo="") if held else result


def _as_json(name: str, results: Sequence[CheckResult], passed: bool) -> dict[str, Any]:
    fields = ("name", "passed", "detail", "todo")
    checks = [{field: getattr(result, field) for field in fields} for result in results]
    return {"pipeline": name, "passed": passed, "checks": checks}


def _show(config: Path, results: Sequence[CheckResult]) -> None:
    console = render.results_console()
    width = max(len(result.name) for result in results)
    for result in results:
        mark = _mark(result)
        console.print(f"{mark}  {escape(result.name.ljust(width))}  {escape(result.detail)}", soft_wrap=True)
        if result.todo:
            console.print(f"      {' ' * width}  → {escape(result.todo)}", soft_wrap=True)
    failed = sum(not result.passed for result in results)
    verdict = f"{failed} of {len(results)} checks failed" if failed else f"all {len(results)} checks passed"
    console.print(f"\n{verdict}: {config}", markup=False)


def _mark(result: CheckResult) -> str:
    if not result.passed:
        return "[red]FAIL[/]"
    return "[yellow]note[/]" if result.todo else "[green]pass[/]"
