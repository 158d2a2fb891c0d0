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
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_qarnot_pool.local.backend.billing import AccountState, BillingMeter
from airflow_qarnot_pool.local.backend.clock import Clock, ShownTime
from airflow_qarnot_pool.local.backend.models import Output, Pool, Remote, Task
from airflow_qarnot_pool.local.backend.preemption import Preemption
from airflow_qarnot_pool.local.backend.readings import Readings
from airflow_qarnot_pool.local.backend.states import POOL_TERMINAL
from airflow_qarnot_pool.local.backend.store import Store
from airflow_qarnot_pool.local.processes.command import with_uv_pythons
from airflow_qarnot_pool.local.processes.output import DEFAULT_OUTPUT_BYTES
from airflow_qarnot_pool.local.processes.runner import Runner
from airflow_qarnot_pool.local.processes.storage import Storage
from airflow_qarnot_pool.local.schemas.errors import ApiError, invalid, missing
from airflow_qarnot_pool.local.schemas.fields import Profiles

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.backend.jobs import Jobs
    from airflow_qarnot_pool.local.backend.nodes import Nodes
    from airflow_qarnot_pool.local.backend.persistence import Persistence
    from airflow_qarnot_pool.local.backend.pools import Pools
    from airflow_qarnot_pool.local.backend.tasks import Tasks


