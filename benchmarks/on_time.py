"""Scheduled runs whose pool a companion DAG opens ahead, on a real Airflow with PostgreSQL and boots of a minute.

Each run writes the time at which its first instance starts, and this is compared with the scheduled time. The idle
node-seconds of its pool are those that are paid and not used. Then 30 seeded runs fail in different ways, and the nodes
that are up ``keep_warm`` later are counted, on the clock of the local Qarnot.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import environment
from benchmarks.report import Report, main, median, percentile

BOOT = 60.0
#: DAGs, of which the last one has no companion, and the minutes between two runs of each.
PLAN = {"dags": 9, "ahead": 8, "minutes": 3, "keep_warm": 240, "lead": 150}
FAULTS = 30
#: Maximum seconds from the scheduled time to the first line, as p90.
LATE = 10.0


@dataclass(frozen=True)
class Start:
    """A scheduled run: seconds from its time to the first line, and what its pool was paid for and did not use."""

    dag_id: str
    due: datetime
    late: float
    idle_seconds: float
    idle_euros: float


def measure(report: Report) -> None:
    """Measure the starts, and the faults."""
    write_faults(report, faults(len(_FAULTS) if report.quick else FAULTS))
    if not report.quick:
        write_starts(report, starts(report))


# --- starts


def starts(report: Report) -> list[Start]:
    """Let the DAGs run for some rounds."""
    from airflow_qarnot_pool.local import LocalQarnot
    from tests.stack.conftest import PRELOAD
    from tests.stack.postgres import Postgres
    from tools.airflow_stack import AirflowStack, Endpoint

    with ExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="on-time-")))
        qarnot = ends.enter_context(LocalQarnot(boot_seconds=BOOT, close_seconds=0.5))
        database = ends.enter_context(Postgres())
        shutil.copytree(Path(__file__).parent / "scheduled", folder / "dags")
        airflow = AirflowStack(
            folder / "airflow",
            folder / "dags",
            database=database.url,
            qarnot=Endpoint(qarnot.url, qarnot.token, qarnot.storage_url),
            namespace="on-time",
            preload=(*PRELOAD, "airflow_qarnot_pool.task_groups.ahead"),
            env={"ON_TIME": json.dumps(PLAN), "AIRFLOW__CORE__PARALLELISM": "32"},
        )
        airflow.home.mkdir()
        ends.enter_context(airflow)
        dags = [f"due{number}" for number in range(PLAN["dags"])]
        companions = [f"{dag_id}.open_ahead" for dag_id in dags[: PLAN["ahead"]]]
        for dag_id in (*dags, *companions):
            airflow.wait_dag(dag_id)
            airflow.api("PATCH", f"dags/{dag_id}", {"is_paused": False})
        begun = datetime.now(UTC)
        # The first run of a DAG may have been due before its companion could start.
        minutes = PLAN["minutes"] * (report.waiters + 1)
        for minute in range(minutes):
            time.sleep(60)
            report.say(f"{minute + 1} of {minutes} minutes")
        found = list(_starts_since(airflow, qarnot, dags, begun + timedelta(minutes=PLAN["minutes"])))
        for one in found:
            if one.late > LATE and f"{one.dag_id}.open_ahead" in companions:
                report.say(
                    f"{one.dag_id} at {one.due}: {one.late:.1f} s late. {_log_of_companion(airflow, one)}"
                )
        return found


def _log_of_companion(airflow: Any, start: Start) -> str:
    """Return the end of the log of the companion of a run."""
    dag_id, due = f"{start.dag_id}.open_ahead", start.due - timedelta(seconds=PLAN["lead"])
    for run in airflow.api("GET", f"dags/{dag_id}/dagRuns", limit=100)["dag_runs"]:
        if datetime.fromisoformat(run["run_after"]) == due:
            return str(airflow.task_log(dag_id, run["dag_run_id"], "open_pool", lines=60))
    return "It had no run."


def _starts_since(airflow: Any, qarnot: Any, dags: list[str], since: datetime) -> Iterator[Start]:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.costs.queries import cost_of_pool

    client = QarnotClient(qarnot.url, qarnot.token)
    work = [task for task in client.tasks.list() if not task.labels.get("airflow.role")]
    by_run = {(task.labels["airflow.dag_id"], task.labels["airflow.run_id"]): task for task in work}
    for dag_id in dags:
        for run in airflow.api("GET", f"dags/{dag_id}/dagRuns", limit=100)["dag_runs"]:
            due = datetime.fromisoformat(run["run_after"])
            task = by_run.get((dag_id, run["dag_run_id"]))
            if run["state"] != "success" or due < since or task is None:
                continue
            first = float(client.tasks.stdout(task.uuid, 0).split(">")[-1])
            cost = cost_of_pool(client, str(task.pool)).cost
            idle = cost.idle_node_seconds or 0.0
            price = (cost.euros or 0.0) / (cost.node_seconds or 1.0)
            yield Start(dag_id, due, first - due.timestamp(), idle, idle * price)


def write_starts(report: Report, found: list[Start]) -> None:
    """Write the table and the targets of the starts."""
    table = report.table(
        f"Two nodes that boot in {BOOT:.0f} s: from the scheduled time to the first line",
        ("", "runs", "median [s]", "p90 [s]", "longest [s]", "idle node-seconds, median", "idle EUR a run"),
    )
    ahead = [one for one in found if one.dag_id != f"due{PLAN['dags'] - 1}"]
    for title, runs in (
        ("opened ahead", ahead),
        ("opened by the run", [one for one in found if one not in ahead]),
    ):
        late = [one.late for one in runs]
        idle, euros = median([one.idle_seconds for one in runs]), median([one.idle_euros for one in runs])
        table.row(title, len(runs), median(late), percentile(late, 0.9), max(late, default=0.0), idle, euros)
        report.figure(f"{title}.p90", percentile(late, 0.9))
        report.figure(f"{title}.idle_euros", euros)
    report.target(
        "p90 from the scheduled time to the first line",
        percentile([one.late for one in ahead], 0.9),
        10,
        unit=" s",
    )


# --- faults


def faults(count: int) -> dict[str, list[tuple[int, float]]]:
    """Let *count* runs fail; by fault, the nodes that are up after ``keep_warm``, and the euros of each pool."""
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.local import LocalQarnot

    found: dict[str, list[tuple[int, float]]] = {}
    with LocalQarnot(boot_seconds=BOOT, close_seconds=1, speed=300) as qarnot:
        environment.connect_qarnot(qarnot, namespace="test", poll_interval=0.1)
        client = QarnotClient(qarnot.url, qarnot.token)
        kinds = list(_FAULTS)
        for seed in range(count):
            kind = kinds[seed % len(kinds)]
            found.setdefault(kind, []).append(_fault(client, qarnot, kind, random.Random(seed)))
    return found


def _fault(client: Any, qarnot: Any, kind: str, chance: random.Random) -> tuple[int, float]:
    from airflow_qarnot_pool.operators import open_ahead
    from tests.operators.test_on_time import KEEP_WARM, Nights, nodes_of

    name = "".join(char if char.isalnum() else "-" for char in kind)
    nights = Nights(client, f"{name}-{chance.randrange(10**9)}")
    nights.start = datetime.now(UTC) + timedelta(seconds=chance.uniform(0.5, 2))
    with ExitStack() as patches:
        for target, value in (
            ("airflow_qarnot_pool.ownership.liveness.dag_as_stored", lambda dag_id: _answer(nights.stored)),
            ("airflow_qarnot_pool.ownership.liveness.dag_run_state", lambda dag_id, run_id: "running"),
        ):
            patches.enter_context(mock.patch(target, value))
        patches.enter_context(mock.patch.object(open_ahead, "MIN_WARM_UP", timedelta(seconds=1)))
        nights.plan()
        _FAULTS[kind](nights, chance)
    pools = nights.pools()
    while any(_is_working(client, pool.uuid, nodes_of(qarnot, pool.uuid)) for pool in pools):
        time.sleep(0.1)
    qarnot.advance_clock(KEEP_WARM.total_seconds())
    up = sum(len(nodes_of(qarnot, pool.uuid)) for pool in pools)
    return up, sum(client.pools.credits(pool.uuid) for pool in pools)


def _is_working(client: Any, pool: str, nodes: list[Any]) -> bool:
    ended = all(task.state in ("Success", "Cancelled") for task in client.pools.tasks(pool))
    return not ended or any(node["running"] for node in nodes)


def _answer(stored: Any) -> Any:
    if isinstance(stored, Exception):
        raise stored
    return stored


@contextmanager
def _dying(where: str) -> Iterator[None]:
    """Let the process of the companion die when it is about to do *where*."""
    from airflow_qarnot_pool.operators.open_ahead import QarnotOpenAheadOperator

    def die(*_: Any, **__: Any) -> Any:
        raise SystemExit

    with mock.patch.object(QarnotOpenAheadOperator, where, die):
        try:
            yield
        except SystemExit:
            return


def _skips(nights: Any) -> None:
    from airflow_qarnot_pool.version_compat import AirflowSkipException

    try:
        nights.companion().resume("open_in_time")
    except AirflowSkipException:
        return
    raise AssertionError("the companion has opened a pool")


def _paused(nights: Any, chance: random.Random) -> None:
    nights.plan(is_paused=True)
    _skips(nights)


def _deleted(nights: Any, chance: random.Random) -> None:
    nights.stored = LookupError("There is no DAG")
    _skips(nights)


def _changed(nights: Any, chance: random.Random) -> None:
    nights.plan(logical_date=nights.start + timedelta(minutes=chance.randrange(1, 600)))
    _skips(nights)


def _skipped(nights: Any, chance: random.Random) -> None:
    companion, _ = nights.open_early()
    time.sleep(chance.uniform(0, 0.2))
    companion.resume("close_unclaimed")


def _dead_before_boot(nights: Any, chance: random.Random) -> None:
    with _dying("_boot"):
        nights.companion().resume("open_in_time")


def _dead_in_boot(nights: Any, chance: random.Random) -> None:
    with _dying("_wait"):
        nights.companion().resume("open_in_time")


def _dead_when_ready(nights: Any, chance: random.Random) -> None:
    nights.open_early()


def _dead_in_run(nights: Any, chance: random.Random) -> None:
    nights.open_early()
    nights.slices("nodes.open_pool", "night").execute()


def _lingers_in_vain(nights: Any, chance: random.Random) -> None:
    nights.group, nights.stored = {"linger": 1.0}, None
    nights.run("last")


def _late(nights: Any, chance: random.Random) -> None:
    nights.open_early()
    nights.start = datetime.now(UTC) - timedelta(seconds=chance.uniform(0, 60))
    try:
        nights.companion(try_number=2).execute()
    except Exception as error:
        if type(error).__name__ != "AirflowSkipException":
            raise


_FAULTS: dict[str, Callable[[Any, random.Random], None]] = {
    "DAG paused before": _paused,
    "DAG deleted before": _deleted,
    "schedule changed before": _changed,
    "paused, deleted or skipped after": _skipped,
    "Airflow dead before the boot": _dead_before_boot,
    "Airflow dead in the boot": _dead_in_boot,
    "Airflow dead when ready": _dead_when_ready,
    "Airflow dead in the run": _dead_in_run,
    "lingers in vain": _lingers_in_vain,
    "companion retried after the start": _late,
}


def write_faults(report: Report, found: dict[str, list[tuple[int, float]]]) -> None:
    """Write the table and the target of the faults."""
    table = report.table(
        "Faults: nodes that are up keep_warm (120 s) after the last work, and the cost of two nodes",
        ("", "runs", "nodes up", "EUR a run, median", "EUR a run, most"),
    )
    for kind, runs in found.items():
        euros = [cost for _, cost in runs]
        table.row(kind, len(runs), sum(up for up, _ in runs), median(euros), max(euros))
    left = sum(up for runs in found.values() for up, _ in runs)
    report.target(f"nodes up after {sum(map(len, found.values()))} faults", left, 0)


if __name__ == "__main__":
    main("on_time", __doc__, measure, waiters=3, meaning="rounds of each DAG", with_airflow=True)
