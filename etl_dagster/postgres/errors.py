"""psycopg's errors become ours: one table by SQLSTATE, one `translate`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import psycopg

from etl_dagster.errors import ErrorKind, EtlError, PublicationError, SlotError, SourceError, SourceLocked, TableError


class Refusal(NamedTuple):
    """How one SQLSTATE is told: class, who is at fault, what to do."""

    error: type[EtlError]
    kind: ErrorKind
    hint: str


class NoSuchFunctionError(SourceError):
    """The server lacks a function; of a type, the one that gives its binary form."""


_UNAVAILABLE = Refusal(SourceError, ErrorKind.SOURCE_UNAVAILABLE, "Check that the server runs and can be reached")
_AGAIN = Refusal(SourceError, ErrorKind.SOURCE_UNAVAILABLE, "It is usually enough to try again")
_HBA_HINT = "The server's pg_hba.conf may want TLS: set tls.mode to require or stricter; or it lacks a line for you"
_PASSWORD = Refusal(SourceError, ErrorKind.SOURCE_REFUSED, "Check user and password, and the server's pg_hba.conf")
_SLOTS_FULL = Refusal(
    SourceError,
    ErrorKind.SOURCE_SETTINGS,
    "Drop replication slots that nobody uses (pg_drop_replication_slot), or raise max_replication_slots and restart",
)
_WAL_LEVEL = Refusal(
    SourceError,
    ErrorKind.SOURCE_SETTINGS,
    "Run ALTER SYSTEM SET wal_level = 'logical' and restart the server; for a standby, on its primary too",
)
_PRIVILEGE = Refusal(
    SourceError,
    ErrorKind.SOURCE_REFUSED,
    "Grant what is missing: ALTER ROLE … REPLICATION for the slot, GRANT SELECT ON the tables, GRANT CREATE ON "
    "DATABASE and ownership of the tables for the publication",
)
_ROW_SECURITY = Refusal(
    TableError,
    ErrorKind.TABLE,
    "Row-level security would hide rows from the copy: run ALTER ROLE … BYPASSRLS, or exclude the table",
)
_READ_ONLY = Refusal(
    SourceError,
    ErrorKind.SOURCE_REFUSED,
    "A standby takes no writes: make the publication on its primary, and set source.publication.create to false; "
    "elsewhere, see default_transaction_read_only",
)
_UNPROMOTED = Refusal(
    SlotError,
    ErrorKind.SOURCE_UNAVAILABLE,
    "The server is a standby that keeps the slot for its primary: connect to the primary, or promote it",
)
_CONFLICT = Refusal(
    SourceError,
    ErrorKind.SOURCE_UNAVAILABLE,
    "It is tried again; if it happens often, set hot_standby_feedback on and raise max_standby_streaming_delay there",
)
_SLOT_BUSY = Refusal(SlotError, ErrorKind.SLOT_BUSY, "Wait for the other client to end, or stop it")
_SLOT_LOST = Refusal(SlotError, ErrorKind.SLOT_LOST, "Create the slot again; its tables have to be copied afresh")
_PUBLICATION = Refusal(
    PublicationError,
    ErrorKind.PUBLICATION,
    "Create the publication, or let `create` do it; where it was dropped and made anew, PostgreSQL 17 and older cannot "
    "read the slot past that: drop the slot (pg_drop_replication_slot), and all tables are copied afresh",
)

_TABLE_CHANGED = Refusal(TableError, ErrorKind.TABLE, "It was changed or dropped meanwhile; copy it again as it is now")

BY_SQLSTATE: dict[str, Refusal] = {
    "08000": _UNAVAILABLE,
    "08001": _UNAVAILABLE,
    "08003": _UNAVAILABLE,
    "08004": _UNAVAILABLE,
    "08006": _UNAVAILABLE,
    "25006": _READ_ONLY,
    "28000": _PASSWORD,
    "28P01": _PASSWORD,
    "3D000": Refusal(SourceError, ErrorKind.SOURCE_REFUSED, "Check the name of the database"),
    "40001": _AGAIN,
    "40P01": _AGAIN,
    "42501": _PRIVILEGE,
    "42703": _TABLE_CHANGED,
    "42883": Refusal(NoSuchFunctionError, ErrorKind.SOURCE_REFUSED, "Update the extension that it belongs to"),
    "42P01": _TABLE_CHANGED,
    "53300": Refusal(SourceError, ErrorKind.SOURCE_UNAVAILABLE, "Close connections, or raise max_connections"),
    "53400": _SLOTS_FULL,
    "55006": _SLOT_BUSY,
    "55P03": Refusal(SourceLocked, ErrorKind.SOURCE_UNAVAILABLE, "Another session holds a lock; it is tried again"),
    "57014": Refusal(SourceError, ErrorKind.SOURCE_UNAVAILABLE, "Raise statement_timeout_ms if this happens often"),
    "57P01": _UNAVAILABLE,
    "57P02": _UNAVAILABLE,
    "57P03": _UNAVAILABLE,
    "57P05": _UNAVAILABLE,
}

# States that say several things; the words decide. English and untranslated parts only: names of settings and objects.
BY_SQLSTATE_AND_TEXT: tuple[tuple[str, str, Refusal], ...] = (
    ("40001", r"conflict with recovery", _CONFLICT),
    ("55000", r"wal_level", _WAL_LEVEL),
    ("55000", r"cannot use replication slot", _UNPROMOTED),
    ("55000", r"\bslot\b", _SLOT_LOST),
    ("42704", r"\bslot\b", _SLOT_LOST),
    ("42704", r"\bpublication\b", _PUBLICATION),
    ("42501", r"\bpassword\b", _PASSWORD),
    ("42501", r"row-level security", _ROW_SECURITY),
    ("58P01", r"\bWAL segment\b", _SLOT_LOST),
)
_CONNECT = "Run GRANT CONNECT ON DATABASE … TO the role"
# libpq gives no SQLSTATE for a connection that was refused. The first words that are found decide.
_AT_CONNECT: tuple[tuple[str, Refusal], ...] = (
    (r"SSL off|no encryption", Refusal(SourceError, ErrorKind.SOURCE_REFUSED, _HBA_HINT)),
    (
        r"certificate verify failed",
        Refusal(
            SourceError,
            ErrorKind.SOURCE_REFUSED,
            "The server's certificate has expired, is in tls.crl, or is not signed by an authority in tls.root_cert",
        ),
    ),
    (
        r"does not match host name",
        Refusal(
            SourceError,
            ErrorKind.SOURCE_REFUSED,
            "Connect by a name that the certificate holds, or set tls.mode to verify-ca, which does not compare names",
        ),
    ),
    (
        r"root certificate file|system root",
        Refusal(SourceError, ErrorKind.SOURCE_REFUSED, "Give the certificates of the authorities as tls.root_cert"),
    ),
    (
        r"certificate authentication failed",
        Refusal(
            SourceError,
            ErrorKind.SOURCE_REFUSED,
            "The common name in tls.cert has to be the role's, unless the server's pg_ident.conf maps it",
        ),
    ),
    (
        r"private key",
        Refusal(
            SourceError,
            ErrorKind.SOURCE_REFUSED,
            "tls.key has to be the key of tls.cert, closed to others (chmod 600); an encrypted one needs "
            "tls.key_password",
        ),
    ),
    (r"permission denied for database", Refusal(SourceError, ErrorKind.SOURCE_REFUSED, _CONNECT)),
    (r"not permitted to log in", Refusal(SourceError, ErrorKind.SOURCE_REFUSED, "Run ALTER ROLE … LOGIN")),
    (r"authentication failed|no password supplied|pg_hba\.conf|role .* does not exist", _PASSWORD),
    (r"database .* does not exist", Refusal(SourceError, ErrorKind.SOURCE_REFUSED, "Check the name of the database")),
    (
        r"certificate|alert",
        Refusal(
            SourceError,
            ErrorKind.SOURCE_REFUSED,
            "Give tls.cert and tls.key, signed by an authority that the server trusts (ssl_ca_file) and not revoked",
        ),
    ),
    (r"SSL", Refusal(SourceError, ErrorKind.SOURCE_REFUSED, "Check the settings under tls")),
)
_UNKNOWN = Refusal(SourceError, ErrorKind.SOURCE_REFUSED, "")
_CREDENTIALS = re.compile(r"(://[^:/@\s]*:)[^@\s]*@|(password\s*=\s*)('(?:[^'\\]|\\.)*'|\S+)", re.IGNORECASE)


def translate(error: psycopg.Error, doing: str, secrets: tuple[str, ...] = (), *, table: str | None = None) -> EtlError:
    """Our error for psycopg's; raise it ``from`` the other (`translating` does).

    Args:
        doing: What was attempted and where, ``cannot …``.
        secrets: What must not appear in the message.
    """
    return refusal(error.sqlstate, primary_message(error), doing, secrets, table=table)


def refusal(
    sqlstate: str | None, message: str, doing: str, secrets: tuple[str, ...] = (), *, table: str | None = None
) -> EtlError:
    """Our error for what the server says."""
    told = classify(sqlstate, message)
    state = f" [{sqlstate}]" if sqlstate else ""
    return told.error(f"{doing}: {scrub(message, secrets)}{state}", hint=told.hint, kind=told.kind, table=table)


def classify(sqlstate: str | None, message: str) -> Refusal:
    """Look the SQLSTATE up; without one the connection itself failed."""
    if sqlstate is None:
        return next((told for words, told in _AT_CONNECT if re.search(words, message)), _UNAVAILABLE)
    for state, words, told in BY_SQLSTATE_AND_TEXT:
        if state == sqlstate and re.search(words, message):
            return told
    return BY_SQLSTATE.get(sqlstate, _UNKNOWN)


def primary_message(error: psycopg.Error) -> str:
    """The first line of what the server says: details may hold row values."""
    text = error.diag.message_primary or str(error)
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)


def scrub(message: str, secrets: tuple[str, ...] = ()) -> str:
    """Take passwords out of a message."""
    for secret in secrets:
        message = message.replace(secret, "***")
    return _CREDENTIALS.sub(lambda found: f"{found[1]}***@" if found[1] else f"{found[2]}***", message)


@contextmanager
def translating(doing: str, secrets: tuple[str, ...] = (), *, table: str | None = None) -> Iterator[None]:
    """Raise psycopg's errors as ours."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error, doing, secrets, table=table) from _bare(error, secrets)


def _bare(error: psycopg.Error, secrets: tuple[str, ...]) -> psycopg.Error | None:
    """The cause to chain, unless its text would show a secret in a traceback."""
    text = str(error)
    return error if scrub(text, secrets) == text else None
