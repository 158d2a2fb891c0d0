"""Thousands of deferred Qarnot tasks over two real triggerers, and 20 DAG runs that share a pool at the same time.

A distributed Airflow (PostgreSQL, Redis, two schedulers, two triggerers, two Celery workers, as ``make
distributed`` installs) has 500 waiters first and ``--waiters`` afterwards, and is measured with each: requests per
minute, how late an end is noticed, how often Airflow's watchdog finds a triggerer's event loop blocked, database
connections, memory and CPU of the triggerers. The DAG runs come with each number of waiters, too. At last as many
triggers as came at once before come again, but ones that only sleep, because starting triggers is Airflow's cost.

The waiters are real triggers of real task instances, and both triggerers share them as they always do. Only their way
there is shortened: ``deferred`` and the trigger are written to Airflow's database as a worker's deferral would leave
them, because thousands of worker processes say nothing about waiting and take an hour on a small machine. The
DAG runs take no short cut.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.backlog import Backlog
from benchmarks.report import Report, Table, exponent, main, median, percentile
from benchmarks.triggerer_load import SLEEPER
from tools.airflow_stack import StackError

ROOT = Path(__file__).resolve().parent.parent
FEW = 500
#: Task instances of one DAG run.
A_RUN = 500
RUNS = 20
#: Seconds between two polls, the default; and of a measurement in which nothing happens.
INTERVAL, WINDOW = 5.0, 60.0
#: Groups of waiters that are ended to see how late that is noticed, each a hundredth of all.
ENDED_GROUPS = 4
WAITERS = "qarnot_waiters"
#: Airflow's, from a fifth of a second on.
BLOCKED = re.compile(r"async thread was blocked for ([0-9.]+) seconds")
TRIGGER = "airflow_qarnot_pool.triggers.task.QarnotTaskTrigger"
MB = 1 << 20
WAITING_DAG = """
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

with DAG("waiting", schedule=None, max_active_runs=1000, max_active_tasks=100_000):
    # No worker takes them up: its slot pool has no slots.
    BashOperator.partial(task_id="wait", bash_command="true", pool="waiting_room").expand(
        env=[{{"N": str(n)}} for n in range({count})]
    )
