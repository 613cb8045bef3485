"""BigQuery's errors in our terms: one table by reason and one by class name, which need none of Google's libraries.

BigQuery's messages quote values of rows, so they are never passed on; what is known to be harmless is picked out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from etl_dagster.errors import DestinationError, ErrorKind, EtlError, RowIncomplete, TableError, ValueUnrepresentable


class Fault(NamedTuple):
    """What an error means.

    Attributes:
        kind: Who is at fault.
        hint: What the operator does next.
        again: The same request, or a job like it, may well succeed within minutes.
    """

    kind: ErrorKind
    hint: str
    again: bool = False


_BUSY = Fault(ErrorKind.DESTINATION_UNAVAILABLE, "Nothing to do: it is tried again by itself", again=True)
_NETWORK = Fault(
    ErrorKind.DESTINATION_UNAVAILABLE, "Check that this machine reaches BigQuery (443/tcp, DNS, proxy)", again=True
)
_LATER = Fault(ErrorKind.DESTINATION_UNAVAILABLE, "It is tried again later; see the job in BigQuery's console")
_OURS = Fault(ErrorKind.DESTINATION_REFUSED, "Report this together with the log and the job's id")
DENIED_HINT = "Grant the account what `etl-dagster check` names as missing, then resume"
_DENIED = Fault(ErrorKind.DESTINATION_REFUSED, DENIED_HINT)
_LOGIN = Fault(ErrorKind.CONFIG, "Check destination.credentials: whether the key or the account still exists")
_NO_LOGIN = Fault(
    ErrorKind.CONFIG,
    "Give destination.credentials, set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`",
)
_ENDPOINT = Fault(ErrorKind.CONFIG, "Check destination.api_endpoint and the proxy's settings in the environment")
_TLS = Fault(
    ErrorKind.DESTINATION_REFUSED,
    "Make the proxy's certificate known to this machine (REQUESTS_CA_BUNDLE), or go round it",
)
_BILLING = Fault(
    ErrorKind.DESTINATION_REFUSED, "Enable billing for the project; the free tier allows neither DML nor loads of size"
)
_QUOTA = Fault(
    ErrorKind.DESTINATION_REFUSED,
    "A quota is used up: raise it under IAM & Admin > Quotas, or raise destination.batch_seconds; then resume",
)
_PROJECT_QUOTA = Fault(
    ErrorKind.DESTINATION_UNAVAILABLE,
    "It goes on by itself once Google counts anew, at midnight in California; sooner if the quota is raised under "
    "IAM & Admin > Quotas. A longer destination.batch_seconds takes less",
)
_LOADS = Fault(
    ErrorKind.DESTINATION_REFUSED,
    "The table has had its 1,500 loads of the day: wait a day, or raise destination.batch_seconds or inline_bytes",
)
_BYTES = Fault(
    ErrorKind.DESTINATION_REFUSED,
    "Raise destination.maximum_bytes_billed, or partition the table so that a batch reads less of it",
)
_RESOURCES = Fault(
    ErrorKind.DESTINATION_REFUSED,
    "One batch takes more than BigQuery gives: cluster or partition the table, or have smaller batches by a shorter "
    "destination.batch_seconds; then resume",
)
_GONE = Fault(ErrorKind.TABLE, "Somebody removed or renamed it; copy the table again")
_ALTERED = Fault(ErrorKind.TABLE, "Somebody altered the table, or a value does not fit it; copy the table again")
_VALUE = Fault(ErrorKind.VALUE, "Change the column's type at the source, or leave the column out with a column list")
_EXISTS = Fault(ErrorKind.TABLE, "Something of that name exists already; rename or drop it, or change table_name")
_NO_DATASET = Fault(
    ErrorKind.DESTINATION_REFUSED, "Make the dataset again, or correct destination.dataset, project or location"
)
_NO_BUCKET = Fault(
    ErrorKind.DESTINATION_REFUSED, "Make the bucket of destination.staging, or correct its name; then resume"
)
_API_OFF = Fault(
    ErrorKind.DESTINATION_REFUSED, "Enable the BigQuery API in the project; then resume after some minutes"
)
_LOCKED_OUT = Fault(ErrorKind.DESTINATION_REFUSED, "Google has blocked the project or the query: contact their support")
_EPOCH = Fault(
    ErrorKind.DESTINATION_UNAVAILABLE, "Another process of this pipeline has written: stop all but one of them"
)

# Reasons of errors of requests and of jobs; those of other Google APIs that BigQuery passes on stand at the end.
REASONS: dict[str, Fault] = {
    "accessDenied": _DENIED,
    "attributeError": _OURS,
    "backendError": _BUSY,
    "badGateway": _BUSY,
    "billingNotEnabled": _BILLING,
    "billingTierLimitExceeded": _BILLING,
    "blocked": _LOCKED_OUT,
    "bytesBilledLimitExceeded": _BYTES,
    "duplicate": _EXISTS,
    "internalError": _BUSY,
    "invalid": _ALTERED,
    "invalidQuery": _ALTERED,
    "invalidUser": _LOGIN,
    "jobBackendError": _BUSY,
    "jobInternalError": _BUSY,
    "jobRateLimitExceeded": _BUSY,
    "notFound": _GONE,
    "notImplemented": _OURS,
    "proxyAuthenticationRequired": _ENDPOINT,
    "quotaExceeded": _QUOTA,
    "rateLimitExceeded": _BUSY,
    "resourceInUse": _BUSY,
    "resourcesExceeded": _RESOURCES,
    "responseTooLarge": _RESOURCES,
    "stopped": _LATER,
    "tableUnavailable": _BUSY,
    "timeout": _LATER,
    "accessNotConfigured": _API_OFF,
    "SERVICE_DISABLED": _API_OFF,
    "authError": _LOGIN,
    "badRequest": _OURS,
    "conditionNotMet": _BUSY,
    "dailyLimitExceeded": _QUOTA,
    "forbidden": _DENIED,
    "parseError": _OURS,
    "required": _OURS,
    "unauthorized": _LOGIN,
    "userRateLimitExceeded": _BUSY,
}

# Classes of Google's libraries and of those below them, by name; the first of an error's bases that is here counts.
CLASSES: dict[str, Fault] = {
    # google.api_core, also for gRPC's codes
    "BadRequest": _OURS,
    "InvalidArgument": _OURS,
    "FailedPrecondition": _OURS,
    "OutOfRange": _OURS,
    "Unauthorized": _LOGIN,
    "Unauthenticated": _LOGIN,
    "Forbidden": _DENIED,
    "PermissionDenied": _DENIED,
    "NotFound": _GONE,
    "MethodNotAllowed": _ENDPOINT,
    "Conflict": _EXISTS,
    "AlreadyExists": _EXISTS,
    "Aborted": _BUSY,
    "LengthRequired": _OURS,
    "PreconditionFailed": _BUSY,
    "RequestRangeNotSatisfiable": _BUSY,
    "TooManyRequests": _BUSY,
    "ResourceExhausted": _BUSY,
    "Cancelled": _BUSY,
    "InternalServerError": _BUSY,
    "Unknown": _BUSY,
    "DataLoss": _LATER,
    "MethodNotImplemented": _OURS,
    "BadGateway": _BUSY,
    "ServiceUnavailable": _BUSY,
    "GatewayTimeout": _BUSY,
    "DeadlineExceeded": _BUSY,
    "MovedPermanently": _ENDPOINT,
    "NotModified": _ENDPOINT,
    "TemporaryRedirect": _ENDPOINT,
    "ResumeIncomplete": _BUSY,
    "Redirection": _ENDPOINT,
    "ClientError": _OURS,
    "ServerError": _BUSY,
    "RetryError": _BUSY,
    "DuplicateCredentialArgs": _OURS,
    "AsyncRestUnsupportedParameterError": _OURS,
    "UnseekableStreamError": _OURS,
    "MissingStatusHeaderError": _BUSY,
    "ResumableTransferError": _BUSY,
    "TransferStalledError": _BUSY,
    "UploadCancelledError": _BUSY,
    "GoogleAPICallError": _LATER,
    "GoogleAPIError": _LATER,
    # google.resumable_media
    "InvalidResponse": _BUSY,
    "DataCorruption": _BUSY,
    # google.auth
    "TransportError": _NETWORK,
    "RefreshError": _LOGIN,
    "DefaultCredentialsError": _NO_LOGIN,
    "MalformedError": _LOGIN,
    "MutualTLSChannelError": _TLS,
    "ClientCertError": _TLS,
    "ResponseError": _NETWORK,
    "TimeoutError": _NETWORK,
    "GoogleAuthError": _LOGIN,
    # requests and urllib3
    "SSLError": _TLS,
    "ProxyError": _ENDPOINT,
    "URLRequired": _ENDPOINT,
    "TooManyRedirects": _ENDPOINT,
    "MissingSchema": _ENDPOINT,
    "InvalidSchema": _ENDPOINT,
    "InvalidURL": _ENDPOINT,
    "InvalidHeader": _OURS,
    "InvalidProxyURL": _ENDPOINT,
    "LocationValueError": _ENDPOINT,
    "UnrewindableBodyError": _OURS,
    "StreamConsumedError": _OURS,
    "RequestException": _NETWORK,
    "HTTPError": _NETWORK,
    "ConnectionError": _NETWORK,
    # grpc
    "RpcError": _BUSY,
}

# A rate that was exceeded passes by itself; anything else that a quota counts takes hours or a human.
_RATE = re.compile(r"concurrent|per (?:second|minute|100 seconds|10 seconds)|rate limit", re.IGNORECASE)
_OF_THE_PROJECT = re.compile(r"Custom quota exceeded|your project exceeded|QueryUsagePer", re.IGNORECASE)
_LOADS_OF_THE_DAY = re.compile(r"imports|load jobs|query appends|partition modifications", re.IGNORECASE)
# Said with a reason that says less.
_MESSAGES: tuple[tuple[re.Pattern[str], Fault], ...] = (
    (re.compile(r"Transaction is aborted due to concurrent update|Could not serialize access"), _BUSY),
    (re.compile(r"Too many DML statements outstanding"), _BUSY),
    (re.compile(r"Retrying (?:the job|may)|Please try again|try again later"), _BUSY),
    (re.compile(r"Query exceeded limit for bytes billed"), _BYTES),
    (re.compile(r"Billing has not been enabled|billing to be enabled"), _BILLING),
    (re.compile(r"has not been used in project .* before or it is disabled"), _API_OFF),
    (re.compile(r"Not found: (?:Dataset|Project)"), _NO_DATASET),
    (re.compile(r"bucket does not exist|/storage/v1/b/[^/?]+/o\b.*(?:404|[Nn]ot ?[Ff]ound)", re.DOTALL), _NO_BUCKET),
    (re.compile(r"\bBad \w+ value|Could not (?:parse|cast|convert)|Invalid \w+ value|overflow|out of range"), _VALUE),
)
# Only reasons that may stand for anything are read closer.
_VAGUE = frozenset({"invalid", "invalidQuery", "notFound", "resourcesExceeded", "accessDenied", "forbidden", ""})

# The address of the request stands before the message: bigquery.googleapis.com.
_PERMISSION = re.compile(
    r"\b((?:bigquery|storage|iam|serviceusage|cloudkms)\.(?!googleapis\b)[a-z][A-Za-z]*\.[a-z][A-Za-z]*)\b"
)
# What all tables share, so that none of them is at fault.
_OF_ALL_TABLES = frozenset({_NO_DATASET, _NO_BUCKET, _BILLING, _PROJECT_QUOTA, _API_OFF, _LOGIN, _NO_LOGIN})
_DENIED_TO_ALL = re.compile(r"Access Denied: (?:Project|Dataset|Job|User)|\bstorage\.(?:objects|buckets)\.")
_PLACE = re.compile(r"\bat \[\d+:\d+\]")
_ASSERTION = re.compile(r"\betl: (.+?)(?: at \[\d+:\d+\].*|; .*)?$", re.MULTILINE)
_NO_SUCH_JOB = re.compile(r"Not found: Job\b", re.IGNORECASE)
_SUCH_A_JOB = re.compile(r"Already Exists: Job\b", re.IGNORECASE)

_EDITOR, _USER, _OWNER = "roles/bigquery.dataEditor", "roles/bigquery.user", "roles/bigquery.dataOwner"
# Who holds a permission at the least.
ROLES: dict[str, str] = {
    "bigquery.jobs.create": "roles/bigquery.jobUser",
    "bigquery.jobs.get": "roles/bigquery.jobUser",
    "bigquery.datasets.create": _USER,
    "bigquery.datasets.get": _EDITOR,
    "bigquery.datasets.update": _OWNER,
    "bigquery.tables.create": _EDITOR,
    "bigquery.tables.delete": _EDITOR,
    "bigquery.tables.get": _EDITOR,
    "bigquery.tables.getData": _EDITOR,
    "bigquery.tables.list": _EDITOR,
    "bigquery.tables.update": _EDITOR,
    "bigquery.tables.updateData": _EDITOR,
    "bigquery.tables.export": _EDITOR,
    "bigquery.readsessions.create": "roles/bigquery.readSessionUser",
    "bigquery.readsessions.getData": "roles/bigquery.readSessionUser",
    "storage.objects.create": "roles/storage.objectUser",
    "storage.objects.delete": "roles/storage.objectUser",
    "storage.objects.get": "roles/storage.objectUser",
    "iam.serviceAccounts.getAccessToken": "roles/iam.serviceAccountTokenCreator",
}

_CLASS_OF_KIND: dict[ErrorKind, type[EtlError]] = {ErrorKind.TABLE: TableError, ErrorKind.VALUE: ValueUnrepresentable}
_INCOMPLETE = "incomplete "


def grant_hint(permission: str) -> str:
    """What to do when a permission is missing."""
    role = ROLES.get(permission)
    return f"Grant {permission}" + (f", which {role} has" if role else "") + ", then resume"


def reason_of(error: BaseException) -> str:
    """The reason that BigQuery gives; empty when it gives none."""
    details = getattr(error, "errors", None)
    first: Any = details[0] if isinstance(details, list | tuple) and details else None
    if isinstance(first, dict) and isinstance(first.get("reason"), str):
        return str(first["reason"])
    reason = getattr(error, "reason", None)
    return reason if isinstance(reason, str) and reason in REASONS else ""


def diagnose(error: BaseException) -> Fault:
    """What an error of Google's libraries, or of those below them, means."""
    error = _cause(error)
    text = str(error)
    if (said := assertion(error)) is not None:
        return _EPOCH if said.startswith("epoch") else _OURS
    reason = reason_of(error)
    fault = REASONS.get(reason) or _by_class(error)
    if reason == "quotaExceeded":
        return _quota(text)
    if reason in _VAGUE:
        fault = next((known for words, known in _MESSAGES if words.search(text)), fault)
    if fault is _LOGIN and getattr(error, "retryable", False):
        return _NETWORK
    if fault is _DENIED and (permission := _PERMISSION.search(text)):
        return fault._replace(hint=grant_hint(permission[1]))
    return fault


