"""What the user says of the source: how to connect, what to publish, which slot."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import Field, SecretStr, StringConstraints, field_validator, model_validator

from etl_dagster.model import FrozenModel, TableId
from etl_dagster.model.patterns import TablePattern

APPLICATION_NAME = "etl-dagster"
CONNECT_TIMEOUT_SECONDS = 10
# A dead peer is noticed within about a minute: idle + interval * count.
KEEPALIVES_IDLE_SECONDS = 30
KEEPALIVES_INTERVAL_SECONDS = 10
KEEPALIVES_COUNT = 3
# Ordinary queries read catalogues: one that runs longer is stuck, and must not hold a run for ever.
STATEMENT_TIMEOUT_MS = 60_000
# ALTER PUBLICATION queues behind long transactions, and writers queue behind it.
LOCK_TIMEOUT_MS = 10_000

_NO_KEY_PASSWORD = "none"  # noqa: S105  stands for having none
_SECRET_FIELDS = ("dsn", "password", "key_password")

SlotName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,63}$")]
Identifier = Annotated[str, StringConstraints(min_length=1)]


class TlsMode(StrEnum):
    """libpq's ``sslmode``, without ``allow``, which promises nothing."""

    DISABLE = "disable"
    PREFER = "prefer"
    REQUIRE = "require"
    VERIFY_CA = "verify-ca"
    VERIFY_FULL = "verify-full"


class TlsConfig(FrozenModel):
    """Encryption of the connection and proof of who is at its other end."""

    mode: TlsMode = Field(TlsMode.PREFER, description="libpq's `sslmode`; `verify-full` proves who answers")
    root_cert: Path | None = Field(None, description="Certificates of the authorities to trust")
    cert: Path | None = Field(None, description="Client certificate")
    key: Path | None = Field(None, description="Private key of the client certificate; only its owner may read it")
    key_password: SecretStr | None = Field(
        None, description="Password of the private key, if it has one", examples=["${KEY_PASSWORD}"]
    )
    crl: Path | None = Field(
        None, description="Certificates that their authority has revoked", examples=["/etc/ssl/revoked.crl"]
    )

    @model_validator(mode="before")
    @classmethod
    def _wrap_secrets(cls, data: Any) -> Any:
        return _wrapped(data)

    @model_validator(mode="after")
    def _cert_and_key_go_together(self) -> Self:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key go together: give both or neither")
        if self.key_password is not None and self.key is None:
            raise ValueError("key_password is that of key: give both or neither")
        return self

    def parameters(self) -> dict[str, str]:
        """As libpq's connection parameters."""
        files = {"sslrootcert": self.root_cert, "sslcert": self.cert, "sslkey": self.key, "sslcrl": self.crl}
        password = {"sslpassword": self.key_password.get_secret_value()} if self.key_password else {}
        return {"sslmode": self.mode.value} | {name: str(path) for name, path in files.items() if path} | password


def _wrapped(data: Any) -> Any:
    """What is refused is kept in the error's details; wrapped, it is kept unreadable."""
    if not isinstance(data, dict):
        return data
    return {
        name: SecretStr(value) if name in _SECRET_FIELDS and isinstance(value, str) else _wrapped(value)
        for name, value in data.items()
    }


