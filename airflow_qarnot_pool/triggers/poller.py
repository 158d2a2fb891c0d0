"""One poll for all waiters of a connection.

Every trigger that waits in this process for an object of one connection and kind (pool or Qarnot task) shares a
:class:`Poller`. A round asks only for what changed: objects with our namespace tag whose ``StateTransitionTime``
is not older than the round before. Its cost grows with the number of changes, not with the number of waiters.

What a change query cannot show is swept, by uuid in chunks: new waiters at once, objects without our tag and
waiters on counts in every round, everybody once in :data:`SWEEP_EVERY` rounds, so that a missed change is late
and never lost. Many objects of one owner are waited for by their common tag, as one topic.

A search that fails or is refused fails no waiter: the rounds back off, and what was made smaller for a server that
refused grows again. Only an object that Qarnot itself goes on to deny ends the wait of its waiters.
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
CHUNK = 500
#: Statuses of a refusal that a smaller request may avoid. Any other, as 403, is about the moment or the account.
TOO_MUCH = frozenset({400, 413, 414, 422})
#: Refusals in a row after which the query for changes is sent with each sweep only.
REFUSED_ROUNDS = 3
#: The server's times have a resolution of 1 s, and its parts need not agree to the second.
OVERLAP = timedelta(seconds=2)
LONGEST_BACKOFF = 60.0
#: Most seconds that a Retry-After keeps everybody from asking. One request in so long is no burden on any service, and
#: what asks for hours may be a proxy, or only one of many objects.
MOST_PATIENCE = 600.0
#: By how much of an interval a round may come early, so that the polls of several processes do not march in step.
JITTER = 0.1
#: Waiters woken before the rest of the event loop has its turn: each of them has something to log.
AT_ONCE = 4
#: Seconds between two looks for those whose time is over.
ALARM_APART = 0.1
#: Rounds with refused credentials, each after reading the connection afresh, before the waiters fail.
CREDENTIAL_ROUNDS = 3
REFRESH_CONNECTION = 300.0

FIELDS = (
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
    """Whose waiters share a poll."""

    loop: int
    conn_id: str
    kind: PollKind
    name: str


def following(due: float, now: float, interval: float, luck: float) -> float:
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

    :meth:`next` answers each time an object of its topic is seen changed.
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
    _looks: list[Pool | Task | Exception] | None = None
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

    def tell(self, look: Pool | Task | Exception) -> None:
        """Have :meth:`next` answer, or raise, *look*."""
        self.due = None
        if self._wake is None or self._wake.done():
            self._looks = self._looks or []
            self._looks.append(look)
        else:
            _answer(self._wake, look)

    def next(self, timeout: float | None) -> asyncio.Future[Pool | Task]:
        """The next change, to be awaited at most *timeout* seconds (then ``TimeoutError``).

        :raises QarnotDeletedError: the object is not there any more.
        :raises QarnotCredentialsError: the token is refused for good.
        """
        poller = self._poller
        assert poller is not None
        wake = self._wake = poller.loop.create_future()
        self.due = None
        if self._looks:
            _answer(wake, self._looks.pop(0))
            self._looks = self._looks or None
        elif timeout is not None:
            self.due = poller.loop.time() + timeout
            poller.expect(self.due)
        return wake


def _answer(wake: asyncio.Future[Pool | Task], look: Pool | Task | Exception) -> None:
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
    """What is waited for, by one waiter or several: an object, or all objects with a tag."""

    key: str
    is_tag: bool
    waiters: list[Subscriber] = field(default_factory=list)
    #: The newest look at the object.
    last: Observation | None = None
    #: The newest look at each object with the tag.
    members: dict[str, Observation] | None = None
    #: Not looked up since a waiter joined.
    fresh: bool = True
    tagged: bool = True
    #: A query for changes cannot show what somebody here waits for.
    eager: bool = False
    #: Set while the object is answered with 404, or refused.
    absence: Absence | None = None

    @property
    def every_round(self) -> bool:
        """Whether it must be looked up in each round."""
        return not self.is_tag and (self.eager or not self.tagged or self.absence is not None)

    def add(self, waiter: Subscriber) -> None:
        self.waiters.append(waiter)
        self.fresh = True
        self.eager = self.eager or waiter.every_round

    def remove(self, waiter: Subscriber) -> None:
        self.waiters.remove(waiter)
        self.eager = any(other.every_round for other in self.waiters)

    def news(self, look: Pool | Task) -> list[Subscriber]:
        """The waiters to whom *look* shows something new."""
        seen = Observation(look.state, look.state_transition_time, look.running_instance_count)
        if self.is_tag:
            self.members = {} if self.members is None else self.members
            changed = self.members.get(look.uuid) != seen
            self.members[look.uuid] = seen
        else:
            changed, self.last, self.absence = self.last != seen, seen, None
        return [waiter for waiter in self.waiters if changed or waiter.new]

    def looked_up(self, told: Iterable[Subscriber] | None = None) -> None:
        """These, or all who wait, have been told of all of its objects."""
        for waiter in self.waiters if told is None else told:
            waiter.new = False
        self.fresh = any(waiter.new for waiter in self.waiters)

    def fail(self, error: QarnotError) -> None:
        """End the wait of everybody here."""
        self.fresh = False
        for waiter in self.waiters:
            waiter.tell(error)


class Poller:
    """The shared poll loop of one connection and kind on one event loop; see the module's text."""

    def __init__(self, conn_id: str, kind: PollKind) -> None:
        self.conn_id = conn_id
        self.kind = kind
        self.scope: PollKey | None = None
        self.loop = asyncio.get_running_loop()
        self.topics: dict[str, Subscription] = {}
        self.rounds = 0
        #: How many waiters asked for which interval.
        self._intervals: Counter[float] = Counter()
        #: Rings when the time of a waiter is over: one timer for all, as each of its own would take half a kilobyte.
        self._alarm: asyncio.TimerHandle | None = None
        self._arrived = asyncio.Event()
        #: Every change up to here has been seen; the server's clock.
        self._mark: datetime | None = None
        #: A time of the server's clock that was over at this time of ours.
        self._clock: tuple[datetime, float] | None = None
        self._failures = 0
        #: What a single object has met since the last pause.
        self._spared: QarnotError | None = None
        self._refused = 0
        #: Refusals of the query for changes, in a row.
        self._changes_refused = 0
        #: When the last query for changes that was answered was sent, on the event loop's clock.
        self._asked_at = self.loop.time()
        self._chunk = CHUNK
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

    # --- waiters

    @property
    def closed(self) -> bool:
        return self._task.done() or self.loop.is_closed()

    def add(self, waiter: Subscriber) -> None:
        topic = self.topics.get(waiter.key)
        if topic is None:
            topic = self.topics[waiter.key] = Subscription(waiter.key, waiter.is_tag)
        topic.add(waiter)
        self._intervals[waiter.interval] += 1
        self._arrived.set()

    def remove(self, waiter: Subscriber) -> None:
        topic = self.topics[waiter.key]
        topic.remove(waiter)
        if not topic.waiters:
            del self.topics[waiter.key]
        self._intervals[waiter.interval] -= 1
        if not self._intervals[waiter.interval]:
            del self._intervals[waiter.interval]

    def stop_if_idle(self) -> None:
        """End where there is nothing to watch any more; whoever comes next starts another."""
        if not self.topics:
            self._task.cancel()
            self._ended()

    def _ended(self, *_: object) -> None:
        self._thread.shutdown(wait=False)
        for scope in [scope for scope, poller in _pollers.items() if poller is self]:
            del _pollers[scope]
        if self._alarm is not None and not self.topics:
            self._alarm.cancel()

    def expect(self, due: float) -> None:
        """The time of a waiter will be over then."""
        if self._alarm is None or due < self._alarm.when():
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = self.loop.call_at(due, self._ring, context=self._context)

    def _ring(self) -> None:
        """End the waiting of those whose time is over, and see when the next one's will be."""
        self._alarm = None
        now, soonest = self.loop.time(), float("inf")
        for topic in self.topics.values():
            for waiter in topic.waiters:
                if waiter.due is None:
                    continue
                if waiter.due <= now:
                    waiter.tell(TimeoutError())
                else:
                    soonest = min(soonest, waiter.due)
        if soonest < float("inf"):
            self.expect(max(soonest, now + ALARM_APART))

    # --- the loop

    async def _run(self) -> None:
        # The first looks tell all there is to know by now.
        due = self.loop.time() + self._interval()
        while True:
            # Whoever comes from here on, while it asks, is seen to right after.
            self._arrived.clear()
            try:
                await self._credentials()
                fresh = [topic for topic in self.topics.values() if topic.fresh and topic.absence is None]
                await self._look(fresh)
                # One who is new may want to look more often.
                due = min(due, self.loop.time() + self._interval())
                if self.loop.time() >= due:
                    begun = self.loop.time()
                    await self._round()
                    self._measure(self.loop.time() - begun)
                    due = following(due, self.loop.time(), self._interval(), random.random())
                if (spared := self._spared) is not None:
                    raise spared
                self._failures = self._refused = 0
            except Exception as error:
                self._spared = None
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

    def _measure(self, seconds: float) -> None:
        count_poll(self.kind, self.conn_id, self._intervals.total(), len(self.topics), seconds)

    def _interval(self) -> float:
        """Seconds between two rounds: the shortest any waiter asked for."""
        return min(self._intervals, default=1.0)

    def _pause_after(self, error: Exception) -> float:
        """Seconds to wait after a failed round; fails the waiters where the error will not pass."""
        self._failures += 1
        pause = min(LONGEST_BACKOFF, self._interval() * 2 ** min(self._failures, 10))
        pause *= random.uniform(0.8, 1.2)
        if isinstance(error, (QarnotCredentialsError, QarnotInvalidSpecError)):
            self._refused += 1
            self._settings_read = float("-inf")
            if self._refused >= CREDENTIAL_ROUNDS:
                for topic in self.topics.values():
                    topic.fail(error)
        elif isinstance(error, QarnotUnavailableError):
            pause = max(pause, min(error.retry_after or 0.0, MOST_PATIENCE))
        elif not isinstance(error, QarnotError):
            log.error("Polling the %ss of %s failed", self.kind, self.conn_id, exc_info=error)
        if self._failures == 1 or self._failures % 10 == 0:
            log.warning(
                "Could not ask Qarnot (connection %s) about %d %ss, attempt %d; asking again in %.0f s: %s",
                self.conn_id,
                len(self.topics),
                self.kind,
                self._failures,
                pause,
                error,
            )
        return pause

    @contextmanager
    def _sparing_others(self) -> Iterator[None]:
        """Keep an error about one object from stopping the look at the others; the round fails after that."""
        try:
            yield
        except (
            QarnotUnavailableError,
            QarnotRefusedError,
            QarnotProtocolError,
            QarnotNotFoundError,
        ) as error:
            self._spared = self._spared or error

    async def _credentials(self) -> None:
        """Read the connection now and then, and after a 401: tokens get changed while triggers wait."""
        if time.monotonic() - self._settings_read < REFRESH_CONNECTION:
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
            self._client = await self._ask(lambda: settings.client(retries=0))
            self._settings = settings
        self._settings_read = time.monotonic()

    async def _ask(self, request: Callable[[], T]) -> T:
        return await self.loop.run_in_executor(self._thread, request)

    @property
    def _resource(self) -> Any:
        assert self._client is not None
        return self._client.pools if self.kind == "pool" else self._client.tasks

    # --- one round

    async def _round(self) -> None:
        self.rounds += 1
        sweep = self.rounds % SWEEP_EVERY == 0
        if not all(topic.every_round for topic in self.topics.values()):
            asks = self._asks_for_changes or sweep
            sweep = not (asks and await self._changes()) or sweep
        await self._look([topic for topic in self.topics.values() if sweep or topic.every_round])

    @property
    def _asks_for_changes(self) -> bool:
        return self._changes_refused < REFUSED_ROUNDS

    async def _changes(self) -> bool:
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
            found = await self._ask(lambda: resource.search_all(changed, fields=FIELDS))
        except QarnotRefusedError as error:
            self._changes_refused += 1
            if self._changes_refused in (1, REFUSED_ROUNDS):
                log.warning(
                    "Qarnot refuses to search by time, so all %ss are asked for: %s", self.kind, error
                )
            return False
        self._changes_refused = 0
        await self._tell(found)
        self._advance(mark, asked_at)
        return True

    def _advance(self, mark: datetime, asked_at: float) -> None:
        """Move the mark to what the server's clock showed when it was asked: what changed since was not answered."""
        reached = self._server_time(asked_at) or mark
        if reached < mark:
            # The clock was set back, at any time since the last query: what has happened since is asked for again.
            reached -= timedelta(seconds=asked_at - self._asked_at)
        self._mark, self._asked_at = reached, asked_at

    def _server_time(self, at: float) -> datetime | None:
        """Return a time that the server's clock had reached at *at* on the event loop's clock.

        It is the newest transition seen and what has passed here since, or the date of the newest response and what
        has passed since, whichever is less. No time of ours is compared with one of the server's. Transitions alone
        would follow an object with a time in the future, and would not follow a clock that is set back; dates alone
        may come from a proxy whose clock is ahead of the one that stamps transitions.
        """
        known = [one for one in (self._clock, self._dated()) if one is not None]
        return min((then + timedelta(seconds=at - here) for then, here in known), default=None)

    def _dated(self) -> tuple[datetime, float] | None:
        """Return the server's date in its newest response, and when it came on the event loop's clock."""
        dated = self._client.transport.dated if self._client is not None else None
        if dated is None:
            return None
        date, came = dated
        return date, self.loop.time() - (time.monotonic() - came)

    async def _look(self, topics: list[Subscription]) -> None:
        """Look these topics up: each tag with a search of its own, the objects in as few as the server allows."""
        for topic in topics:
            if topic.is_tag:
                resource, tagged = self._resource, filters.equal("Tags", topic.key)
                joined = [waiter for waiter in topic.waiters if waiter.new]
                await self._tell(await self._ask(partial(resource.search_all, tagged, fields=FIELDS)))
                topic.looked_up(joined)
        uuids = [topic.key for topic in topics if not topic.is_tag]
        grows = bool(uuids)
        while uuids:
            chunk, uuids = uuids[: self._chunk], uuids[self._chunk :]
            chunk = [uuid for uuid in chunk if uuid in self.topics]
            try:
                missing = await self._find(chunk)
            except QarnotRefusedError as error:
                if error.status not in TOO_MUCH:
                    raise
                grows = False
                if len(chunk) > 1:
                    self._chunk = max(1, len(chunk) // 2)
                    uuids = chunk + uuids
                    continue
                missing = chunk
            for uuid in missing:
                await self._confirm(uuid)
        if grows:
            self._chunk = min(CHUNK, 2 * self._chunk)

    async def _find(self, uuids: list[str]) -> list[str]:
        """Search for these objects and tell whom they concern; return those that no search shows.

        The server may answer fewer than it has, so those that are missing are asked for again.
        """
        while uuids:
            found = await self._ask(partial(self._search, uuids))
            await self._tell(found)
            shown = {one.uuid for one in found}
            left = [uuid for uuid in uuids if uuid not in shown]
            if len(left) == len(uuids):
                break
            uuids = left
        return uuids

    def _search(self, uuids: list[str]) -> list[Pool | Task]:
        found: list[Pool | Task] = self._resource.search(
            filters.in_("Uuid", uuids), fields=FIELDS, limit=len(uuids)
        )
        return found

    async def _confirm(self, uuid: str) -> None:
        """Ask for the object itself, as a search that misses it proves nothing.

        A 404 or a refusal is confirmed in the next rounds: a proxy or a replica that lags may have sent it.
        """
        resource = self._resource
        with self._sparing_others():
            try:
                await self._tell([await self._ask(lambda: resource.get(uuid))])
            except (QarnotNotFoundError, QarnotRefusedError) as error:
                if topic := self.topics.get(uuid):
                    self._doubt(topic, error)

    def _doubt(self, topic: Subscription, error: QarnotNotFoundError | QarnotRefusedError) -> None:
        """Fail the waiters of *topic* if it is certain by now that Qarnot denies it."""
        topic.absence = topic.absence or Absence(self._interval())
        if not topic.absence.is_certain(error, self.loop.time()):
            log.info("Asking again, as a single refusal or 404 proves nothing: %s", error)
        elif isinstance(error, QarnotRefusedError):
            topic.fail(error)
        else:
            gone = QarnotDeletedError(
                f"Qarnot {self.kind} {topic.key} is gone: it was deleted before its end was seen.",
                status=error.status,
                kind=self.kind,
                ref=topic.key,
            )
            topic.fail(gone)

    # --- telling the waiters

    async def _tell(self, found: Iterable[Pool | Task]) -> None:
        woken = 0
        for one in found:
            self._note_time(one.state_transition_time)
            for key in (one.uuid, *one.tags):
                if (topic := self.topics.get(key)) is None:
                    continue
                news = topic.news(one)
                if not topic.is_tag:
                    if self._settings:
                        topic.tagged = namespace_tag(self._settings.namespace) in one.tags
                    topic.looked_up(news)
                for waiter in news:
                    waiter.tell(one)
                    woken += 1
                    if woken % AT_ONCE == 0:
                        await asyncio.sleep(0)
        if self._mark is None:
            # No time has passed on the server since it answered, and it need not have passed here.
            known = [one for one in (self._clock, self._dated()) if one is not None]
            self._mark = min((then for then, _ in known), default=None)
            self._asked_at = self.loop.time()

    def _note_time(self, moved: datetime | None) -> None:
        """Take *moved* for the server's clock if it is the newest transition, and not in the server's future."""
        dated, now = self._dated(), self.loop.time()
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
    """Wait for changes together with everybody else on this event loop: ``async with watch(...) as waiter``.

    :param key: uuid of an object; with *is_tag*, a tag, for all objects that carry it.
    :param interval: seconds between two looks; the shortest of all waiters counts.
    :param every_round: ask in every round, for what shows no state transition (running instances).
    :param scope: waiters of different scopes do not share a poll.
    """
    shared = PollKey(id(asyncio.get_running_loop()), conn_id, kind, scope)
    return Subscriber(shared, key, is_tag, interval, every_round)


def pollers() -> Iterator[Poller]:
    """The pollers alive in this process."""
    return iter(_pollers.values())


def count_poll(kind: str, conn_id: str, waiters: int, size: int, seconds: float) -> None:
    """A round of a shared poll: how many wait, for how many objects, and how long the round took."""
    tags = {"kind": kind, "conn_id": conn_id}
    metrics.gauge("poll.waiters", waiters, **tags)
    metrics.gauge("poll.size", size, **tags)
    metrics.timing("poll.duration", seconds, **tags)
