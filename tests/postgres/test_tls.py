"""TLS: who is at the other end is proved both ways, and everything is read through it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import ErrorKind, SourceError
from etl_dagster.model import TableId
from etl_dagster.pipeline import Pipeline
from etl_dagster.postgres import PostgresConfig, PostgresSource, PublicationConfig, SourceConfig, TlsConfig, check
from etl_dagster.replication import RunSummary
from etl_dagster.store.base import TableState
from etl_dagster.testing.server import PostgresServer
from tests.postgres.cluster import wait_until

pytestmark = pytest.mark.tls

ROLE = "certified"
_ACCESS = f"""
hostssl all {ROLE}   127.0.0.1/32 cert
hostssl all postgres 127.0.0.1/32 trust
"""


@dataclass(frozen=True)
class Authority:
    """Signs certificates."""

    folder: Path
    name: str

    @classmethod
    def make(cls, folder: Path, name: str) -> Authority:
        """A new authority with a certificate of its own."""
        self = cls(folder, name)
        _openssl(
            folder, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.crt",
        )  # fmt: skip
        return self

    @property
    def cert(self) -> Path:
        """What others have to trust."""
        return self.folder / f"{self.name}.crt"

    def sign(self, name: str, *, host: str | None = None) -> tuple[Path, Path]:
        """Certificate and private key in this name, for a host when it is a server's."""
        extension = ["-addext", f"subjectAltName=DNS:{host}"] if host else []
        _openssl(
            self.folder, "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-subj", f"/CN={name}", *extension, "-keyout", f"{name}.key", "-out", f"{name}.csr",
        )  # fmt: skip
        _openssl(
            self.folder, "x509", "-req", "-in", f"{name}.csr", "-CA", self.cert.name, "-CAkey", f"{self.name}.key",
            "-CAcreateserial", "-days", "2", "-copy_extensions", "copy", "-out", f"{name}.crt",
        )  # fmt: skip
        return self.folder / f"{name}.crt", self.folder / f"{name}.key"

    def revoke(self, cert: Path) -> Path:
        """List of what is revoked, this certificate on it."""
        (self.folder / "index.txt").touch()
        (self.folder / "ca.cnf").write_text(
            "[ca]\ndefault_ca = it\n[it]\ndatabase = index.txt\ndefault_md = sha256\ndefault_crl_days = 2\n"
        )
        signed_by = ["-config", "ca.cnf", "-cert", self.cert.name, "-keyfile", f"{self.name}.key"]
        _openssl(self.folder, "ca", *signed_by, "-revoke", str(cert))
        _openssl(self.folder, "ca", *signed_by, "-gencrl", "-out", "revoked.crl")
        return self.folder / "revoked.crl"


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("certificates"), "authority")


@pytest.fixture(scope="module")
def server(tls_bindir: Path, authority: Authority) -> Iterator[PostgresServer]:
    """A server as ``localhost`` that talks TLS only, and asks one role for a client certificate."""
    with PostgresServer.temporary(bindir=tls_bindir, die_with_parent=True) as server:
        server.stop()
        cert, key = authority.sign("server", host="localhost")
        for source, name in ((cert, "server.crt"), (key, "server.key"), (authority.cert, "root.crt")):
            _install(server.folder, name, source.read_text())
        _install(server.folder, "pg_hba.conf", _ACCESS)
        server.settings |= {"ssl": "on", "ssl_ca_file": "root.crt"}
        server.start()
        with psycopg.connect(server.dsn, autocommit=True) as admin:
            admin.execute(f"create role {ROLE} login replication")
            admin.execute(f"create database shop owner {ROLE}")
        yield server


def _install(folder: Path, name: str, content: str) -> None:
    """Write a file that belongs to the server's user."""
    owner = folder.stat()
    (folder / name).write_text(content)
    (folder / name).chmod(0o600)
    if os.geteuid() == 0:
        os.chown(folder / name, owner.st_uid, owner.st_gid)


@pytest.fixture(scope="module")
def client(authority: Authority) -> tuple[Path, Path]:
    """Certificate and key of the role."""
    return authority.sign(ROLE)


MakeConfig = Callable[..., SourceConfig]


