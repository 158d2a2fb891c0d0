"""The life of a pool and of a task: which states there are, what they mean, where they lead.

Pure tables and functions. States are matched whatever their case; one that is not
known raises :class:`QarnotUnknownStateError` and is never taken for success.
"""

from __future__ import annotations

from enum import Enum, StrEnum

from airflow_qarnot_pool.api.errors import QarnotUnknownStateError


class PoolState(StrEnum):
    """States of a pool. (``UnSubmitted`` exists only inside some SDKs, never on the wire.)"""

    SUBMITTED = "Submitted"
    PARTIALLY_DISPATCHED = "PartiallyDispatched"
    FULLY_DISPATCHED = "FullyDispatched"
    PARTIALLY_EXECUTING = "PartiallyExecuting"
    FULLY_EXECUTING = "FullyExecuting"
    CLOSING = "Closing"
    CLOSED = "Closed"
    FAILURE = "Failure"
    PENDING_DELETE = "PendingDelete"


class TaskState(StrEnum):
    """States of a task. ``DownloadingResults`` is the old name of ``UploadingResults``."""

    SUBMITTED = "Submitted"
    PARTIALLY_DISPATCHED = "PartiallyDispatched"
    FULLY_DISPATCHED = "FullyDispatched"
    PARTIALLY_EXECUTING = "PartiallyExecuting"
    FULLY_EXECUTING = "FullyExecuting"
    UPLOADING_RESULTS = "UploadingResults"
    DOWNLOADING_RESULTS = "DownloadingResults"
    PENDING_CANCEL = "PendingCancel"
    CANCELLED = "Cancelled"
    SUCCESS = "Success"
    FAILURE = "Failure"
    PENDING_DELETE = "PendingDelete"


class Phase(Enum):
    """Where in its life an object is."""

    TRANSIENT = "transient"  #: accepted, nothing runs yet
    LIVE = "live"  #: something runs
    ENDING = "ending"  #: told to end (Closing, PendingCancel, PendingDelete); may still run and cost
    TERMINAL = "terminal"  #: over; nothing runs any more


POOL_TRANSIENT = frozenset(
    {PoolState.SUBMITTED, PoolState.PARTIALLY_DISPATCHED, PoolState.FULLY_DISPATCHED},
)
POOL_LIVE = frozenset({PoolState.PARTIALLY_EXECUTING, PoolState.FULLY_EXECUTING})
POOL_READY = frozenset({PoolState.FULLY_EXECUTING})
POOL_ENDING = frozenset({PoolState.CLOSING, PoolState.PENDING_DELETE})
POOL_TERMINAL = frozenset({PoolState.CLOSED, PoolState.FAILURE})
#: A pool takes tasks as soon as it is accepted: they queue until a node is up.
POOL_ACCEPTS_TASKS = POOL_TRANSIENT | POOL_LIVE

TASK_TRANSIENT = frozenset(
    {TaskState.SUBMITTED, TaskState.PARTIALLY_DISPATCHED, TaskState.FULLY_DISPATCHED},
)
TASK_ENDING = frozenset({TaskState.PENDING_CANCEL, TaskState.PENDING_DELETE})
#: A task in PendingCancel is still running as far as anybody who waits is concerned.
TASK_RUNNING = frozenset(
    {
        TaskState.PARTIALLY_EXECUTING,
        TaskState.FULLY_EXECUTING,
        TaskState.UPLOADING_RESULTS,
        TaskState.DOWNLOADING_RESULTS,
        TaskState.PENDING_CANCEL,
    }
)
TASK_TERMINAL = frozenset({TaskState.SUCCESS, TaskState.FAILURE, TaskState.CANCELLED})

_POOL_PHASES = {
    **dict.fromkeys(POOL_TRANSIENT, Phase.TRANSIENT),
    **dict.fromkeys(POOL_LIVE, Phase.LIVE),
    **dict.fromkeys(POOL_ENDING, Phase.ENDING),
    **dict.fromkeys(POOL_TERMINAL, Phase.TERMINAL),
}
_TASK_PHASES = {
    **dict.fromkeys(TASK_TRANSIENT, Phase.TRANSIENT),
    **dict.fromkeys(TASK_RUNNING, Phase.LIVE),
    **dict.fromkeys(TASK_ENDING, Phase.ENDING),
    **dict.fromkeys(TASK_TERMINAL, Phase.TERMINAL),
}
_POOL_BY_NAME = {state.lower(): state for state in PoolState}
_TASK_BY_NAME = {state.lower(): state for state in TaskState}

