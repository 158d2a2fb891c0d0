"""Decide how many slots a pool should have, and when to decide again. Pure functions.

Pools follow one of two rules: a fixed size (`instanceCount`, a `Fixed` policy, or 0 without an active policy), or a
queue-driven size (the legacy `elasticProperty`, a `ManagedTasksQueue` policy).
Qarnot API: qarnot-api.md 3.4 and 3.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

DAY = 86_400
DAY_NAMES = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
POLICY_STEP_SECONDS = 90.0
"""Seconds between two steps of a ManagedTasksQueue ("about every 90 s", qarnot-api.md 3.5)."""


# ---- policies and their periods ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Period:
    """A period: always, or from `start` to `end` on some days (seconds after midnight UTC, end excluded).

    An end at or before the start is on the next day. An equal start and end make a whole day.
    """

    name: str | None
    days: tuple[int, ...] | None = None
    start: float = 0.0
    end: float = 0.0

    @property
    def always(self) -> bool:
        return self.days is None

    def _length(self) -> float:
        return self.end - self.start if self.end > self.start else self.end + DAY - self.start

    def matches(self, now: float) -> bool:
        if self.days is None:
            return True
        return any(begin <= now < begin + self._length() for begin in self._starts(now, range(-1, 1)))

    def next_edge(self, now: float) -> float | None:
        """Return the next time after now at which this period starts or ends."""
        if self.days is None:
            return None
        begins = self._starts(now, range(-1, 9))
        edges = [edge for begin in begins for edge in (begin, begin + self._length()) if edge > now]
        return min(edges, default=None)

    def _starts(self, now: float, offsets: range) -> list[float]:
        """Return the start times of this period on the days at these offsets from today."""
        today = int(now // DAY)  # the epoch started on a Thursday
        return [
            (today + offset) * DAY + self.start
            for offset in offsets
            if (today + offset + 3) % 7 in (self.days or ())
        ]


@dataclass(frozen=True, slots=True)
class ScalingRule:
    """Rule for the size of a pool.

    :param fixed: the number of slots. If it is None, the size is the demand plus `min_idle`, within the limits.
    :param idle_seconds: idle time after which a node is released.
    :param step: maximum number of slots added at once.
    :param period: seconds between two steps.
    :param ticks: release at most `step` slots, and only at multiples of `period`, as legacy elastic pools do.
    """

    fixed: int | None = None
    min_total: int = 0
    max_total: int = 0
    min_idle: int = 0
    idle_seconds: float = 0.0
    step: int = 1
    period: float = POLICY_STEP_SECONDS
    ticks: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    name: str | None
    rule: ScalingRule
    periods: tuple[Period, ...]
    source: dict[str, Any] = field(hash=False)
    """The policy as JSON, with the keys in Qarnot's order."""


def active(policies: Sequence[Policy], now: float) -> Policy | None:
    """Return the first policy with a matching period."""
    return next((p for p in policies if any(period.matches(now) for period in p.periods)), None)


def next_edge(policies: Sequence[Policy], now: float) -> float | None:
    """Return the next time at which the active policy may change."""
    edges = [period.next_edge(now) for policy in policies for period in policy.periods]
    return min((edge for edge in edges if edge is not None), default=None)


def share(total: int, factor: float) -> int:
    """Return the slots per step: a share of the maximum, and at least one."""
    return max(1, math.ceil(round(total * factor, 9)))


def elastic_rule(elastic: dict[str, Any]) -> ScalingRule:
    """Return the rule of a legacy elasticProperty block."""
    return ScalingRule(
        min_total=max(elastic["minTotalSlots"], elastic["minIdleSlots"]),
        max_total=elastic["maxTotalSlots"],
        min_idle=elastic["minIdleSlots"],
        idle_seconds=elastic["minIdleTimeSeconds"],
        step=share(elastic["maxTotalSlots"], elastic["rampResizeFactor"]),
        period=max(1.0, elastic["resizePeriod"]),
        ticks=True,
    )


# ---- one decision --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class IdleNode:
    number: int
    slots: int
    since: float


@dataclass(frozen=True, slots=True)
class DemandView:
    """The facts about a pool for one decision.

    :param slots: slots of all its nodes, also of booting ones.
    :param demand: number of running and queued instances.
    :param idle: nodes that are up without an instance.
    :param grow_after: earliest time of the next growth.
    :param origin: start of its resize ticks.
    :param last_tick: last tick that released nodes.
    """

    now: float
    slots: int
    demand: int
    idle: Sequence[IdleNode] = ()
    grow_after: float = 0.0
    origin: float = 0.0
    last_tick: float = float("-inf")


@dataclass(frozen=True, slots=True)
class ScalingPlan:
    """A decision about the size.

    :param target: slots that the pool should have.
    :param grow: slots to boot now.
    :param release: numbers of the nodes to release.
    :param grow_after: value for the next DemandView.
    :param next_decision: time of the next decision, if one is needed.
    """

    target: int
    grow: int = 0
    release: tuple[int, ...] = ()
    grow_after: float = 0.0
    next_decision: float | None = None


def target(rule: ScalingRule, demand: int) -> int:
    """Return the slots of the rule for a number of running and queued instances."""
    if rule.fixed is not None:
        return rule.fixed
    return max(rule.min_total, min(rule.max_total, demand + rule.min_idle))


def plan(rule: ScalingRule, view: DemandView) -> ScalingPlan:
    """Decide now. A ramp ends when no slot is missing, so later demand starts a new ramp at once."""
    wanted = target(rule, view.demand)
    missing = wanted - view.slots
    if missing > 0:
        return _grow(rule, view, wanted, missing)
    return _shrink(rule, view, wanted, -missing) if missing else ScalingPlan(wanted)


def _grow(rule: ScalingRule, view: DemandView, wanted: int, missing: int) -> ScalingPlan:
    if rule.fixed is not None:
        return ScalingPlan(wanted, grow=missing)
    if view.now < view.grow_after:
        return ScalingPlan(wanted, grow_after=view.grow_after, next_decision=view.grow_after)
    # Only growth beyond the minimum is ramped.
    step = min(missing, max(rule.step, rule.min_total - view.slots))
    if step == missing:
        return ScalingPlan(wanted, grow=step)
    again = view.now + rule.period
    return ScalingPlan(wanted, grow=step, grow_after=again, next_decision=again)


def _shrink(rule: ScalingRule, view: DemandView, wanted: int, surplus: int) -> ScalingPlan:
    release: list[int] = []
    decisions: list[float] = []
    left = min(surplus, rule.step) if rule.ticks else surplus
    for node in sorted(view.idle, key=lambda n: (n.since, -n.number)):
        due = _release_time(rule, view, node)
        if due > view.now:
            decisions.append(due)
        elif node.slots <= surplus and (node.slots <= left or not release):
            release.append(node.number)
            surplus -= node.slots
            left -= node.slots
        elif rule.ticks and node.slots <= surplus:
            decisions.append(_tick(rule, view, view.now + 1e-6))
    return ScalingPlan(wanted, release=tuple(release), next_decision=min(decisions, default=None))


def _release_time(rule: ScalingRule, view: DemandView, node: IdleNode) -> float:
    due = node.since + (0.0 if rule.fixed is not None else rule.idle_seconds)
    return _tick(rule, view, due) if rule.ticks else due


def _tick(rule: ScalingRule, view: DemandView, due: float) -> float:
    """Return the first resize tick at or after `due` that has not released nodes yet."""
    count = math.ceil(round((due - view.origin) / rule.period, 9))
    when = view.origin + count * rule.period
    while when <= view.last_tick:
        when += rule.period
    return when
