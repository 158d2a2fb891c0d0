"""QarnotExecutor on a real Airflow with PostgreSQL and two schedulers: its requests, its start latency and its price.

The first part runs 1,000 mapped tasks on 50 slots. A small client takes the place of Airflow's supervisor on the nodes
(``benchmarks/light_workload.py``). It sends the same requests to the real api-server when a task starts and ends, and
waits in between. A whole Airflow for each task would take two cores half an hour. Nothing else is replaced. Tasks
without a slot wait on Qarnot and are watched there, too. The schedulers count the heartbeats, and the local Qarnot the
requests.

The second part starts single tasks with the real process of a node, one after the other: by LocalExecutor, and by
QarnotExecutor on a pool with a node and on a pool without one. The times are those in Airflow's database, and that of
the first line of the task's code.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks import heartbeats, light_workload
from benchmarks.report import Report, main, median, percentile

NAMESPACE = "executor-bench"
KEEP_WARM = 600.0
LOCAL, QARNOT = "LocalExecutor", "QarnotExecutor"


@dataclass(frozen=True)
class Plan:
    """Size of the pool, seconds of a task of the first part and of a boot, and tasks started in each way."""

    slots: int
    slots_per_node: int
    seconds: float
    boot: float
    starts: int


FULL, QUICK = Plan(50, 5, 5.0, 20.0, 10), Plan(4, 2, 0.5, 1.0, 1)


# --- a deployment


@contextlib.contextmanager
def deployed(
    plan: Plan,
    dags: Mapping[str, tuple[str, int, int]],
    *,
    python: Path | str = sys.executable,
    notes: Path | None = None,
    **more: str,
) -> Iterator[tuple[Any, Any]]:
    """Start PostgreSQL, a local Qarnot and Airflow.

    :param dags: executor, number of tasks and maximum of those that are queued or run at once, by DAG.
    :param python: what nodes run as their Python.
    :param notes: file for the heartbeats.
    :param more: further options of Airflow.
    """
    from airflow_qarnot_pool.get_provider_info import get_provider_info
    from airflow_qarnot_pool.local import LocalQarnot
    from tests.stack.postgres import Postgres
    from tools.airflow_stack import AirflowStack, Endpoint

    (path,) = get_provider_info()["executors"]
    # With as many slots as the first part has, LocalExecutor would start 1,000 processes.
    used = {executor for executor, *_ in dags.values()}
    with contextlib.ExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="executor-bench-")))
        shutil.copytree(Path(__file__).parent / "executor_dags", folder / "dags")
        qarnot = ends.enter_context(LocalQarnot(boot_seconds=plan.boot, close_seconds=0.5))
        database = ends.enter_context(Postgres())
        env = {"EXECUTOR_DAGS": json.dumps(dags)}
        node = {
            **env,
            light_workload.SECONDS: str(plan.seconds),
            "AIRFLOW_HOME": str(folder / "node"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(folder / "dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        settings = {
            "CORE__EXECUTOR": ",".join(
                name for name in (LOCAL, f"{QARNOT}:{path}") if name.partition(":")[0] in used
            ),
            "SCHEDULER__USE_JOB_SCHEDULE": "False",
            # On a busy machine neither a scheduler nor a task that lives must look like a dead one.
            "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "120",
            "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "300",
            # The last tasks wait on Qarnot for as long as the run takes.
            "SCHEDULER__TASK_QUEUED_TIMEOUT": "3600",
            "QARNOT_EXECUTOR__SLOTS": str(plan.slots),
            "QARNOT_EXECUTOR__SLOTS_PER_NODE": str(plan.slots_per_node),
            "QARNOT_EXECUTOR__KEEP_WARM": str(KEEP_WARM),
            "QARNOT_EXECUTOR__PYTHON": str(python),
            "QARNOT_EXECUTOR__ENVIRONMENT": json.dumps(node),
            **more,
        }
        if notes is not None:
            env |= {heartbeats.NOTES: str(notes)}
        airflow = AirflowStack(
            folder / "airflow",
            folder / "dags",
            database=database.url,
            schedulers=2,
            qarnot=Endpoint(qarnot.url, qarnot.token, qarnot.storage_url),
            namespace=NAMESPACE,
            preload=() if notes is None else (heartbeats.__name__,),
            env={**env, **{f"AIRFLOW__{name}": value for name, value in settings.items()}},
        )
        airflow.home.mkdir()
        ends.enter_context(airflow)
        yield airflow, qarnot


def run(airflow: Any, qarnot: Any, dag_id: str) -> list[dict[str, Any]]:
    """Run a DAG once, and return its task instances when no process of it is left on a node."""
    run_id = airflow.trigger(dag_id)

    def ended() -> str | None:
        state = airflow.run_state(dag_id, run_id)
        return state if state in ("success", "failed") else None

    airflow.wait_for(ended, timeout=900, interval=0.5, what=f"the end of {dag_id}")
    found: list[dict[str, Any]] = airflow.task_instances(dag_id, run_id)
    bad = [one for one in found if (one["state"], one["try_number"]) != ("success", 1)]
    for one in bad[:3]:
        place = dag_id, run_id, one["task_id"], one["map_index"]
        print(
            {
                key: one[key]
                for key in ("map_index", "state", "try_number", "queued_when", "start_date", "end_date")
            }
        )
        print(*airflow.log(*place), *audit_log(airflow, *place), sep="\n")
    if bad:
        raise SystemExit(f"{len(bad)} of {len(found)} tasks of {dag_id} have not succeeded at the first try")
    airflow.wait_for(
        lambda: not any(node["running"] for node in qarnot.nodes()), what="the end of all processes"
    )
    return found


def audit_log(airflow: Any, dag_id: str, run_id: str, task_id: str, map_index: int) -> list[str]:
    """Return the entries of Airflow's audit log for a task instance."""
    found = airflow.api(
        "GET", "eventLogs", dag_id=dag_id, run_id=run_id, task_id=task_id, map_index=map_index
    )
    return [f"{one['event']}: {one['extra']}" for one in found["event_logs"]]


