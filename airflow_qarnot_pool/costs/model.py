"""What pools, Qarnot tasks and DAG runs cost: euros, energy, carbon and node-seconds.

The upper half is values and arithmetic, the lower half asks Qarnot. Three rules hold everywhere:

* a pool is billed and the Qarnot tasks on it are not, so those get a *share* of their pool;
* a share is in proportion to execution seconds, and what was paid and not used is split in the same proportion.
  So the shares of a pool add up to the pool. Warm-up tasks are the pool's own and take no share; a pool on which
  nothing ran is its opener's;
* what is not known is None, never 0, and makes what is computed from it unknown, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_qarnot_pool.api.limits import parse_number
from airflow_qarnot_pool.ownership.identity import RunKey, label, run_of

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import CarbonFacts, Pool, Task

K = TypeVar("K")
_OWN_TAG_PREFIX = "airflow-"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What something cost up to the moment it was asked for. ``Cost()`` is nothing; None is "not known".

    ``euros``: euros. ``energy_wh``: Wh. ``carbon_g`` and ``saved_g``: grams of CO2 equivalent, emitted, and
    emitted less than in the reference data centre. ``node_seconds``: seconds that nodes were up and paid;
    ``used_node_seconds``: the part of them that ran work (a node of four slots with one of them at work for a
    second counts as a quarter of a second).
    """

    euros: float | None = 0.0
    energy_wh: float | None = 0.0
    carbon_g: float | None = 0.0
    saved_g: float | None = 0.0
    node_seconds: float | None = 0.0
    used_node_seconds: float | None = 0.0

    @property
    def idle_node_seconds(self) -> float | None:
        """Node-seconds paid and not used."""
        if self.node_seconds is None or self.used_node_seconds is None:
            return None
        return max(0.0, self.node_seconds - self.used_node_seconds)

    def __add__(self, other: Cost) -> Cost:
        return self._each(lambda mine, theirs: mine + theirs, other)

    def share(self, fraction: float) -> Cost:
        """This part of it, 0 to 1."""
        return self._each(lambda mine, _: mine * fraction, self)

    def _each(self, calculate: Callable[[float, float], float], other: Cost) -> Cost:
        found: dict[str, float | None] = {}
        for one in fields(self):
            mine, theirs = getattr(self, one.name), getattr(other, one.name)
            found[one.name] = None if mine is None or theirs is None else calculate(mine, theirs)
        return Cost(**found)

    def to_json(self) -> dict[str, float | None]:
        """JSON-ready, rounded to six decimals: the fields, and ``idle_node_seconds``."""
        named = {one.name: getattr(self, one.name) for one in fields(self)}
        named["idle_node_seconds"] = self.idle_node_seconds
        return {name: None if value is None else round(value, 6) for name, value in named.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cost:
        """Read back what :meth:`to_json` wrote."""
        return cls(**{one.name: data.get(one.name) for one in fields(cls)})

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
    """``1.23 EUR``; four decimals below 1 EUR."""
    if amount is None:
        return "an unknown number of EUR"
    return f"{amount:.2f} EUR" if abs(amount) >= 1 else f"{amount:.4f} EUR"


def format_watt_hours(amount: float) -> str:
    """``12.3 Wh``, from a kilowatt hour on ``1.23 kWh``."""
    return f"{amount / 1000:.2f} kWh" if abs(amount) >= 1000 else f"{_format_number(amount)} Wh"


def format_grams(amount: float | None) -> str:
    """``12.3 g CO2e``, from a kilogram on ``1.23 kg CO2e``."""
    if amount is None:
        return "an unknown amount of CO2e"
    return f"{amount / 1000:.2f} kg CO2e" if abs(amount) >= 1000 else f"{_format_number(amount)} g CO2e"


def _format_number(amount: float) -> str:
    return f"{amount:.0f}" if abs(amount) >= 100 else f"{amount:.3g}"


def sum_costs(costs: Iterable[Cost]) -> Cost:
    """The sum; unknown wherever a part is."""
    return sum(costs, Cost())


def to_fractions(weights: Mapping[K, float]) -> dict[K, float]:
    """Shares of 1 in proportion to *weights*; equal shares where all of them are 0."""
    whole = sum(weights.values())
    if whole <= 0:
        return {key: 1 / len(weights) for key in weights}
    return {key: weight / whole for key, weight in weights.items()}


@dataclass(frozen=True, kw_only=True)
class TaskUsage:
    """What one Qarnot task used. ``seconds``: execution seconds of all its instances, so slot-seconds."""

    uuid: str
    run: RunKey
    task_id: str = ""
    map_index: int = -1
    role: str = ""
    seconds: float = 0.0
    instances: int = 1
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
            instances=task.instances or 1,
            created=task.creation_date,
            ended=_date_or_none(task.end_date),
            tags=user_tags(task),
        )

    @property
    def is_warm_up(self) -> bool:
        """Whether it only kept nodes busy until all were up: paid, but of no use to any run."""
        from airflow_qarnot_pool.ownership.identity import WARM_UP_ROLE

        return self.role == WARM_UP_ROLE


