"""The supervisor: a small process that runs the commands of instances and kills them when the server ends.

The server starts it as a script, with the standard library only and a pipe on its standard input. When that pipe
closes, because the server stopped or was killed, it kills everything it has started and removes the scratch directory.

It forks a command monitor for each command. A monitor is a "child subreaper": if a process of the command dies, the
children of that process become children of the monitor, whatever sessions and process groups they created. Killing
children until none remains therefore kills the whole tree. The supervisor is a subreaper as well, for the tree of a
monitor that was killed.

The monitor reads the output of its command and keeps the end of it (:class:`Tail`), so that no output fills the disk.

A command without a network gets a network namespace of its own, in which only loopback is up. Where the kernel allows
none, its proxy variables point to a closed port.

Lines in:  {"run": id, "argv": [...], "cwd": path, "env": {...}, "stdout": path, "stderr": path, "kept": bytes,
            "network": bool}
           {"kill": id}
Lines out: {"output": id, "error": text}   output could not be stored
           {"exit": id, "code": n}   128 + signal number for a command ended by a signal
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import selectors
import shutil
import signal
import socket
import struct
import sys
import threading
from typing import Any

_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36
_NEW_NETWORK, _NEW_USER = 0x40000000, 0x10000000
_SET_INTERFACE_FLAGS, _INTERFACE_UP = 0x8914, 1
#: The environment of a command without a network if the kernel allows no namespaces. Nothing listens on port 9.
NOWHERE = {
    name: "http://127.0.0.1:9"
    for lower in ("http_proxy", "https_proxy", "all_proxy")
    for name in (lower, lower.upper())
}
_MINE = {signal.SIGTERM, signal.SIGCHLD}
_CHUNK = 1 << 16
_DRAIN_SECONDS = 5.0
"""Maximum wait for the end of the output of killed processes. A process that was not found may hold it open."""


def segment_bytes(kept: int) -> int:
    """Return the maximum number of bytes in one of the two files of a :class:`Tail`."""
    return max(kept, 4096)


def segments(path: str) -> tuple[str, str]:
    """Return the paths of the two files of a :class:`Tail`."""
    return path, f"{path}.1"


class Tail:
    """Writes a stream to two files in turn, so that they hold at least its last `kept` bytes.

    A byte has the same offset in its file as in the stream. The part of a file that comes before its segment is a hole,
    which takes no space. A file is replaced, not overwritten, so that a reader with an open file sees what it held.
    """

    def __init__(self, path: str, kept: int) -> None:
        self._paths, self._size = segments(path), segment_bytes(kept)
        # The output of an earlier attempt comes first.
        self._end = max(os.path.getsize(name) if os.path.exists(name) else 0 for name in self._paths)
        self._file: int | None = None

    def write(self, data: bytes) -> None:
        """Append to the stream. Raises OSError."""
        while data:
            used = self._end % self._size
            if self._file is None or used == 0:
                self._open(is_new=used == 0)
            assert self._file is not None
            written = os.pwrite(self._file, data[: self._size - used], self._end)
            self._end += written
            data = data[written:]

    def _open(self, *, is_new: bool) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        path = self._paths[self._end // self._size % 2]
        if is_new:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)


def _pump(source: int, job: dict[str, Any], stream: str, reports: int) -> None:
    """Store one output stream of a command until its end. Report the first error, and drop the rest then."""
    tail: Tail | None = None
    has_failed = False
    while data := os.read(source, _CHUNK):
        if has_failed:
            continue
        try:
            tail = tail or Tail(job[stream], job["kept"])
            tail.write(data)
        except OSError as error:
            has_failed = True
            report = {"output": job["run"], "error": f"{stream}: {error.strerror}"}
            # One short write to a pipe is never mixed with those of other monitors.
            with contextlib.suppress(BrokenPipeError):
                os.write(reports, json.dumps(report).encode() + b"\n")


def _prctl(option: int, value: int) -> None:
    # On other systems than Linux orphans go to init: only direct children and their process groups are killed.
    with contextlib.suppress(AttributeError, OSError):
        libc: Any = ctypes.CDLL(None)
        libc.prctl(option, value, 0, 0, 0)


def leave_networks() -> None:
    """Move this process to a new network namespace, in which only loopback is up. Raises OSError if it cannot.

    A user namespace allows that to a process that is not root. The user stays the same in it.
    """
    try:
        libc: Any = ctypes.CDLL(None, use_errno=True)
        unshare = libc.unshare
    except AttributeError:
        raise OSError("this system has no network namespaces") from None
    user, group = os.getuid(), os.getgid()
    if unshare(_NEW_NETWORK) != 0:
        if unshare(_NEW_NETWORK | _NEW_USER) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SET_INTERFACE_FLAGS, struct.pack("16sh14x", b"lo", _INTERFACE_UP))


def can_leave_networks() -> bool:
    """Try :func:`leave_networks` in another process."""
    pid = os.fork()
    if pid == 0:
        try:
            leave_networks()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def _children() -> list[int]:
    me = os.getpid()
    try:
        with open(f"/proc/{me}/task/{me}/children") as listing:
            return [int(pid) for pid in listing.read().split()]
    except OSError:
        pass
    children = []
    with contextlib.suppress(OSError):
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with (
                    contextlib.suppress(OSError, ValueError, IndexError),
                    open(f"/proc/{entry}/stat") as stat,
                ):
                    if int(stat.read().rpartition(")")[2].split()[1]) == me:
                        children.append(int(entry))
    return children


def _kill(pid: int) -> None:
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def _status(raw: int) -> int:
    return os.waitstatus_to_exitcode(raw) if os.WIFEXITED(raw) else 128 + os.WTERMSIG(raw)


def kill_descendants(known: int = 0) -> int | None:
    """Kill children until none remains. Return the exit code of the child `known`, if it was among them."""
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


def _execute(job: dict[str, Any], out: int, err: int) -> None:
    """Become the command with its output in these pipes, in the forked child. Never returns."""
    os.setsid()
    # Reset all signals, because the parent of the server may have ignored some (nohup, a background job).
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.closerange(3, 1024)
    argv = job["argv"]
    if not job.get("network", True):
        try:
            leave_networks()
        except OSError:
            job["env"] |= NOWHERE
    try:
        os.chdir(job["cwd"])
        os.execvpe(argv[0], argv, job["env"])
    except FileNotFoundError:
        message, code = f"{argv[0]}: not found\n", 127
    except (OSError, ValueError) as error:
        message, code = f"{argv[0]}: cannot be run: {error}\n", 126
    os.write(2, message.encode())
    os._exit(code)


def _monitor(job: dict[str, Any], supervisor: int) -> None:
    """Run one command to its end in the forked monitor, then kill all its processes. Never returns."""
    _prctl(_SET_CHILD_SUBREAPER, 1)
    _prctl(_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != supervisor:
        os._exit(137)
    reports = 3
    os.dup2(1, reports)
    os.closerange(reports + 1, 1024)
    silence = os.open(os.devnull, os.O_RDWR)
    os.dup2(silence, 0)
    os.dup2(silence, 1)
    pipes = {"stdout": os.pipe(), "stderr": os.pipe()}
    main = os.fork()
    if main == 0:
        try:
            _execute(job, *(write_end for _, write_end in pipes.values()))
        finally:
            os._exit(126)
    pumps = []
    for stream, (read_end, write_end) in pipes.items():
        os.close(write_end)
        pumps.append(threading.Thread(target=_pump, args=(read_end, job, stream, reports), daemon=True))
        pumps[-1].start()
    code = _wait_for(main)
    rest = kill_descendants(main if code is None else 0)
    for pump in pumps:
        pump.join(_DRAIN_SECONDS)
    os._exit(next(c for c in (code, rest, 137) if c is not None) & 0xFF)


def _wait_for(main: int) -> int | None:
    """Return the exit code of the process *main*, or None if a SIGTERM comes first. Reap its descendants."""
    while signal.sigwait(_MINE) != signal.SIGTERM:
        while True:
            try:
                pid, raw = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == main:
                return _status(raw)
            if pid == 0:
                break
    return None


class Supervisor:
    def __init__(self, scratch: str) -> None:
        self._scratch = scratch
        self._runs: dict[str, int] = {}
        self._monitors: dict[int, str] = {}
        self._me = os.getpid()
        self._cuts_networks = False

    def serve(self) -> None:
        _prctl(_SET_CHILD_SUBREAPER, 1)
        self._cuts_networks = can_leave_networks()
        if not self._cuts_networks:
            print(
                "This system allows no network namespaces here. Commands of profiles without a network get proxies "
                "that lead nowhere.",
                file=sys.stderr,
                flush=True,
            )
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        # Signals arrive as bytes in a pipe, because one select then waits for them and for orders.
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
            if not order.get("network", True) and not self._cuts_networks:
                order["network"], order["env"] = True, order["env"] | NOWHERE
            # Blocked around the fork, because the monitor must miss no signal before it waits for them.
            signal.pthread_sigmask(signal.SIG_BLOCK, _MINE)
            pid = os.fork()
            if pid == 0:
                try:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGTERM, signal.SIG_DFL)
                    _monitor(order, self._me)
                finally:
                    os._exit(126)
            self._runs[run] = pid
            self._monitors[pid] = run
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _MINE)
        elif (monitor := self._runs.get(order.get("kill", ""))) is not None:
            os.kill(monitor, signal.SIGTERM)

    def _reap(self) -> None:
        orphans = False
        while True:
            try:
                pid, raw = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            run = self._monitors.pop(pid, None)
            # The tree of a killed monitor, and of each of its processes, becomes ours.
            orphans = orphans or run is None or os.WIFSIGNALED(raw)
            if run is not None:
                del self._runs[run]
                self._report({"exit": run, "code": _status(raw)})
        if orphans:
            self._kill_strays()

    def _kill_strays(self) -> None:
        for stray in set(_children()) - set(self._monitors):
            _kill(stray)

    def _report(self, report: dict[str, Any]) -> None:
        data = json.dumps(report).encode() + b"\n"
        with contextlib.suppress(BrokenPipeError):
            while data:
                data = data[os.write(1, data) :]

    def _end(self) -> None:
        for monitor in self._monitors:
            with contextlib.suppress(ProcessLookupError):
                os.kill(monitor, signal.SIGTERM)
        # Monitors end when their trees are dead. Only processes outside of these trees are killed here.
        while self._monitors:
            self._kill_strays()
            pid, _ = os.waitpid(-1, 0)
            self._monitors.pop(pid, None)
        kill_descendants()
        shutil.rmtree(self._scratch, ignore_errors=True)


if __name__ == "__main__":
    Supervisor(sys.argv[1]).serve()