def cool_down(airflow: Any, qarnot: Any) -> None:
    """Let ``keep_warm`` pass, on the clock of the local Qarnot."""
    qarnot.advance_clock(KEEP_WARM + 60)
    airflow.wait_for(
        lambda: not any(node["state"] == "up" for node in qarnot.nodes()), what="a pool without nodes"
    )


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


# --- many tasks


@dataclass(frozen=True)
class Burst:
    """One DAG run of many tasks.

    :param limit: maximum number of tasks that Airflow may queue or run at the same time.
    :param seconds: from the first request that submits until the end of the last task.
    :param heartbeats: number of tasks to submit at each heartbeat.
    :param most: largest number of tasks that were queued or running at the same time.
    :param running: mean number of tasks that ran.
    """

    tasks: int
    limit: int
    seconds: float
    heartbeats: tuple[int, ...]
    submits: int
    polls: int
    most: int
    running: float

    @property
    def busy_heartbeats(self) -> int:
        """Number of heartbeats with tasks to submit."""
        return sum(tasks > 0 for tasks in self.heartbeats)

    @property
    def polls_per_minute(self) -> float:
        """Requests that watch, per minute."""
        return 60 * self.polls / self.seconds


@dataclass(frozen=True)
class Bill:
    """Node-seconds of a burst and of the idle time after it, seconds of its tasks on nodes, euros per node-second."""

    run: float
    idle: float
    executed: tuple[float, ...]
    price: float


def bursts(report: Report, plan: Plan) -> tuple[list[Burst], Bill]:
    """Run the tasks twice on a warm pool, with the light client on its nodes: a tenth of them at once, and all."""
    limits = [max(1, report.waiters // 10), report.waiters]
    dags = {f"tasks_{limit}": (QARNOT, report.waiters, limit) for limit in limits}
    with contextlib.ExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="executor-bench-")))
        python, notes = folder / "python", folder / "heartbeats"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{light_workload.__file__}"\n')
        python.chmod(0o755)
        most = str(report.waiters + 1)
        settings = {
            # Else Airflow bounds the run: 16 tasks in a loop, 32 of a scheduler, 128 of a pool, 1,024 mapped ones.
            "SCHEDULER__MAX_TIS_PER_QUERY": "64",
            "CORE__PARALLELISM": most,
            "CORE__DEFAULT_POOL_TASK_SLOT_COUNT": most,
            "CORE__MAX_MAP_LENGTH": most,
            "QARNOT_EXECUTOR__PARALLELISM": most,
        }
        airflow, qarnot = ends.enter_context(
            deployed(
                plan,
                {"fill": (QARNOT, plan.slots, plan.slots), **dags},
                python=python,
                notes=notes,
                **settings,
            )
        )
        run(airflow, qarnot, "fill")
        report.say("the pool is warm")
        found = []
        for dag_id, (_, _, limit) in dags.items():
            before = qarnot.get_account()["nodeSeconds"]
            found.append(burst(airflow, qarnot, dag_id, limit, notes))
            report.say(f"{dag_id} took {found[-1].seconds:.0f} s")
        ended = qarnot.get_account()["nodeSeconds"]
        cool_down(airflow, qarnot)
        account = qarnot.get_account()
        return found, Bill(
            run=ended - before,
            idle=account["nodeSeconds"] - ended,
            executed=executed(qarnot, dag_id),
            price=account["eurosPerNodeSecond"],
        )


