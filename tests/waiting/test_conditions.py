"""What one look at a remote object means to whoever waits for it."""

from __future__ import annotations

import pytest

from airflow_qarnot_pool.api.errors import (
    QarnotCredentialsError,
    QarnotInvalidSpecError,
    QarnotNotFoundError,
    QarnotRefusedError,
    QarnotUnknownStateError,
)
from airflow_qarnot_pool.api.models import Pool, Task
from airflow_qarnot_pool.waiting.conditions import (
    POOL_CLOSED,
    POOL_READY,
    TASK_ENDED,
    Absence,
    Condition,
    ConditionResult,
    EndReason,
    WaitResult,
    result_if_met,
)

UUID = "52c10b2d-0687-41e1-985e-7279f6dd543a"


def pool(state: str, previous: str = "Submitted", **fields: object) -> Pool:
    return Pool.from_json({"uuid": UUID, "state": state, "previousState": previous, **fields})


def task(state: str, previous: str = "Submitted") -> Task:
    return Task.from_json({"uuid": UUID, "state": state, "previousState": previous})


def target(*states: str, kind: str = "pool", passed: bool = True) -> Condition:
    return Condition(kind=kind, targets=states, accept_passed=passed)  # type: ignore[arg-type]


CASES = {
    "there": (POOL_READY, pool("FullyExecuting"), ConditionResult.MET),
    "not yet": (POOL_READY, pool("PartiallyDispatched"), ConditionResult.WAIT),
    "may come again": (POOL_READY, pool("PartiallyExecuting"), ConditionResult.WAIT),
    "closed before it was ready": (POOL_READY, pool("Closed", "Closing"), ConditionResult.IMPOSSIBLE),
    "failed before it was ready": (POOL_READY, pool("Failure"), ConditionResult.IMPOSSIBLE),
    "it was ready and is closing": (
        POOL_READY,
        pool("Closing", "FullyExecuting"),
        ConditionResult.IMPOSSIBLE,
    ),
    "it was ready and failed": (POOL_READY, pool("Failure", "FullyExecuting"), ConditionResult.IMPOSSIBLE),
    "it was ready and is closed": (POOL_READY, pool("Closed", "FullyExecuting"), ConditionResult.IMPOSSIBLE),
    "it was ready and is deleted": (
        POOL_READY,
        pool("PendingDelete", "FullyExecuting"),
        ConditionResult.IMPOSSIBLE,
    ),
    "it was ready and shrinks": (
        POOL_READY,
        pool("PartiallyExecuting", "FullyExecuting"),
        ConditionResult.MET,
    ),
    "one node ran before it closed": (
        target("PartiallyExecuting"),
        pool("Closing", "PartiallyExecuting"),
        ConditionResult.IMPOSSIBLE,
    ),
    "one node ran and now all do": (
        target("PartiallyExecuting"),
        pool("FullyExecuting"),
        ConditionResult.MET,
    ),
    "it just was ready, but only now counts": (
        target("FullyExecuting", passed=False),
        pool("Closing", "FullyExecuting"),
        ConditionResult.IMPOSSIBLE,
    ),
    "passed on the way": (
        target("FullyDispatched"),
        pool("FullyExecuting", "FullyDispatched"),
        ConditionResult.MET,
    ),
    "passed long ago": (
        target("PartiallyDispatched"),
        pool("FullyExecuting", "FullyExecuting"),
        ConditionResult.MET,
    ),
    "everything was submitted once": (target("Submitted"), pool("FullyExecuting"), ConditionResult.MET),
    "submitted, and closed since": (
        target("Submitted"),
        pool("Closed", "Closing"),
        ConditionResult.IMPOSSIBLE,
    ),
    "an end was passed before the deletion": (
        target("Closed"),
        pool("PendingDelete", "Closed"),
        ConditionResult.MET,
    ),
    "closing was passed before the failure": (
        target("Closing"),
        pool("Failure", "Closing"),
        ConditionResult.MET,
    ),
    "closing was passed": (target("Closing"), pool("Closed", "Closing"), ConditionResult.MET),
    "any of several": (target("Closed", "FullyExecuting"), pool("FullyExecuting"), ConditionResult.MET),
    "one of several still can": (target("FullyExecuting", "Closed"), pool("Closing"), ConditionResult.WAIT),
    "closing waits for closed": (POOL_CLOSED, pool("Closing"), ConditionResult.WAIT),
    "a failed pool is closed": (POOL_CLOSED, pool("Failure"), ConditionResult.MET),
    "slots": (
        Condition(kind="pool", ready_slots=2),
        pool("PartiallyExecuting", runningInstanceCount=2),
        ConditionResult.MET,
    ),
    "too few slots": (
        Condition(kind="pool", ready_slots=3),
        pool("PartiallyExecuting", runningInstanceCount=2),
        ConditionResult.WAIT,
    ),
    "all nodes run, and the server counts nodes": (
        Condition(kind="pool", ready_slots=4),
        pool("FullyExecuting", runningInstanceCount=2, multiSlotsSettings={"slotsPerNode": 2}),
        ConditionResult.MET,
    ),
    "some nodes run, and the server may count slots": (
        Condition(kind="pool", ready_slots=4),
        pool("PartiallyExecuting", runningInstanceCount=2, multiSlotsSettings={"slotsPerNode": 2}),
        ConditionResult.WAIT,
    ),
    "no slots any more": (Condition(kind="pool", ready_slots=3), pool("Closing"), ConditionResult.IMPOSSIBLE),
    "running": (TASK_ENDED, task("FullyExecuting"), ConditionResult.WAIT),
    "being cancelled is still running": (TASK_ENDED, task("PendingCancel"), ConditionResult.WAIT),
    "uploading is still running": (TASK_ENDED, task("UploadingResults"), ConditionResult.WAIT),
    "success": (TASK_ENDED, task("Success"), ConditionResult.MET),
    "failure is an end, too": (TASK_ENDED, task("Failure"), ConditionResult.MET),
    "cancelled is an end, too": (TASK_ENDED, task("Cancelled"), ConditionResult.MET),
    "success cannot come after failure": (
        target("Success", kind="task"),
        task("Failure"),
        ConditionResult.IMPOSSIBLE,
    ),
    "it ran and succeeded": (target("FullyExecuting", kind="task"), task("Success"), ConditionResult.MET),
    "it succeeded and is deleted": (
        target("Success", kind="task"),
        task("PendingDelete", "Success"),
        ConditionResult.MET,
    ),
    **{
        f"it ran and is {state}": (
            target("FullyExecuting", kind="task"),
            task(state, "FullyExecuting"),
            ConditionResult.IMPOSSIBLE,
        )
        for state in ("Failure", "Cancelled", "PendingCancel", "PendingDelete")
    },
    "success may still come": (target("Success", kind="task"), task("Submitted"), ConditionResult.WAIT),
}


