"""Conditions of a wait: pure decisions shared by operators, sensors and triggers, in both modes.

A condition evaluates one response about a pool or Qarnot task. An unknown state never counts as success. It raises
:class:`QarnotUnknownStateError`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from airflow_qarnot_pool.api import states
from airflow_qarnot_pool.api.errors import (
    QarnotInvalidSpecError,
    QarnotNotFoundError,
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

#: Maximum number of seconds until a 404 or a refusal counts, because a wait with rare polls must also end.
MAX_DOUBT = 10.0


#: Key of ``WaitResult.resume_state``, set if the warm-up ended before the pool was ready.
COLD = "cold"


class ConditionResult(StrEnum):
    """The meaning of one response to a wait."""

    WAIT = "wait"
    MET = "met"
    IMPOSSIBLE = "impossible"


#: Number of poll intervals between two polls of the pool on which a Qarnot task is queued.
POOL_POLL_INTERVALS = 10
#: Number of poll intervals that a Qarnot task may stay queued on an ended pool, because the service may cancel it.
STRANDED_INTERVALS = 6

_PARSE = {"pool": states.parse_pool_state, "task": states.parse_task_state}
#: Aliases suggested for `target_states`, and the Qarnot state each stands for.
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

    ``accept_passed``: a target that the object must have passed between two polls counts as reached. It does not count
    if the object has ended since and the target was not an end.
    """

    kind: Kind
    targets: tuple[str, ...] = ()
    ready_slots: int | None = None
    accept_passed: bool = True

    def __post_init__(self) -> None:
        if not self.targets and self.ready_slots is None:
            raise QarnotInvalidSpecError(
                "There is nothing to wait for", remedy="Give target_states or ready_slots."
            )
        object.__setattr__(self, "targets", tuple(_target(self.kind, target) for target in self.targets))
        if self.ready_slots is not None and (self.kind != "pool" or self.ready_slots < 1):
            raise QarnotInvalidSpecError(
                f"ready_slots must be at least 1 and is for pools only, got {self.ready_slots!r} of a {self.kind}",
                field="ready_slots",
                remedy="Give a number of 1 or more.",
            )

    def evaluate(self, remote: Pool | Task, history: Iterable[str] = ()) -> ConditionResult:
        """Evaluate the response *remote*. *history* are the states that earlier polls of this wait have shown."""
        state = _PARSE[self.kind](remote.state)
        if self.ready_slots is not None:
            if not states.accepts_tasks(state):
                return ConditionResult.IMPOSSIBLE
            return ConditionResult.MET if _slots(remote) >= self.ready_slots else ConditionResult.WAIT  # type: ignore[arg-type]
        if state in self.targets or (self.accept_passed and self._has_passed(remote, state, history)):
            return ConditionResult.MET
        can_reach = any(_CAN_REACH[self.kind](state, target) for target in self.targets)
        return ConditionResult.WAIT if can_reach else ConditionResult.IMPOSSIBLE

    def _has_passed(self, remote: Pool | Task, state: str, history: Iterable[str]) -> bool:
        earlier = {*history, states.PoolState.SUBMITTED, remote.previous_state}
        passed = [
            target for target in self.targets if target in earlier or _HAS_PASSED[self.kind](state, target)
        ]
        return any(_still_counts(self.kind, target, state, earlier) for target in passed)

    @property
    def met_by_absence(self) -> bool:
        """Whether a deleted object (404) has reached the target."""
        return self.accept_passed and states.PoolState.PENDING_DELETE in self.targets

    def __str__(self) -> str:
        if self.ready_slots is not None:
            return f"{self.ready_slots} ready slot{'s' if self.ready_slots > 1 else ''}"
        return " or ".join(self.targets)

    def to_kwargs(self) -> dict[str, Any]:
        """Return a JSON form for trigger kwargs."""
        return {**asdict(self), "targets": list(self.targets)}

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> Condition:
        """Read the result of :meth:`to_kwargs`."""
        with parsing_stored_state("The condition of a trigger"):
            known = {name: kwargs[name] for name in cls.__dataclass_fields__ if name in kwargs}
            return cls(**{**known, "targets": tuple(known.get("targets", ()))})


def _target(kind: Kind, name: str) -> str:
    """Return the state *name* in Qarnot's spelling.

    :raises QarnotInvalidSpecError: there is no such state.
    """
    try:
        return str(_PARSE[kind](name))
    except QarnotUnknownStateError:
        import difflib

        valid = [str(state) for state in (states.PoolState if kind == "pool" else states.TaskState)]
        suggested = _STATE_ALIASES[kind].get(str(name).strip().lower())
        suggested = suggested or next(iter(difflib.get_close_matches(str(name), valid, n=1)), None)
        raise QarnotInvalidSpecError(
            f"target_states: {name!r} is no state of a {NOUNS[kind]}",
            field="target_states",
            remedy=(f"Did you mean {suggested!r}? " if suggested else "")
            + f"The states are {', '.join(valid)}.",
        ) from None


def _still_counts(kind: Kind, passed: str, state: str, earlier: Collection[str | None]) -> bool:
    """Return whether a target that was *passed* counts for an object that is now in *state*.

    A target before the end means that the object can be used. It does not count once the object has failed, was
    cancelled or is closing. A Qarnot task that succeeded has done its work, so every earlier target counts.
    """
    if states.is_ending(passed):
        return True
    if kind == "task" and states.TaskState.SUCCESS in (state, *earlier):
        return True
    return not states.is_ending(state)