def burst(airflow: Any, qarnot: Any, dag_id: str, limit: int, notes: Path) -> Burst:
    """Run a DAG once, and count what its tasks have cost."""
    qarnot.clear_requests()
    began = time.time()
    instances = run(airflow, qarnot, dag_id)
    spans = [(_moment(one["queued_when"]), _moment(one["end_date"])) for one in instances]
    requests = qarnot.requests()
    submits = [one["at"] for one in requests if is_submission(one)]
    first, last = min(submits), max(end for _, end in spans)
    return Burst(
        tasks=len(instances),
        limit=limit,
        seconds=last - first,
        heartbeats=tuple(beat.tasks for beat in heartbeats.read(notes) if began <= beat.at <= last),
        submits=len(submits),
        polls=sum(is_poll(one) and first <= one["at"] <= last for one in requests),
        most=most_at_once(spans),
        running=sum(end - _moment(one["start_date"]) for one, (_, end) in zip(instances, spans, strict=True))
        / (last - first),
    )


def is_submission(request: Mapping[str, Any]) -> bool:
    """Whether a request creates Qarnot tasks."""
    return (request["method"], request["path"]) == ("POST", "/tasks")


def is_poll(request: Mapping[str, Any]) -> bool:
    """Whether a request reads Qarnot tasks."""
    return str(request["path"]).startswith("/tasks") and not is_submission(request)


def most_at_once(spans: list[tuple[float, float]]) -> int:
    """Return the largest number of spans, each with its start and its end, that overlap."""
    steps = sorted([(first, 1) for first, _ in spans] + [(end, -1) for _, end in spans])
    most = now = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


def executed(qarnot: Any, dag_id: str) -> tuple[float, ...]:
    """Return the seconds that each Qarnot task of a DAG took on its node."""
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.ownership.identity import namespace_tag

    tasks = QarnotClient(qarnot.url, qarnot.token).tasks.list(tags=[namespace_tag(NAMESPACE)])
    return tuple(task.executed_seconds or 0.0 for task in tasks if task.labels["airflow.dag_id"] == dag_id)


def write_bursts(report: Report, plan: Plan, found: list[Burst]) -> None:
    """Write the requests of the bursts."""
    table = report.table(
        f"Mapped tasks of {plan.seconds:g} s on {plan.slots} slots, two schedulers: heartbeats and requests",
        (
            "tasks",
            "seconds",
            "running, mean",
            "queued or running, most",
            "heartbeats",
            "with tasks to submit",
            "requests that submit",
            "requests that watch",
            "per minute",
        ),
        "With the light client on the nodes. In the first row Airflow queues only a tenth at once (max_active_tasks). "
        "Both schedulers watch their tasks. A poll comes every 0.75 s at most, and "
        "soon after a submission. A scheduler queues 64 tasks in a loop at most ([scheduler] max_tis_per_query, by "
        "default 16), and [core] parallelism and Airflow's pool have room for all.",
    )
    for one in found:
        table.row(
            f"{one.tasks:,}",
            one.seconds,
            one.running,
            one.most,
            len(one.heartbeats),
            one.busy_heartbeats,
            one.submits,
            one.polls,
            one.polls_per_minute,
        )
        report.figure(f"burst.{one.limit}.seconds", one.seconds)
        report.figure(f"burst.{one.limit}.heartbeats", len(one.heartbeats))
        report.figure(f"burst.{one.limit}.submits", one.submits)
        report.figure(f"burst.{one.limit}.polls_per_minute", one.polls_per_minute)
    few, many = found
    report.target("requests that submit / heartbeats", many.submits / len(many.heartbeats), 1.0)
    report.target(
        "requests that submit / heartbeats with tasks to submit", many.submits / many.busy_heartbeats, 1.0
    )
    report.target(
        f"polls per minute, {many.limit:,} tasks at once / {few.limit:,}",
        many.polls_per_minute / few.polls_per_minute,
        1.25,
    )


