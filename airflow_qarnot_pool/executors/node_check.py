"""The program of ``airflow qarnot executor check`` on the node. It reports versions, and the places that it reaches."""

from __future__ import annotations

import getpass
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from glob import glob
from typing import Any

from airflow_qarnot_pool.executors.image import installed
from airflow_qarnot_pool.executors.node import SHARED, WORKLOAD, hostname

#: Prefix of the line of the output with the report.
MARK = "AIRFLOW_QARNOT_CHECK "
#: Maximum seconds of a request, and maximum characters of an error.
TIMEOUT, MAX_TEXT = 15.0, 500


def main(payload: dict[str, Any]) -> None:
    """Print the report as the last line."""
    workload = json.loads(payload["workload"])
    report: dict[str, Any] = {"installed": installed(freeze=True).to_json()}
    steps: dict[str, Callable[[], Any]] = {
        "health": lambda: _request("GET", "health"),
        "start": lambda: _start(workload["id"], workload["token"]),
        "executors": _executors,
        "bundles": _bundles,
        "remote_logging": _has_remote_log,
        "leaks": _leaks,
    }
    for name, step in steps.items():
        try:
            report[name] = step()
        except Exception as error:
            report[name] = {"error": f"{type(error).__name__}: {error}"[:MAX_TEXT]}
    print("\n" + MARK + json.dumps(report), flush=True)


def _request(method: str, path: str, body: Any = None, token: str = "") -> int:
    """Send a request to the execution API, and return the status of the response."""
    url = os.environ["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"].rstrip("/")
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}/{path}", data=data, method=method)
    request.add_header("Content-Type", "application/json")
    if token:
        from airflow.sdk.api.datamodels._generated import API_VERSION

        request.add_header("Authorization", f"Bearer {token}")
        request.add_header("Airflow-API-Version", API_VERSION)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def _start(ti_id: str, token: str) -> int:
    """Try to start a task instance that does not exist. With a valid token the response is 404."""
    start = {"hostname": hostname(), "unixname": getpass.getuser(), "pid": os.getpid(), "state": "running"}
    body = {**start, "start_date": datetime.now(UTC).isoformat()}
    return _request("PATCH", f"task-instances/{ti_id}/run", body, token)


def _executors() -> list[str]:
    """Return the executors of this node."""
    from airflow.executors.executor_loader import ExecutorLoader

    return [name.module_path for name in ExecutorLoader.get_executor_names(validate_teams=False)]


def _bundles() -> dict[str, str]:
    """Return the problem of each DAG bundle; "" for one without."""
    from airflow.dag_processing.bundles.local import LocalDagBundle
    from airflow.dag_processing.bundles.manager import DagBundlesManager

    from airflow_qarnot_pool.executors.bundle import QarnotDagBundle

    manager, problems = DagBundlesManager(), {}
    for name in manager.get_all_bundle_names():
        try:
            bundle = manager.get_bundle(name)
        except Exception as error:
            problems[name] = f"{type(error).__name__}: {error}"[:MAX_TEXT]
            continue
        problems[name] = ""
        if isinstance(bundle, LocalDagBundle) and not any(bundle.path.rglob("*.py")):
            problems[name] = f"there are no DAG files in {bundle.path}"
        if isinstance(bundle, QarnotDagBundle):
            shared = os.environ.get(SHARED, "")
            if not glob(os.path.join(shared, bundle.archives, "*.tar.gz")):
                problems[name] = "Qarnot has brought no version of it. The DAG processor stores them"
    return problems


def _has_remote_log() -> bool:
    from airflow.sdk.log import load_remote_log_handler

    return load_remote_log_handler() is not None


def _leaks() -> list[str]:
    """Return the commands of other processes that show the secret constants to the code of a task."""
    found = []
    for path in glob("/proc/[0-9]*/environ"):
        try:
            with open(path, "rb") as file:
                environment = file.read()
            with open(path.replace("environ", "cmdline"), "rb") as file:
                command = file.read(200).replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        if WORKLOAD.encode() in environment and path.split("/")[2] != str(os.getpid()):
            found.append(command)
    return found
