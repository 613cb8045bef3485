"""Columnar change data capture from PostgreSQL into warehouses, run by Dagster."""

__version__ = "0.1.0"

__all__ = ["__version__"]
