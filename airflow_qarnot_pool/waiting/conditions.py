"""What is waited for: pure decisions shared by operators, sensors and triggers, in both modes.

A condition judges one look at a pool or Qarnot task. Judging never counts an unknown state as success
(:class:`QarnotUnknownStateError` is raised instead).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from airflow_qarnot_pool.api import states
from airflow_qarnot_pool.api.errors import (
    QarnotInvalidSpecError,
    QarnotUnknownStateError,
    shortened,
)
from airflow_qarnot_pool.api.limits import parsing_stored_state

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.errors import QarnotError
    from airflow_qarnot_pool.api.models import Pool, Task

Kind = Literal["pool", "task"]

#: Nouns for the kinds in messages: within a sentence, and at its start. "task" alone could also mean an Airflow task.
NOUNS: dict[str, str] = {"pool": "pool", "task": "Qarnot task"}
CAPITALIZED_NOUNS: dict[str, str] = {"pool": "Pool", "task": "Qarnot task"}

#: Maximum seconds for which a 404 is doubted, because a wait with rare polls must also end.
MAX_DOUBT = 10.0


#: Key of ``WaitResult.resume_state``, set if the warm-up ended before the pool was ready.
COLD = "cold"


class ConditionResult(StrEnum):
    """What one look means to a waiter."""

    WAIT = "wait"
    MET = "met"
    IMPOSSIBLE = "impossible"


#: Poll intervals between two polls of the pool on which a Qarnot task is queued.
POOL_POLL_INTERVALS = 10
#: Poll intervals for which a Qarnot task may stay queued on a pool that has ended, because the service may cancel it.
STRANDED_INTERVALS = 6

_PARSE = {"pool": states.parse_pool_state, "task": states.parse_task_state}
#: What people say, and Qarnot's name for it.
_STATE_ALIASES = {
    "pool": {
        "ready": "FullyExecuting",
        "running": "FullyExecuting",
        "warm": "FullyExecuting",
        "started": "PartiallyExecuting",
        "done": "Closed",
        "stopped": "Closed",
        "failed": "Failure",
        "deleted": "PendingDelete",
        "gone": "PendingDelete",
    },
    "task": {
        "running": "FullyExecuting",
        "done": "Success",
        "succeeded": "Success",
        "completed": "Success",
        "failed": "Failure",
        "aborted": "Cancelled",
        "closed": "Cancelled",
        "deleted": "PendingDelete",
        "gone": "PendingDelete",
    },
}
_CAN_REACH = {"pool": states.pool_can_reach, "task": states.task_can_reach}
_HAS_PASSED = {"pool": states.pool_has_passed, "task": states.task_has_passed}


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Wait until an object is in one of ``targets``, or until a pool has ``ready_slots`` running instances.

    ``passed``: a target that the object must have passed between two polls counts as reached, unless the object
    has ended since and the target was not an end.
    """

    kind: Kind
    targets: tuple[str, ...] = ()
    ready_slots: int | None = None
    passed: bool = True

    def __post_init__(self) -> None:
        if not self.targets and self.ready_slots is None:
            raise QarnotInvalidSpecError(
                "There is nothing to wait for", remedy="Give target_states or ready_slots."
            )
        object.__setattr__(self, "targets", tuple(_target(self.kind, one) for one in self.targets))
        if self.ready_slots is not None and (self.kind != "pool" or self.ready_slots < 1):
            raise QarnotInvalidSpecError(
                f"ready_slots must be at least 1 and is for pools only, got {self.ready_slots!r} of a {self.kind}",
                field="ready_slots",
                remedy="Give a number of 1 or more.",
            )

    def evaluate(self, look: Pool | Task, history: Iterable[str] = ()) -> ConditionResult:
        """Judge *look*; *history* are states this waiter saw before."""
        state = _PARSE[self.kind](look.state)
        if self.ready_slots is not None:
            if not states.accepts_tasks(state):
                return ConditionResult.IMPOSSIBLE
            return ConditionResult.MET if _slots(look) >= self.ready_slots else ConditionResult.WAIT  # type: ignore[arg-type]
        if state in self.targets:
            return ConditionResult.MET
        if self.passed:
            been = {*history, states.PoolState.SUBMITTED, look.previous_state}
            passed = [one for one in self.targets if one in been or _HAS_PASSED[self.kind](state, one)]
            if any(_still_counts(self.kind, one, state, been) for one in passed):
                return ConditionResult.MET
        if any(_CAN_REACH[self.kind](state, one) for one in self.targets):
            return ConditionResult.WAIT
        return ConditionResult.IMPOSSIBLE

    @property
    def met_by_absence(self) -> bool:
        """Whether an object that is gone (404) has reached the target."""
        return self.passed and states.PoolState.PENDING_DELETE in self.targets

    def __str__(self) -> str:
        if self.ready_slots is not None:
            return f"{self.ready_slots} ready slot{'s' if self.ready_slots > 1 else ''}"
        return " or ".join(self.targets)

    def to_kwargs(self) -> dict[str, Any]:
        """JSON-ready, for trigger kwargs."""
        return {**asdict(self), "targets": list(self.targets)}

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> Condition:
        """Read back what :meth:`to_kwargs` of this or an earlier release wrote."""
        with parsing_stored_state("What a trigger waits for"):
            known = {name: kwargs[name] for name in cls.__dataclass_fields__ if name in kwargs}
            return cls(**{**known, "targets": tuple(known.get("targets", ()))})


