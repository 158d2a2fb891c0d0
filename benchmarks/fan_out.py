"""Many commands on one warm pool: by one ``QarnotRunTasksOperator``, by ``.expand()`` of ``QarnotRunTaskOperator``, and
by the official SDK in a mapped Python task.

In a real Airflow (``LocalExecutor``, SQLite). Worker CPU is that of the executor's worker processes and of the task
processes they start; requests are counted by the local Qarnot. The mapped ways are measured with few commands, as a
thousand Airflow tasks would take hours here, and reckoned in proportion.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.report import Report, main

SLOTS = 8
MAPPED = 16
OURS, EXPAND, SDK = "one QarnotRunTasksOperator", ".expand()", "SDK, mapped"
DAGS = {OURS: "one_airflow_task", EXPAND: "expand", SDK: "sdk_mapped"}


@dataclass(frozen=True)
class Cost:
    """Of so many commands: wall-clock seconds, CPU seconds of workers, requests."""

    commands: int
    wall: float
    cpu: float
    requests: int


def worker_cpu(scheduler: int) -> float:
    """CPU seconds of all that the scheduler's process has started, living or not, but not of itself."""
    import psutil  # type: ignore[import-untyped]

    main_process = psutil.Process(scheduler)
    times = main_process.cpu_times()
    total = times.children_user + times.children_system
    for worker in main_process.children():
        mine = worker.cpu_times()
        total += mine.user + mine.system + mine.children_user + mine.children_system
    return float(total)


def in_airflow(report: Report, qarnot: Any, pool: str) -> dict[str, Cost]:
    """The three DAGs, one after the other."""
    from tools.airflow_stack import AirflowStack, Endpoint

    counts = {OURS: report.waiters, EXPAND: min(MAPPED, report.waiters), SDK: min(MAPPED, report.waiters)}
    env = {
        "BENCH_COMMANDS": str(report.waiters),
        "BENCH_MAPPED": str(counts[EXPAND]),
        "BENCH_POOL": pool,
        "BENCH_URL": qarnot.url,
        "BENCH_TOKEN": qarnot.token,
        "AIRFLOW__CORE__PARALLELISM": "4",
    }
    found: dict[str, Cost] = {}
    with (
        tempfile.TemporaryDirectory(prefix="airflow-qarnot-bench-") as home,
        AirflowStack(
            Path(home),
            Path(__file__).parent / "dags",
            qarnot=Endpoint(qarnot.url, qarnot.token, qarnot.storage_url),
            namespace=environment.NAMESPACE,
            env=env,
        ) as airflow,
    ):
        report.say("Airflow is up")
        scheduler = airflow.pids("scheduler")[0]
        for name, dag in DAGS.items():
            airflow.wait_dag(dag)
            qarnot.clear_requests()
            before, begun = worker_cpu(scheduler), time.monotonic()
            state = airflow.wait_run(dag, airflow.trigger(dag), timeout=600)
            wall = time.monotonic() - begun
            time.sleep(1)  # the last worker is done, too
            if state != "success":
                raise RuntimeError(f"the run of {dag} ended as {state}")
            asked = len(qarnot.requests())
            found[name] = Cost(counts[name], wall, worker_cpu(scheduler) - before, asked)
            report.say(f"{name}, {counts[name]:,} commands")
    return found


def in_this_process(report: Report, qarnot: Any, pool: str) -> dict[str, Cost]:
    """Without an Airflow, with --quick: the CPU time is that of the operators alone."""
    from functools import partial

    import qarnot as official

    from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
    from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
    from tests.harness import FakeTI, run

    environment.connect_qarnot(qarnot)

    def ours() -> None:
        commands = ["true"] * report.waiters
        operator = partial(QarnotRunTasksOperator, task_id="work", qarnot_pool=pool, poll_interval=0.5)
        run(partial(operator, commands=commands), FakeTI(run_id="ours"))

    def expand() -> None:
        operator = partial(QarnotRunTaskOperator, task_id="work", qarnot_pool=pool, poll_interval=0.5)
        run(partial(operator, command="true"), FakeTI(run_id="expand", map_index=0))

    def sdk() -> None:
        connection = official.connection.Connection(cluster_url=qarnot.url, client_token=qarnot.token)
        task = connection.create_task("work", connection.retrieve_pool(pool), 1)
        task.constants["DOCKER_CMD"] = "true"
        task.submit()
        task.wait(timeout=0.5)

    found: dict[str, Cost] = {}
    for name, way, count in ((OURS, ours, report.waiters), (EXPAND, expand, 1), (SDK, sdk, 1)):
        qarnot.clear_requests()
        begun, cpu = time.monotonic(), time.process_time()
        way()
        wall, spent = time.monotonic() - begun, time.process_time() - cpu
        found[name] = Cost(count, wall, spent, len(qarnot.requests()))
    return found


def measure(report: Report) -> None:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.specs import PoolSpec
    from airflow_qarnot_pool.local import LocalQarnot

    with (
        LocalQarnot(boot_seconds=0.2, close_seconds=0.1) as qarnot,
        QarnotClient(qarnot.url, qarnot.token) as client,
    ):
        qarnot.account(maxTask=None)
        pool = client.pools.create(PoolSpec(name="warm", instance_count=SLOTS))
        found = (in_this_process if report.quick else in_airflow)(report, qarnot, pool)
    n = report.waiters
    table = report.table(
        f"{n:,} commands on a pool of {SLOTS} slots",
        ("", "measured with", "wall [s]", "worker CPU [s]", "requests", "CPU / ours", "requests / ours"),
        "A figure with * is reckoned from fewer commands, in proportion; 4 Airflow tasks at a time.",
    )
    mine = found[OURS]
    for name, cost in found.items():
        times = n / cost.commands
        star = "" if times == 1 else "*"
        figures = {"wall_seconds": cost.wall, "cpu_seconds": cost.cpu, "requests": float(cost.requests)}
        table.row(
            name,
            cost.commands,
            *(f"{value * times:,.{0 if value * times >= 100 else 1}f}{star}" for value in figures.values()),
            cost.cpu * times / mine.cpu,
            cost.requests * times / mine.requests,
        )
        for key, value in figures.items():
            report.figure(f"{name}.{key}", value * times)
    sdk = found[SDK]
    times = n / sdk.commands
    report.target("share of the worker CPU of the SDK, mapped", mine.cpu / (sdk.cpu * times), 1 / 50)
    report.target("share of the requests of the SDK, mapped", mine.requests / (sdk.requests * times), 1 / 20)


if __name__ == "__main__":
    main("fan_out", __doc__, measure, waiters=1000, meaning="how many commands")
