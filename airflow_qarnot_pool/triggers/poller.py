"""One shared poll for all subscribers of a connection.

Every trigger that waits in this process for an object of one connection and kind (pool or Qarnot task) shares a
:class:`Poller`. A round requests only the changes: objects with our namespace tag whose ``StateTransitionTime`` is not
older than the previous round. Its cost grows with the number of changes, not with the number of subscribers.

Rounds follow the age of the youngest object, by its last transition on the server's clock. So a triggerer that restarts
among old waits polls rarely, and one new wait makes the rounds of all frequent, which costs one request a round. Each
triggerer polls for itself.

A change query cannot show everything. The rest is polled by uuid, in chunks: new subscriptions at once, objects
without our tag and subscriptions that count running instances in every round, and all of them once in
:data:`SWEEP_EVERY` rounds. A missed change is therefore late and never lost. Many objects of one owner are waited for
by their common tag, as one subscription.

A search that fails or is refused fails no subscriber, and keeps no other search from being sent. The rounds back off,
and a request that was made smaller because the server refused it grows again. The wait of a subscriber fails only if
Qarnot keeps denying the object itself.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeVar

from airflow_qarnot_pool import metrics
from airflow_qarnot_pool.api import filters, states
from airflow_qarnot_pool.api.errors import (
    QarnotCredentialsError,
    QarnotDeletedError,
    QarnotError,
    QarnotInvalidSpecError,
    QarnotNotFoundError,
    QarnotRefusedError,
    QarnotUnknownStateError,
)
from airflow_qarnot_pool.ownership.identity import namespace_tag
from airflow_qarnot_pool.parameters.configuration import SHORTEST, min_poll_interval
from airflow_qarnot_pool.triggers.airflow_requests import read_settings
from airflow_qarnot_pool.version_compat import AirflowNotFoundException
from airflow_qarnot_pool.waiting.conditions import Absence
from airflow_qarnot_pool.waiting.intervals import backoff_delay, poll_delay, requested_pause

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Pool, Task
    from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings

log = logging.getLogger(__name__)

PollKind = Literal["pool", "task", "cost", "bucket", "task_event", "idle_pool"]
T = TypeVar("T")

#: Rounds between full polls. Frequent rounds count less, so that they do not make full polls frequent.
SWEEP_EVERY = 12
#: Maximum uuids per search. Halved when the server rejects the request, doubled after a poll without a rejection.
MAX_UUIDS = 500
#: Statuses of a rejection that a smaller request may avoid. Any other, such as 403, concerns the moment or the account.
TOO_LARGE_STATUSES = frozenset({400, 413, 414, 422})
#: Rejections in a row after which the change query is sent with full polls only.
MAX_REFUSED_ROUNDS = 3
#: Overlap of two change queries, because the server's times have a resolution of 1 s and its parts may disagree by one.
OVERLAP = timedelta(seconds=2)
#: Maximum fraction of an interval by which a round comes early, so the polls of several processes stay out of step.
JITTER = 0.1
#: Number of subscribers that are woken before the event loop runs other tasks, because each of them writes to its log.
WAKE_BATCH = 4
#: Maximum seconds for which a new subscriber waits for others, because triggers start in bursts.
MAX_BURST = 0.5
#: Minimum seconds between two checks for subscribers that have timed out.
MIN_ALARM_INTERVAL = 0.1
#: Maximum rounds with rejected credentials before the subscribers fail. Each of them reads the connection again.
MAX_CREDENTIAL_ROUNDS = 3
#: Seconds after which the connection is read again, because its token may have been replaced.
CONNECTION_MAX_AGE = 300.0

POLL_FIELDS = (
    "Uuid",
    "Shortname",
    "State",
    "PreviousState",
    "StateTransitionTime",
    "PreviousStateTransitionTime",
    "RunningInstanceCount",
    "MultiSlotsSettings",
    "Tags",
    "Errors",
)


class PollKey(NamedTuple):
    """Identity of a poll. Subscribers with equal keys share it."""

    loop: int
    conn_id: str
    kind: PollKind
    name: str


def next_due(due: float, now: float, interval: float, luck: float) -> float:
    """Return when the next round is due, if the last one was due at *due* and is done *now*.

    Counting from *due* keeps the rate of rounds: neither the requests nor a busy event loop lower it. A round that took
    long is followed by a pause of half an interval.

    :param luck: random number from 0 to 1. Jitter only shortens an interval.
    """
    period = interval * (1 - JITTER * luck)
    return max(due + period, now + period / 2)


# Thousands of subscribers wait for hours. So they use no generator, no coroutine, no timer each, no asyncio.Queue
# (3 kB) and no attribute dictionary.
@dataclass(eq=False, slots=True)
class Subscriber:
    """One waiting trigger, from entering the context to leaving it. See :func:`subscribe`.

    :meth:`next` returns each time that an object of its subscription has changed.
    """

    scope: PollKey
    key: str
    is_tag: bool
    interval: float
    every_round: bool
    follows_age: bool = True
    counts_instances: bool = False
    #: Whether it has yet to receive the objects that were observed before it subscribed.
    new: bool = True
    #: When its wait times out, on the event loop's clock.
    due: float | None = None
    _poller: Poller | None = None
    #: Delivered before :meth:`next` was called.
    _pending: list[Pool | Task | Exception] | None = None
    _wake: asyncio.Future[Pool | Task] | None = None

    async def __aenter__(self) -> Self:
        poller = _pollers.get(self.scope)
        if poller is None or poller.closed:
            make = POLLERS.get(self.scope.kind, Poller)
            poller = _pollers[self.scope] = make(self.scope.conn_id, self.scope.kind)
            poller.scope = self.scope
        self.scope = poller.scope or self.scope  # one object for all of them, which saves memory
        self._poller = poller
        poller.add(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._poller is not None
        self._poller.remove(self)
        self._poller.stop_if_idle()

    @property
    def is_behind(self) -> bool:
        """Whether it has updates that :meth:`next` has not returned yet."""
        return bool(self._pending)

    def deliver(self, update: Pool | Task | Exception) -> None:
        """Have :meth:`next` return or raise *update*."""
        self.due = None
        if self._wake is None or self._wake.done():
            self._pending = self._pending or []
            self._pending.append(update)
        else:
            _resolve(self._wake, update)

    def next(self, timeout: float | None) -> asyncio.Future[Pool | Task]:
        """Return a future of the next change, which raises ``TimeoutError`` after *timeout* seconds.

        :raises QarnotDeletedError: the object no longer exists.
        :raises QarnotCredentialsError: the token is rejected for good.
        """
        poller = self._poller
        assert poller is not None
        wake = self._wake = poller.loop.create_future()
        self.due = None
        if self._pending:
            _resolve(wake, self._pending.pop(0))
            self._pending = self._pending or None
        elif timeout is not None:
            self.due = poller.loop.time() + timeout
            poller.schedule_timeout(self.due)
        return wake


def _resolve(wake: asyncio.Future[Pool | Task], update: Pool | Task | Exception) -> None:
    if isinstance(update, Exception):
        wake.set_exception(update)
    else:
        wake.set_result(update)


class Observation(NamedTuple):
    """Facts of a polled object whose change wakes subscribers. It is smaller than the object."""

    state: str
    moved: datetime | None
    running: int | None
    #: Number of finished instances, if they were requested.
    finished: int


@dataclass(eq=False, slots=True)
class Subscription:
    """An object, or all objects with a tag, that one or more subscribers wait for."""

    key: str
    is_tag: bool
    subscribers: list[Subscriber] = field(default_factory=list)
    #: The newest observation of the object.
    last: Observation | None = None
    #: The newest observation of each object with the tag.
    members: dict[str, Observation] | None = None
    #: Whether it has yet to be polled for a subscriber that joined.
    is_new: bool = True
    tagged: bool = True
    #: Whether a subscriber waits for a change that no change query shows.
    needs_every_round: bool = False
    #: Whether a subscriber needs more frequent rounds after a change.
    follows_age: bool = False
    #: Whether a subscriber needs the finished instances.
    counts_instances: bool = False
    #: When it was submitted or has changed, on the event loop's clock.
    changed_at: float = float("-inf")
    #: Set while requests for the object return 404 or are refused.
    absence: Absence | None = None

    @property
    def every_round(self) -> bool:
        """Whether it must be polled in each round."""
        return not self.is_tag and (self.needs_every_round or not self.tagged or self.absence is not None)

    def add(self, subscriber: Subscriber) -> None:
        """Add *subscriber*, which has to receive the current state."""
        self.subscribers.append(subscriber)
        self.is_new = True
        self.needs_every_round = self.needs_every_round or subscriber.every_round
        self.follows_age = self.follows_age or subscriber.follows_age
        self.counts_instances = self.counts_instances or subscriber.counts_instances

    def remove(self, subscriber: Subscriber) -> None:
        """Remove *subscriber*."""
        self.subscribers.remove(subscriber)
        self.needs_every_round = any(other.every_round for other in self.subscribers)
        self.follows_age = any(other.follows_age for other in self.subscribers)
        self.counts_instances = any(other.counts_instances for other in self.subscribers)

    def observe(self, snapshot: Pool | Task, moved_at: float, now: float) -> list[Subscriber]:
        """Store *snapshot* and return the subscribers for which it is news.

        :param moved_at: when its state changed, on the event loop's clock.
        :param now: the time on this clock.
        """
        observation = Observation(
            snapshot.state,
            snapshot.state_transition_time,
            snapshot.running_instance_count,
            len(getattr(snapshot, "completed_instances", ())),
        )
        if self.is_tag:
            self.members = {} if self.members is None else self.members
            earlier = self.members.get(snapshot.uuid)
            self.members[snapshot.uuid] = observation
        else:
            earlier, self.last, self.absence = self.last, observation, None
        changed = earlier != observation
        # The instances of an array finish one after another, which says nothing about its end.
        is_progress = self.counts_instances and earlier is not None and earlier[:2] == observation[:2]
        # An object that has ended does not change any more.
        if changed and not is_progress and not _has_ended(snapshot.state):
            self.changed_at = max(self.changed_at, moved_at if earlier is None else now)
        return [subscriber for subscriber in self.subscribers if changed or subscriber.new]

    def mark_polled(self, notified: Iterable[Subscriber] | None = None) -> None:
        """Record that *notified*, by default all subscribers, have received all objects of the subscription."""
        for subscriber in self.subscribers if notified is None else notified:
            subscriber.new = False
        self.is_new = any(subscriber.new for subscriber in self.subscribers)

    def fail(self, error: QarnotError) -> None:
        """End the wait of all subscribers with *error*."""
        self.is_new = False
        for subscriber in self.subscribers:
            subscriber.deliver(error)


def _has_ended(state: str) -> bool:
    """Return whether an object in *state* has finished. An unknown state concerns only its subscribers."""
    try:
        return states.is_terminal(state)
    except QarnotUnknownStateError:
        return False


class Poller:
    """The shared poll loop of one connection and kind on one event loop. See the text of the module."""

    def __init__(self, conn_id: str, kind: PollKind) -> None:
        self.conn_id = conn_id
        self.kind = kind
        self.scope: PollKey | None = None
        self.loop = asyncio.get_running_loop()
        self.subscriptions: dict[str, Subscription] = {}
        self.rounds = 0
        #: Number of subscribers by the interval that they asked for.
        self._intervals: Counter[float] = Counter()
        #: Number of subscribers that need finished instances.
        self._counting = 0
        self._shortest = _shortest_interval()
        #: The round of the last full poll, and when it was.
        self._swept: tuple[int, float] = (0, self.loop.time())
        #: One timer for the timeouts of all subscribers, because a timer for each would take half a kilobyte.
        self._alarm: asyncio.TimerHandle | None = None
        self._arrived = asyncio.Event()
        #: All changes up to this time on the server's clock have been observed.
        self._mark: datetime | None = None
        #: A time that the server's clock had passed, and when that was on the event loop's clock.
        self._clock: tuple[datetime, float] | None = None
        self._failures = 0
        #: The error of a single request since the last pause that asks for the longest pause, or the first of them.
        self._deferred_error: QarnotError | None = None
        self._refused = 0
        #: Rejections of the change query in a row.
        self._changes_refused = 0
        #: When the last successful change query was sent, on the event loop's clock.
        self._changes_requested_at = self.loop.time()
        self._max_uuids = MAX_UUIDS
        self._settings: ConnectionSettings | None = None
        self._settings_read = float("-inf")
        self._client: QarnotClient | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"qarnot-poll-{kind}")
        # An empty context, because the log lines of the poll belong to the triggerer and not to the first trigger.
        self._context = contextvars.Context()
        self._task = self.loop.create_task(
            self._run(), name=f"qarnot poll of {kind}s, {conn_id}", context=self._context
        )
        self._task.add_done_callback(self._ended)

    # --- subscribers

    @property
    def closed(self) -> bool:
        """Whether it polls no more."""
        return self._task.done() or self._task.cancelling() > 0 or self.loop.is_closed()

    def add(self, subscriber: Subscriber) -> None:
        """Poll for *subscriber*, too."""
        subscription = self.subscriptions.get(subscriber.key)
        if subscription is None:
            subscription = Subscription(subscriber.key, subscriber.is_tag)
            self.subscriptions[subscriber.key] = subscription
        subscription.add(subscriber)
        self._intervals[subscriber.interval] += 1
        self._counting += subscriber.counts_instances
        self._arrived.set()

    def remove(self, subscriber: Subscriber) -> None:
        """Stop polling for *subscriber*."""
        subscription = self.subscriptions[subscriber.key]
        subscription.remove(subscriber)
        if not subscription.subscribers:
            del self.subscriptions[subscriber.key]
        self._intervals[subscriber.interval] -= 1
        self._counting -= subscriber.counts_instances
        if not self._intervals[subscriber.interval]:
            del self._intervals[subscriber.interval]

    def stop_if_idle(self) -> None:
        """Stop if there are no subscriptions. The next subscriber starts another poller."""
        if not self.subscriptions:
            self._task.cancel()
            self._ended()

    def _ended(self, *_: object) -> None:
        self._thread.shutdown(wait=False)
        for scope in [scope for scope, poller in _pollers.items() if poller is self]:
            del _pollers[scope]
        if self._alarm is not None and not self.subscriptions:
            self._alarm.cancel()

    def schedule_timeout(self, due: float) -> None:
        """Have subscribers time out at *due*, on the event loop's clock."""
        if self._alarm is None or due < self._alarm.when():
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = self.loop.call_at(due, self._expire, context=self._context)

    def _expire(self) -> None:
        """Time out the subscribers that are due, and schedule the next timeout."""
        self._alarm = None
        now, soonest = self.loop.time(), float("inf")
        for subscription in self.subscriptions.values():
            for subscriber in subscription.subscribers:
                if subscriber.due is None:
                    continue
                if subscriber.due <= now:
                    subscriber.deliver(TimeoutError())
                else:
                    soonest = min(soonest, subscriber.due)
        if soonest < float("inf"):
            self.schedule_timeout(max(soonest, now + MIN_ALARM_INTERVAL))

    # --- the loop

    async def _run(self) -> None:
        # The polls of new subscriptions show the current state, so the first round can wait for an interval.
        due = self.loop.time() + self._interval()
        while True:
            # A subscriber that arrives during the requests below is polled right after them.
            self._arrived.clear()
            try:
                await self._refresh_credentials()
                await self._poll(
                    [each for each in self.subscriptions.values() if each.is_new and each.absence is None]
                )
                # A new subscriber may have a shorter interval, or a younger object.
                due = min(due, self.loop.time() + self._delay())
                if self.loop.time() >= due:
                    started = self.loop.time()
                    await self._round()
                    self._emit_metrics(self.loop.time() - started)
                    due = next_due(due, self.loop.time(), self._delay(), random.random())
                if (error := self._deferred_error) is not None:
                    raise error
                self._failures = self._refused = 0
            except Exception as error:
                self._deferred_error = None
                pause = self._pause_after(error)
                due = self.loop.time() + pause
                await asyncio.sleep(pause)
                continue
            try:
                async with asyncio.timeout_at(due):
                    await self._arrived.wait()
                    # A burst should become one request.
                    await asyncio.sleep(min(MAX_BURST, self._interval() / 10))
            except TimeoutError:
                pass

    def _emit_metrics(self, seconds: float) -> None:
        count_poll(self.kind, self.conn_id, self._intervals.total(), len(self.subscriptions), seconds)

    def _interval(self) -> float:
        """Return the maximum seconds between rounds, which are the shortest interval of all subscribers."""
        return min(self._intervals, default=1.0)

    def _delay(self) -> float:
        """Return the seconds until the next round, which follow the age of the youngest object."""
        now = self.loop.time()
        # A missing object is young, because the next rounds have to confirm that it is deleted.
        changes = (
            each.changed_at if each.absence is None else now
            for each in self.subscriptions.values()
            if each.follows_age
        )
        age = now - max(changes, default=float("-inf"))
        return poll_delay(age, self._shortest, self._interval())

    def _pause_after(self, error: Exception) -> float:
        """Return the seconds to wait after a failed round, and fail the subscribers if the error is permanent."""
        self._failures += 1
        shortest = min(self._shortest, self._interval())
        pause = backoff_delay(self._delay(), self._failures, requested_pause(error), shortest)
        pause *= random.uniform(1.0, 1.2)  # never shorter, because the service may have asked for it
        if isinstance(error, (QarnotCredentialsError, QarnotInvalidSpecError)):
            self._refused += 1
            self._settings_read = float("-inf")
            if self._refused >= MAX_CREDENTIAL_ROUNDS:
                for subscription in self.subscriptions.values():
                    subscription.fail(error)
        elif not isinstance(error, QarnotError):
            log.error("Polling the %ss of %s failed", self.kind, self.conn_id, exc_info=error)
        if self._failures == 1 or self._failures % 10 == 0:
            log.warning(
                "Could not poll %d %ss of connection %s in attempt %d. Polling again in %.0f s: %s",
                len(self.subscriptions),
                self.kind,
                self.conn_id,
                self._failures,
                pause,
                error,
            )
        return pause

    @contextmanager
    def _deferring_errors(self) -> Iterator[None]:
        """Defer the error of one request to the end of the round, which sends the other requests.

        A search may fail for its size alone, for as long as its subscribers wait. During an outage the round sends
        each of its requests once.
        """
        try:
            yield
        except (QarnotCredentialsError, QarnotInvalidSpecError):
            raise
        except QarnotError as error:
            earlier = self._deferred_error
            if earlier is None or requested_pause(error) > requested_pause(earlier):
                self._deferred_error = error

    async def _refresh_credentials(self) -> None:
        """Read the connection from time to time and after a 401, because tokens are replaced while triggers wait."""
        if time.monotonic() - self._settings_read < CONNECTION_MAX_AGE:
            return
        try:
            settings = await read_settings(self.conn_id)
        except AirflowNotFoundException as error:
            raise QarnotInvalidSpecError(
                f"There is no connection {self.conn_id!r}: {error}", field="qarnot_conn_id"
            ) from error
        if settings != self._settings:
            # No retries, because this loop backs off itself and stays quick to cancel.
            self._client = await self._request(lambda: settings.client(retries=0))
            self._settings = settings
        self._settings_read = time.monotonic()

    async def _request(self, request: Callable[[], T]) -> T:
        return await self.loop.run_in_executor(self._thread, request)

    @property
    def _fields(self) -> tuple[str, ...]:
        """Return the fields of the objects that the subscribers need. Those of an array take 100s of kB."""
        return (*POLL_FIELDS, "CompletedInstances") if self._counting else POLL_FIELDS

    @property
    def _resource(self) -> Any:
        assert self._client is not None
        return self._client.pools if self.kind == "pool" else self._client.tasks

    # --- one round

    async def _round(self) -> None:
        self.rounds += 1
        now = self.loop.time()
        sweep = self._is_sweep_due(now)
        if sweep:
            self._swept = (self.rounds, now)
        if all(each.every_round or each.counts_instances for each in self.subscriptions.values()):
            # A query for changes would cost the same request, and show no finished instances.
            sweep = True
        else:
            asks = self._can_ask_for_changes or sweep
            with self._deferring_errors():
                sweep = not (asks and await self._poll_changes()) or sweep
        await self._poll([each for each in self.subscriptions.values() if sweep or each.every_round])

    def _is_sweep_due(self, now: float) -> bool:
        """Return whether it is time for a full poll: after some rounds, and not before they could be rare ones."""
        rounds, swept_at = self._swept
        # Rounds may come early, by their jitter.
        earliest = swept_at + (1 - JITTER) * SWEEP_EVERY * self._interval()
        return self.rounds - rounds >= SWEEP_EVERY and now >= earliest

    @property
    def _can_ask_for_changes(self) -> bool:
        return self._changes_refused < MAX_REFUSED_ROUNDS

    async def _poll_changes(self) -> bool:
        """Request the changes since the last query and notify the subscribers. Return False if the server refuses."""
        assert self._settings is not None
        mark, requested_at = self._mark, self.loop.time()
        if mark is None:
            return True  # no response yet: the polls of new subscriptions show the server's time
        changed = filters.and_(
            filters.equal("Tags", namespace_tag(self._settings.namespace)),
            filters.ge("StateTransitionTime", (mark - OVERLAP).strftime("%Y-%m-%dT%H:%M:%SZ")),
        )
        search = partial(self._search_changes, changed, set(self.subscriptions))
        try:
            snapshots = await self._request(search)
        except QarnotRefusedError as error:
            self._changes_refused += 1
            if self._changes_refused in (1, MAX_REFUSED_ROUNDS):
                log.warning("Qarnot refuses to search by time, so all %ss are polled: %s", self.kind, error)
            return False
        self._changes_refused = 0
        await self._notify(snapshots)
        self._advance(mark, requested_at)
        return True

    def _search_changes(self, changed: filters.Filter, unseen: set[str]) -> list[Pool | Task]:
        """Return the objects that have changed, or those of the first search if no other is *unseen* then."""
        found: list[Pool | Task] = []
        # If the server lowers its limit, a full poll shows what a query lacks.
        for snapshot in self._resource.search_each(changed, fields=self._fields, trust_limit=True):
            found.append(snapshot)
            unseen.discard(snapshot.uuid)
            if not unseen:
                break
        return found

    def _advance(self, mark: datetime, requested_at: float) -> None:
        """Move the mark to the server's time at *requested_at*, because the response lacks all later changes."""
        reached = self._server_time(requested_at) or mark
        if reached < mark:
            # The clock was set back at some time since the last query, so all changes since then are requested again.
            reached -= timedelta(seconds=requested_at - self._changes_requested_at)
        self._mark, self._changes_requested_at = reached, requested_at

    def _server_time(self, at: float) -> datetime | None:
        """Return a time that the server's clock had reached at *at* on the event loop's clock.

        Two estimates exist: the newest transition plus the time since it was observed, and the date of the newest
        response plus the time since it came. The earlier one counts. No local time is compared with a server time.
        Transitions alone would follow an object whose time is in the future, and not a clock that is set back. Dates
        alone may come from a proxy whose clock is ahead of the one that stamps transitions.
        """
        estimates = [known for known in (self._clock, self._response_date()) if known is not None]
        return min((then + timedelta(seconds=at - here) for then, here in estimates), default=None)

    def _response_date(self) -> tuple[datetime, float] | None:
        """Return the server's date in its newest response, and when it came on the event loop's clock."""
        dated = self._client.transport.dated if self._client is not None else None
        if dated is None:
            return None
        date, came = dated
        return date, self.loop.time() - (time.monotonic() - came)

    async def _poll(self, subscriptions: list[Subscription]) -> None:
        """Poll *subscriptions*: as few searches for uuids as the server allows, and one search for each tag."""
        uuids = [subscription.key for subscription in subscriptions if not subscription.is_tag]
        with self._deferring_errors():
            if uuids and await self._poll_in_chunks(uuids):
                self._max_uuids = min(MAX_UUIDS, 2 * self._max_uuids)
        for subscription in subscriptions:
            if subscription.is_tag:
                with self._deferring_errors():
                    await self._poll_tag(subscription)

    async def _poll_tag(self, subscription: Subscription) -> None:
        tagged = filters.equal("Tags", subscription.key)
        joined = [subscriber for subscriber in subscription.subscribers if subscriber.new]
        search = partial(self._resource.search_all, tagged, fields=POLL_FIELDS)
        await self._notify(await self._request(search))
        subscription.mark_polled(joined)

    async def _poll_in_chunks(self, uuids: list[str]) -> bool:
        """Poll the objects *uuids*, in smaller chunks if the server rejects one. Return whether it rejected none."""
        rejected_none = True
        while uuids:
            chunk, uuids = uuids[: self._max_uuids], uuids[self._max_uuids :]
            chunk = [uuid for uuid in chunk if uuid in self.subscriptions]
            try:
                missing = await self._poll_uuids(chunk)
            except QarnotRefusedError as error:
                if error.status not in TOO_LARGE_STATUSES:
                    raise
                rejected_none = False
                if len(chunk) > 1:
                    self._max_uuids = max(1, len(chunk) // 2)
                    uuids = chunk + uuids
                    continue
                missing = chunk
            for uuid in missing:
                await self._confirm(uuid)
        return rejected_none

    async def _poll_uuids(self, uuids: list[str]) -> list[str]:
        """Search for the objects *uuids* and notify their subscribers. Return the uuids that no search shows.

        The server may return fewer objects than it has, so missing objects are requested again.
        """
        while uuids:
            snapshots = await self._request(partial(self._search, uuids))
            await self._notify(snapshots)
            shown = {snapshot.uuid for snapshot in snapshots}
            missing = [uuid for uuid in uuids if uuid not in shown]
            if len(missing) == len(uuids):
                break
            uuids = missing
        return uuids

    def _search(self, uuids: list[str]) -> list[Pool | Task]:
        snapshots: list[Pool | Task] = self._resource.search(
            filters.in_("Uuid", uuids), fields=self._fields, limit=len(uuids)
        )
        return snapshots

    async def _confirm(self, uuid: str) -> None:
        """Request the object itself, because a search that misses it proves nothing.

        A 404 or a refusal is confirmed in the next rounds, because a proxy or a lagging replica may have sent it.
        """
        resource = self._resource
        with self._deferring_errors():
            try:
                await self._notify([await self._request(lambda: resource.get(uuid))])
            except (QarnotNotFoundError, QarnotRefusedError) as error:
                if subscription := self.subscriptions.get(uuid):
                    self._record_absence(subscription, error)

    def _record_absence(
        self, subscription: Subscription, error: QarnotNotFoundError | QarnotRefusedError
    ) -> None:
        """Fail the subscribers of *subscription* if it is certain by now that Qarnot denies the object."""
        subscription.absence = subscription.absence or Absence(self._interval())
        if not subscription.absence.is_certain(error, self.loop.time()):
            log.info("Polling again, because a single refusal or 404 proves nothing: %s", error)
        elif isinstance(error, QarnotRefusedError):
            subscription.fail(error)
        else:
            deleted = QarnotDeletedError(
                f"Qarnot {self.kind} {subscription.key} was deleted before its end was observed.",
                status=error.status,
                kind=self.kind,
                ref=subscription.key,
            )
            subscription.fail(deleted)

    # --- notifying the subscribers

    async def _notify(self, snapshots: Iterable[Pool | Task]) -> None:
        woken = 0
        for snapshot in snapshots:
            self._observe_time(snapshot.state_transition_time)
            now = self.loop.time()
            moved_at = self._moved_at(snapshot.state_transition_time, now)
            for key in (snapshot.uuid, *snapshot.tags):
                if (subscription := self.subscriptions.get(key)) is None:
                    continue
                subscribers = subscription.observe(snapshot, moved_at, now)
                if not subscription.is_tag:
                    if self._settings:
                        subscription.tagged = namespace_tag(self._settings.namespace) in snapshot.tags
                    subscription.mark_polled(subscribers)
                for subscriber in subscribers:
                    subscriber.deliver(snapshot)
                    woken += 1
                    if woken % WAKE_BATCH == 0:
                        await asyncio.sleep(0)
        if self._mark is None:
            self._set_first_mark()

    def _set_first_mark(self) -> None:
        # The times as received, because the server's clock may not have advanced since its response.
        estimates = [known for known in (self._clock, self._response_date()) if known is not None]
        self._mark = min((then for then, _ in estimates), default=None)
        self._changes_requested_at = self.loop.time()

    def _moved_at(self, moved: datetime | None, now: float) -> float:
        """Return when a transition was, on the event loop's clock. It is *now* if that is unknown or in the future."""
        dated = self._response_date()
        if moved is None or dated is None:
            return now
        date, came = dated
        return min(now, came - (date - moved).total_seconds())

    def _observe_time(self, moved: datetime | None) -> None:
        """Take *moved* for the server's clock if it is the newest transition and not in the server's future."""
        dated, now = self._response_date(), self.loop.time()
        if moved is None or (
            dated is not None and moved > dated[0] + timedelta(seconds=now - dated[1]) + OVERLAP
        ):
            return
        if self._clock is None or moved > self._clock[0] + timedelta(seconds=now - self._clock[1]):
            self._clock = (moved, now)


_pollers: dict[PollKey, Poller] = {}
#: Classes of pollers by kind, if not :class:`Poller`.
POLLERS: dict[PollKind, type[Poller]] = {}


def subscribe(
    conn_id: str,
    kind: PollKind,
    key: str,
    *,
    interval: float,
    is_tag: bool = False,
    every_round: bool = False,
    follows_age: bool = True,
    counts_instances: bool = False,
    scope: str = "",
) -> Subscriber:
    """Wait for changes with one poll for all subscribers.

    The result is an async context manager that yields the subscriber.

    :param key: uuid of an object. With *is_tag*, a tag, which stands for all objects that carry it.
    :param interval: maximum seconds between polls. The shortest interval of all subscribers counts.
    :param every_round: poll in every round, for changes that are no state transition (running instances).
    :param follows_age: poll more frequently after the object was submitted or has changed.
    :param counts_instances: also return when an instance of the Qarnot task has finished. It is polled with the others
        if their polls cost a request in any case.
    :param scope: subscribers of different scopes share no poll.
    """
    shared = PollKey(id(asyncio.get_running_loop()), conn_id, kind, scope)
    return Subscriber(shared, key, is_tag, interval, every_round, follows_age, counts_instances)


def _shortest_interval() -> float:
    """Return the lower bound of the interval. A mistake in the configuration of a triggerer fails no wait."""
    try:
        return min_poll_interval()
    except QarnotInvalidSpecError as error:
        log.error("%s Using %s s.", error, SHORTEST)
        return SHORTEST


def pollers() -> Iterator[Poller]:
    """Return the live pollers of this process."""
    return iter(_pollers.values())


def count_poll(kind: str, conn_id: str, subscribers: int, size: int, seconds: float) -> None:
    """Emit the metrics of a round: its subscribers, its objects and its duration."""
    tags = {"kind": kind, "conn_id": conn_id}
    metrics.gauge("poll.waiters", subscribers, **tags)
    metrics.gauge("poll.size", size, **tags)
    metrics.timing("poll.duration", seconds, **tags)
