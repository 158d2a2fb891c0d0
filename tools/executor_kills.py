"""``python -m tools.executor_kills --kills 100 --seed 7``: schedulers killed before and after they submit to Qarnot.

Two real schedulers on PostgreSQL run tasks with ``retries=0`` by QarnotExecutor on a local Qarnot. For each DAG run one
of them gets SIGKILL: half of the times between Airflow's commit of ``queued`` and the request that creates the Qarnot
tasks, and half of the times up to some seconds after the response. It is restarted, as systemd would. The last line is
``kills before B, after A, twice 0, lost 0, stuck 0, left on 0``:

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
import time
from pathlib import Path

from tests.stack import moments
from tests.stack.executor_world import Account, Deployment
from tools.airflow_stack import StackError

#: Seconds without any progress of a run, after which it is stuck.
PATIENCE = 180.0


def run(deployment: Deployment, number: int, moment: str, seconds: float, tasks: int) -> Account:
    """Kill a scheduler at *moment* of a DAG run, and return what became of the run."""
    run_id = f"run-{number}"
    file = deployment.moments / moment
    file.write_text(str(seconds))
    deployment.start("counted", run_id, count=tasks, seconds=1)
    is_ended = True
    try:
        deployment.wait_end("counted", run_id, PATIENCE)
        # The kill may come after the end of the run.
        deployment.airflow.wait_for(lambda: not file.exists(), what="the kill")
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
    parser.add_argument("--tasks", type=int, default=3, help="tasks of each DAG run")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    luck = random.Random(options.seed)
    plan = [(moment, 0.0) for moment in (luck.choice(moments.BEFORE) for _ in range(options.kills))]
    plan += [(moments.SENT, luck.choice((0.0, luck.uniform(0, 8)))) for _ in range(options.kills)]
    luck.shuffle(plan)
    total, counts = Account(0, 0, 0, 0), {True: 0, False: 0}
    with Deployment.started(Path(tempfile.mkdtemp(prefix="executor-kills-")), schedulers=2) as deployment:
        for number, (moment, seconds) in enumerate(plan):
            began = time.monotonic()
            account = run(deployment, number, moment, seconds, options.tasks)
            counts[moment in moments.BEFORE] += 1
            total += account
            took = time.monotonic() - began
            print(f"{number + 1:4} {moment:8} +{seconds:.1f} s: {took:5.1f} s {account}", flush=True)
            if any(account):
                print(deployment.states("counted", f"run-{number}"), deployment.notes(f"run-{number}"))
        total += Account(0, 0, 0, left_on(deployment))
    print(
        f"kills before {counts[True]}, after {counts[False]}, twice {total.twice}, lost {total.lost}, "
        f"stuck {total.stuck}, left on {total.left_on}"
    )
    sys.exit(1 if any(total) else 0)


if __name__ == "__main__":
    main()
