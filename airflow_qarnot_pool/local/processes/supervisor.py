"""The keeper: a small process that runs instances, and lets none of them outlive the server.

It is started by the server with a pipe on its standard input and runs as a script of its own (standard
library only). When that pipe closes, because the server stopped or was killed, it kills everything it ever
started and removes the scratch directory.

Each command gets a supervisor, forked from here, which is a "child subreaper": a process whose parent dies
becomes the supervisor's child, whatever sessions and process groups it made. So killing children until none
is left kills the whole tree. The keeper is a subreaper too, for what a killed supervisor leaves.

Lines in:  {"run": id, "argv": [...], "cwd": path, "env": {...}, "stdout": path, "stderr": path}
           {"kill": id}
Lines out: {"exit": id, "code": n}   128 + signal number for a command ended by a signal
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import shutil
import signal
import sys
from typing import Any

_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36
_MINE = {signal.SIGTERM, signal.SIGCHLD}


def _prctl(option: int, value: int) -> None:
    # Not on Linux: orphans go to init, and only direct children and their process groups are killed.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _children() -> list[int]:
    me = os.getpid()
    try:
        with open(f"/proc/{me}/task/{me}/children") as listing:
            return [int(pid) for pid in listing.read().split()]
    except OSError:
        pass
    found = []
    with contextlib.suppress(OSError):
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with (
                    contextlib.suppress(OSError, ValueError, IndexError),
                    open(f"/proc/{entry}/stat") as stat,
                ):
                    if int(stat.read().rpartition(")")[2].split()[1]) == me:
                        found.append(int(entry))
    return found


def _kill(pid: int) -> None:
    for target in (lambda: os.killpg(pid, signal.SIGKILL), lambda: os.kill(pid, signal.SIGKILL)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            target()


def _status(raw: int) -> int:
    return os.waitstatus_to_exitcode(raw) if os.WIFEXITED(raw) else 128 + os.WTERMSIG(raw)


def kill_descendants(known: int = 0) -> int | None:
    """Kill children until there are none. Returns the exit code of the child `known`, if it was among them."""
    code = None
    while True:
        for pid in {*_children(), *({known} if known and code is None else ())}:
            _kill(pid)
        try:
            pid, raw = os.waitpid(-1, 0)
        except ChildProcessError:
            return code
        if pid == known:
            code = _status(raw)


def _execute(job: dict[str, Any]) -> None:
    """In the forked child: become the command. Never returns."""
    os.setsid()
    # All of them: whoever started the server may have ignored some (nohup, a shell's background job).
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    out, err = os.open(job["stdout"], append, 0o644), os.open(job["stderr"], append, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.closerange(3, 1024)
    argv = job["argv"]
    try:
        os.chdir(job["cwd"])
        os.execvpe(argv[0], argv, job["env"])
    except FileNotFoundError:
        message, code = f"{argv[0]}: not found\n", 127
    except (OSError, ValueError) as error:
        message, code = f"{argv[0]}: cannot be run: {error}\n", 126
    os.write(2, message.encode())
    os._exit(code)


def _supervise(job: dict[str, Any], keeper: int) -> None:
    """In the forked supervisor: run one command to its end, then let nothing of it stay. Never returns."""
    _prctl(_SET_CHILD_SUBREAPER, 1)
    _prctl(_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != keeper:
        os._exit(137)
    silence = os.open(os.devnull, os.O_RDWR)
    os.dup2(silence, 0)
    os.dup2(silence, 1)
    os.closerange(3, 1024)
    main = os.fork()
    if main == 0:
        try:
            _execute(job)
        finally:
            os._exit(126)
    code: int | None = None
    while code is None:
        if signal.sigwait(_MINE) == signal.SIGTERM:
            break
        while code is None:
            try:
                pid, raw = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid == main:
                code = _status(raw)
    rest = kill_descendants(main if code is None else 0)
    os._exit(next(c for c in (code, rest, 137) if c is not None) & 0xFF)


class Supervisor:
    def __init__(self, scratch: str) -> None:
        self._scratch = scratch
        self._runs: dict[str, int] = {}
        self._supervisors: dict[int, str] = {}
        self._me = os.getpid()

    def serve(self) -> None:
        _prctl(_SET_CHILD_SUBREAPER, 1)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        # Signals arrive as bytes in a pipe, so that one select waits for them and for orders.
        signals, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in _MINE:
            signal.signal(number, lambda *_: None)
        with selectors.DefaultSelector() as selector:
            selector.register(0, selectors.EVENT_READ)
            selector.register(signals, selectors.EVENT_READ)
            pending = b""
            while True:
                ready = {key.fd for key, _ in selector.select()}
                if signals in ready:
                    if signal.SIGTERM in os.read(signals, 4096):
                        break
                    self._reap()
                if 0 in ready:
                    chunk = os.read(0, 1 << 16)
                    if not chunk:
                        break
                    *lines, pending = (pending + chunk).split(b"\n")
                    for line in lines:
                        self._obey(json.loads(line))
        self._end()

    def _obey(self, order: dict[str, Any]) -> None:
        if (run := order.get("run")) is not None:
            # Blocked around the fork, so that the supervisor misses no signal before it waits for them.
            signal.pthread_sigmask(signal.SIG_BLOCK, _MINE)
            pid = os.fork()
            if pid == 0:
                try:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGTERM, signal.SIG_DFL)
                    _supervise(order, self._me)
                finally:
                    os._exit(126)
            self._runs[run] = pid
            self._supervisors[pid] = run
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _MINE)
        elif (supervisor := self._runs.get(order.get("kill", ""))) is not None:
            os.kill(supervisor, signal.SIGTERM)

    def _reap(self) -> None:
        orphans = False
        while True:
            try:
                pid, raw = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            run = self._supervisors.pop(pid, None)
            # A supervisor that was killed leaves its tree to us, and so does each process of that tree.
            orphans = orphans or run is None or os.WIFSIGNALED(raw)
            if run is not None:
                del self._runs[run]
                self._tell({"exit": run, "code": _status(raw)})
        if orphans:
            self._kill_strays()

    def _kill_strays(self) -> None:
        for stray in set(_children()) - set(self._supervisors):
            _kill(stray)

    def _tell(self, news: dict[str, Any]) -> None:
        data = json.dumps(news).encode() + b"\n"
        with contextlib.suppress(BrokenPipeError):
            while data:
                data = data[os.write(1, data) :]

    def _end(self) -> None:
        for supervisor in self._supervisors:
            with contextlib.suppress(ProcessLookupError):
                os.kill(supervisor, signal.SIGTERM)
        # Supervisors end when their trees are dead; only what is not under one is killed from here.
        while self._supervisors:
            self._kill_strays()
            pid, _ = os.waitpid(-1, 0)
            self._supervisors.pop(pid, None)
        kill_descendants()
        shutil.rmtree(self._scratch, ignore_errors=True)


if __name__ == "__main__":
    Supervisor(sys.argv[1]).serve()