class PostgresConfig(FrozenModel):
    """How to reach one database: a DSN, or fields; fields given beside a DSN are refused."""

    dsn: SecretStr | None = Field(None, description="postgresql://user:password@host:port/database")
    host: str | None = Field(None, description="Server, instead of a dsn")
    port: int | None = Field(None, ge=1, le=65535, description="TCP port; libpq's default is 5432")
    database: str | None = Field(None, description="Database, instead of a dsn")
    user: str | None = Field(None, description="Role that replicates, instead of a dsn")
    password: SecretStr | None = Field(None, description="Its password; never shown")
    tls: TlsConfig | None = Field(None, description="Encryption; also beside a dsn")
    application_name: str = Field(APPLICATION_NAME, max_length=63, description="Shown in pg_stat_activity")
    connect_timeout_seconds: int = Field(CONNECT_TIMEOUT_SECONDS, ge=2, le=600, description="For each address")
    keepalives_idle_seconds: int = Field(KEEPALIVES_IDLE_SECONDS, ge=1, description="Silence before the first probe")
    keepalives_interval_seconds: int = Field(KEEPALIVES_INTERVAL_SECONDS, ge=1, description="Between two probes")
    keepalives_count: int = Field(KEEPALIVES_COUNT, ge=1, description="Unanswered probes that end a connection")
    statement_timeout_ms: int = Field(STATEMENT_TIMEOUT_MS, ge=0, description="For ordinary queries; 0 is none")
    lock_timeout_ms: int = Field(LOCK_TIMEOUT_MS, ge=0, description="For ordinary queries; 0 is none")

    @model_validator(mode="before")
    @classmethod
    def _wrap_secrets(cls, data: Any) -> Any:
        return _wrapped(data)

    @field_validator("dsn")
    @classmethod
    def _dsn_is_readable(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        try:
            conninfo_to_dict(value.get_secret_value())
        except ProgrammingError:  # libpq's message may quote the password
            raise ValueError("not a connection string; write postgresql://user:password@host:port/database") from None
        return value

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Self:
        fields = {"host": self.host, "port": self.port, "database": self.database, "user": self.user}
        given = [name for name, value in (fields | {"password": self.password}).items() if value is not None]
        if self.dsn is not None and given:
            raise ValueError(f"give either dsn or fields, not both (found dsn and {', '.join(given)})")
        if self.dsn is None and self.host is None:
            raise ValueError("give dsn or host: without them the server is unknown")
        return self

    def parameters(self) -> dict[str, str]:
        """As libpq's connection parameters, secrets in clear: never print them."""
        given = self._dsn_parameters() if self.dsn else self._field_parameters()
        defaults = {
            "application_name": self.application_name,
            "connect_timeout": str(self.connect_timeout_seconds),
            "keepalives_idle": str(self.keepalives_idle_seconds),
            "keepalives_interval": str(self.keepalives_interval_seconds),
            "keepalives_count": str(self.keepalives_count),
            # Encryption by GSS would hide the socket's bytes from us; who wants it says so in the DSN.
            "gssencmode": "disable",
            # Without any, OpenSSL would ask for that of an encrypted key at the terminal, and wait.
            "sslpassword": _NO_KEY_PASSWORD,
        }
        tls = self.tls.parameters() if self.tls else {}
        return defaults | given | tls | {"client_encoding": "UTF8"}

    def secrets(self) -> tuple[str, ...]:
        """What must never appear in a message."""
        parameters = self.parameters()
        found = (parameters.get(name) for name in ("password", "sslpassword"))
        return tuple(secret for secret in found if secret and secret != _NO_KEY_PASSWORD)

    def where(self) -> str:
        """The server, database and user, for messages."""
        found = self.parameters()
        host, port = found.get("host") or found.get("hostaddr", "localhost"), found.get("port", "5432")
        user = f"{found['user']}@" if "user" in found else ""
        return f"{user}{host}:{port}/{found.get('dbname', '')}"

    def _dsn_parameters(self) -> dict[str, str]:
        assert self.dsn is not None
        return {name: str(value) for name, value in conninfo_to_dict(self.dsn.get_secret_value()).items()}

    def _field_parameters(self) -> dict[str, str]:
        fields = {"host": self.host, "port": self.port, "dbname": self.database, "user": self.user}
        if self.password is not None:
            fields["password"] = self.password.get_secret_value()
        return {name: str(value) for name, value in fields.items() if value is not None}


class PublicationConfig(FrozenModel):
    """Which tables are replicated.

    With ``create`` the publication is made, and later tables added or dropped, to match; a publication that
    somebody else made is used as it is. Without it the publication has to exist.
    """

    name: Identifier = Field("etl_dagster", description="In a pipeline's config the default is `etl_<name>`")
    create: bool = Field(True, description="Make it when it is missing, and keep ours as it is written here")
    tables: tuple[str, ...] = Field((), description='schema.table, with * as wildcard; "quoted" parts are literal')
    schemas: tuple[Identifier, ...] = Field((), description="All tables of these schemas")
    all_tables: bool = Field(
        False, description="Every table of the database; needs a superuser unless some are excluded"
    )
    exclude: tuple[str, ...] = Field((), description="Tables to leave out, written like tables")

    @field_validator("tables", "exclude")
    @classmethod
    def _patterns_are_readable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            TablePattern.parse(text)
        return value

    @property
    def names_tables(self) -> bool:
        """Whether the config says which tables to publish."""
        return bool(self.tables or self.schemas or self.all_tables)

    def included(self) -> tuple[TablePattern, ...]:
        """Patterns of what is asked for."""
        everything = (TablePattern(schema_glob="*", table_glob="*"),) if self.all_tables else ()
        schemas = map(TablePattern.of_schema, self.schemas)
        return (*everything, *schemas, *(TablePattern.parse(text) for text in self.tables))

    def excluded(self) -> tuple[TablePattern, ...]:
        """Patterns of what is left out."""
        return tuple(TablePattern.parse(text) for text in self.exclude)

    def wants(self, table: TableId) -> bool:
        """Whether the table is asked for and not left out."""
        return _any_matches(self.included(), table) and not _any_matches(self.excluded(), table)


def _any_matches(patterns: tuple[TablePattern, ...], table: TableId) -> bool:
    return any(pattern.matches(table) for pattern in patterns)


class SlotConfig(FrozenModel):
    """The logical replication slot, which remembers how far the source has been read."""

    name: SlotName = Field("etl_dagster", description="In a pipeline's config the default is `etl_<name>`")
    failover: bool = Field(
        False, description="Have standbys keep a copy of the slot, for when one is promoted (PostgreSQL 17)"
    )


class SourceConfig(FrozenModel):
    """A Postgres source: connection, publication and slot."""

    connection: PostgresConfig
    publication: PublicationConfig = PublicationConfig()
    slot: SlotConfig = SlotConfig()
    heartbeat_seconds: float | None = Field(
        None,
        gt=0,
        description="How often `follow` writes a message into the WAL; never by default, rarely needed",
        examples=[60],
    )