@pytest.fixture
def configure(server: PostgresServer, authority: Authority, client: tuple[Path, Path]) -> MakeConfig:
    """Config of a source that does everything right, but for what is given."""

    def make(host: str = "localhost", user: str = ROLE, **tls: Any) -> SourceConfig:
        right = {"mode": "verify-full", "root_cert": authority.cert, "cert": client[0], "key": client[1]}
        return SourceConfig(
            connection=PostgresConfig(
                host=host, port=server.port, database="shop", user=user, tls=TlsConfig.model_validate(right | tls)
            ),
            publication=PublicationConfig(name="p", schemas=("sales",)),
        )

    return make


@pytest.fixture
def owner(server: PostgresServer, configure: MakeConfig) -> Iterator[psycopg.Connection[Any]]:
    """The role's own connection, to an emptied schema."""
    with psycopg.connect(**configure().connection.parameters(), autocommit=True) as connection:  # type: ignore[arg-type]
        connection.execute("drop schema if exists sales cascade; create schema sales; set search_path to sales")
        yield connection


def test_a_pipeline_runs_with_certificates_on_both_sides(
    server: PostgresServer, owner: psycopg.Connection[Any], configure: MakeConfig, tmp_path: Path
) -> None:
    owner.execute(
        "create table orders(id int primary key, note text);"
        "insert into orders select i, repeat('n', i % 50) from generate_series(1, 60000) i"
    )
    config = PipelineConfig.model_validate(
        {
            "name": "secure",
            "source": configure().model_dump(),
            "destination": {"type": "duckdb", "path": str(tmp_path / "shop.duckdb")},
            "store": {"type": "sqlite", "path": str(tmp_path / "state.sqlite")},
        }
    )
    pipeline = Pipeline(config)
    try:
        copied = sync(pipeline)
        owner.execute("update orders set note = 'changed' where id % 2 = 0; delete from orders where id % 3 = 0")
        caught_up = sync(pipeline)
        record, differences = pipeline.record(TableId("sales", "orders")), pipeline.compare()
    finally:
        pipeline.close()
        with psycopg.connect(server.dsn, autocommit=True) as admin:
            admin.execute("select pg_drop_replication_slot(slot_name) from pg_replication_slots")

    assert record is not None
    assert record.state is TableState.READY
    assert (copied.transactions, caught_up.transactions) == (0, 1)
    assert [(str(table), found.equal, found.rows) for table, found in differences.items()] == [
        ("sales.orders", True, 40_000)
    ]


def sync(pipeline: Pipeline) -> RunSummary:
    summary = RunSummary()
    with pipeline.replicator(summary) as replicator:
        replicator.sync()
    return summary


def test_a_copy_that_is_left_early_ends_at_the_server(
    server: PostgresServer, owner: psycopg.Connection[Any], configure: MakeConfig
) -> None:
    owner.execute(
        "create table big(id int primary key, note text);"
        "insert into big select i, repeat('n', 200) from generate_series(1, 100000) i"
    )
    source = PostgresSource(configure())
    source.prepare_publication()
    (table,) = source.tables().values()
    (plan,) = source.plan_chunks(table, 1 << 30)
    for _ in range(10):  # it depends on how full the socket's buffers are
        with source.read_chunk(table, plan) as reader:
            next(iter(reader))
    source.close()

    owner.execute("set lock_timeout = '15s'")
    owner.execute("drop table big")  # waits for whoever still reads it


def test_a_check_over_tls_passes(owner: psycopg.Connection[Any], configure: MakeConfig) -> None:
    owner.execute("create table orders(id int primary key)")

    assert [result for result in check(configure()) if not result.passed] == []


@pytest.mark.parametrize("mode", ["prefer", "require", "verify-ca", "verify-full"])
def test_every_mode_that_allows_tls_connects(configure: MakeConfig, mode: str) -> None:
    assert check(configure(mode=mode, user="postgres", cert=None, key=None))[0].passed


