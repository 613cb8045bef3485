"""psycopg's errors become ours, without secrets."""

from __future__ import annotations

import psycopg
import pytest

from etl_dagster.errors import ErrorKind, EtlError, SourceError, TableError
from etl_dagster.postgres.errors import BY_SQLSTATE, classify, scrub, translating
from tests.conftest import Connect


@pytest.mark.parametrize("sqlstate", sorted(BY_SQLSTATE))
def test_every_state_of_the_table_exists_and_has_a_hint(sqlstate: str) -> None:
    assert psycopg.errors.lookup(sqlstate)
    assert BY_SQLSTATE[sqlstate].hint


@pytest.mark.parametrize(
    ("sqlstate", "message", "kind"),
    [
        ("55006", 'replication slot "s" is active for PID 7', ErrorKind.SLOT_BUSY),
        ("42704", 'replication slot "s" does not exist', ErrorKind.SLOT_LOST),
        ("42704", 'publication "p" does not exist', ErrorKind.PUBLICATION),
        ("42704", 'type "x" does not exist', ErrorKind.SOURCE_REFUSED),
        ("55000", 'can no longer access replication slot "s"', ErrorKind.SLOT_LOST),
        ("55000", "logical decoding requires wal_level >= logical", ErrorKind.SOURCE_SETTINGS),
        (
            "55000",
            "logical decoding on standby requires wal_level >= logical on the primary",
            ErrorKind.SOURCE_SETTINGS,
        ),
        ("58P01", "requested WAL segment 0001 has already been removed", ErrorKind.SLOT_LOST),
        ("55000", 'cannot use replication slot "s" for logical decoding', ErrorKind.SOURCE_UNAVAILABLE),
        ("40001", "canceling statement due to conflict with recovery", ErrorKind.SOURCE_UNAVAILABLE),
        ("25006", "cannot execute CREATE PUBLICATION in a read-only transaction", ErrorKind.SOURCE_REFUSED),
        ("42501", 'query would be affected by row-level security policy for table "t"', ErrorKind.TABLE),
        ("42501", "permission denied for table t", ErrorKind.SOURCE_REFUSED),
        ("53400", "all replication slots are in use", ErrorKind.SOURCE_SETTINGS),
        ("57P01", "terminating connection due to administrator command", ErrorKind.SOURCE_UNAVAILABLE),
        ("XX000", "never seen before", ErrorKind.SOURCE_REFUSED),
        (None, "connection failed: Connection refused", ErrorKind.SOURCE_UNAVAILABLE),
        (None, 'FATAL:  password authentication failed for user "u"', ErrorKind.SOURCE_REFUSED),
    ],
)
def test_states_and_words_decide(sqlstate: str | None, message: str, kind: ErrorKind) -> None:
    assert classify(sqlstate, message).kind is kind


@pytest.mark.parametrize(
    "message",
    [
        "cannot reach postgresql://u:sesame@h/d",
        "bad option in host=h password=sesame user=u",
        "bad option in password = 'ses\\'ame sesame' user=u",
        "what sesame says",
    ],
)
def test_passwords_are_taken_out(message: str) -> None:
    assert "sesame" not in scrub(message, ("sesame",))
    assert "ame" not in scrub(message, ("sesame",)).replace("name", "")


def test_details_with_row_values_stay_out(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("create table t(id int primary key)")
        connection.execute("insert into t values (4711)")
        with pytest.raises(EtlError) as refused, translating("cannot insert"):
            connection.execute("insert into t values (4711)")

    assert "4711" not in str(refused.value)


def test_row_level_security_has_a_hint_of_its_own(connect: Connect, database: str) -> None:
    admin = connect()
    admin.execute("create role hidden_from login; create table t(id int primary key); grant select on t to hidden_from")
    admin.execute("alter table t enable row level security")
    try:
        with psycopg.connect(database.replace("postgres@", "hidden_from@"), autocommit=True) as connection:
            connection.execute("set row_security = off")
            with (
                pytest.raises(TableError, match="row-level security") as refused,
                translating("cannot copy", table="t"),
            ):
                connection.execute("select * from t")
    finally:
        admin.execute("drop owned by hidden_from; drop role hidden_from")

    assert "BYPASSRLS" in refused.value.hint
    assert refused.value.table == "t"


def test_a_server_that_takes_no_writes_is_told_as_such(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("set default_transaction_read_only = on")
        with pytest.raises(SourceError, match="read-only") as refused, translating("cannot make it"):
            connection.execute("create publication p")

    assert "default_transaction_read_only" in refused.value.hint
