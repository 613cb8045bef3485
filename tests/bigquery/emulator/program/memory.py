"""Keeps the catalogue and the jobs in memory, written through to a file that outlives a kill.

The emulator reads them dozens of times per request, from tables of DuckDB, and writes a job three times.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
import threading
from collections.abc import Iterator

from local_bigquery.catalog import datasets, metadata, row_access
from local_bigquery.errors import STATUSES, BigQueryError
from local_bigquery.jobs import store
from local_bigquery.models import Dataset, Job, JobStatus, RowAccessPolicy
from local_bigquery.resource import Resource
from local_bigquery.settings import settings

MOST_JOBS = 20_000
# Of a message and of a query, in the log.
SHOWN = 1_000

Key = tuple[str, ...]


class File:
    """Resources by kind and key. Commits do not wait for the disk: a killed process loses nothing by that."""

    def __init__(self) -> None:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            settings.data_dir / "resources.sqlite", isolation_level=None, check_same_thread=False
        )
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.execute("CREATE TABLE IF NOT EXISTS resources (kind, key, body, PRIMARY KEY (kind, key))")

    def read(self, kind: str) -> Iterator[tuple[Key, str]]:
        """All of a kind, oldest first."""
        rows = self._connection.execute("SELECT key, body FROM resources WHERE kind = ? ORDER BY rowid", (kind,))
        return ((tuple(json.loads(key)), body) for key, body in rows.fetchall())

    def write(self, kind: str, key: Key, body: str) -> None:
        """Add or replace one."""
        with self._lock:
            self._connection.execute("INSERT OR REPLACE INTO resources VALUES (?, ?, ?)", (kind, json.dumps(key), body))

    def delete(self, kind: str, key: Key) -> None:
        """Remove one; nothing happens when it is not there."""
        with self._lock:
            self._connection.execute("DELETE FROM resources WHERE kind = ? AND key = ?", (kind, json.dumps(key)))


class Catalogue:
    """What `local_bigquery.catalog.metadata` does."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._resources: dict[type[Resource], dict[Key, Resource]] = {
            model: {key: model.model_validate_json(body) for key, body in file.read(kind)}
            for model, kind in metadata.KINDS.items()
        }

    def list_(self, model: type[Resource], *keys: str) -> list[Resource]:
        found = self._resources[model]
        if len(keys) == len(metadata.RESOURCES[metadata.KINDS[model]]):
            return [found[keys]] if keys in found else []
        return [resource for key, resource in list(found.items()) if key[: len(keys)] == keys]

    def load(self, model: type[Resource], *keys: str) -> Resource | None:
        return self._resources[model].get(keys)

    def save(self, resource: Resource, *keys: str) -> Resource:
        body = {name: value for name, value in resource.dump().items() if name != "etag"}
        etag = hashlib.md5(json.dumps(body, sort_keys=True).encode()).hexdigest()
        resource = resource.replace(etag=etag)
        self._file.write(metadata.KINDS[type(resource)], keys, json.dumps(body | {"etag": etag}))
        self._resources[type(resource)][keys] = resource
        return resource

    def delete(self, model: type[Resource], *keys: str) -> None:
        found = self._resources[model]
        for key in [key for key in list(found) if key[: len(keys)] == keys]:
            self._file.delete(metadata.KINDS[model], key)
            found.pop(key, None)

    def secured(self) -> frozenset[Key]:
        return frozenset(key[:3] for key in self._resources[RowAccessPolicy])

    def dataset_exists(self, project_id: str, dataset_id: str) -> bool:
        known = (project_id, dataset_id) in self._resources[Dataset]
        return known or _UNRECORDED_EXISTS(project_id, dataset_id)


class Jobs:
    """What `local_bigquery.jobs.store` does."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._jobs: dict[Key, Job] = {}
        for key, body in file.read("jobs"):
            self._jobs[key] = _ended(Job.model_validate_json(body))

    def save(self, job: Job) -> Job:
        key = (job.jobReference.projectId, job.jobReference.jobId)
        # It is read only after a kill, when all that matters about an unfinished job is that its id is taken.
        if key not in self._jobs or job.status.state == "DONE":
            self._file.write("jobs", key, json.dumps(job.dump()))
        self._jobs[key] = job
        if job.status.errorResult:
            _complain(job)
        while len(self._jobs) > MOST_JOBS:
            oldest = next(iter(self._jobs))
            self.delete(*oldest)
        return job

    def load(self, project_id: str, job_id: str) -> Job | None:
        return self._jobs.get((project_id, job_id))

    def list_(
        self,
        project_id: str,
        states: list[str] | None = None,
        parent_job_id: str | None = None,
        min_creation_time: int | None = None,
        max_creation_time: int | None = None,
    ) -> list[Job]:
        found = [
            job
            for job in list(self._jobs.values())
            if job.jobReference.projectId == project_id
            and job.statistics.parentJobId == parent_job_id
            and (states is None or job.status.state in states)
            and (min_creation_time or 0) <= int(job.statistics.creationTime) <= (max_creation_time or 1 << 62)
        ]
        return sorted(found, key=lambda job: (-int(job.statistics.creationTime), job.jobReference.jobId))

    def delete(self, project_id: str, job_id: str) -> None:
        self._file.delete("jobs", (project_id, job_id))
        self._jobs.pop((project_id, job_id), None)


def _complain(job: Job) -> None:
    """Into the log, which a test that fails shows; the project's own errors say nothing about values."""
    problem, asked = job.status.errorResult, job.configuration.query
    where = f" in: {(asked.query or '')[:SHOWN]}" if asked else ""
    print(
        f"{job.jobReference.jobId} {problem.reason}: {(problem.message or '')[:SHOWN]}{where}",
        file=sys.stderr,
        flush=True,
    )


def _ended(job: Job) -> Job:
    """A job that was running when the emulator was killed has failed, as one does whose worker is lost."""
    if job.status.state == "DONE":
        return job
    error = BigQueryError("backendError", "The job encountered an error during execution.").proto()
    return job.replace(status=JobStatus(state="DONE").replace(errorResult=error, errors=[error]).dump())


_UNRECORDED_EXISTS = datasets.exists


def apply() -> None:
    """Put both in the place of the modules' functions."""
    STATUSES.setdefault("backendError", (503, "UNAVAILABLE"))
    file = File()
    catalogue, jobs = Catalogue(file), Jobs(file)
    for name in ("list_", "load", "save", "delete"):
        setattr(metadata, name, getattr(catalogue, name))
        setattr(store, name, getattr(jobs, name))
    row_access.secured = catalogue.secured
    datasets.exists = catalogue.dataset_exists
