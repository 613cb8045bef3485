"""The life of a job: sent under an id of our own until BigQuery has it, watched until its end is known.

A job whose answer was lost is asked about by its id, and sent again under the same one only; so it runs once. Only one
that is known to have failed is followed by another, under the next id, since BigQuery takes each id once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from typing import Any, Generic, TypeVar
from uuid import uuid4

from etl_dagster.destinations.bigquery.errors import (
    failures,
    is_duplicate_job,
    is_missing_job,
    is_worth_repeating,
    translate,
)
from etl_dagster.errors import DestinationError, ErrorKind, EtlError
from etl_dagster.retry import Backoff, Retrier, pause, stopped

T = TypeVar("T")

_PREFIX = "etl_"
_DONE = "DONE"
# A load job of a small file takes about a second.
_FIRST_LOOK_SECONDS, _LOOK_FACTOR, _LONGEST_LOOK_SECONDS = 0.1, 1.5, 5.0
# Asked about right after BigQuery has said that it exists, a job may be unknown for a moment.
_APPEARS = Backoff(first_seconds=0.2, max_seconds=2.0, max_attempts=12, max_total_seconds=15.0)
# Long enough for most jobs; service managers kill after 30 s (Kubernetes) or 90 s (systemd).
_GRACE_SECONDS = 10.0
# So that the time alone is the limit: waits are that long on the average, once they have grown.
_WAIT_SECONDS, _FEWEST_ATTEMPTS = 5.0, 20


@dataclass(frozen=True)
class Work(Generic[T]):
    """A job to be run.

    Attributes:
        key: What tells it from all others of the dataset, also after a restart of the process; with none it is new.
        send: Sends it under an id.
        result: Waits until it is done, as long as it likes, and gives its result; fails if the job does.
        heavy: Sending takes long, so whether it has run is asked first.
    """

    key: str | None
    send: Callable[[str], Any]
    result: Callable[[Any], T]
    heavy: bool = False


class _Failed(Exception):
    """A job is known to have failed.

    Attributes:
        ours: This call has sent it; an earlier one otherwise, and then its error is none of ours.
    """

    def __init__(self, error: EtlError, *, ours: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.ours = ours


class _Patience:
    """Waits between attempts, and raises what cannot be mended by waiting."""

    def __init__(self, doing: str, table: str | None, backoff: Backoff) -> None:
        self._doing, self._table = doing, table
        self._retrier = Retrier("BigQuery", when=is_worth_repeating, backoff=backoff)

    @property
    def failures(self) -> int:
        return self._retrier.failures

    def failed(self, error: BaseException, job: str = "") -> None:
        """Wait after an error of Google's, or raise it as ours."""
        self.refused(translate(error, self._doing, self._table, job))

    def refused(self, error: EtlError) -> None:
        pause(self._retrier.failed(error))
        if stopped():  # nobody waits for what is tried again; the next process goes on
            raise error


def _left_running(job: Any, doing: str) -> EtlError:
    return DestinationError(
        f"Stopped while BigQuery was still about to {doing} (job {job.job_id})",
        hint="Nothing to do: the next run waits for the job, or takes what it has done",
        kind=ErrorKind.DESTINATION_UNAVAILABLE,
    )