@pytest.mark.parametrize(("condition", "look", "verdict"), CASES.values(), ids=CASES.keys())
def test_evaluate(condition: Condition, look: Pool | Task, verdict: ConditionResult) -> None:
    assert condition.evaluate(look) is verdict


def test_a_state_seen_before_counts_as_passed() -> None:
    assert POOL_READY.evaluate(pool("PartiallyExecuting"), ["FullyExecuting"]) is ConditionResult.MET


@pytest.mark.parametrize("state", ["Closing", "Closed", "Failure", "PendingDelete"])
@pytest.mark.parametrize(
    "wanted", ["Submitted", "PartiallyDispatched", "FullyDispatched", "PartiallyExecuting", "FullyExecuting"]
)
def test_no_target_of_a_usable_pool_is_met_by_one_that_has_ended(wanted: str, state: str) -> None:
    look = pool(state, wanted)
    assert target(wanted).evaluate(look, ["FullyExecuting"]) is ConditionResult.IMPOSSIBLE
    assert Condition(kind="pool", ready_slots=1).evaluate(look) is ConditionResult.IMPOSSIBLE


def test_an_unknown_state_is_an_error_that_names_it() -> None:
    with pytest.raises(QarnotUnknownStateError, match="Hibernating"):
        POOL_READY.evaluate(pool("Hibernating"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Condition(kind="pool"),
        lambda: Condition(kind="pool", ready_slots=0),
        lambda: Condition(kind="task", ready_slots=1),
    ],
)
def test_nonsense_is_refused(make: object) -> None:
    with pytest.raises(QarnotInvalidSpecError):
        make()  # type: ignore[operator]


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(QarnotInvalidSpecError, match=r"'Ready'.*Did you mean 'FullyExecuting'"):
        target("Ready")


def test_states_are_known_whatever_their_case() -> None:
    assert target("fullyexecuting").evaluate(pool("FullyExecuting")) is ConditionResult.MET


def test_the_remote_error_is_in_the_message() -> None:
    look = pool("Failure", errors=[{"code": "GHX1", "message": "no machine", "debug": ""}])
    outcome = result_if_met(POOL_READY, look)
    assert outcome is not None
    assert outcome.ending is EndReason.IMPOSSIBLE
    assert "GHX1: no machine" in outcome.message


def test_only_the_service_itself_says_for_long_enough_that_something_is_gone() -> None:
    absence = Absence(interval=1.0)
    own, proxys = QarnotNotFoundError(), QarnotNotFoundError(foreign=True)
    assert not absence.is_certain(own, now=0.0)
    assert not absence.is_certain(own, now=1.9)
    absence.record_found()
    assert not absence.is_certain(own, now=5.0)
    assert not absence.is_certain(proxys, now=100.0)
    assert absence.is_certain(own, now=101.0)
    # One refusal or rejected token after the other does not make a deletion.
    for now, error in enumerate([QarnotRefusedError(), QarnotCredentialsError(), own], start=200):
        assert not absence.is_certain(error, now=2.5 * now)
    rare = Absence(interval=3600.0)
    assert not rare.is_certain(own, now=0.0)
    assert rare.is_certain(own, now=3600.0)


def test_round_trips() -> None:
    condition = target("Closed", "Failure")
    assert Condition.from_kwargs({**condition.to_kwargs(), "added_later": True}) == condition
    outcome = WaitResult(
        ending=EndReason.TIMEOUT, uuid=UUID, state="Closing", message="late", resume_state={"a": 1}
    )
    assert WaitResult.from_event({**outcome.to_event(), "added_later": True}) == outcome