def test_what_is_wrong_with_the_servers_side_is_told(
    server: PostgresServer, configure: MakeConfig, authority: Authority, tmp_path: Path
) -> None:
    stranger = Authority.make(tmp_path, "stranger")
    unlisted = configure(host="127.0.0.1")

    refused(configure(root_cert=stranger.cert), "certificate verify failed", "tls.root_cert")
    refused(unlisted, r'certificate for "localhost".* does not match host name "127\.0\.0\.1"', "verify-ca")
    refused(configure(root_cert=tmp_path / "absent.crt"), r"root certificate file .*absent\.crt", "tls.root_cert")
    refused(configure(root_cert=_garbage(tmp_path)), r"root certificate file .*garbage", "tls.root_cert")
    refused(configure(mode="disable", cert=None, key=None), "no encryption", "tls.mode")
    refused(configure(crl=authority.revoke(server.folder / "server.crt")), "certificate verify failed", "tls.crl")


def test_what_is_wrong_with_the_clients_side_is_told(
    configure: MakeConfig, client: tuple[Path, Path], authority: Authority, tmp_path: Path
) -> None:
    stranger = Authority.make(tmp_path, "stranger")
    foreign_cert, foreign_key = stranger.sign(ROLE)
    _, other_key = stranger.sign("other")
    other_cert, others_key = authority.sign("someone_else")

    refused(configure(cert=tmp_path / "absent.crt"), "requires a valid client certificate", "tls.cert")
    refused(configure(cert=None, key=None), "requires a valid client certificate", "tls.cert")
    refused(configure(cert=_garbage(tmp_path)), r"certificate file .*garbage", "tls.cert")
    refused(configure(cert=foreign_cert, key=foreign_key), "unknown ca|certificate", "tls.cert")
    refused(configure(cert=other_cert, key=others_key), "certificate authentication failed", "common name in tls.cert")
    refused(
        configure(key=_copy(client[1], tmp_path / "loose.key", 0o644)), r"private key file .*loose\.key", "chmod 600"
    )
    refused(configure(key=tmp_path / "absent.key"), r"private key file .*absent\.key", "tls.key")
    refused(configure(key=_copy(_garbage(tmp_path), tmp_path / "bad.key", 0o600)), r"private key .*bad\.key", "tls.key")
    refused(configure(key=other_key), "key values mismatch", "tls.key")


def test_a_key_with_a_password_needs_it(configure: MakeConfig, client: tuple[Path, Path], tmp_path: Path) -> None:
    locked = tmp_path / "locked.key"
    _openssl(tmp_path, "ec", "-in", str(client[1]), "-aes256", "-passout", "pass:sesame", "-out", str(locked))
    locked.chmod(0o600)

    refused(configure(key=locked), r"private key file .*locked\.key", "tls.key_password")
    refused(configure(key=locked, key_password="open up"), r"private key file .*locked\.key", "tls.key_password")
    right = configure(key=locked, key_password="sesame")
    assert check(right)[0].passed
    assert "sesame" not in repr(right)


def test_a_client_whose_certificate_is_revoked_is_told(
    server: PostgresServer, configure: MakeConfig, authority: Authority
) -> None:
    cert, key = authority.sign("withdrawn")
    _install(server.folder, "root.crl", authority.revoke(cert).read_text())
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute("alter system set ssl_crl_file = 'root.crl'")
        admin.execute("select pg_reload_conf()")
        try:
            told = configure(cert=cert, key=key)
            wait_until(lambda: "revoked" in check(told)[0].detail, "the server does not know that it is revoked")
            refused(told, "certificate revoked", "tls.cert")
        finally:
            admin.execute("alter system reset ssl_crl_file")
            admin.execute("select pg_reload_conf()")
    wait_until(lambda: check(configure())[0].passed, "the server does not forget")


def _copy(file: Path, to: Path, mode: int) -> Path:
    to.write_bytes(file.read_bytes())
    to.chmod(mode)
    return to


def _garbage(folder: Path) -> Path:
    (folder / "garbage").write_text("neither key nor certificate")
    return folder / "garbage"


def refused(config: SourceConfig, message: str, advice: str) -> None:
    """The source and the doctor say why, and what to look at."""
    source = PostgresSource(config)
    with pytest.raises(SourceError, match=message) as error:
        source.identify()
    assert error.value.kind is ErrorKind.SOURCE_REFUSED
    assert "tls" in error.value.hint
    assert advice in error.value.hint, error.value
    (line,) = check(config)
    assert (line.name, line.passed) == ("connection", False)
    assert "tls" in line.todo
