"""Node-seconds that were paid and not used, and the setting that would have avoided most of them.

Qarnot says how many node-seconds a pool was up and how long each Qarnot task executed, but not when which node was
up. So the *amount* that was idle is exact, and what it is put down to is an estimate from the demand: the number
of instances that wanted a slot at each moment.
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

#: A setting is named where it would have saved at least this share of what was paid, and this many node-seconds.
MIN_SHARE = 0.05
MIN_NODE_SECONDS = 60.0
#: Maximum number of Airflow tasks that a line of the log names.
MAX_NAMES = 8


class IdleCause(StrEnum):
    """What nodes were idle for."""

    WARM_UP = "warm-up"
    HEAD = "before the first task"
    GAPS = "between tasks"
    TAIL = "after the last task"
    SIZE = "more slots than work"
    #: Fewer instances than slots at times, though all slots were wanted at others.
    UNEVEN = "slots without work"


@dataclass(frozen=True, kw_only=True)
class PoolPhase:
    """What is known of a pool's life. Seconds are real ones, sizes are slots."""

    paid: float
    used: float
    size: int | None
    slots_per_node: int = 1
    keep_warm: timedelta | None = None
    #: Node-seconds that nodes stood by, busy with nothing but the warm-up.
    warm_up: float = 0.0
    created: datetime | None = None
    ended: datetime | None = None
    work: tuple[TaskUsage, ...] = ()


@dataclass(frozen=True, kw_only=True)
class IdleTime:
    """What was idle, why, and the setting that would have avoided the largest part. All in node-seconds."""

    paid: float
    idle: float
    causes: dict[IdleCause, float]
    setting: str | None = None
    saves: float = 0.0

    @property
    def share(self) -> float:
        """The part of what was paid that was idle, 0 to 1."""
        return self.idle / self.paid if self.paid else 0.0

    @property
    def without_work(self) -> float:
        """The part that is put down neither to the warm-up nor to slots beside work."""
        beside_work = (IdleCause.WARM_UP, IdleCause.SIZE, IdleCause.UNEVEN)
        return self.idle - sum(self.causes.get(one, 0.0) for one in beside_work)

    def describe_wait_for(self, names: Sequence[str]) -> str | None:
        """Say that the pool stood idle while it waited for the Airflow tasks *names*, if that is worth a line."""
        if not names or self.without_work < max(1.0, MIN_SHARE * self.paid):
            return None
        shown = ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")
        return (
            f"About {self.without_work:.0f} of {self.paid:.0f} node-seconds were idle without any Qarnot task, and "
            f"these Airflow tasks do not run on the pool but keep it open: {shown}. Link them before the task that "
            "opens it (task >> group), or after the work (group >> task)"
        )

    def to_json(self) -> dict[str, Any]:
        """``{paid, idle, share, causes: {cause: node-seconds}, setting, saves}``."""
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
            worst = sorted(self.causes.items(), key=lambda one: -one[1])[:2]
            text += ": " + ", ".join(f"about {seconds:.0f} {cause}" for cause, seconds in worst)
        return f"{text}. {self.setting} would have saved about {self.saves:.0f}" if self.setting else text


def idle_time_of(pool: PoolCost, now: datetime | None = None) -> IdleTime | None:
    """What was idle of *pool*; None where Qarnot does not say how long its nodes were up.

    :param now: the moment up to which the figures are, where the pool has not ended.
    """
    paid, used = pool.cost.node_seconds, pool.cost.used_node_seconds
    if paid is None or used is None:
        return None
    warm_up = sum(one.seconds for one in pool.work if one.is_warm_up) / pool.slots_per_node
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


