"""Which pools the reaper closes: pure decisions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from airflow_qarnot_pool.api import states
from airflow_qarnot_pool.api.models import Task
from airflow_qarnot_pool.maintenance.reaper import (
    PoolFacts,
    ReapAction,
    ReapLimits,
    _standalone_task_facts,
    decide_reap,
)
from airflow_qarnot_pool.ownership.decisions import Usability

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
LIMITS = ReapLimits(
    grace_period=timedelta(minutes=15),
    idle_timeout=timedelta(hours=1),
    delete_finished_after=timedelta(days=8),
)


def ago(**span: float) -> datetime:
    return NOW - timedelta(**span)


def facts(**changes: object) -> PoolFacts:
    values = {
        "usability": Usability.LIVE,
        "created": ago(hours=3),
        "ended": None,
        "shared": False,
        "run": "etl run-1",
        "run_state": "running",
        "unfinished_instances": 0,
        "idle_since": ago(minutes=30),
    }
    return PoolFacts(**{**values, **changes})  # type: ignore[arg-type]


CASES = {
    "its run works": (facts(), ReapAction.KEEP),
    "its run works, and is busy": (facts(unfinished_instances=3, idle_since=ago(hours=3)), ReapAction.KEEP),
    "its run is over": (facts(run_state="failed"), ReapAction.CLOSE),
    "its run is over, but another one works on it": (
        facts(run_state="success", unfinished_instances=1, used_by="DAG run run-2 of report"),
        ReapAction.KEEP,
    ),
    "another run works on it, but it has reached its limit": (
        facts(
            run_state="success",
            unfinished_instances=1,
            used_by="DAG run run-2 of report",
            over_limit="too much",
        ),
        ReapAction.CLOSE,
    ),
    "its run was a success and left it": (facts(run_state="success"), ReapAction.CLOSE),
    "its run is over just now: the teardown may be at work": (
        facts(run_state="failed", idle_since=ago(minutes=5)),
        ReapAction.KEEP,
    ),
    "its run is over, and what still runs is nobody's": (
        facts(run_state="failed", unfinished_instances=2, idle_since=ago(minutes=5)),
        ReapAction.CLOSE,
    ),
    "there is no such run": (facts(run_state=None), ReapAction.CLOSE),
    "there is no such run yet": (
        facts(run_state=None, created=ago(minutes=5), idle_since=ago(minutes=5)),
        ReapAction.KEEP,
    ),
    "idle too long, whatever its run does": (facts(idle_since=ago(hours=2)), ReapAction.CLOSE),
    "shared: no run of its own": (facts(shared=True, run_state=None), ReapAction.KEEP),
    "shared and idle": (facts(shared=True, run_state=None, idle_since=ago(hours=2)), ReapAction.CLOSE),
    "shared and busy, and its runs are over": (
        facts(shared=True, run_state=None, idle_since=ago(minutes=30), unfinished_instances=1),
        ReapAction.CLOSE,
    ),
    "shared and busy, and its runs are over just now": (
        facts(shared=True, run_state=None, idle_since=ago(minutes=5), unfinished_instances=1),
        ReapAction.KEEP,
    ),
    "shared and busy, and a run that lives holds it": (
        facts(
            shared=True,
            run_state=None,
            idle_since=ago(hours=2),
            unfinished_instances=1,
            used_by="DAG run run-2 of etl",
        ),
        ReapAction.KEEP,
    ),
    "shared and busy for another program": (
        facts(
            shared=True,
            run_state=None,
            idle_since=ago(hours=2),
            unfinished_instances=1,
            used_by="1 Qarnot tasks that no DAG run of this namespace made",
        ),
        ReapAction.KEEP,
    ),
    "to be closed when idle": (facts(closes_when_idle=True, idle_since=ago(minutes=6)), ReapAction.CLOSE),
    "to be closed when idle, and its run is between two tasks": (
        facts(closes_when_idle=True, idle_since=ago(minutes=4)),
        ReapAction.KEEP,
    ),
    "to be closed when idle, and busy": (
        facts(closes_when_idle=True, unfinished_instances=1),
        ReapAction.KEEP,
    ),
    "to be closed when idle, and a run has it open": (
        facts(closes_when_idle=True, run_state="success", used_by="DAG run run-2 of report"),
        ReapAction.CLOSE,
    ),
    "closing already": (facts(usability=Usability.ENDING, run_state="failed"), ReapAction.KEEP),
    "closed": (facts(usability=Usability.DEAD, ended=ago(days=2)), ReapAction.KEEP),
    "closed long ago": (facts(usability=Usability.DEAD, ended=ago(days=9)), ReapAction.DELETE),
    "queued runs count as alive": (facts(run_state="queued"), ReapAction.KEEP),
}


#: A Qarnot task with nodes of its own: always busy.
ALONE = {
    "its run works": (facts(unfinished_instances=1, idle_since=ago(hours=3)), ReapAction.KEEP),
    "its run is over": (facts(unfinished_instances=1, run_state="success"), ReapAction.CLOSE),
    "its run is over, and it is young": (
        facts(unfinished_instances=1, run_state="failed", created=ago(minutes=5)),
        ReapAction.KEEP,
    ),
    "there is no such run": (facts(unfinished_instances=1, run_state=None), ReapAction.CLOSE),
    "aborted already": (
        facts(unfinished_instances=1, usability=Usability.ENDING, run_state="failed"),
        ReapAction.KEEP,
    ),
    "over": (facts(unfinished_instances=1, usability=Usability.DEAD, run_state=None), ReapAction.KEEP),
}


@pytest.mark.parametrize(("known", "action"), ALONE.values(), ids=ALONE.keys())
def test_decide_reap_a_qarnot_task_without_a_pool(known: PoolFacts, action: ReapAction) -> None:
    assert decide_reap(known, LIMITS, NOW).action is action


def test_no_qarnot_task_is_aborted_that_is_over_or_on_its_way_out() -> None:
    def action(state: states.TaskState) -> ReapAction:
        task = Task(uuid="one", state=state, creation_date=ago(hours=3))
        return decide_reap(_standalone_task_facts(task, lambda _: "failed"), LIMITS, NOW).action

    kept = {state for state in states.TaskState if action(state) is ReapAction.KEEP}
    assert kept == {"PendingCancel", "PendingDelete", "Success", "Failure", "Cancelled"}


@pytest.mark.parametrize(("known", "action"), CASES.values(), ids=CASES.keys())
def test_decide_reap(known: PoolFacts, action: ReapAction) -> None:
    assert decide_reap(known, LIMITS, NOW).action is action
