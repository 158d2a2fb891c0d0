"""A PostgreSQL cluster of the tests' own: in a temporary directory, on loopback, gone with this process."""

from __future__ import annotations

import ctypes
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

_START_TIMEOUT = 60.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def binary(name: str) -> str | None:
    """Where a program of PostgreSQL is; Debian keeps the server's out of the PATH."""
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: path.parts[-3])
    return str(debian[-1]) if debian else shutil.which(name)


class Postgres:
    """An empty database; a context manager that starts and stops its server.

    The server refuses to run as root, which hands it to the user ``postgres`` (or ``nobody``).
    """

    def __init__(self) -> None:
        self._password = secrets.token_hex(16)
        self._user = _unprivileged()
        self._home = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self.url = ""

    def __enter__(self) -> Self:
        self._home = Path(tempfile.mkdtemp(prefix="airflow-stack-postgres-"))
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
        shutil.rmtree(self._home, ignore_errors=True)

    def _start(self) -> None:
        if self._user is not None:
            os.chown(self._home, self._user.pw_uid, self._user.pw_gid)
        data, password = self._home / "data", self._home / "password"
        password.write_text(self._password)
        if self._user is not None:
            os.chown(password, self._user.pw_uid, self._user.pw_gid)
        made = self._spawn(
            "initdb", f"--pgdata={data}", "--username=airflow", f"--pwfile={password}", "--auth=scram-sha-256",
            "--encoding=UTF8", "--no-locale", "--no-sync",
        )  # fmt: skip
        if made.wait(_START_TIMEOUT) != 0:
            raise RuntimeError(f"PostgreSQL could not be made ready:\n{self._log()}")
        self._port = _free_port()
        self._serve()
        self.url = f"postgresql+psycopg2://airflow:{self._password}@127.0.0.1:{self._port}/postgres"

    def _serve(self) -> None:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self._port,
            "unix_socket_directories": self._home,
            "max_connections": 300,
            # Thrown away afterwards: a crash of the machine may lose it.
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self._process = self._spawn("postgres", "-D", str(self._home / "data"), *options)
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._answers(self._port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{self._log()}")
            time.sleep(0.05)

    def restart(self, seconds_away: float = 0.0) -> None:
        """Break every connection, as a crash does, and serve the same data again *seconds_away* later."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait()
        time.sleep(seconds_away)
        self._serve()

    def _answers(self, port: int) -> bool:
        ready = binary("pg_isready")
        if ready is None:
            raise RuntimeError("pg_isready is missing")
        command = [ready, "-q", "-h", "127.0.0.1", "-p", str(port)]
        return subprocess.run(command, check=False, cwd="/").returncode == 0

    def _spawn(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        program = binary(name)
        if program is None:
            raise RuntimeError(f"PostgreSQL's {name} is missing; on Debian: apt-get install postgresql")
        with (self._home / "log").open("ab") as log:
            return subprocess.Popen(
                [program, *arguments],
                cwd=self._home,
                env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", "HOME": str(self._home)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                user=self._user.pw_uid if self._user else None,
                group=self._user.pw_gid if self._user else None,
                extra_groups=[] if self._user else None,
                process_group=0,
                preexec_fn=_end_with_parent,
            )

    def _log(self) -> str:
        log = self._home / "log"
        return log.read_text(errors="replace") if log.exists() else ""


def _end_with_parent() -> None:
    """Have the kernel end this process when the one that started it is gone (SIGQUIT: at once)."""
    _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGQUIT))


def _unprivileged() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    users = {entry.pw_name: entry for entry in pwd.getpwall()}
    user = users.get("postgres") or users.get("nobody")
    if user is None:
        raise RuntimeError("PostgreSQL does not run as root, and there is no user 'postgres' or 'nobody'")
    return user


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