def _by_class(error: BaseException) -> Fault:
    return next((CLASSES[name] for name in _names(error) if name in CLASSES), _OURS)


def _names(error: BaseException) -> Iterator[str]:
    return (class_.__name__ for class_ in type(error).__mro__)


def _quota(text: str) -> Fault:
    if _OF_THE_PROJECT.search(text):
        return _BUSY if _RATE.search(text) else _PROJECT_QUOTA
    if _LOADS_OF_THE_DAY.search(text):
        return _LOADS
    return _BUSY if _RATE.search(text) else _QUOTA


def _cause(error: BaseException) -> BaseException:
    """The error behind one that only says that it was retried for too long."""
    cause = getattr(error, "cause", None)
    return _cause(cause) if isinstance(cause, BaseException) else error


def assertion(error: BaseException) -> str | None:
    """What a failed ASSERT of our own scripts says, after ``etl: ``; None when it was none."""
    if isinstance(error, EtlError):
        return error.__cause__.said if isinstance(error.__cause__, Refusal) else None
    found = _ASSERTION.search(str(error))
    return found[1].strip() if found else None


def is_duplicate_job(error: BaseException) -> bool:
    """Whether a job of this id exists already."""
    return reason_of(error) in {"duplicate", ""} and _SUCH_A_JOB.search(str(error)) is not None


