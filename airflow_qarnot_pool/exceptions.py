"""Everything this provider raises, for ``except`` clauses and Airflow's ``retry_policy``.

Errors of the API itself come from :mod:`airflow_qarnot_pool.api.errors`; all derive from :class:`QarnotError`.
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
    """The Qarnot task ended in Failure: at least one instance failed, after its remote retries."""

    summary = "The Qarnot task failed"


class QarnotNodeLostError(QarnotTaskFailedError):
    """The Qarnot task failed because nodes went away under its instances, not because of its command."""

    summary = "The Qarnot task lost its nodes"


class QarnotTaskCancelledError(QarnotError):
    """The Qarnot task was cancelled, and not by this Airflow task."""

    summary = "The Qarnot task was cancelled by somebody else"


class QarnotPoolEndedError(QarnotError):
    """The pool has ended, or is ending, so what was waited for cannot come any more."""

    summary = "The pool has ended"


class QarnotStateUnreachableError(QarnotError):
    """A sensor's target can no longer be reached."""

    summary = "The state that is waited for can no longer be reached"


class QarnotWaitTimeoutError(QarnotError):
    """``wait_timeout`` (or ``execution_timeout``) passed before the wait was over."""

    summary = "The wait ran out of time"


class QarnotKilledError(QarnotError):
    """Airflow ended the task while it ran; what it had started on Qarnot was ended, too."""

    summary = "The Airflow task was told to stop"


class QarnotCostLimitError(QarnotError, AirflowFailException):
    """A limit on what a pool or DAG run may cost is reached, or what is to be created cannot be paid.

    Never retried, as a retry would spend the money again.
    """

    summary = "The cost limit is reached"
    remedy = "Raise the limit, or look why it costs so much, and clear the task."


class QarnotSpecMismatchError(QarnotError):
    """A shared object exists with another spec; the message names the fields that differ."""

    summary = "What exists was made from another spec"


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
