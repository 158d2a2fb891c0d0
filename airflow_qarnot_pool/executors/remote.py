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
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_qarnot_pool.api import states
from airflow_qarnot_pool.api.errors import (
    QarnotCredentialsError,
    QarnotDeletedError,
    QarnotError,
    QarnotInvalidSpecError,
    QarnotNameTakenError,
    QarnotNotFoundError,
    QarnotProtocolError,
    QarnotQuotaError,
    QarnotRefusedError,
)
from airflow_qarnot_pool.executors.bundle_archives import BroughtArchives
from airflow_qarnot_pool.executors.lookups import (
    delete_finished,
    end_each,
    find_by_name,
    find_twin,
    find_unwatched,
)
from airflow_qarnot_pool.executors.pool import ExecutorPools, PoolKey
from airflow_qarnot_pool.executors.running import (
    KEPT_FOR,
    LEFT_ON_AFTER,
    ROLE,
    Attempt,
    End,
    Outcome,
    outcome_of,
)
from airflow_qarnot_pool.logs.failure_report import failure_report
from airflow_qarnot_pool.ownership.claim import Decision, count_decisions
from airflow_qarnot_pool.ownership.identity import (
    FORMAT_VERSION,
    LABEL_PREFIX,
    namespace_tag,
)
from airflow_qarnot_pool.triggers.airflow_requests import read_settings
from airflow_qarnot_pool.triggers.poller import CONNECTION_MAX_AGE, Poller, PollKey, Subscriber
from airflow_qarnot_pool.version_compat import AirflowNotFoundException
from airflow_qarnot_pool.waiting.intervals import backoff_delay, requested_pause

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import BulkItem, Pool, Task
    from airflow_qarnot_pool.api.specs import TaskSpec
    from airflow_qarnot_pool.executors.options import ExecutorOptions
    from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Maximum Qarnot tasks of one bulk request.
CHUNK = 200
#: Maximum seconds of a request with its retries. The rounds send it again.
REQUEST_DEADLINE = 20.0
#: Maximum seconds to read why a Qarnot task has failed.
REPORT_DEADLINE = 5.0
#: Seconds between two rounds that fail, at first.
FIRST_PAUSE = 1.0
#: Maximum seconds of it, and the maximum if Qarnot asks for more. New work is submitted after that at the latest.
MAX_PAUSE, MAX_REQUESTED_PAUSE = 15.0, 60.0
#: Number of refusals after which an attempt fails, because a proxy may have sent a single one.
MAX_REFUSALS = 2
#: Maximum seconds in which a round begins to explain a failure.
EXPLAIN_FOR = 5.0
#: Maximum seconds between two requests for a pool.
MAX_POOL_PAUSE = 5.0
CANCELLED = states.TaskState.CANCELLED


def _is_permanent(error: QarnotError) -> bool:
    """Return whether the same request may be refused again. A page of a proxy says nothing about it."""
    if isinstance(error, QarnotNotFoundError):
        return not error.foreign
    return isinstance(error, QarnotRefusedError) and not isinstance(error, QarnotQuotaError)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """An attempt, and the Qarnot task to create for it on a pool, whose nodes need *archive* of a bundle."""

    attempt: Attempt
    spec: TaskSpec = field(repr=False)
    pool: PoolKey
    archive: str | None = None


@dataclass(eq=False, slots=True)
class _Watch(Subscriber):
    """A subscriber of the poller that hands each update to a function, because nothing awaits it."""

    on_update: Callable[[Pool | Task | Exception], None] | None = None

    def deliver(self, update: Pool | Task | Exception) -> None:
        """Hand over *update*."""
        if self.on_update is not None:
            self.on_update(update)


@dataclass(eq=False, slots=True)
class _Remote:
    """An attempt on its way: to be submitted, to be found, or watched."""

    attempt: Attempt
    #: None for an attempt of another scheduler.
    submission: Submission | None = None
    uuid: str | None = None
    watch: _Watch | None = None
    is_sending: bool = False
    #: Whether it may exist on Qarnot without a known uuid.
    is_unclear: bool = False
    is_aborting: bool = False
    has_sent_abort: bool = False
    #: The Qarnot task that was seen to fail.
    failed: Task | None = None
    #: Whether the Qarnot task belongs to another attempt of the same task instance, and perhaps to another scheduler.
    is_twin: bool = False
    refusals: int = 0

    @property
    def is_unsent(self) -> bool:
        """Whether it has yet to be created."""
        return self.submission is not None and self.uuid is None

    @property
    def archive(self) -> str | None:
        """The archive of a bundle that its nodes need."""
        return self.submission.archive if self.submission is not None else None

    @property
    def is_to_abort(self) -> bool:
        """Whether its abort has yet to be sent."""
        return self.is_aborting and not self.has_sent_abort


