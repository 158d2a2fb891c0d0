"""How Celery workers grow with the Airflow tasks they run: with Qarnot's operators, and with plain ones beside them.

One deployment (PostgreSQL, Redis, a scheduler, an api-server, a triggerer) with two workers. One runs Airflow tasks
of this provider, the other as many that use nothing of it: they wait in the triggerer or on the worker just as long.
Round after round a DAG run of each is started, and when both are over, memory and open files of both workers are
noted, while nothing runs on them. ``--stall SECONDS`` lets the api-server stand still for so long in every round,
which is what an overloaded machine does to workers.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.specs import PoolSpec
from airflow_qarnot_pool.local import LocalQarnot
from tests.distributed.redis import Redis
from tests.stack.postgres import Postgres
from tools import doc_block
from tools.airflow_stack import AirflowStack, Endpoint
from tools.soak import MB, measured

DAGS = Path(__file__).resolve().parent.parent / "tests" / "distributed" / "growth_dags"
#: DAG, which is also the queue of its worker.
KINDS = ("ours", "plain")
#: Rounds that belong to the warm-up: each process of a worker's pool imports what it needs with its first task.
WARM_UP = 3


@dataclass
class Sample:
    """A worker between two rounds; ``tasks`` it has run."""

    tasks: int
    memory: float
    files: int


def tasks_run(log: Path) -> int:
    """How many Airflow tasks (or slices of deferred ones) a worker says it has run."""
    return log.read_text(errors="replace").count("Workload finished ")


def sample(airflow: AirflowStack, worker: str) -> Sample:
    memory, files = measured(airflow.pids(worker)[0])
    return Sample(tasks_run(airflow.logs / f"{worker}.log"), memory / MB, files)


def per_thousand(samples: list[Sample], what: str) -> float:
    """Growth per 1,000 Airflow tasks: least squares."""
    counts = [float(one.tasks) for one in samples]
    if len(set(counts)) < 2:
        return float("nan")
    return 1000 * statistics.linear_regression(counts, [float(getattr(one, what)) for one in samples]).slope


def table(samples: dict[str, list[Sample]]) -> str:
    """The result, as Markdown."""
    lines = [
        "| worker | Airflow tasks run | memory first [MB] | last [MB] | per 1,000 Airflow tasks [MB] "
        "| open files first | last | per 1,000 |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for kind, found in samples.items():
        settled = found[WARM_UP:]
        first, last = settled[0], settled[-1]
        lines.append(
            f"| {kind} | {last.tasks - first.tasks} | {first.memory:.1f} | {last.memory:.1f} "
            f"| {per_thousand(settled, 'memory'):+.1f} | {first.files} | {last.files} "
            f"| {per_thousand(settled, 'files'):+.1f} |"
        )
    return "\n".join(lines)


def round_(airflow: AirflowStack, number: int, pool: str, stall: float) -> None:
    """A DAG run of each kind, from its start to its end."""
    for kind in KINDS:
        airflow.trigger(kind, {"pool": pool}, f"round-{number}")
    if stall:
        # When Airflow tasks of both are under way.
        airflow.wait_for(
            lambda: all(
                any(one["state"] == "running" for one in airflow.task_instances(kind, f"round-{number}"))
                for kind in KINDS
            ),
            what="running tasks",
        )
        airflow.signal("api-server", signal.SIGSTOP)
        time.sleep(stall)
        airflow.signal("api-server", signal.SIGCONT)
    for kind in KINDS:
        airflow.wait_run(kind, f"round-{number}", timeout=600)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--stall", type=float, default=0.0, help="seconds without api-server in every round")
    parser.add_argument("--api-timeout", type=float, default=30.0, help="[workers] execution_api_timeout")
    parser.add_argument("--report", type=Path, help="the document with a place for the table (growth)")
    given = parser.parse_args()
    with ExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="worker-growth-")))
        qarnot = ends.enter_context(LocalQarnot(boot_seconds=0.5, close_seconds=0.5))
        qarnot.account(maxTask=None)
        with QarnotClient(qarnot.url, qarnot.token) as client:
            pool = str(client.pools.create(PoolSpec(name="growth", instance_count=2, slots_per_node=4)))
        postgres, redis = ends.enter_context(Postgres()), ends.enter_context(Redis())
        airflow = AirflowStack(
            folder / "airflow",
            DAGS,
            database=postgres.url,
            broker=redis.url,
            queues=KINDS,
            qarnot=Endpoint(qarnot.url, qarnot.token, qarnot.storage_url),
            namespace="growth",
            env={
                # Few processes, so that each runs many.
                "AIRFLOW__CELERY__WORKER_CONCURRENCY": "2",
                "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": str(given.api_timeout),
                "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "120",
                "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "1",
                "AIRFLOW__QARNOT__POLL_INTERVAL": "1",
            },
            start_timeout=600,
        )
        airflow.home.mkdir()
        ends.enter_context(airflow)
        workers = dict(zip(KINDS, ("worker-1", "worker-2"), strict=True))
        samples: dict[str, list[Sample]] = {kind: [] for kind in KINDS}
        began = time.monotonic()
        number = 0
        while time.monotonic() - began < 60 * given.minutes:
            round_(airflow, number, pool, given.stall)
            number += 1
            for kind, worker in workers.items():
                samples[kind].append(sample(airflow, worker))
            newest = {kind: found[-1] for kind, found in samples.items()}
            print(f"{time.monotonic() - began:.0f} s: {newest}", file=sys.stderr, flush=True)
    if number <= WARM_UP + 1:
        print("Too few rounds to tell anything: more --minutes", file=sys.stderr)
        return 1
    print(text := table(samples))
    if given.report:
        doc_block.write(given.report, "growth", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
