"""What it costs to copy one slice of a large table again, as a share of what copying all of it costs.

`python -m benchmarks.slices`: a table of 10 M rows cut into 100 slices by its key, then by time; both indexed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median

import yaml

from benchmarks.contenders import Ours
from benchmarks.measure import run_python
from benchmarks.workload import SERVER_SETTINGS, Sizes, Workload
from etl_dagster.testing.server import PostgresServer

_ROWS, _SLICES = 10_000_000, 100
_PROMISE = 3.0


def main() -> None:
    """Fill, copy whole, copy slices, print the ratios."""
    parser = argparse.ArgumentParser(prog="benchmarks.slices", description=__doc__)
    parser.add_argument("--rows", type=int, default=_ROWS)
    parser.add_argument("--slices", type=int, default=_SLICES)
    parser.add_argument("--rounds", type=int, default=5, help="slices measured of each rule")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="etl-bench-") as folder,
        PostgresServer.temporary(settings=SERVER_SETTINGS, die_with_parent=True) as server,
    ):
        workload = Workload(server.dsn, Sizes(options.rows, 1000, 1))
        workload.fill()
        workload.index("created")
        ours = Ours(workload, Path(folder))
        ours.begin()
        whole = ours.sync()
        print(f"whole copy of {options.rows:,} rows: {whole.seconds:.2f} s, peak {whole.peak_mb:.0f} MB", flush=True)
        share = whole.seconds / options.slices
        for rule in (_by_key(options.rows // options.slices), _by_hour(options.rows, options.slices)):
            _measure(ours, rule, options.rounds, share)
        ours.verify()
        workload.close()


def _measure(ours: Ours, rule: dict[str, object], rounds: int, share: float) -> None:
    config = yaml.safe_load(ours.config.read_text()) | {"tables": {"public.bench": {"partitions": rule}}}
    ours.config.write_text(yaml.safe_dump(config))
    places = [str((7 + 11 * nth) % 17) for nth in range(rounds)]
    facts = run_python("slices", [str(ours.config), *places]).facts
    cost = median(facts["each"])
    each = json.dumps([round(seconds, 3) for seconds in facts["each"]])
    print(
        f"one of {facts['slices']} slices by {rule['type']} ({median(facts['rows']):,.0f} rows): {cost * 1000:.0f} ms, "
        f"{cost / share:.2f} x its share (promise {_PROMISE:.1f}), our CPU {median(facts['cpu']) * 1000:.0f} "
        f"ms; planned in {facts['planning'] * 1000:.0f} ms; all: {each}",
        flush=True,
    )


def _by_key(rows: int) -> dict[str, object]:
    return {"type": "range", "column": "id", "rows": rows}


def _by_hour(rows: int, slices: int) -> dict[str, object]:
    """The table has a row for each second from 2024 on; with 100 slices of 10 M rows, about a day each."""
    every = "day" if rows // slices > 3600 * 12 else "hour"
    return {"type": "time", "column": "created", "every": every, "start": "2024-01-01"}


if __name__ == "__main__":
    main()
