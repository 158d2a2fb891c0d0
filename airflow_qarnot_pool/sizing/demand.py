"""The demand that a run put on its pool, from Qarnot's records. Pure functions.

Qarnot reports when each Qarnot task was created and ended, and how long each of its instances executed. A later task of
a DAG is submitted because earlier ones have ended, so its arrival moves with their ends. Its *cause* is a number of
ends of the Airflow tasks upstream of it, and its *delay* the seconds from the last of them to its submission. The delay
includes Airflow's scheduling, and local tasks in between. Without the DAG the ends of all tasks of the run count.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from airflow_qarnot_pool.api.parts import AlwaysPeriod, ManagedTasksQueuePolicy
from airflow_qarnot_pool.api.states import PoolState
from airflow_qarnot_pool.local.backend.scaling import POLICY_STEP_SECONDS, ScalingRule, share
from airflow_qarnot_pool.ownership.identity import RunKey

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import ElasticProperty, Pool
    from airflow_qarnot_pool.costs.model import PoolCost, TaskUsage

#: Maximum number of instances of a replay, because a teardown waits for it.
MAX_INSTANCES = 2_000
#: Maximum slots of a pool, and maximum seconds of a run and of an instance. Larger values are none of a real pool.
MAX_SIZE = 5_000
MAX_SECONDS = 30 * 86_400.0
#: Maximum seconds from an end to a submission by the same Airflow task that counts as its consequence.
MAX_LAG = 10.0

#: Ids of all tasks upstream of a task, directly or through others, by the ids of its DAG and of the task.
Upstreams = Mapping[tuple[str, str], Collection[str]]
#: The tasks of which ends are counted: an Airflow task of a DAG run, or all tasks of the run.
Key = tuple[RunKey, str | None]


@dataclass(frozen=True, slots=True)
class Work:
    """One Qarnot task.

    :param seconds: execution seconds of its instances.
    :param key: the tasks among which its end is counted.
    :param causes: numbers of ends that must have come, by key. None: it does not wait for other work.
    :param delay: seconds from its last cause to its submission, or from the moment at which the pool was ready.
    """

    seconds: tuple[float, ...]
    key: Key
    causes: tuple[tuple[Key, int], ...]
    delay: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeRule:
    """How the number of slots of a pool follows from its size and its load. ``keep_warm`` is None for a fixed size."""

    keep_warm: float | None = None
    min_slots: int = 0
    min_idle: int = 0
    #: Share of the size that is added in one step, and the seconds between two steps.
    factor: float = 1.0
    period: float = POLICY_STEP_SECONDS
    #: Whether nodes go only at multiples of the period, as those of ``elastic`` do.
    ticks: bool = False

    def at(self, size: int) -> ScalingRule:
        """Return the rule of a pool of *size* slots."""
        if self.keep_warm is None:
            return ScalingRule(fixed=size)
        return ScalingRule(
            min_total=min(size, max(self.min_slots, self.min_idle if self.ticks else 0)),
            max_total=size,
            min_idle=self.min_idle,
            idle_seconds=self.keep_warm,
            step=share(size, self.factor),
            period=self.period,
            ticks=self.ticks,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmUpTask:
    """The Qarnot task that boots all nodes.

    :param at: seconds from the creation of the pool to its submission.
    :param lag: seconds from the moment at which the pool was ready to its end.
    :param waits_for_all: whether the pool is ready with all nodes, or with the first one.
    """

    at: float
    lag: float
    waits_for_all: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """A run on a pool, apart from the size of the pool. Times are in seconds.

    :param size: slots of the pool that was recorded.
    :param boots: seconds from the request for a node until it takes work, in ascending order.
    :param tail: seconds from the end of the last work to the end of the pool.
    """

    works: tuple[Work, ...]
    size: int
    slots_per_node: int = 1
    rule: SizeRule = SizeRule()
    warm_up: WarmUpTask | None = None
    boots: tuple[float, ...] = (0.0,)
    tail: float = 0.0

    @property
    def instances(self) -> int:
        """Number of instances, which no useful size exceeds."""
        return sum(len(work.seconds) for work in self.works)

    def boot(self, rank: int, count: int) -> float:
        """Return the boot of the node *rank* of *count* that were requested together, from 1 for the fastest one."""
        position = rank / count * len(self.boots) - 1
        low = min(len(self.boots) - 1, max(0, int(position)))
        high = min(len(self.boots) - 1, low + 1)
        return self.boots[low] + max(0.0, position - low) * (self.boots[high] - self.boots[low])

    def ready(self, nodes: int) -> float:
        """Return when a pool of *nodes* nodes is ready, if something boots all of them at once."""
        if self.warm_up is None:
            return 0.0
        first_or_last = self.boot(nodes if self.warm_up.waits_for_all else 1, nodes)
        return self.warm_up.at + first_or_last + self.warm_up.lag


def upstreams_of(dag_id: str, downstream: Mapping[str, Iterable[str]]) -> Upstreams:
    """Return all tasks upstream of each task.

    :param downstream: the tasks right downstream of each task.
    """
    parents: dict[str, set[str]] = {task: set() for task in downstream}
    for task, followers in downstream.items():
        for follower in followers:
            parents.setdefault(follower, set()).add(task)
    found: dict[tuple[str, str], frozenset[str]] = {}
    for task in parents:
        above, left = set[str](), list(parents[task])
        while left:
            parent = left.pop()
            if parent not in above:
                above.add(parent)
                left += parents.get(parent, ())
        found[dag_id, task] = frozenset(above)
    return found


def demand_of(pool: Pool, cost: PoolCost, upstreams: Upstreams | None, now: datetime) -> Demand | None:
    """Return the demand on a pool; None if its record does not tell it, or is too large.

    :param cost: the cost of the pool, whose ``work`` has all Qarnot tasks on it.
    :param upstreams: of the DAG. None if it is not known.
    :param now: end of the record of a pool that is still open.
    """
    rule, size, created = _rule_of(pool), cost.size, cost.created
    tasks = sorted(cost.useful, key=_arrival)
    if rule is None or size is None or created is None or not _is_replayable(cost, size, tasks):
        return None
    work = [task for task in tasks if task.has_run]
    warm = next(filter(_is_ended_warm_up, cost.work), None)
    nodes = -(-size // cost.slots_per_node)
    ended = _end_of(pool, cost, now)
    boots = _boots(cost, warm, work, nodes, (ended - created).total_seconds(), rule)
    demand = Demand(
        works=(),
        size=size,
        slots_per_node=cost.slots_per_node,
        rule=rule,
        boots=boots,
        warm_up=None if warm is None else _warm_up(warm, created, boots, nodes),
        tail=max(0.0, (ended - max(map(_end, work))).total_seconds()),
    )
    return replace(demand, works=tuple(_works(work, created, demand.ready(nodes), upstreams)))


def _end_of(pool: Pool, cost: PoolCost, now: datetime) -> datetime:
    """Return when a pool began to close, because its nodes are paid until then."""
    if pool.state == PoolState.CLOSING and pool.state_transition_time is not None:
        return pool.state_transition_time
    if pool.previous_state == PoolState.CLOSING and pool.previous_state_transition_time is not None:
        return pool.previous_state_transition_time
    return cost.ended or now


def _is_ended_warm_up(task: TaskUsage) -> bool:
    return task.is_warm_up and task.created is not None and task.ended is not None


def _is_replayable(cost: PoolCost, size: int, tasks: Sequence[TaskUsage]) -> bool:
    """Return whether all work has ended well, and has sane numbers."""
    work = [task for task in tasks if task.has_run]
    count = sum(max(task.instances, len(task.instance_seconds)) for task in work)
    is_sane = 0 < size <= MAX_SIZE and 0 < cost.slots_per_node <= MAX_SIZE and 0 < count <= MAX_INSTANCES
    return is_sane and is_complete(tasks) and all(map(_has_times, work))


def _has_times(task: TaskUsage) -> bool:
    has_ended = task.created is not None and task.ended is not None
    return has_ended and all(0 <= seconds <= MAX_SECONDS for seconds in _seconds(task))


def is_complete(tasks: Iterable[TaskUsage]) -> bool:
    """Return whether the last Qarnot task of each Airflow task has succeeded. Otherwise some work never came.

    :param tasks: in the order of arrival.
    """
    last = {(task.run, task.task_id, task.map_index): task for task in tasks}
    return all(task.has_succeeded for task in last.values())


def _arrival(task: TaskUsage) -> float:
    return task.created.timestamp() if task.created else 0.0


def _end(task: TaskUsage) -> datetime:
    assert task.ended is not None
    return task.ended


def _seconds(task: TaskUsage) -> tuple[float, ...]:
    """Return the seconds of each instance, or their mean if Qarnot reports only the sum."""
    return task.instance_seconds or (task.seconds / task.instances,) * task.instances


def _works(
    tasks: Sequence[TaskUsage], created: datetime, ready: float, upstreams: Upstreams | None
) -> Iterable[Work]:
    """Yield the works in the order of their arrival.

    A work waits only for ends of works that have arrived before it, so no replay can wait for ever. Dates have whole
    seconds: a short Qarnot task may end in the second of its creation, and of that of others.
    """
    start = created.timestamp()
    ends: dict[Key, list[float]] = {}
    unfinished: list[tuple[float, int, Key]] = []
    for number, task in enumerate(tasks):
        arrival = _arrival(task)
        while unfinished and unfinished[0][0] <= arrival:
            end, _, own = heapq.heappop(unfinished)
            for key in dict.fromkeys((own, (own[0], None))):
                ends.setdefault(key, []).append(end)
        causes, last = _causes(task, arrival, ends, upstreams, start + ready)
        yield Work(
            seconds=_seconds(task),
            key=_own(task),
            causes=causes,
            delay=arrival - (start + ready if last is None else last),
        )
        heapq.heappush(unfinished, (_end(task).timestamp(), number, _own(task)))


def _own(task: TaskUsage) -> Key:
    return task.run, task.task_id


def _causes(
    task: TaskUsage,
    arrival: float,
    ends: Mapping[Key, Sequence[float]],
    upstreams: Upstreams | None,
    ready: float,
) -> tuple[tuple[tuple[Key, int], ...], float | None]:
    """Return the numbers of ends that a task has waited for, and the time of the last of them.

    :param ends: the ends until its arrival, in ascending order.
    """

    def counted(keys: Iterable[Key]) -> tuple[tuple[Key, int], ...]:
        return tuple((key, len(ends[key])) for key in keys if key in ends)

    def last(causes: Iterable[tuple[Key, int]]) -> float | None:
        return max((ends[key][-1] for key, _ in causes), default=None)

    known = (upstreams or {}).get((task.run.dag_id, task.task_id))
    if known is None:
        causes = counted([(task.run, None)])
        return causes, last(causes)
    causes = counted((task.run, above) for above in sorted(known))
    own = counted([_own(task)])
    # A retry, or the next of many commands, follows an end of its own Airflow task.
    latest, own_end = last(causes), last(own)
    if own_end is not None and arrival - own_end <= MAX_LAG < arrival - (ready if latest is None else latest):
        return (*causes, *own), own_end
    return causes, latest


def _rule_of(pool: Pool) -> SizeRule | None:
    """Return how the size of a pool follows from its load; None if a calendar or an unknown policy decides."""
    if pool.scaling is not None:
        [policy, *others] = pool.scaling.policies or (None,)
        if others or not isinstance(policy, ManagedTasksQueuePolicy) or not _is_always(policy):
            return None
        return SizeRule(
            keep_warm=policy.min_idle_time.total_seconds(),
            min_slots=policy.min_total_slots,
            min_idle=policy.min_idle_slots,
            factor=policy.scaling_factor,
        )
    return SizeRule() if pool.elastic is None or not pool.elastic.is_elastic else _elastic_rule(pool.elastic)


def _is_always(policy: ManagedTasksQueuePolicy) -> bool:
    return all(isinstance(period, AlwaysPeriod) for period in policy.enabled_periods)


def _elastic_rule(elastic: ElasticProperty) -> SizeRule:
    factor = elastic.ramp_resize_factor
    return SizeRule(
        keep_warm=elastic.min_idle_time.total_seconds() if elastic.min_idle_time else 0.0,
        min_slots=elastic.min_total_slots or 0,
        min_idle=elastic.min_idle_slots or 0,
        factor=factor if factor is not None and 0 < factor <= 1 else 1.0,
        period=max(1.0, elastic.resize_period.total_seconds()) if elastic.resize_period else 90.0,
        ticks=True,
    )


def _boots(
    cost: PoolCost,
    warm: TaskUsage | None,
    work: Sequence[TaskUsage],
    nodes: int,
    life: float,
    rule: SizeRule,
) -> tuple[float, ...]:
    """Return the boots that the record shows, which are exact for a warm-up and for a fixed size.

    A warm-up runs on each node from its boot on. A pool of fixed size pays for all nodes from their boots to its end.
    Otherwise the first work to arrive waits for a boot.
    """
    if warm is not None and warm.instance_seconds:
        lasted = (_end(warm).timestamp() - _arrival(warm),) * len(warm.instance_seconds)
        boots = sorted(max(0.0, a - b) for a, b in zip(lasted, warm.instance_seconds, strict=True))
        return tuple(boots[:: cost.slots_per_node])
    if rule.keep_warm is None and cost.cost.node_seconds is not None:
        return (max(0.0, life - cost.cost.node_seconds / nodes),)
    first = min(work, key=lambda task: (_arrival(task), _end(task)))
    return (max(0.0, _end(first).timestamp() - _arrival(first) - max(_seconds(first))),)


def _warm_up(
    warm: TaskUsage | None, created: datetime, boots: Sequence[float], nodes: int
) -> WarmUpTask | None:
    if warm is None:
        return None
    waits_for_all = len(boots) >= nodes
    at = _arrival(warm) - created.timestamp()
    lasted = _end(warm).timestamp() - _arrival(warm)
    return WarmUpTask(
        at=at, lag=max(0.0, lasted - boots[-1 if waits_for_all else 0]), waits_for_all=waits_for_all
    )
