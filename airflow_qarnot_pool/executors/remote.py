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
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_qarnot_pool.api import filters, states
from airflow_qarnot_pool.api.errors import (
    QarnotBucketNotFoundError,
    QarnotCredentialsError,
    QarnotDeletedError,
    QarnotError,
    QarnotInvalidSpecError,
    QarnotNameTakenError,
    QarnotNotFoundError,
    QarnotProtocolError,
    QarnotQuotaError,
    QarnotRefusedError,
    QarnotUnavailableError,
)
from airflow_qarnot_pool.executors.bundle_archives import BroughtArchives
from airflow_qarnot_pool.executors.pool import ExecutorPools, PoolKey
from airflow_qarnot_pool.executors.running import KEPT_FOR, ROLE, Attempt, End, Outcome, outcome_of
from airflow_qarnot_pool.logs.failure_report import failure_report
from airflow_qarnot_pool.ownership.claim import Decision, count_decisions
from airflow_qarnot_pool.ownership.identity import (
    FORMAT_VERSION,
    LABEL_PREFIX,
    is_ending,
    label,
    namespace_tag,
)
from airflow_qarnot_pool.ownership.termination import end_all
from airflow_qarnot_pool.triggers.airflow_requests import read_settings
from airflow_qarnot_pool.triggers.poller import CONNECTION_MAX_AGE, POLL_FIELDS, Poller, PollKey, Subscriber
from airflow_qarnot_pool.version_compat import AirflowNotFoundException
from airflow_qarnot_pool.waiting.intervals import backoff_delay, requested_pause
from airflow_qarnot_pool.waiting.polling import find_confirmed

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import BulkItem, Pool, Task
    from airflow_qarnot_pool.api.specs import TaskSpec
    from airflow_qarnot_pool.executors.options import ExecutorOptions
    from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Maximum Qarnot tasks of one bulk request, and names of one search.
