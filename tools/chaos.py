"""``make chaos SEED=7 KILLS=200``: DAG-shaped workloads whose processes are killed at random moments.

A small Airflow made for being killed: this process is scheduler and API server, the workers and the two triggerers are
children that get SIGKILL. It keeps Airflow's rules: a lost worker costs a try, a lost triggerer costs nothing, a clear
raises ``max_tries`` and takes the setup along, a cleared finished run starts anew, a failed setup means no teardown.
Each run creates a pool, runs a fan of Qarnot tasks on it and closes it, on a local Qarnot that enforces unique
shortnames or on one that does not, deferred or on the worker, with a managed pool or a fixed one.

At the end the reaper runs once, as a maintenance DAG would, and the objects of the local Qarnots are compared with
the states of this Airflow. The last line is ``kills K, runs R, duplicates 0, left on 0, lost 0``:

- *duplicate*: an instance of a Qarnot task that succeeded twice in one life of its Airflow task;
- *left on*: an open pool or an unfinished Qarnot task after the end of all runs;
- *lost*: an Airflow task that failed with tries remaining, or succeeded without its work.

``WORLD=quota`` (``lag``, ``quota+lag``, ``all``, ...) adds the conditions of :mod:`tools.chaos_worlds`. With several
combinations each gets its share of the kills and a line with the same counts; the last line counts them together.

``READINGS=strict`` (``late``, ``random-7``, ...) gives the servers another set of readings: ``tests/readings.py``.

The exit status is 1 if any of the three is not 0, and 2 if the runs did not end.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import tests.conftest  # noqa: F401  (Airflow must find its home before it is imported)

from airflow.sdk.bases.operator import ExecutorSafeguard  # isort: skip

from airflow_qarnot_pool.api import filters
from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.maintenance.reaper import ReapLimits, reap
from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.ownership.identity import namespace_tag
from tests.crash.children import Child, eventually
from tests.crash.little_airflow import DONE, DagRun, Instance, LittleAirflow
from tools.chaos_worlds import STRIKE_EVERY, World, chosen, label, seed_of

NAMESPACE = "chaos"
SERVERS = ("enforce", "free")
RUNS_AT_ONCE = 4
#: Retries of runs that must succeed whatever happens, and of those that may fail.
AMPLE, SCARCE = 40, 1
#: Seconds without a kill or an Airflow task that ends, after which the runs do not end.
PATIENCE = 900.0
POOL_OVER = ("Closed", "Failure")
TASK_OVER = ("Success", "Failure", "Cancelled")
COUNTED = ("kills", "runs", "duplicates", "left on", "lost")
OURS = filters.equal("Tags", namespace_tag(NAMESPACE))


@dataclass
class Workload:
    """Work of a DAG run, and its server."""

    server: str
    deferrable: bool
    managed: bool
    ample: bool
    items: int
    effects: Path
    #: Longest wait under a quota; None: fail at once.
    wait_for_quota: timedelta | None = None

    def operator(self, instance: Instance) -> Callable[[], Any]:
        """Makes the operator, with its templates rendered."""
        common: dict[str, Any] = {
            "task_id": instance.task_id,
            "qarnot_conn_id": self.server,
            "retries": instance.retries,
            "deferrable": self.deferrable,
        }
        if instance.task_id != "close":
            common["wait_for_quota"] = self.wait_for_quota
        pool = instance.run.create.result
        if instance.task_id == "create":
            size: dict[str, Any] = {"instance_count": 2}
            if self.managed:
                size |= {"keep_warm": timedelta(minutes=5), "wait_timeout": timedelta(seconds=60)}
            return partial(QarnotCreatePoolOperator, **size, **common)
        if instance.task_id == "close":
            return partial(QarnotClosePoolOperator, qarnot_pool=pool, **common)
        return partial(
            QarnotRunTaskOperator,
            qarnot_pool=pool,
            command=self.command(instance.map_index),
            instance_count=instances_of(instance.map_index),
            **common,
        )

    def command(self, item: int) -> str:
        """Leaves a line; every third item has an instance that fails the first time."""
        done = f"sleep 0.{item % 4}; echo {item} $INSTANCE_ID >> {self.effects}"
        if instances_of(item) == 1:
            return f"sh -c '{done}'"
        mark = f"{self.effects}-{item}-mark"
        return f"sh -c 'if test $INSTANCE_ID -eq 1 -a ! -e {mark}; then touch {mark}; exit 1; fi; {done}'"


def instances_of(item: int) -> int:
    return 3 if item % 3 == 2 else 1


class Chaos(LittleAirflow):
    """The hand that kills, and all the other mishaps."""

    def __init__(
        self,
        seed: int,
        kills: int,
        servers: dict[str, LocalQarnot],
        folder: Path,
        worlds: Sequence[World] = (),
    ) -> None:
        super().__init__(folder, seed_of(seed, worlds) if worlds else random.Random(seed))
        self.worlds = worlds
        self.folder, self.servers = folder, servers
        self.kills_wanted, self.kills, self.starts = kills, 0, 0
        #: Killed, and not seen dead yet: it may have ended a moment before.
        self.struck: set[Child] = set()
        self.workloads: dict[DagRun, Workload] = {}
        for triggerer in self.triggerers:
            self.born(triggerer.child)
        for world in worlds:
            for name, qarnot in servers.items():
                world.prepare(qarnot)
                if world.strike is not None:
                    self.after(STRIKE_EVERY, partial(self.strike_of, world, name, qarnot))

    # --- worlds

    def strike_of(self, world: World, name: str, qarnot: LocalQarnot) -> None:
        """Let a world strike for as long as there are kills to come: after that the runs must come to an end."""
        assert world.strike is not None
        if self.kills >= self.kills_wanted:
            return
        self.events[f"struck by {world.name}"] += world.strike(self, name, qarnot)
        self.after(self.random.uniform(0.5, 1.5) * STRIKE_EVERY, partial(self.strike_of, world, name, qarnot))

    def runs_on(self, server: str) -> list[DagRun]:
        """The unfinished runs on a server, in random order."""
        found = [run for run in self.runs if not run.over and self.workloads[run].server == server]
        self.random.shuffle(found)
        return found

    # --- kills

    def born(self, child: Child) -> None:
        if child not in self.workers:
            self.plan_kill(child, self.random.uniform(0.2, 2.0))
        elif self.random.random() < 0.5:
            # Most of a worker's life is short, so most kills come early.
            self.plan_kill(child, self.random.uniform(0, self.random.choice((0.03, 0.1, 0.3, 1.0))))

    def plan_kill(self, child: Child, seconds: float) -> None:
        def kill() -> None:
            if child.status is None and self.kills + len(self.struck) < self.kills_wanted:
                child.kill()
                self.struck.add(child)

        self.after(seconds, kill)

    def died(self, child: Child) -> None:
        if child in self.struck:
            self.struck.remove(child)
            self.kills += child.status == -signal.SIGKILL

    # --- runs

    def play(self) -> None:
        """Start runs until there have been enough kills, and bring all of them to their end.

        :raises TimeoutError: they do not end.
        """
        progress, ends = (-1, -1), 0.0
        while not (self.kills >= self.kills_wanted and self.idle):
            if (now := (self.kills, self.ended)) != progress:
                progress, ends = now, time.monotonic() + PATIENCE
            elif time.monotonic() > ends:
                raise TimeoutError(self.stuck())
            while self.kills < self.kills_wanted and sum(not run.over for run in self.runs) < RUNS_AT_ONCE:
                self.new_run()
            self.step()

    @property
    def ended(self) -> int:
        """Number of Airflow tasks that have ended."""
        return sum(one.state in DONE for run in self.runs for one in run.all)

    def stuck(self) -> str:
        unfinished = [
            f"{one.key}: {one.state}, try {one.try_number} of {one.max_tries + 1}"
            for run in self.runs
            if not run.over
            for one in run.all
        ]
        log = self.log.read_text(errors="replace")[-5000:]
        return "\n".join([f"No kill and no end of a task for {PATIENCE:.0f} s", *unfinished, log])

    def new_run(self) -> None:
        number, chance = len(self.runs), self.random
        workload = Workload(
            server=SERVERS[number % 2],
            deferrable=chance.random() < 0.6,
            managed=chance.random() < 0.5,
            ample=chance.random() < 0.8,
            items=chance.randint(2, 6),
            effects=self.folder / f"effects-{number}",
            wait_for_quota=timedelta(minutes=10) if any(one.name == "quota" for one in self.worlds) else None,
        )
        retries = AMPLE if workload.ample else SCARCE
        run = DagRun(f"run-{number}", workload.operator, workload.items, retries)
        self.workloads[run] = workload
        self.runs.append(run)
        self.starts += 1
        mishaps = (self.task_cleared, self.task_marked, self.triggers_moved, self.task_cancelled)
        for _ in range(chance.randint(0, 3)):
            self.after(chance.uniform(0.1, 2.0), partial(self.strike, chance.choice(mishaps), run))
        if chance.random() < 0.3:
            self.after(1.0, partial(self.run_cleared, run))

    # --- users, and other mishaps

    def strike(self, mishap: Callable[[DagRun], bool], run: DagRun) -> None:
        """Do it as soon as there is something to do it to."""
        if not run.over and not mishap(run):
            self.after(0.05, partial(self.strike, mishap, run))

    def some_work(self, run: DagRun, *states: str) -> Instance | None:
        found = [one for one in run.work if one.state in states]
        return self.random.choice(found) if found else None

    def task_cleared(self, run: DagRun) -> bool:
        """A user clears a task; Airflow takes its setup and teardown along."""
        one = self.some_work(run, "running", "deferred", "success", "up_for_retry")
        if one is None or run.create.state != "success":
            return False
        self.events["task cleared"] += 1
        for cleared in (one, run.create, run.close):
            # A finished task is not running, though its process may not have ended yet.
            self.clear(cleared, raises=cleared.state != "running" or self.random.random() < 0.9)
        return True

    def task_marked(self, run: DagRun) -> bool:
        one = self.some_work(run, "running", "deferred")
        if one is None:
            return False
        self.events["task marked failed"] += 1
        self.mark_failed(one)
        return True

    def triggers_moved(self, run: DagRun) -> bool:
        moved = [one for one in run.all if one.state == "deferred"]
        for one in moved:
            self.events["trigger moved"] += 1
            self.move_trigger(one)
        return bool(moved) or not self.workloads[run].deferrable

    def task_cancelled(self, run: DagRun) -> bool:
        """Abort a Qarnot task, as a user may in the console."""
        one = self.some_work(run, "deferred", "running")
        if one is None or "qarnot_task" not in one.xcoms:
            return False
        self.events["task cancelled"] += 1
        with suppress(RuntimeError):
            path = f"/tasks/{one.xcoms['qarnot_task']}/abort"
            self.servers[self.workloads[run].server].call("POST", path)
        return True

    def run_cleared(self, run: DagRun) -> None:
        if not run.over:
            self.after(0.5, partial(self.run_cleared, run))
            return
        self.events["run cleared"] += 1
        self.starts += 1
        self.clear_run(run)


# --- the accounts


def verdict(chaos: Chaos) -> Counter[str]:
    """Compare the states of this Airflow with the objects on the servers."""
    found: Counter[str] = Counter()
    for name, qarnot in chaos.servers.items():
        runs = {run: workload for run, workload in chaos.workloads.items() if workload.server == name}
        with QarnotClient(qarnot.url, qarnot.token) as client:
            counts = left_on(runs, client) | work_done(runs, qarnot.task_history())
            for what, things in counts.items():
                found[what] += len(things)
                if what != "reaped":
                    for thing in things:
                        print(f"{what}: {name} {thing}", file=sys.stderr)
    return found


def left_on(runs: dict[DagRun, Workload], client: QarnotClient) -> dict[str, list[Any]]:
    """Return the objects that are on: before the reaper for runs with enough tries, after it for the others."""
    ample = {run.run_id for run, workload in runs.items() if workload.ample}
    # Each is read once more, because a search may be late.
    left = [
        pool
        for pool in map(client.pools.find, [one.uuid for one in client.pools.iterate(OURS)])
        if pool is not None
        and pool.state not in ("Closing", *POOL_OVER)
        and pool.labels["airflow.run_id"] in ample
    ]
    # A clock that is wrong dates the use of a pool up to an hour ahead, and the reaper closes it as much later.
    limits = ReapLimits(grace_period=timedelta(hours=-2), idle_timeout=timedelta(days=1))
    report = reap(client, NAMESPACE, lambda dag_id, run_id: "success", limits)

    def still_on() -> list[Any]:
        return [
            *(pool for pool in client.pools.iterate(OURS) if pool.state not in POOL_OVER),
            *(task for task in client.tasks.iterate(OURS) if task.state not in TASK_OVER),
        ]

    with suppress(AssertionError):
        eventually(lambda: not still_on(), patience=20)
    reaped = [entry.uuid for entry in report.entries if entry.action == "close" and entry.done]
    return {"left on": left + still_on(), "reaped": reaped}


def work_done(runs: dict[DagRun, Workload], history: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return the work that succeeded twice in one life, and the work that is missing.

    :param history: all Qarnot tasks, also deleted ones, because finished ones are deleted near a quota.
    """
    tasks = {task["uuid"]: task for task in history if task["labels"].get("airflow.role") == ""}
    done = Counter(
        (task["labels"]["airflow.lineage"], number, task["state"] == "Cancelled")
        for task in tasks.values()
        for number in task["succeeded"]
    )
    lost = []
    for run, workload in runs.items():
        if workload.ample:
            lost += [one.key for one in run.all if one.state != "success" and not one.marked]
        path = workload.effects
        effects = Counter(path.read_text().splitlines() if path.exists() else [])
        for one in run.work:
            if one.state != "success":
                continue
            lineage = tasks[one.result["uuid"]]["labels"]["airflow.lineage"]
            for number in range(instances_of(one.map_index)):
                # Every life must have done the work: a clear means that it is done once more.
                times = done[lineage, number, False] + done[lineage, number, True]
                lines = effects[f"{one.map_index} {number}"]
                if not times or lines < one.successes:
                    lost.append(
                        f"{one.key} instance {number}: {times} successes in this life, {lines} effects of "
                        f"{one.successes} lives"
                    )
    # A cancelled task that runs again is no duplicate, though some of its instances may have succeeded.
    twice = [key for key, times in done.items() if not key[-1] for _ in range(times - 1)]
    return {"duplicates": twice, "lost": lost}


