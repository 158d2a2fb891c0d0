"""What the end of a Qarnot task means for Airflow."""

from __future__ import annotations

from dataclasses import replace

import pytest

from airflow_qarnot_pool.api.errors import QarnotUnknownStateError
from airflow_qarnot_pool.api.states import TaskState
from airflow_qarnot_pool.executors.running import (
    MAX_REQUEUES,
    Attempt,
    End,
    EndAction,
    InstanceRow,
    Outcome,
    is_overdue,
    judge,
    left_on,
    name_of,
    outcome_of,
    unneeded,
)

ATTEMPT = Attempt(name="airflow-a", key=("dag", "task"), instance_id="ti", external_id="a")
OURS, OTHER = "a", "b"

#: Outcome, state in Airflow, its external id, requeues so far: action.
ACTIONS = {
    "a task that has told Airflow its state": ((Outcome.SUCCESS, "success", OURS, 0), EndAction.SUCCESS),
    "one that has failed and told it": ((Outcome.SUCCESS, "failed", OURS, 0), EndAction.SUCCESS),
    "one that is deferred": ((Outcome.SUCCESS, "deferred", OURS, 0), EndAction.FORGET),
    "one that is about to resume": ((Outcome.SUCCESS, "scheduled", OURS, 0), EndAction.FORGET),
    "one that is rescheduled": ((Outcome.FAILURE, "up_for_reschedule", OURS, 0), EndAction.FORGET),
    "one that is retried": ((Outcome.SUCCESS, "up_for_retry", OURS, 0), EndAction.FORGET),
    "one without a state": ((Outcome.SUCCESS, None, OURS, 0), EndAction.FORGET),
    "a node lost after the state was told": ((Outcome.FAILURE, "success", OURS, 0), EndAction.SUCCESS),
    "one that Airflow takes for running still": ((Outcome.SUCCESS, "running", OURS, 0), EndAction.SUCCESS),
    "a node lost while it runs": ((Outcome.FAILURE, "running", OURS, 0), EndAction.FAIL),
    "deleted while it runs": ((Outcome.DELETED, "running", OURS, 0), EndAction.FAIL),
    "its object is missing while it runs": ((Outcome.MISSING, "running", OURS, 0), EndAction.FAIL),
    "cleared while it runs, and ended by that": ((Outcome.FAILURE, "restarting", OURS, 0), EndAction.SUCCESS),
    "a node lost before Airflow saw it start": ((Outcome.FAILURE, "queued", OURS, 0), EndAction.REQUEUE),
    "the same, for the last time": ((Outcome.FAILURE, "queued", OURS, MAX_REQUEUES - 1), EndAction.REQUEUE),
    "the same, too often": ((Outcome.FAILURE, "queued", OURS, MAX_REQUEUES), EndAction.FAIL),
    "a command that ends without a start": ((Outcome.SUCCESS, "queued", OURS, 0), EndAction.REQUEUE),
    "deleted before the start": ((Outcome.DELETED, "queued", OURS, 0), EndAction.REQUEUE),
    "no slot for as long as it may wait": ((Outcome.WAITED, "queued", OURS, 0), EndAction.REQUEUE),
    "the same, after lost nodes": ((Outcome.WAITED, "queued", OURS, MAX_REQUEUES), EndAction.REQUEUE),
    "refused by Qarnot": ((Outcome.REFUSED, "queued", OURS, 0), EndAction.FAIL),
    "not submitted by the scheduler before": ((Outcome.MISSING, "queued", OURS, 0), EndAction.RESET),
    "queued again by another scheduler": ((Outcome.FAILURE, "queued", OTHER, 0), EndAction.FORGET),
    "resumed after a deferral": ((Outcome.SUCCESS, "running", OTHER, 0), EndAction.FORGET),
}


@pytest.mark.parametrize("case", ACTIONS)
def test_the_end_of_an_attempt(case: str) -> None:
    (outcome, state, external_id, requeues), action = ACTIONS[case]
    end = End(attempt=ATTEMPT, outcome=outcome)
    assert judge(end, InstanceRow(state=state, external_id=external_id), requeues) is action


