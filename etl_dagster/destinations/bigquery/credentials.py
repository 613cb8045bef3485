"""Who connects to Google."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from etl_dagster.destinations.bigquery.config import (
    AnonymousCredentials,
    BigQueryConfig,
    FileCredentials,
    KeyCredentials,
)
from etl_dagster.destinations.bigquery.errors import failures, translate
from etl_dagster.errors import ConfigError

if TYPE_CHECKING:
    from google.auth.credentials import Credentials
    from google.auth.transport.requests import AuthorizedSession

# Covers BigQuery and Cloud Storage; what the account may do is a matter of its roles.
SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
# One for each thread that loads, and some for what runs beside.
_CONNECTIONS = 16
_REFRESH_SECONDS = 120


def authorize(config: BigQueryConfig) -> Credentials:
    """The credentials of a config; nothing is asked of Google but by those of the environment.

    Raises:
        ConfigError: They cannot be read, or there are none.
    """
    try:
        return _authorize(config)
    except failures() as error:
        if isinstance(config.credentials, FileCredentials):
            raise _unfit("destination.credentials.path") from None
        translated = translate(error, "find credentials")
        raise translated from translated.__cause__
    except OSError as error:
        path = getattr(config.credentials, "path", "")
        raise ConfigError(
            f"destination.credentials.path: {path} cannot be read ({type(error).__name__})", hint="Correct the path"
        ) from error
    except ValueError:  # the parser's message may quote the key
        field = ".json" if isinstance(config.credentials, KeyCredentials) else ""
        raise _unfit(f"destination.credentials{field}") from None


def _unfit(field: str) -> ConfigError:
    return ConfigError(
        f"{field}: not a key that Google's library understands", hint="Give the file that Google Cloud made, as it is"
    )


def session(credentials: Credentials) -> AuthorizedSession:
    """Connections that are kept and shared by threads."""
    from google.auth.transport.requests import AuthorizedSession
    from requests.adapters import HTTPAdapter

    made = AuthorizedSession(credentials, refresh_timeout=_REFRESH_SECONDS)
    made.configure_mtls_channel()
    if not made.is_mtls:
        made.mount("https://", HTTPAdapter(pool_connections=_CONNECTIONS, pool_maxsize=_CONNECTIONS))
        made.mount("http://", HTTPAdapter(pool_connections=_CONNECTIONS, pool_maxsize=_CONNECTIONS))
    return made


def identity(credentials: Credentials) -> str:
    """Who the credentials are, as far as they say."""
    for name in ("service_account_email", "signer_email", "account"):
        found = getattr(credentials, name, None)
        if isinstance(found, str) and found and found != "default":
            return found
    return "the account given"


def _authorize(config: BigQueryConfig) -> Credentials:
    from google.auth.credentials import with_scopes_if_required

    given = config.credentials
    base = with_scopes_if_required(_base(config), SCOPES)
    target = None if isinstance(given, AnonymousCredentials) else given.impersonate
    return _impersonated(base, target) if target else base


def _base(config: BigQueryConfig) -> Any:
    import google.auth
    from google.auth import credentials
    from google.oauth2 import service_account

    given = config.credentials
    if isinstance(given, AnonymousCredentials):
        return credentials.AnonymousCredentials()
    if isinstance(given, KeyCredentials):
        info = json.loads(given.json_.get_secret_value())
        return service_account.Credentials.from_service_account_info(info, scopes=SCOPES)
    if isinstance(given, FileCredentials):
        with open(given.path) as file:  # noqa: PTH123  Google's own error does not say that it is the path
            file.read(1)
        return google.auth.load_credentials_from_file(given.path, scopes=SCOPES)[0]
    return google.auth.default(scopes=SCOPES)[0]


def _impersonated(source: Credentials, target: str) -> Credentials:
    from google.auth import impersonated_credentials

    return impersonated_credentials.Credentials(source, target, list(SCOPES))
