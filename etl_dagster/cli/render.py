"""Results as tables, for people; what reads them by program asks for JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from etl_dagster.store.base import TableRecord, TableState

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from etl_dagster.model import TableId
    from etl_dagster.pipeline import PipelineStatus, TableStatus
    from etl_dagster.replication.report import CopyProgress, RunSummary

# Where nobody looks at a screen, nothing is cut to the width of one.
PLAIN_WIDTH = 200
LONGEST_NOTE = 300
RESUME = (
    "Once its cause is mended, a quarantined table goes on where it stopped with: etl-dagster resume TABLE; "
    "or it is copied afresh with: etl-dagster resync TABLE"
)
RELEASE = "A quarantined table comes back, once its cause is mended, with: etl-dagster resync TABLE"
STATE_STYLES = {
    TableState.READY: "green",
    TableState.QUARANTINED: "red",
    TableState.REMOVED: "dim",
}


def results_console() -> Console:
    """A console for standard output."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON document on standard output."""
    import json

    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def print_plain(lines: Iterable[str]) -> None:
    """Lines on standard output as they are: thousands of them take no time."""
    sys.stdout.writelines(f"{line}\n" for line in lines)


def grid(*headers: str, right: Iterable[str] = ()) -> Table:
    """An empty table with these columns; those named in ``right`` hold numbers."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    for header in headers:
        number = header in set(right)
        table.add_column(header, justify="right" if number else "left", no_wrap=number, overflow="fold")
    return table


def size(count: int | None) -> str:
    """Bytes in the unit that people would choose."""
    if count is None:
        return "-"
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(amount) < 1000 or unit == "GB":
            return f"{amount:,.0f} {unit}" if unit == "B" else f"{amount:,.1f} {unit}"
        amount /= 1000
    raise AssertionError("unreachable")


def number(count: int | None) -> str:
    """A count with thousands set apart."""
    return "-" if count is None else f"{count:,}"


def seconds(duration: float | None) -> str:
    """A duration for a table."""
    return "-" if duration is None else f"{duration:,.1f} s"


def styled_state(state: TableState) -> str:
    """The state in its colour."""
    style = STATE_STYLES.get(state, "yellow")
    return f"[{style}]{state}[/]"


def show_status(status: PipelineStatus) -> None:
    """The pipeline's line, and one line per table."""
    console = results_console()
    console.print(
        f"[bold]{status.name}[/]   slot {status.slot}   position {status.position or '-'}   "
        f"source {status.current}   lag {seconds(status.lag_seconds)}, {size(status.lag_bytes)}   "
        f"WAL retained {size(status.retained_bytes)}   {_reader(status.slot_active_pid)}\n",
        soft_wrap=True,
    )
    if not status.tables:
        console.print("The pipeline has not run yet. Run `etl-dagster check`, then `etl-dagster sync`.")
        return
    if usage := _told_usage(status.usage):
        console.print(f"The destination has billed so far: {usage}\n", markup=False, soft_wrap=True)
    console.print(_tables(status.tables))
    for entry in status.tables:
        _show_table_notes(console, entry)
    if out := [entry for entry in status.tables if entry.state is TableState.QUARANTINED]:
        console.print(f"\n{RESUME if any(entry.held for entry in out) else RELEASE}", markup=False, soft_wrap=True)


def _tables(entries: Sequence[TableStatus]) -> Table:
    numbers = ("COPIED", "LAG", "BEHIND", "CHUNKS", "REPLACED")
    table = grid("TABLE", "STATE", "LANDING", *numbers, right=numbers)
    for entry in entries:
        chunks = f"{entry.chunks_done}/{entry.chunks_total}" if entry.chunks_total else ""
        table.add_row(
            str(entry.table),
            styled_state(entry.state),
            entry.landing or "-",
            number(entry.rows),
            seconds(entry.lag_seconds),
            size(entry.lag_bytes),
            chunks,
            number(sum(entry.replaced.values())) if entry.replaced else "",
        )
    return table


def _show_table_notes(console: Console, entry: TableStatus) -> None:
    for note in _copy_notes(entry):
        console.print(f"\n{entry.table}: {note}", markup=False, soft_wrap=True)
    if entry.reason:
        console.print(f"\n{entry.table}: {entry.reason}", markup=False, soft_wrap=True)
    if entry.hint:
        console.print(f"  next: {entry.hint}", markup=False, soft_wrap=True)
    if entry.replaced:
        console.print(f"\n{entry.table}: {replaced_values(entry.replaced)}", markup=False, soft_wrap=True)