def _target(kind: Kind, name: str) -> str:
    """A state that may be waited for, in Qarnot's spelling.

    :raises QarnotInvalidSpecError: there is no such state.
    """
    try:
        return str(_PARSE[kind](name))
    except QarnotUnknownStateError:
        import difflib

        known = [str(one) for one in (states.PoolState if kind == "pool" else states.TaskState)]
        meant = _STATE_ALIASES[kind].get(str(name).strip().lower())
        meant = meant or next(iter(difflib.get_close_matches(str(name), known, n=1)), None)
        raise QarnotInvalidSpecError(
            f"target_states: {name!r} is no state of a {NOUNS[kind]}",
            field="target_states",
            remedy=(f"Did you mean {meant!r}? " if meant else "") + f"The states are {', '.join(known)}.",
        ) from None


def _still_counts(kind: Kind, passed: str, state: str, been: Collection[str | None]) -> bool:
    """Return whether a target that was *passed* counts for an object now in *state*.

    A target on the way up stands for an object that can be used. It does not count once the object has failed, was
    cancelled or is closing. A Qarnot task that succeeded has done its work, so everything before counts.
    """
    if states.is_ending(passed):
        return True
    if kind == "task" and states.TaskState.SUCCESS in (state, *been):
        return True
    return not states.is_ending(state)


def _slots(pool: Pool) -> int:
    """Slots that run. Whether Qarnot counts slots or nodes is not documented, so once all of a multi-slot pool
    runs either reading is taken; before that the smaller one.
    """
    whole = states.parse_pool_state(pool.state) is states.PoolState.FULLY_EXECUTING
    return pool.ready_slots * ((pool.slots_per_node or 1) if whole else 1)


POOL_READY = Condition(kind="pool", targets=(states.PoolState.FULLY_EXECUTING,))
POOL_CLOSED = Condition(
    kind="pool",
    targets=(states.PoolState.CLOSED, states.PoolState.FAILURE, states.PoolState.PENDING_DELETE),
)
TASK_ENDED = Condition(kind="task", targets=tuple(states.TASK_TERMINAL), passed=False)
#: Ends that a Qarnot task reaches by itself, so that they count even if the wait for it has ended otherwise.
TASK_DONE = Condition(kind="task", targets=(states.TaskState.SUCCESS, states.TaskState.FAILURE), passed=False)
TASK_SUCCEEDED = Condition(kind="task", targets=(states.TaskState.SUCCESS,), passed=False)


