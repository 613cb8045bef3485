"""Who connects: keys, files, impersonation; and what becomes of tokens that Google does not give."""

from __future__ import annotations

import json
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from etl_dagster.destinations.bigquery.client import Client
from etl_dagster.errors import ConfigError, ErrorKind, EtlError
from tests.bigquery.fixtures import Dataset

EMAIL = "etl@my-project.iam.gserviceaccount.com"


class TokenServer(ThreadingHTTPServer):
    """Stands in for Google's, which gives tokens for keys."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Tokens)
        self.status, self.answer = 200, {"access_token": "t0ken", "expires_in": 3600, "token_type": "Bearer"}
        self.asked = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/token"


class _Tokens(BaseHTTPRequestHandler):
    server: TokenServer

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked += 1
        body = json.dumps(self.server.answer).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """The test asks."""


@pytest.fixture
def tokens() -> Iterator[TokenServer]:
    with TokenServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def private_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption()).decode()


@pytest.fixture
def key(tokens: TokenServer, private_key: str) -> str:
    return json.dumps(
        {
            "type": "service_account",
            "project_id": "my-project",
            "client_email": EMAIL,
            "private_key_id": "1",
            "private_key": private_key,
            "token_uri": tokens.url,
        }
    )


def query(dataset: Dataset, credentials: dict[str, Any]) -> tuple[str, list[tuple[Any, ...]]]:
    client = Client(dataset.config(credentials=credentials, retry_seconds=0))
    try:
        return client.identity, client.run("SELECT 1", doing="try")
    finally:
        client.close()


def test_a_key_as_text(bigquery_dataset: Dataset, key: str, tokens: TokenServer) -> None:
    assert query(bigquery_dataset, {"type": "key", "json": key}) == (EMAIL, [(1,)])
    assert tokens.asked == 1


def test_a_key_in_a_file(bigquery_dataset: Dataset, key: str, tmp_path: Path) -> None:
    (tmp_path / "key.json").write_text(key)
    assert query(bigquery_dataset, {"type": "file", "path": str(tmp_path / "key.json")}) == (EMAIL, [(1,)])


def test_the_key_of_the_environment(
    bigquery_dataset: Dataset, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key.json").write_text(key)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    assert query(bigquery_dataset, {"type": "default"}) == (EMAIL, [(1,)])


def test_somebody_else_is_whom_one_acts_as(bigquery_dataset: Dataset, key: str) -> None:
    other = "other@my-project.iam.gserviceaccount.com"
    client = Client(bigquery_dataset.config(credentials={"type": "key", "json": key, "impersonate": other}))
    assert client.identity == other
    client.close()


def test_a_key_that_was_revoked_stops_and_says_so(bigquery_dataset: Dataset, key: str, tokens: TokenServer) -> None:
    tokens.status = 400
    tokens.answer = {"error": "invalid_grant", "error_description": "Invalid JWT Signature s3cr3t."}
    with pytest.raises(EtlError, match="RefreshError") as caught:
        query(bigquery_dataset, {"type": "key", "json": key})
    assert caught.value.kind is ErrorKind.CONFIG
    assert "destination.credentials" in caught.value.hint
    assert "Invalid JWT" not in "".join(traceback.format_exception(caught.value))


def test_a_file_that_is_missing_or_no_key(bigquery_dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read \(FileNotFoundError\)"):
        query(bigquery_dataset, {"type": "file", "path": str(tmp_path / "missing.json")})
    (tmp_path / "broken.json").write_text("s3cr3t")
    with pytest.raises(ConfigError, match="not a key") as caught:
        query(bigquery_dataset, {"type": "file", "path": str(tmp_path / "broken.json")})
    assert "s3cr3t" not in str(caught.value)


def test_a_key_that_is_damaged(bigquery_dataset: Dataset, key: str) -> None:
    damaged = json.dumps(json.loads(key) | {"private_key": "-----BEGIN PRIVATE KEY-----\ns3cr3t\n"})
    with pytest.raises(ConfigError, match=r"destination\.credentials\.json: not a key") as caught:
        query(bigquery_dataset, {"type": "key", "json": damaged})
    assert "s3cr3t" not in "".join(traceback.format_exception(caught.value))