"""


@dataclass
class TakenUp:
    """Result of starting many triggers that came at once."""

    count: int
    seconds: float
    blocked: list[float]


@dataclass
class Found:
    """With so many waiters."""

    waiters: int
    taken_up: TakenUp | None = None
    requests: float = float("nan")
    late: list[float] = field(default_factory=list)
    connections: int = 0
    memory: float = float("nan")
    cpu: float = float("nan")
    blocked: list[float] = field(default_factory=list)
    runs_seconds: float = float("nan")
    runs_good: int = 0
    runs_requests: float = float("nan")
    runs_connections: int = 0
    runs_memory: float = float("nan")
    pools: int = 0
    pools_open: int = 0


class Deployment:
    """The Airflow under load, its database, and the two local Qarnots: of the waiters and of the DAG runs."""

    def __init__(self, ends: ExitStack, count: int) -> None:
        from airflow_qarnot_pool.api.client import QarnotClient
        from airflow_qarnot_pool.local import LocalQarnot
        from benchmarks.backlog import NEVER
        from tests.distributed.redis import Redis
        from tests.stack.postgres import Postgres
        from tools.airflow_stack import AirflowStack, Endpoint

        folder = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="distributed-load-")))
        self.idle = ends.enter_context(LocalQarnot(boot_seconds=NEVER, close_seconds=0.1))
        self.busy = ends.enter_context(LocalQarnot(boot_seconds=1, close_seconds=0.5))
        for qarnot in (self.idle, self.busy):
            qarnot.set_account(maxTask=None)
        self.busy_client = QarnotClient(self.busy.url, self.busy.token)
        self.backlog = Backlog(self.idle, QarnotClient(self.idle.url, self.idle.token), count)
        dags = folder / "dags"
        dags.mkdir()
        (dags / "waiting.py").write_text(WAITING_DAG.format(count=A_RUN))
        shutil.copy(ROOT / "tests" / "distributed" / "dags" / "spread.py", dags)
        postgres, redis = ends.enter_context(Postgres()), ends.enter_context(Redis())
        self._database = postgres.url.replace("+psycopg2", "")
        waiters = Endpoint(self.idle.url, self.idle.token, self.idle.storage_url)
        settings = {
            "AIRFLOW__TRIGGERER__CAPACITY": str(2 * count),
            "AIRFLOW__CORE__PARALLELISM": "4",
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "1",
            "AIRFLOW__CELERY__CELERY_CONFIG_OPTIONS": "tests.distributed.celery_config.CONFIG",
            "PYTHONPATH": str(ROOT),
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "120",
            "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "60",
            f"AIRFLOW_CONN_{WAITERS.upper()}": waiters.connection(namespace=environment.NAMESPACE),
        }
        self.airflow = AirflowStack(
            folder / "airflow",
            dags,
            database=postgres.url,
            broker=redis.url,
            schedulers=2,
            triggerers=2,
            qarnot=Endpoint(self.busy.url, self.busy.token, self.busy.storage_url),
            namespace="load",
            env=settings,
            start_timeout=600,
        )
        self.airflow.home.mkdir()
        ends.enter_context(self.airflow)
        self.deferred = self.ended = 0

    def ask(self, query: str, *values: Any) -> list[Any]:
        """Rows of Airflow's database."""
        import psycopg2

        connection = psycopg2.connect(self._database)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(query, values)
                return list(cursor.fetchall())
        finally:
            connection.close()

    def prepare(self, count: int) -> None:
        """DAG runs with *count* task instances or more, which are about to be run, and never are."""
        self.airflow.wait_dag("waiting", timeout=600)
        self.airflow.api("POST", "pools", {"name": "waiting_room", "slots": 0})
        runs = math.ceil(count / A_RUN)
        for n in range(runs):
            self.airflow.trigger("waiting", run_id=run_id(n))
        query = "SELECT count(*) FROM task_instance WHERE dag_id = 'waiting' AND state = 'scheduled'"
        self.airflow.wait_for(
            lambda: self.ask(query)[0][0] >= runs * A_RUN, timeout=900, what="the task instances"
        )

    def defer(self, count: int, classpath: str = TRIGGER) -> TakenUp:
        """Have *count* more waiters, and return when triggerers have started the triggers of all of them."""
        first, self.deferred = self.deferred, self.deferred + count
        kwargs: list[dict[str, Any]] = [{"target_time": "2099-01-01T00:00:00+00:00"}] * count
        if classpath == TRIGGER:
            kwargs = [
                {
                    **one,
                    "qarnot_conn_id": WAITERS,
                    "identity": {
                        **one["identity"],
                        "dag_id": "waiting",
                        "run_id": run_id(n // A_RUN),
                        "map_index": n % A_RUN,
                    },
                }
                for n, one in enumerate(self.backlog.trigger_kwargs(INTERVAL))
                if first <= n < self.deferred
            ]
        blocked, begun = len(self.blocked()), time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "benchmarks.distributed_load", DEFER, str(first), classpath],
            input=json.dumps(kwargs),
            text=True,
            env=self.airflow.environment,
            check=True,
        )
        self.airflow.wait_for(
            lambda: self._started_triggers() >= self.deferred - self.ended,
            timeout=900,
            what="the triggers to be started",
            interval=2.0,
        )
        return TakenUp(count, time.monotonic() - begun, self.blocked()[blocked:])

    def _started_triggers(self) -> int:
        """Return the number of started triggers, each of which has a log unless it ends at once."""
        folder = self.airflow.home / "logs" / "dag_id=waiting"
        return sum(1 for _ in folder.rglob("*.trigger.*.log"))

    def memory(self) -> float:
        """MB (PSS) of both triggerers."""
        return sum(one.memory_full_info().pss for one in self._triggerers()) / MB

    def cpu(self) -> float:
        """CPU seconds that both triggerers have taken."""
        return sum(one.cpu_times().user + one.cpu_times().system for one in self._triggerers())

    def blocked(self) -> list[float]:
        """Seconds for which an event loop of a triggerer stood still, of each time so far that Airflow noticed."""
        logs = self.airflow.logs.glob("triggerer*.log")
        return [float(one) for log in logs for one in BLOCKED.findall(log.read_text(errors="replace"))]

    def _triggerers(self) -> list[Any]:
        import psutil

        names = [name for name in self.airflow.components if name.startswith("triggerer")]
        return [psutil.Process(pid) for name in names for pid in self.airflow.pids(name)]

    @contextmanager
    def most_connections(self) -> Iterator[list[int]]:
        """The number of database connections, seen twice a second while the block runs."""
        seen, over = [0], threading.Event()
        query = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"

        def look() -> None:
            while not over.wait(0.5):
                seen.append(self.ask(query)[0][0] - 1)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield seen
        finally:
            over.set()
            thread.join()

    # --- measurements

    def idle_window(self, found: Found, seconds: float) -> None:
        """Nothing ends."""
        self.idle.clear_requests()
        blocked = len(self.blocked())
        before, begun = self.cpu(), time.monotonic()
        with self.most_connections() as connections:
            time.sleep(seconds)
        lasted = time.monotonic() - begun
        found.requests = len(self.backlog.requests()) / lasted * 60
        found.cpu = (self.cpu() - before) / lasted * 100
        found.memory, found.connections = self.memory(), max(connections)
        found.blocked = self.blocked()[blocked:]

    def ends_noticed(self, found: Found) -> None:
        """Seconds from the end of a Qarnot task until Airflow has resumed its task."""
        query = "SELECT count(*) FROM task_instance WHERE dag_id = 'waiting' AND state = 'deferred'"
        for _ in range(ENDED_GROUPS):
            waiting = set(self.backlog.uuids[: self.deferred])
            before, ended = self.ask(query)[0][0], time.monotonic()
            ended_now = self.backlog.end_some()
            self.ended += len(ended_now)
            count = sum(uuid in waiting for uuid in ended_now)
            noticed = 0
            while noticed < count and time.monotonic() - ended < 120:
                now = before - self.ask(query)[0][0]
                found.late += [time.monotonic() - ended] * (now - noticed)
                noticed = max(noticed, now)
                time.sleep(0.1)

    def runs_at_once(self, found: Found, name: str, count: int) -> None:
        """DAG runs of two DAGs that share one pool."""
        runs = [(("shared_pool", "shared_pool_too")[n % 2], f"{name}-{n}") for n in range(count)]
        self.busy.clear_requests()
        begun, before = time.monotonic(), len(self.busy_client.pools.list())
        with self.most_connections() as connections:
            for run in runs:
                self.airflow.wait_for(partial(self._started, *run), timeout=600, what=f"{run} to be started")
            states = [self.airflow.wait_run(*run, timeout=1200) for run in runs]
            found.runs_memory = self.memory()
        found.runs_seconds = time.monotonic() - begun
        found.runs_good = states.count("success")
        found.runs_connections = max(connections)
        asked = [one for one in self.busy.requests() if not one["path"].startswith("/_local")]
        found.runs_requests = len(asked) / found.runs_seconds * 60
        # They have it kept warm for a little while.
        with suppress(StackError):
            self.airflow.wait_for(lambda: not self.open_pools(), timeout=180, what="the pools to be closed")
        found.pools, found.pools_open = len(self.busy_client.pools.list()) - before, self.open_pools()

    def open_pools(self) -> int:
        pools = self.busy_client.pools.list()
        return sum(pool.state not in ("Closed", "Failure") for pool in pools)

    def _started(self, dag_id: str, run_id: str) -> bool:
        try:
            self.airflow.trigger(dag_id, {"seconds": 2}, run_id)
        except StackError as error:
            # The answer to an earlier attempt did not come in time.
            if ": 409 " not in str(error):
                raise
        return True


