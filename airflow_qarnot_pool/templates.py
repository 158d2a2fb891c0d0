"""Which parameters are known when a DAG is parsed, and which only when the task runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def is_templated(value: Any) -> bool:
    """Whether *value* holds a Jinja template, an XCom reference or another value that comes at run time."""
    if isinstance(value, str):
        return "{{" in value or "{%" in value
    if isinstance(value, Mapping):
        return any(is_templated(one) for pair in value.items() for one in pair)
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(is_templated(one) for one in value)
    # XComArg, mapped arguments and the like are resolved by Airflow before the task runs.
    return hasattr(value, "resolve") or hasattr(value, "iter_references")


def known_at_parse(values: Mapping[str, Any]) -> dict[str, Any]:
    """The part of *values* that is known already."""
    return {name: value for name, value in values.items() if not is_templated(value)}
