"""Note each heartbeat of QarnotExecutor. The schedulers of ``benchmarks.executor`` import this first."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

#: Environment variable with the path of the notes. A line has the time and the number of tasks to submit.
NOTES = "EXECUTOR_HEARTBEATS"


class Heartbeat(NamedTuple):
    """One heartbeat: when it was, in epoch seconds, and how many tasks it has handed over."""

    at: float
    tasks: int


def read(notes: Path) -> list[Heartbeat]:
    """Return the heartbeats of all schedulers."""
    lines = (line.split() for line in notes.read_text().splitlines())
    return [Heartbeat(float(at), int(tasks)) for at, tasks in lines]


def _noted(heartbeat: Callable[[Any], None]) -> Callable[[Any], None]:
    def noted(executor: Any) -> None:
        at, waiting = time.time(), len(executor.queued_tasks)
        heartbeat(executor)
        # One write of a line that is short: lines of several processes do not mix.
        with Path(os.environ[NOTES]).open("a") as file:
            file.write(f"{at} {waiting - len(executor.queued_tasks)}\n")

    return noted


if NOTES in os.environ:
    from airflow_qarnot_pool.executors.qarnot_executor import QarnotExecutor

    QarnotExecutor.heartbeat = _noted(QarnotExecutor.heartbeat)  # type: ignore[method-assign]