def write_bill(report: Report, plan: Plan, tasks: int, bill: Bill) -> None:
    """Write the price of 1,000 tasks, and what it would be with a node for each of them."""
    alone = sum(bill.executed)
    booted = alone + tasks * plan.boot
    ours = bill.run + bill.idle
    table = report.table(
        f"1,000 tasks of {plan.seconds:g} s, {plan.slots_per_node} slots a node",
        ("", "node-seconds", "EUR", "of the pool's"),
        f"The first two rows are the bill of the local Qarnot: {bill.price:g} EUR per node-second, boots are free. The "
        "others are reckoned from the times of the same tasks on their nodes. The idle time comes once, however many "
        "tasks have run before it. Real boots take minutes.",
    )
    for title, seconds, share in (
        ("pool, the run only", bill.run, 1.0),
        (f"pool, with the idle {KEEP_WARM:g} s after the last task", ours, 1.0),
        ("a node for each task, boots free", alone, 1.0),
        (f"a node for each task, boots of {plan.boot:g} s paid", booted, 1.0),
        ("the same with nodes of the size of a slot", booted, 1 / plan.slots_per_node),
    ):
        each = 1000 / tasks * seconds
        table.row(title, each, each * share * bill.price, seconds * share / ours)
        report.figure(f"euros.{title}", each * share * bill.price)
    report.figure("euros.node_for_each_task_over_pool", booted / ours)


# --- single tasks


@dataclass(frozen=True)
class Start:
    """Seconds from ``queued`` until Airflow has seen the task start, and until the first line of its code."""

    started: float
    first_line: float


def starts(report: Report, plan: Plan) -> dict[str, list[Start]]:
    """Start single tasks in each way, with the real process of a node."""
    with deployed(plan, {"local": (LOCAL, 1, 1), "pool": (QARNOT, 1, 1)}) as (airflow, qarnot):
        for dag_id in ("local", "pool"):
            run(airflow, qarnot, dag_id)  # the first task of a machine writes caches, and boots the node
        found: dict[str, list[Start]] = {"local": [], "warm": [], "cold": []}
        for _ in range(plan.starts):
            found["local"].append(start(airflow, qarnot, "local"))
            found["warm"].append(start(airflow, qarnot, "pool"))
        report.say("tasks have started on the scheduler's machine and on a warm pool")
        for _ in range(plan.starts):
            cool_down(airflow, qarnot)
            found["cold"].append(start(airflow, qarnot, "pool"))
        return found


def start(airflow: Any, qarnot: Any, dag_id: str) -> Start:
    """Run a DAG of one task."""
    (one,) = run(airflow, qarnot, dag_id)
    queued = _moment(one["queued_when"])
    first_line = float(airflow.xcom(dag_id, one["dag_run_id"], "work", map_index=0))
    return Start(started=_moment(one["start_date"]) - queued, first_line=first_line - queued)


def write_starts(report: Report, plan: Plan, found: Mapping[str, list[Start]]) -> None:
    """Write the start latency in each way."""
    table = report.table(
        f"From queued to the first line of a task's code: medians of {plan.starts} single tasks",
        (
            "",
            "until started [s]",
            "until the first line [s]",
            "p90 [s]",
            "of LocalExecutor's",
            "of the warm pool's",
        ),
        "A task has started when its process has reached the api-server. LocalExecutor forks a process that has loaded "
        "Airflow. A node loads it for each task.",
    )
    titles = {
        "local": "LocalExecutor",
        "warm": "QarnotExecutor, warm pool",
        "cold": f"QarnotExecutor, cold pool (boot of {plan.boot:g} s)",
    }
    firsts = {way: [one.first_line for one in found[way]] for way in titles}
    for way, title in titles.items():
        middle = median(firsts[way])
        table.row(
            title,
            median([one.started for one in found[way]]),
            middle,
            percentile(firsts[way], 0.9),
            middle / median(firsts["local"]),
            middle / median(firsts["warm"]),
        )
        report.figure(f"start.{way}.p50", middle)
        report.figure(f"start.{way}.started_p50", median([one.started for one in found[way]]))
    report.figure("start.warm_over_local", median(firsts["warm"]) / median(firsts["local"]))
    report.figure("start.cold_over_warm", median(firsts["cold"]) / median(firsts["warm"]))


def measure(report: Report) -> None:
    """Measure both parts."""
    plan = QUICK if report.quick else FULL
    found, bill = bursts(report, plan)
    write_bursts(report, plan, found)
    write_starts(report, plan, starts(report, plan))
    write_bill(report, plan, found[-1].tasks, bill)


if __name__ == "__main__":
    main(
        "executor",
        __doc__,
        measure,
        waiters=1000,
        meaning="tasks of the first part",
        with_airflow=True,
    )
