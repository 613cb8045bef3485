"""What stands in for BigQuery in tests: an emulator, a store for staged files, and a proxy that loses answers."""
