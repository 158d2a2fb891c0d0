"""``python -m tools.executor_kills --kills 100 --outages 10 --seed 7``: kills of schedulers, and outages beside them.

Two real schedulers on PostgreSQL run tasks with ``retries=0`` by QarnotExecutor on a local Qarnot. For each DAG run one
of them gets SIGKILL: half of the times between Airflow's commit of ``queued`` and the request that creates the Qarnot
tasks, and half of the times up to some seconds after the response. It is restarted, as systemd would.

``--outages`` is the number of further DAG runs. In each of them Qarnot, the api-server or PostgreSQL is away for some
seconds from a random moment, and a scheduler gets SIGKILL meanwhile. ``--outage-seconds`` is the longest of them.

``--interventions`` is the number of DAG runs with tasks of ten minutes that a person ends meanwhile: the run is marked
as failed, or its tasks are cleared and run again. A scheduler gets SIGKILL at about that moment.

The last line is ``kills before B, after A, outages O, interventions I, twice 0, lost 0, stuck 0, left on 0``:

- *twice*: task instances whose code has started more than once, or more than once in a try if they were cleared;
- *lost*: task instances that have failed, or have succeeded without an end of their code;
- *stuck*: task instances of runs that do not end, and cleared ones that do not run again;
- *left on*: Qarnot tasks that still run three minutes after the end of their DAG run, and nodes that are up after
  ``keep_warm``.

The exit status is 1 if one of the four is not 0. Needs what ``make test-airflow`` installs.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.stack import moments
from tests.stack.executor_world import Account, Deployment
from tools.airflow_stack import StackError

#: Seconds without any progress of a run, after which it is stuck.
PATIENCE = 180.0
DAG_ID = "counted"
SCHEDULERS = ("scheduler-1", "scheduler-2")
#: Take a part of the deployment away for some seconds.
PARTS: dict[str, Callable[[Deployment, float], None]] = {
    "Qarnot": Deployment.freeze_qarnot,
    "api-server": Deployment.restart_api_server,
    "PostgreSQL": Deployment.restart_postgres,
}


class Mishap(Protocol):
    """What happens during a DAG run."""

    @property
    def kind(self) -> str: ...

    #: Whether the tasks are to succeed.
    @property
    def succeeds(self) -> bool: ...

    def run(self, deployment: Deployment, run_id: str, tasks: int) -> None:
        """Start a DAG run of *tasks* tasks, and return after its end.

        :raises StackError: it does not end.
        """


@dataclass(frozen=True)
class Kill:
    """The scheduler that first reaches a moment is killed *seconds* later.

    :param holds: whether the tasks run until another scheduler has adopted them, or for a second.
    """

    moment: str
    seconds: float
    holds: bool
    succeeds = True

    @property
    def kind(self) -> str:
        return "before" if self.moment in moments.BEFORE else "after"

    def run(self, deployment: Deployment, run_id: str, tasks: int) -> None:
        file = deployment.moments / self.moment
        before, gate = deployment.database.schedulers(), deployment.folder / f"gate-{run_id}"
        file.write_text(str(self.seconds))
        deployment.start(DAG_ID, run_id, count=tasks, seconds=600 if self.holds else 1, gate=str(gate))
        if self.holds:
            deployment.wait_adopted(run_id, before)
            gate.touch()
        deployment.wait_end(DAG_ID, run_id, PATIENCE)
        # The kill may come after the end of the run.
        deployment.airflow.wait_for(lambda: not file.exists(), what="the kill")


@dataclass(frozen=True)
class Outage:
    """A part is away for *seconds*, from some seconds after the first tasks can be queued. A scheduler dies in it."""

    part: str
    begins: float
    seconds: float
    scheduler: str
    killed_after: float
    kind = "outages"
    succeeds = True

    def run(self, deployment: Deployment, run_id: str, tasks: int) -> None:
        deployment.start(DAG_ID, run_id, count=tasks, seconds=3)
        wait_tasks(deployment, run_id)
        time.sleep(self.begins)
        kill = threading.Timer(self.killed_after, deployment.kill_scheduler, [self.scheduler])
        kill.start()
        PARTS[self.part](deployment, self.seconds)
        kill.join()
        deployment.wait_end(DAG_ID, run_id, PATIENCE)


@dataclass(frozen=True)
class Intervention:
    """A person marks a DAG run as failed, or clears its tasks, some seconds after they can be queued.

    A scheduler dies *killed_after* seconds after *killed_first*, if that is so, or after the response of Airflow.
    """

    clears: bool
    begins: float
    scheduler: str
    killed_after: float
    killed_first: bool
    kind = "interventions"

    @property
    def succeeds(self) -> bool:
        return self.clears

    def run(self, deployment: Deployment, run_id: str, tasks: int) -> None:
        gate = deployment.folder / f"gate-{run_id}"
        deployment.start(DAG_ID, run_id, count=tasks, seconds=600, gate=str(gate))
        wait_tasks(deployment, run_id)
        time.sleep(self.begins)
        if self.killed_first:
            # Its local workers would keep its database session, and its locks with it.
            deployment.kill_scheduler(self.scheduler, with_workers=True)
            time.sleep(self.killed_after)
        if self.clears:
            deployment.airflow.clear(DAG_ID, run_id, [("work", index) for index in range(tasks)])
        else:
            deployment.airflow.mark_run(DAG_ID, run_id, "failed")
        if not self.killed_first:
            time.sleep(self.killed_after)
            deployment.kill_scheduler(self.scheduler)
        if self.clears:
            deployment.airflow.wait_for(
                lambda: all_run(deployment, run_id, tasks), what="the cleared tasks to run", timeout=PATIENCE
            )
            gate.touch()
        deployment.wait_end(DAG_ID, run_id, PATIENCE)


def wait_tasks(deployment: Deployment, run_id: str) -> None:
    """Wait until the tasks of a run can be queued. The task that decides their number would die with its scheduler."""
    deployment.airflow.wait_for(
        lambda: "work[0]" in deployment.states(DAG_ID, run_id), what="the tasks of the run"
    )


def all_run(deployment: Deployment, run_id: str, tasks: int) -> bool:
    """Return whether the code of all tasks of a run has started in the try that Airflow has."""
    deployment.database.bury_schedulers()
    starts = deployment.noted_tries(run_id, "start")
    work = [one for one in deployment.database.instances(DAG_ID, run_id) if one["task_id"] == "work"]
    return len(work) == tasks and all(
        one["state"] == "running" and starts[f"work[{one['map_index']}]", one["try_number"]] for one in work
    )


def plan(options: argparse.Namespace, luck: random.Random) -> list[Mishap]:
    """Return as many kills before the submission as after it, the outages and the interventions, in random order."""
    kills = options.kills
    mishaps: list[Mishap] = [
        Kill(luck.choice(moments.BEFORE), 0.0, holds=luck.random() < 0.5) for _ in range(kills)
    ]
    mishaps += [
        Kill(moments.SENT, luck.choice((0.0, luck.uniform(0, 8))), holds=luck.random() < 0.5)
        for _ in range(kills)
    ]
    for number in range(options.outages):
        seconds = luck.uniform(2, options.outage_seconds)
        mishaps.append(
            Outage(
                part=list(PARTS)[number % len(PARTS)],
                begins=luck.choice((0.0, luck.uniform(0, 5))),
                seconds=seconds,
                scheduler=luck.choice(SCHEDULERS),
                killed_after=luck.uniform(0, seconds),
            )
        )
    for number in range(options.interventions):
        mishaps.append(
            Intervention(
                clears=number % 2 == 0,
                # Nothing is submitted yet, or everything runs.
                begins=luck.choice((luck.uniform(0, 2), luck.uniform(2, 12))),
                scheduler=luck.choice(SCHEDULERS),
                killed_after=luck.choice((0.0, luck.uniform(0, 3))),
                killed_first=luck.random() < 0.5,
            )
        )
    luck.shuffle(mishaps)
    return mishaps


def account_of(deployment: Deployment, run_id: str, mishap: Mishap, tasks: int) -> Account:
    """Return what became of a run in which *mishap* happened."""
    is_ended = True
    try:
        mishap.run(deployment, run_id, tasks)
    except StackError as error:
        print(error)
        is_ended = False
        # Else the next runs find no slot.
        deployment.airflow.mark_run(DAG_ID, run_id, "failed")
    account = deployment.account(run_id, tasks, is_ended)
    if isinstance(mishap, Intervention):
        starts = deployment.noted_tries(run_id, "start").values()
        account = account._replace(twice=sum(times > 1 for times in starts))
    return account._replace(lost=account.lost if mishap.succeeds else 0, left_on=running(deployment))


def running(deployment: Deployment) -> int:
    """Return the number of Qarnot tasks that have not ended some time after the end of their DAG run."""
    ends = time.monotonic() + PATIENCE
    while deployment.tasks() and time.monotonic() < ends:
        deployment.airflow.check_alive()
        time.sleep(0.5)
    left = deployment.tasks()
    for task in left:
        deployment.client.tasks.abort(task.uuid)
    return len(left)


def nodes_left_on(deployment: Deployment) -> int:
    """Return the number of nodes that are up after ``keep_warm``."""
    for _ in range(4):
        deployment.qarnot.advance_clock(700)
    return sum(node["state"] == "up" for node in deployment.qarnot.nodes())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.executor_kills", description=__doc__)
    parser.add_argument(
        "--kills", type=int, default=100, help="kills before the submission, and as many after it"
    )
    parser.add_argument(
        "--outages", type=int, default=0, help="outages, in each of which a scheduler is killed"
    )
    parser.add_argument("--outage-seconds", type=float, default=10.0, help="longest time that a part is away")
    parser.add_argument(
        "--interventions", type=int, default=0, help="runs that a person ends, while a scheduler is killed"
    )
    parser.add_argument("--tasks", type=int, default=3, help="tasks of each DAG run")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    mishaps = plan(options, random.Random(options.seed))
    total, counts = Account(0, 0, 0, 0), Counter[str]()
    # Neither a scheduler nor a task looks dead because of an outage.
    threshold = str(60 + math.ceil(options.outage_seconds))
    with Deployment.started(
        Path(tempfile.mkdtemp(prefix="executor-kills-")),
        schedulers=len(SCHEDULERS),
        SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD=threshold,
        SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT=threshold,
    ) as deployment:
        for number, mishap in enumerate(mishaps):
            began, run_id = time.monotonic(), f"run-{number}"
            account = account_of(deployment, run_id, mishap, options.tasks)
            counts[mishap.kind] += 1
            total += account
            print(f"{number + 1:4} {time.monotonic() - began:5.1f} s {account} {mishap}", flush=True)
            if any(account):
                print(deployment.states(DAG_ID, run_id), deployment.notes(run_id))
        total += Account(0, 0, 0, nodes_left_on(deployment))
    kinds = (
        f"kills before {counts['before']}",
        f"after {counts['after']}",
        *(f"{kind} {counts[kind]}" for kind in ("outages", "interventions")),
    )
    zeros = f"twice {total.twice}, lost {total.lost}, stuck {total.stuck}, left on {total.left_on}"
    print(", ".join((*kinds, zeros)))
    sys.exit(1 if any(total) else 0)


if __name__ == "__main__":
    main()
