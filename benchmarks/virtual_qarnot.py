"""The engines of the local Qarnot on a clock that jumps from event to event, and a DAG that runs on one of its pools.

Boots, queues, scaling and bills are those of the local Qarnot. Only the commands are not run: an instance takes the
seconds that its DAG says. A run of minutes takes milliseconds, and two runs differ only by their random lags.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

from airflow_qarnot_pool.api.models import Pool, Task
from airflow_qarnot_pool.costs.model import PoolCost, pool_cost
from airflow_qarnot_pool.local.backend import attempt
from airflow_qarnot_pool.local.backend.backend import Backend
from airflow_qarnot_pool.local.backend.context import Context, Settings
from airflow_qarnot_pool.local.backend.models import Instance, InstancePhase, Node
from airflow_qarnot_pool.local.schemas import requests, responses
from airflow_qarnot_pool.local.schemas.fields import Profiles

#: Virtual start of each run. Shown times are in whole seconds, and a start within one shows the rounding.
START = 1.8e9 + 0.5
#: Turns of the event loop in which an attempt that ends is followed by the next one on its slot.
TURNS = 8


@dataclass(frozen=True, kw_only=True)
class Step:
    """An Airflow task that runs one Qarnot task.

    :param seconds: of its instances.
    :param local: seconds of work on a worker before it is submitted.
    """

    task_id: str
    upstream: tuple[str, ...] = ()
    seconds: tuple[float, ...] = (60.0,)
    local: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A DAG, and the pool that it opens. ``pool``: fields of the API, but the size.

    :param ready: slots whose start the DAG waits for. None: all slots.
    """

    steps: tuple[Step, ...]
    kind: str = "fixed"
    slots_per_node: int = 1
    keep_warm: float = 120.0
    boot: float = 60.0
    ready_first: bool = False
    warm_up: bool = True

    def body(self, size: int) -> dict[str, Any]:
        """Return the request that creates the pool."""
        body: dict[str, Any] = {"name": "p", "profile": "docker-batch", "labels": labels("open")}
        if self.slots_per_node > 1:
            body["multiSlotsSettings"] = {"slotsPerNode": self.slots_per_node}
        if self.kind == "fixed":
            return {**body, "instanceCount": size}
        if self.kind == "elastic":
            elastic = {
                "isElastic": True,
                "minTotalSlots": 0,
                "maxTotalSlots": size,
                "minIdleSlots": 0,
                "resizePeriod": 30,
                "rampResizeFactor": 0.5,
                "minIdleTimeSeconds": int(self.keep_warm),
            }
            return {**body, "elasticProperty": elastic}
        policy = {
            "type": "ManagedTasksQueue",
            "name": "queue",
            "minTotalSlots": 0,
            "maxTotalSlots": size,
            "minIdleSlots": 0,
            "minIdleTimeSeconds": int(self.keep_warm),
            "scalingFactor": 1.0 if self.kind == "keep_warm" else 0.25,
            "enabledPeriods": [{"type": "Always"}],
        }
        return {**body, "scaling": {"policies": [policy]}}

    @property
    def warms_up(self) -> bool:
        """Whether a warm-up boots all nodes."""
        return self.kind == "keep_warm" and self.warm_up


@dataclass(frozen=True)
class Outcome:
    """What a run took and paid, and what Qarnot reports of it."""

    seconds: float
    node_seconds: float
    euros: float
    pool: Pool
    tasks: tuple[Task, ...]
    cost: PoolCost


class VirtualQarnot:
    """One account whose clock moves only in :meth:`run_until`."""

    def __init__(self, boot: float) -> None:
        self._scratch = tempfile.TemporaryDirectory()
        self._runs: dict[str, asyncio.Future[bool]] = {}
        self._ids = itertools.count()
        self.seconds: dict[str, Sequence[float]] = {}
        runner: Any = SimpleNamespace(kill=self._kill)
        self.backend = Backend(
            Settings("token", "me@example", boot_seconds=boot), runner, runner, self._scratch.name
        )
        self.backend.clock.set_speed(0)
        self.backend.clock.start_at(START)

    def __enter__(self) -> VirtualQarnot:
        self._patch = mock.patch.object(attempt, "carry_out", self._carry_out)
        self._patch.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._patch.stop()
        self._scratch.cleanup()

    @property
    def now(self) -> float:
        """Virtual epoch seconds."""
        return self.backend.clock.now

    def _kill(self, run: str) -> None:
        if not self._runs[run].done():
            self._runs[run].set_result(False)

    async def _carry_out(
        self, context: Context, instance: Instance, node: Node, enter: Callable[[InstancePhase], bool]
    ) -> attempt.AttemptResult:
        """Take the seconds of an instance, without a process."""
        if not enter(InstancePhase.RUNNING):
            return attempt.AttemptResult(killed=True)
        instance.run = str(next(self._ids))
        done = self._runs[instance.run] = asyncio.get_running_loop().create_future()
        seconds = self.seconds[instance.task.uuid][instance.id]
        context.clock.after(seconds, lambda: None if done.done() else done.set_result(True))
        ok = await done
        instance.run = None
        return attempt.AttemptResult(killed=not ok)

    async def settle(self) -> None:
        """Let attempts that have ended be followed by others."""
        for _ in range(TURNS):
            await asyncio.sleep(0)

    async def advance_to(self, when: float) -> None:
        """Let all events up to *when* happen, each at its time."""
        clock = self.backend.clock
        while clock._heap and clock._heap[0][0] <= when:
            clock.advance(max(0.0, clock._heap[0][0] - clock.now))
            await self.settle()
        clock.advance(max(0.0, when - clock.now))
        await self.settle()

    def next_event(self) -> float:
        """Return the time of the next event."""
        heap = self.backend.clock._heap
        while heap and heap[0][2].action is None:
            heapq.heappop(heap)
        return heap[0][0] if heap else float("inf")


