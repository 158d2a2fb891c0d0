"""How many slots a pool should have, and when to look again. Pure functions of (settings, view, now).

Three kinds of pool come down to two rules: a fixed size (`instanceCount`, a `Fixed` policy, or no active
policy = 0) and a queue-driven size (the legacy `elasticProperty`, a `ManagedTasksQueue` policy).
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
"""A ManagedTasksQueue adds a share of its slots "about every 90 s" (qarnot-api.md 3.5)."""


# ---- policies and their periods ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Period:
    """Always, or on some days of the week from `start` to `end` (seconds after midnight UTC, end excluded).

    An end at or before the start lies on the next day; equal ones make a whole day.
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
        """The next moment after now at which this period begins or ends."""
        if self.days is None:
            return None
        begins = self._starts(now, range(-1, 9))
        edges = [edge for begin in begins for edge in (begin, begin + self._length()) if edge > now]
        return min(edges, default=None)

    def _starts(self, now: float, offsets: range) -> list[float]:
        """The moments this period begins, on the days at these offsets from today."""
        today = int(now // DAY)  # the epoch began on a Thursday
        return [
            (today + offset) * DAY + self.start
            for offset in offsets
            if (today + offset + 3) % 7 in (self.days or ())
        ]


@dataclass(frozen=True, slots=True)
class ScalingRule:
    """What decides the size now.

    `fixed` set: exactly that many slots. Otherwise: demand plus `min_idle`, within `min_total..max_total`;
    `step` = slots added at once at most, then again after `period` seconds; a node idle for `idle_seconds`
    is let go. `ticks`: letting go happens only on multiples of `period`, at most `step` slots each (legacy
    elastic pools), otherwise as soon as the idle time is over.
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
    """The policy as JSON, keys in Qarnot's order."""


def active(policies: Sequence[Policy], now: float) -> Policy | None:
    """The first policy in the list that has a matching period."""
    return next((p for p in policies if any(period.matches(now) for period in p.periods)), None)


def next_edge(policies: Sequence[Policy], now: float) -> float | None:
    """When the active policy may change next."""
    edges = [period.next_edge(now) for policy in policies for period in policy.periods]
    return min((edge for edge in edges if edge is not None), default=None)


def share(total: int, factor: float) -> int:
    """Slots per step: a share of the maximum, at least one."""
    return max(1, math.ceil(round(total * factor, 9)))


def elastic_rule(elastic: dict[str, Any]) -> ScalingRule:
    """The legacy elasticProperty block as a rule."""
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
    """What the decision sees of a pool.

    :param slots: of all its nodes, booting ones included. :param demand: instances running or queued.
    :param idle: nodes that are up with nothing on them. :param grow_after: no growth before this moment.
    :param origin: where its resize ticks count from. :param last_tick: the last tick that let go of nodes.
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
    """:param target: slots wanted now. :param grow: slots to boot now. :param release: node numbers to let go.
    :param grow_after: to be kept for the next View. :param look_again: moment of the next decision, if any."""

    target: int
    grow: int = 0
    release: tuple[int, ...] = ()
    grow_after: float = 0.0
    look_again: float | None = None


def target(rule: ScalingRule, demand: int) -> int:
    """Slots the rule wants for so many running and queued instances."""
    if rule.fixed is not None:
        return rule.fixed
    return max(rule.min_total, min(rule.max_total, demand + rule.min_idle))


def plan(rule: ScalingRule, view: DemandView) -> ScalingPlan:
    """What to do now. A ramp is over as soon as nothing is missing: demand after that starts a new one at once."""
    wanted = target(rule, view.demand)
    missing = wanted - view.slots
    if missing > 0:
        return _grow(rule, view, wanted, missing)
    return _shrink(rule, view, wanted, -missing) if missing else ScalingPlan(wanted)


def _grow(rule: ScalingRule, view: DemandView, wanted: int, missing: int) -> ScalingPlan:
    if rule.fixed is not None:
        return ScalingPlan(wanted, grow=missing)
    if view.now < view.grow_after:
        return ScalingPlan(wanted, grow_after=view.grow_after, look_again=view.grow_after)
    # The floor is there from the start: only growth beyond it is ramped.
    step = min(missing, max(rule.step, rule.min_total - view.slots))
    if step == missing:
        return ScalingPlan(wanted, grow=step)
    again = view.now + rule.period
    return ScalingPlan(wanted, grow=step, grow_after=again, look_again=again)


def _shrink(rule: ScalingRule, view: DemandView, wanted: int, surplus: int) -> ScalingPlan:
    release: list[int] = []
    again: float | None = None
    left = min(surplus, rule.step) if rule.ticks else surplus
    for node in sorted(view.idle, key=lambda n: (n.since, -n.number)):
        due = node.since + (0.0 if rule.fixed is not None else rule.idle_seconds)
        if rule.ticks:
            due = _tick(rule, view, due)
        if due > view.now:
            again = due if again is None else min(again, due)
        elif node.slots <= surplus and (node.slots <= left or not release):
            release.append(node.number)
            surplus -= node.slots
            left -= node.slots
        elif rule.ticks and node.slots <= surplus:
            later = _tick(rule, view, view.now + 1e-6)
            again = later if again is None else min(again, later)
    return ScalingPlan(wanted, release=tuple(release), look_again=again)


def _tick(rule: ScalingRule, view: DemandView, due: float) -> float:
    """The first resize tick at or after `due` that has not let go of nodes already."""
    count = math.ceil(round((due - view.origin) / rule.period, 9))
    when = view.origin + count * rule.period
    while when <= view.last_tick:
        when += rule.period
    return when
