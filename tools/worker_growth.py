"""How the processes of a Celery worker grow with the Airflow tasks they run: with Qarnot's operators, and without.

The lasting processes of a Celery worker are those of its pool. They call Airflow's supervisor once for each Airflow
task, which forks the process of the task. Two such processes do that here, one for Airflow tasks that run
on Qarnot (a local one), one for tasks that only wait; half of each defer, half wait on the worker. Memory and open
files are noted as they go. Scheduler and api-server are played by a transport that says yes, or, with ``--refuse N``,
does not answer the start of every Nth task, as on a machine that is overloaded.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.specs import PoolSpec
from airflow_qarnot_pool.local import LocalQarnot
from tools import doc_block
from tools.airflow_stack import clean_environment

ROOT = Path(__file__).resolve().parent.parent
DAGS = ROOT / "tests" / "distributed" / "growth_dags"
KINDS = ("ours", "plain")
#: Airflow tasks between two samples, and share of the samples that belong to the warm-up.
EVERY, WARM_UP = 5, 0.2
MB = 1 << 20
#: Modules that every Airflow task imports.
IMPORTED = (
    "airflow.dag_processing.dagbag",
    "airflow.sdk.execution_time.task_runner",
    "airflow_qarnot_pool.hooks.qarnot",
    "airflow_qarnot_pool.operators.task",
)


def run_tasks(kind: str, count: int, refuse: int) -> Iterator[dict[str, float]]:
    """Be a process of a worker's pool."""
    import httpx
    import psutil  # type: ignore[import-untyped]
    from airflow.executors.workloads.base import BundleInfo
    from airflow.executors.workloads.task import TaskInstanceDTO
    from airflow.sdk.api.client import Client, noop_handler
    from airflow.sdk.execution_time.supervisor import supervise_task

    for name in IMPORTED:
        importlib.import_module(name)
    current: dict[str, Any] = {}

    def answer(request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/run"):
            return noop_handler(request)
        if refuse and current["number"] % refuse == 0:
            raise httpx.ReadTimeout("the api-server does not answer", request=request)
        now = datetime.now(UTC).isoformat()
        run = {"dag_id": kind, "run_id": current["run_id"], "run_type": "manual", "consumed_asset_events": []}
        run |= {"logical_date": now, "start_date": now, "run_after": now, "state": "running"}
        run |= dict.fromkeys(("data_interval_start", "data_interval_end", "end_date", "partition_key"))
        return httpx.Response(200, json={"dag_run": run, "max_tries": 0, "should_retry": False})

    process = psutil.Process()
    ended: dict[str, int] = {}
    for number in range(1, count + 1):
        current |= {"number": number, "run_id": f"run-{number}"}
        instance = TaskInstanceDTO(
            id=uuid.uuid4(),
            dag_version_id=uuid.uuid4(),
            task_id="deferred" if number % 2 else "on_worker",
            dag_id=kind,
            run_id=current["run_id"],
            try_number=1,
            map_index=-1,
            pool_slots=1,
            queue="default",
            priority_weight=1,
        )
        client = Client(base_url=None, dry_run=True, token="", transport=httpx.MockTransport(answer))
        try:
            status = supervise_task(
                ti=instance,
                bundle_info=BundleInfo(name="dags-folder"),
                dag_rel_path="growth.py",
                token="",
                client=client,
                log_path=f"{kind}/{number}.log",
            )
            how = f"exit {status}"
        # As Celery does: the process goes on, whatever becomes of a task.
        except Exception as error:
            how = type(error).__name__
        client.close()
        ended[how] = ended.get(how, 0) + 1
        if number % EVERY == 0:
            memory, files = process.memory_full_info().uss / MB, process.num_fds()
            yield {"tasks": number, "memory": memory, "files": files, **ended}


def per_thousand(samples: list[dict[str, float]], what: str) -> float:
    """Growth per 1,000 Airflow tasks: the median of the slopes between any two samples, whatever a single one says."""
    points = [(one["tasks"], one[what]) for one in samples]
    slopes = [(then - now) / (later - at) for (at, now), (later, then) in itertools.combinations(points, 2)]
    return 1000 * statistics.median(slopes)


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """The result, as Markdown."""
    lines = [
        "| Airflow tasks | run | how they ended | memory first [MB] | last [MB] | per 1,000 Airflow tasks [MB] "
        "| open files first | last | most | per 1,000 |",
        "|---|--:|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for kind, samples in found.items():
        settled = samples[int(WARM_UP * len(samples)) :]
        first, last = settled[0], settled[-1]
        ends = ", ".join(
            f"{value} {key}" for key, value in last.items() if key not in ("tasks", "memory", "files")
        )
        lines.append(
            f"| {kind} | {last['tasks']} | {ends} | {first['memory']:.1f} | {last['memory']:.1f} "
            f"| {per_thousand(settled, 'memory'):+.1f} | {first['files']} | {last['files']} "
            f"| {max(one['files'] for one in settled)} | {per_thousand(settled, 'files'):+.1f} |"
        )
    return "\n".join(lines)


def samples(child: subprocess.Popen[bytes], path: Path) -> list[dict[str, float]]:
    """Return the samples of a child after its end."""
    child.wait()
    lines = path.with_suffix(".jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines if line.startswith('{"tasks"')]
    if child.returncode or len(found) < 5:
        sys.exit(f"Too little was measured:\n{path.with_suffix('.err').read_text()[-3000:]}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=200, help="Airflow tasks of each kind")
    parser.add_argument("--refuse", type=int, default=0, metavar="N", help="every Nth start is not answered")
    parser.add_argument("--report", type=Path, help="the document with a place for the table")
    parser.add_argument("--place", default="growth", help="the name of that place")
    parser.add_argument("--be", choices=KINDS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.be:
        for sample in run_tasks(given.be, given.tasks, given.refuse):
            print(json.dumps(sample), flush=True)
        return 0
    with (
        tempfile.TemporaryDirectory(prefix="worker-growth-") as home,
        LocalQarnot(boot_seconds=0.1) as qarnot,
    ):
        qarnot.set_account(maxTask=None)
        with QarnotClient(qarnot.url, qarnot.token) as client:
            pool = str(client.pools.create(PoolSpec(name="growth", instance_count=2, slots_per_node=4)))
        environment = {
            **clean_environment(),
            "AIRFLOW_HOME": home,
            "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__WORKERS__EXECUTION_API_RETRIES": "1",
            "AIRFLOW_CONN_QARNOT_DEFAULT": qarnot.airflow_connection(namespace="growth"),
            "GROWTH_POOL": pool,
        }
        command = [sys.executable, "-W", "ignore", "-m", "tools.worker_growth", *sys.argv[1:], "--be"]
        children: dict[str, subprocess.Popen[bytes]] = {}
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        try:
            for kind in KINDS:
                with Path(home, f"{kind}.jsonl").open("w") as out, Path(home, f"{kind}.err").open("w") as err:
                    children[kind] = subprocess.Popen(
                        [*command, kind], cwd=ROOT, env=environment, stdout=out, stderr=err
                    )
            found = {kind: samples(child, Path(home, kind)) for kind, child in children.items()}
        finally:
            for child in children.values():
                # They would hand SIGTERM on to the Airflow task.
                child.kill()
                child.wait()
    print(text := table(found))
    if given.report:
        doc_block.write(given.report, given.place, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
