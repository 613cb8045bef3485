"""Tests of the Dagster layer, on real pipelines."""