def run_id(number: int) -> str:
    return f"waiting-{number:04}"


def measure(report: Report) -> None:
    window, runs = (5.0, 2) if report.quick else (WINDOW, RUNS)
    counts = sorted({min(FEW, report.waiters), report.waiters})
    results: list[Found] = []
    with ExitStack() as ends:
        report.say("starts PostgreSQL, Redis, two local Qarnots and Airflow")
        deployment = Deployment(ends, report.waiters)
        deployment.prepare(2 * report.waiters)
        for count in counts:
            found = Found(count)
            results.append(found)
            report.say(f"{count} waiters")
            found.taken_up = deployment.defer(count - deployment.deferred)
            time.sleep(2 * INTERVAL)
            deployment.idle_window(found, window)
            report.say("ends some of them")
            deployment.ends_noticed(found)
            report.say(f"{runs} DAG runs at once")
            deployment.runs_at_once(found, f"beside-{count}", runs)
            # What there is of a quarter of an hour, even when its end does not come.
            report.say(str(found))
        last = results[-1].taken_up
        assert last is not None
        report.say(f"{last.count} triggers that only sleep")
        asleep = deployment.defer(last.count, SLEEPER)
        report.say(str(asleep))
    tell(report, results, asleep, runs)


def tell(report: Report, results: Sequence[Found], asleep: TakenUp, runs: int) -> None:
    columns = ["", *(f"{found.waiters:,}" for found in results), "grows as N^"]
    waiting = report.table(
        "Waiters over two triggerers",
        columns,
        note=f"Polled every {INTERVAL:g} s. Late: from the end on Qarnot until Airflow has the task resumed. "
        "Blocked: what Airflow's watchdog saw in the minute in which nothing ended, from 0.2 s on.",
    )
    busy = report.table(
        f"{runs} DAG runs that share a pool, at once, beside that many waiters",
        columns,
        note="Requests are those of the DAG runs, on a separate connection.",
    )

    coming = report.table(
        "Starting many triggers at once",
        ["triggers", "seconds", "event loop blocked, times", "longest [s]"],
        note="Airflow builds all new triggers before it reads its messages again.",
    )

    def line(table: Table, what: str, value: Callable[[Found], float]) -> None:
        points = {found.waiters: value(found) for found in results}
        table.row(what, *points.values(), exponent(points, results[0].waiters))
        for count, figure in points.items():
            report.figure(f"{'runs' if table is busy else 'waiting'} {what} {count}", figure)

    for found in results:
        if found.taken_up is not None:
            take(report, coming, "of this provider", found.taken_up)
    take(report, coming, "that only sleep", asleep)
    line(waiting, "requests per minute", lambda one: one.requests)
    line(waiting, "late, median [s]", lambda one: median(one.late))
    line(waiting, "late, 95 % [s]", lambda one: percentile(one.late, 0.95))
    line(waiting, "event loop blocked, times", lambda one: len(one.blocked))
    line(waiting, "event loop blocked, longest [s]", lambda one: max(one.blocked, default=0))
    line(waiting, "memory of both triggerers [MB]", lambda one: one.memory)
    line(waiting, "CPU of both triggerers [% of a core]", lambda one: one.cpu)
    line(waiting, "database connections, most", lambda one: one.connections)
    line(busy, "succeeded", lambda one: one.runs_good)
    line(busy, "seconds for all", lambda one: one.runs_seconds)
    line(busy, "requests per minute", lambda one: one.runs_requests)
    line(busy, "pools made", lambda one: one.pools)
    line(busy, "pools open afterwards", lambda one: one.pools_open)
    line(busy, "memory of both triggerers [MB]", lambda one: one.runs_memory)
    line(busy, "database connections, most", lambda one: one.runs_connections)


