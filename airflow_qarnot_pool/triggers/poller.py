"""One poll for all subscribers of a connection.

Every trigger that waits in this process for an object of one connection and kind (pool or Qarnot task) shares a
:class:`Poller`. A round asks only for what changed: objects with our namespace tag whose ``StateTransitionTime``
is not older than the round before. Its cost grows with the number of changes, not with the number of subscribers.

What a change query cannot show is swept, by uuid in chunks: new subscribers at once, objects without our tag and
subscribers on counts in every round, everybody once in :data:`SWEEP_EVERY` rounds, so that a missed change is late
and never lost. Many objects of one owner are waited for by their common tag, as one subscription.

A search that fails or is refused fails no subscriber: the rounds back off, and what was made smaller for a server that
refused grows again. Only an object that Qarnot itself goes on to deny ends the wait of its subscribers.
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
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from airflow_qarnot_pool import metrics
from airflow_qarnot_pool.api import filters
from airflow_qarnot_pool.api.errors import (
    QarnotCredentialsError,
    QarnotDeletedError,
    QarnotError,
    QarnotInvalidSpecError,
    QarnotNotFoundError,
    QarnotProtocolError,
    QarnotRefusedError,
    QarnotUnavailableError,
)
from airflow_qarnot_pool.ownership.identity import namespace_tag
from airflow_qarnot_pool.waiting.conditions import Absence

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Pool, Task
    from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings

log = logging.getLogger(__name__)

PollKind = Literal["pool", "task", "cost"]
T = TypeVar("T")

#: Rounds between two sweeps of everybody.
SWEEP_EVERY = 12
#: Uuids in one search; halved when the server refuses the request, doubled after a look without a refusal.
MAX_UUIDS = 500
#: Statuses of a refusal that a smaller request may avoid. Any other, as 403, is about the moment or the account.
TOO_LARGE_STATUSES = frozenset({400, 413, 414, 422})
#: Refusals in a row after which the query for changes is sent with each sweep only.
MAX_REFUSED_ROUNDS = 3
#: The server's times have a resolution of 1 s, and its parts need not agree to the second.
OVERLAP = timedelta(seconds=2)
MAX_BACKOFF = 60.0
#: Most seconds that a Retry-After keeps everybody from asking. One request in so long is no burden on any service, and
#: what asks for hours may be a proxy, or only one of many objects.
MAX_RETRY_AFTER = 600.0
#: By how much of an interval a round may come early, so that the polls of several processes do not march in step.
JITTER = 0.1
#: Waiters woken before the rest of the event loop has its turn: each of them has something to log.
WAKE_BATCH = 4
#: Seconds between two looks for those whose time is over.
MIN_ALARM_INTERVAL = 0.1
#: Rounds with refused credentials, each after reading the connection afresh, before the subscribers fail.
MAX_CREDENTIAL_ROUNDS = 3
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
    """Whose subscribers share a poll."""

    loop: int
    conn_id: str
    kind: PollKind
    name: str


def next_due(due: float, now: float, interval: float, luck: float) -> float:
    """When the next round is due, where this one was due at *due* and is done *now*.

    Reckoned from when it was due: neither the requests nor a busy event loop make rounds rarer than asked for.
    After one that took long there is rest, for half an interval.

    :param luck: 0 to 1, a random number. Jitter only ever shortens an interval.
    """
    period = interval * (1 - JITTER * luck)
    return max(due + period, now + period / 2)


# Thousands wait, each for hours: no generator, no coroutine, no timer of its own, no asyncio.Queue (3 kB), no
# attribute dictionary.
@dataclass(eq=False, slots=True)
class Subscriber:
    """One waiting trigger, from entering the context to leaving it; see :func:`subscribe`.

    :meth:`next` answers each time an object of its subscription is seen changed.
    """

    scope: PollKey
    key: str
    is_tag: bool
    interval: float
    every_round: bool
    #: Not told yet what was seen before it came.
    new: bool = True
    #: When waiting is over, on the event loop's clock.
    due: float | None = None
    _poller: Poller | None = None
    #: Told, and not asked for yet.
    _pending: list[Pool | Task | Exception] | None = None
    _wake: asyncio.Future[Pool | Task] | None = None

    async def __aenter__(self) -> Subscriber:
        poller = _pollers.get(self.scope)
        if poller is None or poller.closed:
            make = POLLERS.get(self.scope.kind, Poller)
            poller = _pollers[self.scope] = make(self.scope.conn_id, self.scope.kind)
            poller.scope = self.scope
        self.scope = poller.scope or self.scope  # all keep the same one
        self._poller = poller
        poller.add(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._poller is not None
        self._poller.remove(self)
        self._poller.stop_if_idle()

    def deliver(self, look: Pool | Task | Exception) -> None:
        """Have :meth:`next` answer, or raise, *look*."""
        self.due = None
        if self._wake is None or self._wake.done():
            self._pending = self._pending or []
            self._pending.append(look)
        else:
            _resolve(self._wake, look)

    def next(self, timeout: float | None) -> asyncio.Future[Pool | Task]:
        """The next change, to be awaited at most *timeout* seconds (then ``TimeoutError``).

        :raises QarnotDeletedError: the object is not there any more.
        :raises QarnotCredentialsError: the token is refused for good.
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


