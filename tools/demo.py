"""``make demo``: a local Qarnot, a real Airflow, and one warm pool for twelve tasks.

Shows the progress, then how long each task waited, how soon its end was seen, and the benefit of the pool. The exit
status is 0 only if everything succeeded once, at least four tasks ran at the same time, and the pool is closed.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.errors import QarnotError
from airflow_qarnot_pool.api.models import Pool, Task
from airflow_qarnot_pool.local import LocalQarnot
from tools.airflow_stack import AirflowStack, Endpoint, StackError

ROOT = Path(__file__).resolve().parent.parent
DAG_ID = "qarnot_warm_pool"
TASKS, OVERLAP = 12, 4
CHART_WIDTH = 66
#: Seconds before the end of a Qarnot task in which a worker that waits for it has polled it.
POLLED_LATELY = 2.0
#: Seconds after which a DAG run that has not ended is a failure.
RUN_LIMIT = 300.0


@dataclass
class Sighting:
    """One Qarnot task as it was observed, in seconds since the start of the demo."""

    name: str
    state: str
    submitted: float
    node: int | None = None
    started: float | None = None
    ended: float | None = None

    @property
    def waited(self) -> float:
        return (self.started if self.started is not None else self.submitted) - self.submitted

    @property
    def ran(self) -> float:
        return (self.ended or 0.0) - (self.started or 0.0) if self.ended and self.started else 0.0


@dataclass
class Story:
    """Observations of a DAG run on Qarnot."""

    tasks: dict[str, Sighting] = field(default_factory=dict)
    pools: dict[str, Pool] = field(default_factory=dict)
    created: float | None = None
    ready: float | None = None
    closed: float | None = None
    node_seconds: float = 0.0
    busy_seconds: float = 0.0
    overlap: int = 0

    def observe(self, now: float, pools: list[Pool], tasks: list[Task], nodes: list[dict[str, Any]]) -> None:
        """Record one poll of everything."""
        self.pools = {pool.uuid: pool for pool in pools}
        if pools and self.created is None:
            self.created = now
        if self.ready is None and any(pool.state == "FullyExecuting" for pool in pools):
            self.ready = now
        if self.closed is None and pools and all(pool.state == "Closed" for pool in pools):
            self.closed = now
        running = {one["task"]: int(node["number"]) + 1 for node in nodes for one in node["running"]}
        self.overlap = max(self.overlap, len(running))
        for task in tasks:
            seen = self.tasks.setdefault(task.uuid, Sighting(airflow_name(task), task.state, now))
            seen.state = task.state
            if task.uuid in running and seen.started is None:
                seen.started, seen.node = now, running[task.uuid]
            if task.end_date is not None and seen.ended is None:
                seen.ended = now

    def line(self) -> tuple[str, ...]:
        """The columns of a progress line."""
        pool = next(iter(self.pools.values()), None)
        if pool is None:
            return ("no pool yet", "", "", "", "")
        waiting = sum(one.started is None and one.ended is None for one in self.tasks.values())
        running = sum(one.started is not None and one.ended is None for one in self.tasks.values())
        done = sum(one.ended is not None for one in self.tasks.values())
        slots = f"{pool.ready_slots} of {pool.instance_count}"
        return (pool.state, slots, str(waiting), str(running), f"{done} of {TASKS}")

    def faults(self) -> list[str]:
        """Return all deviations from a good run."""
        found = []
        if len(self.pools) != 1:
            found.append(f"there were {len(self.pools)} pools instead of one")
        found += [
            f"pool {pool.uuid} is {pool.state}" for pool in self.pools.values() if pool.state != "Closed"
        ]
        found += [f"{one.name} ended in {one.state}" for one in self.tasks.values() if one.state != "Success"]
        found += [
            f"{name} ran {times} times"
            for name, times in Counter(one.name for one in self.tasks.values()).items()
            if times > 1
        ]
        if len(self.tasks) != TASKS:
            found.append(f"there were {len(self.tasks)} Qarnot tasks instead of {TASKS}")
        if self.overlap < OVERLAP:
            found.append(f"only {self.overlap} tasks ran at the same time, not {OVERLAP}")
        return found


def airflow_name(task: Task) -> str:
    """Return the name of the Airflow task instance of a Qarnot task."""
    return f"{task.labels.get('airflow.task_id')}[{task.labels.get('airflow.map_index')}]"


@dataclass(frozen=True)
class Ending:
    """The seconds that follow the end of a Qarnot task, one part after the other.

    :param seen: until the provider saw the end.
    :param reported: until Airflow had the result. None if it is not known.
    :param scheduled: until Airflow started the next task. Only the last task of a stage has one.
    :param started: until that task was submitted to Qarnot.
    """

    seen: float
    reported: float | None = None
    scheduled: float | None = None
    started: float | None = None

    @property
    def next_task(self) -> float | None:
        """The sum, if the next stage has started."""
        parts = (self.seen, self.reported, self.scheduled, self.started)
        return None if None in parts else sum(part or 0.0 for part in parts)


def endings(
    tasks: list[Task], requests: list[dict[str, Any]], instances: list[dict[str, Any]]
) -> dict[str, Ending]:
    """Return what followed the end of each Qarnot task, by the name of its Airflow task.

    :param requests: the request log of the local Qarnot.
    :param instances: the task instances of the DAG run.
    """
    starts = {_instance_name(one): _seconds(one["start_date"]) for one in instances}
    ends = {_instance_name(one): _seconds(one["end_date"]) for one in instances}
    found: dict[str, Ending] = {}
    stages: dict[str, list[Task]] = {}
    for task in tasks:
        if task.creation_date is None or task.end_date is None:
            continue
        stages.setdefault(str(task.labels.get("airflow.task_id")), []).append(task)
        name, ended = airflow_name(task), task.end_date.timestamp()
        seen = _seen(task.uuid, ended, requests)
        over = ends.get(name)
        found[name] = Ending(seen, None if over is None else over - ended - seen)
    in_order = sorted(stages.values(), key=lambda stage: min(map(_created, stage)))
    for stage, following in pairwise(in_order):
        last = max(map(airflow_name, stage), key=lambda name: ends.get(name) or 0.0)
        first = min(following, key=_created)
        over, start = ends.get(last), starts.get(airflow_name(first))
        if over is not None and start is not None:
            found[last] = replace(found[last], scheduled=start - over, started=_created(first) - start)
    return found


def _instance_name(instance: dict[str, Any]) -> str:
    return f"{instance['task_id']}[{instance['map_index']}]"


def _created(task: Task) -> float:
    return task.creation_date.timestamp() if task.creation_date else 0.0


def _seconds(moment: str | None) -> float | None:
    return datetime.fromisoformat(moment).timestamp() if moment else None


def _seen(uuid: str, ended: float, requests: list[dict[str, Any]]) -> float:
    """Return the seconds from the end of a Qarnot task until a poll showed it."""
    polls = [one["at"] for one in requests if one["method"] == "GET" and one["path"] == f"/tasks/{uuid}"]
    if not any(ended - POLLED_LATELY <= at <= ended for at in polls):
        # The triggerer waits for it, with one search for all.
        polls = [one["at"] for one in requests if one["method"] == "POST" and one["path"] == "/tasks/search"]
    # A request that came just before the end is answered after it, if no other follows.
    return min((at - ended for at in polls if at >= ended), default=0.0)


class Demo:
    def __init__(self, home: Path, boot_seconds: float, work_seconds: float, stay: bool = False) -> None:
        self.home = home
        self.boot_seconds = boot_seconds
        self.work_seconds = work_seconds
        self.stay = stay
        self.story = Story()
        self.endings: dict[str, Ending] = {}
        self._began = time.monotonic()

    @property
    def now(self) -> float:
        return time.monotonic() - self._began

    def say(self, text: str) -> None:
        print(f"{self.now:7.1f} s  {text}", flush=True)

    def run(self) -> bool:
        """Run it all; whether everything was as it must be."""
        print(f"\n{TASKS} tasks in three stages on one warm pool: example_dags/{DAG_ID}.py\n", flush=True)
        self.say(f"A local Qarnot starts; its nodes boot in {self.boot_seconds:g} s")
        with LocalQarnot(boot_seconds=self.boot_seconds, close_seconds=1.0) as qarnot:
            self.say(f"Airflow starts (api-server, scheduler, dag-processor, triggerer) in {self.home}")
            airflow = AirflowStack(
                self.home,
                ROOT / "example_dags",
                qarnot=Endpoint(qarnot.url, qarnot.token, qarnot.storage_url),
                env={"AIRFLOW__CORE__PARALLELISM": "8"},
                grace=1.0,
            )
            with airflow, QarnotClient(qarnot.url, qarnot.token) as client, quiet_end():
                self.say(f"Airflow is ready: {airflow.url} (no login; up for as long as this runs)")
                faults = self._watch(airflow, qarnot, client)
                self._report()
                if self.stay:
                    print(f"\n  Airflow stays up at {airflow.url} until Ctrl-C.", flush=True)
                    with contextlib.suppress(KeyboardInterrupt):
                        signal.pause()
                self.say("Airflow and the local Qarnot stop")
        if faults:
            print("\nThis is not as it must be:", *faults, sep="\n  - ")
        return not faults

    def _watch(self, airflow: AirflowStack, qarnot: LocalQarnot, client: QarnotClient) -> list[str]:
        """Run the DAG to its end; what went wrong, as sentences."""
        run_id = airflow.trigger(DAG_ID, {"seconds": self.work_seconds})
        self.say(f"DAG run {run_id} begins\n")
        columns = "{:<20}{:>10}{:>10}{:>10}{:>12}"
        print(" " * 11 + columns.format("pool", "slots", "waiting", "running", "done"))
        shown: tuple[str, ...] = ()
        state, asked, limit = "queued", 0.0, self.now + RUN_LIMIT
        while state not in ("success", "failed"):
            self._look(qarnot, client)
            if (line := self.story.line()) != shown:
                shown = line
                self.say(columns.format(*line).rstrip())
            if self.now - asked > 1:
                state, asked = airflow.run_state(DAG_ID, run_id), self.now
            airflow.check_alive("the end of the DAG run")
            if self.now > limit:
                break
            time.sleep(0.2)
        self._look(qarnot, client)
        print()
        self.say(f"The DAG run is over: {state}")
        with contextlib.suppress(QarnotError):
            self.endings = endings(
                client.tasks.list(), qarnot.requests(), airflow.task_instances(DAG_ID, run_id)
            )
        faults = self.story.faults()
        if nodes := qarnot.nodes():
            faults.append(f"{len(nodes)} nodes are still up")
        return faults + self._airflow_faults(airflow, run_id, state)

    def _look(self, qarnot: LocalQarnot, client: QarnotClient) -> None:
        # Tasks after nodes: one that a node runs is then never missing from the list.
        nodes, pools = qarnot.nodes(), client.pools.list()
        self.story.observe(self.now, pools, client.tasks.list(), nodes)
        meters = [meter for uuid, meter in qarnot.get_account()["pools"].items() if uuid in self.story.pools]
        self.story.node_seconds = sum(meter["nodeSeconds"] for meter in meters)
        self.story.busy_seconds = sum(meter["busyNodeSeconds"] for meter in meters)

    def _airflow_faults(self, airflow: AirflowStack, run_id: str, state: str) -> list[str]:
        faults = [] if state == "success" else [f"the DAG run is {state}"]
        bad = [one for one in airflow.task_instances(DAG_ID, run_id) if one["state"] != "success"]
        faults += [f"Airflow task {one['task_id']}[{one['map_index']}] is {one['state']}" for one in bad]
        # The first failure causes the others.
        failed = [one for one in bad if one["state"] == "failed"]
        for one in sorted(failed, key=lambda one: str(one["end_date"]))[:1]:
            faults.append(airflow.task_log(DAG_ID, run_id, one["task_id"], one["map_index"], lines=15))
        return faults

    # --- afterwards

    def _report(self) -> None:
        story, boot = self.story, self.boot_seconds
        tasks = [one for one in story.tasks.values() if one.started is not None and one.ended is not None]
        tasks.sort(key=lambda one: (one.started or 0.0, one.name))
        if not tasks or story.created is None or story.ready is None:
            return
        row = "  {:<12}{:>5}{:>11}{:>8}{:>19}{:>10}{:>10}{:>11}{:>9}{:>11}"
        print()
        print(
            row.format(
                *("task", "node", "submitted", "waited", "ran"),
                *("end seen", "reported", "scheduled", "started", "next task"),
            )
        )
        endings = [self.endings.get(one.name, Ending(0.0)) for one in tasks]
        for one, ending in zip(tasks, endings, strict=True):
            after = (ending.seen, ending.reported, ending.scheduled, ending.started, ending.next_task)
            print(
                row.format(
                    one.name,
                    one.node,
                    f"{one.submitted:.1f} s",
                    f"{one.waited:.1f} s",
                    f"{one.started:.1f} - {one.ended:.1f} s",
                    *("" if seconds is None else f"{seconds:.1f} s" for seconds in after),
                ).rstrip()
            )
        waited = sum(one.waited for one in tasks)
        airflow = sum((one.scheduled or 0.0) + (one.started or 0.0) for one in endings)
        print(
            "\n"
            "  waited     for a free node.\n"
            "  end seen   how late the provider saw that the task had ended on Qarnot.\n"
            "  reported   from then until Airflow had the result and the output.\n"
            "  scheduled  from then until Airflow started the next task, after the last one of a stage.\n"
            "  started    from then until that task was on Qarnot: Airflow starts a process and reads the DAG first.\n"
            "  next task  all four together: from the end of a task on Qarnot to the submission of the next one."
        )
        print()
        print(*self._chart(tasks), sep="\n")
        print(
            f"\n  The end of a task was seen {median(one.seen for one in endings):.1f} s later (median; at most "
            f"{max(one.seen for one in endings):.1f} s). From stage to stage it took "
            f"{sum(one.next_task or 0.0 for one in endings):.1f} s;\n"
            f"  in {airflow:.1f} s of them Airflow scheduled tasks and started their processes.\n"
            f"  {len(tasks)} tasks shared {len(story.pools)} pool; at most {story.overlap} ran at the same time.\n"
            f"  Waiting for nodes: once {story.ready - story.created:.1f} s for the pool, then {waited:.1f} s over "
            f"all tasks.\n"
            f"  With nodes of its own each task would have waited for a boot: {len(tasks)} x {boot:g} s = "
            f"{boot * len(tasks):.0f} s.\n"
            f"  The pool was up for {story.node_seconds:.0f} node-seconds, {story.busy_seconds:.0f} of them at "
            f"work; now it is closed and costs nothing."
        )

    def _chart(self, tasks: list[Sighting]) -> Iterator[str]:
        """Yield a line per node with its boot, its tasks and its idle time."""
        start, ready = self.story.created or 0.0, self.story.ready or 0.0
        end = self.story.closed or max(one.ended or 0.0 for one in tasks)
        scale = CHART_WIDTH / max(end - start, 1.0)

        def column(moment: float) -> int:
            return min(CHART_WIDTH, max(0, round((moment - start) * scale)))

        for node in sorted({one.node for one in tasks if one.node}):
            cells = ["~" if place < column(ready) else "." for place in range(CHART_WIDTH)]
            for one in tasks:
                if one.node == node and one.started is not None:
                    first = column(one.started)
                    for place in range(first, column(one.ended or one.started)):
                        cells[place] = one.name[0].upper() if place == first else one.name[0]
            yield f"  node {node}  {''.join(cells)}"
        stages = dict.fromkeys(one.name.partition("[")[0] for one in tasks)
        yield f"          {end - start:.0f} s: ~ boots, . is idle, " + ", ".join(
            f"{name[0]} {name}" for name in stages
        )


@contextlib.contextmanager
def quiet_end() -> Iterator[None]:
    """Ignore a second Ctrl-C from the end of the block on, because the clean-up must finish."""
    try:
        yield
    except KeyboardInterrupt:
        print("\nInterrupted; ending everything ...", flush=True)
        raise
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--home", type=Path, default=ROOT / ".demo", help="where Airflow and its logs live")
    parser.add_argument("--boot-seconds", type=float, default=12, help="how long a node boots")
    parser.add_argument("--work-seconds", type=float, default=5, help="how long each task works")
    parser.add_argument("--stay", action="store_true", help="leave Airflow up afterwards, until Ctrl-C")
    given = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    home: Path = given.home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Another demo runs in {home}", file=sys.stderr)
            return 2
        for old in ("airflow.db", "airflow.cfg", "logs", "component-logs"):
            path = home / old
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        demo = Demo(home, given.boot_seconds, given.work_seconds, given.stay)
        try:
            good = demo.run()
        except KeyboardInterrupt:
            print("Stopped; nothing was left behind.")
            return 130
        except (StackError, QarnotError, OSError, RuntimeError) as error:
            print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
            good = False
        if not good:
            print(f"\nLogs: {home / 'component-logs'} (Airflow's components), {home / 'logs'} (its tasks)")
    print(f"\n  {'All is well' if good else 'FAILED'}, after {demo.now:.0f} s.\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
