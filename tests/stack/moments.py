"""Kill this scheduler when it reaches a moment for which there is a file. Schedulers of tests import this first.

The file is removed, so one scheduler dies of it. It holds the seconds until the kill.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow_qarnot_pool.api.tasks import TaskResource
from airflow_qarnot_pool.executors.qarnot_executor import QarnotExecutor

#: Environment variable with the folder of the files.
FOLDER = "EXECUTOR_MOMENTS"
#: Airflow has committed ``queued``; the executor's thread is about to send; Qarnot has responded.
QUEUED, SENDING, SENT = "queued", "sending", "sent"
BEFORE, AFTER = (QUEUED, SENDING), (SENT,)


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


if FOLDER in os.environ:
    QarnotExecutor._process_workloads = _around(QarnotExecutor._process_workloads, QUEUED)  # type: ignore[method-assign]
    TaskResource.create_many = _around(TaskResource.create_many, SENDING, SENT)  # type: ignore[method-assign]