class Jobs:
    """Runs jobs and requests.

    Args:
        find: Gets a job by its id.
        scope: Goes into every id made of a key.
    """

    def __init__(self, find: Callable[[str], Any], scope: str, retry_seconds: float, timeout_seconds: float) -> None:
        self._find = find
        self._scope = scope
        self._timeout = timeout_seconds
        attempts = max(_FEWEST_ATTEMPTS, int(retry_seconds / _WAIT_SECONDS))
        self._backoff = Backoff(first_seconds=0.5, max_attempts=attempts, max_total_seconds=retry_seconds)
        self._failures: tuple[type[BaseException], ...] = failures()

    def call(self, request: Callable[[], T], doing: str, table: str | None = None) -> T:
        """One request that may be repeated without harm, until it is answered."""
        patience = _Patience(doing, table, self._backoff)
        while True:
            try:
                return request()
            except self._failures as error:
                patience.failed(error)

    def run(self, work: Work[T], doing: str, table: str | None = None) -> T:
        """The result of the one job of this work that succeeds."""
        patience = _Patience(doing, table, self._backoff)
        for job_id in self._ids(work.key):
            try:
                return self._run(work, job_id, doing, table)
            except _Failed as failed:
                if failed.ours:
                    patience.refused(failed.error)
        raise AssertionError("ids do not end")

    def succeeded(self, key: str, doing: str, table: str | None = None) -> Any | None:
        """The job of this key that has succeeded, once it is done; None when there is none."""
        for job_id in self._ids(key):
            job = self._existing(job_id, doing, table)
            if job is None:
                return None
            if self.watch(job, doing, table).error_result is None:
                return job
        raise AssertionError("ids do not end")

    def watch(self, job: Any, doing: str, table: str | None = None) -> Any:
        """The job, once it is done."""
        wait, stopped_at = _FIRST_LOOK_SECONDS, None
        while job.state != _DONE:
            time.sleep(wait)
            wait = min(wait * _LOOK_FACTOR, _LONGEST_LOOK_SECONDS)
            stopped_at = (stopped_at or time.monotonic()) if stopped() else None
            if stopped_at and time.monotonic() - stopped_at > _GRACE_SECONDS:
                raise _left_running(job, doing)
            self._reload(job, doing, table)
        return job

    def _reload(self, job: Any, doing: str, table: str | None) -> None:
        self.call(lambda: job.reload(retry=None, timeout=self._timeout), doing, table)

    def _ids(self, key: str | None) -> Iterator[str]:
        name = uuid4().hex if key is None else sha256(f"{self._scope}/{key}".encode()).hexdigest()[:40]
        yield f"{_PREFIX}{name}"
        for number in count(2):
            yield f"{_PREFIX}{name}_r{number}"

    def _run(self, work: Work[T], job_id: str, doing: str, table: str | None) -> T:
        job = self._existing(job_id, doing, table) if work.heavy and work.key is not None else None
        ours = False
        if job is None:
            job, ours = self._send(work, job_id, doing, table)
        patience = _Patience(doing, table, self._backoff)
        while True:
            try:
                return work.result(job)
            except self._failures as error:
                self._judge(job, ours, doing, table)
                if job.state == _DONE or not isinstance(error, TimeoutError):  # else it takes its time
                    patience.failed(error, job_id)

    def _send(self, work: Work[T], job_id: str, doing: str, table: str | None) -> tuple[Any, bool]:
        patience = _Patience(doing, table, self._backoff)
        while True:
            try:
                return work.send(job_id), True
            except self._failures as error:
                if is_duplicate_job(error):
                    return self._appearing(job_id, doing, table), patience.failures > 0
                refusal = translate(error, doing, table, job_id)
                # An earlier request, whose answer was lost, may have got further than this one.
                hopeless = bool(patience.failures) and not is_worth_repeating(refusal)
                if hopeless and (job := self._existing(job_id, doing, table)) is not None:
                    return job, True
                patience.refused(refusal)

    def _judge(self, job: Any, ours: bool, doing: str, table: str | None) -> None:
        """Raise when the job is known to have failed; what a request for its result said may be of the request."""
        self._reload(job, doing, table)
        if job.state == _DONE and job.error_result is not None:
            raise _Failed(translate(job.exception(), doing, table, job.job_id), ours=ours)

    def _existing(self, job_id: str, doing: str, table: str | None) -> Any | None:
        def find() -> Any | None:
            try:
                return self._find(job_id)
            except self._failures as error:
                if is_missing_job(error):
                    return None
                raise

        return self.call(find, doing, table)

    def _appearing(self, job_id: str, doing: str, table: str | None) -> Any:
        retrier = Retrier(
            f"BigQuery: find job {job_id}", when=lambda error: isinstance(error, LookupError), backoff=_APPEARS
        )
        while (job := self._existing(job_id, doing, table)) is None:
            pause(retrier.failed(LookupError(job_id)))
        return job
