"""One poll for all waiters of a connection.

Every trigger that waits in this process for an object of one connection and kind (pool or Qarnot task) shares a
:class:`Poller`. A round asks only for what changed: objects with our namespace tag whose ``StateTransitionTime``
is not older than the round before. Its cost grows with the number of changes, not with the number of waiters.

What a change query cannot show is swept, by uuid in chunks: new waiters at once, objects without our tag and
waiters on counts in every round, everybody once in :data:`SWEEP_EVERY` rounds, so that a missed change is late
and never lost. Many objects of one owner are waited for by their common tag, as one topic. Errors that pass back
off and never fail a waiter; a lasting one fails only whom it concerns.
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
    QarnotError,
    QarnotGoneError,
    QarnotInvalidSpecError,
    QarnotNotFoundError,
    QarnotProtocolError,
    QarnotRefusedError,
    QarnotUnavailableError,
)
from airflow_qarnot_pool.conditions import Absence
from airflow_qarnot_pool.identity import namespace_tag

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Pool, Task
    from airflow_qarnot_pool.hooks.settings import ConnectionSettings

log = logging.getLogger(__name__)

Kind = Literal["pool", "task", "cost"]
T = TypeVar("T")

#: Rounds between two sweeps of everybody.
SWEEP_EVERY = 12
#: Uuids in one search; halves by itself where the server refuses so many.
CHUNK = 500
#: Most changes one search answers; beyond, the pages are read.
MOST_CHANGES = 1000
#: Most objects of one tag that one search answers; beyond, the pages are read.
MOST_OF_A_TAG = 10_000
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


class Scope(NamedTuple):
    """Whose waiters share a poll."""

    loop: int
    conn_id: str
    kind: Kind
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
class Waiter:
    """One waiting trigger, from entering the context to leaving it; see :func:`watch`.

    :meth:`next` answers each time an object of its topic is seen changed.
    """

    scope: Scope
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

    async def __aenter__(self) -> Waiter:
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

        :raises QarnotGoneError: the object is not there any more.
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


class Seen(NamedTuple):
    """What must differ between two looks at an object to wake anybody; less to keep than the look."""

    state: str
    moved: datetime | None
    running: int | None


@dataclass(eq=False, slots=True)
class Topic:
    """What is waited for, by one waiter or several: an object, or all objects with a tag."""

    key: str
    is_tag: bool
    waiters: list[Waiter] = field(default_factory=list)
    #: The newest look at the object.
    last: Seen | None = None
    #: The newest look at each object with the tag.
    members: dict[str, Seen] | None = None
    #: Not looked up since a waiter joined.
    fresh: bool = True
    tagged: bool = True
    #: A query for changes cannot show what somebody here waits for.
    eager: bool = False
    #: Set while the object is answered with 404.
    absence: Absence | None = None

    @property
    def every_round(self) -> bool:
        """Whether it must be looked up in each round."""
        return not self.is_tag and (self.eager or not self.tagged)

    def add(self, waiter: Waiter) -> None:
        self.waiters.append(waiter)
        self.fresh = True
        self.eager = self.eager or waiter.every_round

    def remove(self, waiter: Waiter) -> None:
        self.waiters.remove(waiter)
        self.eager = any(other.every_round for other in self.waiters)

    def news(self, look: Pool | Task) -> list[Waiter]:
        """The waiters to whom *look* shows something new."""
        seen = Seen(look.state, look.state_transition_time, look.running_instance_count)
        if self.is_tag:
            self.members = {} if self.members is None else self.members
            changed = self.members.get(look.uuid) != seen
            self.members[look.uuid] = seen
        else:
            changed, self.last, self.absence = self.last != seen, seen, None
        return [waiter for waiter in self.waiters if changed or waiter.new]

    def looked_up(self, told: Iterable[Waiter] | None = None) -> None:
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

    def __init__(self, conn_id: str, kind: Kind) -> None:
        self.conn_id = conn_id
        self.kind = kind
        self.scope: Scope | None = None
        self.loop = asyncio.get_running_loop()
        self.topics: dict[str, Topic] = {}
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
        self._asks_for_changes = True
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

    def add(self, waiter: Waiter) -> None:
        topic = self.topics.get(waiter.key)
        if topic is None:
            topic = self.topics[waiter.key] = Topic(waiter.key, waiter.is_tag)
        topic.add(waiter)
        self._intervals[waiter.interval] += 1
        self._arrived.set()

    def remove(self, waiter: Waiter) -> None:
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
                await self._look([topic for topic in self.topics.values() if topic.fresh])
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
        metrics.polled(self.kind, self.conn_id, self._intervals.total(), len(self.topics), seconds)

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
        elif not isinstance(error, QarnotProtocolError):
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
        """What one object meets keeps nobody else from being looked at, and fails the round only after that."""
        try:
            yield
        except (QarnotUnavailableError, QarnotRefusedError, QarnotProtocolError) as error:
            self._spared = self._spared or error

    async def _credentials(self) -> None:
        """Read the connection now and then, and after a 401: tokens get changed while triggers wait."""
        if time.monotonic() - self._settings_read < REFRESH_CONNECTION:
            return
        from airflow.sdk import BaseHook

        from airflow_qarnot_pool.compat import AirflowNotFoundException
        from airflow_qarnot_pool.hooks.settings import ConnectionSettings

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
        sweep = self.rounds % SWEEP_EVERY == 0 or not self._asks_for_changes
        if self._asks_for_changes and not all(topic.every_round for topic in self.topics.values()):
            await self._changes()
        await self._look([topic for topic in self.topics.values() if sweep or topic.every_round])

    async def _changes(self) -> None:
        """Ask for what changed since the newest transition seen, and tell whom it concerns."""
        assert self._settings is not None
        asked = self._server_time()
        if self._mark is None or asked is None:
            return  # nothing seen yet: the first looks tell the server's time
        changed = filters.and_(
            filters.equal("Tags", namespace_tag(self._settings.namespace)),
            filters.ge("StateTransitionTime", (self._mark - OVERLAP).strftime("%Y-%m-%dT%H:%M:%SZ")),
        )
        resource = self._resource
        try:
            found = await self._ask(lambda: resource.search(changed, fields=FIELDS, limit=MOST_CHANGES))
            if len(found) >= MOST_CHANGES:
                # /search has no page token, and stops silently.
                found = await self._ask(lambda: list(resource.iterate(changed, limit=MOST_CHANGES)))
        except QarnotRefusedError as error:
            log.warning("Qarnot refuses to search by time, so all %ss are asked for: %s", self.kind, error)
            self._asks_for_changes = False
            return
        self._mark = max(self._mark, asked)
        await self._tell(found)

    def _server_time(self) -> datetime | None:
        """A time that the server's clock has reached by now.

        Its newest transition seen and what has passed here since: no time of ours is compared with one of the
        server's, and after a burst of changes the rounds that follow do not ask for all of it again.
        """
        if self._clock is None:
            return None
        then, here = self._clock
        return then + timedelta(seconds=self.loop.time() - here)

    async def _look(self, topics: list[Topic]) -> None:
        """Look these topics up: each tag with a request, the objects in as few as the server allows."""
        for topic in topics:
            if topic.is_tag:
                resource, tagged = self._resource, filters.equal("Tags", topic.key)
                joined = [waiter for waiter in topic.waiters if waiter.new]
                await self._tell(await self._ask(partial(_all, resource, tagged)))
                topic.looked_up(joined)
        uuids = [topic.key for topic in topics if not topic.is_tag]
        while uuids:
            chunk, uuids = uuids[: self._chunk], uuids[self._chunk :]
            chunk = [uuid for uuid in chunk if uuid in self.topics]
            if not chunk:
                continue
            try:
                found = await self._ask(partial(self._search, chunk))
            except QarnotRefusedError as error:
                if len(chunk) == 1:
                    self._fail(chunk[0], error)
                    continue
                self._chunk = max(1, len(chunk) // 2)
                uuids = chunk + uuids
                continue
            await self._tell(found)
            for uuid in set(chunk) - {one.uuid for one in found}:
                await self._confirm(uuid)

    def _search(self, uuids: list[str]) -> list[Pool | Task]:
        found: list[Pool | Task] = self._resource.search(
            filters.in_("Uuid", uuids), fields=FIELDS, limit=len(uuids)
        )
        return found

    async def _confirm(self, uuid: str) -> None:
        """Ask for the object itself, as a search that misses it proves nothing.

        A 404 is confirmed in the next rounds: a proxy or a replica that lags may have sent it.
        """
        resource = self._resource
        with self._sparing_others():
            try:
                await self._tell([await self._ask(lambda: resource.get(uuid))])
            except QarnotNotFoundError as error:
                if not self._is_gone(uuid, error):
                    return
                gone = QarnotGoneError(
                    f"Qarnot {self.kind} {uuid} is gone: it was deleted before its end was seen.",
                    status=error.status,
                    kind=self.kind,
                    ref=uuid,
                )
                self._fail(uuid, gone)
            except QarnotRefusedError as error:
                self._fail(uuid, error)

    def _is_gone(self, uuid: str, error: QarnotNotFoundError) -> bool:
        topic = self.topics.get(uuid)
        if topic is None:
            return False
        topic.absence = topic.absence or Absence(self._interval())
        if topic.absence.is_certain(error, self.loop.time()):
            return True
        log.info("Asking again, as a single 404 proves nothing: %s", error)
        topic.fresh = True
        return False

    # --- telling the waiters

    async def _tell(self, found: Iterable[Pool | Task]) -> None:
        woken = 0
        for one in found:
            reached = self._server_time()
            if one.state_transition_time and (reached is None or one.state_transition_time > reached):
                self._clock = (one.state_transition_time, self.loop.time())
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
        if self._mark is None and self._clock is not None:
            self._mark = self._clock[0]

    def _fail(self, key: str, error: QarnotError) -> None:
        if topic := self.topics.get(key):
            topic.fail(error)


def _all(resource: Any, tagged: filters.Filter) -> list[Pool | Task]:
    """Every object a filter matches, with the fields that waiters need."""
    found: list[Pool | Task] = resource.search(tagged, fields=FIELDS, limit=MOST_OF_A_TAG)
    return found if len(found) < MOST_OF_A_TAG else list(resource.iterate(tagged, limit=MOST_CHANGES))


_pollers: dict[Scope, Poller] = {}
#: Pollers of a kind of their own.
POLLERS: dict[Kind, type[Poller]] = {}


def watch(
    conn_id: str,
    kind: Kind,
    key: str,
    *,
    interval: float,
    is_tag: bool = False,
    every_round: bool = False,
    scope: str = "",
) -> Waiter:
    """Wait for changes together with everybody else on this event loop: ``async with watch(...) as waiter``.

    :param key: uuid of an object; with *is_tag*, a tag, for all objects that carry it.
    :param interval: seconds between two looks; the shortest of all waiters counts.
    :param every_round: ask in every round, for what shows no state transition (running instances).
    :param scope: waiters of different scopes do not share a poll.
    """
    shared = Scope(id(asyncio.get_running_loop()), conn_id, kind, scope)
    return Waiter(shared, key, is_tag, interval, every_round)


def pollers() -> Iterator[Poller]:
    """The pollers alive in this process."""
    return iter(_pollers.values())