def is_missing(error: BaseException) -> bool:
    """Whether what was asked for does not exist."""
    return "NotFound" in _names(error)


def is_denied(error: BaseException, permission: str) -> bool:
    """Whether just this permission is missing."""
    return diagnose(error).kind is ErrorKind.DESTINATION_REFUSED and permission in str(error)


def is_missing_job(error: BaseException) -> bool:
    return is_missing(error) and _NO_SUCH_JOB.search(str(error)) is not None


class Refusal(Exception):
    """What is harmless of an error of Google's: the cause of ours in its place, since tracebacks are logged, too."""

    def __init__(self, error: BaseException) -> None:
        self.fault = diagnose(error)
        self.reason = reason_of(_cause(error)) or type(_cause(error)).__name__
        self.said = assertion(error)
        super().__init__(self.reason if self.said is None else f"{self.reason}, assertion {self.said.split()[0]}")


def translate(error: BaseException, doing: str, table: str | None = None, job: str = "") -> EtlError:
    """The error to raise for one of Google's libraries.

    Args:
        doing: What was tried, as it stands after "failed to".
        job: The id of the job that failed, for whoever looks it up in the console.
    """
    refusal = Refusal(error)
    if refusal.said is not None and refusal.said.startswith(_INCOMPLETE):
        translated: EtlError = RowIncomplete(refusal.said.removeprefix(_INCOMPLETE))
    else:
        kind, table = _scope(error, refusal.fault, table)
        message = f"BigQuery failed to {doing} ({', '.join(_details(_cause(error), refusal, job))})"
        class_ = _CLASS_OF_KIND.get(kind, DestinationError)
        translated = class_(message, hint=refusal.fault.hint, kind=kind, table=table)
    translated.__cause__ = refusal
    return translated


