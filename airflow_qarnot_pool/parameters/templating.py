"""Tell parameters that are known when a DAG is parsed from templated ones, and redact secret ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_qarnot_pool.api.fields import is_secret_constant, normalise


def is_templated(value: Any) -> bool:
    """Return whether *value* contains a Jinja template, an XCom reference or another value resolved at run time."""
    if isinstance(value, str):
        return "{{" in value or "{%" in value
    if isinstance(value, Mapping):
        return any(is_templated(part) for pair in value.items() for part in pair)
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(is_templated(item) for item in value)
    # Airflow resolves XComArg, mapped arguments and similar objects before the task runs. A path has "resolve", too.
    return isinstance(value, Redacted) or hasattr(value, "iter_references")


#: Text that a template renders when it yields nothing, without the spaces around it.
EMPTY_WORDS = ("", "None")
#: Replaces text that is known at run time only.
PLACEHOLDER = "known-at-run-time"
#: Replacements for templated fields that other fields need. When the DAG is parsed, only their presence is known.
_PLACEHOLDERS = {
    "resultbucket": PLACEHOLDER,
    "snapshotbucket": PLACEHOLDER,
    "schedulingtype": "Reserved",
    "job": "00000000-0000-0000-0000-000000000000",
    "jobuuid": "00000000-0000-0000-0000-000000000000",
}


def known_at_parse_time(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the *values* that are not templated, with placeholders for fields that others need."""
    known = {}
    for name, value in values.items():
        if not is_templated(value):
            known[name] = value
        elif isinstance(value, (list, tuple)) and (
            items := [item for item in value if not is_templated(item)]
        ):
            known[name] = items
        elif placeholder := _PLACEHOLDERS.get(normalise(str(name))):
            known[name] = placeholder
    return known


class Redacted:
    """A secret parameter that is masked in the serialized DAG.

    Airflow calls ``resolve`` when it renders templates, and ``serialize`` (or ``str``) when it stores the DAG.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def resolve(self, context: Any = None) -> str:
        """Return the secret."""
        return self._value

    def serialize(self) -> str:
        """Return the mask."""
        return "***"

    __str__ = __repr__ = serialize


def hide_secrets(value: Any) -> Any:
    """Return *value* with its secret constants redacted. Templates are kept, because they show no secret."""
    if isinstance(value, dict):
        return {name: _hidden(name, entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)) and any(isinstance(item, dict) for item in value):
        return type(value)(hide_secrets(item) for item in value)
    return value


def _hidden(name: Any, value: Any) -> Any:
    if isinstance(value, str) and value and is_secret_constant(str(name)) and not is_templated(value):
        return Redacted(value)
    return hide_secrets(value)


def reveal_secrets(value: Any) -> Any:
    """Undo :func:`hide_secrets`, for validation and for the running task."""
    if isinstance(value, Redacted):
        return value.resolve()
    if isinstance(value, dict):
        return {name: reveal_secrets(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)) and any(isinstance(item, (dict, Redacted)) for item in value):
        return type(value)(reveal_secrets(item) for item in value)
    return value
