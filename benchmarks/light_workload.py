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
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from airflow_qarnot_pool.executors import node

#: Environment variable of the node with the seconds of a task.
SECONDS = "LIGHT_WORKLOAD_SECONDS"
#: Maximum seconds of a request.
TIMEOUT = 300.0
#: Number of times that a request is sent, as by Airflow ([workers] execution_api_retries).
ATTEMPTS = 5


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
    time.sleep(float(os.environ[SECONDS]))
    _send(f"{url}/state", token, state="success", end_date=_now())


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _send(url: str, token: str, **body: Any) -> str:
    """Send a PATCH request, and return the token for the next one. What Airflow's client sends again is sent again."""
    parts = urlsplit(url)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    for left in reversed(range(ATTEMPTS)):
        try:
            connection = HTTPConnection(parts.netloc, timeout=TIMEOUT)
            connection.request("PATCH", parts.path, json.dumps(body), headers)
            response = connection.getresponse()
            problem, can_pass = f"{response.status} {response.read().decode()}", response.status >= 500
        except (OSError, HTTPException) as error:
            problem, can_pass = repr(error), True
        else:
            if response.status < 300:
                # The token of a workload can only start the task.
                return response.headers.get("Refreshed-API-Token") or token
        print(f"{parts.path}: {problem}", file=sys.stderr, flush=True)
        if not left or not can_pass:
            break
        time.sleep(1)
    sys.exit(1)


if __name__ == "__main__":
    main()
