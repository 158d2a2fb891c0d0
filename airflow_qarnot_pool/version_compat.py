"""Names that moved between Airflow 3.1 and 3.3, taken from wherever the installed version has them."""

from __future__ import annotations

import os
import sys
from typing import Any

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

#: The ``next_method`` of a deferred task whose trigger Airflow has given up.
TRIGGER_FAIL_REPR = "__fail__"
AIRFLOW_VERSION = tuple(int(part) for part in airflow_version.split(".")[:2])
#: From 3.3 the triggerer calls ``BaseTrigger.on_kill`` when a user marks or clears a deferred task.
TRIGGERS_HAVE_ON_KILL = AIRFLOW_VERSION >= (3, 3)

#: The process in which :func:`stats` has looked.
_looked_in = 0


def stats() -> Any:
    """Airflow's metrics: an object with ``incr``, ``gauge`` and ``timing``.

    From 3.2 on each of Airflow's distributions has stats of its own, and only the one that a process needs itself
    is set up there: a triggerer's is not the one that tasks, and providers, use. So this sets it up where nobody has.
    """
    global _looked_in
    try:
        from airflow.sdk.observability.stats import Stats
    except ImportError:  # 3.1, where it sets itself up
        from airflow.stats import Stats

        return Stats
    if _looked_in != os.getpid():
        _looked_in = os.getpid()
        _set_up(Stats)
    return Stats


def _set_up(found: Any) -> None:
    from airflow.configuration import conf
    from airflow.sdk.observability.metrics.stats_utils import get_stats_factory

    module = sys.modules[found.__module__]
    if hasattr(module, "_factory"):
        if module._factory is None:
            names = conf.getboolean("metrics", "legacy_names_on", fallback=True)
            found.initialize(factory=get_stats_factory(), export_legacy_names=names)
    elif getattr(type.__getattribute__(found, "factory"), "__name__", "NoStatsLogger") == "NoStatsLogger":
        # 3.2, where a first metric before anybody has set it up makes it silent for good.
        factory: Any = get_stats_factory
        found.initialize(factory=factory(found))


def is_supervisor_channel_free() -> bool:
    """Return whether this process has no request to Airflow under way, so that a signal handler can send one.

    From 3.2 on a lock guards the channel to the supervisor. 3.1 has none, and there a second request would take the
    response to the first: then this returns False. Without it a signal handler could wait for a lock of the code it
    interrupts.
    """
    runner = sys.modules.get("airflow.sdk.execution_time.task_runner")
    channel = getattr(runner, "SUPERVISOR_COMMS", None)
    if channel is None or not hasattr(channel, "socket"):
        return True  # dag.test(), where the supervisor is in this process
    lock = getattr(channel, "_thread_lock", None)
    if lock is None or not lock.acquire(blocking=False):
        return False
    lock.release()
    return True


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
    "is_supervisor_channel_free",
    "stats",
]
