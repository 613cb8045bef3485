"""A proxy between Google's client and the emulator that makes what goes wrong in a data centre, when told to.

A test scripts faults before it acts, and reads the journal afterwards::

    proxy.fault(Answer(reason="backendError"), path="/jobs$", method="POST")     # the next one, nothing is forwarded
    proxy.fault(LoseAnswer(), body="MERGE", nth=2)                               # it happened, but nobody is told
    proxy.fault(FailJob("quotaExceeded"), job="load")                            # only the job's status says so
    with dataset.through(proxy).client() as client: ...
    assert [call.method for call in proxy.calls] == [...]

Every fault is used up by the call that it met, unless ``times`` says otherwise. ``proxy.unused`` says which met none.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import parse_qs, urlsplit

# As documented for BigQuery's errors; 400 for all others.
STATUS_OF_REASON: Mapping[str, int] = {
    "accessDenied": 403,
    "backendError": 503,
    "badGateway": 502,
    "billingNotEnabled": 403,
    "blocked": 403,
    "duplicate": 409,
    "internalError": 500,
    "notFound": 404,
    "notImplemented": 501,
    "quotaExceeded": 403,
    "rateLimitExceeded": 403,
    "responseTooLarge": 403,
    "unauthorized": 401,
}
JOB_KINDS = ("query", "load", "copy", "extract")
# Faults are matched against the beginning of a body: an upload's is as long as its file.
_BODY_SEEN = 1 << 20
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"})
_JOB_PATH = re.compile(r"/(?:jobs|queries)/([^/]+)$")


@dataclass(frozen=True)
class Call:
    """One request, as the journal keeps it."""

    number: int
    method: str
    path: str
    query: str
    body: bytes = field(repr=False, default=b"")
    job_id: str | None = None
    job: str | None = None
    """Kind of the job that the request starts or carries data for: query, load, copy or extract."""


Moment = Literal["before", "after"]
Hook = Callable[[Call, Moment], bool | None]


@dataclass(frozen=True)
class Answer:
    """Answers with an error instead of the emulator, which never hears of the request."""

    reason: str = "backendError"
    message: str = "injected"
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def response(self) -> Response:
        """The error as BigQuery writes it."""
        status = self.status or STATUS_OF_REASON.get(self.reason, 400)
        problem = {"reason": self.reason, "message": self.message, "domain": "global"}
        return Response.of_json(
            status, {"error": {"code": status, "message": self.message, "errors": [problem]}}, self.headers
        )


@dataclass(frozen=True)
class LoseRequest:
    """Closes the connection; the emulator never hears of the request."""


@dataclass(frozen=True)
class LoseAnswer:
    """Lets the emulator do its work, then closes the connection without an answer."""


@dataclass(frozen=True)
class CutAnswer:
    """Closes the connection in the middle of the answer's body."""


@dataclass(frozen=True)
class Delay:
    """Waits before the request goes on."""

    seconds: float


@dataclass(frozen=True)
class Hold:
    """Waits until ``release`` is set before the request goes on; ``reached`` is set when it is here."""

    reached: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class FailJob:
    """The request that starts a job gets a job that has failed, without a trace in the emulator but the id, which stays
    taken. The error shows only in the job's status, as quotas and the backend's troubles do."""

    reason: str = "backendError"
    message: str = "injected"


@dataclass(frozen=True)
class Unfinished:
    """The job is said to be running in the answer, and in as many further ones about it."""

    answers: int = 1


Fault = Answer | LoseRequest | LoseAnswer | CutAnswer | Delay | Hold | FailJob | Unfinished


@dataclass
class Response:
    """What goes back to the client."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @classmethod
    def of_json(cls, status: int, content: object, headers: Mapping[str, str] | None = None) -> Self:
        """An answer of JSON."""
        return cls(
            status, [("Content-Type", "application/json"), *(headers or {}).items()], json.dumps(content).encode()
        )

    def json(self) -> Any:
        """The body's content; None when it is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


@dataclass
class _Rule:
    fault: Fault
    method: str | None
    path: re.Pattern[str] | None
    body: re.Pattern[bytes] | None
    job: str | None
    nth: int
    times: int
    met: int = 0

    def takes(self, call: Call) -> bool:
        """Whether the fault is for this call; counts the calls that it could be for."""
        if self.method not in (None, call.method) or self.job not in (None, call.job):
            return False
        if self.path and not self.path.search(call.path):
            return False
        if self.body and not self.body.search(call.body):
            return False
        self.met += 1
        return self.nth <= self.met < self.nth + self.times

    @property
    def spent(self) -> bool:
        return self.met >= self.nth + self.times - 1


class _LostError(Exception):
    """The connection to the client is to be closed without an answer."""


