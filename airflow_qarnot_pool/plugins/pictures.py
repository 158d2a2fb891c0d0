"""Numbers of the pictures on the Pools page. Pure functions, bounded in size. Times are epoch seconds.

Qarnot reports when a Qarnot task was created and has ended, when its last two states began, and how long each instance
executed. That places the only instance of a task exactly, to the second. It reports no start of a finished instance of
an array. So such an instance is placed only if it was observed while it ran. It never reports the node of an instance.
A *lane* is a row in which no two instances overlap. The lanes are drawn as the slots of the nodes: each instance in the
first slot that was free.
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import accumulate
from typing import Any, NamedTuple

from airflow_qarnot_pool.api.models import Pool, Task
from airflow_qarnot_pool.api.states import PoolState, TaskState
from airflow_qarnot_pool.plugins.history import MAX_PAUSE, MAX_POINTS, ObservedHistory, thinned
from airflow_qarnot_pool.plugins.phases import (
    UNFINISHED,
    ended_at,
    group_of,
    is_open,
    keep_warm_of,
    load_of,
    target_slots,
)
from airflow_qarnot_pool.plugins.resizing import max_slots_of

#: Maximum number of slots of a picture that shows those without any work, too.
MAX_EMPTY_SLOTS = 60
#: Maximum number of bars of a picture, and of observed starts of instances for each pool.
MAX_BARS = 2_000
MAX_STARTS = 20_000
#: Number of bills above which those of pools that have left the list are forgotten.
MAX_BILLS = 20_000
DAY = 86_400.0
#: Seconds by which two observations of one start may differ.
ROUNDING = 5.0
_EXECUTING = (TaskState.PARTIALLY_EXECUTING, TaskState.FULLY_EXECUTING)
_UPLOADING = (TaskState.UPLOADING_RESULTS, TaskState.DOWNLOADING_RESULTS)


@dataclass(frozen=True, slots=True)
class Bar:
    """One attempt of an instance, or, if ``is_exact`` is false, all instances of a task whose times are not known.

    ``end`` is None while it runs. ``instance`` is None for a whole task.
    """

    start: float
    end: float | None
    group: str
    task: str
    instance: int | None = 0
    is_exact: bool = True


#: Attempt and start of the instances of arrays that were observed running, by (uuid of the task, id of the instance).
Starts = dict[tuple[str, int], tuple[int, float]]


def observe_starts(starts: Starts, remote: Pool | Task) -> None:
    """Add the starts of the instances, or nodes, that run now.

    The first observation counts, because each one is rounded differently. A start that differs by more is that of
    another attempt, or of another node of the same number.
    """
    status = remote.status
    if status is None or status.timestamp is None:
        return
    for instance in status.running_instances:
        if instance.phase != "execution" or instance.execution_time is None or instance.instance_id is None:
            continue
        key, attempt = (remote.uuid, instance.instance_id), instance.execution_attempt_count or 1
        start = status.timestamp.timestamp() - instance.execution_time.total_seconds()
        known_attempt, known = starts.get(key, (0, 0.0))
        if attempt != known_attempt or abs(start - known) > ROUNDING:
            starts[key] = (attempt, start)
    while len(starts) > MAX_STARTS:
        del starts[next(iter(starts))]


def bars_of(task: Task, starts: Mapping[tuple[str, int], tuple[int, float]]) -> list[Bar]:
    """Return the bars of a Qarnot task."""
    if (task.instances or 1) == 1:
        bar = _single(task)
        return [] if bar is None else [bar]
    return _array_bars(task, starts)


def _array_bars(task: Task, starts: Mapping[tuple[str, int], tuple[int, float]]) -> list[Bar]:
    bars, missing = [], 0
    for number, seconds, group in _finished_instances(task):
        attempt, start = starts.get((task.uuid, number), (0, 0.0))
        if attempt != 1 or seconds is None:
            missing += 1  # the seconds are those of all attempts
        else:
            bars.append(Bar(start, start + seconds, group, task.uuid, number))
    if group_of(task.state) in UNFINISHED and task.status is not None:
        for instance in task.status.running_instances:
            key = (task.uuid, -1 if instance.instance_id is None else instance.instance_id)
            if key in starts:
                bars.append(Bar(starts[key][1], None, "running", *key))
    if missing and task.creation_date is not None:
        bars.append(_whole(task, task.creation_date))
    return bars


def _whole(task: Task, created: datetime) -> Bar:
    """Return the bar of all instances of a task together."""
    ended = None if task.end_date is None else task.end_date.timestamp()
    group = group_of(task.state)
    group = "running" if group in UNFINISHED else group
    return Bar(created.timestamp(), ended, group, task.uuid, None, is_exact=False)


def _finished_instances(task: Task) -> Iterator[tuple[int, float | None, str]]:
    """Yield the id, the seconds and the group of the instances that have run. None: Qarnot does not say how long.

    Qarnot lists cancelled instances only with their seconds.
    """
    completed = {instance.instance_id: instance for instance in task.completed_instances}
    for number, instance in completed.items():
        seconds = instance.execution_time
        retried = (instance.execution_attempt_count or 1) > 1
        yield (
            -1 if number is None else number,
            None if seconds is None or retried else seconds.total_seconds(),
            "succeeded" if instance.succeeded else "failed",
        )
    if group_of(task.state) not in UNFINISHED:
        yield from _cancelled_instances(task, completed)


def _cancelled_instances(
    task: Task, completed: Container[int | None]
) -> Iterator[tuple[int, float | None, str]]:
    for executed in task.status.execution_time_by_instance_id if task.status else ():
        cancelled, spent = executed.get("instanceId"), executed.get("time")
        if (
            isinstance(cancelled, int)
            and cancelled not in completed
            and isinstance(spent, (int, float))
            and spent > 0
        ):
            yield cancelled, float(spent), "cancelled"


def _single(task: Task) -> Bar | None:
    """Return the bar of a task with one instance; None if it has not run."""
    if group_of(task.state) in UNFINISHED:
        moved, before = task.state_transition_time, task.previous_state_transition_time
        start = moved if task.state in _EXECUTING else before if task.previous_state in _EXECUTING else None
        return None if start is None else Bar(start.timestamp(), None, "running", task.uuid)
    ended = task.end_date or task.state_transition_time
    return _ended(task, ended) if ended is not None and task.has_run else None


def _ended(task: Task, ended: datetime) -> Bar:
    """Return the bar of a task with one instance. *ended* is the end of its upload, too."""
    group, before = group_of(task.state), task.previous_state_transition_time
    if before is not None and task.previous_state in _EXECUTING:
        return Bar(before.timestamp(), ended.timestamp(), group, task.uuid)
    end = before if before is not None and task.previous_state in _UPLOADING else ended
    is_retried = any((each.execution_attempt_count or 1) > 1 for each in task.completed_instances)
    seconds = task.executed_seconds
    if seconds is None or is_retried:
        created = task.creation_date or end
        return Bar(created.timestamp(), end.timestamp(), group, task.uuid, None, is_exact=False)
    return Bar(end.timestamp() - seconds, end.timestamp(), group, task.uuid)


def fitted(bars: Iterable[Bar]) -> list[Bar]:
    """Return bars of which none overlaps the next one in its lane.

    Times have whole seconds. Otherwise more slots would seem busy than there are.
    """
    bars = list(bars)
    exact = sorted((bar for bar in bars if bar.is_exact), key=_by_start)
    last: dict[int, int] = {}
    for index, lane in enumerate(_lanes(exact, 0)[0]):
        before = exact[last.get(lane, index)]
        if before.end is not None and before.end > exact[index].start and lane in last:
            exact[last[lane]] = replace(before, end=exact[index].start)
        last[lane] = index
    return [*exact, *(bar for bar in bars if not bar.is_exact)]


def _by_start(bar: Bar) -> tuple[float, str, int]:
    return bar.start, bar.task, bar.instance or 0


class NodeCount(NamedTuple):
    """The nodes of a pool: slots on each, the most slots that were seen, and the most that it may have."""

    slots_per_node: int = 1
    seen: int = 0
    possible: int | None = None

    @classmethod
    def of(cls, pool: Pool, observed: ObservedHistory) -> NodeCount:
        """Count the nodes of *pool*."""
        wanted = (wanted for _, wanted, _ in observed.slots)
        seen = max((ready for _, _, ready in observed.slots), default=0)
        possible = max(pool.instance_count or 0, max_slots_of(pool), *wanted, 1)
        return cls(max(1, pool.slots_per_node or 1), max(seen, pool.ready_slots), possible)

    def nodes(self, lanes: int) -> int:
        """Return the number of nodes to draw, if up to *lanes* instances ran at once."""
        slots = max(lanes, self.seen if self.seen <= MAX_EMPTY_SLOTS else 0)
        if self.possible is not None:
            # Times have whole seconds, so there may seem to be more instances at once than slots.
            slots = min(slots, max(self.possible, self.seen))
        return -(-slots // self.slots_per_node)


def gantt(bars: Sequence[Bar], count: NodeCount | None = None) -> dict[str, Any]:
    """Return the picture of the instances.

    ``{nodes, slots_per_node, lanes, bars, tasks, total, cut}``. A bar is ``[lane, start, end, group, index of the task,
    instance, is exact]``. The youngest ones are kept. The first lanes are the slots of the nodes. ``lanes`` counts the
    lanes of exact bars; the others follow. ``tasks`` has uuids.
    """
    count = count or NodeCount()
    exact = sorted((bar for bar in bars if bar.is_exact), key=_by_start)
    inexact = sorted((bar for bar in bars if not bar.is_exact), key=_by_start)
    lanes, used = _lanes(exact, 0)
    nodes = count.nodes(used)
    used = max(used, nodes * count.slots_per_node)
    more_lanes, _ = _lanes(inexact, used)
    placed = list(zip((*lanes, *more_lanes), (*exact, *inexact), strict=True))
    if len(placed) > MAX_BARS:
        placed.sort(key=lambda each: (each[1].end is None, each[1].end or 0.0), reverse=True)
        placed = sorted(placed[:MAX_BARS], key=lambda each: (each[1].start, each[0]))
    tasks: dict[str, int] = {}
    return {
        "nodes": nodes,
        "slots_per_node": count.slots_per_node,
        "lanes": used,
        "bars": [
            [
                lane,
                round(bar.start, 1),
                None if bar.end is None else round(max(bar.start, bar.end), 1),
                bar.group,
                tasks.setdefault(bar.task, len(tasks)),
                bar.instance,
                bar.is_exact,
            ]
            for lane, bar in placed
        ],
        "tasks": list(tasks),
        "total": len(bars),
        "cut": len(bars) > MAX_BARS,
    }


def _lanes(bars: Sequence[Bar], first: int) -> tuple[list[int], int]:
    """Return the lane of each bar and the number of lanes. Bars are sorted by start, and take the lowest free lane."""
    free: list[int] = []
    taken: list[tuple[float, int]] = []
    lanes, count = [], 0
    for bar in bars:
        # Times have whole seconds, so an instance may seem to start just before the one ends that it follows.
        while taken and taken[0][0] <= bar.start + 1:
            heapq.heappush(free, heapq.heappop(taken)[1])
        if free:
            lane = heapq.heappop(free)
        else:
            lane, count = first + count, count + 1
        lanes.append(lane)
        heapq.heappush(taken, (float("inf") if bar.end is None else bar.end, lane))
    return lanes, count


def work_over_time(tasks: Sequence[Task], bars: Sequence[Bar]) -> dict[str, Any]:
    """Return how many instances ran and how many waited: ``points`` of ``[time, busy, queued]``.

    From Qarnot's records, so it does not need an observer. ``missing`` is the number of instances without exact times.
    """
    by_task: dict[str, list[Bar]] = {}
    for bar in bars:
        if bar.is_exact:
            by_task.setdefault(bar.task, []).append(bar)
    changes: dict[float, list[int]] = {}
    missing = 0
    for task in tasks:
        placed = by_task.get(task.uuid, [])
        missing += max(0, _started(task) - len(placed))
        for at, busy, queued in _changes(task, placed):
            change = changes.setdefault(at, [0, 0])
            change[0] += busy
            change[1] += queued
    points, busy, queued = [], 0, 0
    for at in sorted(changes):
        busy, queued = busy + changes[at][0], queued + changes[at][1]
        points.append((at, busy, queued))
    kept = thinned(points, MAX_POINTS)
    return {"points": [list(point) for point in kept], "missing": missing, "cut": len(kept) < len(points)}


def _started(task: Task) -> int:
    """Return the number of instances that have run, or run."""
    running = 0 if group_of(task.state) not in UNFINISHED else task.running_instance_count or 0
    return sum(1 for _ in _finished_instances(task)) + running


def _changes(task: Task, bars: Sequence[Bar]) -> Iterator[tuple[float, int, int]]:
    """Yield the changes of the numbers of running and of waiting instances."""
    created = task.creation_date.timestamp() if task.creation_date else None
    for bar in bars:
        yield bar.start, 1, 0
        if bar.end is not None:
            yield bar.end, -1, 0
        if created is not None:
            yield created, 0, 1
            yield max(created, bar.start), 0, -1
    never_ran = (task.instances or 1) - max(len(bars), _started(task))
    if created is not None and never_ran > 0:
        yield created, 0, never_ran
        if group_of(task.state) not in UNFINISHED and task.end_date is not None:
            yield task.end_date.timestamp(), 0, -never_ran


def slots_over_time(pool: Pool, observed: ObservedHistory) -> dict[str, Any]:
    """Return the slots that were wanted and ready: ``points`` of ``[time, wanted, ready]``, and the ``gaps``.

    Before the first poll only two facts are known: a pool has no slots when it is created, and one of fixed size has
    all of them since it has become FullyExecuting.
    """
    points: list[tuple[float, int | None, int]] = list(observed.slots)
    first = points[0][0] if points else None
    has_fixed_size = keep_warm_of(pool) is None
    known: list[tuple[float, int | None, int]] = []
    if pool.creation_date is not None and (first is None or pool.creation_date.timestamp() < first):
        known.append((pool.creation_date.timestamp(), pool.instance_count if has_fixed_size else None, 0))
    moved = pool.state_transition_time
    if (
        has_fixed_size
        and pool.state == PoolState.FULLY_EXECUTING
        and moved is not None
        and first is not None
        and (known[-1][0] if known else 0.0) < moved.timestamp() < first
    ):
        known.append((moved.timestamp(), target_slots(pool), pool.ready_slots))
        first = None  # nothing is unknown from here on
    return _series((*known, *points), _gaps(known, first, observed), pool)


def cost_over_time(pool: Pool, observed: ObservedHistory) -> dict[str, Any]:
    """Return the readings of the bill: ``points`` of ``[time, euros]``, and the ``gaps``."""
    known: list[tuple[float, float]] = []
    if pool.creation_date is not None:
        known.append((pool.creation_date.timestamp(), 0.0))
    first = observed.costs[0][0] if observed.costs else None
    return _series((*known, *observed.costs), _gaps(known, first, observed), None)


def _gaps(
    known: Sequence[tuple[float, *tuple[Any, ...]]], first: float | None, observed: ObservedHistory
) -> list[list[float]]:
    gaps = [list(gap) for gap in observed.gaps]
    if known and first is not None and first - known[-1][0] > MAX_PAUSE.total_seconds():
        gaps.insert(0, [known[-1][0], first])
    return gaps


def _series(
    points: Sequence[tuple[float, *tuple[Any, ...]]], gaps: list[list[float]], pool: Pool | None
) -> dict[str, Any]:
    if pool is not None and (end := ended_at(pool)) is not None:
        ended = end.timestamp()
        points = (*(point for point in points if point[0] < ended), (ended, 0, 0))
    kept = thinned(points, MAX_POINTS)
    return {"points": [list(point) for point in kept], "gaps": gaps, "cut": len(points) >= MAX_POINTS}


# --- the account


@dataclass(frozen=True, kw_only=True)
class AccountHistory:
    """The sums over all pools of the last day: ``(time, pools, wanted, ready, busy, queued, spent)``.

    ``spent`` is in euros since the first poll. It is None as long as no bill of the pools is known.
    """

    points: tuple[tuple[float, int, int, int, int, int, float | None], ...] = ()
    gaps: tuple[tuple[float, float], ...] = ()
    polled: float | None = None
    began: float | None = None
    spent: float = 0.0
    #: The last bill of each pool, by uuid.
    bills: Mapping[str, float] = field(default_factory=dict)

    def updated(
        self, pools: Iterable[Pool], euros: Mapping[str, float | None], now: datetime
    ) -> AccountHistory:
        """Return the history with one more poll.

        :param euros: known costs of all pools of the list, ended ones, too.
        """
        at, since, pools = now.timestamp(), now.timestamp() - DAY, list(pools)
        began = at if self.began is None else self.began
        grown, bills = _growth(self.bills, pools, euros, began)
        spent = round(self.spent + grown, 6)
        sums = (*_sums(pools), spent if bills or not pools else None)
        points, gaps = self.points, self.gaps
        if self.polled is not None and at - self.polled > MAX_PAUSE.total_seconds():
            gaps = (*gaps, (self.polled, at))
        if not points or points[-1][1:] != sums:
            points = (*points, (at, *sums))
        # The last point before the day holds up to the first one in it.
        outside = sum(point[0] < since for point in points)
        points = thinned(points[max(0, outside - 1) :], MAX_POINTS)
        gaps = tuple(gap for gap in gaps if gap[1] > since)
        return AccountHistory(points=points, gaps=gaps, polled=at, began=began, spent=spent, bills=bills)


def _growth(
    bills: Mapping[str, float], pools: Sequence[Pool], euros: Mapping[str, float | None], began: float
) -> tuple[float, dict[str, float]]:
    """Return by how many euros the bills have grown, and the new bills.

    Only a few bills are read in a round. So the first reading of a pool that is older than the observation is no
    spending. That of a younger pool is.
    """
    grown = 0.0
    current = (
        dict(bills) if len(bills) < MAX_BILLS else {uuid: bills[uuid] for uuid in euros if uuid in bills}
    )
    for pool in pools:
        bill = euros.get(pool.uuid)
        if bill is None:
            continue
        is_young = pool.creation_date is not None and pool.creation_date.timestamp() >= began
        before = current.get(pool.uuid, 0.0 if is_young else bill)
        current[pool.uuid] = max(before, bill)
        grown += current[pool.uuid] - before
    return grown, current


def _sums(pools: Sequence[Pool]) -> tuple[int, int, int, int, int]:
    """Return the number of open pools, their wanted and ready slots, and the busy and queued instances on them."""
    pools = [pool for pool in pools if is_open(pool)]
    loads = [load_of(pool) for pool in pools]
    return (
        len(pools),
        sum(target_slots(pool) for pool in pools),
        sum(pool.ready_slots for pool in pools),
        sum(busy for busy, _ in loads),
        sum(queued for _, queued in loads),
    )


def account_history(history: AccountHistory, pools: Iterable[Pool], now: datetime) -> dict[str, Any]:
    """Return the picture of the account: ``from``, ``points``, ``gaps``, and ``open``.

    ``open`` has the number of open pools over the day, from the dates of the pools, so it has no gaps.
    """
    since = now.timestamp() - DAY
    gaps = [list(gap) for gap in history.gaps]
    first = history.points[0][0] if history.points else now.timestamp()
    if first > since:
        gaps.insert(0, [since, first])
    return {
        "from": since,
        "points": [list(point) for point in history.points],
        "gaps": gaps,
        "open": [list(point) for point in thinned(_open_pools(pools, since), MAX_POINTS)],
    }


def _open_pools(pools: Iterable[Pool], since: float) -> list[tuple[float, int]]:
    """Return the number of open pools since a time, in steps."""
    changes: dict[float, int] = {since: 0}
    for pool in pools:
        ended = ended_at(pool)
        end = float("inf") if ended is None else ended.timestamp()
        if pool.creation_date is None or end <= since:
            continue
        start = max(since, pool.creation_date.timestamp())
        changes[start] = changes.get(start, 0) + 1
        changes[end] = changes.get(end, 0) - 1
    changes.pop(float("inf"), None)
    return list(zip(sorted(changes), accumulate(changes[at] for at in sorted(changes)), strict=True))
