"""What one look at a remote object means to whoever waits for it."""

from __future__ import annotations

import pytest

from airflow_qarnot_pool.api.errors import (
    QarnotInvalidSpecError,
    QarnotNotFoundError,
    QarnotUnknownStateError,
)
from airflow_qarnot_pool.api.models import Pool, Task
from airflow_qarnot_pool.conditions import (
    POOL_CLOSED,
    POOL_READY,
    TASK_ENDED,
    Absence,
    Condition,
    Ending,
    Outcome,
    Verdict,
    concluded,
)

UUID = "52c10b2d-0687-41e1-985e-7279f6dd543a"


def pool(state: str, previous: str = "Submitted", **fields: object) -> Pool:
    return Pool.from_json({"uuid": UUID, "state": state, "previousState": previous, **fields})


def task(state: str, previous: str = "Submitted") -> Task:
    return Task.from_json({"uuid": UUID, "state": state, "previousState": previous})


def target(*states: str, kind: str = "pool", passed: bool = True) -> Condition:
    return Condition(kind=kind, targets=states, passed=passed)  # type: ignore[arg-type]


CASES = {
    "there": (POOL_READY, pool("FullyExecuting"), Verdict.MET),
    "not yet": (POOL_READY, pool("PartiallyDispatched"), Verdict.WAIT),
    "may come again": (POOL_READY, pool("PartiallyExecuting"), Verdict.WAIT),
    "closed before it was ready": (POOL_READY, pool("Closed", "Closing"), Verdict.IMPOSSIBLE),
    "failed before it was ready": (POOL_READY, pool("Failure"), Verdict.IMPOSSIBLE),
    "it was ready and is closing": (POOL_READY, pool("Closing", "FullyExecuting"), Verdict.IMPOSSIBLE),
    "it was ready and failed": (POOL_READY, pool("Failure", "FullyExecuting"), Verdict.IMPOSSIBLE),
    "it was ready and is closed": (POOL_READY, pool("Closed", "FullyExecuting"), Verdict.IMPOSSIBLE),
    "it was ready and is deleted": (POOL_READY, pool("PendingDelete", "FullyExecuting"), Verdict.IMPOSSIBLE),
    "it was ready and shrinks": (POOL_READY, pool("PartiallyExecuting", "FullyExecuting"), Verdict.MET),
    "one node ran before it closed": (
        target("PartiallyExecuting"),
        pool("Closing", "PartiallyExecuting"),
        Verdict.IMPOSSIBLE,
    ),
    "one node ran and now all do": (target("PartiallyExecuting"), pool("FullyExecuting"), Verdict.MET),
    "it just was ready, but only now counts": (
        target("FullyExecuting", passed=False),
        pool("Closing", "FullyExecuting"),
        Verdict.IMPOSSIBLE,
    ),
    "passed on the way": (target("FullyDispatched"), pool("FullyExecuting", "FullyDispatched"), Verdict.MET),
    "passed long ago": (target("PartiallyDispatched"), pool("FullyExecuting", "FullyExecuting"), Verdict.MET),
    "everything was submitted once": (target("Submitted"), pool("FullyExecuting"), Verdict.MET),
    "submitted, and closed since": (target("Submitted"), pool("Closed", "Closing"), Verdict.IMPOSSIBLE),
    "an end was passed before the deletion": (target("Closed"), pool("PendingDelete", "Closed"), Verdict.MET),
    "closing was passed before the failure": (target("Closing"), pool("Failure", "Closing"), Verdict.MET),
    "closing was passed": (target("Closing"), pool("Closed", "Closing"), Verdict.MET),
    "any of several": (target("Closed", "FullyExecuting"), pool("FullyExecuting"), Verdict.MET),
    "one of several still can": (target("FullyExecuting", "Closed"), pool("Closing"), Verdict.WAIT),
    "closing waits for closed": (POOL_CLOSED, pool("Closing"), Verdict.WAIT),
    "a failed pool is closed": (POOL_CLOSED, pool("Failure"), Verdict.MET),
    "slots": (
        Condition(kind="pool", ready_slots=2),
        pool("PartiallyExecuting", runningInstanceCount=2),
        Verdict.MET,
    ),
    "too few slots": (
        Condition(kind="pool", ready_slots=3),
        pool("PartiallyExecuting", runningInstanceCount=2),
        Verdict.WAIT,
    ),
    "all nodes run, and the server counts nodes": (
        Condition(kind="pool", ready_slots=4),
        pool("FullyExecuting", runningInstanceCount=2, multiSlotsSettings={"slotsPerNode": 2}),
        Verdict.MET,
    ),
    "some nodes run, and the server may count slots": (
        Condition(kind="pool", ready_slots=4),
        pool("PartiallyExecuting", runningInstanceCount=2, multiSlotsSettings={"slotsPerNode": 2}),
        Verdict.WAIT,
    ),
    "no slots any more": (Condition(kind="pool", ready_slots=3), pool("Closing"), Verdict.IMPOSSIBLE),
    "running": (TASK_ENDED, task("FullyExecuting"), Verdict.WAIT),
    "being cancelled is still running": (TASK_ENDED, task("PendingCancel"), Verdict.WAIT),
    "uploading is still running": (TASK_ENDED, task("UploadingResults"), Verdict.WAIT),
    "success": (TASK_ENDED, task("Success"), Verdict.MET),
    "failure is an end, too": (TASK_ENDED, task("Failure"), Verdict.MET),
    "cancelled is an end, too": (TASK_ENDED, task("Cancelled"), Verdict.MET),
    "success cannot come after failure": (
        target("Success", kind="task"),
        task("Failure"),
        Verdict.IMPOSSIBLE,
    ),
    "it ran and succeeded": (target("FullyExecuting", kind="task"), task("Success"), Verdict.MET),
    "it succeeded and is deleted": (
        target("Success", kind="task"),
        task("PendingDelete", "Success"),
        Verdict.MET,
    ),
    **{
        f"it ran and is {state}": (
            target("FullyExecuting", kind="task"),
            task(state, "FullyExecuting"),
            Verdict.IMPOSSIBLE,
        )
        for state in ("Failure", "Cancelled", "PendingCancel", "PendingDelete")
    },
    "success may still come": (target("Success", kind="task"), task("Submitted"), Verdict.WAIT),
}


