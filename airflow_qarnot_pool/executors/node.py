"""First process of a workload on a node: ``python -m airflow_qarnot_pool.executors.node``.

The workload and its token come in secret constants, which Qarnot exports as environment variables. This process
replaces itself by Airflow's, with an environment without them. Airflow reads the workload from a pipe, which is empty
then. So no command line, no environment and no file of the node has the token when the code of the task runs.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import sys
import uuid
import zlib
from collections.abc import MutableMapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any

#: Prefix of the variables with the parts of the payload.
WORKLOAD = "AIRFLOW_WORKLOAD_"
#: Prefix of their constants, which Qarnot does not return. It may export them without the first part of the name.
PREFIX = f"QARNOT_SECRET__{WORKLOAD}"
#: Constant with the folder that the instances of a node share. The local Qarnot replaces ``/job`` by its real path.
SHARED = "AIRFLOW_QARNOT_SHARED"
#: Variable with a text that differs between two launches of the same Qarnot task.
LAUNCH = "AIRFLOW_QARNOT_LAUNCH"
#: Option of Airflow for the folder of its bundles. In the shared folder, a node fetches each version once.
BUNDLES = "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH"
#: Maximum characters of a payload, because a pipe holds 65,536 bytes and nothing reads it before all is written.
MAX_PAYLOAD = 60_000
#: Maximum number of parts. Base64 of a payload that cannot be compressed needs 40.
MAX_PARTS = 48


def pack(payload: dict[str, Any], size: int) -> dict[str, str]:
    """Return the constants that bring *payload* to a node.

    :param size: maximum characters of the value of a constant.
    :raises ValueError: it is too large. The text has its size.
    """
    data = json.dumps(payload, separators=(",", ":")).encode()
    if len(data) > MAX_PAYLOAD:
        raise ValueError(f"{len(data):,} bytes")
    # Without "/" and "$", by which Qarnot would recognize paths and variables.
    text = base64.urlsafe_b64encode(zlib.compress(data, 9)).decode()
    parts = [text[start : start + size] for start in range(0, len(text), size)]
    return {f"{PREFIX}{number}": part for number, part in enumerate(parts)}


def unpack(environment: MutableMapping[str, str]) -> dict[str, Any]:
    """Remove the constants of :func:`pack` from *environment*, and return the payload.

    :raises ValueError: they are missing or damaged.
    """
    parts = []
    for number in range(MAX_PARTS):
        found = [environment.pop(f"{prefix}{number}", None) for prefix in (PREFIX, WORKLOAD)]
        part = found[1] if found[0] is None else found[0]
        if part is None:
            break
        parts.append(part)
    if not parts:
        raise ValueError(f"the constant {PREFIX}0 is missing")
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.urlsafe_b64decode("".join(parts)), MAX_PAYLOAD)
        payload = json.loads(data)
    except (ValueError, zlib.error):
        # Without the cause, whose text may quote the token.
        raise ValueError("its constants are damaged") from None
    if not unpacker.eof or not isinstance(payload, dict):
        raise ValueError("its constants are damaged")
    return payload


def environment_of(payload: dict[str, Any], own: MutableMapping[str, str]) -> dict[str, str]:
    """Return the environment of Airflow: that of the image, the settings of the deployment, and those of this node."""
    environment = {**own, **payload.get("environment", {})}
    environment[LAUNCH] = uuid.uuid4().hex[:12]
    environment["AIRFLOW__CORE__HOSTNAME_CALLABLE"] = f"{__package__}.node.hostname"
    environment.setdefault("PYTHONUNBUFFERED", "1")
    shared = environment.get(SHARED, "")
    if BUNDLES not in environment and os.access(shared, os.W_OK):
        environment[BUNDLES] = os.path.join(shared, "airflow-bundles")
    return environment


def hostname() -> str:
    """Return a name of this launch, which Airflow stores when a task starts.

    Airflow takes a second start from the same host, user and process id for a repeated request. Two containers may have
    the same of all three. With this name Airflow refuses to start a task twice if Qarnot launches it again.
    """
    return f"{socket.gethostname()}-{os.environ.get(LAUNCH, '')}"


class _FoundOnly(dict[str, Any]):
    """A cache of connections that does not remember the missing ones."""

    def __setitem__(self, conn_id: str, connection: Any) -> None:
        if connection is not None:
            super().__setitem__(conn_id, connection)


def _ask_again() -> None:
    """Let Airflow 3.2 read the connection of remote logs when it uploads.

    It asks for the connection before the start of the task, too, when the token allows nothing but the start. It
    remembers the refusal, and would upload nothing (``_REMOTE_LOGGING_CONN_CACHE`` in ``supervisor.py`` of 3.2.2).
    """
    from airflow.sdk.execution_time import supervisor

    if hasattr(supervisor, "_REMOTE_LOGGING_CONN_CACHE"):
        supervisor._REMOTE_LOGGING_CONN_CACHE = _FoundOnly()  # noqa: SLF001


def _has_started_elsewhere(error: Exception) -> bool:
    """Return whether Airflow refuses the start of a task because it runs. Airflow 3.1 has no class for that."""
    if type(error).__name__ == "TaskAlreadyRunningError":
        return True
    response: Any = getattr(error, "response", None)
    if getattr(response, "status_code", None) != HTTPStatus.CONFLICT:
        return False
    with suppress(ValueError, TypeError, KeyError):
        return bool(response.json()["detail"]["previous_state"] == "running")
    return False


def run(path: str) -> None:
    """Run the workload in the file *path* in this process, as Airflow's containers do."""
    from airflow.executors.workloads import ExecuteTask
    from airflow.sdk.execution_time import execute_workload

    # Airflow logs the workload. Before 3.2 that would show its token.
    ExecuteTask.model_fields["token"].repr = False
    _ask_again()
    sys.argv = [execute_workload.__name__, "--json-path", path]
    try:
        execute_workload.main()
    except Exception as error:
        # Its traceback would tell users nothing of nodes.
        if not _has_started_elsewhere(error):
            raise
        sys.exit(
            "Airflow has seen another launch of this Qarnot task start the task. Its node was probably lost."
        )


def main(arguments: list[str]) -> None:
    """Become the process that runs the workload, or with ``check`` the one that looks at this node."""
    if arguments[:1] == ["run"]:
        run(arguments[1])
        return
    environment = dict(os.environ)
    try:
        payload = unpack(environment)
    except ValueError as error:
        sys.exit(
            f"The workload cannot be read: {error}. The node and the scheduler may have different versions."
        )
    environment = environment_of(payload, environment)
    if arguments == ["check"]:
        os.environ.clear()
        os.environ.update(environment)
        from airflow_qarnot_pool.executors.node_check import main as check

        check(payload)
        return
    reader, writer = os.pipe()
    os.write(writer, payload["workload"].encode())
    os.close(writer)
    os.set_inheritable(reader, True)
    command = [sys.executable, "-m", f"{__package__}.node", "run", f"/dev/fd/{reader}"]
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    main(sys.argv[1:])
