"""Shared state of the engines of the local Qarnot: settings, clock, account, files, and work in the background."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import traceback
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.local.backend.billing import AccountState, BillingMeter
from airflow_qarnot_pool.local.backend.clock import Clock, ShownTime
from airflow_qarnot_pool.local.backend.models import Output, Pool, Remote, Task
from airflow_qarnot_pool.local.processes.output import KEPT
from airflow_qarnot_pool.local.processes.runner import Runner
from airflow_qarnot_pool.local.processes.storage import Storage

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.backend.jobs import Jobs
    from airflow_qarnot_pool.local.backend.nodes import Nodes
    from airflow_qarnot_pool.local.backend.pools import Pools
    from airflow_qarnot_pool.local.backend.tasks import Tasks


@dataclass(frozen=True, slots=True)
class Settings:
    """:param boot_seconds: from asking for a node until it takes tasks. :param close_seconds: how long a pool
    stays Closing at least, and a live object PendingDelete. :param cancel_seconds: how long an aborted task stays
    PendingCancel at least. All in virtual time. :param output_bytes: how much of each stream of an instance is kept.
    :param search_cap: most objects in one answer of a search, or on one page; None: no cap. :param search_lag:
    seconds of virtual time for which searches may show an older state. :param leave_queued: tasks that are queued when
    their pool ends stay so, instead of being cancelled."""

    token: str = field(repr=False)
    email: str
    boot_seconds: float = 5.0
    close_seconds: float = 1.0
    cancel_seconds: float = 0.0
    enforce_shortnames: bool = True
    output_bytes: int = KEPT
    search_cap: int | None = None
    search_lag: float = 0.0
    leave_queued: bool = False


class Context:
    """State that the engines share, and the engines themselves once the backend has composed them.

    Everything except ``attempt.carry_out`` happens between two awaits, which makes locks unnecessary. Entry points
    call ``timeline.catch_up()`` first.
    """

    pools: Pools
    tasks: Tasks
    jobs: Jobs
    fleet: Nodes

    def __init__(self, settings: Settings, runner: Runner, storage: Storage, scratch: str) -> None:
        self.settings, self.runner, self.storage, self.scratch = settings, runner, storage, scratch
        self.url = ""
        self.search_path = os.environ.get("PATH", os.defpath)
        self.timeline = Clock()
        self.dial = ShownTime()
        self.search_cap = settings.search_cap
        self.refuses_beyond_cap = False
        self.search_lag = 0.0
        self.account = AccountState(settings.email)
        self.meter = BillingMeter(self.timeline.now)
        self.started = self.timeline.now
        self.secrets: dict[str, str] = {}
        self._sequence = 0
        self._running: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._stopped = False

    @property
    def now(self) -> float:
        return self.timeline.now

    def shown_now(self) -> float:
        """What the server's clock shows."""
        return self.dial.show(self.timeline.read())

    def identity(self) -> tuple[str, int]:
        """A new uuid and the number that orders objects by creation."""
        self._sequence += 1
        return str(uuid.uuid4()), self._sequence

    def spent(self) -> float:
        """Euros spent since the server started."""
        return self.meter.credits(self.now)

    def credits_left(self) -> float:
        return self.account.credits_left(self.spent())

    def instances_asked(self) -> int:
        """Instances that count against `maxInstances`: slots of open pools, and unfinished standalone ones."""
        return self.tasks.standalone + sum(max(p.slots, p.target) for p in self.pools.store if p.is_open)

    # ---- time ----

    def touch(self) -> None:
        """Bring the state up to date before it is looked at or changed, and the next alarm after it."""
        self.timeline.catch_up()
        self._wake.set()

    async def live(self) -> None:
        """Run events as they fall due, for ever."""
        while True:
            try:
                self.timeline.catch_up()
            except Exception:
                traceback.print_exc()  # one broken event must not stop the clock for all others
            self._wake.clear()
            delay = self.timeline.real_delay()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), delay)

    async def stop(self) -> None:
        """Nothing is started any more, and nothing that happens from here on changes anything."""
        self._stopped = True
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the requests; errors are printed, never lost."""
        if self._stopped:
            work.close()
            return
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            traceback.print_exception(error, file=sys.stderr)
        self._wake.set()

    # ---- output ----

    def output_of(self, owner: Pool | Task, number: int) -> Output:
        """The files the output of one instance (or pool node) goes to, made on first use."""
        found = owner.output.get(number)
        if found is None:
            folder = os.path.join(self.scratch, "output", owner.uuid)
            os.makedirs(folder, exist_ok=True)
            base = os.path.join(folder, str(number))
            found = owner.output[number] = Output(
                f"{base}.stdout", f"{base}.stderr", self.settings.output_bytes
            )
        return found

    def forget_output(self, owner: Remote) -> None:
        shutil.rmtree(os.path.join(self.scratch, "output", owner.uuid), ignore_errors=True)