def connections(servers: dict[str, LocalQarnot]) -> dict[str, str]:
    """The Airflow connections of the workloads, as environment variables."""
    return {
        f"AIRFLOW_CONN_{name.upper()}": json.dumps(
            {
                "conn_type": "qarnot",
                "host": qarnot.url,
                "password": qarnot.token,
                "extra": {"namespace": NAMESPACE, "poll_interval": 0.1},
            }
        )
        for name, qarnot in servers.items()
    }


def unleash(
    seed: int, kills: int, servers: dict[str, LocalQarnot], folder: Path, worlds: Sequence[World] = ()
) -> Counter[str]:
    """Play on the two servers. Return the counts of the last line, and those of other events.

    :raises TimeoutError: the runs did not end.
    """
    gc.collect()
    gc.freeze()  # the children then share more memory
    chaos = Chaos(seed, kills, servers, folder, worlds)
    try:
        chaos.play()
    finally:
        chaos.shut_down()
        gc.unfreeze()
        for qarnot in servers.values():
            calm(qarnot)
    found = verdict(chaos)
    found["kills"], found["runs"] = chaos.kills, chaos.starts
    for what, times in chaos.events.items():
        found[what] += times
    return found


def calm(qarnot: LocalQarnot) -> None:
    """End the conditions of all worlds, because the objects must be readable."""
    qarnot.faults([])
    qarnot.cap_searches(None)
    qarnot.lag_searches(0.0)
    qarnot.withhold_nodes(False)


