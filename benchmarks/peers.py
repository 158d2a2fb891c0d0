"""Peers of the provider: the official SDK, and the real triggers of other providers.

These triggers poll a stub of their service. A provider that is not installed is left out of the tables.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from benchmarks import environment


@dataclass(frozen=True)
class Peer:
    """A trigger of another provider.

    :param kwargs_of: its kwargs for a job's number, seconds between two polls, and the stub's port.
    :param most: waiters up to which it is measured.
    """

    name: str
    classpath: str
    kwargs_of: Callable[[int, int, int], dict[str, Any]]
    most: int

    @property
    def installed(self) -> bool:
        try:
            return importlib.util.find_spec(self.classpath.rpartition(".triggers")[0]) is not None
        except ModuleNotFoundError:
            return False

    def kwargs(self, count: int, interval: int, stub: Stub) -> list[dict[str, Any]]:
        """Of triggers that wait for the stub's jobs 1 to *count*."""
        return [self.kwargs_of(n, interval, stub.port) for n in range(1, count + 1)]


def _databricks(job: int, interval: int, port: int) -> dict[str, Any]:
    return {"databricks_conn_id": "bench_databricks", "run_id": job, "polling_period_seconds": interval}


def _pod(job: int, interval: int, port: int) -> dict[str, Any]:
    server = {"name": "stub", "cluster": {"server": f"http://127.0.0.1:{port}"}}
    return {
        "pod_name": f"job-{job}",
        "pod_namespace": "default",
        "trigger_start_time": "2026-01-01T00:00:00+00:00",
        "base_container_name": "base",
        "poll_interval": interval,
        "log_events_on_startup": False,
        "config_dict": {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [server],
            "users": [{"name": "stub", "user": {"token": "none"}}],
            "contexts": [{"name": "stub", "context": {"cluster": "stub", "user": "stub"}}],
            "current-context": "stub",
        },
    }


DATABRICKS = Peer(
    name="Databricks",
    classpath="airflow.providers.databricks.triggers.databricks.DatabricksExecutionTrigger",
    kwargs_of=_databricks,
    most=1000,
)
KUBERNETES = Peer(
    name="KubernetesPod",
    classpath="airflow.providers.cncf.kubernetes.triggers.pod.KubernetesPodTrigger",
    kwargs_of=_pod,
    # Each poll creates a client and a connection, so more waiters would keep the machine busy.
    most=50,
)
PEERS = (DATABRICKS, KUBERNETES)


class Stub:
    """The services behind the peers' triggers, in a separate process. Jobs run until they are ended."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port: int = self._ask(do="port")
        environment.connect(
            "bench_databricks",
            conn_type="databricks",
            host="127.0.0.1",
            port=self.port,
            schema="http",
            password="none",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, **order: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def requests(self) -> int:
        """Requests since the last call."""
        return int(self._ask(do="requests"))

    def wait_for(self, count: int) -> None:
        """Return when so many different jobs have been asked about."""
        ends = time.monotonic() + 120
        while int(self._ask(do="seen")) < count:
            if time.monotonic() > ends:
                raise RuntimeError("not every trigger of the peer asked its stub in time")
            time.sleep(0.1)

    def end(self, numbers: Sequence[int]) -> None:
        """These jobs have succeeded."""
        self._ask(do="end", numbers=list(numbers))


def _serve() -> None:
    """Serve HTTP without a library, because the stub must cost less than its clients."""
    import asyncio

    ended: set[int] = set()
    seen: set[int] = set()
    count = 0

    def answer(path: str, body: bytes) -> Any:
        nonlocal count
        count += 1
        if "/pods/" in path:
            job = int(path.rpartition("/job-")[2])
            seen.add(job)
            return pod(job)
        job = json.loads(body)["run_id"]
        seen.add(job)
        state = {"life_cycle_state": "RUNNING", "state_message": ""}
        if job in ended:
            state = {"life_cycle_state": "TERMINATED", "result_state": "SUCCESS", "state_message": ""}
        return {"run_id": job, "state": state, "tasks": []}

    def pod(job: int) -> Any:
        since = "2026-01-01T00:00:00Z"
        now = (
            {"terminated": {"exitCode": 0, "startedAt": since}}
            if job in ended
            else {"running": {"startedAt": since}}
        )
        container = {
            "name": "base",
            "image": "alpine",
            "imageID": "",
            "ready": True,
            "restartCount": 0,
            "state": now,
        }
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"job-{job}", "namespace": "default", "uid": str(job)},
            "spec": {"containers": [{"name": "base", "image": "alpine"}]},
            "status": {"phase": "Succeeded" if job in ended else "Running", "containerStatuses": [container]},
        }

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode("latin-1").split("\r\n")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                said = json.dumps(answer(first.split(" ")[1], body)).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                    % len(said)
                    + said
                )
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def main() -> None:
        nonlocal count
        server = await asyncio.start_server(converse, "127.0.0.1", 0, backlog=4096)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=1 << 24)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            order = json.loads(line)
            result: Any = None
            if order["do"] == "port":
                result = server.sockets[0].getsockname()[1]
            elif order["do"] == "requests":
                result, count = count, 0
            elif order["do"] == "seen":
                result = len(seen)
            else:
                ended.update(order["numbers"])
            print(json.dumps(result), flush=True)

    asyncio.run(main())


# --- the official SDK


class SdkWaiters:
    """``task.wait()`` of the official SDK, each in a thread, as each would be in an Airflow worker.

    They share one connection, where workers would have one each: connecting is counted by ``request_cost``.

    :param interval: seconds between two polls; the SDK has no setting for its 10, so its naps are cut for less.
    """

    INTERVAL = 10.0

    def __init__(self, url: str, token: str, uuids: Sequence[str], interval: float = INTERVAL) -> None:
        import qarnot

        if interval != self.INTERVAL:
            qarnot.task.time = _Clock(interval / self.INTERVAL)
        self._connection = qarnot.connection.Connection(cluster_url=url, client_token=token)
        self.ended: dict[str, float] = {}
        self._over = False
        for n, uuid in enumerate(uuids):
            delay = n * interval / len(uuids)
            threading.Thread(target=self._wait, args=(uuid, delay), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True

    def _wait(self, uuid: str, delay: float) -> None:
        time.sleep(delay)
        try:
            self._connection.retrieve_task(uuid).wait()
        except Exception:
            # The waits have ended with the server.
            if not self._over:
                raise
        else:
            self.ended[uuid] = time.time()


class _Clock:
    """``time`` with shorter naps."""

    def __init__(self, factor: float) -> None:
        self._factor = factor

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds * self._factor)


if __name__ == "__main__":
    _serve()