def _resolve(wake: asyncio.Future[Pool | Task], look: Pool | Task | Exception) -> None:
    if isinstance(look, Exception):
        wake.set_exception(look)
    else:
        wake.set_result(look)


class Observation(NamedTuple):
    """What must differ between two looks at an object to wake anybody; less to keep than the look."""

    state: str
    moved: datetime | None
    running: int | None


@dataclass(eq=False, slots=True)
class Subscription:
    """What is waited for, by one subscriber or several: an object, or all objects with a tag."""

    key: str
    is_tag: bool
    subscribers: list[Subscriber] = field(default_factory=list)
    #: The newest look at the object.
    last: Observation | None = None
    #: The newest look at each object with the tag.
    members: dict[str, Observation] | None = None
    #: Not looked up since a subscriber joined.
    is_new: bool = True
    tagged: bool = True
    #: A query for changes cannot show what somebody here waits for.
    needs_every_round: bool = False
    #: Set while the object is answered with 404, or refused.
    absence: Absence | None = None

    @property
    def every_round(self) -> bool:
        """Whether it must be looked up in each round."""
        return not self.is_tag and (self.needs_every_round or not self.tagged or self.absence is not None)

    def add(self, subscriber: Subscriber) -> None:
        self.subscribers.append(subscriber)
        self.is_new = True
        self.needs_every_round = self.needs_every_round or subscriber.every_round

    def remove(self, subscriber: Subscriber) -> None:
        self.subscribers.remove(subscriber)
        self.needs_every_round = any(other.every_round for other in self.subscribers)

    def observe(self, look: Pool | Task) -> list[Subscriber]:
        """The subscribers to whom *look* shows something new."""
        seen = Observation(look.state, look.state_transition_time, look.running_instance_count)
        if self.is_tag:
            self.members = {} if self.members is None else self.members
            changed = self.members.get(look.uuid) != seen
            self.members[look.uuid] = seen
        else:
            changed, self.last, self.absence = self.last != seen, seen, None
        return [subscriber for subscriber in self.subscribers if changed or subscriber.new]

    def mark_polled(self, told: Iterable[Subscriber] | None = None) -> None:
        """These, or all who wait, have been told of all of its objects."""
        for subscriber in self.subscribers if told is None else told:
            subscriber.new = False
        self.is_new = any(subscriber.new for subscriber in self.subscribers)

    def fail(self, error: QarnotError) -> None:
        """End the wait of everybody here."""
        self.is_new = False
        for subscriber in self.subscribers:
            subscriber.deliver(error)


