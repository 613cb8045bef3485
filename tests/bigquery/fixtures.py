"""Fixtures for whoever tests against BigQuery: one emulator per session, a fresh dataset per test.

``tests/conftest.py`` makes them known everywhere.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from tests.bigquery.emulator import Emulator, GcsServer
from tests.bigquery.proxy import FaultProxy

if TYPE_CHECKING:
    from google.cloud.bigquery import Client

    from etl_dagster.destinations.bigquery.config import BigQueryConfig

_MEMORY = Path("/dev/shm")
_ENOUGH_MEMORY = 2 << 30


@dataclass(frozen=True)
class Dataset:
    """A dataset of the emulator that is the test's own."""

    emulator: Emulator
    name: str
    url: str

    @property
    def project(self) -> str:
        """The project it is in."""
        return self.emulator.project

    def config(self, **changes: Any) -> BigQueryConfig:
        """The destination's config for this dataset, with parts replaced."""
        from etl_dagster.destinations.bigquery.config import BigQueryConfig

        return BigQueryConfig.model_validate(self.settings() | changes)

    def settings(self) -> dict[str, Any]:
        """The same as a pipeline's file says it."""
        return {
            "type": "bigquery",
            "project": self.project,
            "dataset": self.name,
            "credentials": {"type": "anonymous"},
            "api_endpoint": self.url,
            "storage_api_endpoint": self.emulator.grpc,
        }

    def through(self, proxy: FaultProxy) -> Dataset:
        """The same dataset for who reaches it through a proxy."""
        return replace(self, url=proxy.url)

    def client(self) -> Client:
        """Google's own client, to look at what is there. Close it, or use it in a ``with`` block."""
        return google_client(self.url, self.name)


def google_client(url: str, dataset: str | None = None) -> Client:
    """Google's own client for an emulator or a proxy in front of it."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import bigquery

    default = f"{Emulator.project}.{dataset}" if dataset else None
    return bigquery.Client(
        project=Emulator.project,
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": url},
        default_query_job_config=bigquery.QueryJobConfig(default_dataset=default) if default else None,
    )


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[GcsServer]:
    """Where ``gs://`` leads: a bucket has to be made before it is used."""
    with _fast_folder() as folder, GcsServer(Path(folder)) as server:
        yield server


@pytest.fixture(scope="session")
def bigquery_emulator(gcs_server: GcsServer) -> Iterator[Emulator]:
    """The emulator all tests share. Who kills it, starts it again."""
    with _fast_folder() as folder, Emulator(Path(folder), storage=gcs_server.url) as emulator:
        yield emulator


@pytest.fixture
def bigquery_dataset(bigquery_emulator: Emulator) -> Iterator[Dataset]:
    """A dataset that does not exist yet, under a name of its own; dropped afterwards."""
    dataset = Dataset(bigquery_emulator, f"test_{uuid4().hex[:12]}", bigquery_emulator.url)
    yield dataset
    with dataset.client() as client:
        client.delete_dataset(dataset.name, delete_contents=True, not_found_ok=True)


@pytest.fixture
def bigquery_proxy(bigquery_emulator: Emulator) -> Iterator[FaultProxy]:
    """A way to the emulator that loses requests and answers when told to: `Dataset.through`."""
    with FaultProxy(bigquery_emulator.url) as proxy:
        yield proxy


def _fast_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder in memory where there is plenty: every commit waits for the disk otherwise."""
    roomy = os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _ENOUGH_MEMORY
    return tempfile.TemporaryDirectory(prefix="etl-bigquery-", dir=_MEMORY if roomy else None)
