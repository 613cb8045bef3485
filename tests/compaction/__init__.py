"""Compaction of changes and their flat form."""