def last_line(found: Counter[str]) -> str:
    return ", ".join(f"{name} {found[name]}" for name in COUNTED)


def shortnames_of(server: str) -> str | None:
    """The option of a server. The readings decide whether the other one enforces unique shortnames."""
    return "free" if server == "free" else None


def local_qarnots() -> Iterator[tuple[str, LocalQarnot]]:
    for name in SERVERS:
        yield name, LocalQarnot(boot_seconds=0.1, close_seconds=0.05, shortnames=shortnames_of(name))


def play(seed: int, kills: int, worlds: Sequence[World]) -> Counter[str]:
    """Play on two new servers, and print the other events."""
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="qarnot-chaos-") as folder:
        servers = {name: stack.enter_context(qarnot) for name, qarnot in local_qarnots()}
        stack.enter_context(mock.patch.dict(os.environ, connections(servers)))
        began = time.monotonic()
        found = unleash(seed, kills, servers, Path(folder), worlds)
        others = ", ".join(f"{what} {times}" for what, times in sorted(found.items()) if what not in COUNTED)
        print(f"besides: {others}")
        print(f"seed {seed}, {time.monotonic() - began:.0f} s", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--world", default="", help="see tools/chaos_worlds.py; 'all' for all of them")
    given = parser.parse_args()
    try:
        combinations = chosen(given.world)
    except ValueError as error:
        parser.error(str(error))
    ExecutorSafeguard.test_mode = True
    total: Counter[str] = Counter()
    for number, worlds in enumerate(combinations):
        share = given.kills // len(combinations) + (number < given.kills % len(combinations))
        try:
            found = play(given.seed, share, worlds)
        except TimeoutError as error:
            print(f"world {label(worlds)}: {error}", file=sys.stderr)
            return 2
        if len(combinations) > 1:
            print(f"world {label(worlds)}: {last_line(found)}", flush=True)
        total += found
    print(last_line(total))
    return 1 if total["duplicates"] or total["left on"] or total["lost"] else 0


if __name__ == "__main__":
    sys.exit(main())
