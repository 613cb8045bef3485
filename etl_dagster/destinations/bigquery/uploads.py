"""Files that go through a bucket."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

from etl_dagster.destinations.bigquery.config import BigQueryConfig, GcsStaging

if TYPE_CHECKING:
    import google.cloud.storage as gcs

# A multiple of 256 KiB; each has to arrive within the timeout, and is kept in memory to be sent again.
_PART_BYTES = 8 * 1024 * 1024


class Bucket:
    """The bucket that files are staged in."""

    def __init__(self, client: gcs.Client, staging: GcsStaging, timeout_seconds: float) -> None:
        self._bucket = client.bucket(staging.bucket)
        self._prefix = staging.prefix
        self._timeout = timeout_seconds

    def put(self, name: str, file: IO[bytes]) -> str:
        """Upload, in place of what an earlier attempt has left, and return its address."""
        blob = self._bucket.blob(f"{self._prefix}{name}", chunk_size=_PART_BYTES)
        file.seek(0)
        blob.upload_from_file(file, timeout=self._timeout, retry=None, content_type="application/vnd.apache.parquet")
        return f"gs://{self._bucket.name}/{blob.name}"

    def remove(self, name: str) -> None:
        self._bucket.blob(f"{self._prefix}{name}").delete(timeout=self._timeout, retry=None)

    def held(self, permissions: list[str]) -> set[str]:
        """Which of the permissions the account has on the bucket."""
        return set(self._bucket.test_iam_permissions(permissions, timeout=self._timeout))


def open_bucket(config: BigQueryConfig, credentials: object, http: object) -> Bucket | None:
    if config.staging is None:
        return None
    import google.cloud.storage as gcs

    client = gcs.Client(project=config.project, credentials=credentials, _http=http)
    return Bucket(client, config.staging, config.timeout_seconds)
