"""Count how often one run of ``QarnotRunTaskOperator.execute()`` changes file until it sends ``POST /tasks``.

A reader who follows a run changes file as often. Only files of the package count. The run uses a local Qarnot, and the
result is one line.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any
from unittest import mock

import airflow_qarnot_pool
from airflow_qarnot_pool.api.specs import PoolSpec
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator

PACKAGE = str(Path(airflow_qarnot_pool.__file__).parent)
#: Parts of the package that are not read to follow a run.
LEFT_OUT = f"{PACKAGE}/local/"


class Sent(BaseException):
    """The request is about to be sent."""


class Recorder:
    """Record the file of every call of a function of the package."""

    def __init__(self) -> None:
        self.files: list[str] = []

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        ours = code.co_filename.startswith(PACKAGE) and not code.co_filename.startswith(LEFT_OUT)
        if event == "call" and ours and not code.co_name.startswith("<"):
            self.files.append(code.co_filename)

    def changes(self) -> int:
        """Return how often a call is in another file than the one before it."""
        return sum(before != after for before, after in zip(self.files, self.files[1:], strict=False))


def record(pool: str) -> Recorder:
    """Return the record of a run on *pool*."""
    operator = QarnotRunTaskOperator(
        task_id="work", qarnot_pool=pool, command="true", wait_for_completion=False
    )
    ti = SimpleNamespace(
        dag_id="d",
        run_id="r",
        task_id="work",
        map_index=-1,
        try_number=1,
        max_tries=0,
        start_date=datetime.now(UTC),
        xcom_push=lambda **_: None,
        xcom_pull=lambda **_: None,
    )
    context: Any = {
        "ti": ti,
        "dag_run": SimpleNamespace(run_after=datetime.now(UTC), start_date=datetime.now(UTC)),
    }
    recorder = Recorder()

    def send(self: Any, request: Any, **_: Any) -> Any:
        if request.method == "POST" and request.path_url.rstrip("/").endswith("/tasks"):
            sys.setprofile(None)  # what observes the request comes after its bytes
            raise Sent
        return real(self, request, **_)

    from requests.adapters import HTTPAdapter

    real = HTTPAdapter.send
    with mock.patch.object(HTTPAdapter, "send", send):
        sys.setprofile(recorder)
        try:
            operator.execute(context)
        except Sent:
            pass
        finally:
            sys.setprofile(None)
    return recorder


def main() -> None:
    """Print the count."""
    with LocalQarnot(boot_seconds=0.1) as qarnot:
        os.environ["AIRFLOW_CONN_QARNOT_DEFAULT"] = json.dumps(
            {
                "conn_type": "qarnot",
                "host": qarnot.url,
                "password": qarnot.token,
                "extra": {"namespace": "count"},
            }
        )
        from airflow_qarnot_pool.api.client import QarnotClient

        with QarnotClient(qarnot.url, qarnot.token) as client:
            pool = client.pools.create(PoolSpec(name="count", instance_count=1))
        record(pool)  # imports what is imported inside functions
        recorder = record(pool)
    calls, files = len(recorder.files), len(set(recorder.files))
    print(f"execute() to POST /tasks: {recorder.changes()} changes of file, {calls} calls in {files} files")


if __name__ == "__main__":
    main()
