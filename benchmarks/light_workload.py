"""Run an Airflow task without Airflow: report its start, wait, and report its success.

This program takes the place of a node's Python in the first part of ``benchmarks.executor``, because a whole Airflow
for each of 1,000 tasks would take two cores half an hour. It reads the workload as
:mod:`airflow_qarnot_pool.executors.node` does. To the real api-server it sends the requests with which Airflow's
supervisor starts and ends a task. It imports no installed package, and takes a tenth of a second.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from airflow_qarnot_pool.executors import node

#: Environment variable of the node with the seconds of a task by its DAG, as JSON.
SECONDS = "LIGHT_WORKLOAD_SECONDS"
#: Maximum seconds of a request.
TIMEOUT = 300.0


def main() -> None:
    """Run the workload of this instance."""
    payload = node.unpack(os.environ)
    os.environ.update(node.environment_of(payload, os.environ))
    workload = json.loads(payload["workload"])
    url = f"{os.environ['AIRFLOW__CORE__EXECUTION_API_SERVER_URL']}task-instances/{workload['ti']['id']}"
    token = _send(
        f"{url}/run",
        workload["token"],
        state="running",
        hostname=node.hostname(),
        unixname="light",
        pid=os.getpid(),
        start_date=_now(),
    )
    time.sleep(json.loads(os.environ[SECONDS])[workload["ti"]["dag_id"]])
    _send(f"{url}/state", token, state="success", end_date=_now())


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _send(url: str, token: str, **body: Any) -> str:
    """Send a PATCH request, and return the token for the next one."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.netloc, timeout=TIMEOUT)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    connection.request("PATCH", parts.path, json.dumps(body), headers)
    response = connection.getresponse()
    if response.status >= 300:
        sys.exit(f"{parts.path}: {response.status} {response.read().decode()}")
    # The token of a workload can only start the task.
    return response.headers.get("Refreshed-API-Token") or token


if __name__ == "__main__":
    main()
