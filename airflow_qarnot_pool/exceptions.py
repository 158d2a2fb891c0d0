"""All exceptions of this provider, for ``except`` clauses and Airflow's ``retry_policy``.

Those of the API are defined in :mod:`airflow_qarnot_pool.api.errors`. All derive from :class:`QarnotError`.
"""

from __future__ import annotations

from airflow_qarnot_pool.api.errors import (
    QarnotBucketNotFoundError,
    QarnotCredentialsError,
    QarnotCreditsError,
    QarnotDeletedError,
    QarnotError,
    QarnotInvalidSpecError,
    QarnotNameTakenError,
    QarnotNotFoundError,
    QarnotProtocolError,
    QarnotQuotaError,
    QarnotRefusedError,
    QarnotUnavailableError,
    QarnotUnknownStateError,
)
from airflow_qarnot_pool.version_compat import AirflowFailException


class QarnotTaskFailedError(QarnotError):
    """The Qarnot task finished in Failure: at least one instance failed, after its remote retries."""

    summary = "The Qarnot task failed"


class QarnotNodeLostError(QarnotTaskFailedError):
    """The Qarnot task failed because it lost nodes, and not because of its command."""

    summary = "The Qarnot task lost its nodes"


class QarnotTaskCancelledError(QarnotError):
    """The Qarnot task was cancelled, but not by this Airflow task."""

    summary = "The Qarnot task was cancelled by another client"


class QarnotPoolEndedError(QarnotError):
    """The pool has ended or is ending, so the wait cannot succeed."""

    summary = "The pool has ended"


class QarnotStateUnreachableError(QarnotError):
    """The target state of a sensor can no longer be reached."""

    summary = "The target state can no longer be reached"


class QarnotWaitTimeoutError(QarnotError):
    """``wait_timeout`` (or ``execution_timeout``) passed before the wait ended."""

    summary = "The wait timed out"


class QarnotKilledError(QarnotError):
    """Airflow stopped the running task. Its objects on Qarnot were ended, too."""

    summary = "The Airflow task was stopped"


class QarnotCostLimitError(QarnotError, AirflowFailException):
    """A cost limit of a pool or DAG run is reached, or the credits of the account are insufficient.

    Airflow does not retry it, because a retry would spend the money again.
    """

    summary = "The cost limit is reached"
    remedy = "Raise the limit or reduce the cost, and clear the task."


class QarnotSpecMismatchError(QarnotError):
    """Another run uses a shared object with another specification. The message names the fields that differ."""

    summary = "The existing object has another specification"


__all__ = [
    "QarnotBucketNotFoundError",
    "QarnotCostLimitError",
    "QarnotCredentialsError",
    "QarnotCreditsError",
    "QarnotDeletedError",
    "QarnotError",
    "QarnotInvalidSpecError",
    "QarnotKilledError",
    "QarnotNameTakenError",
    "QarnotNodeLostError",
    "QarnotNotFoundError",
    "QarnotPoolEndedError",
    "QarnotProtocolError",
    "QarnotQuotaError",
    "QarnotRefusedError",
    "QarnotSpecMismatchError",
    "QarnotStateUnreachableError",
    "QarnotTaskCancelledError",
    "QarnotTaskFailedError",
    "QarnotUnavailableError",
    "QarnotUnknownStateError",
    "QarnotWaitTimeoutError",
]
