"""The states of pools and Qarnot tasks, their phases and their order.

Pure tables and functions. States match in any case. An unknown state raises :class:`QarnotUnknownStateError` and never
counts as success.
"""

from __future__ import annotations

from enum import Enum, StrEnum

from airflow_qarnot_pool.api.errors import QarnotUnknownStateError


class PoolState(StrEnum):
    """States of a pool. ``UnSubmitted`` exists only inside some SDKs, and is never in a response."""

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
    """States of a Qarnot task. ``DownloadingResults`` is the old name of ``UploadingResults``."""

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
    """The phase in the life of an object."""

    TRANSIENT = "transient"  #: accepted; nothing runs yet
    LIVE = "live"  #: something runs
    ENDING = "ending"  #: ends soon (Closing, PendingCancel, PendingDelete); may still run and cost
    TERMINAL = "terminal"  #: finished; nothing runs any more


POOL_TRANSIENT = frozenset(
    {PoolState.SUBMITTED, PoolState.PARTIALLY_DISPATCHED, PoolState.FULLY_DISPATCHED},
)
POOL_LIVE = frozenset({PoolState.PARTIALLY_EXECUTING, PoolState.FULLY_EXECUTING})
POOL_READY = frozenset({PoolState.FULLY_EXECUTING})
POOL_ENDING = frozenset({PoolState.CLOSING, PoolState.PENDING_DELETE})
POOL_TERMINAL = frozenset({PoolState.CLOSED, PoolState.FAILURE})
#: A pool accepts tasks as soon as it is submitted. They are queued until a node is up.
POOL_ACCEPTS_TASKS = POOL_TRANSIENT | POOL_LIVE

TASK_TRANSIENT = frozenset(
    {TaskState.SUBMITTED, TaskState.PARTIALLY_DISPATCHED, TaskState.FULLY_DISPATCHED},
)
TASK_ENDING = frozenset({TaskState.PENDING_CANCEL, TaskState.PENDING_DELETE})
#: Includes PendingCancel, because a wait continues until such a task has ended.
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

# The order of the states. The executing states share a rank, because elastic pools, preempted instances and finishing
# instances move an object both ways between PartiallyExecuting and FullyExecuting. Uploading and cancelling share one,
# too: a cancelled task may still upload its results, and a task may be cancelled while it uploads.
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
# Sequences in which a state implies that the earlier ones have passed.
_POOL_ORDER: tuple[tuple[str, ...], ...] = (tuple(_RANK), ("Closing", "Closed"))
_TASK_ORDER: tuple[tuple[str, ...], ...] = (
    (*_RANK, "UploadingResults", "Success"),
    (*_RANK, "DownloadingResults", "Success"),
    ("PendingCancel", "Cancelled"),
)


def parse_pool_state(state: str) -> PoolState:
    """Return the pool state of that name, in any case. Raises QarnotUnknownStateError."""
    parsed = _POOL_BY_NAME.get(str(state).lower())
    if parsed is None:
        raise QarnotUnknownStateError(state=str(state), kind="pool")
    return parsed


def parse_task_state(state: str) -> TaskState:
    """Return the task state of that name, in any case. Raises QarnotUnknownStateError."""
    parsed = _TASK_BY_NAME.get(str(state).lower())
    if parsed is None:
        raise QarnotUnknownStateError(state=str(state), kind="task")
    return parsed


def _parse_any(state: str) -> PoolState | TaskState:
    """Return the state of a pool or task. A name that both have means the same in both."""
    name = str(state).lower()
    parsed = _POOL_BY_NAME.get(name) or _TASK_BY_NAME.get(name)
    if parsed is None:
        raise QarnotUnknownStateError(state=str(state))
    return parsed


def pool_phase(state: str) -> Phase:
    """Return the phase of a pool in this state. Raises QarnotUnknownStateError."""
    return _POOL_PHASES[parse_pool_state(state)]


def task_phase(state: str) -> Phase:
    """Return the phase of a task in this state. PendingCancel is ENDING. Raises QarnotUnknownStateError."""
    return _TASK_PHASES[parse_task_state(state)]


def is_terminal(state: str) -> bool:
    """Return whether a pool or task in this state has finished. Raises QarnotUnknownStateError."""
    return _parse_any(state) in POOL_TERMINAL | TASK_TERMINAL


def is_ending(state: str) -> bool:
    """Return whether a pool or task in this state has finished or is ending. Raises QarnotUnknownStateError."""
    return is_terminal(state) or _parse_any(state) in POOL_ENDING | TASK_ENDING


def accepts_tasks(state: str) -> bool:
    """Return whether a pool in this state accepts tasks, from Submitted to FullyExecuting.

    :raises QarnotUnknownStateError: the state is unknown.
    """
    return parse_pool_state(state) in POOL_ACCEPTS_TASKS


def pool_can_reach(current: str, target: str) -> bool:
    """Return whether a pool in ``current`` is or can still get into ``target``. States may be skipped."""
    source, goal = parse_pool_state(current), parse_pool_state(target)
    return source == goal or _leads_to(_POOL_RANK[source], _POOL_RANK[goal])


def task_can_reach(current: str, target: str) -> bool:
    """Return whether a task in ``current`` is or can still get into ``target``. States may be skipped."""
    source, goal = parse_task_state(current), parse_task_state(target)
    return source == goal or _leads_to(_TASK_RANK[source], _TASK_RANK[goal])


def pool_has_passed(current: str, target: str) -> bool:
    """Return whether a pool in ``current`` must have passed ``target``, which ends a wait for it.

    A pool may pass several states between two polls. Only states that it must have had count: a closing pool need not
    have executed. Of the two executing states, the full one is the later.
    """
    return _is_beyond(parse_pool_state(current), parse_pool_state(target), _POOL_ORDER)


def task_has_passed(current: str, target: str) -> bool:
    """Return whether a task in ``current`` must have passed ``target``; see :func:`pool_has_passed`."""
    return _is_beyond(parse_task_state(current), parse_task_state(target), _TASK_ORDER)


def _leads_to(rank: int, goal: int) -> bool:
    if rank == _TERMINAL:
        return goal > _TERMINAL  # Only deletion follows an end.
    return goal > rank or rank == goal in (_EXECUTING, _FINISHING)


def _is_beyond(state: str, goal: str, orders: tuple[tuple[str, ...], ...]) -> bool:
    return any(
        state in order and goal in order and order.index(goal) < order.index(state) for order in orders
    )
