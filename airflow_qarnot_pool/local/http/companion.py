"""Run a command beside the server, with an Airflow connection to it in the environment."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

from airflow_qarnot_pool.local.local_qarnot import airflow_connection

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.backend.backend import Backend

CONNECTION_VARIABLE = "AIRFLOW_CONN_QARNOT_DEFAULT"
END_SECONDS = 30.0
"""Time for the command to end after SIGINT, and again after SIGTERM."""


def connection(backend: Backend) -> str:
    return airflow_connection(backend.url, backend.settings.token, namespace="local")


class Stop(asyncio.Event):
    """The order to stop."""

    is_interrupt = False
    """Whether it was Ctrl-C."""

    def interrupt(self) -> None:
        self.is_interrupt = True
        self.set()


async def run(command: tuple[str, ...], backend: Backend, stop: Stop) -> int:
    """Run the command until it ends, or end it after *stop*. Return its exit code."""
    variables = {
        CONNECTION_VARIABLE: connection(backend),
        "QARNOT_CLUSTER_URL": backend.url,
        "QARNOT_CLIENT_TOKEN": backend.settings.token,
    }
    try:
        process = await asyncio.create_subprocess_exec(*command, env={**os.environ, **variables})
    except OSError as error:
        print(f"{command[0]} cannot be run: {error.strerror}.", file=sys.stderr)
        return 127
    ended, stopped = asyncio.create_task(process.wait()), asyncio.create_task(stop.wait())
    await asyncio.wait((ended, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    # The server responds until the command has ended, because it may close its pools. SIGINT comes first, because
    # `airflow standalone` stops its processes after that only. A terminal has sent it already.
    for order in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if not ended.done():
            if order != signal.SIGINT or not (stop.is_interrupt and os.isatty(0)):
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(order)
            await asyncio.wait((ended,), timeout=END_SECONDS)
    code = await ended
    return code if code >= 0 else 128 - code