class Poller:
    """The shared poll loop of one connection and kind on one event loop; see the module's text."""

    def __init__(self, conn_id: str, kind: PollKind) -> None:
        self.conn_id = conn_id
        self.kind = kind
        self.scope: PollKey | None = None
        self.loop = asyncio.get_running_loop()
        self.subscriptions: dict[str, Subscription] = {}
        self.rounds = 0
        #: How many subscribers asked for which interval.
        self._intervals: Counter[float] = Counter()
        #: One timer for the timeouts of all subscribers, because a timer for each would take half a kilobyte.
        self._alarm: asyncio.TimerHandle | None = None
        self._arrived = asyncio.Event()
        #: Every change up to here has been seen; the server's clock.
        self._mark: datetime | None = None
        #: A time of the server's clock that was over at this time of ours.
        self._clock: tuple[datetime, float] | None = None
        self._failures = 0
        #: What a single object has met since the last pause.
        self._deferred_error: QarnotError | None = None
        self._refused = 0
        #: Refusals of the query for changes, in a row.
        self._changes_refused = 0
        #: When the last query for changes that was answered was sent, on the event loop's clock.
        self._changes_requested_at = self.loop.time()
        self._max_uuids = MAX_UUIDS
        self._settings: ConnectionSettings | None = None
        self._settings_read = float("-inf")
        self._client: QarnotClient | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"qarnot-poll-{kind}")
        # An empty context: its log lines belong to the triggerer, not to the trigger that happens to come first.
        self._context = contextvars.Context()
        self._task = self.loop.create_task(
            self._run(), name=f"qarnot poll of {kind}s, {conn_id}", context=self._context
        )
        self._task.add_done_callback(self._ended)

    # --- subscribers

    @property
    def closed(self) -> bool:
        return self._task.done() or self.loop.is_closed()

    def add(self, subscriber: Subscriber) -> None:
        subscription = self.subscriptions.get(subscriber.key)
        if subscription is None:
            subscription = self.subscriptions[subscriber.key] = Subscription(
                subscriber.key, subscriber.is_tag
            )
        subscription.add(subscriber)
        self._intervals[subscriber.interval] += 1
        self._arrived.set()

    def remove(self, subscriber: Subscriber) -> None:
        subscription = self.subscriptions[subscriber.key]
        subscription.remove(subscriber)
        if not subscription.subscribers:
            del self.subscriptions[subscriber.key]
        self._intervals[subscriber.interval] -= 1
        if not self._intervals[subscriber.interval]:
            del self._intervals[subscriber.interval]

    def stop_if_idle(self) -> None:
        """End where there is nothing to watch any more; whoever comes next starts another."""
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
        """The time of a subscriber will be over then."""
        if self._alarm is None or due < self._alarm.when():
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = self.loop.call_at(due, self._expire, context=self._context)

    def _expire(self) -> None:
        """End the waiting of those whose time is over, and see when the next one's will be."""
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
        # The first looks tell all there is to know by now.
        due = self.loop.time() + self._interval()
        while True:
            # Whoever comes from here on, while it asks, is seen to right after.
            self._arrived.clear()
            try:
                await self._refresh_credentials()
                new = [
                    subscription
                    for subscription in self.subscriptions.values()
                    if subscription.is_new and subscription.absence is None
                ]
                await self._poll(new)
                # One who is new may want to look more often.
                due = min(due, self.loop.time() + self._interval())
                if self.loop.time() >= due:
                    begun = self.loop.time()
                    await self._round()
                    self._emit_metrics(self.loop.time() - begun)
                    due = next_due(due, self.loop.time(), self._interval(), random.random())
                if (spared := self._deferred_error) is not None:
                    raise spared
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
                    # Triggers start in bursts: let a burst become one request.
                    await asyncio.sleep(min(0.5, self._interval() / 10))
            except TimeoutError:
                pass

    def _emit_metrics(self, seconds: float) -> None:
        count_poll(self.kind, self.conn_id, self._intervals.total(), len(self.subscriptions), seconds)

    def _interval(self) -> float:
        """Seconds between two rounds: the shortest any subscriber asked for."""
        return min(self._intervals, default=1.0)

    def _pause_after(self, error: Exception) -> float:
        """Seconds to wait after a failed round; fails the subscribers where the error will not pass."""
        self._failures += 1
        pause = min(MAX_BACKOFF, self._interval() * 2 ** min(self._failures, 10))
        pause *= random.uniform(0.8, 1.2)
        if isinstance(error, (QarnotCredentialsError, QarnotInvalidSpecError)):
            self._refused += 1
            self._settings_read = float("-inf")
            if self._refused >= MAX_CREDENTIAL_ROUNDS:
                for subscription in self.subscriptions.values():
                    subscription.fail(error)
        elif isinstance(error, QarnotUnavailableError):
            pause = max(pause, min(error.retry_after or 0.0, MAX_RETRY_AFTER))
        elif not isinstance(error, QarnotError):
            log.error("Polling the %ss of %s failed", self.kind, self.conn_id, exc_info=error)
        if self._failures == 1 or self._failures % 10 == 0:
            log.warning(
                "Could not ask Qarnot (connection %s) about %d %ss, attempt %d; asking again in %.0f s: %s",
                self.conn_id,
                len(self.subscriptions),
                self.kind,
                self._failures,
                pause,
                error,
            )
        return pause

    @contextmanager
    def _deferring_errors(self) -> Iterator[None]:
        """Keep an error about one object from stopping the look at the others; the round fails after that."""
        try:
            yield
        except (
            QarnotUnavailableError,
            QarnotRefusedError,
            QarnotProtocolError,
            QarnotNotFoundError,
        ) as error:
            self._deferred_error = self._deferred_error or error

    async def _refresh_credentials(self) -> None:
        """Read the connection now and then, and after a 401: tokens get changed while triggers wait."""
        if time.monotonic() - self._settings_read < CONNECTION_MAX_AGE:
            return
        from airflow.sdk import BaseHook

        from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings
        from airflow_qarnot_pool.version_compat import AirflowNotFoundException

        try:
            settings = ConnectionSettings.of(await BaseHook.aget_connection(self.conn_id))
        except AirflowNotFoundException as error:
            raise QarnotInvalidSpecError(
                f"There is no connection {self.conn_id!r} any more: {error}", field="qarnot_conn_id"
            ) from error
        except QarnotError:
            raise
        except Exception as error:
            if self._settings is None:
                raise
            # Airflow's own API may be away for a while; what was read before still serves.
            log.warning("Could not read connection %s again: %s", self.conn_id, error)
            settings = self._settings
        if settings != self._settings:
            # No retries in there: this loop backs off itself, and stays quick to cancel.
            self._client = await self._request(lambda: settings.client(retries=0))
            self._settings = settings
        self._settings_read = time.monotonic()

    async def _request(self, request: Callable[[], T]) -> T:
        return await self.loop.run_in_executor(self._thread, request)

    @property
    def _resource(self) -> Any:
        assert self._client is not None
        return self._client.pools if self.kind == "pool" else self._client.tasks

    # --- one round

    async def _round(self) -> None:
        self.rounds += 1
        sweep = self.rounds % SWEEP_EVERY == 0
        if not all(subscription.every_round for subscription in self.subscriptions.values()):
            asks = self._can_ask_for_changes or sweep
            sweep = not (asks and await self._poll_changes()) or sweep
        await self._poll(
            [
                subscription
                for subscription in self.subscriptions.values()
                if sweep or subscription.every_round
            ]
        )

    @property
    def _can_ask_for_changes(self) -> bool:
        return self._changes_refused < MAX_REFUSED_ROUNDS

    async def _poll_changes(self) -> bool:
        """Ask for what changed since the last time, and tell whom it concerns; False if the server refuses."""
        assert self._settings is not None
        mark, asked_at = self._mark, self.loop.time()
        if mark is None:
            return True  # nothing seen yet: the first looks tell the server's time
        changed = filters.and_(
            filters.equal("Tags", namespace_tag(self._settings.namespace)),
            filters.ge("StateTransitionTime", (mark - OVERLAP).strftime("%Y-%m-%dT%H:%M:%SZ")),
        )
        resource = self._resource
        try:
            found = await self._request(lambda: resource.search_all(changed, fields=POLL_FIELDS))
        except QarnotRefusedError as error:
            self._changes_refused += 1
            if self._changes_refused in (1, MAX_REFUSED_ROUNDS):
                log.warning(
                    "Qarnot refuses to search by time, so all %ss are asked for: %s", self.kind, error
                )
            return False
        self._changes_refused = 0
        await self._notify(found)
        self._advance(mark, asked_at)
        return True

    def _advance(self, mark: datetime, asked_at: float) -> None:
        """Move the mark to what the server's clock showed when it was asked: what changed since was not answered."""
        reached = self._server_time(asked_at) or mark
        if reached < mark:
            # The clock was set back, at any time since the last query: what has happened since is asked for again.
            reached -= timedelta(seconds=asked_at - self._changes_requested_at)
        self._mark, self._changes_requested_at = reached, asked_at

    def _server_time(self, at: float) -> datetime | None:
        """Return a time that the server's clock had reached at *at* on the event loop's clock.

        It is the newest transition seen and what has passed here since, or the date of the newest response and what
        has passed since, whichever is less. No time of ours is compared with one of the server's. Transitions alone
        would follow an object with a time in the future, and would not follow a clock that is set back; dates alone
        may come from a proxy whose clock is ahead of the one that stamps transitions.
        """
        known = [one for one in (self._clock, self._response_date()) if one is not None]
        return min((then + timedelta(seconds=at - here) for then, here in known), default=None)

    def _response_date(self) -> tuple[datetime, float] | None:
        """Return the server's date in its newest response, and when it came on the event loop's clock."""
        dated = self._client.transport.dated if self._client is not None else None
        if dated is None:
            return None
        date, came = dated
        return date, self.loop.time() - (time.monotonic() - came)

    async def _poll(self, subscriptions: list[Subscription]) -> None:
        """Poll *subscriptions*: one search for each tag, and as few searches for uuids as the server allows."""
        for subscription in subscriptions:
            if subscription.is_tag:
                resource, tagged = self._resource, filters.equal("Tags", subscription.key)
                joined = [subscriber for subscriber in subscription.subscribers if subscriber.new]
                await self._notify(
                    await self._request(partial(resource.search_all, tagged, fields=POLL_FIELDS))
                )
                subscription.mark_polled(joined)
        uuids = [subscription.key for subscription in subscriptions if not subscription.is_tag]
        grows = bool(uuids)
        while uuids:
            chunk, uuids = uuids[: self._max_uuids], uuids[self._max_uuids :]
            chunk = [uuid for uuid in chunk if uuid in self.subscriptions]
            try:
                missing = await self._poll_uuids(chunk)
            except QarnotRefusedError as error:
                if error.status not in TOO_LARGE_STATUSES:
                    raise
                grows = False
                if len(chunk) > 1:
                    self._max_uuids = max(1, len(chunk) // 2)
                    uuids = chunk + uuids
                    continue
                missing = chunk
            for uuid in missing:
                await self._confirm(uuid)
        if grows:
            self._max_uuids = min(MAX_UUIDS, 2 * self._max_uuids)

    async def _poll_uuids(self, uuids: list[str]) -> list[str]:
        """Search for these objects and tell whom they concern; return those that no search shows.

        The server may answer fewer than it has, so those that are missing are asked for again.
        """
        while uuids:
            found = await self._request(partial(self._search, uuids))
            await self._notify(found)
            shown = {one.uuid for one in found}
            left = [uuid for uuid in uuids if uuid not in shown]
            if len(left) == len(uuids):
                break
            uuids = left
        return uuids

    def _search(self, uuids: list[str]) -> list[Pool | Task]:
        found: list[Pool | Task] = self._resource.search(
            filters.in_("Uuid", uuids), fields=POLL_FIELDS, limit=len(uuids)
        )
        return found

    async def _confirm(self, uuid: str) -> None:
        """Ask for the object itself, as a search that misses it proves nothing.

        A 404 or a refusal is confirmed in the next rounds: a proxy or a replica that lags may have sent it.
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
        """Fail the subscribers of *subscription* if it is certain by now that Qarnot denies it."""
        subscription.absence = subscription.absence or Absence(self._interval())
        if not subscription.absence.is_certain(error, self.loop.time()):
            log.info("Asking again, as a single refusal or 404 proves nothing: %s", error)
        elif isinstance(error, QarnotRefusedError):
            subscription.fail(error)
        else:
            gone = QarnotDeletedError(
                f"Qarnot {self.kind} {subscription.key} is gone: it was deleted before its end was seen.",
                status=error.status,
                kind=self.kind,
                ref=subscription.key,
            )
            subscription.fail(gone)

    # --- telling the subscribers

    async def _notify(self, found: Iterable[Pool | Task]) -> None:
        woken = 0
        for one in found:
            self._observe_time(one.state_transition_time)
            for key in (one.uuid, *one.tags):
                if (subscription := self.subscriptions.get(key)) is None:
                    continue
                news = subscription.observe(one)
                if not subscription.is_tag:
                    if self._settings:
                        subscription.tagged = namespace_tag(self._settings.namespace) in one.tags
                    subscription.mark_polled(news)
                for subscriber in news:
                    subscriber.deliver(one)
                    woken += 1
                    if woken % WAKE_BATCH == 0:
                        await asyncio.sleep(0)
        if self._mark is None:
            # No time has passed on the server since it answered, and it need not have passed here.
            known = [one for one in (self._clock, self._response_date()) if one is not None]
            self._mark = min((then for then, _ in known), default=None)
            self._changes_requested_at = self.loop.time()

    def _observe_time(self, moved: datetime | None) -> None:
        """Take *moved* for the server's clock if it is the newest transition, and not in the server's future."""
        dated, now = self._response_date(), self.loop.time()
        if moved is None or (
            dated is not None and moved > dated[0] + timedelta(seconds=now - dated[1]) + OVERLAP
        ):
            return
        if self._clock is None or moved > self._clock[0] + timedelta(seconds=now - self._clock[1]):
            self._clock = (moved, now)


_pollers: dict[PollKey, Poller] = {}
#: Pollers of a kind of their own.
POLLERS: dict[PollKind, type[Poller]] = {}


def subscribe(
    conn_id: str,
    kind: PollKind,
    key: str,
    *,
    interval: float,
    is_tag: bool = False,
    every_round: bool = False,
    scope: str = "",
) -> Subscriber:
    """Wait for changes together with everybody else on this event loop: ``async with watch(...) as subscriber``.

    :param key: uuid of an object; with *is_tag*, a tag, for all objects that carry it.
    :param interval: seconds between two looks; the shortest of all subscribers counts.
    :param every_round: ask in every round, for what shows no state transition (running instances).
    :param scope: subscribers of different scopes do not share a poll.
    """
    shared = PollKey(id(asyncio.get_running_loop()), conn_id, kind, scope)
    return Subscriber(shared, key, is_tag, interval, every_round)


def pollers() -> Iterator[Poller]:
    """The pollers alive in this process."""
    return iter(_pollers.values())


def count_poll(kind: str, conn_id: str, subscribers: int, size: int, seconds: float) -> None:
    """A round of a shared poll: how many wait, for how many objects, and how long the round took."""
    tags = {"kind": kind, "conn_id": conn_id}
    metrics.gauge("poll.waiters", subscribers, **tags)
    metrics.gauge("poll.size", size, **tags)
    metrics.timing("poll.duration", seconds, **tags)
