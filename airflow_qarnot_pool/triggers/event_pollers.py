"""One search for all watchers of the Qarnot tasks, or of the pools, of a connection."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from time import monotonic
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api import filters, states
from airflow_qarnot_pool.triggers.poller import POLLERS, SWEEP_EVERY, PollKey, PollKind
from airflow_qarnot_pool.triggers.watch_poller import Accepts, Search, WatchPoller, WatchSubscriber

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import Pool, Task
    from airflow_qarnot_pool.triggers.watermark import Item

#: Maximum number of searches of a round. With more tags, one search returns the objects of all tags.
MAX_SEARCHES = 8
#: Maximum number of pools in one search for their Qarnot tasks.
MAX_POOLS = 100
#: Maximum characters of a name in an event.
MAX_TEXT = 256
#: Overlap of two rounds, because a search may lag behind.
OVERLAP = timedelta(minutes=1)
TASK_FIELDS = ("Uuid", "Name", "Shortname", "State", "StateTransitionTime", "PoolUuid", "Tags")
POOL_FIELDS = (
    "Uuid",
    "Name",
    "Shortname",
    "State",
    "StateTransitionTime",
    "QueuedOrRunningTaskInstancesCount",
    "Tags",
)


class TagPoller(WatchPoller):
    """Poller of objects by their tags, which are the keys of its subscriptions."""

    def _service_time(self) -> datetime:
        """Return the time on the service's clock, or the local time before the first response."""
        dated = None if self._client is None else self._client.transport.dated
        if dated is None:
            return datetime.now(UTC)
        date, came = dated
        return date + timedelta(seconds=monotonic() - came)

    def _tagged(
        self, resource: Any, tags: Iterable[str], *where: filters.Filter, fields: Sequence[str]
    ) -> list[Any]:
        """Return the objects with any of *tags*, and maybe others."""
        tags = tuple(tags)
        by_tag = [[filters.equal("Tags", tag)] for tag in tags] if len(tags) <= MAX_SEARCHES else [[]]
        found = {}
        for tagged in by_tag:
            for each in resource.search_all(filters.and_(*where, *tagged), fields=fields):
                found[each.uuid] = each
        return list(found.values())

    @staticmethod
    def _begin(searches: Sequence[Search], now: datetime) -> dict[str, list[Search]]:
        """Start each search, and return them by tag."""
        by_tag = defaultdict(list)
        for search in searches:
            search.watch.begin(now)
            by_tag[search.key].append(search)
        return by_tag


