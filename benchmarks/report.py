"""The table of what was measured, and the figures as JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Samples
from benchmarks.workload import Sizes

# What the project promises, as (figure, at least or at most, bound, what it is).
_TARGETS = (
    ("catchup_vs_pg_recvlogical", ">=", 1.0, "catch-up, rate against pg_recvlogical discarding"),
    ("copy_vs_copy_discard", ">=", 0.7, "copy, rate against COPY discarded"),
    ("copy_vs_two_copies_discard", ">=", 0.8, "copy, rate against COPY discarded over two connections"),
    ("copy_vs_adbc_duckdb", ">=", 1.3, "copy, rate against ADBC into DuckDB"),
    ("peak_rss_mb", "<=", 500.0, "peak memory of our process, MB"),
    ("idle_sync_s", "<=", 2.0, "sync with nothing to do, whole process, s"),
    ("sensor_tick_ms", "<=", 50.0, "idle tick of the sensor, ms"),
)
_WIDTH = 150


@dataclass
class Section:
    """One task and who did it; the first contender is ours."""

    title: str
    contenders: list[Samples] = field(default_factory=list)


class Figures:
    """Named figures; those ending in ``peak_rss_mb`` also count into one of that name."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def add(self, **values: float) -> None:
        self.values |= values
        peaks = [value for name, value in self.values.items() if name.endswith("_peak_rss_mb")]
        if peaks:
            self.values["peak_rss_mb"] = max(peaks)

    def rounded(self) -> dict[str, float]:
        """For people to read: no more digits than mean something."""
        return {name: round(value) if value >= 1000 else round(value, 3) for name, value in self.values.items()}


def show(sizes: Sizes, sections: Sequence[Section], figures: Figures) -> None:
    """Print everything that was measured, then the promises."""
    console = Console(width=max(_WIDTH, Console().width))
    console.print(
        f"\n{sizes.rows:,} rows, {sizes.changes:,} changes, median of {sizes.rounds} rounds in turn; "
        f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}.\n"
        "seconds: from opening connections to having closed them, without interpreter start and imports.\n"
        "process s, CPU s, peak MB: of the whole client process. server CPU s: of the backends that served it."
    )
    for section in sections:
        console.print(_table(section))
    console.print(_promises(figures))


def _table(section: Section) -> Table:
    table = Table(title=section.title, title_justify="left", title_style="bold")
    for heading in (
        "",
        "seconds",
        "min-max",
        "per second",
        "ours is",
        "process s",
        "CPU s",
        "server CPU s",
        "peak MB",
        "",
    ):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=bool(heading))
    ours = section.contenders[0]
    for samples in section.contenders:
        table.add_row(samples.name, *_cells(samples, ours), samples.note)
    return table


def _cells(samples: Samples, ours: Samples) -> list[str]:
    if not samples.runs:
        return ["-"] * 8
    rate = f"{samples.rate:,.0f}" if samples.units > 1 else ""
    ratio = f"{ours.rate / samples.rate:.2f} x" if samples.units == ours.units > 1 and samples is not ours else ""
    times = [samples.process_seconds, samples.cpu_seconds, samples.server_cpu_seconds]
    costs = [f"{seconds:.2f}" for seconds in times]
    return [f"{samples.seconds:.2f}", samples.spread, rate, ratio, *costs, f"{samples.peak_mb:.0f}"]


def _promises(figures: Figures) -> Table:
    table = Table(title="Promises", title_justify="left", title_style="bold")
    for heading in ("", "measured", "promised", ""):
        table.add_column(heading)
    for name, sense, bound, meaning in _TARGETS:
        value = figures.values.get(name)
        if value is not None:
            kept = value >= bound if sense == ">=" else value <= bound
            table.add_row(meaning, f"{value:.3g}", f"{sense} {bound:g}", "[green]kept[/]" if kept else "[red]missed[/]")
    return table