def test_the_end_of_a_task_that_was_cleared_while_it_ran_lets_it_run_again() -> None:
    """Its task instance has another id since. Airflow waits for the report, and knows by the try that it is old."""
    assert judge(End(attempt=ATTEMPT, outcome=Outcome.FAILURE), None, 0) is EndAction.SUCCESS


def test_without_a_committed_id_only_the_scheduler_that_has_the_task_reports() -> None:
    """The other may have queued it again after a deferral."""
    end = End(attempt=replace(ATTEMPT, external_id=""), outcome=Outcome.SUCCESS)
    for is_ours, action in ((True, EndAction.REQUEUE), (False, EndAction.FORGET)):
        assert judge(end, InstanceRow(state="queued", is_ours=is_ours), 0) is action


def test_every_end_of_a_qarnot_task_has_an_outcome() -> None:
    ended = {state: outcome_of(state) for state in TaskState if outcome_of(state)}
    assert ended == {
        TaskState.SUCCESS: Outcome.SUCCESS,
        TaskState.FAILURE: Outcome.FAILURE,
        TaskState.CANCELLED: Outcome.FAILURE,
    }
    with pytest.raises(QarnotUnknownStateError):
        outcome_of("Paused")


def test_a_name_is_made_from_the_committed_id_and_else_from_the_token() -> None:
    assert name_of("0190", "ti", "token") == "airflow-0190"
    names = {name_of(None, "ti", "token-1"), name_of(None, "ti", "token-2"), name_of("", "ti", "token-1")}
    assert len(names) == 2
    assert all(name.startswith("airflow-ti-") and "token" not in name for name in names)


def test_a_qarnot_task_is_unneeded_from_the_first_look_that_says_so() -> None:
    no_id = replace(ATTEMPT, instance_id="adopted", external_id="")
    others = {
        "cleared": replace(ATTEMPT, instance_id="gone"),
        "replaced": replace(ATTEMPT, instance_id="replaced"),
        "over": replace(ATTEMPT, instance_id="over"),
    }
    attempts = {
        "queued": ATTEMPT,
        "running": replace(ATTEMPT, instance_id="running"),
        "restarting": replace(ATTEMPT, instance_id="restarting"),
        # Qarnot may have launched it again, and then it may be the one that runs the task.
        "run by another": replace(ATTEMPT, instance_id="resumed"),
        "adopted by another scheduler": no_id,
        **others,
    }
    instances = {
        "ti": InstanceRow(state="queued", external_id="a"),
        "running": InstanceRow(state="running", external_id="a"),
        "restarting": InstanceRow(state="restarting", external_id="a"),
        "resumed": InstanceRow(state="running", external_id="b"),
        "adopted": InstanceRow(state="queued", is_ours=False),
        "replaced": InstanceRow(state="queued", external_id="b"),
        "over": InstanceRow(state="failed", external_id="a"),
    }
    assert unneeded(attempts, instances, {"over": 3.0, "queued": 2.0}, 5.0) == {
        "cleared": 5.0,
        "replaced": 5.0,
        "over": 3.0,
    }


def test_only_what_this_airflow_has_had_is_left_on() -> None:
    """Another deployment may use the namespace by mistake, or have a copy of this one's database."""
    ids = ("over", "deferred", "running", "queued", "cleared", "never had")
    instances = {
        "over": InstanceRow(state="success"),
        "deferred": InstanceRow(state="deferred"),
        "running": InstanceRow(state="running"),
        "queued": InstanceRow(state="queued", is_ours=False),
    }
    found = {f"uuid of {each}": each for each in ids}
    since = {"uuid of over": 3.0, "uuid of running": 2.0}
    assert left_on(found, instances, {"cleared"}, since, 5.0) == {
        "uuid of over": 3.0,
        "uuid of deferred": 5.0,
        "uuid of cleared": 5.0,
    }


def test_a_qarnot_task_that_runs_has_time_to_end_by_itself() -> None:
    assert [is_overdue(0, now, has_started=False) for now in (29, 30)] == [False, True]
    assert [is_overdue(0, now, has_started=True) for now in (30, 239, 240)] == [False, False, True]