def labels(task_id: str, role: str = "") -> dict[str, str]:
    """Return the labels that the provider would give."""
    own = {"dag_id": "dag", "run_id": "run", "task_id": task_id, "map_index": "-1", "role": role}
    return {f"airflow.{name}": value for name, value in own.items()}


class Lags:
    """Seconds that Airflow takes. Each cause has its usual lag, and each run differs a little from it.

    :param usual: seed of the usual lags.
    :param run: seed of the differences.
    :param noise: maximum difference, in seconds.
    """

    def __init__(self, usual: int, run: int, noise: float) -> None:
        self._usual, self._run, self._noise = usual, random.Random(run), noise

    def of(self, cause: str, least: float, most: float) -> float:
        """Return the lag of *cause*."""
        usual = random.Random(f"{self._usual} {cause}").uniform(least, most)
        return max(0.1, usual + self._run.uniform(-self._noise, self._noise))


def run(shape: Shape, size: int, lags: Lags) -> Outcome:
    """Run a DAG on a new pool of *size* slots."""
    return asyncio.run(_run(shape, size, lags))


async def _run(shape: Shape, size: int, lags: Lags) -> Outcome:
    with VirtualQarnot(shape.boot) as qarnot:
        backend = qarnot.backend
        await qarnot.advance_to(qarnot.now + lags.of("open", 0, 1))
        pool = backend.pools.create(requests.read_pool(shape.body(size), Profiles()))
        created = qarnot.now

        def submit(task_id: str, seconds: Sequence[float], role: str = "") -> Any:
            body = {
                "name": task_id,
                "poolUuid": pool.uuid,
                "instanceCount": len(seconds),
                "labels": labels(task_id, role),
            }
            task = backend.tasks.create(requests.read_task(body))
            qarnot.seconds[task.uuid] = seconds
            return task

        warm: Any = None
        if shape.warms_up:
            await qarnot.advance_to(qarnot.now + lags.of("warm-up", 0.2, 1.0))
            warm = submit("open", [1e5] * size, "warm-up")
        if shape.kind == "fixed" or shape.warms_up:
            wanted = 1 if shape.ready_first else size
            while backend.nodes.by_id and _up(pool) < wanted:
                await qarnot.advance_to(qarnot.next_event())
            await qarnot.advance_to(qarnot.now + lags.of("ready", 0.2, 2.0))
            if warm is not None:
                backend.tasks.abort(warm)
                await qarnot.settle()
        ended = await _work(qarnot, shape, submit, lags)
        await qarnot.advance_to(ended + lags.of("close", 2.0, 5.0))
        backend.pools.close(pool)
        await qarnot.settle()
        await qarnot.advance_to(qarnot.now + backend.settings.close_seconds + 1)
        node_seconds = pool.meter.node_seconds(qarnot.now)
        shown = Pool.from_json(responses.POOL.full(backend, pool))
        tasks = [Task.from_json(responses.TASK.full(backend, task)) for task in backend.tasks.store]
        euros = pool.meter.credits(qarnot.now)
        cost = pool_cost(shown, tasks, euros, None)
        return Outcome(ended - created, node_seconds, euros, shown, tuple(tasks), cost)


def _up(pool: Any) -> int:
    return sum(node.slots for node in pool.nodes.values() if node.up is not None)


async def _work(
    qarnot: VirtualQarnot, shape: Shape, submit: Callable[[str, Sequence[float]], Any], lags: Lags
) -> float:
    """Submit each step some seconds after its upstreams have ended, and return the end of the last one."""
    steps: Mapping[str, Step] = {step.task_id: step for step in shape.steps}
    due = {
        step.task_id: qarnot.now + lags.of(step.task_id, 0.5, 4.0) + step.local
        for step in shape.steps
        if not step.upstream
    }
    running: dict[str, Any] = {}
    done: dict[str, float] = {}
    while len(done) < len(steps):
        when = min([qarnot.next_event(), *due.values()])
        await qarnot.advance_to(when)
        for task_id in [task_id for task_id, at in due.items() if at <= qarnot.now]:
            del due[task_id]
            running[task_id] = submit(task_id, steps[task_id].seconds)
            await qarnot.settle()
        for task_id in [task_id for task_id, task in running.items() if task.ended is not None]:
            done[task_id] = running.pop(task_id).ended
            for step in shape.steps:
                if task_id in step.upstream and all(above in done for above in step.upstream):
                    due[step.task_id] = qarnot.now + lags.of(step.task_id, 0.5, 4.0) + step.local
    return max(done.values())
