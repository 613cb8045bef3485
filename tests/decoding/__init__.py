"""Decoding, with a real server as the oracle."""
