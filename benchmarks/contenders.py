"""The contenders of each task. Each is a function that does the task once and says what it cost."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import yaml

from benchmarks.measure import ROOT, Measured, run_piped, run_program, run_python
from benchmarks.workload import PUBLICATION, SLOT, Workload, database
from etl_dagster.destinations.duckdb.config import MEMORY_LIMIT, THREADS
from etl_dagster.settings import COPY_CONNECTIONS

PEERS = ROOT / ".venv-peers" / "bin"


class Ours:
    """Our pipeline in a folder of its own, with its default settings; `save` and `restore` turn back its time."""

    def __init__(self, workload: Workload, folder: Path) -> None:
        self._workload = workload
        self._folder = folder / "ours"
        self._saved = folder / "ours-saved"
        self.config = self._folder / "bench.yaml"

    @property
    def database(self) -> Path:
        return self._folder / "bench.duckdb"

    def begin(self) -> None:
        """Forget everything: empty folder, no slot."""
        self._workload.drop_slot(SLOT)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        config = {
            "name": "bench",
            "source": {
                "connection": {"dsn": self._workload.dsn},
                "publication": {"name": PUBLICATION, "tables": ["public.bench"]},
                "slot": {"name": SLOT},
            },
            "destination": {"type": "duckdb", "path": str(self.database)},
            "store": {"type": "sqlite", "path": str(self._folder / "bench.sqlite")},
        }
        self.config.write_text(yaml.safe_dump(config, sort_keys=False))

    def save(self, slot: str) -> None:
        """Keep the state, and a slot at its position."""
        shutil.rmtree(self._saved, ignore_errors=True)
        shutil.copytree(self._folder, self._saved)
        self._workload.copy_slot(SLOT, slot)

    def restore(self, slot: str) -> None:
        """Be again where `save` was called."""
        shutil.rmtree(self._folder)
        shutil.copytree(self._saved, self._folder)
        self._workload.copy_slot(slot, SLOT)

    def sync(self) -> Measured:
        return run_python("replicate", [str(self.config)])

    def sync_command(self) -> Measured:
        """The whole process that a user starts."""
        return run_program([sys.executable, "-m", "etl_dagster.cli", "sync", "--config", str(self.config)])

    def tick(self) -> Measured:
        return run_python("tick", [str(self.config)])

    def verify(self) -> None:
        """Fail unless the destination holds what the source holds."""
        run_python("verify", [str(self.database), json.dumps(self._workload.sums())])


class Neighbours:
    """Everybody else."""

    def __init__(self, workload: Workload, folder: Path, bindir: Path) -> None:
        self._workload = workload
        self._dsn = workload.dsn
        self._folder = folder
        self._bindir = bindir

    def copy_discarded(self) -> Measured:
        """PostgreSQL's own client, one connection, which throws away what it reads."""
        statement = "COPY bench TO STDOUT (FORMAT binary)"
        return run_program([str(self._bindir / "psql"), *database(self._dsn), "-Xqc", statement])

    def copies_discarded(self) -> Measured:
        """The same over as many connections as ours, each of which reads its share of the pages."""
        pages = self._workload.pages()
        ends = [pages * k // COPY_CONNECTIONS for k in range(COPY_CONNECTIONS)] + [2**32 - 1]
        began = time.perf_counter()
        with ThreadPoolExecutor(COPY_CONNECTIONS) as pool:
            shares = list(pool.map(self._share_discarded, pairwise(ends)))
        seconds = time.perf_counter() - began
        cpu, peak = sum(share.cpu_seconds for share in shares), sum(share.peak_mb for share in shares)
        return Measured(seconds, seconds, cpu, peak)

    def _share_discarded(self, pages: tuple[int, int]) -> Measured:
        first, end = pages
        share = f"SELECT * FROM bench WHERE ctid >= '({first},0)' AND ctid < '({end},0)'"
        statement = f"COPY ({share}) TO STDOUT (FORMAT binary)"
        return run_program([str(self._bindir / "psql"), *database(self._dsn), "-Xqc", statement])

    def adbc(self) -> Measured:
        path = self._folder / "adbc.duckdb"
        path.unlink(missing_ok=True)
        pages = str(self._workload.pages())
        return run_python("adbc", [self._dsn, str(path), str(COPY_CONNECTIONS), pages, MEMORY_LIMIT, str(THREADS)])

    def recvlogical(self, slot: str, end: str) -> Measured:
        """PostgreSQL's own reader of the stream, writing to a pipe."""
        own = f"{slot}_read"
        self._workload.copy_slot(slot, own)
        options = {"proto_version": "1", "publication_names": PUBLICATION, "binary": "true"}
        argv = [str(self._bindir / "pg_recvlogical"), *database(self._dsn), "--start", "--slot", own, "--no-loop"]
        argv += ["--endpos", end, "--fsync-interval", "0", "--status-interval", "10", "-f", "-"]
        argv += [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        measured, counted = run_piped(argv, ["wc", "-c"])
        self._workload.drop_slot(own)
        return replace(measured, facts={"bytes": int(counted)})

    def capture(self, slot: str, path: Path) -> None:
        """Write down what the server sends for all changes of a slot."""
        options = f"'proto_version', '1', 'publication_names', '{PUBLICATION}', 'binary', 'true'"
        peek = f"SELECT data FROM pg_logical_slot_peek_binary_changes('{slot}', NULL, NULL, {options})"
        with path.open("wb") as file:
            copy = f"COPY ({peek}) TO STDOUT (FORMAT binary)"
            run_program([str(self._bindir / "psql"), *database(self._dsn), "-Xqc", copy], stdout=file)

    def decode(self, path: Path) -> Measured:
        return run_python("decode", [self._dsn, PUBLICATION, str(path)])

    def dlt(self, backend: str) -> Measured:
        python = _installed("python", "dlt")
        return run_python("dlt_copy", [self._dsn, str(self._fresh(f"dlt-{backend}")), backend], python=str(python))

    def rivet_copy(self) -> Measured:
        """Into Parquet, with two workers over ranges of the key."""
        rivet = _installed("rivet", "rivet-cli")
        folder = self._fresh("rivet-copy")
        export = {
            "name": "bench",
            "table": "bench",
            "mode": "chunked",
            "chunk_column": "id",
            "chunk_size": 250_000,
            "parallel": COPY_CONNECTIONS,
            "format": "parquet",
            "destination": {"type": "local", "path": str(folder / "out")},
            "columns": {"amount": "decimal(12,2)"},
        }
        config = {"source": {"type": "postgres", "url_env": "BENCH_URL"}, "exports": [export]}
        (folder / "rivet.yaml").write_text(yaml.safe_dump(config))
        return run_program([str(rivet), "run", "-c", "rivet.yaml"], env=self._rivet_environment(), cwd=folder)

    def rivet_begin(self) -> None:
        """Create rivet's slot, so that it holds the changes to come."""
        self._fresh("rivet-cdc")
        self._rivet_cdc()

    def rivet_cdc(self) -> Measured:
        """The changes into Parquet files, not merged."""
        return self._rivet_cdc()

    def rivet_end(self) -> None:
        self._workload.drop_slot("rivet")

    def _rivet_cdc(self) -> Measured:
        rivet = _installed("rivet", "rivet-cli")
        argv = [str(rivet), "cdc", "--source-env", "BENCH_URL", "--table", "bench", "--slot", "rivet"]
        argv += ["--checkpoint", "rivet.checkpoint", "--output", "out"]
        return run_program(argv, env=self._rivet_environment(), cwd=self._folder / "rivet-cdc")

    def _rivet_environment(self) -> dict[str, str]:
        return {"BENCH_URL": f"{self._dsn}?sslmode=disable"}

    def _fresh(self, name: str) -> Path:
        folder = self._folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder


class NotInstalledError(RuntimeError):
    """An optional contender is not there."""


def _installed(program: str, package: str) -> Path:
    path = PEERS / program
    if not path.exists():
        pinned = re.search(rf"^{package}\S*", (ROOT / "benchmarks" / "peers.txt").read_text(), re.MULTILINE)
        raise NotInstalledError(f"not installed: make bench-peers ({pinned[0] if pinned else package})")
    return path
