"""What earlier polls have shown of a pool, because Qarnot reports only the present. Pure functions.

Series are steps: a value holds up to the next point. Their times are epoch seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from airflow_qarnot_pool.api.models import Pool
from airflow_qarnot_pool.api.states import POOL_TRANSIENT, PoolState
from airflow_qarnot_pool.plugins.phases import is_open, keep_warm_of, phase_of, target_slots
from airflow_qarnot_pool.plugins.texts import clean_line, plural, to_iso

#: A longer time between two polls is a gap, in which nothing was observed.
MAX_PAUSE = timedelta(minutes=2)
MAX_STATES = 50
MAX_EVENTS = 100
MAX_GAPS = 50
#: Maximum number of points of a series.
MAX_POINTS = 500

P = TypeVar("P", bound=tuple[float, *tuple[Any, ...]])
Gap = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class ObservedHistory:
    """Facts about a pool from earlier polls, which the API does not return afterwards."""

    states: tuple[tuple[str, datetime], ...] = ()
    ready: int = 0
    wanted: int = 0
    lost: int = 0
    lost_at: datetime | None = None
    #: ``(time, wanted, ready)`` whenever they have changed.
    slots: tuple[tuple[float, int, int], ...] = ()
    #: ``(time, euros)`` whenever the bill was read.
    costs: tuple[tuple[float, float], ...] = ()
    #: Time of the last reading of the bill that had the same result as the one before.
    same_cost_at: float | None = None
    gaps: tuple[Gap, ...] = ()
    polled: datetime | None = None
    #: ``(time, kind, text)``. The kind is ``up``, ``down`` or ``lost``.
    events: tuple[tuple[datetime, str, str], ...] = ()


def updated_history(observed: ObservedHistory | None, pool: Pool, now: datetime) -> ObservedHistory:
    """Return *observed* with the facts of one more poll, *pool*."""
    previous = observed or ObservedHistory()
    lost = max(0, _lost(observed, pool))
    ready, wanted = pool.ready_slots if is_open(pool) else 0, target_slots(pool)
    gaps = previous.gaps
    if previous.polled and now - previous.polled > MAX_PAUSE:
        gaps = (*gaps, (previous.polled.timestamp(), now.timestamp()))[-MAX_GAPS:]
    slots = previous.slots
    if not slots or (wanted, ready) != slots[-1][1:]:
        slots = thinned((*slots, (now.timestamp(), wanted, ready)), limit=MAX_POINTS)
    return replace(
        previous,
        states=_states(previous.states, pool, now),
        ready=ready,
        wanted=wanted,
        lost=previous.lost + lost,
        lost_at=now if lost else previous.lost_at,
        slots=slots,
        gaps=gaps,
        polled=now,
        events=(*previous.events, *_events(observed, ready, wanted, lost, now))[-MAX_EVENTS:],
    )


def with_cost(observed: ObservedHistory, euros: float | None, now: datetime) -> ObservedHistory:
    """Return *observed* with one more reading of the bill.

    The end of a time without costs becomes a point when the next one begins, so that nothing changes in it.
    """
    if euros is None:
        return observed
    at, costs = now.timestamp(), observed.costs
    if costs and costs[-1][1] == euros:
        return replace(observed, same_cost_at=at)
    if costs and observed.same_cost_at is not None:
        costs = (*costs, (observed.same_cost_at, costs[-1][1]))
    return replace(observed, costs=thinned((*costs, (at, euros)), limit=MAX_POINTS), same_cost_at=None)


def thinned(points: Sequence[P], limit: int) -> tuple[P, ...]:
    """Return at most *limit* points: the last one of each interval.

    The intervals are powers of two seconds that start at the epoch, so that a series that grows keeps its points.
    """
    width = 1.0
    kept = tuple(points)
    while len(kept) > limit:
        last = {point[0] // width: point for point in kept[1:]}
        kept = (kept[0], *last.values())
        width *= 2
    return kept


def _states(
    states: tuple[tuple[str, datetime], ...], pool: Pool, now: datetime
) -> tuple[tuple[str, datetime], ...]:
    since = pool.state_transition_time or now
    if states and (pool.state, since) == states[-1]:
        return states
    before = pool.previous_state, pool.previous_state_transition_time
    if states and before[0] and before[1] and before[1] > states[-1][1]:
        states = (*states, (before[0], before[1]))  # a state between two polls
    return (*states, (pool.state, since))[-MAX_STATES:]


def _events(
    observed: ObservedHistory | None, ready: int, wanted: int, lost: int, now: datetime
) -> list[tuple[datetime, str, str]]:
    """Return what has happened to the slots since the previous poll."""
    if observed is None:
        return []
    change, events = ready - observed.ready, []
    # A pool that follows its load may want fewer than there are.
    rest = f"{ready} of {wanted} run" if wanted >= ready else f"{ready} run"
    if lost:
        events.append((now, "lost", f"{plural(lost, 'slot')} lost; {rest}"))
    elif change < 0:
        events.append((now, "down", f"{plural(-change, 'slot')} released; {rest}"))
    if change > 0:
        events.append((now, "up", f"{plural(change, 'slot')} up; {rest}"))
    return events


def _lost(observed: ObservedHistory | None, pool: Pool) -> int:
    """Return how many slots of a pool of fixed size were lost since the last poll.

    A pool that follows its load gives slots back, which is no loss.
    """
    if phase_of(pool) != "open" or keep_warm_of(pool) is not None:
        return 0
    ready, wanted = pool.ready_slots, target_slots(pool)
    full, partly = PoolState.FULLY_EXECUTING, PoolState.PARTIALLY_EXECUTING
    if observed is None:
        return wanted - ready if (pool.previous_state, pool.state) == (full, partly) else 0
    if wanted < observed.wanted:
        return 0
    if ready < observed.ready:
        return max(0, min(observed.ready, wanted) - ready)  # others may leave after an earlier shrink
    # The number is the same, but another node may have replaced a lost one since the last poll.
    state, since = observed.states[-1] if observed.states else (None, None)
    dipped = (
        (state, pool.state, pool.previous_state) == (full, full, partly)
        and since is not None
        and pool.state_transition_time is not None
        and pool.state_transition_time > since
    )
    return 1 if dipped else 0


def timeline(pool: Pool, observed: ObservedHistory) -> list[dict[str, Any]]:
    """Return the states of a pool with their times, oldest first, from the API and from earlier polls."""
    return [{"state": clean_line(state), "at": to_iso(at)} for state, at in _known_states(pool, observed)]


def _known_states(pool: Pool, observed: ObservedHistory) -> list[tuple[str, datetime]]:
    known = [
        (str(PoolState.SUBMITTED), pool.creation_date),
        *observed.states,
        (pool.previous_state, pool.previous_state_transition_time),
        (pool.state, pool.state_transition_time),
    ]
    order = {str(state): place for place, state in enumerate(PoolState)}
    # Times have whole seconds. Within a second the usual order of states decides.
    ordered = {(at, order.get(state, len(order)), state) for state, at in known if state and at is not None}
    steps: list[tuple[str, datetime]] = []
    for at, _, state in sorted(ordered):
        if not steps or steps[-1][0] != state:
            steps.append((state, at))
    return steps


#: The part of a boot that ends with a state.
_BOOT_PHASES: dict[str, str] = {
    PoolState.PARTIALLY_DISPATCHED: "placed",
    PoolState.FULLY_DISPATCHED: "all placed",
    PoolState.PARTIALLY_EXECUTING: "first node",
    PoolState.FULLY_EXECUTING: "all nodes",
}


def boot_phases(pool: Pool, observed: ObservedHistory) -> list[dict[str, Any]]:
    """Return the steps of the boot: ``{phase, at, seconds}``, with the seconds since the previous step.

    Empty if nobody watched the boot: Qarnot reports only the last two states, and nodes come and go later, too.
    """
    seen = {state for state, _ in observed.states} | {pool.previous_state, pool.state}
    if not seen & POOL_TRANSIENT or pool.creation_date is None:
        return []
    steps, reached, last = [], set(), pool.creation_date
    for state, at in _known_states(pool, observed):
        phase = _BOOT_PHASES.get(state)
        if phase is None or phase in reached or at < last:
            continue
        reached.add(phase)
        steps.append({"phase": phase, "at": to_iso(at), "seconds": (at - last).total_seconds()})
        last = at
        if state == PoolState.FULLY_EXECUTING:
            break
    return [{"phase": "accepted", "at": to_iso(pool.creation_date), "seconds": 0.0}, *steps]


def events_of(pool: Pool, observed: ObservedHistory) -> list[dict[str, Any]]:
    """Return changes of the state and of the slots, newest first: ``{at, kind, text}``."""
    states = [(at, "state", clean_line(state)) for state, at in _known_states(pool, observed)]
    # Reversed after the sort, because events of one second are in the order in which they happened.
    events = sorted((*states, *observed.events), key=lambda event: event[0])[::-1]
    return [{"at": to_iso(at), "kind": kind, "text": text} for at, kind, text in events[:MAX_EVENTS]]
