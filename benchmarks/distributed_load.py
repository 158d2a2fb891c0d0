"""Thousands of deferred Qarnot tasks over two real triggerers, and 20 DAG runs that share a pool at the same time.

A distributed Airflow of its own (PostgreSQL, Redis, two schedulers, two triggerers, two Celery workers: what ``make
distributed`` installs) has 500 waiters first and ``--waiters`` afterwards, and is measured with each: requests per
minute, how late an end is noticed, database connections, memory and CPU of the triggerers. The DAG runs come last;
``--waiters 500`` has them beside 500 only, to compare.

The waiters are real triggers of real task instances, and both triggerers share them as they always do. Only their way
there is shortened: ``deferred`` and the trigger are written to Airflow's database as a worker's deferral would leave
them, because thousands of worker processes say nothing about waiting and take an hour on a small machine. The
DAG runs take no short cut.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.backlog import Backlog
from benchmarks.report import Report, exponent, main, median, percentile
from tools.airflow_stack import StackError

ROOT = Path(__file__).resolve().parent.parent
FEW = 500
RUNS = 20
#: Seconds between two polls, the default; and of a measurement in which nothing happens.
INTERVAL, WINDOW = 5.0, 60.0
#: Groups of waiters that are ended to see how late that is noticed, each a hundredth of all.
ENDED_GROUPS = 4
WAITERS = "qarnot_waiters"
TRIGGER = "airflow_qarnot_pool.triggers.task.QarnotTaskTrigger"
MB = 1 << 20
WAITING_DAG = """
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

with DAG("waiting", schedule=None, max_active_tasks=100_000):
    # No worker takes them up: its slot pool has no slots.
    BashOperator.partial(task_id="wait", bash_command="true", pool="waiting_room").expand(
        env=[{{"N": str(n)}} for n in range({count})]
    )
