"""Start commands, wait for them and kill them, through the supervisor process."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_ORDER_LIMIT = 1 << 16


@dataclass(frozen=True, slots=True)
class RunResult:
    """Result of a command.

    :param code: exit code (127 not found, 126 not executable, 128 + n ended by signal n).
    :param output_error: reason for which output was not stored, or None.
    """

    code: int
    output_error: str | None = None


class Runner:
    """Runs commands as processes under one supervisor process (see supervisor.py).

    :param scratch: directory that is removed with its contents when the supervisor ends.
    :param on_loss: called if the supervisor ends while the server runs, because then no command can run.
    :param inherited: file descriptors that the supervisor holds open, such as a lock.
    """

    def __init__(self, scratch: str, on_loss: Callable[[], None], inherited: tuple[int, ...] = ()) -> None:
        self._scratch, self._inherited = scratch, inherited
        self._on_loss = on_loss
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._ids = itertools.count(1)
        self._runs: dict[str, asyncio.Future[RunResult]] = {}
        self._output_errors: dict[str, str] = {}
        self._stopping = False

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-ISB",
            str(Path(__file__).with_name("supervisor.py")),
            self._scratch,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # Not the server's environment: an instance could read it in /proc.
            env={"PATH": os.environ.get("PATH", os.defpath)},
            start_new_session=True,
            pass_fds=self._inherited,
        )
        self._reader = asyncio.create_task(self._read())

    def run(
        self,
        argv: Sequence[str],
        *,
        cwd: str,
        env: dict[str, str],
        stdout: str,
        stderr: str,
        kept: int,
        network: bool = True,
    ) -> tuple[str, asyncio.Future[RunResult]]:
        """Start a command whose output is appended to the two streams, of which the last *kept* bytes are stored.

        Without *network* it reaches only itself, as far as the kernel allows that (see supervisor.py).
        Return its run id and a future of its result.
        """
        run = f"r{next(self._ids)}"
        done = asyncio.get_running_loop().create_future()
        self._runs[run] = done
        self._send(
            {
                "run": run,
                "argv": list(argv),
                "cwd": cwd,
                "env": env,
                "stdout": stdout,
                "stderr": stderr,
                "kept": kept,
                "network": network,
            }
        )
        return run, done

    def kill(self, run: str) -> None:
        """Kill a command and everything it started, at once. Its future then gets a result."""
        if run in self._runs:
            self._send({"kill": run})

    def _send(self, order: dict[str, object]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            report = json.loads(line)
            if "output" in report:
                self._output_errors.setdefault(report["output"], report["error"])
                continue
            run = report["exit"]
            done = self._runs.pop(run, None)
            if done is not None and not done.done():
                done.set_result(RunResult(report["code"], self._output_errors.pop(run, None)))
        for done in self._runs.values():
            if not done.done():
                done.set_result(RunResult(137))
        if not self._stopping:
            self._on_loss()

    async def stop(self) -> None:
        """Kill everything that still runs, and return when the scratch directory has been removed."""
        self._stopping = True
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()
        if self._reader is not None:
            await self._reader
