"""A Redis of the tests' own: on loopback, with a password, nothing on disk, gone with this process."""

from __future__ import annotations

import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

from tests.stack.postgres import _end_with_parent, _free_port

_START_TIMEOUT = 30.0


class Redis:
    """A context manager that starts and stops a Redis server; *url* is what Celery's broker takes."""

    def __init__(self) -> None:
        self._password = secrets.token_hex(16)
        self._home = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        program = shutil.which("redis-server")
        if program is None:
            raise RuntimeError("redis-server is missing; on Debian: apt-get install redis-server")
        self._home = Path(tempfile.mkdtemp(prefix="airflow-stack-redis-"))
        port = _free_port()
        # From standard input: a command line would show the password to everybody.
        settings = f'bind 127.0.0.1\nport {port}\nrequirepass {self._password}\nsave ""\ndir {self._home}\n'
        with (self._home / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [program, "-"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
                preexec_fn=_end_with_parent,
            )
        assert self._process.stdin is not None
        self._process.stdin.write(settings.encode())
        self._process.stdin.close()
        deadline = time.monotonic() + _START_TIMEOUT
        while not _answers(port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                text = (self._home / "log").read_text(errors="replace")
                self.__exit__()
                raise RuntimeError(f"Redis did not start:\n{text}")
            time.sleep(0.05)
        self.url = f"redis://:{self._password}@127.0.0.1:{port}/0"
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._home, ignore_errors=True)


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(b"PING\r\n")
            return bool(connection.recv(64))
    except OSError:
        return False