def _slots(pool: Pool) -> int:
    """Return the number of slots that run.

    Qarnot does not document whether it counts slots or nodes. Once the whole pool runs, the larger number is returned.
    Before that, it is the smaller one.
    """
    whole = states.parse_pool_state(pool.state) is states.PoolState.FULLY_EXECUTING
    return pool.ready_slots * ((pool.slots_per_node or 1) if whole else 1)


POOL_READY = Condition(kind="pool", targets=(states.PoolState.FULLY_EXECUTING,))
POOL_CLOSED = Condition(
    kind="pool",
    targets=(states.PoolState.CLOSED, states.PoolState.FAILURE, states.PoolState.PENDING_DELETE),
)
TASK_ENDED = Condition(kind="task", targets=tuple(states.TASK_TERMINAL), accept_passed=False)
#: Ends that no abort causes. They count even if the wait has ended for another reason.
TASK_DONE = Condition(
    kind="task", targets=(states.TaskState.SUCCESS, states.TaskState.FAILURE), accept_passed=False
)
TASK_SUCCEEDED = Condition(kind="task", targets=(states.TaskState.SUCCESS,), accept_passed=False)


class Absence:
    """Decide whether an object is deleted, or requests for it are refused, given the error responses.

    A single 404 proves nothing, because a proxy or a lagging replica may have sent it. The object is deleted once the
    service itself has responded with 404 for two poll intervals (10 s at most) and no poll in between has found it.
    A refusal (403) and a rejected token (401) count in the same way.
    """

    __slots__ = ("_error", "_since", "_threshold")

    def __init__(self, interval: float) -> None:
        self._threshold = min(MAX_DOUBT, 2 * interval)
        self._since: float | None = None
        self._error: type[QarnotError] | None = None

    def record_found(self) -> None:
        """Record that a poll has found the object."""
        self._since = None

    def is_certain(self, error: QarnotError, now: float) -> bool:
        """Return whether *error*, raised at *now* (monotonic seconds), has lasted long enough to count."""
        if error.foreign and isinstance(error, QarnotNotFoundError):
            return False
        if self._since is None or self._error is not type(error):
            self._since, self._error = now, type(error)
        return now - self._since >= self._threshold


class EndReason(StrEnum):
    """The reason why a wait ended."""

    MET = "met"
    IMPOSSIBLE = "impossible"
    GONE = "gone"
    TIMEOUT = "timeout"
    ERROR = "error"


@dataclass(frozen=True, kw_only=True)
class WaitResult:
    """The result of a wait, with the state that the resuming process needs. That may be a new object."""

    ending: EndReason
    uuid: str
    state: str | None = None
    message: str = ""
    resume_state: dict[str, Any] = field(default_factory=dict)
    #: The object with all of its fields, if the poll that ended the wait has shown them. It is in no event.
    remote: Any = field(default=None, compare=False, repr=False)

    def to_event(self) -> dict[str, Any]:
        """Return the payload of a trigger event."""
        return {
            "status": str(self.ending),
            "uuid": self.uuid,
            "state": self.state,
            "message": self.message,
            "resume_state": self.resume_state,
        }

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> WaitResult:
        """Read the result of :meth:`to_event`.

        :raises QarnotProtocolError: *event* has another form.
        """
        with parsing_stored_state("The event of a wait"):
            return cls(
                ending=EndReason(event["status"]),
                uuid=event["uuid"],
                state=event.get("state"),
                message=shortened(event.get("message") or ""),
                resume_state=dict(event.get("resume_state") or {}),
            )


def result_if_met(
    condition: Condition, remote: Pool | Task, history: Iterable[str] = ()
) -> WaitResult | None:
    """Return the result of a wait that the response *remote* ends; None if the wait continues."""
    evaluated = condition.evaluate(remote, history)
    if evaluated is ConditionResult.WAIT:
        return None
    is_met = evaluated is ConditionResult.MET
    return WaitResult(
        ending=EndReason.MET if is_met else EndReason.IMPOSSIBLE,
        uuid=remote.uuid,
        state=remote.state,
        message="" if is_met else _why_not(condition, remote),
    )


def is_queued(task_state: str) -> bool:
    """Return whether a Qarnot task waits for nodes. Such a task never runs if its pool has ended."""
    return states.task_phase(task_state) is states.Phase.TRANSIENT


def stranded_result(uuid: str, state: str, why: str) -> WaitResult:
    """Return the result of a wait for a Qarnot task that stays queued. *why* names its pool and the pool's state."""
    message = f"Qarnot task {uuid} is {state}, and {why}, so it never runs"
    return WaitResult(ending=EndReason.IMPOSSIBLE, uuid=uuid, state=state, message=message)


def _why_not(condition: Condition, remote: Pool | Task) -> str:
    why = f"{CAPITALIZED_NOUNS[condition.kind]} {remote.uuid} is {remote.state} and can no longer reach {condition}"
    return f"{why} (remote errors: {remote.error_text})" if remote.error_text else why


def timeout_message(kind: Kind, uuid: str, history: Sequence[str], condition: Condition) -> str:
    """Return the message of a wait that has timed out."""
    seen = f"was still {history[-1]}" if history else "was not seen at all"
    return f"{CAPITALIZED_NOUNS[kind]} {uuid} {seen} when the time to wait for {condition} was over"
