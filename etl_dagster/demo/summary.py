"""The table at the demo's end."""

from __future__ import annotations

from statistics import median

from rich.console import Console
from rich.table import Table

from etl_dagster.demo.run import DemoResult
from etl_dagster.model import TableId

_NUMBERS = ("copied", "changes", "lag p50", "lag max", "rows now")


def show_result(console: Console, result: DemoResult) -> None:
    """What was copied and applied, and whether both sides are equal."""
    table = Table(title="Replicated by Dagster's sensor and runs, compared both ways", title_justify="left")
    table.add_column("table", no_wrap=True)
    for header in _NUMBERS:
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("equal")
    for name in sorted(entry.table for entry in result.status.tables):
        table.add_row(str(name), *_row(result, name))
    console.print()
    console.print(table)
    tally = result.tally
    console.print(
        f"Traffic committed {tally.transactions:,} transactions with {tally.changes:,} changes and {tally.truncates} "
        f"truncates, and rolled {tally.rolled_back} back; changes that are not counted above came with the copies."
    )
    runs = result.runs
    console.print(f"Dagster runs: {runs.succeeded} succeeded, {runs.failed} failed. In all {result.seconds:.0f} s.")
    verdict = "[bold green]equal[/]" if result.equal else "[bold red]NOT equal[/]"
    console.print(f"Source and destination are {verdict}.")


def _row(result: DemoResult, name: TableId) -> tuple[str, ...]:
    log = result.tables[name]
    difference = result.differences.get(name)
    lags = sorted(result.lags.get(name, ()))
    return (
        "-" if log.copied_rows is None else f"{log.copied_rows:,}",
        f"{log.changes:,}",
        f"{median(lags):.1f} s" if lags else "-",
        f"{lags[-1]:.1f} s" if lags else "-",
        "-" if difference is None else f"{difference.rows:,}",
        "[red]not live[/]" if difference is None else "[green]yes[/]" if difference.equal else f"[red]{difference}[/]",
    )
