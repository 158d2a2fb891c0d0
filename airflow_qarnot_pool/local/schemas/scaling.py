"""Read the settings for the size of a pool: elasticProperty and scaling (Qarnot API: qarnot-api.md 3.4, 3.5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_qarnot_pool.local.backend import scaling
from airflow_qarnot_pool.local.schemas import formats
from airflow_qarnot_pool.local.schemas.errors import ApiError
from airflow_qarnot_pool.local.schemas.fields import RequestFields, fold

ELASTIC_OFF: dict[str, Any] = {
    "isElastic": False,
    "minTotalSlots": 0,
    "maxTotalSlots": 1,
    "minIdleSlots": 0,
    "resizePeriod": 90,
    "rampResizeFactor": 1,
    "minIdleTimeSeconds": 0,
}


def read_elastic(value: Any, defaults: Mapping[str, Any] = ELASTIC_OFF) -> dict[str, Any] | None:
    """Return a complete elasticProperty block, or None if it is invalid."""
    try:
        fields = RequestFields(value, "pool", defaults)
    except ApiError:
        return None
    maximum, minimum, idle = (
        fields.integer(name, 0) or 0 for name in ("maxTotalSlots", "minTotalSlots", "minIdleSlots")
    )
    elastic = {
        "isElastic": fields.boolean("isElastic"),
        "minTotalSlots": minimum,
        "maxTotalSlots": maximum,
        "minIdleSlots": idle,
        "resizePeriod": fields.integer("resizePeriod"),
        "rampResizeFactor": fields.number("rampResizeFactor", 1, minimum=0, maximum=1),
        "minIdleTimeSeconds": fields.integer("minIdleTimeSeconds"),
    }
    return None if fields.bad or (elastic["isElastic"] and max(minimum, idle) > maximum) else elastic


def read_scaling(value: Any) -> tuple[list[scaling.Policy], dict[str, list[str]]]:
    """Read a scaling object into policies and problems.

    Problems are in the form of Qarnot's validation details: `{"policies[0]": ["The input was not valid."]}`.
    """
    problems: dict[str, list[str]] = {}
    policies: list[scaling.Policy] = []
    items = fold(value).get("policies")
    if not isinstance(items, list):
        return [], {"policies": ["The input was not valid."]}
    for position, item in enumerate(items):
        policy = _policy(item)
        if policy is None:
            problems[f"policies[{position}]"] = ["The input was not valid."]
        elif policy.name is not None and any(policy.name == other.name for other in policies):
            problems["policies"] = [f"Policy names must be unique: {policy.name}"]
        else:
            policies.append(policy)
    return policies, problems


def _policy(item: Any) -> scaling.Policy | None:
    if not isinstance(item, Mapping):
        return None
    fields = RequestFields(item, "pool")
    kind, name = fields.text("type"), fields.text("name")
    read = {"Fixed": _fixed, "ManagedTasksQueue": _queue}.get(kind or "")
    items = fields.items("enabledPeriods")
    periods = [period for period in map(_period, items) if period is not None]
    if read is None or len(periods) < len(items):
        return None
    rule, source = read(fields)
    if fields.bad or rule is None:
        return None
    source = {"type": kind, **source, "name": name, "enabledPeriods": [json for _, json in periods]}
    # A policy without periods is always enabled.
    return scaling.Policy(name, rule, tuple(p for p, _ in periods) or (scaling.Period(None),), source)


def _fixed(fields: RequestFields) -> tuple[scaling.ScalingRule | None, dict[str, Any]]:
    slots = fields.integer("slotsCount")
    return None if slots is None else scaling.ScalingRule(fixed=slots), {"slotsCount": slots}


def _queue(fields: RequestFields) -> tuple[scaling.ScalingRule | None, dict[str, Any]]:
    minimum, idle = fields.integer("minTotalSlots", 0) or 0, fields.integer("minIdleSlots", 0) or 0
    maximum, seconds = fields.integer("maxTotalSlots"), fields.integer("minIdleTimeSeconds", 90) or 0
    factor = fields.number("scalingFactor", 0.2, minimum=0, maximum=1)
    source = {
        "minTotalSlots": minimum,
        "maxTotalSlots": maximum,
        "minIdleSlots": idle,
        "minIdleTimeSeconds": seconds,
        "scalingFactor": factor,
    }
    if maximum is None or maximum < max(minimum, idle) or factor <= 0:
        return None, source
    rule = scaling.ScalingRule(
        min_total=max(minimum, idle),
        max_total=maximum,
        min_idle=idle,
        idle_seconds=float(seconds),
        step=scaling.share(maximum, factor),
    )
    return rule, source


def _period(item: Any) -> tuple[scaling.Period, dict[str, Any]] | None:
    if not isinstance(item, Mapping):
        return None
    fields = RequestFields(item, "pool")
    kind, name = fields.text("type"), fields.text("name")
    if kind == "Always":
        return scaling.Period(name), {"type": kind, "name": name}
    return _weekly(fields, name) if kind == "Weekly" else None


def _weekly(fields: RequestFields, name: str | None) -> tuple[scaling.Period, dict[str, Any]] | None:
    days = [_day(day) for day in fields.items("days", 7)]
    try:
        start, end = (_time_of_day(fields.raw(key)) for key in ("startTimeUtc", "endTimeUtc"))
    except ValueError:
        return None
    numbers = sorted({day for day in days if day is not None})
    if not numbers or None in days:
        return None
    source = {
        "type": "Weekly",
        "days": [scaling.DAY_NAMES[day] for day in days if day is not None],
        "startTimeUtc": fields.raw("startTimeUtc"),
        "endTimeUtc": fields.raw("endTimeUtc"),
        "name": name,
    }
    return scaling.Period(name, tuple(numbers), start, end), source


def _day(value: Any) -> int | None:
    """Return the number of a day (0 = Monday) from its name in any case or .NET's DayOfWeek (0 = Sunday)."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 6:
        return (value - 1) % 7
    if isinstance(value, str) and value.lower() in scaling.DAY_NAMES:
        return scaling.DAY_NAMES.index(value.lower())
    return None


def _time_of_day(value: Any) -> float:
    seconds = formats.parse_span(value)
    if not 0 <= seconds < scaling.DAY:
        raise ValueError(value)
    return seconds
