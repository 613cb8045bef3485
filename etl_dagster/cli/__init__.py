"""The command line, ``etl-dagster``."""

from etl_dagster.cli.app import main

__all__ = ["main"]