class RemoteTasks:
    """The Qarnot tasks of this scheduler's attempts. Methods without an underscore are for the scheduler's thread."""

    def __init__(self, options: ExecutorOptions) -> None:
        self._options = options
        self._pools = ExecutorPools(options, lambda seconds: time.sleep(min(seconds, MAX_POOL_PAUSE)))
        self._archives = BroughtArchives()
        self._ends: deque[End] = deque()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # Only the thread of this object uses the rest.
        self._remotes: dict[str, _Remote] = {}
        #: Names of attempts whose Qarnot tasks were seen to run. The scheduler's thread reads it.
        self._started: set[str] = set()
        #: What a sweep has found, until the scheduler's thread takes it.
        self._unwatched: deque[dict[str, str]] = deque(maxlen=1)
        self._is_sweep_due = False
        #: Unwatched Qarnot tasks to abort.
        self._to_end: set[str] = set()
        self._poller: Poller | None = None
        #: When the thread is to end, on the clock of ``time.monotonic``.
        self._stops_at: float | None = None
        self._settings: ConnectionSettings | None = None
        self._settings_read = float("-inf")
        self._connected: QarnotClient | None = None
        self._failures = 0

    # --- for the scheduler's thread

    def submit(self, submissions: Sequence[Submission]) -> None:
        """Create these Qarnot tasks, and watch them."""
        self._call(self._add, [_Remote(each.attempt, each) for each in submissions])

    def watch(self, found: Mapping[Attempt, str | None]) -> None:
        """Watch the Qarnot tasks of attempts of another scheduler. Those without a uuid are looked up."""
        count_decisions(log, Decision.ADOPTED, sum(uuid is not None for uuid in found.values()))
        self._call(
            self._add,
            [_Remote(attempt, uuid=uuid, is_unclear=uuid is None) for attempt, uuid in found.items()],
        )

    def abort(self, names: Iterable[str]) -> None:
        """Abort the Qarnot tasks of these attempts. Their ends are not reported."""
        self._call(self._begin_abort, list(names))

    def find(self, attempts: Sequence[Attempt], timeout: float) -> dict[str, str | None]:
        """Return the uuids of the Qarnot tasks by the names of their attempts, or None for an attempt that has none.

        An attempt about which Qarnot does not respond within *timeout* seconds is left out.
        """
        future = asyncio.run_coroutine_threadsafe(self._find(attempts), self._running_loop())
        found: dict[str, str | None] = {}
        error: Exception | None
        try:
            found, error = future.result(timeout)
        except Exception as caught:  # also of Airflow's, about the connection
            future.cancel()
            error = caught
        if error is not None:
            reason = str(error) or f"no response within {timeout:g} s"
            log.warning("Qarnot does not say which tasks of another scheduler exist: %s", reason)
        return found

    def sweep(self) -> None:
        """Look for live Qarnot tasks of this deployment that this scheduler does not watch."""
        self._call(self._begin_sweep)

    def take_unwatched(self) -> dict[str, str] | None:
        """Return the ids of task instances by the uuids that the last sweep has found, once; None without a sweep."""
        return self._unwatched.pop() if self._unwatched else None

    def end(self, uuids: Iterable[str]) -> None:
        """Abort these Qarnot tasks, which this scheduler does not watch."""
        self._call(self._begin_end, list(uuids))

    def has_started(self, name: str) -> bool:
        """Return whether the Qarnot task of an attempt was seen to run."""
        return name in self._started

    def take_ends(self) -> list[End]:
        """Return the ends since the last call."""
        ends = []
        while self._ends:
            ends.append(self._ends.popleft())
        return ends

    def stop(self, seconds: float) -> None:
        """Send what is to be sent within *seconds*, and end the thread. Qarnot tasks that run stay."""
        if self._thread is None or not self._thread.is_alive():
            return
        self._call(self._begin_stop, seconds)
        self._thread.join(seconds + 1)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._running_loop().call_soon_threadsafe(function, *arguments)

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop of the thread, which starts with the first work.

        So the processes that LocalExecutor forks at its start have no copy of it.
        """
        if self._thread is None or not self._thread.is_alive():
            ready = threading.Event()
            self._thread = threading.Thread(
                target=lambda: asyncio.run(self._run(ready)), name="qarnot-executor", daemon=True
            )
            self._thread.start()
            ready.wait()
        assert self._loop is not None
        return self._loop

    # --- the thread

    async def _run(self, ready: threading.Event) -> None:
        self._loop, self._wake = asyncio.get_running_loop(), asyncio.Event()
        self._requests = ThreadPoolExecutor(max_workers=1, thread_name_prefix="qarnot-executor-send")
        self._lookups = ThreadPoolExecutor(max_workers=1, thread_name_prefix="qarnot-executor-find")
        self._poller, self._stops_at = None, None
        ready.set()
        try:
            while not self._has_stopped():
                self._wake.clear()
                if pause := await self._round():
                    await asyncio.sleep(pause)
                elif self._is_stopping:
                    await asyncio.sleep(0.1)
                else:
                    await self._wake.wait()
        finally:
            for executor in (self._requests, self._lookups):
                executor.shutdown(wait=False, cancel_futures=True)

    async def _round(self) -> float:
        """Send everything that is to be sent, and return the seconds to wait if some of it failed."""
        error: Exception | None = None
        # The reading of reasons comes last, because it may be slow.
        steps = (self._find_aborted, self._abort, self._submit, self._resolve, self._explain, self._sweep)
        for step in steps:
            try:
                await step()
            except Exception as caught:
                error = error or caught
        if error is None:
            self._failures = 0
            return 0.0
        self._failures += 1
        if isinstance(error, (QarnotCredentialsError, QarnotInvalidSpecError)):
            self._settings_read = float("-inf")
        elif not isinstance(error, QarnotError):
            log.error("QarnotExecutor cannot send its requests", exc_info=error)
        requested = requested_pause(error)
        pause = min(backoff_delay(FIRST_PAUSE, self._failures, requested, FIRST_PAUSE), MAX_PAUSE)
        pause = max(pause, min(requested, MAX_REQUESTED_PAUSE))
        if self._failures == 1 or self._failures % 10 == 0:
            waiting = sum(remote.is_unsent for remote in self._remotes.values())
            log.warning(
                "%d tasks wait to be submitted to Qarnot, attempt %d failed. Trying again in %.0f s: %s",
                waiting,
                self._failures,
                pause,
                error,
            )
        return min(pause, 0.5) if self._is_stopping else pause

    def _has_work(self) -> bool:
        return any(remote.is_unsent or remote.is_to_abort for remote in self._remotes.values())

    def _add(self, remotes: Iterable[_Remote]) -> None:
        for remote in remotes:
            if remote.attempt.name in self._remotes:
                continue
            self._remotes[remote.attempt.name] = remote
            if remote.uuid is not None:
                self._follow(remote, remote.uuid)
        self._wake.set()

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
        self._wake.set()

    def _begin_sweep(self) -> None:
        self._is_sweep_due = True
        self._wake.set()

    def _begin_end(self, uuids: Iterable[str]) -> None:
        self._to_end |= set(uuids)
        self._wake.set()

    def _begin_stop(self, seconds: float) -> None:
        self._stops_at = time.monotonic() + seconds
        self._wake.set()

    @property
    def _is_stopping(self) -> bool:
        return self._stops_at is not None

    def _has_stopped(self) -> bool:
        """Return whether the thread has to end: everything is sent, or the time is over."""
        return self._stops_at is not None and (time.monotonic() > self._stops_at or not self._has_work())

    def _remove(self, remote: _Remote) -> None:
        self._remotes.pop(remote.attempt.name, None)
        self._started.discard(remote.attempt.name)
        self._unfollow(remote)
        self._wake.set()

    def _finish(self, remote: _Remote, outcome: Outcome, reason: str = "") -> None:
        if not remote.is_aborting:
            self._ends.append(End(attempt=remote.attempt, outcome=outcome, reason=reason))
        self._remove(remote)

    # --- watching

    def _follow(self, remote: _Remote, uuid: str) -> None:
        """Watch the Qarnot task *uuid* for *remote*."""
        assert self._loop is not None
        self._unfollow(remote)
        remote.uuid, remote.is_unclear, remote.is_sending = uuid, False, False
        if self._poller is None or self._poller.closed:
            self._poller = Poller(self._options.conn_id, "task")
        scope = PollKey(id(self._loop), self._options.conn_id, "task", "executor")
        interval = self._settings.poll_interval if self._settings is not None else MAX_PAUSE
        remote.watch = _Watch(scope, uuid, False, interval, False, on_update=partial(self._observe, remote))
        self._poller.add(remote.watch)

    def _unfollow(self, remote: _Remote) -> None:
        if remote.watch is None or self._poller is None or self._loop is None:
            return
        remote.watch.on_update = None
        # The poller may be going through its subscriptions.
        self._loop.call_soon(self._poller.remove, remote.watch)
        remote.watch = None

    def _observe(self, remote: _Remote, update: Pool | Task | Exception) -> None:
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
            self._wake.set()
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
        client = await self._client()
        ends = time.monotonic() + EXPLAIN_FOR
        error = None
        for remote in failures:
            if time.monotonic() > ends:
                self._wake.set()
                break
            try:
                await self._explain_one(client, remote)
            except QarnotError as caught:
                error = caught
        if error is not None:
            raise error

    async def _explain_one(self, client: QarnotClient, remote: _Remote) -> None:
        known = {
            each.uuid
            for each in self._remotes.values()
            if each is remote or each.attempt.instance_id != remote.attempt.instance_id
        }
        twin = await self._request(partial(find_twin, client, remote.attempt, known))
        if remote.is_aborting:
            self._remove(remote)
            return
        if twin is not None:
            remote.failed, remote.is_twin = None, True
            self._follow(remote, twin)
            return
        if remote.submission is not None and remote.failed is not None and remote.failed.state == CANCELLED:
            # A server may accept tasks on a pool that is closed, and cancel them.
            await self._request(partial(self._pools.forget_if_closed, client, remote.submission.pool))
        reason = await self._request(partial(self._reason, client, remote))
        self._finish(remote, Outcome.FAILURE, reason)

    def _reason(self, client: QarnotClient, remote: _Remote) -> str:
        assert remote.failed is not None
        assert remote.uuid is not None
        task = remote.failed
        try:
            quick = client.limited(deadline=REPORT_DEADLINE, retries=0)
            task = quick.tasks.get(remote.uuid)
            link = self._settings.console_link("task", task.uuid) if self._settings else ""
            return failure_report(quick, task, link, remedy="The next attempt has another")
        except QarnotError as error:
            return f"Qarnot task {task.uuid} ended in {task.state}. Its reason cannot be read: {error}"

    # --- attempts of other schedulers

    async def _find(self, attempts: Sequence[Attempt]) -> tuple[dict[str, str | None], QarnotError | None]:
        client = await self._client()
        return await asyncio.get_running_loop().run_in_executor(
            self._lookups, partial(find_by_name, client, attempts)
        )

    async def _resolve(self) -> None:
        """Look up the Qarnot tasks of adopted attempts, for those to which Qarnot did not respond at first."""
        unknown = [
            remote for remote in self._remotes.values() if remote.submission is None and remote.uuid is None
        ]
        if not unknown:
            return
        found, error = await self._find([remote.attempt for remote in unknown])
        count_decisions(log, Decision.ADOPTED, sum(uuid is not None for uuid in found.values()))
        for remote in self._follow_found(unknown, found):
            self._finish(remote, Outcome.MISSING, "The scheduler before has not submitted it")
        if error is not None:
            raise error

    def _follow_found(self, remotes: Iterable[_Remote], found: Mapping[str, str | None]) -> set[_Remote]:
        """Watch those *found*, and return those that do not exist."""
        missing = set()
        for remote in remotes:
            if uuid := found.get(remote.attempt.name):
                self._follow(remote, uuid)
            elif remote.attempt.name in found:
                missing.add(remote)
        return missing

    async def _look_up(
        self, client: QarnotClient, remotes: Sequence[_Remote]
    ) -> tuple[set[_Remote], QarnotError | None]:
        """Watch those of *remotes* that exist. Return those that do not, and an error of those not looked up."""
        attempts = [remote.attempt for remote in remotes]
        found, error = await self._request(partial(find_by_name, client, attempts))
        return self._follow_found(remotes, found), error

    # --- Qarnot tasks that no scheduler watches

    async def _sweep(self) -> None:
        if not self._is_sweep_due and not self._to_end:
            return
        client = await self._client()
        assert self._settings is not None
        # Without an explicit namespace another deployment may share it.
        if self._is_sweep_due and self._settings.namespace_is_explicit:
            known = [remote.uuid for remote in self._remotes.values()]
            before = datetime.now(UTC) - LEFT_ON_AFTER
            search = partial(find_unwatched, client, self._settings.namespace, known, before)
            self._unwatched.append(await self._request(search))
        self._is_sweep_due = False
        ended, error = await self._request(partial(end_each, client, list(self._to_end)))
        self._to_end -= set(ended)
        if error is not None:
            raise error

    # --- aborting

    async def _find_aborted(self) -> None:
        """Look up the Qarnot tasks of aborted attempts whose creation has had no response."""
        aborted = (remote for remote in self._remotes.values() if remote.is_to_abort)
        lost = [remote for remote in aborted if remote.uuid is None and not remote.is_sending]
        if not lost:
            return
        missing, error = await self._look_up(await self._client(), lost)
        for remote in missing:
            self._remove(remote)
        if error is not None:
            raise error

    async def _abort(self) -> None:
        aborted = (remote for remote in self._remotes.values() if remote.is_to_abort)
        ending = {remote.uuid: remote for remote in aborted if remote.uuid is not None}
        if not ending:
            return
        client = await self._client()
        ended, error = await self._request(partial(end_each, client, list(ending)))
        for uuid in ended:
            ending[uuid].has_sent_abort = True
        if error is not None:
            raise error

    # --- submitting

    async def _submit(self) -> None:
        """Submit all new attempts."""
        ready = self._ready()
        if not ready:
            return
        client = await self._client()
        by_pool, error = await self._absent(client, ready)
        placed: list[tuple[_Remote, TaskSpec]] = []
        for key, remotes in by_pool.items():
            try:
                placed += await self._place(client, key, remotes)
            except QarnotError as caught:
                error = caught
        for start in range(0, len(placed), CHUNK):
            error = await self._send(client, placed[start : start + CHUNK]) or error
        if error is not None:
            raise error

    async def _absent(
        self, client: QarnotClient, ready: Sequence[_Remote]
    ) -> tuple[dict[PoolKey, list[_Remote]], QarnotError | None]:
        """Return those of *ready* that do not exist, by pool, and an error of those that were not looked up."""
        missing, error = await self._look_up(client, [remote for remote in ready if remote.is_unclear])
        by_pool: dict[PoolKey, list[_Remote]] = {}
        for remote in ready:
            is_absent = remote.is_unsent and (remote in missing or not remote.is_unclear)
            if remote.submission is not None and is_absent:
                by_pool.setdefault(remote.submission.pool, []).append(remote)
        return by_pool, error

    def _ready(self) -> list[_Remote]:
        """Return the attempts to submit. One that follows an attempt that is aborted waits for the end of that."""
        held = {remote.attempt.instance_id for remote in self._remotes.values() if remote.is_aborting}
        unsent = (remote for remote in self._remotes.values() if remote.is_unsent)
        return [remote for remote in unsent if remote.attempt.instance_id not in held]

    async def _place(
        self, client: QarnotClient, key: PoolKey, remotes: Sequence[_Remote]
    ) -> list[tuple[_Remote, TaskSpec]]:
        """Return the specifications on a pool. If Qarnot refuses the pool, end the attempts.

        :raises QarnotError: the pool is not there yet.
        """
        assert self._settings is not None
        try:
            uuid = await self._request(partial(self._pools.uuid_of, client, self._settings, key))
        except QarnotError as error:
            if not _is_permanent(error):
                raise
            for remote in remotes:
                self._refuse(remote, f"Qarnot refuses pool {key.name!r}: {error}")
            raise
        archives = {archive for remote in remotes if (archive := remote.archive) is not None}
        await self._request(partial(self._archives.bring, client, uuid, archives))
        return [(remote, self._stamped(remote, uuid)) for remote in remotes]

    def _stamped(self, remote: _Remote, pool: str) -> TaskSpec:
        """Return the specification with the tags and labels by which the other parts of the provider know it."""
        assert remote.submission is not None
        assert self._settings is not None
        spec, key, namespace = remote.submission.spec, remote.attempt.key, self._settings.namespace
        labels = {
            "format": FORMAT_VERSION,
            "namespace": namespace,
            "dag_id": key.dag_id,
            "run_id": key.run_id,
            "task_id": key.task_id,
            "map_index": key.map_index,
            "try_number": key.try_number,
            "role": ROLE,
        }
        return replace(
            spec,
            shortname=remote.attempt.name,
            pool=pool,
            profile=None,  # that of the pool
            tags=(namespace_tag(namespace), remote.attempt.tag, *spec.tags),
            labels={**spec.labels, **{LABEL_PREFIX + name: str(value) for name, value in labels.items()}},
            completion_ttl=KEPT_FOR,
        )

    async def _send(
        self, client: QarnotClient, placed: Sequence[tuple[_Remote, TaskSpec]]
    ) -> QarnotError | None:
        """Submit with one request, and return an error after which some have to be submitted again."""
        placed = [pair for pair in placed if not pair[0].is_aborting]
        if not placed:
            return None
        for remote, _ in placed:
            remote.is_sending = True
        try:
            results = await self._request(partial(client.tasks.create_many, [spec for _, spec in placed]))
        except QarnotError as error:
            is_unclear = getattr(error, "ambiguous", isinstance(error, QarnotProtocolError))
            for remote, _ in placed:
                remote.is_sending, remote.is_unclear = False, is_unclear
            return await self._send_failed(client, placed, error)
        count_decisions(log, Decision.FRESH_SUBMIT, sum(result.uuid is not None for result in results))
        failure = None
        for (remote, _), result in zip(placed, results, strict=True):
            failure = await self._take_result(client, remote, result) or failure
        if isinstance(failure, QarnotQuotaError):
            await self._make_room(client)
        return failure

    async def _send_failed(
        self, client: QarnotClient, placed: Sequence[tuple[_Remote, TaskSpec]], error: QarnotError
    ) -> QarnotError | None:
        if isinstance(error, QarnotQuotaError):
            await self._make_room(client)
        if not _is_permanent(error):
            return error
        if len(placed) == 1:
            return await self._refused(client, placed[0][0], error)
        # One of them may be the reason.
        for pair in placed:
            if (passing := await self._send(client, [pair])) is not None and not _is_permanent(passing):
                return passing
        is_left = any(remote.is_unsent and remote.attempt.name in self._remotes for remote, _ in placed)
        return error if is_left else None

    async def _take_result(
        self, client: QarnotClient, remote: _Remote, result: BulkItem
    ) -> QarnotError | None:
        remote.is_sending = False
        if result.uuid is not None:
            self._follow(remote, result.uuid)
            return None
        assert result.error is not None
        if isinstance(result.error, QarnotNameTakenError):
            remote.is_unclear = True  # an earlier request has created it after all
            return result.error
        if not _is_permanent(result.error):
            return result.error
        return await self._refused(client, remote, result.error)

    async def _refused(self, client: QarnotClient, remote: _Remote, error: QarnotError) -> QarnotError | None:
        """End an attempt that Qarnot refuses, unless its pool was closed. Then the next round has another pool."""
        assert remote.submission is not None
        if await self._request(partial(self._pools.forget_if_closed, client, remote.submission.pool)):
            return error
        return None if self._refuse(remote, str(error)) else error

    def _refuse(self, remote: _Remote, reason: str) -> bool:
        """Count a refusal, and return whether it ends the attempt."""
        remote.refusals += 1
        if remote.refusals < MAX_REFUSALS:
            return False
        self._finish(remote, Outcome.REFUSED, reason)
        return True

    async def _make_room(self, client: QarnotClient) -> None:
        """Delete the oldest finished Qarnot tasks of executors, because they count against the account's quota."""
        assert self._settings is not None
        known = {remote.uuid for remote in self._remotes.values()}
        room = partial(delete_finished, client, self._settings.namespace, known)
        log.info("%d finished Qarnot tasks were deleted to make room", await self._request(room))

    # --- requests

    async def _client(self) -> QarnotClient:
        """Return the client. The connection is read again from time to time, because tokens are replaced."""
        if self._connected is None or time.monotonic() - self._settings_read > CONNECTION_MAX_AGE:
            settings = await self._read_settings()
            if settings != self._settings or self._connected is None:
                timeout = min(settings.timeout, REQUEST_DEADLINE)
                make = partial(settings.client, retries=1, deadline=REQUEST_DEADLINE, timeout=timeout)
                self._connected = await self._request(make)
            self._settings, self._settings_read = settings, time.monotonic()
        return self._connected

    async def _read_settings(self) -> ConnectionSettings:
        try:
            return await read_settings(self._options.conn_id)
        except AirflowNotFoundException:
            raise QarnotInvalidSpecError(
                f"[qarnot_executor] conn_id names no connection, got {self._options.conn_id!r}",
                field="conn_id",
                remedy="Add a connection of type qarnot, or correct the option.",
            ) from None

    async def _request(self, request: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._requests, request)
