"""Names that moved between Airflow 3.1 and 3.3, taken from wherever the installed version has them."""

from __future__ import annotations

from airflow import __version__ as airflow_version

try:
    from airflow.sdk.exceptions import (
        AirflowException,
        AirflowFailException,
        AirflowNotFoundException,
        AirflowSensorTimeout,
        AirflowSkipException,
        TaskDeferralError,
        TaskDeferralTimeout,
        TaskDeferred,
    )
except ImportError:  # 3.1, where airflow.sdk.exceptions lacks most of them
    from airflow.exceptions import (  # type: ignore[no-redef]
        AirflowException,
        AirflowFailException,
        AirflowNotFoundException,
        AirflowSensorTimeout,
        AirflowSkipException,
        TaskDeferralError,
        TaskDeferralTimeout,
        TaskDeferred,
    )

AIRFLOW_VERSION = tuple(int(part) for part in airflow_version.split(".")[:2])
#: From 3.3 the triggerer calls ``BaseTrigger.on_kill`` when a user marks or clears a deferred task.
TRIGGERS_HAVE_ON_KILL = AIRFLOW_VERSION >= (3, 3)

__all__ = [
    "AIRFLOW_VERSION",
    "TRIGGERS_HAVE_ON_KILL",
    "AirflowException",
    "AirflowFailException",
    "AirflowNotFoundException",
    "AirflowSensorTimeout",
    "AirflowSkipException",
    "TaskDeferralError",
    "TaskDeferralTimeout",
    "TaskDeferred",
]
