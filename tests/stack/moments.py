"""Kill this scheduler when it reaches a moment for which there is a file. Schedulers of tests import this first.

The file is removed, so one scheduler dies of it. It holds the seconds until the kill.

While there is a file ``sweeps``, schedulers sweep at each heartbeat, as if hours passed between two of them.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow_qarnot_pool.api.tasks import TaskResource
from airflow_qarnot_pool.executors import remote
from airflow_qarnot_pool.executors.qarnot_executor import QarnotExecutor

#: Environment variable with the folder of the files.
FOLDER = "EXECUTOR_MOMENTS"
#: Airflow has committed ``queued``; the executor's thread is about to send; Qarnot has responded.
QUEUED, SENDING, SENT = "queued", "sending", "sent"
BEFORE, AFTER = (QUEUED, SENDING), (SENT,)
SWEEPS = "sweeps"


def reached(moment: str) -> None:
    file = Path(os.environ[FOLDER]) / moment
    try:
        seconds = float(file.read_text() or 0)
        file.unlink()
    except FileNotFoundError:
        return
    if seconds:
        threading.Thread(target=_kill, args=(seconds,), daemon=True).start()
    else:
        _kill(0)


def _kill(seconds: float) -> None:
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def _around(function: Callable[..., Any], before: str = "", after: str = "") -> Callable[..., Any]:
    def around(*arguments: Any) -> Any:
        if before:
            reached(before)
        result = function(*arguments)
        if after:
            reached(after)
        return result

    return around


def _at_once(sweep: Callable[[QarnotExecutor], None]) -> Callable[[QarnotExecutor], None]:
    def sweep_at_once(executor: QarnotExecutor) -> None:
        if (Path(os.environ[FOLDER]) / SWEEPS).exists():
            executor._next_sweep = 0.0
            executor._left_on_since = dict.fromkeys(executor._left_on_since, -math.inf)
        sweep(executor)

    return sweep_at_once


if FOLDER in os.environ:
    QarnotExecutor._sweep = _at_once(QarnotExecutor._sweep)  # type: ignore[method-assign]
    # The clock of the local Qarnot may be hours ahead.
    remote.LEFT_ON_AFTER = timedelta(days=-1)
    QarnotExecutor._process_workloads = _around(QarnotExecutor._process_workloads, QUEUED)  # type: ignore[method-assign]
    TaskResource.create_many = _around(TaskResource.create_many, SENDING, SENT)  # type: ignore[method-assign]
