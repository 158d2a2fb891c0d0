"""Build filters for ``search`` and ``paginate``.

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
    """Return a value as text, and a time in the format of the API."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if isinstance(value, date):
        return value.strftime("%Y-%m-%dT00:00:00Z")
    return str(value)


def _leaf(operator: str, field: str, value: object) -> Filter:
    return {"operator": operator, "field": field, "value": _text(value)}


def equal(field: str, value: object) -> Filter:
    """Match a field with this value, or a list field that contains it."""
    return _leaf("Equal", field, value)


def in_(field: str, values: Iterable[object]) -> Filter:
    """Match a field with one of these values."""
    # The specification says `values`, and the official Python client sends `value`, so this sends both.
    texts = [_text(value) for value in values]
    return {"operator": "In", "field": field, "value": texts, "values": texts}


def lt(field: str, value: object) -> Filter:
    """Match a field that is less than this."""
    return _leaf("LessThan", field, value)


def ge(field: str, value: object) -> Filter:
    """Match a field that is at least this."""
    return _leaf("GreaterThanOrEqual", field, value)


def and_(*filters: Filter) -> Filter:
    """Match if all of these filters do."""
    if not filters:
        raise ValueError("And needs at least one filter")
    return filters[0] if len(filters) == 1 else {"operator": "And", "filters": list(filters)}
