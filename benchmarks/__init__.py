"""Side-by-side measurements: our copy and catch-up against the nearest neighbours, on one server, in one run."""