@pytest.mark.parametrize(("condition", "look", "verdict"), CASES.values(), ids=CASES.keys())
def test_judge(condition: Condition, look: Pool | Task, verdict: Verdict) -> None:
    assert condition.judge(look) is verdict


def test_what_was_seen_before_counts_as_passed() -> None:
    assert POOL_READY.judge(pool("PartiallyExecuting"), ["FullyExecuting"]) is Verdict.MET


@pytest.mark.parametrize("state", ["Closing", "Closed", "Failure", "PendingDelete"])
@pytest.mark.parametrize(
    "wanted", ["Submitted", "PartiallyDispatched", "FullyDispatched", "PartiallyExecuting", "FullyExecuting"]
)
def test_no_target_of_a_usable_pool_is_met_by_one_that_has_ended(wanted: str, state: str) -> None:
    look = pool(state, wanted)
    assert target(wanted).judge(look, ["FullyExecuting"]) is Verdict.IMPOSSIBLE
    assert Condition(kind="pool", ready_slots=1).judge(look) is Verdict.IMPOSSIBLE


def test_an_unknown_state_is_an_error_that_names_it() -> None:
    with pytest.raises(QarnotUnknownStateError, match="Hibernating"):
        POOL_READY.judge(pool("Hibernating"))


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
    assert target("fullyexecuting").judge(pool("FullyExecuting")) is Verdict.MET


def test_the_remote_error_is_in_the_message() -> None:
    look = pool("Failure", errors=[{"code": "GHX1", "message": "no machine", "debug": ""}])
    outcome = concluded(POOL_READY, look)
    assert outcome is not None
    assert outcome.ending is Ending.IMPOSSIBLE
    assert "GHX1: no machine" in outcome.message


def test_only_the_service_itself_says_for_long_enough_that_something_is_gone() -> None:
    absence = Absence(interval=1.0)
    own, proxys = QarnotNotFoundError(), QarnotNotFoundError(foreign=True)
    assert not absence.is_certain(own, now=0.0)
    assert not absence.is_certain(own, now=1.9)
    absence.found()
    assert not absence.is_certain(own, now=5.0)
    assert not absence.is_certain(proxys, now=100.0)
    assert absence.is_certain(own, now=101.0)
    rare = Absence(interval=3600.0)
    assert not rare.is_certain(own, now=0.0)
    assert rare.is_certain(own, now=3600.0)


def test_round_trips() -> None:
    condition = target("Closed", "Failure")
    assert Condition.from_kwargs({**condition.to_kwargs(), "added_later": True}) == condition
    outcome = Outcome(ending=Ending.TIMEOUT, uuid=UUID, state="Closing", message="late", carry={"a": 1})
    assert Outcome.from_event({**outcome.to_event(), "added_later": True}) == outcome