class FaultProxy:
    """Listens on loopback and forwards to ``upstream``, a URL."""

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream)
        self._lock = threading.Lock()
        self._calls: list[Call] = []
        self._rules: list[_Rule] = []
        self._hooks: list[Hook] = []
        self._failed: dict[str, dict[str, Any]] = {}
        self._unfinished: dict[str, int] = {}
        self._uploads: dict[str, tuple[str | None, dict[str, Any]]] = {}
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """For ``api_endpoint``."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def calls(self) -> list[Call]:
        """All requests so far, in the order of their arrival."""
        with self._lock:
            return list(self._calls)

    @property
    def unused(self) -> list[Fault]:
        """Faults that have not met all the calls they were for."""
        with self._lock:
            return [rule.fault for rule in self._rules if not rule.spent]

    def fault(
        self,
        fault: Fault,
        *,
        method: str | None = None,
        path: str | None = None,
        body: str | None = None,
        job: str | None = None,
        nth: int = 1,
        times: int = 1,
    ) -> None:
        """Let it happen to the nth call from now on that fits, and to so many in a row.

        ``path`` and ``body`` are regular expressions, ``job`` is the kind of job that the call starts. A resumable
        upload starts its job with the last part of the file; the call that opens it counts as one with a job too, but
        `FailJob` and `Unfinished` wait for the part that starts the job.
        """
        assert job is None or job in JOB_KINDS
        compiled = re.compile(body.encode(), re.DOTALL) if body else None
        rule = _Rule(fault, method, re.compile(path) if path else None, compiled, job, nth, times)
        with self._lock:
            self._rules.append(rule)

    def heal(self) -> None:
        """Forget all faults that are still to come; jobs that failed stay failed."""
        with self._lock:
            self._rules.clear()

    @contextmanager
    def on_call(self, hook: Hook) -> Iterator[None]:
        """Call ``hook(call, moment)`` in a thread of the proxy around every request: ``before`` it is forwarded and
        ``after`` the emulator has answered. When it returns True, the connection to the client is closed."""
        with self._lock:
            self._hooks.append(hook)
        try:
            yield
        finally:
            with self._lock:
                self._hooks.remove(hook)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for rule in self._rules:
            if isinstance(rule.fault, Hold):
                rule.fault.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    # What a request goes through.

    def _handle(self, method: str, target: str, headers: list[tuple[str, str]], body: bytes) -> tuple[Response, bool]:
        """The answer, and whether it is to be cut."""
        call = self._enter(method, target, headers, body)
        fault = self._fault_for(call)
        self._run_hooks(call, "before")
        response = self._before(call, fault)
        if response is None:
            response = self._known_job(call) or self._forward(method, target, headers, body)
            self._remember_upload(call, response)
        self._run_hooks(call, "after")
        if isinstance(fault, LoseAnswer):
            raise _LostError
        return self._delayed_job(call, fault, response), isinstance(fault, CutAnswer)

    def _enter(self, method: str, target: str, headers: list[tuple[str, str]], body: bytes) -> Call:
        parts = urlsplit(target)
        job_id, kind = self._job_of(method, parts.path, parts.query, headers, body)
        with self._lock:
            call = Call(len(self._calls) + 1, method, parts.path, parts.query, body[:_BODY_SEEN], job_id, kind)
            self._calls.append(call)
            return call

    def _job_of(
        self, method: str, path: str, query: str, headers: list[tuple[str, str]], body: bytes
    ) -> tuple[str | None, str | None]:
        if found := _JOB_PATH.search(path):
            return found[1], None
        upload = parse_qs(query).get("upload_id", [""])[0]
        if upload in self._uploads:
            job_id, resource = self._uploads[upload]
        elif method == "POST" and path.endswith(("/jobs", "/queries")):
            job_id, resource = _posted_job(headers, body)
        else:
            return None, None
        if path.endswith("/queries"):
            return job_id, "query"
        configuration = resource.get("configuration", {})
        return job_id, next((kind for kind in JOB_KINDS if kind in configuration), None)

    def _fault_for(self, call: Call) -> Fault | None:
        with self._lock:
            for rule in self._rules:
                if isinstance(rule.fault, FailJob | Unfinished) and not _starts_job(call):
                    continue
                if rule.takes(call):
                    return rule.fault
        return None

    def _run_hooks(self, call: Call, moment: Moment) -> None:
        with self._lock:
            hooks = list(self._hooks)
        lost = [hook(call, moment) for hook in hooks]
        if any(lost):
            raise _LostError

    def _before(self, call: Call, fault: Fault | None) -> Response | None:
        match fault:
            case LoseRequest():
                raise _LostError
            case Answer():
                return fault.response()
            case Delay():
                time.sleep(fault.seconds)
            case Hold():
                fault.reached.set()
                fault.release.wait()
            case FailJob():
                return self._fail_job(call, fault)
        return None

    def _forward(self, method: str, target: str, headers: list[tuple[str, str]], body: bytes) -> Response:
        connection = http.client.HTTPConnection(self._upstream.netloc)
        try:
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in headers:
                if name.lower() not in _HOP_BY_HOP | {"content-length"}:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return Response(answer.status, answer.getheaders(), answer.read())
        except (OSError, http.client.HTTPException) as error:
            raise _LostError from error
        finally:
            connection.close()

    def _remember_upload(self, call: Call, response: Response) -> None:
        location = {name.lower(): value for name, value in response.headers}.get("location", "")
        if upload := parse_qs(urlsplit(location).query).get("upload_id"):
            with self._lock:
                self._uploads[upload[0]] = (call.job_id, {"configuration": {call.job: {}}})

    # Jobs whose status is not the emulator's.

    def _fail_job(self, call: Call, fault: FailJob) -> Response:
        project = call.path.split("/projects/")[1].split("/")[0]
        job_id = call.job_id or f"failed_{call.number}"
        problem = {"reason": fault.reason, "message": fault.message}
        now = str(int(time.time() * 1000))
        job = {
            "kind": "bigquery#job",
            "id": f"{project}:US.{job_id}",
            "jobReference": {"projectId": project, "jobId": job_id, "location": "US"},
            "configuration": {call.job: {}, "jobType": (call.job or "").upper()},
            "status": {"state": "DONE", "errorResult": problem, "errors": [problem]},
            "statistics": {"creationTime": now, "startTime": now, "endTime": now},
        }
        with self._lock:
            self._failed[job_id] = job
        return _failure(job) if call.path.endswith("/queries") else Response.of_json(200, job)

    def _known_job(self, call: Call) -> Response | None:
        with self._lock:
            job = self._failed.get(call.job_id or "")
        if job is None:
            return None
        if call.method != "GET":
            return Answer("duplicate", f"Already Exists: Job {job['id']}").response()
        return _failure(job) if "/queries/" in call.path else Response.of_json(200, job)

    def _delayed_job(self, call: Call, fault: Fault | None, response: Response) -> Response:
        with self._lock:
            if isinstance(fault, Unfinished) and call.job_id:
                self._unfinished[call.job_id] = fault.answers + 1
            left = self._unfinished.get(call.job_id or "", 0)
            if left:
                self._unfinished[call.job_id or ""] = left - 1
        content = response.json() if left and response.status == 200 else None
        return Response.of_json(200, _running(content)) if isinstance(content, dict) else response


def _starts_job(call: Call) -> bool:
    opens_upload = call.method == "POST" and "uploadType=resumable" in call.query.split("&")
    return call.job is not None and not opens_upload


def _running(content: dict[str, Any]) -> dict[str, Any]:
    """What the client reads about a job, before it has ended."""
    if "status" in content:
        return content | {"status": {"state": "RUNNING"}}
    kept = {name: content[name] for name in ("kind", "jobReference") if name in content}
    return kept | {"jobComplete": False}


def _failure(job: dict[str, Any]) -> Response:
    problem = job["status"]["errorResult"]
    return Answer(problem["reason"], problem["message"]).response()


def _posted_job(headers: list[tuple[str, str]], body: bytes) -> tuple[str | None, dict[str, Any]]:
    """Id and resource of the job in a request's body, which is JSON or, with a file, of several parts."""
    content_type = next((value for name, value in headers if name.lower() == "content-type"), "")
    if content_type.startswith("multipart/"):
        message = message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
        first = message.get_payload(0)
        assert not isinstance(first, str)
        payload = first.get_payload(decode=True)
        assert isinstance(payload, bytes)
        body = payload
    try:
        resource = json.loads(body or b"{}")
    except ValueError:
        return None, {}
    return resource.get("jobReference", {}).get("jobId") or resource.get("requestId"), resource


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, proxy: FaultProxy) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.proxy = proxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed has closed its connection: that is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def _do(self) -> None:
        body = self._body()
        try:
            response, cut = self.server.proxy._handle(self.command, self.path, list(self.headers.items()), body)
        except _LostError:
            self._reset()
            return
        self.send_response_only(response.status)
        for name, value in response.headers:
            if name.lower() not in _HOP_BY_HOP | {"content-length"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        self.wfile.write(response.body[: len(response.body) // 2] if cut else response.body)
        self.wfile.flush()
        if cut:
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _do  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return b"".join(self._chunks())
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _reset(self) -> None:
        # Without lingering, closing sends a reset instead of a proper end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """The journal says it."""
