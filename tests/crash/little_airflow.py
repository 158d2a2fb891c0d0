"""An Airflow small enough to be killed by the hundred: scheduler, API server, workers, triggerers, and their rules.

This process is scheduler, API server and database; workers and triggerers are children (see children.py). The rules
are Airflow's: a lost worker or a failure costs a try, a lost triggerer costs nothing, a clear raises ``max_tries``,
what an outdated child says is refused, a killed task gets SIGTERM and after the grace SIGKILL.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
import os
import random
import select
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from airflow_qarnot_pool.ownership import claim
from tests.crash.children import KILL_GRACE, Child, Say, Serialized, StoringTI, fork, worker
from tests.harness import FakeTI, again, first_event

DONE = frozenset({"success", "failed", "upstream_failed"})
WORKERS_AT_ONCE = 8
#: Suffix of a row that is not committed yet.
DRAFT = ".new"
#: Its number, what Airflow's database has of it, and the method that resumes.
Trigger = tuple[int, tuple[str, dict[str, Any]], str]


@dataclass(eq=False)
class Instance:
    """A task instance, as Airflow's database has it."""

    run: DagRun
    task_id: str
    map_index: int
    retries: int
    state: str | None = None
    try_number: int = 0
    max_tries: int = 0
    xcoms: dict[str, Any] = field(default_factory=dict)
    result: Any = None
    resume: tuple[str, dict[str, Any]] | None = None
    trigger: Trigger | None = None
    not_before: float = 0.0
    child: Child | None = None
    marked: bool = False
    #: Lives that ended well: after a success only a clear makes it run again.
    successes: int = 0

    def __post_init__(self) -> None:
        self.max_tries = self.retries

    @property
    def key(self) -> str:
        return f"{self.run.run_id}~{self.task_id}~{self.map_index}"


@dataclass(eq=False)
class DagRun:
    """A DAG run: a setup, work that may run at once, a teardown.

    :param operator: makes the operator of an instance, with its templates rendered.
    """

    run_id: str
    operator: Callable[[Instance], Any]
    items: int
    retries: int
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        self.create = Instance(self, "create", -1, self.retries)
        self.work = [Instance(self, "work", item, self.retries) for item in range(self.items)]
        self.close = Instance(self, "close", -1, self.retries)

    @property
    def all(self) -> list[Instance]:
        return [self.create, *self.work, self.close]

    @property
    def over(self) -> bool:
        return all(one.state in DONE for one in self.all)

    def ready(self, instance: Instance) -> bool:
        """Whether its trigger rule lets it run; sets ``upstream_failed`` where it never will."""
        if instance is self.create:
            return True
        if self.create.state in ("failed", "upstream_failed"):
            instance.state = "upstream_failed"
            return False
        return self.create.state == "success" and (
            instance is not self.close or all(one.state in DONE for one in self.work)
        )


class Triggerer:
    """A child that runs triggers, and is told which by lines of JSON."""

    def __init__(self, states: Path, log: Path) -> None:
        ours, theirs = os.pipe()[::-1]
        self.orders = ours
        self.closed = False
        self.child = fork(partial(_run_triggers, theirs, ours, states), log)
        os.close(theirs)

    def order(self, **what: Any) -> None:
        if self.closed:
            return  # it was replaced while it was frozen, and its file descriptor may be another file's by now
        with suppress(BrokenPipeError):  # it is dead; whoever notices starts another one
            os.write(self.orders, json.dumps(what).encode() + b"\n")

    def close(self) -> None:
        self.closed = True
        os.close(self.orders)


