"""`make bench`: runs the contenders in turn and prints what they took, side by side."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import sleep

from benchmarks.contenders import Neighbours, NotInstalledError, Ours
from benchmarks.measure import ContenderError, Measured, Samples, children_cpu_seconds
from benchmarks.report import Figures, Section, show
from benchmarks.workload import SERVER_SETTINGS, Sizes, Workload
from etl_dagster.testing.server import PostgresServer

_FULL = Sizes(rows=2_000_000, changes=1_000_000, rounds=3)
_QUICK = Sizes(rows=200_000, changes=100_000, rounds=1)
_IDLE_ROUNDS = 5
# A backend notices only after its client that the connection is over; its processor time counts once it has ended.
_BACKENDS_END_SECONDS = 0.1
_SLOT = "bench_saved"
_PARTS = "a copy, b catch-up, c other tools, d decoding, e encoding for BigQuery; default all"

Run = Callable[[], Measured]


class Bench:
    """All measurements over one server; what they yield gathers in `sections` and `figures`."""

    def __init__(self, workload: Workload, folder: Path, server: PostgresServer, *, peers: bool) -> None:
        self.sections: list[Section] = []
        self.figures = Figures()
        self._workload = workload
        self._sizes = workload.sizes
        self._folder = folder
        self._ours = Ours(workload, folder)
        self._neighbours = Neighbours(workload, folder, server.bindir)
        self._server = server
        self._peers = peers

    def copy(self) -> None:
        """(a) Full copy."""
        neighbours = self._neighbours
        ours, discarded, discarded_at_once, adbc = self._rounds(
            "Full copy",
            self._sizes.rows,
            {"ours: sync into DuckDB": self._fresh_sync, "psql: COPY discarded": neighbours.copy_discarded}
            | {"psql: the same over two": neighbours.copies_discarded, "ADBC into DuckDB": neighbours.adbc},
        )
        self._ours.verify()
        self.figures.add(
            copy_rows_per_s=ours.rate,
            copy_vs_copy_discard=ours.rate / discarded.rate,
            copy_vs_two_copies_discard=ours.rate / discarded_at_once.rate,
            copy_vs_adbc_duckdb=ours.rate / adbc.rate,
            copy_peak_rss_mb=ours.peak_mb,
        )

    def copy_of_peers(self) -> None:
        """(c) Full copy by other tools, once each."""
        if self._peers:
            self._optional("dlt connectorx into DuckDB", self._sizes.rows, lambda: self._neighbours.dlt("connectorx"))
            self._optional("dlt pyarrow into DuckDB", self._sizes.rows, lambda: self._neighbours.dlt("pyarrow"))
            self._optional("rivet into Parquet", self._sizes.rows, self._neighbours.rivet_copy)

    def idle(self) -> None:
        """What it costs to find nothing to do."""
        self._ours.sync_command()
        (command,) = self._rounds(
            "Nothing to do (whole process)", 1, {"ours: etl-dagster sync": self._ours.sync_command}, _IDLE_ROUNDS
        )
        (tick,) = self._rounds("", 1, {"ours: 30 ticks of the sensor": self._ours.tick}, 1)
        facts = tick.runs[0].facts
        tick.note = (
            f"a tick {facts['median_ms']:.1f} ms, first {facts['first_ms']:.0f} ms, worst {facts['worst_ms']:.1f} ms"
        )
        self.figures.add(idle_sync_s=command.process_seconds, sensor_tick_ms=facts["median_ms"])

    def catch_up(self, *, one_transaction: bool, rounds: int, rivet: bool) -> None:
        """(b) The same changes for both: each reads a copy of a slot that stands before them."""
        neighbours, changes = self._neighbours, self._sizes.changes
        self._workload.settle()
        self._ours.save(_SLOT)
        if rivet:
            self._prepare_rivet()
        end = self._workload.change(one_transaction=one_transaction)
        kind = "one transaction" if one_transaction else "transactions of 1000"
        ours, received = self._rounds(
            f"Catch-up of {changes:,} changes, {kind}",
            changes,
            {"ours: merged into DuckDB": self._restored_sync}
            | {"pg_recvlogical | wc -c": lambda: neighbours.recvlogical(_SLOT, end)},
            rounds,
        )
        self._ours.verify()
        if rivet:
            self._optional("rivet cdc into Parquet, not merged", changes, neighbours.rivet_cdc)
            neighbours.rivet_end()
        prefix = "one_transaction" if one_transaction else "catchup"
        self.figures.add(
            **{
                f"{prefix}_changes_per_s": ours.rate,
                f"{prefix}_vs_pg_recvlogical": ours.rate / received.rate,
                f"{prefix}_peak_rss_mb": ours.peak_mb,
            }
        )

    def decode(self) -> None:
        """(d) Decoding alone, of the changes of the last catch-up."""
        path = self._folder / "captured.copy"
        self._neighbours.capture(_SLOT, path)
        (samples,) = self._rounds(
            "Decoding alone (one thread)",
            self._sizes.changes,
            {"ours: bytes to Arrow": lambda: self._neighbours.decode(path)},
        )
        facts = samples.runs[-1].facts
        samples.note = f"finding messages {facts['framing']:.2f} s, columns {facts['columns']:.2f} s"
        self.figures.add(decode_changes_per_s=samples.rate)

    def encode(self) -> None:
        """(e) Encoding for BigQuery alone, in a process that keeps to one core."""
        command = [sys.executable, "-m", "benchmarks.bigquery_encoding"]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(printed, file=sys.stderr)
        self.figures.add(**json.loads(printed.splitlines()[-1]))

    def seed(self) -> None:
        """A pipeline that has copied everything."""
        self._fresh_sync()

    def _fresh_sync(self) -> Measured:
        self._ours.begin()
        return self._ours.sync()

    def _restored_sync(self) -> Measured:
        self._ours.restore(_SLOT)
        return self._ours.sync()

    def _rounds(self, title: str, units: int, runs: dict[str, Run], rounds: int | None = None) -> Sequence[Samples]:
        """Run the contenders in turn, so that what disturbs the machine disturbs all of them."""
        contenders = [Samples(name, units) for name in runs]
        if title:
            self.sections.append(Section(title))
        self.sections[-1].contenders += contenders
        for _ in range(rounds or self._sizes.rounds):
            for samples, run in zip(contenders, runs.values(), strict=True):
                measured = self._measured(run)
                samples.runs.append(measured)
                print(f"{samples.name}: {measured.seconds:.2f} s {dict(measured.facts)}", file=sys.stderr, flush=True)
        return contenders

    def _measured(self, run: Run) -> Measured:
        assert self._server.pid is not None
        before = children_cpu_seconds(self._server.pid)
        measured = run()
        sleep(_BACKENDS_END_SECONDS)
        return replace(measured, server_cpu_seconds=children_cpu_seconds(self._server.pid) - before)

    def _optional(self, name: str, units: int, run: Run) -> None:
        samples = Samples(name, units)
        self.sections[-1].contenders.append(samples)
        try:
            samples.runs.append(self._measured(run))
        except NotInstalledError as error:
            samples.note = str(error)
        except ContenderError as error:
            samples.note = f"failed: {str(error).splitlines()[-1]}"

    def _prepare_rivet(self) -> None:
        try:
            self._neighbours.rivet_begin()
        except NotInstalledError:
            pass  # its row says so


def run(bench: Bench, only: set[str], *, peers: bool) -> None:
    """The parts that are asked for, in the order in which each finds what it needs."""
    if "a" in only:
        bench.copy()
        if "c" in only:
            bench.copy_of_peers()
    else:
        bench.seed()
    bench.idle()
    if only & {"b", "d"}:
        bench.catch_up(one_transaction=False, rounds=0 if "b" in only else 1, rivet=peers and "c" in only)
    if "d" in only:
        bench.decode()
    if "b" in only:
        bench.catch_up(one_transaction=True, rounds=1, rivet=False)
    if "e" in only:
        bench.encode()


def main() -> None:
    """Read options, measure, print."""
    options = _options()
    base = _QUICK if options.quick else _FULL
    sizes = Sizes(options.rows or base.rows, options.changes or base.changes, options.rounds or base.rounds)
    with (
        tempfile.TemporaryDirectory(prefix="etl-bench-") as folder,
        PostgresServer.temporary(settings=SERVER_SETTINGS, die_with_parent=True) as server,
    ):
        workload = Workload(server.dsn, sizes)
        workload.fill()
        bench = Bench(workload, Path(folder), server, peers=options.peers)
        run(bench, set(options.only.split(",")), peers=options.peers)
        workload.close()
    show(sizes, bench.sections, bench.figures)
    if options.json:
        print(json.dumps(bench.figures.rounded()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the data, once: to see that it runs")
    parser.add_argument("--rows", type=int, help=f"rows of the table ({_FULL.rows:,})")
    parser.add_argument("--changes", type=int, help=f"changes to catch up with ({_FULL.changes:,})")
    parser.add_argument("--rounds", type=int, help=f"how often each contender runs ({_FULL.rounds})")
    parser.add_argument("--only", default="a,b,c,d,e", help=_PARTS)
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="without dlt and rivet")
    parser.add_argument("--json", action="store_true", help="print all figures as one JSON object, last")
    return parser.parse_args()


if __name__ == "__main__":
    main()
