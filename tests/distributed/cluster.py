"""A distributed Airflow, its DAG runs, and the account of what became of them."""

from __future__ import annotations

import fcntl
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import requests

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.models import Task
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.ownership.identity import WARM_UP_ROLE, label
from tests.distributed.dags.spread import FAN, MANY, WORK
from tests.stack.postgres import Postgres
from tools import doc_block
from tools.airflow_stack import AirflowStack, StackError

#: Only a failure takes so long.
PATIENCE = 900.0
DAG_IDS = ("own_pool", "shared_pool", "shared_pool_too")
POOL_OVER = {"Closed", "Failure"}
#: What the log of a trigger says at the end of its ``on_kill``.
DECIDED = re.compile(r"keeps? running|Aborted ")
TASK_OVER = {"Success", "Failure", "Cancelled"}


class Run(NamedTuple):
    dag_id: str
    run_id: str


class Piece(NamedTuple):
    """A piece of work that must be done exactly once."""

    run: Run
    task_id: str
    map_index: int
    item: int | None


@dataclass
class Row:
    """What happened, and what became of the work; the last four should be 0."""

    event: str
    seconds: float
    killed: int
    restarted: int
    dag_runs: int
    airflow_tasks: int
    retries: int
    pieces: int
    aborted: int
    twice: int
    lost: int
    left_on: int
    stuck: int

    @property
    def wrong(self) -> int:
        return self.twice + self.lost + self.left_on + self.stuck


