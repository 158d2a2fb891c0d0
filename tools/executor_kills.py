"""``python -m tools.executor_kills --kills 100 --outages 10 --seed 7``: kills of schedulers, and outages beside them.

Two real schedulers on PostgreSQL run tasks with ``retries=0`` by QarnotExecutor on a local Qarnot. For each DAG run one
of them gets SIGKILL: half of the times between Airflow's commit of ``queued`` and the request that creates the Qarnot
tasks, and half of the times up to some seconds after the response. It is restarted, as systemd would.

``--outages`` is the number of further DAG runs. In each of them Qarnot, the api-server or PostgreSQL is away for some
seconds from a random moment, and a scheduler gets SIGKILL meanwhile.

The last line is ``kills before B, after A, outages O, twice 0, lost 0, stuck 0, left on 0``:

- *twice*: task instances whose code has started more than once;
- *lost*: task instances that have failed, or have succeeded without an end of their code;
- *stuck*: task instances of runs that do not end;
- *left on*: Qarnot tasks that still run after the end of all DAG runs, and nodes that are up after ``keep_warm``.

The exit status is 1 if one of the four is not 0. Needs what ``make test-airflow`` installs.
"""

from __future__ import annotations

import argparse
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

    def run(self, deployment: Deployment, run_id: str, tasks: int) -> None:
        """Start a DAG run of *tasks* tasks, and return after its end.

        :raises StackError: it does not end.
        """


@dataclass(frozen=True)
class Kill:
    """The scheduler that first reaches a moment is killed *seconds* later."""

    moment: str
    seconds: float

    @property
    def kind(self) -> str:
        return "before" if self.moment in moments.BEFORE else "after"

    def run(self, deployment: Deployment, run_id: str, tasks: int) -> None:
        file = deployment.moments / self.moment
        file.write_text(str(self.seconds))
        deployment.start(DAG_ID, run_id, count=tasks, seconds=1)
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

    def run(self, deployment: Deployment, run_id: str, tasks: int) -> None:
        deployment.start(DAG_ID, run_id, count=tasks, seconds=3)
        # This task runs on a scheduler, and would die with it.
        deployment.airflow.wait_for(
            lambda: deployment.states(DAG_ID, run_id).get("indexes[-1]") == "success",
            what="the tasks of the run",
        )
        time.sleep(self.begins)
        kill = threading.Timer(self.killed_after, deployment.kill_scheduler, [self.scheduler])
        kill.start()
        PARTS[self.part](deployment, self.seconds)
        kill.join()
        deployment.wait_end(DAG_ID, run_id, PATIENCE)


def plan(kills: int, outages: int, luck: random.Random) -> list[Mishap]:
    """Return as many kills before the submission as after it, and the outages, in random order."""
    mishaps: list[Mishap] = [Kill(luck.choice(moments.BEFORE), 0.0) for _ in range(kills)]
    mishaps += [Kill(moments.SENT, luck.choice((0.0, luck.uniform(0, 8)))) for _ in range(kills)]
    for number in range(outages):
        seconds = luck.uniform(2, 10)
        mishaps.append(
            Outage(
                part=list(PARTS)[number % len(PARTS)],
                begins=luck.choice((0.0, luck.uniform(0, 5))),
                seconds=seconds,
                scheduler=luck.choice(("scheduler-1", "scheduler-2")),
                killed_after=luck.uniform(0, seconds),
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
    return deployment.account(run_id, tasks, is_ended)


def left_on(deployment: Deployment) -> int:
    """Return the number of Qarnot tasks and nodes that are left on."""
    ends = time.monotonic() + PATIENCE
    while deployment.tasks() and time.monotonic() < ends:
        time.sleep(1)
    tasks = len(deployment.tasks())
    for _ in range(4):
        deployment.qarnot.advance_clock(700)
    return tasks + sum(node["state"] == "up" for node in deployment.qarnot.nodes())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.executor_kills", description=__doc__)
    parser.add_argument(
        "--kills", type=int, default=100, help="kills before the submission, and as many after it"
    )
    parser.add_argument(
        "--outages", type=int, default=0, help="outages, in each of which a scheduler is killed"
    )
    parser.add_argument("--tasks", type=int, default=3, help="tasks of each DAG run")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    mishaps = plan(options.kills, options.outages, random.Random(options.seed))
    total, counts = Account(0, 0, 0, 0), Counter[str]()
    with Deployment.started(Path(tempfile.mkdtemp(prefix="executor-kills-")), schedulers=2) as deployment:
        for number, mishap in enumerate(mishaps):
            began, run_id = time.monotonic(), f"run-{number}"
            account = account_of(deployment, run_id, mishap, options.tasks)
            counts[mishap.kind] += 1
            total += account
            print(f"{number + 1:4} {time.monotonic() - began:5.1f} s {account} {mishap}", flush=True)
            if any(account):
                print(deployment.states(DAG_ID, run_id), deployment.notes(run_id))
        total += Account(0, 0, 0, left_on(deployment))
    print(
        f"kills before {counts['before']}, after {counts['after']}, outages {counts['outages']}, "
        f"twice {total.twice}, lost {total.lost}, stuck {total.stuck}, left on {total.left_on}"
    )
    sys.exit(1 if any(total) else 0)


if __name__ == "__main__":
    main()
