from __future__ import annotations

import pytest

from airflow_qarnot_pool.api.errors import QarnotUnknownStateError
from airflow_qarnot_pool.api.states import (
    Phase,
    PoolState,
    TaskState,
    accepts_tasks,
    is_ending,
    is_terminal,
    parse_pool_state,
    parse_task_state,
    pool_can_reach,
    pool_has_passed,
    pool_phase,
    task_can_reach,
    task_has_passed,
    task_phase,
)

POOLS = {
    "Submitted": (Phase.TRANSIENT, True),
    "PartiallyDispatched": (Phase.TRANSIENT, True),
    "FullyDispatched": (Phase.TRANSIENT, True),
    "PartiallyExecuting": (Phase.LIVE, True),
    "FullyExecuting": (Phase.LIVE, True),
    "Closing": (Phase.ENDING, False),
    "PendingDelete": (Phase.ENDING, False),
    "Closed": (Phase.TERMINAL, False),
    "Failure": (Phase.TERMINAL, False),
}
TASKS = {
    "Submitted": Phase.TRANSIENT,
    "PartiallyDispatched": Phase.TRANSIENT,
    "FullyDispatched": Phase.TRANSIENT,
    "PartiallyExecuting": Phase.LIVE,
    "FullyExecuting": Phase.LIVE,
    "UploadingResults": Phase.LIVE,
    "DownloadingResults": Phase.LIVE,
    "PendingCancel": Phase.ENDING,
    "PendingDelete": Phase.ENDING,
    "Cancelled": Phase.TERMINAL,
    "Success": Phase.TERMINAL,
    "Failure": Phase.TERMINAL,
}


def test_the_tables_know_every_state():
    assert set(POOLS) == set(PoolState)
    assert set(TASKS) == set(TaskState)


@pytest.mark.parametrize(("state", "phase", "open_"), [(s, *rest) for s, rest in POOLS.items()])
def test_pool_phases(state, phase, open_):
    assert pool_phase(state) is phase
    assert pool_phase(state.upper()) is phase
    assert accepts_tasks(state) is open_
    assert is_terminal(state) is (phase is Phase.TERMINAL)


@pytest.mark.parametrize(("state", "phase"), TASKS.items())
def test_task_phases(state, phase):
    assert task_phase(state) is phase
    assert task_phase(state.lower()) is phase
    assert is_terminal(state) is (phase is Phase.TERMINAL)


def test_a_task_being_cancelled_is_ending_and_not_over():
    assert not is_terminal("PendingCancel")
    assert task_phase("PendingCancel") is Phase.ENDING


@pytest.mark.parametrize("state", ["Exploded", "", "Success ", None])
@pytest.mark.parametrize("ask", [pool_phase, task_phase, is_terminal, accepts_tasks, parse_task_state])
def test_an_unknown_state_is_an_error_that_names_it(ask, state):
    with pytest.raises(QarnotUnknownStateError) as caught:
        ask(state)
    assert caught.value.state == str(state)
    assert repr(str(state)) in str(caught.value)


def test_ending_and_finished_states():
    ending = {state for state in {*PoolState, *TaskState} if is_ending(state)}
    assert ending == {
        *("Closing", "Closed", "PendingCancel", "PendingDelete", "Cancelled", "Success", "Failure"),
    }


def test_a_task_state_is_not_a_pool_state():
    with pytest.raises(QarnotUnknownStateError):
        parse_pool_state("Success")
    with pytest.raises(QarnotUnknownStateError):
        parse_task_state("Closed")


@pytest.mark.parametrize(
    ("current", "target", "reachable"),
    [
        ("Submitted", "FullyExecuting", True),  # states may be skipped
        ("Submitted", "Submitted", True),
        ("FullyExecuting", "PartiallyExecuting", True),  # elastic pools shrink
        ("PartiallyExecuting", "FullyExecuting", True),
        ("FullyExecuting", "Submitted", False),
        ("FullyDispatched", "PartiallyDispatched", False),
        ("Submitted", "Failure", True),
        ("FullyExecuting", "Closing", True),
        ("FullyExecuting", "Closed", True),
        ("Closing", "FullyExecuting", False),
        ("Closing", "Closed", True),
        ("Closing", "Failure", True),
        ("Closed", "FullyExecuting", False),
        ("Closed", "Failure", False),
        ("Failure", "Closed", False),
        ("Failure", "FullyExecuting", False),
        ("Closed", "PendingDelete", True),
        ("Failure", "PendingDelete", True),
        ("PendingDelete", "Closed", False),
        ("PendingDelete", "PendingDelete", True),
    ],
)
def test_where_a_pool_can_go(current, target, reachable):
    assert pool_can_reach(current, target) is reachable
    assert pool_can_reach(current.lower(), target.upper()) is reachable


@pytest.mark.parametrize(
    ("current", "target", "reachable"),
    [
        ("Submitted", "Success", True),
        ("FullyExecuting", "PartiallyExecuting", True),  # instances finish one by one
        ("FullyExecuting", "UploadingResults", True),
        ("UploadingResults", "FullyExecuting", False),
        ("UploadingResults", "PendingCancel", True),
        ("PendingCancel", "UploadingResults", True),  # uploadResultsOnCancellation
        ("PendingCancel", "Success", True),  # the abort came too late
        ("PendingCancel", "Cancelled", True),
        ("PendingCancel", "FullyExecuting", False),
        ("Success", "Failure", False),
        ("Cancelled", "Success", False),
        ("Failure", "PendingDelete", True),
        ("PendingDelete", "Success", False),
    ],
)
def test_where_a_task_can_go(current, target, reachable):
    assert task_can_reach(current, target) is reachable


@pytest.mark.parametrize(
    ("current", "target", "passed"),
    [
        ("FullyExecuting", "Submitted", True),
        ("FullyExecuting", "PartiallyExecuting", True),
        ("PartiallyExecuting", "FullyExecuting", False),
        ("FullyExecuting", "FullyExecuting", False),
        ("Closed", "Closing", True),
        ("Closing", "FullyExecuting", False),  # it may never have executed
        ("Closed", "FullyExecuting", False),
        ("Failure", "Submitted", False),
        ("Closed", "Failure", False),
    ],
)
def test_states_that_a_pool_has_passed(current, target, passed):
    assert pool_has_passed(current, target) is passed


@pytest.mark.parametrize(
    ("current", "target", "passed"),
    [
        ("UploadingResults", "FullyExecuting", True),
        ("Success", "FullyExecuting", True),
        ("Success", "UploadingResults", True),
        ("Success", "DownloadingResults", True),
        ("Failure", "FullyExecuting", False),
        ("Cancelled", "PendingCancel", True),
        ("Cancelled", "FullyExecuting", False),
        ("PendingCancel", "Cancelled", False),
    ],
)
def test_states_that_a_task_has_passed(current, target, passed):
    assert task_has_passed(current, target) is passed


def test_a_state_that_is_neither_here_nor_reachable_nor_passed_is_lost():
    # Whoever waits for a state needs one of the three to hold; an ended object is at its end or past nothing more.
    for state in PoolState:
        for target in PoolState:
            if pool_can_reach(state, target) and state != target and pool_phase(state) is Phase.TERMINAL:
                assert target == PoolState.PENDING_DELETE
