"""Destinations, held to their contract."""
