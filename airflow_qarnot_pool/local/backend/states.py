"""States, and the pure rules that decide them (Qarnot API: qarnot-api.md section 5)."""

from __future__ import annotations

SUBMITTED = "Submitted"
PARTIALLY_DISPATCHED = "PartiallyDispatched"
FULLY_DISPATCHED = "FullyDispatched"
PARTIALLY_EXECUTING = "PartiallyExecuting"
FULLY_EXECUTING = "FullyExecuting"
UPLOADING_RESULTS = "UploadingResults"
PENDING_CANCEL = "PendingCancel"
CANCELLED = "Cancelled"
SUCCESS = "Success"
FAILURE = "Failure"
CLOSING = "Closing"
CLOSED = "Closed"
PENDING_DELETE = "PendingDelete"

EXECUTING = frozenset({PARTIALLY_EXECUTING, FULLY_EXECUTING})
QUEUED = frozenset({SUBMITTED, PARTIALLY_DISPATCHED, FULLY_DISPATCHED})
POOL_OPEN = frozenset({SUBMITTED, PARTIALLY_DISPATCHED, FULLY_DISPATCHED, *EXECUTING})
POOL_TERMINAL = frozenset({CLOSED, FAILURE})
TASK_RUNNING = frozenset({*POOL_OPEN, UPLOADING_RESULTS})
TASK_TERMINAL = frozenset({SUCCESS, FAILURE, CANCELLED})


def pool_state(*, wanted: int, placed: int, up: int, settled: bool) -> str:
    """Return the state of an open pool.

    :param wanted: number of nodes that it should have.
    :param placed: number of its nodes, booting or up.
    :param up: number of nodes that take tasks.
    :param settled: whether it has executed before, as it never returns to a dispatch state. Also set after the
        placement delay if it needs no node, because a pool with all of its zero nodes is FullyExecuting.
    """
    if up == 0 and not settled:
        if placed == 0:
            return SUBMITTED
        return PARTIALLY_DISPATCHED if placed < wanted else FULLY_DISPATCHED
    return FULLY_EXECUTING if up >= wanted else PARTIALLY_EXECUTING


def task_state(*, waiting: int, placed: int, running: int, uploading: int, executed: bool) -> str | None:
    """Return the state of an uncancelled task from its instances in each phase, or None if all have finished.

    :param executed: whether an instance has run before, as the task never returns to a dispatch state.
    """
    if waiting + placed + running == 0:
        return UPLOADING_RESULTS if uploading else None
    if running == 0 and uploading == 0 and not executed:
        if placed == 0:
            return SUBMITTED
        return PARTIALLY_DISPATCHED if waiting else FULLY_DISPATCHED
    return PARTIALLY_EXECUTING if waiting + placed else FULLY_EXECUTING


def may_retry(*, per_instance: int | None, total: int | None, attempts: int, retried: int) -> bool:
    """Return whether a failed instance may run again. Null or 0 is no retry; of two limits the stricter one counts.

    :param attempts: number of attempts of this instance.
    :param retried: number of retries of the whole task.
    """
    if not per_instance and not total:
        return False
    if per_instance is not None and attempts > per_instance:
        return False
    return total is None or retried < total


def final_state(*, cancelled: bool, failed: int) -> str:
    """Return the final state of a task without unfinished instances."""
    if cancelled:
        return CANCELLED
    return FAILURE if failed else SUCCESS
