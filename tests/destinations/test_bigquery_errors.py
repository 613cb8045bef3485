"""Every error that Google's libraries raise has a kind and a hint, and shows no values."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import google.api_core.exceptions
import google.auth.exceptions
import google.resumable_media.common
import grpc
import pytest
import requests.exceptions
import urllib3.exceptions

from etl_dagster.destinations.bigquery.errors import (
    CLASSES,
    REASONS,
    ROLES,
    assertion,
    diagnose,
    failures,
    is_duplicate_job,
    is_missing_job,
    is_worth_repeating,
    translate,
)
from etl_dagster.errors import ErrorKind, RowIncomplete, TableError, ValueUnrepresentable
from etl_dagster.replication.policy import Action, action_for

UNAVAILABLE, REFUSED, CONFIG = ErrorKind.DESTINATION_UNAVAILABLE, ErrorKind.DESTINATION_REFUSED, ErrorKind.CONFIG
SECRET = "s3cr3t"
# Raised when a library is called in a way that we never do; they derive from no error of Google's or urllib3's.
MISUSE = {"AsyncRestUnsupportedParameterError", "ProxySchemeUnsupported"}

# As Google's documentation of errors lists them, with what is to become of them.
DOCUMENTED: dict[str, tuple[ErrorKind, bool]] = {
    "accessDenied": (REFUSED, False),
    "attributeError": (REFUSED, False),
    "backendError": (UNAVAILABLE, True),
    "billingNotEnabled": (REFUSED, False),
    "billingTierLimitExceeded": (REFUSED, False),
    "blocked": (REFUSED, False),
    "bytesBilledLimitExceeded": (REFUSED, False),
    "duplicate": (ErrorKind.TABLE, False),
    "internalError": (UNAVAILABLE, True),
    "invalid": (ErrorKind.TABLE, False),
    "invalidQuery": (ErrorKind.TABLE, False),
    "invalidUser": (CONFIG, False),
    "jobBackendError": (UNAVAILABLE, True),
    "jobInternalError": (UNAVAILABLE, True),
    "jobRateLimitExceeded": (UNAVAILABLE, True),
    "notFound": (ErrorKind.TABLE, False),
    "notImplemented": (REFUSED, False),
    "proxyAuthenticationRequired": (CONFIG, False),
    "quotaExceeded": (REFUSED, False),
    "rateLimitExceeded": (UNAVAILABLE, True),
    "resourceInUse": (UNAVAILABLE, True),
    "resourcesExceeded": (REFUSED, False),
    "responseTooLarge": (REFUSED, False),
    "stopped": (UNAVAILABLE, False),
    "tableUnavailable": (UNAVAILABLE, True),
    "timeout": (UNAVAILABLE, False),
}


def refused(reason: str, message: str = "", status: int = 400) -> Exception:
    """An error of BigQuery's as the client raises it."""
    error: Exception = google.api_core.exceptions.from_http_status(
        status, message, errors=[{"reason": reason, "message": message}]
    )
    return error


def classes(module: ModuleType) -> list[type[Exception]]:
    found = [each for _, each in inspect.getmembers(module, inspect.isclass) if issubclass(each, Exception)]
    return [each for each in found if each.__module__ == module.__name__ and not issubclass(each, Warning)]


@pytest.mark.parametrize("reason", DOCUMENTED)
def test_every_documented_reason_has_its_treatment(reason: str) -> None:
    fault = diagnose(refused(reason))
    assert (fault.kind, fault.again) == DOCUMENTED[reason]
    assert fault.hint


def test_every_row_says_what_to_do() -> None:
    for fault in [*REASONS.values(), *CLASSES.values()]:
        assert fault.hint
        assert not fault.again or fault.kind is UNAVAILABLE, "what is tried again is unavailable, and nothing else"


@pytest.mark.parametrize("class_", classes(google.api_core.exceptions), ids=lambda class_: class_.__name__)
def test_every_class_of_googles_has_a_row(class_: type[Exception]) -> None:
    assert class_.__name__ in CLASSES
    assert issubclass(class_, failures()) or class_.__name__ in MISUSE


@pytest.mark.parametrize(
    "class_",
    [
        *classes(google.auth.exceptions),
        *classes(google.resumable_media.common),
        *classes(requests.exceptions),
        *classes(urllib3.exceptions),
    ],
    ids=lambda class_: f"{class_.__module__}.{class_.__name__}",
)
def test_every_class_below_has_a_row_or_a_base_with_one(class_: type[Exception]) -> None:
    assert issubclass(class_, failures()) or class_.__name__ in MISUSE
    assert any(base.__name__ in CLASSES for base in class_.__mro__) or class_.__name__ in MISUSE


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_code_of_grpc_is_known(code: grpc.StatusCode) -> None:
    error = google.api_core.exceptions.from_grpc_status(code, "message")
    transient = {
        "UNAVAILABLE",
        "INTERNAL",
        "ABORTED",
        "CANCELLED",
        "DEADLINE_EXCEEDED",
        "RESOURCE_EXHAUSTED",
        "UNKNOWN",
    }
    assert diagnose(error).again == (code.name in transient)