def is_worth_repeating(error: BaseException) -> bool:
    """Whether what failed with a translated error may well succeed when it is tried again within minutes."""
    return isinstance(error.__cause__, Refusal) and error.__cause__.fault.again


def _scope(error: BaseException, fault: Fault, table: str | None) -> tuple[ErrorKind, str | None]:
    """The table is not at fault when the trouble is with what all tables share."""
    if fault in _OF_ALL_TABLES or _DENIED_TO_ALL.search(str(error)):
        table = None
    if table is None and fault.kind in _CLASS_OF_KIND:
        return ErrorKind.DESTINATION_REFUSED, None
    return fault.kind, table


def _details(error: BaseException, refusal: Refusal, job: str) -> Iterator[str]:
    yield str(refusal)
    text = str(error)
    if found := _PERMISSION.search(text):
        yield found[1]
    if found := _PLACE.search(text):
        yield found[0]
    if job:
        yield f"job {job}"


def failures() -> tuple[type[BaseException], ...]:
    """The roots of all errors that Google's libraries raise when something goes wrong outside of them."""
    import google.api_core.exceptions
    import google.auth.exceptions
    import google.resumable_media
    import grpc
    import requests
    import urllib3

    return (
        google.api_core.exceptions.GoogleAPIError,
        google.auth.exceptions.GoogleAuthError,
        google.resumable_media.InvalidResponse,
        google.resumable_media.DataCorruption,
        grpc.RpcError,
        requests.RequestException,
        urllib3.exceptions.HTTPError,
        ConnectionError,
        TimeoutError,
    )
