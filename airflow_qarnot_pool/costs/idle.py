"""Node-seconds that were paid and not used, and the setting that would have avoided most of them.

Qarnot reports how many node-seconds a pool was up and how long each Qarnot task executed, but not when each node was
up. So the idle *amount* is exact, and its causes are estimated from the demand. The demand is the number of instances
that needed a slot at each moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_qarnot_pool.costs.model import PoolCost, TaskUsage

#: Minimum share of the paid time, and minimum node-seconds, that a setting must save to be recommended.
MIN_SHARE = 0.05
MIN_NODE_SECONDS = 60.0
#: Maximum number of Airflow tasks that a line of the log names.
MAX_NAMES = 8


class IdleCause(StrEnum):
    """The reason why nodes were idle."""

    WARM_UP = "warm-up"
    HEAD = "before the first task"
    GAPS = "between tasks"
    TAIL = "after the last task"
    SIZE = "more slots than work"
    #: Fewer instances than slots at times, although all slots were needed at other times.
    UNEVEN = "slots without work"


@dataclass(frozen=True, kw_only=True)
class PoolPhase:
    """The lifetime of a pool. Times are in seconds, sizes in slots."""

    paid: float
    used: float
    size: int | None
    slots_per_node: int = 1
    keep_warm: timedelta | None = None
    #: Node-seconds in which nodes ran only the warm-up.
    warm_up: float = 0.0
    created: datetime | None = None
    ended: datetime | None = None
    work: tuple[TaskUsage, ...] = ()


@dataclass(frozen=True, kw_only=True)
class IdleTime:
    """Idle node-seconds, their causes, and the setting that would have avoided the largest part."""

    paid: float
    idle: float
    causes: dict[IdleCause, float]
    setting: str | None = None
    saves: float = 0.0

    @property
    def share(self) -> float:
        """Idle share of the paid node-seconds, 0 to 1."""
        return self.idle / self.paid if self.paid else 0.0

    @property
    def without_work(self) -> float:
        """Idle node-seconds that neither the warm-up nor slots beside running work explain."""
        beside_work = (IdleCause.WARM_UP, IdleCause.SIZE, IdleCause.UNEVEN)
        return self.idle - sum(self.causes.get(cause, 0.0) for cause in beside_work)

    def describe_wait_for(self, names: Sequence[str]) -> str | None:
        """Return a text if the pool was idle for long while it waited for the Airflow tasks *names*."""
        if not names or self.without_work < max(1.0, MIN_SHARE * self.paid):
            return None
        shown = ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")
        return (
            f"About {self.without_work:.0f} of {self.paid:.0f} node-seconds were idle without any Qarnot task, and "
            f"these Airflow tasks do not run on the pool but keep it open: {shown}. Link them before the task that "
            "opens it (task >> group), or after the work (group >> task)"
        )

    def to_json(self) -> dict[str, Any]:
        """Return ``{paid, idle, share, causes: {cause: node-seconds}, setting, saves}``."""
        return {
            "paid": round(self.paid, 1),
            "idle": round(self.idle, 1),
            "share": round(self.share, 4),
            "causes": {str(cause): round(seconds, 1) for cause, seconds in self.causes.items()},
            "setting": self.setting,
            "saves": round(self.saves, 1),
        }

    def __str__(self) -> str:
        text = f"{self.idle:.0f} of {self.paid:.0f} node-seconds paid were idle ({self.share:.0%})"
        if self.causes and self.idle >= 1:
            worst = sorted(self.causes.items(), key=lambda cause: -cause[1])[:2]
            text += ": " + ", ".join(f"about {seconds:.0f} {cause}" for cause, seconds in worst)
            if (rest := self.idle - sum(seconds for _, seconds in worst)) >= 1:
                text += f", about {rest:.0f} for other reasons, such as boots"
        return f"{text}. {self.setting} would have saved about {self.saves:.0f}" if self.setting else text


def idle_time_of(pool: PoolCost, now: datetime | None = None) -> IdleTime | None:
    """Return the idle time of *pool*; None if Qarnot does not report how long its nodes were up.

    :param now: time of the figures, if the pool has not ended.
    """
    paid, used = pool.cost.node_seconds, pool.cost.used_node_seconds
    if paid is None or used is None:
        return None
    warm_up = sum(task.seconds for task in pool.work if task.is_warm_up) / pool.slots_per_node
    return classify_idle_time(
        PoolPhase(
            paid=paid,
            used=used,
            size=pool.size,
            slots_per_node=pool.slots_per_node,
            keep_warm=pool.keep_warm,
            warm_up=warm_up,
            created=pool.created,
            ended=pool.ended or now,
            work=pool.useful,
        )
    )


def classify_idle_time(phase: PoolPhase) -> IdleTime:
    """Estimate the causes of the idle time, and choose the setting that would have avoided the largest one."""
    idle = max(0.0, phase.paid - phase.used)
    warm_up = min(phase.warm_up, idle)
    estimates = _estimates(phase)
    # Estimates overlap a little and do not include boots. Together they explain no more than the remaining idle time.
    total = sum(estimates.values())
    scale = min(1.0, (idle - warm_up) / total) if total else 0.0
    causes = {IdleCause.WARM_UP: warm_up} | {cause: seconds * scale for cause, seconds in estimates.items()}
    causes = {cause: seconds for cause, seconds in causes.items() if seconds > 0}
    for cause, seconds in sorted(causes.items(), key=lambda item: -item[1]):
        setting = _setting(cause, phase)
        if setting and seconds >= max(MIN_NODE_SECONDS, MIN_SHARE * phase.paid):
            return IdleTime(paid=phase.paid, idle=idle, causes=causes, setting=setting, saves=seconds)
    return IdleTime(paid=phase.paid, idle=idle, causes=causes)


def _estimates(phase: PoolPhase) -> dict[IdleCause, float]:
    """Return the estimated node-seconds by cause, without the warm-up, whose node-seconds are exact."""
    spans = [(task.created, task.ended) for task in phase.work if task.created and task.ended]
    if not spans:
        return _estimates_without_tasks(phase)
    nodes = (phase.size or 1) / phase.slots_per_node
    estimates: dict[IdleCause, float] = {}
    started, ended = min(start for start, _ in spans), max(end for _, end in spans)
    if phase.created:
        head = _idle_seconds(phase, started - phase.created) * nodes
        estimates[IdleCause.HEAD] = max(0.0, head - phase.warm_up)
    if phase.ended:
        estimates[IdleCause.TAIL] = _idle_seconds(phase, phase.ended - ended) * nodes
    return estimates | (_unused_slots(phase, phase.size) if phase.size else {})


def _estimates_without_tasks(phase: PoolPhase) -> dict[IdleCause, float]:
    if not (phase.size and phase.ended and phase.created):
        return {}
    nodes = phase.size / phase.slots_per_node
    return {IdleCause.HEAD: _idle_seconds(phase, phase.ended - phase.created) * nodes}


def _unused_slots(phase: PoolPhase, size: int) -> dict[IdleCause, float]:
    """Return the node-seconds of unused slots between the creation of the first task and the end of the last one."""
    estimates: dict[IdleCause, float] = {}
    demands = _demand(phase.work)
    for seconds, demand in demands:
        cause = IdleCause.UNEVEN if demand else IdleCause.GAPS
        lasted = seconds if demand else _idle_seconds(phase, timedelta(seconds=seconds))
        unused = (size - min(demand, size)) / phase.slots_per_node
        estimates[cause] = estimates.get(cause, 0.0) + unused * lasted
    peak = max((demand for _, demand in demands), default=0)
    if peak < size and IdleCause.UNEVEN in estimates:
        # All slots were never needed at once. The slots above the peak are caused by the size.
        lasted = sum(seconds for seconds, demand in demands if demand)
        above = (size - peak) / phase.slots_per_node * lasted
        estimates[IdleCause.SIZE] = above
        estimates[IdleCause.UNEVEN] -= above
    return estimates


def _idle_seconds(phase: PoolPhase, span: timedelta) -> float:
    """Return for how many seconds of *span* nodes without work stay up. A cooling pool shuts them down."""
    if phase.keep_warm is not None:
        span = min(span, phase.keep_warm)
    return max(0.0, span.total_seconds())


def _demand(tasks: Iterable[TaskUsage]) -> Sequence[tuple[float, int]]:
    """Return ``(seconds, instances that needed a slot)``, from the creation of the first task to the last end."""
    steps: dict[datetime, int] = {}
    for task in tasks:
        if task.created and task.ended:
            steps[task.created] = steps.get(task.created, 0) + task.instances
            steps[task.ended] = steps.get(task.ended, 0) - task.instances
    demand, demands = 0, []
    for time, next_time in pairwise(sorted(steps)):
        demand += steps[time]
        demands.append(((next_time - time).total_seconds(), demand))
    return demands


def _setting(cause: IdleCause, phase: PoolPhase) -> str | None:
    """Return the setting that would have avoided *cause*, as a DAG author writes it."""
    if cause is IdleCause.WARM_UP:
        return "warm_up=False (the first tasks boot the nodes)"
    if cause is IdleCause.HEAD:
        return "Opening the pool later (put what needs no pool before the group)"
    if cause is IdleCause.SIZE:
        peak = max(demand for _, demand in _demand(phase.work))
        per_node = phase.slots_per_node
        return f"instance_count={max(1, -(-peak // per_node) * per_node)}"
    if phase.keep_warm is None:
        return "keep_warm=timedelta(minutes=1) (nodes without work go by themselves)"
    if cause is IdleCause.TAIL:
        return "Closing the pool earlier (put what needs no pool after the group), or a shorter keep_warm"
    return "A shorter keep_warm" if phase.keep_warm > timedelta(minutes=1) else None
