"""Keep state in a directory over a restart: rows of JSON in one SQLite database, and a lock.

SQLite makes each write atomic: after SIGKILL, at whatever moment, a write has happened in full or not at all. A lock on
a file shows whether a server uses the directory. The supervisor inherits it, because commands of a killed server write
output until the supervisor has ended them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

OPTION = "--state-dir"
WAIT_SECONDS = 20.0
"""Maximum wait for the end of the processes of a server that was killed."""
_DATABASE, _LOCK = "state.db", "lock"
_OURS = {
    _DATABASE,
    f"{_DATABASE}-wal",
    f"{_DATABASE}-shm",
    f"{_DATABASE}-journal",
    _LOCK,
    "objects",
    "output",
}
_VERSION, _TOKEN = ("version", ""), ("token", "")

Row = tuple[str, str, Any]
"""Kind and id of a row, and its content. None deletes the row."""


class StateError(Exception):
    """The state directory cannot be used. The message names it, and what to do."""


class State:
    """The state directory of one server.

    :param directory: created if it is missing; only its owner can read it, because it holds secrets.
    :param version: the form of the rows. A directory with another form is refused.
    :param wait: maximum number of seconds to wait for another server to end.
    :raises StateError: it belongs to another server or version, or has other files.
    """

    def __init__(self, directory: str | os.PathLike[str], version: str, wait: float = WAIT_SECONDS) -> None:
        self.directory = Path(directory).expanduser().absolute()
        self._mutex = threading.Lock()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if foreign := sorted(set(os.listdir(self.directory)) - _OURS):
                raise self._error(f"has other files ({foreign[0]}). Choose an empty or a new directory.")
            self.directory.chmod(0o700)
            self.lock = os.open(self.directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            self._wait_for_lock(wait)
        except OSError as error:
            raise self._error(f"cannot be used: {error.strerror}. Choose another directory.") from error
        try:
            self._rows = sqlite3.connect(self.directory / _DATABASE, check_same_thread=False)
            self._open(version)
        except sqlite3.OperationalError as error:
            problem = f"cannot be used: {error}. Make space, and allow access to its {_DATABASE}."
            raise self._error(problem) from error
        except sqlite3.Error as error:
            raise self._error(f"has an unreadable {_DATABASE}: {error}. Remove the directory.") from error

    def _error(self, problem: str) -> StateError:
        return StateError(f"{OPTION} {self.directory} {problem}")

    def _wait_for_lock(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    owner = os.pread(self.lock, 20, 0).decode()
                    raise self._error(
                        f"is in use by process {owner}. Stop it, or choose another directory."
                    ) from None
                time.sleep(0.02)
            else:
                os.ftruncate(self.lock, 0)
                os.pwrite(self.lock, str(os.getpid()).encode(), 0)
                return

    def _open(self, version: str) -> None:
        # In this mode a write is one append, and a reader never waits.
        self._rows.execute("PRAGMA journal_mode = WAL")
        self._rows.execute("PRAGMA synchronous = NORMAL")
        with self._rows:
            self._rows.execute(
                "CREATE TABLE IF NOT EXISTS rows "
                "(kind TEXT, id TEXT, content TEXT, PRIMARY KEY (kind, id)) WITHOUT ROWID"
            )
            found = self._get(_VERSION)
            if found is None:
                self._put([(*_VERSION, version)])
            elif found != version:
                raise self._error(
                    f"has the state of version {found}, and this local Qarnot reads version {version}. "
                    "Remove the directory, or choose another one."
                )

    def _get(self, key: tuple[str, str]) -> Any:
        row = self._rows.execute("SELECT content FROM rows WHERE kind = ? AND id = ?", key).fetchone()
        return None if row is None else json.loads(row[0])

    def _put(self, rows: Iterable[Row]) -> None:
        for kind, id, content in rows:
            if content is None:
                self._rows.execute("DELETE FROM rows WHERE kind = ? AND id = ?", (kind, id))
            else:
                self._rows.execute("REPLACE INTO rows VALUES (?, ?, ?)", (kind, id, json.dumps(content)))

    def write(self, rows: Iterable[Row]) -> None:
        """Write all rows or none. Raises sqlite3.Error."""
        with self._mutex, self._rows:
            self._put(rows)

    def read(self, kind: str) -> dict[str, Any]:
        """Return the contents of the rows of one kind by id."""
        with self._mutex:
            rows = self._rows.execute("SELECT id, content FROM rows WHERE kind = ?", (kind,)).fetchall()
        return {id: json.loads(content) for id, content in rows}

    def token(self) -> str:
        """Return the token of the account, which is decided at the first start."""
        with self._mutex, self._rows:
            token = self._get(_TOKEN) or secrets.token_urlsafe(24)
            self._put([(*_TOKEN, token)])
        return str(token)

    def close(self) -> None:
        with self._mutex, contextlib.suppress(sqlite3.Error):
            self._rows.close()
        os.close(self.lock)
