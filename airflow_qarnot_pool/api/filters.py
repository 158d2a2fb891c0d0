"""Filters for ``search`` and ``paginate``: small functions that build the JSON.

Field names are PascalCase, dotted for nested ones: ``Name``, ``State``, ``Tags``, ``ElasticProperty.MinTotalSlots``.
``equal`` on a list field such as ``Tags`` means "contains".

    and_(equal("Tags", "nightly"), in_("State", ["Submitted", "FullyExecuting"]))
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime
from typing import Any

Filter = dict[str, Any]


def _text(value: object) -> str:
    """Values travel as text; times as the API writes them itself."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if isinstance(value, date):
        return value.strftime("%Y-%m-%dT00:00:00Z")
    return str(value)


def _leaf(operator: str, field: str, value: object) -> Filter:
    return {"operator": operator, "field": field, "value": _text(value)}


def _listed(operator: str, field: str, values: Iterable[object]) -> Filter:
    # The specification says `values`, the official Python client sends `value`: send both.
    texts = [_text(value) for value in values]
    return {"operator": operator, "field": field, "value": texts, "values": texts}


def equal(field: str, value: object) -> Filter:
    """The field has this value; a list field contains it."""
    return _leaf("Equal", field, value)


def not_equal(field: str, value: object) -> Filter:
    """The field has another value."""
    return _leaf("NotEqual", field, value)


def in_(field: str, values: Iterable[object]) -> Filter:
    """The field has one of these values."""
    return _listed("In", field, values)


def not_in(field: str, values: Iterable[object]) -> Filter:
    """The field has none of these values."""
    return _listed("NotIn", field, values)


def lt(field: str, value: object) -> Filter:
    """The field is less than this."""
    return _leaf("LessThan", field, value)


def le(field: str, value: object) -> Filter:
    """The field is at most this."""
    return _leaf("LessThanOrEqual", field, value)


def gt(field: str, value: object) -> Filter:
    """The field is greater than this."""
    return _leaf("GreaterThan", field, value)


def ge(field: str, value: object) -> Filter:
    """The field is at least this."""
    return _leaf("GreaterThanOrEqual", field, value)


def like(field: str, pattern: str) -> Filter:
    """The field matches this regular expression."""
    return _leaf("Like", field, pattern)


def _joined(operator: str, filters: tuple[Filter, ...]) -> Filter:
    if not filters:
        raise ValueError(f"{operator} needs at least one filter")
    return filters[0] if len(filters) == 1 else {"operator": operator, "filters": list(filters)}


def and_(*filters: Filter) -> Filter:
    """All of these hold."""
    return _joined("And", filters)


def or_(*filters: Filter) -> Filter:
    """At least one of these holds."""
    return _joined("Or", filters)
