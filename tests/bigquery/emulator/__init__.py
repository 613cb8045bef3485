"""The BigQuery emulator ``local-bigquery``, in a process and a virtual environment of its own."""

from __future__ import annotations

from tests.bigquery.emulator.server import Emulator, GcsServer

__all__ = ["Emulator", "GcsServer"]
