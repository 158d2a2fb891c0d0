"""Everything that the executor sends to Qarnot, in one thread of its own.

The scheduler's thread hands over work, and takes the ends of attempts. It waits for no response: a Qarnot that is slow,
away or out of quota delays tasks of this executor, and not the scheduler. Only the adoption of tasks of another
scheduler waits, for seconds at most.

A round submits everything that is new with one bulk request. The poller of the triggers
(:mod:`airflow_qarnot_pool.triggers.poller`) watches all Qarnot tasks with one query for changes.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool import metrics
from airflow_qarnot_pool.api import states
from airflow_qarnot_pool.api.errors import (
    QarnotCredentialsError,
    QarnotDeletedError,
    QarnotError,
    QarnotInvalidSpecError,
    QarnotNameTakenError,
    QarnotProtocolError,
    QarnotQuotaError,
)
from airflow_qarnot_pool.executors import retries
from airflow_qarnot_pool.executors.background import LoopThread
from airflow_qarnot_pool.executors.bundle_archives import BroughtArchives
from airflow_qarnot_pool.executors.connection import ExecutorConnection
from airflow_qarnot_pool.executors.daily_cost import DailyCosts
from airflow_qarnot_pool.executors.failures import explain
from airflow_qarnot_pool.executors.lookups import (
    delete_finished,
    end_each,
    find_by_name,
    find_twin,
    find_unwatched,
)
from airflow_qarnot_pool.executors.pool import ExecutorPools, PoolKey
from airflow_qarnot_pool.executors.retries import Pauses, is_permanent
from airflow_qarnot_pool.executors.running import (
    LEFT_ON_AFTER,
    Attempt,
    End,
    Outcome,
    outcome_of,
)
from airflow_qarnot_pool.executors.tracked import Submission, Tracked
from airflow_qarnot_pool.executors.watches import Watches
from airflow_qarnot_pool.executors.workload_task import placed_spec
from airflow_qarnot_pool.ownership.claim import Decision, count_decisions

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import BulkItem, Pool, Task
    from airflow_qarnot_pool.api.specs import TaskSpec
    from airflow_qarnot_pool.executors.options import ExecutorOptions

log = logging.getLogger(__name__)

#: Maximum Qarnot tasks of one bulk request.
CHUNK = 200
#: Maximum seconds in which a round begins to explain a failure.
EXPLAIN_FOR = 5.0
#: Maximum seconds between two requests for a pool.
MAX_POOL_PAUSE = 5.0
#: Seconds without a heartbeat of the scheduler after which nothing is submitted: another scheduler may adopt its tasks,
#: or reset those that it does not find.
SILENCE = 30.0
#: Part of the work that the pauses after errors know by this name.
SUBMIT = "submit tasks"
CANCELLED = states.TaskState.CANCELLED


def _placing(key: PoolKey) -> str:
    return f"use pool {key.name!r} for tasks of {key.slots} slots"


def _count_adopted(attempts: Sequence[Attempt]) -> None:
    count_decisions(log, Decision.ADOPTED, len(attempts))
    for pool, count in Counter(attempt.pool for attempt in attempts).items():
        metrics.incr("executor.adopted", count, pool=pool)


def _sent(placed: Iterable[tuple[Tracked, TaskSpec]], *, is_unclear: bool) -> None:
    """Record that a bulk request has ended without results."""
    for remote, _ in placed:
        remote.is_sending, remote.is_unclear = False, is_unclear


class RemoteTasks:
    """The Qarnot tasks of this scheduler's attempts. Methods without an underscore are for the scheduler's thread."""

    def __init__(self, options: ExecutorOptions) -> None:
        self._options = options
        self._pools = ExecutorPools(options, lambda seconds: time.sleep(min(seconds, MAX_POOL_PAUSE)))
        self._archives = BroughtArchives()
        self._costs = DailyCosts()
        self._ends: deque[End] = deque()
        self._thread = LoopThread(self._run, "qarnot-executor")
        #: When the scheduler was last heard of, on the clock of ``time.monotonic``.
        self._heard = time.monotonic()
        # Only the thread of this object uses the rest.
        self._remotes: dict[str, Tracked] = {}
        #: Names of attempts whose Qarnot tasks were seen to run. The scheduler's thread reads it.
        self._started: set[str] = set()
        #: What a sweep has found, until the scheduler's thread takes it.
        self._unwatched: deque[dict[str, str]] = deque(maxlen=1)
        self._is_sweep_due = False
        #: Unwatched Qarnot tasks to abort.
        self._to_end: set[str] = set()
        #: When the thread is to end, on the clock of ``time.monotonic``.
        self._stops_at: float | None = None
        self._connection = ExecutorConnection(options.conn_id)
        self._pauses, self._pool_pauses = Pauses(), Pauses()
        self._wakes: list[asyncio.Event] = []

    # --- for the scheduler's thread

    def submit(self, submissions: Sequence[Submission]) -> None:
        """Create these Qarnot tasks, and watch them."""
        self._heard = time.monotonic()
        self._thread.call(self._add, [Tracked(each.attempt, each) for each in submissions])

    def watch(self, found: Mapping[Attempt, str | None]) -> None:
        """Watch the Qarnot tasks of attempts of another scheduler. Those without a uuid are looked up."""
        _count_adopted([attempt for attempt, uuid in found.items() if uuid is not None])
        self._thread.call(
            self._add,
            [Tracked(attempt, uuid=uuid, is_unclear=uuid is None) for attempt, uuid in found.items()],
        )

    def abort(self, names: Iterable[str]) -> None:
        """Abort the Qarnot tasks of these attempts. Their ends are not reported."""
        self._thread.call(self._begin_abort, list(names))

    def find(self, attempts: Sequence[Attempt], timeout: float) -> dict[str, str | None]:
        """Return the uuids of the Qarnot tasks by the names of their attempts, or None for an attempt that has none.

        An attempt about which Qarnot does not respond within *timeout* seconds is left out.
        """
        answers: queue.SimpleQueue[tuple[dict[str, str | None], Exception | None]] = queue.SimpleQueue()
        self._thread.call(self._begin_find, attempts, answers)
        found: dict[str, str | None] = {}
        error: Exception | None
        try:
            found, error = answers.get(timeout=timeout)
        except queue.Empty:
            error = TimeoutError(f"no response within {timeout:g} s")
        if error is not None:
            log.warning("Qarnot does not say which tasks of another scheduler exist: %s", error)
        return found

    def sweep(self) -> None:
        """Look for live Qarnot tasks of this deployment that this scheduler does not watch."""
        self._thread.call(self._begin_sweep)

    def take_unwatched(self) -> dict[str, str] | None:
        """Return the ids of task instances by the uuids that the last sweep has found, once; None without a sweep."""
        return self._unwatched.pop() if self._unwatched else None

    def end(self, uuids: Iterable[str]) -> None:
        """Abort these Qarnot tasks, which this scheduler does not watch."""
        self._thread.call(self._begin_end, list(uuids))

    def has_started(self, name: str) -> bool:
        """Return whether the Qarnot task of an attempt was seen to run."""
        return name in self._started

    def take_ends(self) -> list[End]:
        """Return the ends since the last call, which each heartbeat of the scheduler makes."""
        self._heard = time.monotonic()
        self._thread.ensure()
        ends = []
        while self._ends:
            ends.append(self._ends.popleft())
        return ends

    def stop(self, seconds: float) -> None:
        """Send what is to be sent within *seconds*, and end the thread. Qarnot tasks that run stay."""
        if self._thread.is_alive:
            self._thread.call(self._begin_stop, seconds)
            self._thread.join(seconds + 1)

    # --- the thread

    async def _run(self) -> None:
        self._wakes, self._watches, self._stops_at = [], Watches(self._options.conn_id), None
        self._connection.open()
        for remote in self._remotes.values():
            remote.watch = None
            if remote.uuid is not None and remote.failed is None:
                self._follow(remote, remote.uuid)
        # Reasons may be slow to read, and delay no submission.
        reading = asyncio.create_task(
            self._rounds(
                {
                    "look up tasks of another scheduler": self._resolve,
                    "read why tasks have failed": self._explain,
                    "search for tasks that are left on": self._sweep,
                }
            )
        )
        try:
            await self._rounds(
                {
                    "end tasks that wait for too long": self._end_overdue,
                    "look up aborted tasks": self._find_aborted,
                    "abort tasks": self._abort,
                    SUBMIT: self._submit,
                }
            )
        finally:
            reading.cancel()
            self._connection.close()

    async def _rounds(self, steps: Mapping[str, Callable[[], Awaitable[None]]]) -> None:
        """Take *steps* again and again: when there is work, and while some of it waits for the end of a pause."""
        wake = asyncio.Event()
        self._wakes.append(wake)
        while not self._has_stopped():
            wake.clear()
            for part, step in steps.items():
                await self._try(self._pauses, part, step)
            with suppress(TimeoutError):
                await asyncio.wait_for(wake.wait(), self._tick())

    def _tick(self) -> float | None:
        """Return the seconds until the next round, if nothing wakes it before; None without any work."""
        if self._is_stopping:
            return 0.1
        return retries.FIRST_PAUSE if self._pauses or self._has_work() else None

    async def _try(self, pauses: Pauses, part: str, step: Callable[[], Awaitable[None]]) -> None:
        """Take *step*, unless it has failed a moment ago."""
        if not pauses.is_due(part):
            return
        try:
            await step()
        except Exception as error:
            if isinstance(error, (QarnotCredentialsError, QarnotInvalidSpecError)):
                self._connection.expire()
            pauses.failed(part, error)
        else:
            pauses.succeeded(part)

    def _wake(self) -> None:
        for wake in self._wakes:
            wake.set()

    def _has_work(self) -> bool:
        return any(remote.is_unsent or remote.is_to_abort for remote in self._remotes.values())

    def _add(self, remotes: Iterable[Tracked]) -> None:
        for remote in remotes:
            if remote.attempt.name in self._remotes:
                continue
            self._remotes[remote.attempt.name] = remote
            if remote.uuid is not None:
                self._follow(remote, remote.uuid)
        self._wake()

    def _begin_abort(self, names: Iterable[str]) -> None:
        for name in names:
            if (remote := self._remotes.get(name)) is None:
                continue
            if remote.is_twin:
                self._remove(remote)
                continue
            remote.is_aborting = True
            if remote.is_unsent and not remote.is_sending and not remote.is_unclear:
                self._remove(remote)
        self._wake()

    def _begin_sweep(self) -> None:
        self._is_sweep_due = True
        self._wake()

    def _begin_end(self, uuids: Iterable[str]) -> None:
        self._to_end |= set(uuids)
        self._wake()

    def _begin_stop(self, seconds: float) -> None:
        self._stops_at = time.monotonic() + seconds
        self._pauses.clear()
        self._pool_pauses.clear()
        self._wake()

    @property
    def _is_stopping(self) -> bool:
        return self._stops_at is not None

    def _has_stopped(self) -> bool:
        """Return whether the thread has to end: everything is sent, or the time is over."""
        return self._stops_at is not None and (time.monotonic() > self._stops_at or not self._has_work())

    def _remove(self, remote: Tracked) -> None:
        self._remotes.pop(remote.attempt.name, None)
        self._started.discard(remote.attempt.name)
        self._unfollow(remote)
        self._wake()

    def _finish(self, remote: Tracked, outcome: Outcome, reason: str = "") -> None:
        if not remote.is_aborting:
            self._ends.append(End(attempt=remote.attempt, outcome=outcome, reason=reason))
        self._remove(remote)

    # --- watching

    def _follow(self, remote: Tracked, uuid: str) -> None:
        """Watch the Qarnot task *uuid* for *remote*."""
        self._unfollow(remote)
        if remote.is_unsent:
            metrics.incr("executor.submitted", pool=remote.attempt.pool)
            waited = time.monotonic() - remote.since
            metrics.timing("executor.submit.duration", waited, pool=remote.attempt.pool)
        remote.uuid, remote.is_unclear, remote.is_sending = uuid, False, False
        settings = self._connection.last
        interval = settings.poll_interval if settings is not None else retries.MAX_PAUSE
        remote.watch = self._watches.add(uuid, interval, partial(self._observe, remote))

    def _unfollow(self, remote: Tracked) -> None:
        if remote.watch is not None:
            self._watches.remove(remote.watch)
            remote.watch = None

    def _observe(self, remote: Tracked, update: Pool | Task | Exception) -> None:
        if isinstance(update, QarnotDeletedError):
            self._finish(remote, Outcome.DELETED, str(update))
            return
        if isinstance(update, Exception):
            log.warning("The Qarnot task of %s cannot be polled: %s", remote.attempt.key, update)
            return
        try:
            outcome = outcome_of(update.state)
        except QarnotError as error:
            log.warning("%s", error)
            return
        if outcome is Outcome.SUCCESS or (outcome is not None and remote.is_aborting):
            self._finish(remote, outcome)
        elif outcome is not None:
            self._unfollow(remote)
            remote.failed = update  # type: ignore[assignment]
            self._wake()
        elif update.phase is states.Phase.LIVE:
            self._started.add(remote.attempt.name)

    async def _explain(self) -> None:
        """Report the failures, with their reasons.

        Another Qarnot task of the same task instance may be the one that runs it: an abort of a scheduler that was
        killed may never have been sent. Then that one is watched, because Airflow lets only one of them run the task.
        """
        failures = [remote for remote in self._remotes.values() if remote.failed is not None]
        if not failures:
            return
        client = await self._connection.client()
        ends = time.monotonic() + EXPLAIN_FOR
        error = None
        for remote in failures:
            if time.monotonic() > ends:
                self._wake()
                break
            try:
                await self._explain_one(client, remote)
            except QarnotError as caught:
                error = caught
        if error is not None:
            raise error

    async def _explain_one(self, client: QarnotClient, remote: Tracked) -> None:
        twin = None if remote.is_aborting else await self._twin_of(client, remote)
        if remote.is_aborting:
            # Perhaps since a moment ago. Nothing reads its end, and the twin may belong to another scheduler.
            self._finish(remote, Outcome.FAILURE)
            return
        assert remote.failed is not None
        if twin is not None:
            remote.failed, remote.is_twin = None, True
            self._follow(remote, twin)
            return
        if remote.submission is not None and remote.failed.state == CANCELLED:
            # A server may accept tasks on a pool that is closed, and cancel them.
            await self._connection.read(partial(self._pools.forget_if_closed, client, remote.submission.pool))
        uuid, state = remote.failed.uuid, remote.failed.state
        link = self._connection.settings.console_link("task", uuid)
        self._finish(remote, *await self._connection.read(partial(explain, client, uuid, state, link)))

    async def _twin_of(self, client: QarnotClient, remote: Tracked) -> str | None:
        known = {
            each.uuid
            for each in self._remotes.values()
            if each is remote or each.attempt.instance_id != remote.attempt.instance_id
        }
        try:
            return await self._connection.read(partial(find_twin, client, remote.attempt, known))
        except QarnotError as error:
            if is_permanent(error) and remote.refuse():
                return None
            raise

    # --- attempts of other schedulers

    def _begin_find(self, attempts: Sequence[Attempt], answers: queue.SimpleQueue[Any]) -> None:
        async def answer() -> None:
            try:
                answers.put(await self._find(attempts))
            except Exception as error:  # also of Airflow's, about the connection
                answers.put(({}, error))

        self._finding = asyncio.create_task(answer())

    async def _find(self, attempts: Sequence[Attempt]) -> tuple[dict[str, str | None], QarnotError | None]:
        client = await self._connection.client()
        return await self._connection.find(partial(find_by_name, client, attempts))

    async def _resolve(self) -> None:
        """Look up the Qarnot tasks of adopted attempts, for those to which Qarnot did not respond at first."""
        unknown = [
            remote for remote in self._remotes.values() if remote.submission is None and remote.uuid is None
        ]
        if not unknown:
            return
        found, error = await self._find([remote.attempt for remote in unknown])
        _count_adopted([remote.attempt for remote in unknown if found.get(remote.attempt.name)])
        for remote in self._follow_found(unknown, found):
            self._finish(
                remote,
                Outcome.MISSING,
                f"Qarnot has no task {remote.attempt.name}: it was not submitted, or was deleted",
            )
        if error is not None:
            raise error

    def _follow_found(self, remotes: Iterable[Tracked], found: Mapping[str, str | None]) -> set[Tracked]:
        """Watch those *found*, and return those that do not exist."""
        missing = set()
        for remote in remotes:
            name = remote.attempt.name
            if name not in self._remotes:
                continue  # it was dropped meanwhile
            if uuid := found.get(name):
                self._follow(remote, uuid)
            elif name in found:
                missing.add(remote)
        return missing

    async def _look_up(
        self, client: QarnotClient, remotes: Sequence[Tracked]
    ) -> tuple[set[Tracked], QarnotError | None]:
        """Watch those of *remotes* that exist. Return those that do not, and an error of those not looked up."""
        attempts = [remote.attempt for remote in remotes]
        found, error = await self._connection.send(partial(find_by_name, client, attempts))
        return self._follow_found(remotes, found), error

    # --- Qarnot tasks that no scheduler watches

    async def _sweep(self) -> None:
        if not self._is_sweep_due and not self._to_end:
            return
        client = await self._connection.client()
        # Without an explicit namespace another deployment may share it.
        if self._is_sweep_due and self._connection.settings.namespace_is_explicit:
            known = [remote.uuid for remote in self._remotes.values()]
            before = datetime.now(UTC) - LEFT_ON_AFTER
            search = partial(find_unwatched, client, self._connection.settings.namespace, known, before)
            self._unwatched.append(await self._connection.read(search))
        self._is_sweep_due = False
        ended, error = await self._connection.read(partial(end_each, client, list(self._to_end)))
        # One that Qarnot refuses is found again by the next sweep.
        self._to_end -= ended.keys()
        if error is not None:
            raise error

    # --- aborting

    async def _find_aborted(self) -> None:
        """Look up the Qarnot tasks of aborted attempts whose creation has had no response."""
        aborted = (remote for remote in self._remotes.values() if remote.is_to_abort)
        lost = [remote for remote in aborted if remote.uuid is None and not remote.is_sending]
        if not lost:
            return
        missing, error = await self._look_up(await self._connection.client(), lost)
        for remote in missing:
            self._remove(remote)
        if error is not None:
            raise error

    async def _abort(self) -> None:
        aborted = (remote for remote in self._remotes.values() if remote.is_to_abort and remote.is_due)
        ending = {remote.uuid: remote for remote in aborted if remote.uuid is not None}
        if not ending:
            return
        client = await self._connection.client()
        ended, error = await self._connection.send(partial(end_each, client, list(ending)))
        for uuid, is_accepted in ended.items():
            if is_accepted:
                ending[uuid].aborted_at = time.monotonic()
            elif ending[uuid].refuse():
                # A sweep finds it if it runs.
                self._remove(ending[uuid])
        if error is not None:
            raise error

    # --- submitting

    async def _end_overdue(self) -> None:
        """End the attempts that were not submitted in time, so that the scheduler queues them with another token."""
        if not any(remote.is_unsent for remote in self._remotes.values()):
            self._pool_pauses.clear()
        for remote in list(self._remotes.values()):
            is_absent = remote.is_unsent and not (
                remote.is_sending or remote.is_unclear or remote.is_aborting
            )
            if is_absent and remote.submission is not None and remote.seconds_left <= 0:
                part = _placing(remote.submission.pool)
                error = self._pauses.last_error(SUBMIT) or self._pool_pauses.last_error(part)
                self._finish(remote, Outcome.WAITED, f"It could not be submitted to Qarnot in time. {error}")

    async def _submit(self) -> None:
        """Submit all new attempts."""
        ready = self._ready()
        if not ready or time.monotonic() - self._heard > SILENCE:
            return
        try:
            client = await self._connection.client()
        except QarnotInvalidSpecError as refusal:
            self._refuse_all([remote for remote in ready if not remote.is_unclear], str(refusal))
            return
        by_pool, error = await self._absent(client, ready)
        placed: list[tuple[Tracked, TaskSpec]] = []
        for key, remotes in by_pool.items():
            place = partial(self._place, client, key, remotes, placed)
            await self._try(self._pool_pauses, _placing(key), place)
        for start in range(0, len(placed), CHUNK):
            error = await self._send(client, placed[start : start + CHUNK]) or error
        if error is not None:
            raise error

    async def _absent(
        self, client: QarnotClient, ready: Sequence[Tracked]
    ) -> tuple[dict[PoolKey, list[Tracked]], QarnotError | None]:
        """Return those of *ready* that do not exist, by pool, and an error of those that were not looked up."""
        missing, error = await self._look_up(client, [remote for remote in ready if remote.is_unclear])
        by_pool: dict[PoolKey, list[Tracked]] = {}
        for remote in ready:
            is_absent = remote.is_unsent and (remote in missing or not remote.is_unclear)
            if remote.submission is not None and is_absent:
                by_pool.setdefault(remote.submission.pool, []).append(remote)
        return by_pool, error

    def _ready(self) -> list[Tracked]:
        """Return the attempts to submit. One that follows an attempt that is aborted waits for the end of that."""
        held = {remote.attempt.instance_id for remote in self._remotes.values() if remote.holds_next}
        unsent = (remote for remote in self._remotes.values() if remote.is_unsent and remote.is_due)
        return [remote for remote in unsent if remote.attempt.instance_id not in held]

    async def _place(
        self,
        client: QarnotClient,
        key: PoolKey,
        remotes: Sequence[Tracked],
        placed: list[tuple[Tracked, TaskSpec]],
    ) -> None:
        """Add the specifications on a pool to *placed*. End them if Qarnot refuses it or it has cost its maximum.

        :raises QarnotError: the pool is not there yet, or its cost cannot be read.
        """
        check = partial(
            self._costs.refusal, client, self._connection.settings.namespace, self._options.pools[key.name]
        )
        if (reason := await self._connection.send(check)) is not None:
            for remote in remotes:
                self._finish(remote, Outcome.REFUSED, reason)
            return
        try:
            uuid = await self._connection.send(
                partial(self._pools.uuid_of, client, self._connection.settings, key)
            )
        except QarnotError as error:
            if not is_permanent(error):
                raise
            self._refuse_all(remotes, f"Pool {key.name!r} cannot be made: {error}")
            return
        archives = {archive for remote in remotes if (archive := remote.archive) is not None}
        await self._connection.send(partial(self._archives.bring, client, uuid, archives))
        archive = self._pools.archive_of(key)
        namespace = self._connection.settings.namespace
        placed += [
            (
                remote,
                placed_spec(
                    remote.submission.spec, remote.attempt, namespace, uuid, archive, remote.seconds_left
                ),
            )
            for remote in remotes
            if remote.submission is not None
        ]

    async def _send(
        self, client: QarnotClient, placed: Sequence[tuple[Tracked, TaskSpec]]
    ) -> QarnotError | None:
        """Submit with one request, and return an error after which some have to be submitted again."""
        placed = [pair for pair in placed if not pair[0].is_aborting]
        if not placed:
            return None
        for remote, _ in placed:
            remote.is_sending = True
        try:
            results = await self._connection.send(
                partial(client.tasks.create_many, [spec for _, spec in placed])
            )
        except QarnotError as error:
            _sent(placed, is_unclear=getattr(error, "ambiguous", isinstance(error, QarnotProtocolError)))
            return await self._send_failed(client, placed, error)
        except Exception:
            _sent(placed, is_unclear=True)
            raise
        count_decisions(log, Decision.FRESH_SUBMIT, sum(result.uuid is not None for result in results))
        # Another request may fail, so those that were created are watched before it.
        failures = [
            (remote, failed)
            for (remote, _), result in zip(placed, results, strict=True)
            if (failed := self._take_result(remote, result)) is not None
        ]
        failure = None
        for remote, failed in failures:
            if is_permanent(failed) and not remote.is_unclear:
                failure = await self._refused(client, remote, failed) or failure
            else:
                failure = failed
        if isinstance(failure, QarnotQuotaError):
            await self._make_room(client)
        return failure

    async def _send_failed(
        self, client: QarnotClient, placed: Sequence[tuple[Tracked, TaskSpec]], error: QarnotError
    ) -> QarnotError | None:
        if isinstance(error, QarnotQuotaError):
            await self._make_room(client)
        if not is_permanent(error):
            return error
        if len(placed) == 1:
            return await self._refused(client, placed[0][0], error)
        # One of them may be the reason.
        middle = len(placed) // 2
        for half in (placed[:middle], placed[middle:]):
            if (passing := await self._send(client, half)) is not None:
                return passing
        return None

    def _take_result(self, remote: Tracked, result: BulkItem) -> QarnotError | None:
        """Watch a Qarnot task that was created; otherwise return the error."""
        remote.is_sending = False
        if result.uuid is not None:
            self._follow(remote, result.uuid)
            return None
        # An earlier request has created it after all.
        remote.is_unclear = isinstance(result.error, QarnotNameTakenError)
        return result.error

    async def _refused(self, client: QarnotClient, remote: Tracked, error: QarnotError) -> QarnotError | None:
        """End an attempt that Qarnot refuses, unless its pool was closed. Then the next round has another pool."""
        assert remote.submission is not None
        if await self._connection.send(partial(self._pools.forget_if_closed, client, remote.submission.pool)):
            return error
        self._refuse(remote, str(error))
        return None

    def _refuse_all(self, remotes: Iterable[Tracked], reason: str) -> None:
        """End those that were refused for long enough. The connection may be mended meanwhile."""
        self._connection.expire()
        for remote in remotes:
            self._refuse(remote, reason)

    def _refuse(self, remote: Tracked, reason: str) -> None:
        """End an attempt that was refused for long enough."""
        if remote.refuse():
            self._finish(remote, Outcome.REFUSED, reason)

    async def _make_room(self, client: QarnotClient) -> None:
        """Delete the oldest finished Qarnot tasks of executors, because they count against the account's quota."""
        known = {remote.uuid for remote in self._remotes.values()}
        room = partial(delete_finished, client, self._connection.settings.namespace, known)
        log.info("%d finished Qarnot tasks were deleted to make room", await self._connection.send(room))
