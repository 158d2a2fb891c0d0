"""Costs of pools, Qarnot tasks and DAG runs: euros, energy, carbon and node-seconds. Pure values and arithmetic.

Four rules hold everywhere:

* A pool is billed and the Qarnot tasks on it are not, so a task gets a *share* of the cost of its pool.
* A share is proportional to the execution seconds. The idle cost is split in the same proportion, so the shares of a
  pool add up to its cost. Warm-up tasks belong to the pool and get no share. The share of a task that never ran
  is 0. The cost of a pool on which no task ran belongs to the run that opened it.
* A pool of the executor is open for weeks, and its Qarnot tasks are deleted after a day. So a share of it is the price
  of the execution seconds alone. Idle time, and tasks that are deleted, belong to no run.
* An unknown value is None, never 0. Every value that is computed from it is unknown, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_qarnot_pool.api.limits import parse_number
from airflow_qarnot_pool.api.states import TaskState
from airflow_qarnot_pool.ownership.identity import WARM_UP_ROLE, RunKey, label, run_of

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import CarbonFacts, Pool, Task

K = TypeVar("K")
_OWN_TAG_PREFIX = "airflow-"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of an object at the time of the request. ``Cost()`` is zero. None means unknown.

    ``energy_wh``: Wh. ``carbon_g``: grams of CO2 equivalent. ``saved_g``: additional grams that the reference data
    centre would have emitted. ``node_seconds``: paid seconds in which nodes were up. ``used_node_seconds``: the part of
    them that ran work. A node of four slots of which one works for a second counts as a quarter of a second.
    """

    euros: float | None = 0.0
    energy_wh: float | None = 0.0
    carbon_g: float | None = 0.0
    saved_g: float | None = 0.0
    node_seconds: float | None = 0.0
    used_node_seconds: float | None = 0.0

    @property
    def idle_node_seconds(self) -> float | None:
        """Paid node-seconds that were not used."""
        if self.node_seconds is None or self.used_node_seconds is None:
            return None
        return max(0.0, self.node_seconds - self.used_node_seconds)

    def __add__(self, other: Cost) -> Cost:
        return self._each(lambda left, right: left + right, other)

    def share(self, fraction: float) -> Cost:
        """Return a *fraction* of the cost, 0 to 1."""
        return self._each(lambda value, _: value * fraction, self)

    def _each(self, calculate: Callable[[float, float], float], other: Cost) -> Cost:
        values: dict[str, float | None] = {}
        for field in fields(self):
            left, right = getattr(self, field.name), getattr(other, field.name)
            values[field.name] = None if left is None or right is None else calculate(left, right)
        return Cost(**values)

    def to_json(self) -> dict[str, float | None]:
        """Return the fields and ``idle_node_seconds`` as JSON, rounded to six decimals."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["idle_node_seconds"] = self.idle_node_seconds
        return {name: None if value is None else round(value, 6) for name, value in values.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cost:
        """Read the result of :meth:`to_json`."""
        return cls(**{field.name: data.get(field.name) for field in fields(cls)})

    def __str__(self) -> str:
        parts = [format_euros(self.euros)]
        if self.energy_wh is not None:
            parts.append(format_watt_hours(self.energy_wh))
        if self.carbon_g is not None:
            parts.append(format_grams(self.carbon_g))
        if self.saved_g is not None:
            parts.append(f"{format_grams(self.saved_g)} saved")
        return ", ".join(parts)


def format_euros(amount: float | None) -> str:
    """Return ``1.23 EUR``, with four decimals below 1 EUR."""
    if amount is None:
        return "an unknown number of EUR"
    return f"{amount:.2f} EUR" if abs(amount) >= 1 else f"{amount:.4f} EUR"


def format_watt_hours(amount: float) -> str:
    """Return ``12.3 Wh``, or ``1.23 kWh`` from one kilowatt hour."""
    return f"{amount / 1000:.2f} kWh" if abs(amount) >= 1000 else f"{_format_number(amount)} Wh"


def format_grams(amount: float | None) -> str:
    """Return ``12.3 g CO2e``, or ``1.23 kg CO2e`` from one kilogram."""
    if amount is None:
        return "an unknown amount of CO2e"
    return f"{amount / 1000:.2f} kg CO2e" if abs(amount) >= 1000 else f"{_format_number(amount)} g CO2e"


def _format_number(amount: float) -> str:
    return f"{amount:.0f}" if abs(amount) >= 100 else f"{amount:.3g}"


def sum_costs(costs: Iterable[Cost]) -> Cost:
    """Return the sum. A figure is unknown if it is unknown in any of *costs*."""
    return sum(costs, Cost())


def to_fractions(weights: Mapping[K, float]) -> dict[K, float]:
    """Return fractions of 1 in proportion to *weights*, or equal fractions if all weights are 0."""
    total = sum(weights.values())
    if total <= 0:
        return {key: 1 / len(weights) for key in weights}
    return {key: weight / total for key, weight in weights.items()}


def is_warm_up(role: str | None) -> bool:
    """Return whether *role* is that of a warm-up, which names the pool and the condition if sharers share it."""
    return role is not None and (role == WARM_UP_ROLE or role.startswith(f"{WARM_UP_ROLE} of "))


@dataclass(frozen=True, kw_only=True)
class TaskUsage:
    """Usage of one Qarnot task. ``seconds``: execution seconds of all its instances, which are slot-seconds."""

    uuid: str
    run: RunKey
    task_id: str = ""
    map_index: int = -1
    role: str = ""
    seconds: float = 0.0
    #: Whether an instance has executed. Its seconds may be rounded to 0.
    has_run: bool = True
    has_succeeded: bool = True
    instances: int = 1
    #: Seconds of each instance that has executed; empty if Qarnot reports only their sum.
    instance_seconds: tuple[float, ...] = ()
    created: datetime | None = None
    ended: datetime | None = None
    tags: tuple[str, ...] = ()

    @classmethod
    def of(cls, task: Task) -> TaskUsage:
        """Read *task* and its labels."""
        index = parse_number(label(task.labels, "map_index"))
        return cls(
            uuid=task.uuid,
            run=run_of(task),
            task_id=label(task.labels, "task_id") or "",
            map_index=-1 if index is None else index,
            role=label(task.labels, "role") or "",
            seconds=task.executed_seconds or 0.0,
            has_run=task.has_run,
            has_succeeded=task.state == TaskState.SUCCESS,
            instances=task.instances or 1,
            instance_seconds=_instance_seconds(task),
            created=task.creation_date,
            ended=_date_or_none(task.end_date),
            tags=user_tags(task),
        )

    @property
    def is_warm_up(self) -> bool:
        """Whether the task only kept nodes busy until all were up. Such a task is paid, but does no work for a run."""
        return is_warm_up(self.role)


@dataclass(frozen=True, kw_only=True)
class PoolCost:
    """The cost of a pool, and the tasks and runs that it is shared between."""

    uuid: str
    name: str
    opened_by: RunKey
    cost: Cost
    slots_per_node: int = 1
    #: Maximum number of requested slots; None if it is unknown.
    size: int | None = None
    #: How long a node without work stays up; None: until the pool closes.
    keep_warm: timedelta | None = None
    created: datetime | None = None
    ended: datetime | None = None
    tags: tuple[str, ...] = ()
    #: Whether it is a pool of the executor.
    is_of_executor: bool = False
    #: All Qarnot tasks on the pool, including the warm-up and tasks of other runs.
    work: tuple[TaskUsage, ...] = ()

    @property
    def useful(self) -> tuple[TaskUsage, ...]:
        """The tasks that work for a run."""
        return tuple(task for task in self.work if not task.is_warm_up)

    def share_by(self, key: Callable[[TaskUsage], K], default: K) -> dict[K, Cost]:
        """Return the cost of the pool by *key* of its tasks. All of it belongs to *default* if no task ran.

        Of a pool of the executor, *default* has what no task of now has used.
        """
        weights: dict[K, float] = {}
        for task in self.useful:
            if task.has_run:
                weights[key(task)] = weights.get(key(task), 0.0) + task.seconds
        if self.is_of_executor:
            paid = (self.cost.node_seconds or 0.0) * self.slots_per_node
            weights[default] = weights.get(default, 0.0) + max(0.0, paid - sum(weights.values()))
        fractions = {key(task): 0.0 for task in self.useful} | to_fractions(weights or {default: 1.0})
        shares = {owner: self.cost.share(fraction) for owner, fraction in fractions.items()}
        return self._with_idle_in(default, shares) if self.is_of_executor else shares

    def _with_idle_in(self, default: K, shares: Mapping[K, Cost]) -> dict[K, Cost]:
        """Return *shares* with all idle time in that of *default*."""
        busy = {
            owner: replace(share, used_node_seconds=share.node_seconds) for owner, share in shares.items()
        }
        used = self.cost.used_node_seconds
        others = sum_costs(share for owner, share in busy.items() if owner != default).used_node_seconds
        left = None if used is None or others is None else max(0.0, used - others)
        return {**busy, default: replace(busy[default], used_node_seconds=left)}

    def by_run(self) -> dict[RunKey, Cost]:
        """Return the share of each DAG run."""
        return self.share_by(lambda task: task.run, self.opened_by)

    def share_of(self, run: RunKey) -> Cost:
        """Return the share of one DAG run."""
        return self.by_run().get(run, Cost())


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """The cost of a DAG run: its shares of pools, and its Qarnot tasks without a pool."""

    run: RunKey
    pools: tuple[PoolCost, ...] = ()
    #: Qarnot tasks without a pool, each with its cost.
    standalone: tuple[tuple[TaskUsage, Cost], ...] = ()

    @property
    def total(self) -> Cost:
        """The sum of all costs."""
        return sum_costs(
            [*(pool.share_of(self.run) for pool in self.pools), *(cost for _, cost in self.standalone)]
        )

    def by_task(self) -> dict[str, Cost]:
        """Return the cost by Airflow task id, of all mapped copies together. Pools without work have the id ``""``."""
        costs: dict[str, Cost] = {}
        for pool in self.pools:
            shares = pool.share_by(lambda task: (task.run, task.task_id), (pool.opened_by, ""))
            for (run, task_id), cost in shares.items():
                if run == self.run:
                    costs[task_id] = costs.get(task_id, Cost()) + cost
        for task, cost in self.standalone:
            costs[task.task_id] = costs.get(task.task_id, Cost()) + cost
        return costs

    def to_json(self) -> dict[str, Any]:
        """Return ``{dag_id, run_id, total, pools: [{uuid, name, cost, share}], tasks: {task_id: cost}}``."""
        return {
            "dag_id": self.run.dag_id,
            "run_id": self.run.run_id,
            "total": self.total.to_json(),
            "pools": [
                {
                    "uuid": pool.uuid,
                    "name": pool.name,
                    "cost": pool.cost.to_json(),
                    "share": pool.share_of(self.run).to_json(),
                }
                for pool in self.pools
            ],
            "tasks": {task_id: cost.to_json() for task_id, cost in self.by_task().items()},
        }


def user_tags(remote: Pool | Task) -> tuple[str, ...]:
    """Return the tags that were not set by the provider."""
    return tuple(tag for tag in remote.tags if not tag.startswith(_OWN_TAG_PREFIX))


def cost_from(euros: float | None, facts: CarbonFacts | None, paid: float | None, used: float | None) -> Cost:
    """Combine the figures of several responses."""
    return Cost(
        euros=euros,
        energy_wh=facts.total_consumed_energy_wh if facts else None,
        carbon_g=facts.carbon_footprint if facts else None,
        saved_g=facts.saved_carbon_footprint_compute_heat if facts else None,
        node_seconds=paid,
        used_node_seconds=used,
    )


def execution_cost(pool: Cost, seconds: float | None, slots_per_node: int = 1) -> Cost:
    """Return the part of the cost of a pool for some execution seconds, without idle time.

    It is computed at the average price of a node-second so far, so it needs no listing of the tasks of the pool.

    :param seconds: execution seconds of all instances, which are slot-seconds. None if they are unknown.
    """
    used = None if seconds is None else seconds / slots_per_node
    part = Cost(euros=None, energy_wh=None, carbon_g=None, saved_g=None)
    if used is not None and pool.node_seconds:
        part = pool.share(min(1.0, used / pool.node_seconds))
    return replace(part, node_seconds=used, used_node_seconds=used)


def pool_cost(pool: Pool, tasks: Iterable[Task], euros: float | None, facts: CarbonFacts | None) -> PoolCost:
    """Return the cost of *pool*, given the responses about the pool and the Qarnot tasks on it."""
    work = tuple(TaskUsage.of(task) for task in tasks)
    slots = pool.slots_per_node or 1
    used = sum(task.seconds for task in work if not task.is_warm_up) / slots
    return PoolCost(
        uuid=pool.uuid,
        name=pool.name or pool.uuid,
        opened_by=run_of(pool),
        cost=cost_from(euros, facts, pool.executed_seconds, used),
        slots_per_node=slots,
        size=size_of(pool),
        keep_warm=_keep_warm(pool),
        created=pool.creation_date,
        ended=_date_or_none(pool.end_date),
        tags=user_tags(pool),
        is_of_executor=label(pool.labels, "executor") is not None,
        work=work,
    )


def _instance_seconds(task: Task) -> tuple[float, ...]:
    executed = task.status.execution_time_by_instance_id if task.status else ()
    times = (instance.get("time") for instance in executed)
    return tuple(float(time) for time in times if isinstance(time, (int, float)) and time > 0)


def size_of(pool: Pool) -> int | None:
    """Return the maximum number of slots that the pool may have; None if it is unknown."""
    if pool.scaling is not None:
        sizes = (getattr(policy, "max_total_slots", 0) for policy in pool.scaling.policies)
        return max(sizes, default=0) or None
    if pool.elastic is not None and pool.elastic.is_elastic:
        return pool.elastic.max_total_slots
    return pool.instance_count


def _keep_warm(pool: Pool) -> timedelta | None:
    if pool.scaling is not None:
        policies = pool.scaling.policies
        return next((policy.min_idle_time for policy in policies if hasattr(policy, "min_idle_time")), None)
    return pool.elastic.min_idle_time if pool.elastic is not None and pool.elastic.is_elastic else None


def _date_or_none(when: datetime | None) -> datetime | None:
    """Return *when*, or None for the year 1, which Qarnot uses for "not yet"."""
    return None if when is None or when.year < 1971 else when