CHUNK = 200
#: Maximum seconds of a request with its retries. The rounds send it again.
REQUEST_DEADLINE = 20.0
#: Maximum seconds to read why a Qarnot task has failed.
REPORT_DEADLINE = 5.0
#: Seconds between two rounds that fail, at first.
FIRST_PAUSE = 1.0
#: Maximum seconds of it, unless Qarnot asks for more. New work is submitted after that at the latest.
MAX_PAUSE = 15.0
#: Maximum seconds between two requests for a pool.
MAX_POOL_PAUSE = 5.0
#: Maximum number of concurrent look-ups of names that no search shows.
MAX_LOOKUPS = 32
#: Maximum number of failures that a round explains, because the others wait meanwhile.
MAX_EXPLAINED = 10
#: Maximum number of finished Qarnot tasks that are deleted at once, if the account's quota of tasks is full.
MAX_DELETED = 50
#: Errors after which the same request is sent again.
_PASSING = (QarnotUnavailableError, QarnotProtocolError, QarnotQuotaError, QarnotCredentialsError)
#: Errors that the same request would meet again.
_PERMANENT = (QarnotRefusedError, QarnotNotFoundError, QarnotBucketNotFoundError)


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

    @property
    def is_unsent(self) -> bool:
        """Whether it has yet to be created."""
        return self.submission is not None and self.uuid is None


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

    def find(self, attempts: Sequence[Attempt], timeout: float) -> dict[str, str] | None:
        """Return the uuids of the Qarnot tasks by the names of their attempts; None if Qarnot does not respond."""
        future = asyncio.run_coroutine_threadsafe(self._find(attempts), self._running_loop())
        try:
            return future.result(timeout)
        except Exception as error:  # also of Airflow's, about the connection
            future.cancel()
            reason = str(error) or f"no response within {timeout:g} s"
            log.warning("Qarnot does not say which tasks of another scheduler exist: %s", reason)
            return None

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
        for step in (self._resolve, self._abort, self._explain, self._submit):
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
        pause = max(
            min(backoff_delay(FIRST_PAUSE, self._failures, requested, FIRST_PAUSE), MAX_PAUSE), requested
        )
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
        return any(
            remote.is_unsent or (remote.is_aborting and not remote.has_sent_abort)
            for remote in self._remotes.values()
        )

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
            remote.is_aborting = True
            if remote.is_unsent and not remote.is_sending and not remote.is_unclear:
                self._remove(remote)
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
        if len(failures) > MAX_EXPLAINED:
            self._wake.set()
        for remote in failures[:MAX_EXPLAINED]:
            twin = await self._request(partial(self._find_twin, client, remote))
            if twin is not None:
                remote.failed = None
                self._follow(remote, twin)
                continue
            reason = await self._request(partial(self._reason, client, remote))
            self._finish(remote, Outcome.FAILURE, reason)

    def _find_twin(self, client: QarnotClient, remote: _Remote) -> str | None:
        known = {each.uuid for each in list(self._remotes.values())}
        tagged = client.tasks.search_all(filters.equal("Tags", remote.attempt.tag), fields=POLL_FIELDS)
        live = [task.uuid for task in tagged if task.uuid not in known and not is_ending(task)]
        return live[0] if live else None

    def _reason(self, client: QarnotClient, remote: _Remote) -> str:
        assert remote.failed is not None
        assert remote.uuid is not None
        task = remote.failed
        try:
            quick = client.limited(deadline=REPORT_DEADLINE, retries=0)
            task = quick.tasks.get(remote.uuid)
            link = self._settings.console_link("task", task.uuid) if self._settings else ""
            return failure_report(quick, task, link)
        except QarnotError as error:
            return f"Qarnot task {task.uuid} ended in {task.state}. Its reason cannot be read: {error}"

    # --- attempts of other schedulers

    async def _find(self, attempts: Sequence[Attempt]) -> dict[str, str]:
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
        found = await self._find([remote.attempt for remote in unknown])
        count_decisions(log, Decision.ADOPTED, len(found))
        for remote in unknown:
            if uuid := found.get(remote.attempt.name):
                self._follow(remote, uuid)
            else:
                self._finish(remote, Outcome.MISSING, "The scheduler before has not submitted it")

    # --- aborting

    async def _abort(self) -> None:
        aborted = [
            remote for remote in self._remotes.values() if remote.is_aborting and not remote.has_sent_abort
        ]
        if not aborted:
            return
        client = await self._client()
        if unclear := [remote for remote in aborted if remote.uuid is None and not remote.is_sending]:
            found = await self._request(partial(find_by_name, client, [each.attempt for each in unclear]))
            for remote in unclear:
                if uuid := found.get(remote.attempt.name):
                    self._follow(remote, uuid)
                else:
                    self._remove(remote)
        ending = [remote for remote in aborted if remote.uuid is not None]
        uuids = [remote.uuid for remote in ending if remote.uuid is not None]
        await self._request(partial(end_all, client.tasks, uuids))
        for remote in ending:
            remote.has_sent_abort = True

    # --- submitting

    async def _submit(self) -> None:
        """Submit all new attempts. An attempt waits for the end of an earlier one that is aborted."""
        held = {remote.attempt.instance_id for remote in self._remotes.values() if remote.is_aborting}
        ready = [
            remote
            for remote in self._remotes.values()
            if remote.is_unsent and remote.attempt.instance_id not in held
        ]
        if not ready:
            return
        client = await self._client()
        if unclear := [remote for remote in ready if remote.is_unclear]:
            found = await self._request(partial(find_by_name, client, [each.attempt for each in unclear]))
            for remote in unclear:
                if uuid := found.get(remote.attempt.name):
                    self._follow(remote, uuid)
        placed, error = await self._place(client, [remote for remote in ready if remote.is_unsent])
        for start in range(0, len(placed), CHUNK):
            error = await self._send(client, placed[start : start + CHUNK]) or error
        if error is not None:
            raise error

    async def _place(
        self, client: QarnotClient, remotes: Sequence[_Remote]
    ) -> tuple[list[tuple[_Remote, TaskSpec]], QarnotError | None]:
        """Return the specifications on their pools, and an error of a pool that is not there yet."""
        assert self._settings is not None
        placed, error = [], None
        by_pool: dict[PoolKey, list[_Remote]] = {}
        for remote in remotes:
            assert remote.submission is not None
            by_pool.setdefault(remote.submission.pool, []).append(remote)
        for key, members in by_pool.items():
            try:
                uuid = await self._request(partial(self._pools.uuid_of, client, self._settings, key))
            except QarnotError as caught:
                if isinstance(caught, _PERMANENT) and not isinstance(caught, _PASSING):
                    for remote in members:
                        self._finish(remote, Outcome.REFUSED, f"Qarnot refuses pool {key.name!r}: {caught}")
                else:
                    error = caught
                continue
            archives = {
                remote.submission.archive
                for remote in members
                if remote.submission is not None and remote.submission.archive is not None
            }
            await self._request(partial(self._archives.bring, client, uuid, archives))
            placed += [(remote, self._stamped(remote, uuid)) for remote in members]
        return placed, error

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
        if isinstance(error, _PASSING) or not isinstance(error, _PERMANENT):
            return error
        if len(placed) == 1:
            return await self._refused(client, placed[0][0], error)
        # One of them may be the reason.
        passing = None
        for pair in placed:
            passing = await self._send(client, [pair]) or passing
        return passing

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
        if isinstance(result.error, _PASSING) or not isinstance(result.error, _PERMANENT):
            return result.error
        return await self._refused(client, remote, result.error)

    async def _refused(self, client: QarnotClient, remote: _Remote, error: QarnotError) -> QarnotError | None:
        """End an attempt that Qarnot refuses, unless its pool was closed. Then the next round has another pool."""
        assert remote.submission is not None
        if await self._request(partial(self._pools.forget_if_closed, client, remote.submission.pool)):
            return error
        self._finish(remote, Outcome.REFUSED, str(error))
        return None

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


