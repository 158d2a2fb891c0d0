"""``make soak HOURS=2``: short DAG runs over a distributed Airflow for hours, and the growth of its processes.

PostgreSQL, Redis, a scheduler, an api-server, two triggerers and two Celery workers, all of this program's own, run
a DAG with a warm pool again and again against a local Qarnot. Every half minute memory and open files of every
component are noted. At the end (after ``--hours``, or earlier on SIGTERM or Ctrl-C) a table tells how they grew: a
line is fitted through the samples after the warm-up, because a leak shows as its slope. Runs that did not succeed and
open pools are counted, too; the exit status is 1 if there are any.

Memory is USS, the unshared memory of a process, because shared memory changes when other processes come and go. For
workers it counts the worker and its pool of processes, and not the processes that each Airflow task starts.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.local import LocalQarnot
from tests.distributed.redis import Redis
from tests.stack.postgres import Postgres
from tools import doc_block
from tools.airflow_stack import AirflowStack, Endpoint, StackError

ROOT = Path(__file__).resolve().parent.parent
DAGS = ROOT / "tests" / "distributed" / "dags"
#: A pool for each run, and one that runs share; in turn.
DAG_IDS = ("own_pool", "shared_pool")
#: Seconds between two samples.
EVERY = 30.0
#: DAG runs under way; on a machine that is slower than runs are asked for, they do not pile up.
MOST_AT_ONCE = 5
#: Share of the time that belongs to the warm-up: imports, caches, the first of everything.
WARM_UP = 0.2
MB = 1 << 20
POOL_OVER = {"Closed", "Failure"}


@dataclass
class Sample:
    """One component at one time."""

    seconds: float
    memory: int
    files: int


@dataclass
class Soak:
    airflow: AirflowStack
    qarnot: LocalQarnot
    log: Path | None
    began: float = field(default_factory=time.monotonic)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    started: int = 0
    under_way: set[tuple[str, str]] = field(default_factory=set)
    ended: Counter[str] = field(default_factory=Counter)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def new_run(self) -> None:
        dag_id, run_id = DAG_IDS[self.started % len(DAG_IDS)], f"soak-{self.started}"
        self.airflow.trigger(dag_id, {"seconds": 1}, run_id)
        self.started += 1
        self.under_way.add((dag_id, run_id))

    def note_ended(self) -> None:
        for run in list(self.under_way):
            state = self.airflow.run_state(*run)
            if state in ("success", "failed"):
                self.under_way.remove(run)
                self.ended[state] += 1

    def take_sample(self) -> None:
        now: dict[str, Any] = {"seconds": round(self.seconds)}
        for name in self.airflow.components:
            sample = Sample(self.seconds, *measured(self.airflow.pids(name)[0]))
            self.samples.setdefault(name, []).append(sample)
            now[name] = {"memory": sample.memory, "files": sample.files}
        if self.log:
            with self.log.open("a") as out:
                print(json.dumps({**now, "runs": self.started, **self.ended}), file=out)

    def open_pools(self) -> int:
        pools = QarnotClient(self.qarnot.url, self.qarnot.token).pools.list()
        return sum(pool.state not in POOL_OVER for pool in pools)


def lasting(main: psutil.Process) -> Iterator[psutil.Process]:
    """A component's process and its children, but not theirs: a worker's grandchildren are Airflow tasks."""
    yield main
    yield from main.children()


def measured(pid: int) -> tuple[int, int]:
    """Bytes of memory and number of open files of a component."""
    memory = files = 0
    for process in lasting(psutil.Process(pid)):
        with suppress(psutil.Error, OSError):
            memory += process.memory_full_info().uss
            files += process.num_fds()
    return memory, files


def slope(samples: list[Sample], what: str) -> float:
    """Growth per hour: least squares."""
    hours = [one.seconds / 3600 for one in samples]
    if len(set(hours)) < 2:
        return float("nan")
    return statistics.linear_regression(hours, [float(getattr(one, what)) for one in samples]).slope


def report(soak: Soak, every: float) -> str:
    """The result, as Markdown."""
    settled = {
        name: [one for one in found if one.seconds >= WARM_UP * soak.seconds]
        for name, found in soak.samples.items()
    }
    lines = [
        f"{soak.seconds / 3600:.2f} hours, {soak.started} DAG runs (one every {every:g} s if the machine keeps up): "
        f"{soak.ended['success']} succeeded, {soak.ended['failed']} failed, {len(soak.under_way)} unfinished; "
        f"pools left open: {soak.open_pools()}.",
        "",
        f"From {WARM_UP * soak.seconds / 60:.0f} minutes on (before that it warms up), "
        f"a sample every {EVERY:g} s; first and last are medians of five:",
        "",
        "| component | memory first [MB] | last [MB] | slope [MB/h] | open files first | last | slope [1/h] |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, found in settled.items():
        cells: list[str] = []
        for what, unit in (("memory", MB), ("files", 1)):
            values = [getattr(one, what) / unit for one in found] or [float("nan")]
            first, last = statistics.median(values[:5]), statistics.median(values[-5:])
            cells += [f"{first:.0f}", f"{last:.0f}", f"{slope(found, what) / unit:+.1f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def deployment(ends: ExitStack, folder: Path) -> Soak:
    qarnot = ends.enter_context(LocalQarnot(boot_seconds=0.5, close_seconds=0.5))
    postgres, redis = ends.enter_context(Postgres()), ends.enter_context(Redis())
    airflow = AirflowStack(
        folder / "airflow",
        DAGS,
        database=postgres.url,
        broker=redis.url,
        triggerers=2,
        qarnot=Endpoint(qarnot.url, qarnot.token, qarnot.storage_url),
        namespace="soak",
        env={
            # Low rate and long: Airflow's own defaults, and processes that are few.
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "1",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "120",
            "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "60",
            "AIRFLOW__QARNOT__POLL_INTERVAL": "2",
            "AIRFLOW__QARNOT__DEFER_AFTER": "0",
        },
        start_timeout=600,
    )
    airflow.home.mkdir()
    ends.enter_context(airflow)
    for dag_id in DAG_IDS:
        airflow.wait_dag(dag_id, timeout=300)
    return Soak(airflow, qarnot, folder / "samples.jsonl")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument(
        "--every", type=float, default=30.0, help="seconds between the starts of two DAG runs"
    )
    parser.add_argument(
        "--folder", type=Path, help="where logs and samples.jsonl are kept (default: nowhere)"
    )
    parser.add_argument(
        "--report",
        type=Path,
        help="the page with a place for it, such as docs/contributing/evidence/distributed.md",
    )
    given = parser.parse_args()
    asked_to_stop: list[int] = []
    with ExitStack() as ends:
        folder = given.folder or Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        folder.mkdir(parents=True, exist_ok=True)
        soak = deployment(ends, folder)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: asked_to_stop.append(number))
        next_run = next_sample = 0.0
        while not asked_to_stop and soak.seconds < given.hours * 3600:
            # One request that fails (a machine that is busy) is no reason to lose hours.
            try:
                soak.airflow.check_alive()
                if soak.seconds >= next_sample:
                    next_sample = soak.seconds + EVERY
                    soak.take_sample()
                soak.note_ended()
                if soak.seconds >= next_run and len(soak.under_way) < MOST_AT_ONCE:
                    next_run = soak.seconds + given.every
                    soak.new_run()
            except OSError as error:
                print(f"{soak.seconds:.0f} s: {error}", file=sys.stderr, flush=True)
            time.sleep(1)
        with suppress(StackError):
            soak.airflow.wait_for(lambda: soak.note_ended() or not soak.under_way, timeout=300, interval=2)
        text = report(soak, given.every)
        left = soak.open_pools()
    print(text)
    if given.report:
        doc_block.write(given.report, "soak", text)
    return 1 if left or soak.ended["failed"] or soak.under_way else 0


if __name__ == "__main__":
    sys.exit(main())