class StoredStates:
    """The static methods of Airflow's task instance that return states, from the rows that the scheduler stores.

    :param folder: of the rows.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get_task_states(
        self, dag_id: str, task_ids: list[str], run_ids: list[str], map_index: int | None = None
    ) -> dict[str, dict[str, str | None]]:
        return {
            run_id: {
                task_id if index == "-1" else f"{task_id}_{index}": state
                for (task_id, index), state in self._of_run(run_id).items()
                if task_id in task_ids and map_index in (None, int(index))
            }
            for run_id in run_ids
        }

    def get_dr_count(self, dag_id: str, run_ids: list[str]) -> int:
        return sum(bool(self._of_run(run_id)) for run_id in run_ids)

    def get_dagrun_state(self, dag_id: str, run_id: str) -> str:
        rows = self._of_run(run_id)
        return "success" if ("close", "-1") in rows and DONE.issuperset(rows.values()) else "running"

    def _of_run(self, run_id: str) -> dict[tuple[str, str], str | None]:
        return {
            tuple(path.name.split("~")[1:]): json.loads(path.read_text())["state"]  # type: ignore[misc]
            for path in self.folder.glob(f"{run_id}~*~*")
            if path.suffix != DRAFT
        }

    def answer(self) -> None:
        """Answer in this process, which asks no real Airflow."""
        from airflow_qarnot_pool.ownership import liveness, quota

        for module in (liveness, quota):
            vars(module)["runtime_task_instance"] = lambda: self


def _run_task(work: Callable[[Say], None], states: Path, say: Say) -> None:
    StoredStates(states).answer()
    # A worker is declared lost after 0.3 s here, and after five minutes in Airflow.
    claim.OVERTAKEN_AFTER = timedelta(seconds=0.5)
    work(say)


def _run_triggers(orders: int, others_end: int, states: Path, say: Say) -> None:
    os.close(others_end)
    StoredStates(states).answer()
    from airflow_qarnot_pool.triggers import pool, task

    def row(identity: Any) -> dict[str, Any]:
        path = states / f"{identity.run_id}~{identity.task_id}~{identity.map_index}"
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    async def task_state(identity: Any) -> str | None:
        state: str | None = row(identity)["state"]
        return state

    async def own_xcom(identity: Any, key: str) -> Any:
        return row(identity)["xcoms"].get(key)

    pool.task_state = task.task_state = task_state  # type: ignore[assignment]
    task.own_xcom = own_xcom  # type: ignore[assignment]
    asyncio.run(_triggers(orders, say))


async def _triggers(orders: int, say: Say) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(orders, "rb"))
    running: dict[int, tuple[asyncio.Task[None], Any]] = {}

    async def wait_for(number: int, trigger: Any) -> None:
        say({"kind": "event", "trigger": number, "event": await first_event(trigger)})

    async def let_go(waiting: asyncio.Task[None], trigger: Any) -> None:
        """What a triggerer does to a trigger that is gone from the database, in its hurry."""
        waiting.cancel()
        await asyncio.wait([waiting])
        killing = loop.create_task(trigger.on_kill())
        await asyncio.wait([killing], timeout=0.05)
        killing.cancel()
        await asyncio.wait([killing])

    errands: set[asyncio.Task[None]] = set()
    async for line in reader:
        order = json.loads(line)
        if order["do"] == "run":
            trigger = again(Serialized(*order["trigger"]))
            running[order["number"]] = loop.create_task(wait_for(order["number"], trigger)), trigger
        elif order["number"] in running:
            errand = loop.create_task(let_go(*running.pop(order["number"])))
            errands.add(errand)
            errand.add_done_callback(errands.discard)


class LittleAirflow:
    """Scheduler and API server.

    :param folder: for the rows that triggerers read, and for what the children print.
    """

    def __init__(self, folder: Path, chance: random.Random, triggerers: int = 2) -> None:
        self.random = chance
        self.states = folder / "states"
        self.states.mkdir()
        self.log = folder / "children.log"
        self.runs: list[DagRun] = []
        self.workers: dict[Child, Instance] = {}
        self.where: dict[int, Triggerer] = {}
        self.waiting: dict[int, Instance] = {}
        self.numbers = itertools.count(1)
        self.alarms: list[tuple[float, int, Callable[[], None]]] = []
        self.events: Counter[str] = Counter()
        self.triggerers = [Triggerer(self.states, self.log) for _ in range(triggerers)]

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Call *action* later."""
        heapq.heappush(self.alarms, (time.monotonic() + seconds, next(self.numbers), action))

    @property
    def idle(self) -> bool:
        return not self.workers and all(run.over for run in self.runs)

    def step(self) -> None:
        """Start what can start, hear what the children say, do what is due."""
        self.schedule([run for run in self.runs if not run.over])
        due = self.alarms[0][0] - time.monotonic() if self.alarms else 1.0
        pipes = [*self.workers, *(one.child for one in self.triggerers)]
        for child in select.select(pipes, [], [], min(0.05, max(0.0, due)))[0]:
            self.hear(child)
        while self.alarms and self.alarms[0][0] <= time.monotonic():
            heapq.heappop(self.alarms)[2]()

    def born(self, child: Child) -> None:
        """A worker or triggerer has begun."""

    def died(self, child: Child) -> None:
        """One has ended."""

    def shut_down(self) -> None:
        for child in self.workers:
            child.kill()
        for triggerer in self.triggerers:
            triggerer.child.kill()
            triggerer.child.wait()
            triggerer.close()

    # --- workers

    def schedule(self, runs: Sequence[DagRun]) -> None:
        now = time.monotonic()
        for run in runs:
            for one in run.all:
                if one.state not in (None, "up_for_retry", "scheduled") or one.child is not None:
                    continue
                if now < one.not_before or len(self.workers) >= WORKERS_AT_ONCE:
                    continue
                if one.resume is not None or run.ready(one):
                    self.start(one)
                elif one.state == "upstream_failed":
                    self.store(one)

    def start(self, one: Instance) -> None:
        """A worker takes the task up."""
        resume, one.resume = one.resume, None
        if resume is None:
            one.try_number += 1
            one.xcoms = {}
        one.state = "running"
        self.store(one)
        ti = StoringTI(
            run_id=one.run.run_id,
            task_id=one.task_id,
            map_index=one.map_index,
            try_number=one.try_number,
            max_tries=one.max_tries,
            xcoms=dict(one.xcoms),
            others=[
                FakeTI(
                    run_id=other.run.run_id,
                    task_id=other.task_id,
                    map_index=other.map_index,
                    xcoms=dict(other.xcoms),
                )
                for other in one.run.all
                if other is not one
            ],
        )
        work = worker(one.run.operator(one), ti, resume, one.run.started)
        one.child = fork(partial(_run_task, work, self.states), self.log)
        self.workers[one.child] = one
        self.born(one.child)

    def store(self, one: Instance) -> None:
        """Commit the row, for the triggerers to read."""
        path = self.states / one.key
        draft = path.with_suffix(DRAFT)
        draft.write_text(json.dumps({"state": one.state, "xcoms": one.xcoms}))
        draft.replace(path)

    # --- what the children say

    def hear(self, child: Child) -> None:
        news = child.read()
        if child.status is not None:
            self.died(child)
        if child in self.workers:
            one = self.workers[child]
            for what in news:
                # Airflow stores links after the state.
                if one.child is child and (one.state == "running" or what["kind"] == "link"):
                    self.heard_of(one, what)
            if child.status is not None:
                del self.workers[child]
                if one.child is child:
                    one.child = None
                    self.worker_ended(one)
            return
        triggerer = next(t for t in self.triggerers if t.child is child)
        for what in news:
            self.fired(what["trigger"], what["event"])
        if child.status is not None:
            self.replace(triggerer)

    def heard_of(self, one: Instance, what: dict[str, Any]) -> None:
        if what["kind"] in ("xcom", "link"):
            one.xcoms[what["key"]] = what["value"]
        elif what["kind"] == "success":
            one.state, one.result = "success", what["value"]
            one.successes += 1
        elif what["kind"] == "failed":
            self.events[what["error"]] += 1
            self.failed(one)
        elif what["kind"] == "deferred":
            number = next(self.numbers)
            one.state = "deferred"
            one.trigger = number, tuple(what["trigger"]), what["method"]
            self.waiting[number] = one
            self.give(number, self.random.choice(self.triggerers))
        self.store(one)

    def worker_ended(self, one: Instance) -> None:
        if one.state == "restarting":
            one.state = None
        elif one.state == "running":  # it died without a word
            self.failed(one)
        self.store(one)

    def failed(self, one: Instance) -> None:
        one.state = "up_for_retry" if one.try_number <= one.max_tries else "failed"
        one.not_before = time.monotonic() + self.random.uniform(0.02, 0.2)

    # --- triggers

    def give(self, number: int, triggerer: Triggerer) -> None:
        self.where[number] = triggerer
        trigger = self.waiting[number].trigger
        assert trigger is not None
        triggerer.order(do="run", number=number, trigger=trigger[1])

    def fired(self, number: int, event: Any) -> None:
        one = self.waiting.get(number)
        if one is None or one.trigger is None or one.trigger[0] != number:
            return  # its row is gone
        one.resume = one.trigger[2], {"event": event}
        one.state, one.trigger, one.not_before = "scheduled", None, 0.0
        del self.waiting[number]
        self.store(one)

    def replace(self, dead: Triggerer) -> None:
        """A triggerer died: another one takes its place and its triggers."""
        dead.close()
        fresh = Triggerer(self.states, self.log)
        self.triggerers[self.triggerers.index(dead)] = fresh
        for number in list(self.waiting):
            if self.where[number] is dead:
                self.give(number, fresh)
        self.born(fresh.child)

    def let_go(self, trigger: Trigger | None) -> None:
        """The row of a trigger is gone: its triggerer finds out, and calls on_kill."""
        if trigger is not None:
            self.waiting.pop(trigger[0], None)
            self.where[trigger[0]].order(do="let go", number=trigger[0])

    # --- users

    def clear(self, one: Instance, *, raises: bool = True) -> None:
        """A user clears a task; *raises*: ``max_tries``, as Airflow does but for one odd case of a running task."""
        if one.state is None:
            return
        trigger = one.trigger
        if raises:
            one.max_tries = one.try_number + one.retries
        one.state, one.resume, one.trigger, one.marked, one.not_before = None, None, None, False, 0.0
        if one.child is not None:
            one.state = "restarting"
            self.terminate(one.child)
        self.store(one)
        self.let_go(trigger)

    def mark_failed(self, one: Instance) -> None:
        """A user marks a running or deferred task as failed."""
        trigger = one.trigger
        if one.child is not None:
            self.terminate(one.child)
            one.child = None
        one.state, one.trigger, one.resume, one.marked = "failed", None, None, True
        self.store(one)
        self.let_go(trigger)

    def clear_run(self, run: DagRun) -> None:
        """A user clears a run that is over."""
        run.started = datetime.now(UTC)
        for one in run.all:
            self.clear(one)

    def move_trigger(self, one: Instance) -> None:
        """A triggerer was frozen and is thawed: the trigger runs elsewhere by now, and on_kill is called wrongly."""
        assert one.trigger is not None
        number = one.trigger[0]
        old = self.where[number]
        self.give(number, next(other for other in self.triggerers if other is not old))
        old.order(do="let go", number=number)

    def freeze_one(self) -> bool:
        """Stop a worker or a triggerer for so long that Airflow declares it lost, and let it go on."""
        if self.workers and self.random.random() < 0.6:
            return self.freeze_worker(self.random.choice(list(self.workers)))
        return self.freeze_triggerer(self.random.choice(self.triggerers))

    def freeze_worker(self, child: Child) -> bool:
        """Its try is declared lost and another one starts; thawed, it runs on for a moment before it gets SIGTERM."""
        one = self.workers[child]
        if one.child is not child or one.state != "running":
            return False
        child.kill(signal.SIGSTOP)

        def declare_lost() -> None:
            if one.child is child and one.state == "running":
                one.child = None
                self.failed(one)
                self.store(one)

        def thaw() -> None:
            child.kill(signal.SIGCONT)
            self.after(self.random.uniform(0.0, 0.3), partial(self.terminate, child))

        self.after(0.3, declare_lost)
        self.after(0.3 + self.random.uniform(0.2, 1.0), thaw)
        self.events["worker frozen"] += 1
        return True

    def freeze_triggerer(self, frozen: Triggerer) -> bool:
        """Its triggers run elsewhere meanwhile; thawed, it drops them, and on_kill is called wrongly."""
        frozen.child.kill(signal.SIGSTOP)
        moved: list[int] = []

        def move() -> None:
            other = next(one for one in self.triggerers if one is not frozen)
            for number in self.waiting:
                if self.where[number] is frozen:
                    moved.append(number)
                    self.give(number, other)

        def thaw() -> None:
            frozen.child.kill(signal.SIGCONT)
            for number in moved:
                frozen.order(do="let go", number=number)

        self.after(0.3, move)
        self.after(0.3 + self.random.uniform(0.2, 1.0), thaw)
        self.events["triggerer frozen"] += 1
        return True

    def terminate(self, child: Child) -> None:
        """SIGTERM, and after the grace SIGKILL, as Airflow's supervisor does."""
        child.kill(signal.SIGTERM)
        self.after(KILL_GRACE, lambda: child.kill(signal.SIGKILL))