# How far along a state is. Executing states share a rank: elastic pools, preempted instances and instances
# that finish move an object both ways between PartiallyExecuting and FullyExecuting. So do uploading and
# cancelling: a cancelled task may still upload what it has, and a task may be cancelled while it uploads.
_EXECUTING, _FINISHING, _TERMINAL, _DELETED = 3, 4, 5, 6
_RANK = {
    "Submitted": 0,
    "PartiallyDispatched": 1,
    "FullyDispatched": 2,
    "PartiallyExecuting": _EXECUTING,
    "FullyExecuting": _EXECUTING,
}
_POOL_RANK: dict[PoolState, int] = {
    **{PoolState(name): rank for name, rank in _RANK.items()},
    PoolState.CLOSING: _FINISHING,
    PoolState.CLOSED: _TERMINAL,
    PoolState.FAILURE: _TERMINAL,
    PoolState.PENDING_DELETE: _DELETED,
}
_TASK_RANK: dict[TaskState, int] = {
    **{TaskState(name): rank for name, rank in _RANK.items()},
    TaskState.UPLOADING_RESULTS: _FINISHING,
    TaskState.DOWNLOADING_RESULTS: _FINISHING,
    TaskState.PENDING_CANCEL: _FINISHING,
    TaskState.SUCCESS: _TERMINAL,
    TaskState.FAILURE: _TERMINAL,
    TaskState.CANCELLED: _TERMINAL,
    TaskState.PENDING_DELETE: _DELETED,
}
# Sequences in which being at one state means that the ones before it are behind.
_POOL_ORDER: tuple[tuple[str, ...], ...] = (tuple(_RANK), ("Closing", "Closed"))
_TASK_ORDER: tuple[tuple[str, ...], ...] = (
    (*_RANK, "UploadingResults", "Success"),
    (*_RANK, "DownloadingResults", "Success"),
    ("PendingCancel", "Cancelled"),
)


def parse_pool_state(state: str) -> PoolState:
    """The pool state of that name, whatever its case. Raises QarnotUnknownStateError."""
    known = _POOL_BY_NAME.get(str(state).lower())
    if known is None:
        raise QarnotUnknownStateError(state=str(state), kind="pool")
    return known


def parse_task_state(state: str) -> TaskState:
    """The task state of that name, whatever its case. Raises QarnotUnknownStateError."""
    known = _TASK_BY_NAME.get(str(state).lower())
    if known is None:
        raise QarnotUnknownStateError(state=str(state), kind="task")
    return known


def _parse_any(state: str) -> PoolState | TaskState:
    """A state of either machine: where both have the name it means the same in both."""
    name = str(state).lower()
    known = _POOL_BY_NAME.get(name) or _TASK_BY_NAME.get(name)
    if known is None:
        raise QarnotUnknownStateError(state=str(state))
    return known


def pool_phase(state: str) -> Phase:
    """Where in its life a pool in this state is. Raises QarnotUnknownStateError."""
    return _POOL_PHASES[parse_pool_state(state)]


def task_phase(state: str) -> Phase:
    """Where in its life a task in this state is; PendingCancel is ENDING, which is not over.

    Raises QarnotUnknownStateError.
    """
    return _TASK_PHASES[parse_task_state(state)]


def is_terminal(state: str) -> bool:
    """Whether a pool or task in this state is over. Raises QarnotUnknownStateError."""
    return _parse_any(state) in POOL_TERMINAL | TASK_TERMINAL


def is_ending(state: str) -> bool:
    """Whether a pool or task in this state is over or told to end. Raises QarnotUnknownStateError."""
    return is_terminal(state) or _parse_any(state) in POOL_ENDING | TASK_ENDING


def accepts_tasks(state: str) -> bool:
    """Whether a pool in this state takes tasks (Submitted to FullyExecuting). Raises QarnotUnknownStateError."""
    return parse_pool_state(state) in POOL_ACCEPTS_TASKS


def pool_can_reach(current: str, target: str) -> bool:
    """Whether a pool now in ``current`` is, or may still come to be, in ``target``. States may be skipped."""
    now, then = parse_pool_state(current), parse_pool_state(target)
    return now == then or _leads_to(_POOL_RANK[now], _POOL_RANK[then])


def task_can_reach(current: str, target: str) -> bool:
    """Whether a task now in ``current`` is, or may still come to be, in ``target``. States may be skipped."""
    now, then = parse_task_state(current), parse_task_state(target)
    return now == then or _leads_to(_TASK_RANK[now], _TASK_RANK[then])


def pool_has_passed(current: str, target: str) -> bool:
    """Whether a pool now in ``current`` is beyond ``target``, so that waiting for it is over.

    Between two looks a pool may run through several states. Only what must have been is claimed: a pool that
    is Closing need never have executed, and of the two executing states the full one is the further.
    """
    return _is_beyond(parse_pool_state(current), parse_pool_state(target), _POOL_ORDER)


def task_has_passed(current: str, target: str) -> bool:
    """Whether a task now in ``current`` is beyond ``target``; as :func:`pool_has_passed`."""
    return _is_beyond(parse_task_state(current), parse_task_state(target), _TASK_ORDER)


def _leads_to(now: int, then: int) -> bool:
    if now == _TERMINAL:
        return then > _TERMINAL  # only deletion follows an end
    return then > now or now == then in (_EXECUTING, _FINISHING)


def _is_beyond(now: str, then: str, orders: tuple[tuple[str, ...], ...]) -> bool:
    return any(now in order and then in order and order.index(then) < order.index(now) for order in orders)
