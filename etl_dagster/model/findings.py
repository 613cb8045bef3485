"""What a look at the set-up finds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One line of `check`: what was looked at, how it is, and what to do when it is not right."""

    name: str
    passed: bool
    detail: str
    todo: str = ""
