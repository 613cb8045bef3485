"""Tests against a real PostgreSQL; the fixtures that give a server and a database are in ``conftest``."""