R = TypeVar("R", bound=Remote)
#: Words of a refusal by its status. Only those of 400 are known, from tasks.
_NAME_TAKEN = {
    403: "Action forbidden: the shortname {} is already in use",
    409: "Conflict",
    422: "Another pool already has the shortname {}",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the server. Seconds are in virtual time.

    :param boot_seconds: time between the request for a node and the moment it takes tasks.
    :param close_seconds: minimum time for which a pool is Closing, and a live object PendingDelete.
    :param cancel_seconds: minimum time for which an aborted task is PendingCancel.
    :param output_bytes: number of bytes kept of each stream of an instance, from its end.
    :param search_cap: maximum number of objects in a search response or on a page; None for no cap.
    :param search_lag: maximum age of the state that searches show.
    :param token_seconds: life of the token of a page; None for no limit.
    :param readings: the answers to the open questions about the service, at the start.
    :param profiles: the profiles of the account.
    :param preemption: the loss of Flex nodes, or None if none is preempted.
    :param rate_limit: number of requests per real second, or None for no limit.
    """

    token: str = field(repr=False)
    email: str
    boot_seconds: float = 5.0
    close_seconds: float = 1.0
    cancel_seconds: float = 0.0
    output_bytes: int = DEFAULT_OUTPUT_BYTES
    search_cap: int | None = None
    search_lag: float = 0.0
    token_seconds: float | None = None
    readings: Readings = field(default_factory=Readings)
    profiles: Profiles = field(default_factory=Profiles)
    preemption: Preemption | None = None
    rate_limit: float | None = None


class Context:
    """State that the engines share, and the engines themselves once the backend has composed them.

    Everything except ``attempt.carry_out`` happens between two awaits, which makes locks unnecessary. Entry points
    call ``clock.catch_up()`` first.
    """

    pools: Pools
    tasks: Tasks
    jobs: Jobs
    nodes: Nodes

    def __init__(self, settings: Settings, runner: Runner, storage: Storage, scratch: str) -> None:
        self.settings, self.runner, self.storage, self.scratch = settings, runner, storage, scratch
        self.url = ""
        self.search_path = with_uv_pythons(os.environ.get("PATH", os.defpath))
        self.clock = Clock()
        self.shown_time = ShownTime()
        self.readings = settings.readings
        self.search_cap = settings.search_cap
        self.refuses_beyond_cap = False
        self.search_lag = 0.0
        self.token_seconds = settings.token_seconds
        storage.keeps_dates = lambda: self.readings.storage_consistency.endswith("keeps the date")
        self.account = AccountState(settings.email)
        self.meter = BillingMeter(self.clock.now)
        self.started = self.clock.now
        self.secrets: dict[str, str] = {}
        self.sequence = 0
        self.persistence: Persistence | None = None
        self.outputs = os.path.join(scratch, "output")
        self._running: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._stopped = False

    @property
    def now(self) -> float:
        return self.clock.now

    def shown_now(self) -> float:
        """Return the time that the server shows."""
        return self.shown_time.show(self.clock.read())

    def date(self) -> float | None:
        """Return the date of responses, or None if they have none."""
        seconds = {"a close clock": 0.0, "another clock": 3600.0}.get(self.readings.date_header)
        return None if seconds is None else self.shown_now() + seconds

    def identity(self) -> tuple[str, int]:
        """Return a new uuid and the number that orders objects by creation."""
        self.sequence += 1
        return str(uuid.uuid4()), self.sequence

    def spent(self) -> float:
        """Return the euros spent since the server started."""
        return self.meter.credits(self.now)

    def credits_left(self) -> float:
        return self.account.credits_left(self.spent())

    def find(self, kind: str, store: Store[R], key: str) -> R:
        """Return the object with this uuid, or with this shortname if paths take those. Raises ApiError 404."""
        item = store.find(key) if self.readings.shortname_in_path == "yes" else store.get(key)
        if item is None:
            raise missing(kind, key)
        return item

    def unknown(self, field: str, name: str) -> ApiError:
        """Return the error of a task whose pool, job or profile is unknown."""
        if self.readings.unknown_references == "404":
            return missing(field, name)
        return invalid("task", [field])

    def requested_instances(self) -> int:
        """Return the number of instances for `maxInstances`: slots of open pools, and unfinished standalone ones."""
        return self.tasks.standalone + sum(max(p.slots, p.target) for p in self.pools.store if p.is_open)

    def check_shortname(self, kind: str, store: Store[Any], shortname: str | None) -> None:
        """Check that a shortname is free, if shortnames are enforced. Raises ApiError 400, or the status of pools."""
        if not shortname or self.readings.name_of_closed_pool == "not enforced":
            return
        owners = [*store.named(shortname), *filter(None, [store.get(shortname)])]
        error = invalid(kind, ["shortname-uniqueness"])
        if kind == "pool":
            if self.readings.name_of_closed_pool == "free once closed":
                owners = [pool for pool in owners if pool.state not in POOL_TERMINAL]
            if self.readings.pool_name_taken == "accepted":
                return
            if self.readings.pool_name_taken != "400":
                status = int(self.readings.pool_name_taken)
                error = ApiError(status, _NAME_TAKEN[status].format(shortname))
        if owners:
            raise error

    # ---- time ----

    def touch(self) -> None:
        """Run the due events before a read or a change, and set the next alarm after it."""
        self.clock.catch_up()
        self._wake.set()

    async def live(self) -> None:
        """Run events as they fall due, without end."""
        while True:
            pause = None
            try:
                self.clock.catch_up()
                pause = self.persistence.wait() if self.persistence else None
            except Exception:
                traceback.print_exc()  # one broken event must not stop the clock for all others
            self._wake.clear()
            delays = [delay for delay in (self.clock.real_delay(), pause) if delay is not None]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), min(delays, default=None))

    async def stop(self) -> None:
        """Cancel the background work, and start no more of it."""
        self._stopped = True
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run work in the background. Its errors are printed."""
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

    # ---- state ----

    def note(self, item: Remote | None = None) -> None:
        """Note a change of an object, or of the account, for the state directory."""
        if self.persistence is not None:
            self.persistence.note(item)

    def save(self) -> None:
        """Write all noted changes to the state directory."""
        if self.persistence is not None:
            self.persistence.save()

    # ---- output ----

    def output_of(self, owner: Pool | Task, number: int) -> Output:
        """Return the output files of one instance (or pool node), created on first use."""
        output = owner.output.get(number)
        if output is None:
            output = self.new_output(owner, number, self.settings.output_bytes)
            # The size is written before the output, because it decides the form of the files.
            self.note(owner)
            self.save()
        return output

    def new_output(self, owner: Pool | Task, number: int, max_bytes: int) -> Output:
        folder = os.path.join(self.outputs, owner.uuid)
        os.makedirs(folder, exist_ok=True)
        base = os.path.join(folder, str(number))
        output = owner.output[number] = Output(f"{base}.stdout", f"{base}.stderr", max_bytes)
        return output

    def forget_output(self, owner: Remote) -> None:
        folder = os.path.join(self.outputs, owner.uuid)
        if self.persistence is None:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            self.persistence.forget(folder)
