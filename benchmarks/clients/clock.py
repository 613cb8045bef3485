"""How a measured Python process reports: its own seconds and memory, as one line of JSON.

Standard library only: clients of other tools run it in virtual environments without this project.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

_now = time.perf_counter


class Clock:
    """Started when all imports are done, before the first connection is opened."""

    def __init__(self) -> None:
        self._start = _now()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Remember how long it took up to here."""
        self._laps[name] = _now() - self._start

    def report(self, **facts: Any) -> None:
        """Print what was measured; everything has to be closed by now."""
        seconds = _now() - self._start
        print(json.dumps({"seconds": seconds, "peak_mb": peak_mb(), "laps": self._laps, **facts}), flush=True)


def peak_mb(process: str = "self") -> float:
    """The most memory that the process has had resident; 0 when it is gone."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) / 1024 if found else 0.0