def find_by_name(client: QarnotClient, attempts: Sequence[Attempt]) -> dict[str, str]:
    """Return the uuids of the Qarnot tasks by the names of their attempts.

    A name that no search shows is looked up itself, because a search may be late. An attempt whose name is not known is
    searched by the tag of its task instance: a live Qarnot task counts, or else the newest one.
    """
    found: dict[str, str] = {}
    named = {attempt.name: attempt for attempt in attempts if not attempt.by_tag}
    names = list(named)
    for start in range(0, len(names), CHUNK):
        chunk = names[start : start + CHUNK]
        try:
            shown = client.tasks.search(filters.in_("Shortname", chunk), fields=POLL_FIELDS, limit=len(chunk))
        except QarnotRefusedError:
            continue
        found |= {task.shortname: task.uuid for task in shown if task.shortname in named}
    missing = [name for name in names if name not in found]
    if missing:
        with ThreadPoolExecutor(max_workers=min(len(missing), MAX_LOOKUPS)) as threads:
            for task in threads.map(partial(find_confirmed, client.tasks), missing):
                if task is not None:
                    found[task.shortname] = task.uuid
    for attempt in attempts:
        if attempt.by_tag and (uuid := _find_by_tag(client, attempt)):
            found[attempt.name] = uuid
    return found


def _find_by_tag(client: QarnotClient, attempt: Attempt) -> str | None:
    tagged = client.tasks.search_all(
        filters.equal("Tags", attempt.tag), fields=(*POLL_FIELDS, "CreationDate")
    )
    newest = sorted(tagged, key=lambda task: (not is_ending(task), str(task.creation_date)), reverse=True)
    return newest[0].uuid if newest else None


def delete_finished(client: QarnotClient, namespace: str, known: Iterable[str | None]) -> int:
    """Delete the oldest finished Qarnot tasks of executors in *namespace*, and return their number.

    :param known: uuids of Qarnot tasks whose ends this scheduler has yet to read.
    """
    finished = filters.and_(
        filters.equal("Tags", namespace_tag(namespace)), filters.in_("State", sorted(states.TASK_TERMINAL))
    )
    fields = ("Uuid", "State", "Labels", "StateTransitionTime")
    kept = set(known)
    tasks = [
        task
        for task in client.tasks.search_all(finished, fields=fields)
        if label(task.labels, "role") == ROLE and task.uuid not in kept
    ]
    tasks.sort(key=lambda task: str(task.state_transition_time))
    oldest = tasks[: max(1, len(tasks) // 2)][:MAX_DELETED]
    for task in oldest:
        client.tasks.delete(task.uuid)
    return len(oldest)
