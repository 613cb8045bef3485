"""The demo: an order system under traffic, replicated into DuckDB by Dagster, and compared."""
