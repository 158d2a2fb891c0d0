"""Which parameters are known when a DAG is parsed, which only when the task runs, and which nobody may see."""

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


#: Stands for text that comes at run time.
PLACEHOLDER = "known-at-run-time"
#: Stand-ins for fields that others need: only whether they are given is known when the DAG is parsed.
_STAND_INS = {
    "resultbucket": PLACEHOLDER,
    "snapshotbucket": PLACEHOLDER,
    "schedulingtype": "Reserved",
    "job": "00000000-0000-0000-0000-000000000000",
    "jobuuid": "00000000-0000-0000-0000-000000000000",
}


def known_at_parse_time(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of *values* that is known already, with stand-ins for what the rest of it needs."""
    from airflow_qarnot_pool.api.fields import normalise

    known = {}
    for name, value in values.items():
        if not is_templated(value):
            known[name] = value
        elif isinstance(value, (list, tuple)) and (items := [one for one in value if not is_templated(one)]):
            known[name] = items
        elif stand_in := _STAND_INS.get(normalise(str(name))):
            known[name] = stand_in
    return known


class Redacted:
    """A secret that stands in a parameter as it is: the task gets it, the serialized DAG only shows that it is one.

    Airflow calls ``resolve`` where it renders templates, and ``serialize`` (or ``str``) where it stores the DAG.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def resolve(self, context: Any = None) -> str:
        """The secret."""
        return self._value

    def serialize(self) -> str:
        """What may be stored and shown."""
        return "***"

    __str__ = __repr__ = serialize


def hide_secrets(value: Any) -> Any:
    """*value* with the secret constants in it hidden from the serialized DAG. Templates hide themselves."""
    if isinstance(value, dict):
        return {name: _hidden(name, one) for name, one in value.items()}
    if isinstance(value, (list, tuple)) and any(isinstance(one, dict) for one in value):
        return type(value)(hide_secrets(one) for one in value)
    return value


def _hidden(name: Any, value: Any) -> Any:
    from airflow_qarnot_pool.api.fields import is_secret_constant

    if isinstance(value, str) and value and is_secret_constant(str(name)) and not is_templated(value):
        return Redacted(value)
    return hide_secrets(value)


def reveal_secrets(value: Any) -> Any:
    """*value* as it was before :func:`hide_secrets`, for a task that runs or a check."""
    if isinstance(value, Redacted):
        return value.resolve()
    if isinstance(value, dict):
        return {name: reveal_secrets(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)) and any(isinstance(one, (dict, Redacted)) for one in value):
        return type(value)(reveal_secrets(one) for one in value)
    return value
