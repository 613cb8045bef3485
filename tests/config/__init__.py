"""Tests of the config and of its file."""