HEADINGS = (
    "what happened", "seconds", "components killed", "revived", "DAG runs", "Airflow tasks", "retries",
    "pieces of work", "aborted", "done twice", "lost", "left on", "stuck",
)  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """The account as Markdown."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---" + "|--:" * (len(HEADINGS) - 1) + "|"]
    for row in rows:
        cells = [getattr(row, one.name) for one in fields(row)]
        lines.append(
            "| " + " | ".join(f"{one:.0f}" if isinstance(one, float) else str(one) for one in cells) + " |"
        )
    return "\n".join(lines)


def updated(old: str, new: str) -> str:
    """A table with the rows of *new* in place of those of *old* about the same event: some tests may run alone."""
    rows = {line.split("|")[1]: line for line in [*old.strip().splitlines(), *new.splitlines()]}
    return "\n".join(rows.values())


class Cluster:
    """The deployment, and what the tests do to it.

    :param runs: DAG runs in the test of kills; :attr:`few` in the others.
    """

    def __init__(
        self, airflow: AirflowStack, qarnot: LocalQarnot, postgres: Postgres, folder: Path, runs: int
    ) -> None:
        self.airflow, self.qarnot, self.postgres, self.folder = airflow, qarnot, postgres, folder
        self.runs, self.few = runs, max(len(DAG_IDS), runs // 10)
        self.client = QarnotClient(qarnot.url, qarnot.token)
        self.rows: list[Row] = []
        #: The document with a place for the account.
        self.report: Path | None = None
        self.killed = 0
        self._runs: list[Run] = []

    # --- DAG runs

    def start(self, count: int, name: str, **conf: object) -> list[Run]:
        """Start so many runs, of the DAGs in turn."""
        runs = [Run(DAG_IDS[n % len(DAG_IDS)], f"{name}-{n}") for n in range(count)]
        for run in runs:
            self.eventually(lambda run=run: self._trigger(run, conf), f"{run} to be started")
        return runs

    def _trigger(self, run: Run, conf: dict[str, object]) -> bool:
        try:
            self.airflow.trigger(run.dag_id, conf, run.run_id)
        except StackError as error:
            # The answer to an earlier attempt may not have come.
            if ": 409 " not in str(error):
                raise
        return True

    def eventually(
        self, look: Callable[[], object], what: str, timeout: float = PATIENCE, every: float = 1.0
    ) -> bool:
        """Wait for *look* to say something true, whatever part of Airflow is away; False when it never does."""
        ends = time.monotonic() + timeout
        while time.monotonic() < ends:
            with suppress(StackError, requests.RequestException):
                if look():
                    return True
            self.airflow.check_alive(what)
            time.sleep(every)
        print(f"Waited {timeout:.0f} s for {what}, in vain")
        return False

    def under_way(self, runs: Sequence[Run]) -> list[Run]:
        return [run for run in runs if self.airflow.run_state(*run) not in ("success", "failed")]

    def instances(self, runs: Sequence[Run]) -> list[dict[str, Any]]:
        return [one for run in runs for one in self.airflow.task_instances(*run)]

    def deferred(self, runs: Sequence[Run]) -> list[dict[str, Any]]:
        """Task instances that wait in a triggerer now for the end of their work."""
        return [
            one
            for one in self.instances(runs)
            if one["state"] == "deferred" and one.get("triggerer_job") and one["task_id"] != "group.open_pool"
        ]

    def taken_up(self, deferred: dict[str, Any]) -> bool:
        """Whether the triggerer that a deferred task instance is given to has begun to wait for it."""
        folder = (
            self._logs(Run(deferred["dag_id"], deferred["dag_run_id"])) / f"task_id={deferred['task_id']}"
        )
        if deferred["map_index"] >= 0:
            folder /= f"map_index={deferred['map_index']}"
        return any(folder.glob(f"*.trigger.{deferred['triggerer_job']['id']}.log"))

    def given_up(self, runs: Sequence[Run]) -> int:
        """How many waits of *runs* a triggerer was told to give up, and has decided what becomes of the work."""
        logs = [
            log.read_text(errors="replace")
            for run in runs
            for log in self._logs(run).rglob("*.trigger.*.log")
        ]
        return sum("invoking on_kill" in text and DECIDED.search(text) is not None for text in logs)

    def _logs(self, run: Run) -> Path:
        return self.airflow.home / "logs" / f"dag_id={run.dag_id}" / f"run_id={run.run_id}"

    # --- mishaps

    def kill(self, component: str) -> None:
        """kill -9 of a component with all that runs in it, as when its machine is lost; it is started again."""
        for pid in self.airflow.pids(component):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.killed += 1

    def kill_while(self, under_way: Callable[[], object], seed: int, most: int) -> Counter[str]:
        """Kill components at random moments for as long as there is work."""
        dice, victims = random.Random(seed), Counter[str]()
        names = [one for one in self.airflow.components if one not in ("api-server", "dag-processor")]
        queue: list[str] = []
        while victims.total() < most:
            self._pass(dice.uniform(3, 9))
            with suppress(StackError, requests.RequestException):
                if not under_way():
                    break
            # Each gets its turn, in an order that chance tells.
            queue = queue or dice.sample(names, len(names))
            victims[queue[-1]] += 1
            self.kill(queue.pop())
        return victims

    def _pass(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            self.airflow.check_alive()
            time.sleep(min(left, 0.5))

    def away(self, seconds: float) -> None:
        """Let time pass while something is away; what ends meanwhile is started again."""
        self._pass(seconds)

    @contextmanager
    def gate(self) -> Iterator[str]:
        """A file; Qarnot tasks of runs that name it last until the block ends."""
        path = self.folder / f"gate-{time.monotonic_ns()}"
        with path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield str(path)

    # --- the account

    def account(self, event: str, runs: Sequence[Run], began: float, killed: int, revived: int) -> Row:
        """Wait for the end of everything, and count what became of the work of *runs*."""
        self.eventually(lambda: not self.under_way(runs), f"{event}: the end of all runs")
        self.eventually(lambda: not self.open_pools(), f"{event}: the pools to be closed", timeout=90)
        instances = self.instances(runs)
        tasks = [one for one in self.client.tasks.list() if self._run_of(one) in set(runs)]
        wanted = {piece for run in runs for piece in pieces(run)}
        twice, lost = judged(wanted, tasks)
        row = Row(
            event=event,
            seconds=time.monotonic() - began,
            killed=killed,
            restarted=self.airflow.revived.total() - revived,
            dag_runs=len(runs),
            airflow_tasks=len(instances),
            retries=sum(max(0, int(str(one["try_number"])) - 1) for one in instances),
            pieces=len(wanted),
            aborted=sum(one.state == "Cancelled" and not is_warm_up(one) for one in tasks),
            twice=twice,
            lost=lost,
            left_on=len(self.open_pools()) + sum(one.state not in TASK_OVER for one in tasks),
            stuck=sum(one["state"] != "success" for one in instances),
        )
        self.rows.append(row)
        if self.report:
            # At once: what comes next may not come to its end.
            doc_block.write(
                self.report, "account", updated(doc_block.read(self.report, "account"), table([row]))
            )
        return row

    def open_pools(self) -> list[str]:
        return [
            f"{one.shortname} {one.state}" for one in self.client.pools.list() if one.state not in POOL_OVER
        ]

    def _run_of(self, task: Task) -> Run:
        return Run(label(task.labels, "dag_id") or "", label(task.labels, "run_id") or "")

    def story(self, runs: Sequence[Run]) -> str:
        """What there is to know when an account is wrong."""
        lines = [f"pool {one}" for one in self.open_pools()]
        for run in runs:
            for one in self.airflow.task_instances(*run):
                if one["state"] != "success":
                    lines.append(
                        f"{run} {one['task_id']}[{one['map_index']}] {one['state']} {one['try_number']}"
                    )
                    lines.append(self.airflow.task_log(*run, one["task_id"], one["map_index"], 15))
        done = Counter(piece_of(one) for one in self.client.tasks.list() if one.state == "Success")
        lines += [f"{count} times: {piece}" for piece, count in done.items() if count > 1]
        return "\n".join(lines)


def pieces(run: Run) -> Iterator[Piece]:
    work = WORK[run.dag_id]
    if "fan" in work:
        yield from (Piece(run, "group.fan", n, None) for n in range(FAN))
    if "on_worker" in work:
        yield Piece(run, "group.on_worker", -1, None)
    if "many" in work:
        yield from (Piece(run, "group.many", -1, n) for n in range(MANY))


def waits(runs: Iterable[Run]) -> int:
    """How many Airflow tasks of *runs* wait in a triggerer for their Qarnot tasks, when all of them do."""
    return sum(FAN * ("fan" in WORK[run.dag_id]) + ("many" in WORK[run.dag_id]) for run in runs)


def judged(wanted: set[Piece], tasks: Iterable[Task]) -> tuple[int, int]:
    """How many successes are one too many, and how many pieces have none."""
    done = Counter(piece_of(one) for one in tasks if one.state == "Success" and not is_warm_up(one))
    return sum(count - 1 for count in done.values()), len(wanted - set(done))


def piece_of(task: Task) -> Piece:
    item = label(task.labels, "item")
    return Piece(
        Run(label(task.labels, "dag_id") or "", label(task.labels, "run_id") or ""),
        label(task.labels, "task_id") or "",
        int(label(task.labels, "map_index") or -1),
        None if item is None else int(item),
    )


def is_warm_up(task: Task) -> bool:
    return (label(task.labels, "role") or "").startswith(WARM_UP_ROLE)
