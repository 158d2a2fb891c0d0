"""Mapped calls of `@task.qarnot` that import a package of their pool's environment, on nodes without a network.

The operators run slice by slice in this process, without an Airflow: the calls are submitted one after the other, one
triggerer waits for all of them, and each is resumed. Times of calls are those on the nodes, as Qarnot reports them.
They are compared with as many Qarnot tasks on the same pool whose command is a bare `import` of the same files. `pip`
and `uv` on the nodes' `PATH` are traps, which count how often they are started.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import environment
from benchmarks.report import Report, main, median

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
#: Rounds of the comparison of boots.
BOOTS = 3


def imported(name: str) -> dict[str, Any]:
    """Import a package on the node."""
    import importlib
    import time

    begun = time.perf_counter()
    module = importlib.import_module(name)
    return {"seconds": time.perf_counter() - begun, "file": module.__file__}


def local_wheel(folder: Path) -> list[str]:
    """Make a wheel, and return the requirements that find it without an index."""
    info = "bench_tiny-1.0.dist-info"
    with zipfile.ZipFile(folder / "bench_tiny-1.0-py3-none-any.whl", "w") as file:
        file.writestr("bench_tiny.py", "ANSWER = 42\n")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: bench_tiny\nVersion: 1.0\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    return ["--no-index", f"--find-links {folder}", "bench_tiny==1.0"]


def set_traps(folder: Path) -> Path:
    """Put programs that install packages into *folder*, and return the file to which they write a line each."""
    starts = folder / "starts"
    starts.touch()
    for name in ("pip", "pip3", f"pip{PYTHON}", "uv"):
        trap = folder / name
        trap.write_text(f'#!/bin/sh\necho "$0" >> {starts}\nexit 1\n')
        trap.chmod(0o755)
    return starts


@dataclass
class Uploads:
    """Bytes that this process has sent to the storage."""

    bytes: int = 0

    def client(self, make: Callable[..., Any]) -> Callable[..., Any]:
        """Return *make* so that its clients are counted."""

        def made(*args: Any) -> Any:
            s3 = make(*args)
            s3.meta.events.register("before-send.s3", self._count)
            return s3

        return made

    def _count(self, request: Any, **_: Any) -> None:
        if request.method == "PUT":
            self.bytes += int(request.headers.get("Content-Length") or 0)


@dataclass
class Calls:
    """Qarnot tasks of one kind: their seconds on the nodes, and their results."""

    seconds: list[float] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    wall: float = 0.0


def run_all(client: Any, makers: list[Callable[[], Any]]) -> Calls:
    """Run operators side by side to their ends."""
    from tests.harness import FakeTI, defer, fire_many

    found, begun, submitted = Calls(), time.monotonic(), []
    for number, make in enumerate(makers):
        ti = FakeTI(run_id=f"run-{make().task_id}", task_id=make().task_id, map_index=number)
        submitted.append((make, *defer(make, ti)))
    events = asyncio.run(fire_many([deferred for _, deferred, _ in submitted]))
    for (make, deferred, context), event in zip(submitted, events, strict=True):
        operator = make()
        kwargs = {**(deferred.kwargs or {}), "event": event}
        found.results.append(
            operator.resume_execution(deferred.method_name, kwargs, {**context, "task": operator})
        )
        found.seconds.append(client.tasks.get(context["ti"].xcoms["qarnot_task"]).executed_seconds)
    found.wall = time.monotonic() - begun
    return found


def open_pool(dag_id: str, nodes: int, given: Any, run_id: str = "run") -> str:
    """Open a pool as a DAG does, without waiting for its nodes."""
    from airflow.sdk import DAG

    from airflow_qarnot_pool.operators.pool import QarnotCreatePoolOperator
    from tests.harness import FakeTI, run

    def make() -> Any:
        with DAG(dag_id, schedule=None):
            return QarnotCreatePoolOperator(
                task_id="open", instance_count=nodes, environment=given, wait_for_completion=False
            )

    return str(run(make, FakeTI(dag_id, run_id, "open")))


def boot_seconds(client: Any, nodes: int, given: Any, run_id: str) -> float:
    """Return how long the nodes of a pool take to boot, with its resources."""
    pool = open_pool("boot", nodes, given, run_id)
    begun = time.monotonic()
    while client.pools.get(pool).state != "FullyExecuting":
        time.sleep(0.02)
    seconds = time.monotonic() - begun
    client.pools.delete(pool)
    return seconds


def measure(report: Report) -> None:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.decorators.qarnot import qarnot_task
    from airflow_qarnot_pool.environments import QarnotEnvironment, storage
    from airflow_qarnot_pool.local import LocalQarnot
    from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator

    count, nodes = report.waiters, 2 if report.quick else int(report.options["nodes"])
    interval, boot = (0.3, 0.2) if report.quick else (1.0, 2.0)
    uploads = Uploads()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="airflow-qarnot-bench-")))
        starts = set_traps(scratch)
        interpreter = Path(sys.executable).resolve().parent
        path = os.pathsep.join([str(scratch), str(interpreter), os.environ.get("PATH", os.defpath)])
        with mock.patch.dict(os.environ, PATH=path):
            qarnot = stack.enter_context(LocalQarnot(boot_seconds=boot, close_seconds=0.1))
        client = stack.enter_context(QarnotClient(qarnot.url, qarnot.token, storage_url=qarnot.storage_url))
        stack.enter_context(mock.patch.object(storage, "s3_client", uploads.client(storage.s3_client)))
        environment.connect_qarnot(qarnot, poll_interval=interval)
        qarnot.set_account(maxTask=100_000)
        package = report.options["package"]
        requirements = local_wheel(scratch) if report.quick else [package]
        module = "bench_tiny" if report.quick else re.split(r"[^A-Za-z0-9_]", package)[0].lower()
        given = QarnotEnvironment(requirements=requirements, python=PYTHON)

        begun = time.monotonic()
        pool = open_pool("first", nodes, given)
        first_seconds, first_bytes = time.monotonic() - begun, uploads.bytes
        report.say(f"the first DAG has uploaded {first_bytes:,} bytes in {first_seconds:.1f} s")
        uploads.bytes = 0
        begun = time.monotonic()
        client.pools.delete(open_pool("second", nodes, given))
        second_seconds, second_bytes = time.monotonic() - begun, uploads.bytes
        rounds = range(1 if report.quick else BOOTS)
        bare_boot = median([boot_seconds(client, nodes, None, f"bare-{n}") for n in rounds])
        full_boot = median([boot_seconds(client, nodes, given, f"full-{n}") for n in rounds])
        report.say("boots")

        def call() -> Any:
            return qarnot_task(qarnot_pool=pool, log_output=False)(imported)(module).operator

        calls = run_all(client, [call] * count)
        report.say(f"{count:,} calls in {calls.wall:.0f} s")
        folders = {str(Path(one["file"])).rpartition("/packages/")[0] for one in calls.results}
        unpacked = [one for one in folders if "airflow-qarnot-environment-" in one]
        packages = f"{sorted(unpacked)[0]}/packages"

        def bare() -> Any:
            return QarnotRunTaskOperator(
                task_id="bare",
                qarnot_pool=pool,
                command=[f"python{PYTHON}", "-c", f"import {module}"],
                constants={"PYTHONPATH": packages},
                log_output=False,
            )

        imports = run_all(client, [bare] * count)
        report.say(f"{count:,} bare imports in {imports.wall:.0f} s")
        installs = len(starts.read_text().split()) + len(folders) - len(unpacked)

    later, extra = median(calls.seconds), median(calls.seconds) - median(imports.seconds)
    table = report.table(
        f"{count:,} calls that import {module} of their environment, on {nodes} nodes without a network",
        ("", "measured"),
        "Extra seconds: the median of the calls less that of as many commands with a bare import on the same nodes. "
        "The first call of a node also unpacks the environment. The longest call is one of these.",
    )
    for name, value in (
        ("installs on nodes", installs),
        ("pip seconds a call", 0.0 if not installs else None),
        ("unpackings on nodes", len(unpacked)),
        ("seconds a call on its node", later),
        ("of these the import", median([one["seconds"] for one in calls.results])),
        ("seconds of a bare import", median(imports.seconds)),
        ("extra seconds a call", extra),
        ("seconds of the longest call", max(calls.seconds)),
        ("boot without the environment, seconds", bare_boot),
        ("boot with the environment, seconds", full_boot),
        ("bytes uploaded by the first DAG", first_bytes),
        ("seconds until its pool is created", first_seconds),
        ("bytes uploaded by the second DAG", second_bytes),
        ("seconds until the second pool is created", second_seconds),
    ):
        table.row(name, value)
        report.figure(name, value)
    report.target("installs on nodes", installs, 0)
    report.target("extra seconds a call", extra, 0.2, unit=" s")
    report.target("longer boot with the environment", full_boot - bare_boot, 5, unit=" s")
    report.target("bytes uploaded by the second DAG", second_bytes, 0)


if __name__ == "__main__":
    main(
        "environments",
        __doc__,
        measure,
        waiters=200,
        meaning="how many calls",
        options={"package": ("pandas==2.2.3", "requirement to import"), "nodes": ("4", "number of nodes")},
    )