def take(report: Report, table: Table, whose: str, one: TakenUp) -> None:
    table.row(f"{one.count:,} {whose}", one.seconds, len(one.blocked), max(one.blocked, default=0))
    report.figure(f"taken up {whose} {one.count} seconds", one.seconds)


# --- a process with the deployment's settings, which writes to its database

DEFER = "--defer-from"


def defer(first: int, classpath: str, kwargs: Sequence[dict[str, Any]]) -> None:
    """Leave task instances as a worker's deferral does: state, trigger, and what resumes them."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.trigger import Trigger
    from airflow.utils.session import create_session
    from sqlalchemy import select

    waiting = select(TaskInstance).where(TaskInstance.dag_id == "waiting")
    chosen = waiting.order_by(TaskInstance.run_id, TaskInstance.map_index).offset(first).limit(len(kwargs))
    with create_session() as session:
        instances = list(session.scalars(chosen))
        triggers = [Trigger(classpath=classpath, kwargs=one) for one in kwargs]
        session.add_all(triggers)
        session.flush()
        for instance, trigger in zip(instances, triggers, strict=True):
            instance.state, instance.trigger_id = "deferred", trigger.id
            instance.next_method, instance.next_kwargs = "execute_complete", {}
            instance.start_date, instance.try_number = datetime.now(UTC), 1


if __name__ == "__main__":
    if sys.argv[1:2] == [DEFER]:
        defer(int(sys.argv[2]), sys.argv[3], json.load(sys.stdin))
    else:
        main("distributed_load", __doc__, measure, waiters=5000, meaning="deferred Qarnot tasks")
