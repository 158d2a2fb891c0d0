"""What the tests with a real Airflow look at: DAG runs, and what they have on a local Qarnot."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.models import Pool, Task
from airflow_qarnot_pool.local import LocalQarnot
from tests.fake_s3 import S3Server
from tests.stack.database import Database
from tests.statsd import Statsd
from tools.airflow_stack import AirflowStack, StackError, TaskProcesses

T = TypeVar("T")

#: Seconds with the machine in which no task of any run gets on: only a test that fails waits so long.
PATIENCE = 120.0
LIVE = {"FullyExecuting", "PartiallyExecuting"}


def wait(
    airflow: AirflowStack, database: Database, look: Callable[[], T], what: str, interval: float = 0.3
) -> T:
    """Wait for *look* to say something true, for as long as any run gets on."""
    try:
        return airflow.wait_for(
            look, timeout=PATIENCE, what=what, interval=interval, progress=database.progress
        )
    except StackError as error:
        raise AssertionError(str(error)) from None


class Lane:
    """A local Qarnot and the connection that leads to it."""

    def __init__(self, conn_id: str, qarnot: LocalQarnot) -> None:
        self.conn_id = conn_id
        self.qarnot = qarnot
        self._lock = threading.Lock()
        self._rules: list[dict[str, Any]] = []

    @contextmanager
    def fault(self, **rule: Any) -> Iterator[None]:
        """A fault for the time of the block. Rules of several tests go together if they have no ``times``."""
        with self._lock:
            self._rules.append(rule)
            self.qarnot.faults(self._rules)
        try:
            yield
        finally:
            with self._lock:
                self._rules.remove(rule)
                self.qarnot.faults(self._rules)

    def requests(self, method: str, path: str, since: float = 0.0) -> list[dict[str, Any]]:
        """Requests in the log whose path matches all of *path*."""
        return [
            one
            for one in self.qarnot.requests()
            if one["method"] == method and one["at"] >= since and re.fullmatch(path, one["path"])
        ]


@dataclass
class Run:
    """A DAG run and what it has on its local Qarnot."""

    airflow: AirflowStack
    database: Database
    lane: Lane
    dag_id: str
    run_id: str
    folder: Path
    halts: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._client = QarnotClient(self.lane.qarnot.url, self.lane.qarnot.token)
        self._gate: int | None = os.open(self.folder / "gate", os.O_CREAT | os.O_RDWR)
        fcntl.flock(self._gate, fcntl.LOCK_EX)

    @property
    def conf(self) -> dict[str, Any]:
        halts = {moment: str(file) for moment, file in self.halts.items()}
        return {"gate": str(self.folder / "gate"), "conn": self.lane.conn_id, "halts": halts}

    def again(self) -> None:
        """Start the DAG run: also once more, when it was deleted."""
        self.airflow.trigger(self.dag_id, self.conf, self.run_id)

    def open_gate(self) -> None:
        """Let the Qarnot tasks of this run come to their end."""
        if self._gate is not None:
            os.close(self._gate)
            self._gate = None

    # --- Qarnot's side

    def tasks(self) -> list[Task]:
        """Every Qarnot task that was ever made for this run (but warm-ups), oldest first."""
        return sorted(self._client.tasks.list(tags=[self.run_id]), key=lambda one: str(one.creation_date))

    def pools(self) -> list[Pool]:
        """Every pool that was ever made for this run, oldest first."""
        return sorted(self._client.pools.list(tags=[self.run_id]), key=lambda one: str(one.creation_date))

    def wait_tasks(self, *states: str) -> list[Task]:
        """Wait until there are Qarnot tasks in exactly these states; ``live`` is any in which it runs."""
        return self._wait_all(self.tasks, states)

    def wait_pools(self, *states: str) -> list[Pool]:
        """Wait until there are pools in exactly these states."""
        return self._wait_all(self.pools, states)

    def wait_all_pools(self, state: str) -> list[Pool]:
        """Wait until all pools that tries of the setup have made are in *state*. There is at least one."""
        return self.wait(
            lambda: found if (found := self.pools()) and {one.state for one in found} == {state} else [],
            f"all pools to be {state}",
        )

    def _wait_all(self, look: Callable[[], list[Any]], states: tuple[str, ...]) -> list[Any]:
        wanted = sorted(states)

        def found() -> list[Any] | None:
            seen = look()
            now = sorted("live" if one.state in LIVE and "live" in wanted else one.state for one in seen)
            return seen if now == wanted else None

        return self.wait(lambda: found() or (not wanted and not look()), f"{wanted} on Qarnot")

    def stdout(self, task: Task) -> str:
        """What the first instance of *task* wrote."""
        return self._client.tasks.stdout(task.uuid, 0)

    def aborts(self, task: Task) -> int:
        """How often somebody asked Qarnot to abort *task*."""
        return len(self.lane.requests("POST", f"/tasks/{task.uuid}/abort"))

    # --- Airflow's side

    def wait(self, look: Callable[[], T], what: str, *, interval: float = 0.3) -> T:
        """Wait for *look* to say something true, for as long as any run gets on."""
        return wait(self.airflow, self.database, look, f"{what} ({self})", interval)

    def triggerer(self, task: str = "work") -> str | None:
        """The triggerer that has the trigger of a deferred task, or None."""
        name: str | None = self.instance(task)["triggerer"]
        return name

    def instance(self, task_id: str = "work", map_index: int = -1) -> dict[str, Any]:
        return self.database.instance(self.dag_id, self.run_id, task_id, map_index)

    def instances(self) -> list[dict[str, Any]]:
        return self.database.instances(self.dag_id, self.run_id)

    def wait_asked(self, task: Task) -> None:
        """Wait until somebody has asked for *task* by its uuid: a worker that waits does."""
        self.wait(lambda: self.lane.requests("GET", f"/tasks/{task.uuid}"), "the wait on the worker")

    def wait_state(self, *states: str, task: str = "work", map_index: int = -1, tries: int = 0) -> None:
        """Wait for a state of an Airflow task, in try *tries* or a later one."""

        def reached() -> bool:
            # Mapped ones are there once Airflow has expanded the task.
            return any(
                one["state"] in states and (one["try_number"] or 0) >= tries
                for one in self.instances()
                if (one["task_id"], one["map_index"]) == (task, map_index)
            )

        self.wait(reached, f"{task} to be {' or '.join(states)}")

    def wait_end(self) -> str:
        """Wait for the end of the DAG run; its state."""
        return str(self.wait(lambda: self.database.end_state(self.dag_id, self.run_id), "the end of the run"))

    def processes(self, task: str = "work", map_index: int = -1) -> TaskProcesses:
        """The processes of an Airflow task that runs now."""

        def running() -> TaskProcesses | None:
            one = self.instance(task, map_index)
            if one["state"] != "running" or not one["pid"]:
                return None
            with contextlib.suppress(psutil.NoSuchProcess):
                return TaskProcesses(worker=psutil.Process(one["pid"]).ppid(), task=one["pid"])
            return None

        return self.wait(running, f"{task} to run")

    def kill(self, *pids: int) -> None:
        """SIGKILL, and wait until they are gone."""
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.wait(lambda: not any(_lives(pid) for pid in pids), f"{pids} to be gone")

    def trigger_logs(self, task: str = "work", map_index: int = -1) -> dict[str, str]:
        """What each triggerer said of a task: text by file name (which ends with the triggerer's job)."""
        return self._logs("*.trigger.*.log", task, map_index)

    def worker_logs(self, task: str = "work", map_index: int = -1) -> dict[str, str]:
        """What the tries said on their workers, by file name."""
        return self._logs("attempt=?.log", task, map_index)

    def _logs(self, files: str, task: str, map_index: int = -1) -> dict[str, str]:
        folder = self.airflow.home / "logs" / f"dag_id={self.dag_id}" / f"run_id={self.run_id}"
        folder = folder / f"task_id={task}"
        folder = folder / f"map_index={map_index}" if map_index >= 0 else folder
        return {file.name: file.read_text(errors="replace") for file in folder.glob(files)}

    def wait_taken_up(self, task: str = "work") -> None:
        """Wait until a retry has said that it uses what an earlier try made."""
        self.wait(
            lambda: any(
                "made by an earlier try" in text for text in self._logs("attempt=*.log", task).values()
            ),
            f"{task} to be taken up by a retry",
        )

    def wait_trigger_log(self, words: str, task: str = "work", map_index: int = -1) -> None:
        """Wait until a trigger has logged *words* (a regular expression)."""
        self.wait(
            lambda: any(
                re.search(words, text)
                for text in (*self.trigger_logs(task, map_index).values(), *self._late_lines(task))
            ),
            f"the trigger of {task} to log {words!r}",
        )

    def _late_lines(self, task: str) -> Iterator[str]:
        """Yield what triggers of a task have logged after their end.

        Airflow gives ``on_kill`` about a second. What a trigger logs later, as on a busy machine, is in the log of the
        triggerer.
        """
        for log in self.airflow.logs.glob("triggerer*.log"):
            for line in log.read_text(errors="replace").splitlines():
                if f" run_id={self.run_id} " in line and f" task_id={task} " in line:
                    yield line

    def wait_watched(self, task: str = "work", map_index: int = -1) -> None:
        """Wait until a trigger has seen the object run, so that a kill from now on meets the trigger."""
        self.wait_trigger_log(
            " is (FullyExecuting|PartiallyExecuting|Submitted|FullyDispatched)", task, map_index
        )

    def mark(self, state: str, task: str = "work", map_index: int = -1) -> None:
        self.airflow.mark(self.dag_id, self.run_id, task, state, map_index)

    def clear(self, *tasks: str | tuple[str, int]) -> None:
        self.airflow.clear(self.dag_id, self.run_id, tasks or ["work"])

    def mark_run(self, state: str) -> None:
        self.airflow.mark_run(self.dag_id, self.run_id, state)

    # --- for people

    def __str__(self) -> str:
        return f"{self.dag_id} {self.run_id}"

    def story(self) -> str:
        """What there is to know when a test failed."""
        lines = [f"{self}: {self.database.run_state(self.dag_id, self.run_id)}"]
        for one in self.instances():
            lines.append(f"  {one['task_id']}[{one['map_index']}] {one['state']}, try {one['try_number']}")
            log = self.airflow.task_log(self.dag_id, self.run_id, one["task_id"], one["map_index"], 12)
            lines += [f"    {line}" for line in log.splitlines()]
        for kind, found in (("pool", self.pools()), ("task", self.tasks())):
            lines += [f"  Qarnot {kind} {one.uuid} {one.shortname} {one.state}" for one in found]
        return "\n".join(lines)


class World:
    """The one deployment of the session, and its local Qarnots."""

    def __init__(
        self,
        airflow: AirflowStack,
        lanes: dict[str, Lane],
        folder: Path,
        database: Database,
        statsd: Statsd,
        files: S3Server,
    ) -> None:
        self.airflow = airflow
        self.statsd = statsd
        self.files = files
        self.database = database
        self.lanes = lanes
        self._folder = folder
        self._mine = threading.local()

    def run(self, dag_id: str, run_id: str, lane: str = "plain", halt: str | None = None) -> Run:
        """Start a run of a DAG of ``dags/shapes.py``; its Qarnot tasks stay until :meth:`Run.open_gate`."""
        folder = self._folder / run_id
        folder.mkdir()
        halts = {halt: folder / "halt"} if halt else {}
        run = Run(self.airflow, self.database, self.lanes[lane], dag_id, run_id, folder, halts)
        run.again()
        self._mine.runs = [*getattr(self._mine, "runs", []), run]
        return run

    def wait(self, look: Callable[[], T], what: str, *, interval: float = 0.3) -> T:
        """Wait for *look* to say something true, for as long as any run gets on."""
        return wait(self.airflow, self.database, look, what, interval)

    def stories(self) -> str:
        """The stories of all runs that this thread has started since it was told to forget."""
        told = []
        for run in getattr(self._mine, "runs", []):
            try:
                told.append(run.story())
            except Exception as error:
                told.append(f"{run}: {error}")
        return "\n".join(told)

    def forget(self) -> None:
        """A new test begins in this thread."""
        self._mine.runs = []


def _lives(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def stall(seconds: float) -> None:
    """Let time pass: for what is about time itself, never for waiting until something has happened."""
    time.sleep(seconds)
