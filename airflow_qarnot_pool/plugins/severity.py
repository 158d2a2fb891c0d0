"""Decide how urgent a pool is, and why. Pure functions.

A warning is ``{kind, text, since}``. The text has no duration, so that it changes only if the fact does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from airflow_qarnot_pool.api.models import Pool
from airflow_qarnot_pool.api.states import POOL_TRANSIENT
from airflow_qarnot_pool.costs.limits import CostLimit
from airflow_qarnot_pool.costs.model import format_euros
from airflow_qarnot_pool.ownership.quota import FINISHED_RUN_STATES
from airflow_qarnot_pool.plugins.history import ObservedHistory
from airflow_qarnot_pool.plugins.phases import ended_at, keep_warm_of, phase_of
from airflow_qarnot_pool.plugins.texts import MAX_WARNING, clean_line, plural, to_iso

#: The kinds of warnings, the most urgent first.
KINDS = ("failed", "nodes", "idle", "owner", "boot", "budget", "errors", "state", "tasks")
#: The rank of a pool without a warning.
FINE = 99
#: How long a pool may be idle without a warning, or its ``keep_warm`` if that is longer.
IDLE_AFTER = timedelta(minutes=5)
#: How long a pool of fixed size may boot without a warning.
SLOW_BOOT_AFTER = timedelta(minutes=15)
#: How long the teardown of a finished DAG run may take without a warning.
TEARDOWN_TIME = timedelta(minutes=2)
#: How long a lost node is reported, even if another has replaced it.
LOSS_SHOWN_FOR = timedelta(minutes=10)
#: How long the failure of a pool or of a Qarnot task is urgent.
FAILURE_SHOWN_FOR = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class Situation:
    """The facts about one pool that its warnings depend on. Euros and instants, None if unknown."""

    pool: Pool
    owner: Mapping[str, Any]
    observed: ObservedHistory = field(default_factory=ObservedHistory)
    idle_since: datetime | None = None
    run_ended: datetime | None = None
    failed_tasks: int = 0
    failed_at: datetime | None = None
    limit: CostLimit | None = None
    euros: float | None = None
    run_euros: float | None = None


def warnings_of(facts: Situation, now: datetime) -> list[dict[str, Any]]:
    """Return the warnings about a pool, the most urgent first: ``[{kind, text, since}]``."""
    return _to_json(_warnings(facts, now))


def task_warnings_of(failed: int, failed_at: datetime | None, now: datetime) -> list[dict[str, Any]]:
    """Return the warning about failed Qarnot tasks, if there is one."""
    return _to_json(_task_warnings(failed, failed_at, now))


def rank_of(warnings: list[dict[str, Any]]) -> int:
    """Return the place of a pool in the order of urgency, 0 for the most urgent."""
    return KINDS.index(warnings[0]["kind"]) if warnings else FINE


_Warning = tuple[str, str, datetime | None]


def _to_json(warnings: Iterable[_Warning]) -> list[dict[str, Any]]:
    found = sorted(warnings, key=lambda warning: KINDS.index(warning[0]))
    return [
        {"kind": kind, "text": clean_line(text, MAX_WARNING), "since": to_iso(since)}
        for kind, text, since in found
    ]


def _warnings(facts: Situation, now: datetime) -> Iterator[_Warning]:
    pool, phase = facts.pool, phase_of(facts.pool)
    if phase == "unknown":
        yield "state", f"This release does not know the state {pool.state!r}", pool.state_transition_time
    yield from _failure_warnings(pool, phase, now)
    yield from _task_warnings(facts.failed_tasks, facts.failed_at, now)
    if phase in ("booting", "open"):
        yield from _owner_warnings(facts, now)
        yield from _loss_warnings(facts.observed, now)
        yield from _budget_warnings(facts)
    if phase == "open":
        yield from _idle_warnings(facts, now)
    if phase == "booting":
        yield from _boot_warnings(pool, now)


def _task_warnings(failed: int, failed_at: datetime | None, now: datetime) -> Iterable[_Warning]:
    if failed and failed_at and now - failed_at < FAILURE_SHOWN_FOR:
        yield "tasks", f"{plural(failed, 'Qarnot task')} failed", failed_at


def _failure_warnings(pool: Pool, phase: str, now: datetime) -> Iterable[_Warning]:
    ended = ended_at(pool)
    if ended is not None and now - ended >= FAILURE_SHOWN_FOR:
        return
    if phase == "failed":
        yield "failed", f"The pool failed: {pool.error_text or 'Qarnot gives no reason'}", ended
    elif pool.errors:
        yield "errors", f"Qarnot reports: {pool.error_text}", None


def _owner_warnings(facts: Situation, now: datetime) -> Iterable[_Warning]:
    age = now - (facts.pool.creation_date or now)
    if facts.owner["kind"] == "run" and age > TEARDOWN_TIME:
        state = facts.owner["run_state"]
        if state in FINISHED_RUN_STATES:
            yield "owner", f"Its DAG run has ended ({state})", facts.run_ended
        elif state is None:
            yield "owner", "Airflow has no such DAG run any more", None


def _loss_warnings(observed: ObservedHistory, now: datetime) -> Iterable[_Warning]:
    if observed.lost and observed.lost_at and now - observed.lost_at < LOSS_SHOWN_FOR:
        verb = "was" if observed.lost == 1 else "were"
        text = f"{plural(observed.lost, 'slot')} {verb} lost; {observed.ready} of {observed.wanted} run"
        yield "nodes", text, observed.lost_at


def _budget_warnings(facts: Situation) -> Iterable[_Warning]:
    if facts.limit is None:
        return
    for name, maximum, spent, subject in (
        ("max_cost", facts.limit.max_cost, facts.euros, "It"),
        ("max_run_cost", facts.limit.max_run_cost, facts.run_euros, "Its DAG run"),
    ):
        if maximum is not None and spent is not None and spent >= maximum * facts.limit.warn_at:
            verb = "has reached" if spent >= maximum else "is near"
            yield "budget", f"{subject} {verb} its {name} of {format_euros(maximum)}", None


def _idle_warnings(facts: Situation, now: datetime) -> Iterable[_Warning]:
    patience = max(IDLE_AFTER, keep_warm_of(facts.pool) or IDLE_AFTER)
    if facts.idle_since and now - facts.idle_since > patience:
        yield "idle", f"No work, and {plural(facts.pool.ready_slots, 'slot')} billed", facts.idle_since


def _boot_warnings(pool: Pool, now: datetime) -> Iterable[_Warning]:
    age = now - (pool.creation_date or now)
    if keep_warm_of(pool) is None and age > SLOW_BOOT_AFTER and pool.state in POOL_TRANSIENT:
        yield "boot", "Still no node", pool.creation_date