@pytest.mark.parametrize(
    ("reason", "message", "kind", "again"),
    [
        ("quotaExceeded", "Quota exceeded: Your project exceeded quota for concurrent queries", UNAVAILABLE, True),
        ("quotaExceeded", "Quota exceeded: requests per minute per user", UNAVAILABLE, True),
        ("quotaExceeded", "Quota exceeded: Your table exceeded quota for imports or query appends", REFUSED, False),
        ("quotaExceeded", "Custom quota exceeded: QueryUsagePerDay", UNAVAILABLE, False),
        ("quotaExceeded", "Quota exceeded: Your project exceeded quota for query bytes scanned", UNAVAILABLE, False),
        ("resourcesExceeded", "Resources exceeded: Too many DML statements outstanding", UNAVAILABLE, True),
        ("invalidQuery", "Transaction is aborted due to concurrent update against table t", UNAVAILABLE, True),
        ("invalidQuery", "Could not serialize access to table t due to concurrent update", UNAVAILABLE, True),
        ("notFound", "Not found: Dataset p:d was not found in location US", REFUSED, False),
        ("notFound", "Not found: Table p:d.t was not found in location US", ErrorKind.TABLE, False),
        ("invalidQuery", f"Bad int64 value: {SECRET}", ErrorKind.VALUE, False),
        ("invalid", f"Could not parse '{SECRET}' as a timestamp", ErrorKind.VALUE, False),
        ("invalidQuery", f"Query error: Invalid NUMERIC value: {SECRET} at [3:7]", ErrorKind.VALUE, False),
        ("invalidQuery", "Query error: etl: epoch at [2:1]", UNAVAILABLE, False),
        ("accessDenied", "BigQuery API has not been used in project 7 before or it is disabled", REFUSED, False),
    ],
)
def test_what_the_message_adds_to_the_reason(reason: str, message: str, kind: ErrorKind, again: bool) -> None:
    translated = translate(refused(reason, message), "load a chunk", "public.t", "etl_1")
    assert (translated.kind, is_worth_repeating(translated)) == (kind, again)
    assert SECRET not in f"{translated} {translated!r} {translated.__cause__!r}"
    assert reason in translated.message
    assert "etl_1" in translated.message


def test_place_in_the_script_is_kept() -> None:
    assert "at [3:7]" in translate(refused("invalidQuery", "Syntax error: x at [3:7]"), "merge").message


@pytest.mark.parametrize("permission", ROLES)
def test_a_missing_permission_is_named_with_a_role_that_has_it(permission: str) -> None:
    address = "POST https://bigquery.googleapis.com/bigquery/v2/projects/p/jobs"
    said = f"Access Denied: Table p:d.t: Permission {permission} denied on table p:d.t (or it may not exist)."
    translated = translate(refused("accessDenied", f"{address}: {said}", 403), "merge", "public.t")
    assert permission in translated.message
    assert f"Grant {permission}, which {ROLES[permission]} has" in translated.hint
    assert action_for(translated) is (Action.STOP if permission.startswith("storage.") else Action.QUARANTINE)


def test_what_all_tables_share_stops_instead_of_taking_out_one() -> None:
    denied = "Access Denied: Project p: User does not have bigquery.jobs.create permission in project p."
    for error in [
        refused("accessDenied", denied, 403),
        refused("notFound", "Not found: Dataset p:d", 404),
        refused("billingNotEnabled", "", 403),
        refused("notFound", "The specified bucket does not exist.", 404),
    ]:
        translated = translate(error, "merge", "public.t")
        assert translated.table is None
        assert action_for(translated) is Action.STOP


def test_the_limit_on_bytes_is_named() -> None:
    assert "maximum_bytes_billed" in translate(refused("bytesBilledLimitExceeded"), "merge").hint
    said = "Query exceeded limit for bytes billed: 10485760. 20971520 or higher required."
    assert "maximum_bytes_billed" in translate(refused("invalidQuery", said), "merge").hint


def test_trouble_of_one_table_takes_out_the_table_alone() -> None:
    assert isinstance(translate(refused("invalid"), "load", "public.t"), TableError)
    assert isinstance(translate(refused("invalid", "Bad int64 value: 1x"), "load", "public.t"), ValueUnrepresentable)
    assert action_for(translate(refused("invalid"), "load")) is Action.STOP


@pytest.mark.parametrize(
    ("retryable", "kind"),
    [(True, UNAVAILABLE), (False, CONFIG)],
)
def test_credentials_that_are_not_renewed(retryable: bool, kind: ErrorKind) -> None:
    error = google.auth.exceptions.RefreshError("invalid_grant", {"error": SECRET}, retryable=retryable)
    translated = translate(error, "begin")
    assert (translated.kind, is_worth_repeating(translated)) == (kind, retryable)
    assert SECRET not in f"{translated} {translated.__cause__!r}"


def test_an_error_that_was_retried_for_too_long_is_what_it_was_at_first() -> None:
    error = google.api_core.exceptions.RetryError("too long", cause=refused("accessDenied", status=403))
    assert diagnose(error).kind is REFUSED


@pytest.mark.parametrize(
    "message",
    [
        "etl: incomplete public.a b",
        "Query error: etl: incomplete public.a b at [12:3]",
        "etl: incomplete public.a b; reason: invalidQuery, location: query, message: etl: incomplete public.a b",
        "etl: incomplete public.a b\n\nLocation: US\nJob ID: 1\n",
    ],
)
def test_assertions_are_read_in_every_dress(message: str) -> None:
    error = refused("invalidQuery", message)
    assert assertion(error) == "incomplete public.a b"
    translated: Any = translate(error, "merge")
    assert isinstance(translated, RowIncomplete)
    assert (translated.table, assertion(translated)) == ("public.a b", "incomplete public.a b")
    assert assertion(refused("invalidQuery", "Syntax error")) is None


def test_jobs_and_tables_that_exist_or_do_not_are_told_apart() -> None:
    assert is_duplicate_job(refused("duplicate", "Already Exists: Job p:US.etl_1", 409))
    assert not is_duplicate_job(refused("duplicate", "Already Exists: Table p:d.t", 409))
    assert is_missing_job(refused("notFound", "Not found: Job p:US.etl_1", 404))
    assert not is_missing_job(refused("notFound", "Not found: Table p:d.t", 404))
