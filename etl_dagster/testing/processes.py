"""Child processes that do not outlive the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def die_with_this_process(signum: signal.Signals) -> Callable[[], None] | None:
    """What a child runs before its program, so that it gets the signal when the thread that started it ends.

    However that happens, SIGKILL included. None where the system cannot do it: only Linux can.
    """
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)  # before the fork: loading takes locks
    parent = os.getpid()

    def in_child() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(signum))
        if os.getppid() != parent:  # it died before the call
            os._exit(1)

    return in_child
