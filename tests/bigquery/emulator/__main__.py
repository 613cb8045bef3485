"""``python -m tests.bigquery.emulator`` installs the emulator; with ``--serve FOLDER`` it runs it until interrupted."""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.bigquery.emulator.install import install
from tests.bigquery.emulator.server import Emulator


def main() -> None:
    """Do what was asked for."""
    parser = argparse.ArgumentParser("python -m tests.bigquery.emulator")
    parser.add_argument("--serve", metavar="FOLDER", type=Path, help="run it on the data in this folder")
    folder = parser.parse_args().serve
    install()
    if folder:
        with Emulator(folder) as emulator:
            print(f"api_endpoint {emulator.url}, storage_api_endpoint {emulator.grpc}, project {emulator.project}")
            emulator.wait()


if __name__ == "__main__":
    main()