@dataclass(frozen=True, kw_only=True)
class PoolCost:
    """What a pool cost, and for whom."""

    uuid: str
    name: str
    opened_by: RunKey
    cost: Cost
    slots_per_node: int = 1
    #: Slots it was asked to have at most; None where nothing says.
    size: int | None = None
    #: How long a node without work stays on; None: until the pool closes.
    keep_warm: timedelta | None = None
    created: datetime | None = None
    ended: datetime | None = None
    tags: tuple[str, ...] = ()
    #: Every Qarnot task on it, those of other runs and the warm-up included.
    work: tuple[TaskUsage, ...] = ()

    @property
    def useful(self) -> tuple[TaskUsage, ...]:
        """The work that takes a share."""
        return tuple(one for one in self.work if not one.is_warm_up)

    def by(self, key: Callable[[TaskUsage], K], nobody: K) -> dict[K, Cost]:
        """The pool's cost, shared out by *key* of its work; all of it *nobody*'s where nothing ran on it."""
        weights: dict[K, float] = {}
        for one in self.useful:
            weights[key(one)] = weights.get(key(one), 0.0) + one.seconds
        return {
            who: self.cost.share(fraction) for who, fraction in to_fractions(weights or {nobody: 1.0}).items()
        }

    def by_run(self) -> dict[RunKey, Cost]:
        """The share of each DAG run."""
        return self.by(lambda one: one.run, self.opened_by)

    def share_of(self, run: RunKey) -> Cost:
        """The share of one DAG run."""
        return self.by_run().get(run, Cost())


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """What a DAG run cost: its shares of pools, and the Qarnot tasks it ran on nodes of their own."""

    run: RunKey
    pools: tuple[PoolCost, ...] = ()
    #: Qarnot tasks without a pool, each with its own cost.
    standalone: tuple[tuple[TaskUsage, Cost], ...] = ()

    @property
    def total(self) -> Cost:
        """All of it."""
        return sum_costs(
            [*(pool.share_of(self.run) for pool in self.pools), *(cost for _, cost in self.standalone)]
        )

    def by_task(self) -> dict[str, Cost]:
        """The cost of each Airflow task by its id, mapped ones together. Pools without work are under ``""``."""
        found: dict[str, Cost] = {}
        for pool in self.pools:
            shares = pool.by(lambda one: (one.run, one.task_id), (pool.opened_by, ""))
            for (run, task_id), cost in shares.items():
                if run == self.run:
                    found[task_id] = found.get(task_id, Cost()) + cost
        for work, cost in self.standalone:
            found[work.task_id] = found.get(work.task_id, Cost()) + cost
        return found

    def to_json(self) -> dict[str, Any]:
        """``{dag_id, run_id, total, pools: [{uuid, name, cost, share}], tasks: {task_id: cost}}``."""
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


def user_tags(found: Pool | Task) -> tuple[str, ...]:
    """The tags that are not the provider's own."""
    return tuple(tag for tag in found.tags if not tag.startswith(_OWN_TAG_PREFIX))


def cost_from(euros: float | None, facts: CarbonFacts | None, paid: float | None, used: float | None) -> Cost:
    """Put the answers of several requests together."""
    return Cost(
        euros=euros,
        energy_wh=facts.total_consumed_energy_wh if facts else None,
        carbon_g=facts.carbon_footprint if facts else None,
        saved_g=facts.saved_carbon_footprint_compute_heat if facts else None,
        node_seconds=paid,
        used_node_seconds=used,
    )


def pool_cost(pool: Pool, tasks: Iterable[Task], euros: float | None, facts: CarbonFacts | None) -> PoolCost:
    """What *pool* cost, from what Qarnot says of it and of the Qarnot tasks on it."""
    work = tuple(TaskUsage.of(task) for task in tasks)
    slots = pool.slots_per_node or 1
    used = sum(one.seconds for one in work if not one.is_warm_up) / slots
    return PoolCost(
        uuid=pool.uuid,
        name=pool.name or pool.uuid,
        opened_by=run_of(pool),
        cost=cost_from(euros, facts, pool.executed_seconds, used),
        slots_per_node=slots,
        size=_size(pool),
        keep_warm=_keep_warm(pool),
        created=pool.creation_date,
        ended=_date_or_none(pool.end_date),
        tags=user_tags(pool),
        work=work,
    )


def _size(pool: Pool) -> int | None:
    if pool.scaling is not None:
        return max((getattr(one, "max_total_slots", 0) for one in pool.scaling.policies), default=0) or None
    if pool.elastic is not None and pool.elastic.is_elastic:
        return pool.elastic.max_total_slots
    return pool.instance_count


def _keep_warm(pool: Pool) -> timedelta | None:
    if pool.scaling is not None:
        return next(
            (one.min_idle_time for one in pool.scaling.policies if hasattr(one, "min_idle_time")), None
        )
    return pool.elastic.min_idle_time if pool.elastic is not None and pool.elastic.is_elastic else None


# --- asking Qarnot


def _date_or_none(when: datetime | None) -> datetime | None:
    """Qarnot writes the year 1 for "not yet"."""
    return None if when is None or when.year < 1971 else when
