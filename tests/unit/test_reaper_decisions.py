"""Which pools the reaper closes: pure decisions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from airflow_qarnot_pool.api import states
from airflow_qarnot_pool.api.models import Task
from airflow_qarnot_pool.identity import Fate
from airflow_qarnot_pool.reaper import Action, Facts, Limits, _facts_alone, judge

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
LIMITS = Limits(grace=timedelta(minutes=15), idle=timedelta(hours=1), finished=timedelta(days=8))


def ago(**span: float) -> datetime:
    return NOW - timedelta(**span)


def facts(**changes: object) -> Facts:
    values = {
        "fate": Fate.LIVE,
        "created": ago(hours=3),
        "ended": None,
        "shared": False,
        "run": "etl run-1",
        "run_state": "running",
        "unfinished_instances": 0,
        "idle_since": ago(minutes=30),
    }
    return Facts(**{**values, **changes})  # type: ignore[arg-type]


CASES = {
    "its run works": (facts(), Action.KEEP),
    "its run works, and is busy": (facts(unfinished_instances=3, idle_since=ago(hours=3)), Action.KEEP),
    "its run is over": (facts(run_state="failed"), Action.CLOSE),
    "its run is over, but another one works on it": (
        facts(run_state="success", unfinished_instances=1, used_by="report run-2"),
        Action.KEEP,
    ),
    "another run works on it, but it has reached its limit": (
        facts(run_state="success", unfinished_instances=1, used_by="report run-2", over_limit="too much"),
        Action.CLOSE,
    ),
    "its run was a success and left it": (facts(run_state="success"), Action.CLOSE),
    "its run is over just now: the teardown may be at work": (
        facts(run_state="failed", idle_since=ago(minutes=5)),
        Action.KEEP,
    ),
    "its run is over, and what still runs is nobody's": (
        facts(run_state="failed", unfinished_instances=2, idle_since=ago(minutes=5)),
        Action.CLOSE,
    ),
    "there is no such run": (facts(run_state=None), Action.CLOSE),
    "there is no such run yet": (
        facts(run_state=None, created=ago(minutes=5), idle_since=ago(minutes=5)),
        Action.KEEP,
    ),
    "idle too long, whatever its run does": (facts(idle_since=ago(hours=2)), Action.CLOSE),
    "shared: no run of its own": (facts(shared=True, run_state=None), Action.KEEP),
    "shared and idle": (facts(shared=True, run_state=None, idle_since=ago(hours=2)), Action.CLOSE),
    "shared and busy": (
        facts(shared=True, run_state=None, idle_since=ago(hours=2), unfinished_instances=1),
        Action.KEEP,
    ),
    "closing already": (facts(fate=Fate.ENDING, run_state="failed"), Action.KEEP),
    "closed": (facts(fate=Fate.DEAD, ended=ago(days=2)), Action.KEEP),
    "closed long ago": (facts(fate=Fate.DEAD, ended=ago(days=9)), Action.DELETE),
    "queued runs count as alive": (facts(run_state="queued"), Action.KEEP),
}


#: A Qarnot task with nodes of its own: always busy.
ALONE = {
    "its run works": (facts(unfinished_instances=1, idle_since=ago(hours=3)), Action.KEEP),
    "its run is over": (facts(unfinished_instances=1, run_state="success"), Action.CLOSE),
    "its run is over, and it is young": (
        facts(unfinished_instances=1, run_state="failed", created=ago(minutes=5)),
        Action.KEEP,
    ),
    "there is no such run": (facts(unfinished_instances=1, run_state=None), Action.CLOSE),
    "aborted already": (facts(unfinished_instances=1, fate=Fate.ENDING, run_state="failed"), Action.KEEP),
    "over": (facts(unfinished_instances=1, fate=Fate.DEAD, run_state=None), Action.KEEP),
}


@pytest.mark.parametrize(("known", "action"), ALONE.values(), ids=ALONE.keys())
def test_judge_a_qarnot_task_without_a_pool(known: Facts, action: Action) -> None:
    assert judge(known, LIMITS, NOW).action is action


def test_no_qarnot_task_is_aborted_that_is_over_or_on_its_way_out() -> None:
    def action(state: states.TaskState) -> Action:
        task = Task(uuid="one", state=state, creation_date=ago(hours=3))
        return judge(_facts_alone(task, lambda dag_id, run_id: "failed"), LIMITS, NOW).action

    kept = {state for state in states.TaskState if action(state) is Action.KEEP}
    assert kept == {"PendingCancel", "PendingDelete", "Success", "Failure", "Cancelled"}


@pytest.mark.parametrize(("known", "action"), CASES.values(), ids=CASES.keys())
def test_judge(known: Facts, action: Action) -> None:
    assert judge(known, LIMITS, NOW).action is action