def classify_idle_time(stage: PoolPhase) -> IdleTime:
    """Put what was idle down to its causes, and name the setting that would have avoided the largest."""
    idle = max(0.0, stage.paid - stage.used)
    known = min(stage.warm_up, idle)
    estimates = _estimates(stage)
    # Estimates overlap a little and know nothing of boots: together they explain what else was idle, no more.
    whole = sum(estimates.values())
    scale = min(1.0, (idle - known) / whole) if whole else 0.0
    causes = {IdleCause.WARM_UP: known} | {cause: seconds * scale for cause, seconds in estimates.items()}
    causes = {cause: seconds for cause, seconds in causes.items() if seconds > 0}
    found = IdleTime(paid=stage.paid, idle=idle, causes=causes)
    for cause, seconds in sorted(causes.items(), key=lambda one: -one[1]):
        setting = _setting(cause, stage)
        if setting and seconds >= max(MIN_NODE_SECONDS, MIN_SHARE * stage.paid):
            return IdleTime(paid=stage.paid, idle=idle, causes=causes, setting=setting, saves=seconds)
    return found


def _estimates(stage: PoolPhase) -> dict[IdleCause, float]:
    """Node-seconds by cause, as far as the moments of the work tell; the warm-up is known and not among them."""
    work = [one for one in stage.work if one.created and one.ended]
    found: dict[IdleCause, float] = {}
    nodes = (stage.size or 1) / stage.slots_per_node
    if not work:
        if stage.size and stage.ended and stage.created:
            found[IdleCause.HEAD] = _lasting(stage, stage.ended - stage.created) * nodes
        return found
    begun = min(one.created for one in work if one.created)
    done = max(one.ended for one in work if one.ended)
    if stage.created:
        found[IdleCause.HEAD] = max(0.0, _lasting(stage, begun - stage.created) * nodes - stage.warm_up)
    if stage.ended:
        found[IdleCause.TAIL] = _lasting(stage, stage.ended - done) * nodes
    if not stage.size:
        return found
    peak = 0
    for seconds, demand in _demand(work):
        peak = max(peak, demand)
        missing = (stage.size - min(demand, stage.size)) / stage.slots_per_node
        cause = IdleCause.UNEVEN if demand else IdleCause.GAPS
        lasted = _lasting(stage, timedelta(seconds=seconds)) if not demand else seconds
        found[cause] = found.get(cause, 0.0) + missing * lasted
    if peak < stage.size and IdleCause.UNEVEN in found:
        # Never were all slots wanted: what is above the peak is size, the rest is unevenness.
        lasted = sum(seconds for seconds, demand in _demand(work) if demand)
        above = (stage.size - peak) / stage.slots_per_node * lasted
        found[IdleCause.SIZE], found[IdleCause.UNEVEN] = above, found[IdleCause.UNEVEN] - above
    return found


def _lasting(stage: PoolPhase, span: timedelta) -> float:
    """Seconds that nodes without work stay on in *span*: those of a pool that cools down go after a while."""
    if stage.keep_warm is not None:
        span = min(span, stage.keep_warm)
    return max(0.0, span.total_seconds())


def _demand(work: Iterable[TaskUsage]) -> Sequence[tuple[float, int]]:
    """``(seconds, instances that wanted a slot)``, from the first task's creation to the last one's end."""
    steps: dict[datetime, int] = {}
    for one in work:
        if one.created and one.ended:
            steps[one.created] = steps.get(one.created, 0) + one.instances
            steps[one.ended] = steps.get(one.ended, 0) - one.instances
    demand, found = 0, []
    for now, then in pairwise(sorted(steps)):
        demand += steps[now]
        found.append(((then - now).total_seconds(), demand))
    return found


def _setting(cause: IdleCause, stage: PoolPhase) -> str | None:
    """The setting that would have avoided *cause*, as a DAG author writes it."""
    if cause is IdleCause.WARM_UP:
        return "warm_up=False (the first tasks boot the nodes)"
    if cause is IdleCause.HEAD:
        return "Opening the pool later (put what needs no pool before the group)"
    if cause is IdleCause.SIZE:
        peak = max(demand for _, demand in _demand(stage.work))
        per_node = stage.slots_per_node
        return f"instance_count={max(1, -(-peak // per_node) * per_node)}"
    if stage.keep_warm is None:
        return "keep_warm=timedelta(minutes=1) (nodes without work go by themselves)"
    if cause is IdleCause.TAIL:
        return "Closing the pool earlier (put what needs no pool after the group), or a shorter keep_warm"
    return "A shorter keep_warm" if stage.keep_warm > timedelta(minutes=1) else None
