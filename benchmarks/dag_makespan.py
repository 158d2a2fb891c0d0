"""DAG runs from end to end, on a real Airflow with PostgreSQL and LocalExecutor: Airflow's own time is included.

The same work is done in turn by mapped tasks of this provider, by Python tasks that call ``run()`` of the official SDK,
and by Python tasks that only sleep for as long, which is the least that Airflow takes. The variants of this provider
have one means of speed switched off each. The other programs leave Airflow out.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.report import Report, main, median, percentile

BOOT = 3.0
FLOOR, SDK, OURS, PURE = "floor", "sdk", "ours", "ours_defer_at_once"
#: Options of the operators by way.
WAYS: dict[str, dict[str, Any]] = {
    FLOOR: {},
    SDK: {},
    OURS: {},
    PURE: {"defer_after": 0},
    "ours_never_deferred": {"deferrable": False},
}
TITLES = {
    FLOOR: "Airflow alone (sleeps)",
    SDK: "official SDK in a @task",
    OURS: "this provider, defaults",
    PURE: "this provider, defers at once",
    "ours_never_deferred": "this provider, never defers",
}


@dataclass(frozen=True)
class Shape:
    """Stages of mapped tasks, one after the other. ``limit`` is the target of ours against Airflow alone."""

    title: str
    nodes: int
    stages: tuple[int, ...]
    seconds: float
    ways: tuple[str, ...]
    limit: float | None = None

    @property
    def tasks(self) -> int:
        """The number of mapped task instances."""
        return sum(self.stages)


SHAPES = {
    "stages": Shape("Stages of 4, 6 and 2 tasks of 5 s on 4 nodes", 4, (4, 6, 2), 5, tuple(WAYS), 1.1),
    "chain": Shape("A chain of ten tasks of 1 s", 1, (1,) * 10, 1, (FLOOR, SDK, OURS, PURE), 1.3),
    "minute": Shape("4 tasks of 60 s on 4 nodes", 4, (4,), 60, (FLOOR, OURS, PURE), 1.05),
    "wide": Shape("200 tasks of 5 s on 50 nodes, 16 worker slots", 50, (200,), 5, (SDK, OURS, PURE)),
}
FIRST = Shape("Two tasks of 0.1 s", 1, (1, 1), 0.1, (FLOOR, SDK, OURS), None)
QUICK = {"stages": FIRST}


@dataclass
class Result:
    """The figures of one DAG run; seconds, and counts of requests."""

    makespan: float
    slot_seconds: float
    cpu_seconds: float
    qarnot_requests: int
    airflow_requests: int
    #: From the end of each Qarnot task to the end of its Airflow task.
    late: list[float]


class Bench:
    """A deployment with everything that is measured on it."""

    def __init__(self, airflow: Any, qarnot: Any, url: str) -> None:
        import psycopg2  # type: ignore[import-untyped]

        self.airflow, self.qarnot = airflow, qarnot
        self._database = psycopg2.connect(url.replace("+psycopg2", ""))
        self._database.autocommit = True

    def run(self, shape: str, way: str) -> Result:
        """Run one DAG once."""
        dag_id = f"{shape}.{way}"
        self.airflow.wait_dag(dag_id)
        self.qarnot.clear_requests()
        requests, cpu = self._airflow_requests(), self._worker_cpu()
        with self._slots() as slots:
            run_id = self.airflow.trigger(dag_id)
            state = self.airflow.wait_run(dag_id, run_id, timeout=600)
        sent = len(self.qarnot.requests())
        if state != "success":
            raise SystemExit(f"{dag_id} is {state}: {self.airflow.task_states(dag_id, run_id)}")
        run = self.airflow.api("GET", f"dags/{dag_id}/dagRuns/{run_id}")
        return Result(
            makespan=(_moment(run["end_date"]) - _moment(run["start_date"])).total_seconds(),
            slot_seconds=slots[0],
            cpu_seconds=self._worker_cpu() - cpu,
            qarnot_requests=sent,
            airflow_requests=self._airflow_requests() - requests,
            late=self._late(dag_id, run_id),
        )

    def _late(self, dag_id: str, run_id: str) -> list[float]:
        ends = {
            (one["task_id"].rsplit(".")[-1], one["map_index"]): _moment(one["end_date"])
            for one in self.airflow.task_instances(dag_id, run_id)
        }
        late = []
        for one in self.qarnot.call("GET", "/tasks"):
            labels = one.get("labels") or {}
            if labels.get("airflow.run_id") == run_id and one.get("endDate"):
                key = labels["airflow.task_id"].rsplit(".")[-1], int(labels["airflow.map_index"])
                late.append((ends[key] - _moment(one["endDate"])).total_seconds())
        return late

    def _airflow_requests(self) -> int:
        log = self.airflow.logs / "api-server.log"
        return len(re.findall(r"/execution/", log.read_text(errors="replace")))

    def _worker_cpu(self) -> float:
        """Seconds of CPU of the workers of LocalExecutor and of the tasks that they have run."""
        total = 0.0
        for pid in self.airflow.pids("scheduler")[1:]:
            with contextlib.suppress(psutil.Error):
                total += sum(psutil.Process(pid).cpu_times()[:4])
        return total

    @contextlib.contextmanager
    def _slots(self) -> Iterator[list[float]]:
        """Count the seconds in which task instances hold a slot of a worker."""
        held, over = [0.0], threading.Event()

        def sample() -> None:
            before = time.monotonic()
            while not over.wait(0.2):
                with self._database.cursor() as cursor:
                    cursor.execute("select count(*) from task_instance where state = 'running'")
                    (running,) = cursor.fetchone()
                now = time.monotonic()
                held[0] += running * (now - before)
                before = now

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield held
        finally:
            over.set()
            thread.join()


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


@contextlib.contextmanager
def deployed(shapes: Mapping[str, Shape]) -> Iterator[Bench]:
    """Start PostgreSQL, a local Qarnot and Airflow."""
    from airflow_qarnot_pool.local import LocalQarnot
    from tests.stack.conftest import PRELOAD
    from tests.stack.postgres import Postgres
    from tools.airflow_stack import AirflowStack, Endpoint

    plan = {
        "boot": BOOT,
        "ways": WAYS,
        "shapes": {
            name: {"nodes": one.nodes, "stages": one.stages, "seconds": one.seconds}
            for name, one in shapes.items()
        },
    }
    with contextlib.ExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="dag-makespan-")))
        qarnot = ends.enter_context(LocalQarnot(boot_seconds=BOOT, close_seconds=0.5))
        database = ends.enter_context(Postgres())
        shutil.copytree(Path(__file__).parent / "dags", folder / "dags")
        airflow = AirflowStack(
            folder / "airflow",
            folder / "dags",
            database=database.url,
            qarnot=Endpoint(qarnot.url, qarnot.token, qarnot.storage_url),
            preload=PRELOAD,
            env={"MAKESPAN": json.dumps(plan), "AIRFLOW__API__ACCESS_LOGFILE": "-"},
        )
        airflow.home.mkdir()
        yield Bench(ends.enter_context(airflow), qarnot, database.url)


def measure(report: Report) -> None:
    shapes = QUICK if report.quick else {report.options["shape"]: SHAPES[report.options["shape"]]}
    rounds = 1 if report.quick else report.waiters
    results: dict[tuple[str, str], list[Result]] = {}
    with deployed({**shapes, "first": FIRST}) as bench:
        for way in FIRST.ways:
            bench.run("first", way)  # the first run of a process imports things
        for name, shape in shapes.items():
            for number in range(rounds):
                for way in shape.ways:
                    result = bench.run(name, way)
                    results.setdefault((name, way), []).append(result)
                    report.say(f"{name}, round {number + 1}, {TITLES[way]}: {result.makespan:.1f} s")
    for name, shape in shapes.items():
        write(report, name, shape, {way: results[name, way] for way in shape.ways})


def write(report: Report, name: str, shape: Shape, results: Mapping[str, list[Result]]) -> None:
    """Write the table, figures and targets of one shape."""
    table = report.table(
        f"{shape.title}: medians of {len(results[OURS])} rounds",
        (
            "",
            "makespan [s]",
            "of Airflow's",
            "worker slots [s]",
            "worker CPU [s]",
            "requests to Qarnot",
            "to Airflow, per task",
            "end to end, median [s]",
            "p99 [s]",
        ),
        "The last two: from the end of a Qarnot task to the end of its Airflow task.",
    )

    def of(way: str, figure: str) -> float:
        return (
            median([float(getattr(one, figure)) for one in results[way]]) if way in results else float("nan")
        )

    least = of(FLOOR, "makespan")
    for way, runs in results.items():
        late = [seconds for one in runs for seconds in one.late]
        makespan = of(way, "makespan")
        table.row(
            TITLES[way],
            makespan,
            makespan / least,
            of(way, "slot_seconds"),
            of(way, "cpu_seconds"),
            int(of(way, "qarnot_requests")),
            of(way, "airflow_requests") / shape.tasks,
            median(late),
            percentile(late, 0.99),
        )
        for figure in ("makespan", "slot_seconds", "cpu_seconds", "qarnot_requests", "airflow_requests"):
            report.figure(f"{name}.{way}.{figure}", of(way, figure))
        report.figure(f"{name}.{way}.late_p50", median(late))
    if shape.limit is not None:
        report.target(f"{name}: ours / Airflow alone", of(OURS, "makespan") / least, shape.limit)
    if name == "stages":
        report.target("stages: ours / SDK", of(OURS, "makespan") / of(SDK, "makespan"), 0.75)
        report.target("stages: requests to Qarnot", of(OURS, "qarnot_requests"), 40)
    if name == "wide":
        peer = min(of(SDK, "makespan"), of(PURE, "makespan"))
        report.target("wide: ours / the faster of SDK and pure deferral", of(OURS, "makespan") / peer, 1.0)


if __name__ == "__main__":
    main(
        "dag_makespan",
        __doc__,
        measure,
        waiters=5,
        meaning="rounds of each DAG",
        with_airflow=True,
        options={"shape": ("stages", f"one of {', '.join(SHAPES)}")},
    )