"""


@dataclass
class Found:
    """With so many waiters."""

    waiters: int
    watched: float = float("nan")
    requests: float = float("nan")
    late: list[float] = field(default_factory=list)
    connections: int = 0
    memory: float = float("nan")
    cpu: float = float("nan")
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
            qarnot.account(maxTask=None)
        self.busy_client = QarnotClient(self.busy.url, self.busy.token)
        self.backlog = Backlog(self.idle, QarnotClient(self.idle.url, self.idle.token), count)
        dags = folder / "dags"
        dags.mkdir()
        (dags / "waiting.py").write_text(WAITING_DAG.format(count=count))
        shutil.copy(ROOT / "tests" / "distributed" / "dags" / "spread.py", dags)
        postgres, redis = ends.enter_context(Postgres()), ends.enter_context(Redis())
        self._database = postgres.url.replace("+psycopg2", "")
        waiters = Endpoint(self.idle.url, self.idle.token, self.idle.storage_url)
        settings = {
            "AIRFLOW__TRIGGERER__CAPACITY": str(count),
            "AIRFLOW__CORE__PARALLELISM": "4",
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "1",
            "AIRFLOW__CELERY__CELERY_CONFIG_OPTIONS": "tests.distributed.celery_config.CONFIG",
            "PYTHONPATH": str(ROOT),
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "120",
            "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "60",
            "AIRFLOW__CORE__MAX_MAP_LENGTH": str(max(1024, count)),
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
        """A DAG run with *count* task instances that are about to be run, and never are."""
        self.airflow.wait_dag("waiting", timeout=600)
        self.airflow.api("POST", "pools", {"name": "waiting_room", "slots": 0})
        self.airflow.trigger("waiting", run_id="waiting")
        query = "SELECT count(*) FROM task_instance WHERE dag_id = 'waiting' AND state = 'scheduled'"
        self.airflow.wait_for(lambda: self.ask(query)[0][0] >= count, timeout=900, what="the task instances")

    def defer_up_to(self, count: int) -> float:
        """Have *count* waiters; returns the seconds until triggerers had taken up the new ones."""
        kwargs = [
            {
                **one,
                "qarnot_conn_id": WAITERS,
                "life": {**one["life"], "dag_id": "waiting", "run_id": "waiting"},
            }
            for one in self.backlog.trigger_kwargs(INTERVAL)[self.deferred : count]
        ]
        subprocess.run(
            [sys.executable, "-m", "benchmarks.distributed_load", DEFER, str(self.deferred)],
            input=json.dumps(kwargs),
            text=True,
            env=self.airflow.environment,
            check=True,
        )
        begun, self.deferred = time.monotonic(), count
        query = "SELECT count(*) FROM trigger WHERE triggerer_id IS NOT NULL"
        # Those that have fired are gone.
        wanted = count - self.ended
        self.airflow.wait_for(
            lambda: self.ask(query)[0][0] >= wanted, timeout=900, what="the triggers to be taken up"
        )
        return time.monotonic() - begun

    def memory(self) -> float:
        """MB (PSS) of both triggerers."""
        return sum(one.memory_full_info().pss for one in self._triggerers()) / MB

    def cpu(self) -> float:
        """CPU seconds that both triggerers have taken."""
        return sum(one.cpu_times().user + one.cpu_times().system for one in self._triggerers())

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

    # --- what is measured

    def idle_window(self, found: Found, seconds: float) -> None:
        """Nothing ends."""
        self.idle.clear_requests()
        before, begun = self.cpu(), time.monotonic()
        with self.most_connections() as connections:
            time.sleep(seconds)
        lasted = time.monotonic() - begun
        found.requests = len(self.backlog.requests()) / lasted * 60
        found.cpu = (self.cpu() - before) / lasted * 100
        found.memory, found.connections = self.memory(), max(connections)

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
        pools = self.busy_client.pools.list()
        found.pools = len(pools) - before
        found.pools_open = sum(pool.state not in ("Closed", "Closing", "Failure") for pool in pools)

    def _started(self, dag_id: str, run_id: str) -> bool:
        try:
            self.airflow.trigger(dag_id, {"seconds": 2}, run_id)
        except StackError as error:
            # The answer to an earlier attempt did not come in time.
            if ": 409 " not in str(error):
                raise
        return True


def measure(report: Report) -> None:
    window, runs = (5.0, 2) if report.quick else (WINDOW, RUNS)
    counts = sorted({min(FEW, report.waiters), report.waiters})
    results: list[Found] = []
    with ExitStack() as ends:
        report.say("starts PostgreSQL, Redis, two local Qarnots and Airflow")
        deployment = Deployment(ends, report.waiters)
        deployment.prepare(report.waiters)
        for count in counts:
            found = Found(count)
            results.append(found)
            report.say(f"{count} waiters")
            found.watched = deployment.defer_up_to(count)
            time.sleep(2 * INTERVAL)
            deployment.idle_window(found, window)
            report.say("ends some of them")
            deployment.ends_noticed(found)
            # What there is of a quarter of an hour, even when its end does not come.
            report.say(str(found))
        report.say(f"{runs} DAG runs at once")
        deployment.runs_at_once(results[-1], "at-once", runs)
    tell(report, results, runs)


def tell(report: Report, results: Sequence[Found], runs: int) -> None:
    growth_from = results[0].waiters
    waiting = report.table(
        "Waiters over two triggerers",
        ["", *(f"{found.waiters:,}" for found in results), "grows as N^"],
        note=f"Polled every {INTERVAL:g} s. Late: from the end on Qarnot until Airflow has the task resumed.",
    )
    busy = report.table(
        f"{runs} DAG runs that share a pool, at once, beside {results[-1].waiters:,} waiters",
        ["", ""],
        note="Requests are those of the DAG runs, on a connection of their own.",
    )

    def line(what: str, values: Sequence[float]) -> None:
        points = {found.waiters: value for found, value in zip(results, values, strict=True)}
        waiting.row(what, *values, exponent(points, growth_from))
        for count, value in points.items():
            report.figure(f"waiting {what} {count}", value)

    def of_runs(what: str, value: float) -> None:
        busy.row(what, value)
        report.figure(f"runs {what} {results[-1].waiters}", value)

    line("seconds until all are taken up", [one.watched for one in results])
    line("requests per minute", [one.requests for one in results])
    line("late, median [s]", [median(one.late) for one in results])
    line("late, 95 % [s]", [percentile(one.late, 0.95) for one in results])
    line("memory of both triggerers [MB]", [one.memory for one in results])
    line("CPU of both triggerers [% of a core]", [one.cpu for one in results])
    line("database connections, most", [one.connections for one in results])
    of_runs("succeeded", results[-1].runs_good)
    of_runs("seconds for all", results[-1].runs_seconds)
    of_runs("requests per minute", results[-1].runs_requests)
    of_runs("pools made", results[-1].pools)
    of_runs("pools open afterwards", results[-1].pools_open)
    of_runs("memory of both triggerers [MB]", results[-1].runs_memory)
    of_runs("database connections, most", results[-1].runs_connections)


# --- a process with the deployment's settings, which writes to its database

DEFER = "--defer-from"


def defer(first: int, kwargs: Sequence[dict[str, Any]]) -> None:
    """Leave task instances as a worker's deferral does: state, trigger, and what resumes them."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.trigger import Trigger
    from airflow.utils.session import create_session
    from sqlalchemy import select

    chosen = select(TaskInstance).where(
        TaskInstance.dag_id == "waiting",
        TaskInstance.map_index >= first,
        TaskInstance.map_index < first + len(kwargs),
    )
    with create_session() as session:
        instances = list(session.scalars(chosen.order_by(TaskInstance.map_index)))
        triggers = [Trigger(classpath=TRIGGER, kwargs=one) for one in kwargs]
        session.add_all(triggers)
        session.flush()
        for instance, trigger in zip(instances, triggers, strict=True):
            instance.state, instance.trigger_id = "deferred", trigger.id
            instance.next_method, instance.next_kwargs = "execute_complete", {}
            instance.start_date, instance.try_number = datetime.now(UTC), 1


if __name__ == "__main__":
    if sys.argv[1:2] == [DEFER]:
        defer(int(sys.argv[2]), json.load(sys.stdin))
    else:
        main("distributed_load", __doc__, measure, waiters=5000, meaning="deferred Qarnot tasks")
