"""What a user may say of a source, and how mistakes are told."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from etl_dagster.model import TableId
from etl_dagster.postgres import PostgresConfig, PublicationConfig, SlotConfig, SourceConfig, TablePattern, TlsConfig

SECRET = "hunter2-of-the-night"


def test_a_dsn_and_fields_give_the_same_parameters() -> None:
    by_dsn = PostgresConfig(dsn=f"postgresql://u:{SECRET}@h:6543/d")
    by_fields = PostgresConfig(host="h", port=6543, database="d", user="u", password=SECRET)

    assert by_dsn.parameters() == by_fields.parameters()
    assert by_dsn.where() == "u@h:6543/d"


@pytest.mark.parametrize(
    "config",
    [
        PostgresConfig(dsn=f"postgresql://u:{SECRET}@h/d"),
        PostgresConfig(host="h", password=SECRET),
        SourceConfig(connection=PostgresConfig(dsn=f"host=h password='{SECRET}'")),
    ],
)
def test_secrets_do_not_show(config: object) -> None:
    assert SECRET not in repr(config)
    assert SECRET not in str(config)


@pytest.mark.parametrize("tls", [{"key_password": SECRET}, {"key_password": SECRET, "mode": "maybe"}])
def test_a_refused_key_password_is_not_shown(tls: dict[str, str]) -> None:
    with pytest.raises(ValidationError) as refused:
        SourceConfig.model_validate({"connection": {"host": "h", "tls": tls}})

    assert SECRET not in str(refused.value)
    assert SECRET not in str(refused.value.errors())


def test_the_password_of_a_key_is_a_secret_and_having_none_is_not() -> None:
    files = {"cert": "c.crt", "key": "c.key"}
    locked = PostgresConfig.model_validate({"host": "h", "tls": files | {"key_password": SECRET}})

    assert locked.secrets() == (SECRET,)
    assert SECRET not in repr(locked)
    assert PostgresConfig.model_validate({"host": "h", "tls": files}).secrets() == ()


def test_a_malformed_dsn_is_refused_without_showing_it() -> None:
    with pytest.raises(ValidationError) as refused:
        SourceConfig.model_validate({"connection": {"dsn": f"password='{SECRET}"}})

    assert SECRET not in str(refused.value)
    assert SECRET not in str(refused.value.errors())
    assert refused.value.errors()[0]["loc"] == ("connection", "dsn")


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"connection": {"host": "h"}, "slot": {"name": "Bad-Slot"}}, ("slot", "name")),
        ({"connection": {"host": "h", "port": 70000}}, ("connection", "port")),
        ({"connection": {"host": "h", "prot": 1}}, ("connection", "prot")),
        ({"connection": {"host": "h", "tls": {"mode": "maybe"}}}, ("connection", "tls", "mode")),
        ({"connection": {}}, ("connection",)),
        ({"connection": {"dsn": "host=h", "user": "u"}}, ("connection",)),
        ({"connection": {"host": "h", "tls": {"cert": "c"}}}, ("connection", "tls")),
        ({"connection": {"host": "h", "tls": {"key_password": SECRET}}}, ("connection", "tls")),
        ({"connection": {"host": "h"}, "slot": {"failover": "perhaps"}}, ("slot", "failover")),
        ({"connection": {"host": "h"}, "heartbeat_seconds": 0}, ("heartbeat_seconds",)),
        ({"connection": {"host": "h"}, "publication": {"tables": ["a.b.c"]}}, ("publication", "tables")),
    ],
)
def test_a_mistake_names_its_field(given: dict[str, object], path: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as refused:
        SourceConfig.model_validate(given)

    assert refused.value.errors()[0]["loc"] == path


def test_tls_files_become_parameters() -> None:
    tls = TlsConfig.model_validate({"mode": "verify-full", "root_cert": "/ca", "cert": "/c", "key": "/k"})
    parameters = PostgresConfig(host="h", tls=tls).parameters()

    assert parameters["sslmode"] == "verify-full"
    assert (parameters["sslrootcert"], parameters["sslcert"], parameters["sslkey"]) == ("/ca", "/c", "/k")


@pytest.mark.parametrize("name", ["", "a" * 64, "A", "a-b"])
def test_slot_names_follow_the_servers_rule(name: str) -> None:
    with pytest.raises(ValidationError):
        SlotConfig(name=name)


@pytest.mark.parametrize(
    ("pattern", "table", "matches"),
    [
        ("orders", TableId("public", "orders"), True),
        ("orders", TableId("sales", "orders"), False),
        ("sales.*", TableId("sales", "orders"), True),
        ("*.orders", TableId("sales", "orders"), True),
        ("sales.o*s", TableId("sales", "orders"), True),
        ("sales.Orders", TableId("sales", "orders"), False),
        ("sales.or?ers", TableId("sales", "orders"), False),
        ("sales.[o]rders", TableId("sales", "orders"), False),
        ('"odd.one"."a b*"', TableId("odd.one", "a b*"), True),
        ('"odd.one"."a b*"', TableId("odd.one", "a bc"), False),
        ('sales."say ""hi"""', TableId("sales", 'say "hi"'), True),
        ("продажи.*", TableId("продажи", "заказы"), True),
    ],
)
def test_patterns_match_literally_but_for_stars(pattern: str, table: TableId, matches: bool) -> None:
    assert TablePattern.parse(pattern).matches(table) is matches


def test_exclusion_wins() -> None:
    config = PublicationConfig(schemas=("sales",), tables=("hr.people",), exclude=("*.tmp_*",))

    assert config.wants(TableId("sales", "orders"))
    assert config.wants(TableId("hr", "people"))
    assert not config.wants(TableId("sales", "tmp_1"))
    assert not config.wants(TableId("hr", "pay"))
