"""Validated options of the ``[qarnot]`` section of Airflow's configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.api.fields import Refusal, boolean, duration, number

#: Bounds of ``poll_interval`` in seconds, because a shorter one floods the service and a longer one ends no wait.
MIN_POLL_INTERVAL, MAX_POLL_INTERVAL = 0.01, 86400
#: Default bounds of the interval between two polls, in seconds. With the lower one, the end of a task younger than a
#: minute is seen after half a second on average. A longer upper one would save little: four requests a minute.
SHORTEST, LONGEST = 0.75, 15.0
#: Default seconds for which an operator waits on its worker before it defers. It is about the cost of a deferral: the
#: minimum age of a trigger, a second process, and the time until the scheduler starts it.
DEFER_AFTER = 15.0


def get_option(name: str, convert: Callable[[Any], Any], default: Any) -> Any:
    """Return the converted option, or *default* if it is not set.

    :raises QarnotInvalidSpecError: names the option and its environment variable.
    """
    from airflow.configuration import conf

    value = conf.get("qarnot", name, fallback=None)
    if value is None or not value.strip():
        return default
    try:
        return convert(value)
    except Refusal as refusal:
        raise QarnotInvalidSpecError(
            f"[qarnot] {name} in the configuration (or AIRFLOW__QARNOT__{name.upper()}) {refusal.problem}",
            field=name,
            remedy=refusal.remedy,
        ) from None


def poll_seconds(value: Any) -> float:
    """Convert a polling interval to seconds."""
    return float(number(MIN_POLL_INTERVAL, MAX_POLL_INTERVAL)(duration(value).total_seconds()))


def default_poll_interval() -> float:
    """Return ``[qarnot] poll_interval`` in seconds, which connections without one use.

    :raises QarnotInvalidSpecError: it is not a duration within the bounds.
    """
    return float(get_option("poll_interval", poll_seconds, LONGEST))


def min_poll_interval() -> float:
    """Return ``[qarnot] min_poll_interval``: seconds between polls of an object that has changed lately.

    :raises QarnotInvalidSpecError: it is not a duration within the bounds.
    """
    return float(get_option("min_poll_interval", poll_seconds, SHORTEST))


def default_defer_after() -> float:
    """Return ``[qarnot] defer_after`` in seconds.

    :raises QarnotInvalidSpecError: it is not a duration.
    """
    return float(get_option("defer_after", lambda value: duration(value).total_seconds(), DEFER_AFTER))


def sends_parent_run() -> bool:
    """Return ``[qarnot] openlineage_parent``: whether nodes get the ids of the OpenLineage runs.

    :raises QarnotInvalidSpecError: it is not true or false.
    """
    return bool(get_option("openlineage_parent", boolean, False))


def check_wait_options() -> None:
    """Refuse invalid options of waits when the DAG is parsed."""
    default_poll_interval()
    min_poll_interval()
    default_defer_after()