class TaskEventPoller(TagPoller):
    """Poller of Qarnot tasks that have ended.

    A round requests the tasks that have ended since the round before. In one of :data:`SWEEP_EVERY` rounds it requests
    all that have ended within the allowed lateness.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._polled: datetime | None = None

    def _search_for(self, searches: Sequence[Search]) -> None:
        assert self._client is not None
        where = [filters.in_("State", sorted(states.TASK_TERMINAL))]
        if (since := self._since(searches)) is not None:
            where.append(filters.ge("StateTransitionTime", since))
        tags = {search.key for search in searches}
        tasks: list[Task] = self._tagged(self._client.tasks, tags, *where, fields=TASK_FIELDS)
        self._polled = self._service_time()
        by_tag = self._begin(searches, self._polled)
        for task in tasks:
            if (ended := task.state_transition_time) is None:
                continue
            item = {
                "uuid": task.uuid,
                **_names(task),
                "state": task.state,
                "pool": task.pool,
                "ended": ended.isoformat(),
            }
            for tag in task.tags:
                for search in by_tag.get(tag, ()):
                    search.offer(item, ended)

    def _since(self, searches: Sequence[Search]) -> datetime | None:
        """Return the time from which on tasks may be new to one of *searches*. None for any time."""
        now = self._service_time()
        times = [search.watch.oldest(now) for search in searches]
        known = [time for time in times if time is not None]
        if len(known) < len(times):
            return None
        if (
            self._polled is None
            or self.rounds % SWEEP_EVERY == 0
            or any(search.is_new for search in searches)
        ):
            return min(known)
        return max(min(known), self._polled - OVERLAP)


class IdlePoolPoller(TagPoller):
    """Poller of pools that run and have nothing to do.

    A round requests the pools, and the ends of the Qarnot tasks on those that are idle since they were last seen.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        #: The time since which each pool is idle, by uuid.
        self._idle: dict[str, datetime] = {}
        #: When the last round saw each other pool busy.
        self._busy: dict[str, datetime] = {}

    def _search_for(self, searches: Sequence[Search]) -> None:
        assert self._client is not None
        tags = {search.key for search in searches}
        runs = filters.in_("State", sorted(states.POOL_LIVE))
        pools: list[Pool] = self._tagged(self._client.pools, tags, runs, fields=POOL_FIELDS)
        # None is unknown, which is not idle.
        idle = [pool for pool in pools if pool.queued_or_running_task_instances_count == 0]
        now = self._service_time()
        self._idle = self._idle_since(idle, now)
        self._busy = {pool.uuid: now for pool in pools if pool.uuid not in self._idle}
        by_tag = self._begin(searches, now)
        for pool in idle:
            since = self._idle[pool.uuid]
            item = {
                "uuid": pool.uuid,
                **_names(pool),
                "idle_since": since.isoformat(),
            }
            for tag in pool.tags:
                for search in by_tag.get(tag, ()):
                    search.offer(item, since)

    def _idle_since(self, pools: Sequence[Pool], now: datetime) -> dict[str, datetime]:
        """Return the last end of a Qarnot task on each of *pools*, or when the pool started to run."""
        started = {pool.uuid: pool.state_transition_time or pool.creation_date or now for pool in pools}
        known = {uuid: self._idle[uuid] for uuid in started if uuid in self._idle}
        # The last end is after the round that saw the pool busy. A pool may have had very many Qarnot tasks before.
        turned = {uuid: self._busy[uuid] - OVERLAP for uuid in started if uuid in self._busy}
        new = {uuid: start for uuid, start in started.items() if uuid not in known and uuid not in turned}
        idle: dict[str, datetime] = {}
        for since_by_pool, is_first in ((known, False), (turned, False), (new, True)):
            for part in _parts(since_by_pool):
                idle |= self._with_ends(part, None if is_first else min(part.values()))
        return idle

    def _with_ends(self, idle: dict[str, datetime], since: datetime | None) -> dict[str, datetime]:
        """Return the times of *idle*, or of the last end of a Qarnot task on the pool since then if that is later."""
        assert self._client is not None
        where = [filters.in_("PoolUuid", idle)]
        if since is not None:
            where.append(filters.ge("StateTransitionTime", since))
        fields = ("Uuid", "PoolUuid", "StateTransitionTime")
        latest = dict(idle)
        for task in self._client.tasks.search_all(filters.and_(*where), fields=fields):
            if task.pool in latest and task.state_transition_time is not None:
                latest[task.pool] = max(latest[task.pool], task.state_transition_time)
        return latest


POLLERS["task_event"] = TaskEventPoller
POLLERS["idle_pool"] = IdlePoolPoller


def _parts(since_by_pool: dict[str, datetime]) -> Iterator[dict[str, datetime]]:
    """Yield the pools of each search, the longest idle first."""
    pools = sorted(since_by_pool.items(), key=itemgetter(1))
    for begin in range(0, len(pools), MAX_POOLS):
        yield dict(pools[begin : begin + MAX_POOLS])


def _names(remote: Pool | Task) -> Item:
    return {"name": (remote.name or "")[:MAX_TEXT], "shortname": (remote.shortname or "")[:MAX_TEXT]}


def watch_tag(
    conn_id: str, kind: PollKind, tag: str, interval: float, accepts: Accepts | None
) -> WatchSubscriber:
    """Return an async context manager that yields a subscriber.

    :param interval: seconds between polls. The shortest interval of all watchers of the connection counts.
    """
    scope = PollKey(id(asyncio.get_running_loop()), conn_id, kind, "")
    return WatchSubscriber(scope, tag, False, interval, False, accepts=accepts)