def _copy_notes(entry: TableStatus) -> Iterator[str]:
    if entry.asked:
        yield f"asked for, and not taken up yet: {shortened('; '.join(entry.asked))}"
    if entry.slices:
        yield f"its copy is of slices {shortened(', '.join(entry.slices))}"
    if entry.waits_for:
        yield f"its copy waits for {', '.join(entry.waits_for)}"
    if entry.chunks_total:
        volume = f" ({size(entry.bytes_done)} of {size(entry.bytes_total)})" if entry.bytes_total else ""
        yield f"copied {entry.rows_done:,} of about {entry.rows_total:,} rows{volume}"


def shortened(text: str) -> str:
    """Thousands of names are for programs."""
    return text if len(text) <= LONGEST_NOTE else f"{text[:LONGEST_NOTE]} …"


def _told_usage(usage: Mapping[str, int]) -> str:
    from etl_dagster.replication.report import told_usage

    return told_usage(usage)


def replaced_values(replaced: Mapping[str, int]) -> str:
    """How many values of which columns the policy replaced."""
    columns = ", ".join(f"{count:,} of {column}" for column, count in sorted(replaced.items()))
    return f"values that could not be held were replaced: {columns}"


def _reader(pid: int | None) -> str:
    return "slot not being read just now" if pid is None else f"slot being read by PID {pid}"


def show_run(summary: RunSummary, records: Mapping[TableId, TableRecord], duration: float) -> None:
    """What a `sync` or `follow` did."""
    console = results_console()
    if summary.tables:
        table = grid("TABLE", "STATE", "COPIED", "CHANGES", right=("COPIED", "CHANGES"))
        for name, done in sorted(summary.tables.items()):
            state = styled_state(records[name].state) if name in records else "-"
            table.add_row(str(name), state, number(done.copied_rows), number(done.changes))
        console.print(table)
    console.print(_headline(summary, records, duration))
    if usage := _told_usage(summary.usage):
        console.print(f"The destination has billed: {usage}", markup=False, soft_wrap=True)
    quarantined = _quarantined(records)
    for record in quarantined:
        console.print(f"{record.table} is quarantined: {record.reason}", style="red", markup=False, soft_wrap=True)
        if record.hint:
            console.print(f"  next: {record.hint}", markup=False, soft_wrap=True)
    for name in sorted(summary.tables.keys() & records.keys()):
        if replaced := records[name].replaced:
            console.print(f"{name}: {replaced_values(replaced)}", markup=False, soft_wrap=True)
    if quarantined:
        console.print(RESUME if any(record.held for record in quarantined) else RELEASE, markup=False, soft_wrap=True)


def _headline(summary: RunSummary, records: Mapping[TableId, TableRecord], duration: float) -> str:
    ready = sum(record.state is TableState.READY for record in records.values())
    out = f", {count} quarantined" if (count := len(_quarantined(records))) else ""
    if not summary.tables:
        return f"Nothing to do: {ready} tables are up to date{out} ({duration:.1f} s)"
    return f"{ready} tables ready{out}, {summary.changes:,} changes applied in {duration:.1f} s"


def _quarantined(records: Mapping[TableId, TableRecord]) -> list[TableRecord]:
    return [record for record in records.values() if record.state is TableState.QUARANTINED]


def run_as_json(summary: RunSummary, records: Mapping[TableId, TableRecord], duration: float) -> dict[str, Any]:
    """What a `sync` or `follow` did, for programs."""
    return {
        "changes": summary.changes,
        "transactions": summary.transactions,
        "batches": summary.batches,
        "position": str(summary.position) if summary.position is not None else None,
        "max_lag_seconds": round(summary.max_lag_seconds, 3),
        "usage": dict(summary.usage),
        "seconds": round(duration, 3),
        "notices": summary.notices,
        "tables": {str(name): _table_as_json(summary, records[name]) for name in sorted(records)},
    }


def _table_as_json(summary: RunSummary, record: TableRecord) -> dict[str, Any]:
    done = summary.tables.get(record.table)
    return {
        "state": record.state.value,
        "reason": record.reason,
        "hint": record.hint,
        "copied_rows": done.copied_rows if done else None,
        "copy": _copy_as_json(done.copy) if done and done.copy else None,
        "changes": done.changes if done else 0,
        "replaced": record.replaced,
        "held": record.held,
    }


def _copy_as_json(copy: CopyProgress) -> dict[str, Any]:
    return {
        "slices": copy.slices,
        "rows_done": copy.rows_done,
        "rows_total": copy.rows_total,
        "bytes_done": copy.bytes_done,
        "bytes_total": copy.bytes_total,
        "seconds": round(copy.seconds, 3),
        "barrier_seconds": round(copy.barrier_seconds, 3),
    }