class Absence:
    """Decide whether an object that is answered with 404 is gone.

    A single 404 proves nothing, because a proxy or a replica that lags may have sent it. The object is gone once the
    service itself has answered 404 for two poll intervals (10 s at most) and no poll in between has found it.
    """

    __slots__ = ("_patience", "_since")

    def __init__(self, interval: float) -> None:
        self._patience = min(MAX_DOUBT, 2 * interval)
        self._since: float | None = None

    def found(self) -> None:
        """Note that a poll has found the object."""
        self._since = None

    def is_certain(self, error: QarnotError, now: float) -> bool:
        """Return whether *error*, raised at *now* (monotonic seconds), shows that the object is gone, or refused."""
        if getattr(error, "foreign", False):
            return False
        if self._since is None:
            self._since = now
        return now - self._since >= self._patience


class EndReason(StrEnum):
    """How a wait ended."""

    MET = "met"
    IMPOSSIBLE = "impossible"
    GONE = "gone"
    TIMEOUT = "timeout"
    ERROR = "error"


@dataclass(frozen=True, kw_only=True)
class WaitResult:
    """How a wait ended, with everything that whoever resumes needs: it may be a new object in a new process."""

    ending: EndReason
    uuid: str
    state: str | None = None
    message: str = ""
    resume_state: dict[str, Any] = field(default_factory=dict)

    def to_event(self) -> dict[str, Any]:
        """The payload of a trigger event."""
        return {"status": str(self.ending), **{k: v for k, v in asdict(self).items() if k != "ending"}}

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> WaitResult:
        """Read back what :meth:`to_event` of this or an earlier release wrote.

        :raises QarnotProtocolError: it is something else.
        """
        with parsing_stored_state("The event of a wait"):
            return cls(
                ending=EndReason(event["status"]),
                uuid=event["uuid"],
                state=event.get("state"),
                message=shortened(event.get("message") or ""),
                resume_state=dict(event.get("resume_state") or {}),
            )


def result_if_met(condition: Condition, look: Pool | Task, history: Iterable[str] = ()) -> WaitResult | None:
    """The outcome that *look* brings, or None where the wait goes on."""
    verdict = condition.evaluate(look, history)
    if verdict is ConditionResult.WAIT:
        return None
    return WaitResult(
        ending=EndReason.MET if verdict is ConditionResult.MET else EndReason.IMPOSSIBLE,
        uuid=look.uuid,
        state=look.state,
        message="" if verdict is ConditionResult.MET else _why_not(condition, look),
    )


def is_queued(task_state: str) -> bool:
    """Return whether a Qarnot task waits for nodes, so that it never runs once its pool has ended."""
    return states.task_phase(task_state) is states.Phase.TRANSIENT


def stranded_result(uuid: str, state: str, why: str) -> WaitResult:
    """Return the outcome of a wait for a Qarnot task that stays queued; *why* names its pool and the pool's state."""
    message = f"Qarnot task {uuid} is {state}, and {why}, so it never runs"
    return WaitResult(ending=EndReason.IMPOSSIBLE, uuid=uuid, state=state, message=message)


def _why_not(condition: Condition, look: Pool | Task) -> str:
    why = f"{condition.kind} {look.uuid} is {look.state} and can no longer reach {condition}"
    return f"{why} (remote errors: {look.error_text})" if look.error_text else why


def timeout_message(kind: Kind, uuid: str, history: Sequence[str], condition: Condition) -> str:
    """What to say when the time to wait is over."""
    noun = "Pool" if kind == "pool" else "Qarnot task"
    seen = f"was still {history[-1]}" if history else "was not seen at all"
    return f"{noun} {uuid} {seen} when the time to wait for {condition} was over"
