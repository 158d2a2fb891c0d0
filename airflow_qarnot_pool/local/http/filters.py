"""Evaluate the filters of `/search` and `/paginate` (Qarnot API: qarnot-api.md 3.6) with indexes.

A filter is compiled once into a predicate. The indexes narrow down the candidates, because a search for one uuid, one
tag or recent changes must not scan all objects.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from airflow_qarnot_pool.local.backend.models import Remote
from airflow_qarnot_pool.local.backend.store import Store
from airflow_qarnot_pool.local.schemas import formats
from airflow_qarnot_pool.local.schemas.errors import ApiError
from airflow_qarnot_pool.local.schemas.fields import compiled, fold
from airflow_qarnot_pool.local.schemas.responses import MOMENTS, ResponseBody

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.backend.backend import Backend

R = TypeVar("R", bound=Remote)
Test = Callable[[Any], bool]

_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "lessthan": operator.lt,
    "lessthanorequal": operator.le,
    "greaterthan": operator.gt,
    "greaterthanorequal": operator.ge,
}
_DEPTH = 20


def refused(message: str) -> ApiError:
    return ApiError(400, "One or more validation errors occurred.", {"filter": [message]})


class FilterEvaluator(Generic[R]):
    """Finds objects of one kind by a filter."""

    def __init__(self, backend: Backend, store: Store[R], body: ResponseBody[R]) -> None:
        self._backend, self._store, self._body = backend, store, body

    def find(self, node: Any) -> list[R]:
        """Return the objects that match *node*, a filter or None, in order of creation. Raises ApiError 400."""
        store = self._store.searched()
        if not isinstance(node, (Mapping, type(None))):
            raise refused("A filter is a JSON object.")
        if not fold(node):
            return list(store)
        test = self._compile(node, 0)
        candidates = self._candidates(store, node)
        if candidates is None:
            return [item for item in store if test(item)]
        return sorted((item for item in candidates if test(item)), key=lambda item: item.seq)

    # ---- predicate ----

    def _compile(self, node: Any, depth: int) -> Test:
        fields = fold(node)
        kind = str(fields.get("operator", "")).lower()
        if depth > _DEPTH:
            raise refused("The filter is nested too deeply.")
        if kind in ("and", "or"):
            inner = fields.get("filters")
            if not isinstance(inner, list):
                raise refused(f"{fields['operator']} needs a list of filters.")
            tests = [self._compile(part, depth + 1) for part in inner]
            gather = all if kind == "and" else any
            return lambda item: gather(test(item) for test in tests)
        return self._leaf(kind, fields)

    def _leaf(self, kind: str, fields: dict[str, Any]) -> Test:
        path = fields.get("field")
        if not isinstance(path, str) or self._body.resolve(path) is None:
            raise refused(f"Unknown field: {path}.")
        if kind in ("in", "notin"):
            test = self._any_of(path, self._listed(fields))
            return test if kind == "in" else lambda item: not test(item)
        if kind in ("equal", "notequal"):
            test = self._equal(path, fields)
            return test if kind == "equal" else lambda item: not test(item)
        value = _single_value(path, fields)
        if kind == "like":
            return self._like(path, str(value))
        if kind in _ORDER:
            return self._ordered(path, _ORDER[kind], value)
        raise refused(f"Unknown operator: {fields.get('operator')}.")

    def _listed(self, fields: dict[str, Any]) -> list[Any]:
        """Return the values of In and NotIn, which are in one of two fields, or in one only."""
        name = self._backend.readings.in_filter
        return _values(fields if name == "either" else {name: fields.get(name)})

    def _equal(self, path: str, fields: dict[str, Any]) -> Test:
        if "value" not in fields and "values" not in fields:
            return lambda item: self._get(path, item) is None
        return self._any_of(path, [_single_value(path, fields)])

    def _get(self, path: str, item: R) -> Any:
        return self._body.value(self._backend, item, path)

    def _moment(self, path: str) -> Callable[[R], float] | None:
        """Return the getter of a date field, in whole seconds as in responses."""
        name = MOMENTS.get(path.lower())
        if name is None:
            return None

        def get(item: R) -> float:
            when = getattr(item, name)
            return -math.inf if when is None else math.floor(self._store.shown(item, when))

        return get

    def _any_of(self, path: str, values: list[Any]) -> Test:
        if moment := self._moment(path):
            moments = {_moment(path, value) for value in values}
            return lambda item: moment(item) in moments
        texts = {_text(value) for value in values}
        numbers = {number for value in values if (number := _number(value)) is not None}

        def test(item: R) -> bool:
            value = self._get(path, item)
            if isinstance(value, list):
                return any(_text(entry) in texts for entry in value)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return value in numbers
            return value is not None and _text(value) in texts

        return test

    def _like(self, path: str, pattern: str) -> Test:
        if len(pattern) > 1 and pattern.startswith("/") and pattern.endswith("/"):
            pattern = pattern[1:-1]
        expression = compiled(pattern)
        if expression is None:
            raise refused(f"Not a regular expression: {pattern}.")

        def test(item: R) -> bool:
            value = self._get(path, item)
            entries = value if isinstance(value, list) else [value]
            return any(expression.search(_text(entry)) for entry in entries)

        return test

    def _ordered(self, path: str, compare: Callable[[Any, Any], bool], value: Any) -> Test:
        if moment := self._moment(path):
            limit = _moment(path, value)
            return lambda item: compare(moment(item), limit)
        number = _number(value)

        def test(item: R) -> bool:
            actual = self._get(path, item)
            if isinstance(actual, (int, float)) and not isinstance(actual, bool):
                return number is not None and compare(actual, number)
            return isinstance(actual, str) and compare(actual, _text(value))

        return test

    # ---- indexes ----

    def _candidates(self, store: Store[R], node: Any) -> Collection[R] | None:
        """Return a superset of the matches from an index, or None if no index helps."""
        fields = fold(node)
        kind, inner = str(fields.get("operator", "")).lower(), fields.get("filters")
        if kind in ("and", "or") and isinstance(inner, list):
            return self._combined(store, kind, inner)
        field = str(fields.get("field", "")).lower()
        if kind in ("equal", "in"):
            values = self._listed(fields) if kind == "in" else _values(fields)
            return self._keyed(store, field, [str(v) for v in values])
        if field == "statetransitiontime" and kind in ("greaterthan", "greaterthanorequal"):
            since = _moment(field, fields.get("value"))
            return store.moved_since(math.floor(since)) if math.isfinite(since) else None
        return None

    def _combined(self, store: Store[R], kind: str, inner: list[Any]) -> Collection[R] | None:
        parts = [self._candidates(store, part) for part in inner]
        indexed = [part for part in parts if part is not None]
        if kind == "and":
            return min(indexed, key=len, default=None)
        if not parts or len(indexed) < len(parts):
            return None
        return _distinct(item for part in indexed for item in part)

    def _keyed(self, store: Store[R], field: str, values: list[str]) -> Collection[R] | None:
        if field == "uuid":
            return _distinct(filter(None, map(store.get, values)))
        if field == "shortname":
            return _distinct(item for name in values for item in store.named(name))
        if field == "tags":
            return _distinct(item for tag in values for item in store.tagged(tag))
        if field == "pooluuid" and store is self._store:
            return self._on_pools(values)
        return None

    def _on_pools(self, uuids: list[str]) -> Collection[R] | None:
        """Return the tasks on these pools, or None if one does not exist. Only tasks have the field."""
        pools = [pool for uuid in uuids if (pool := self._backend.pools.store.get(uuid))]
        if len(pools) < len(set(uuids)):
            return None
        tasks: list[Any] = [task for pool in pools for task in pool.tasks.values()]
        return tasks


def _distinct(items: Iterable[R]) -> Collection[R]:
    return {item.uuid: item for item in items}.values()


def _single_value(path: str, fields: dict[str, Any]) -> Any:
    """Return the value of a comparison. Raises ApiError 400 without one or with several."""
    value = fields.get("value", fields.get("values"))
    if value is None:
        raise refused(f"{path} needs a value.")
    if isinstance(value, list):
        raise refused(f"{path} needs a single value.")
    return value


def _values(fields: dict[str, Any]) -> list[Any]:
    """Return `values` (OpenAPI, C#) or `value` (Python SDK) of In and NotIn as a list."""
    values = fields.get("values", fields.get("value"))
    return values if isinstance(values, list) else [] if values is None else [values]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _moment(path: str, value: Any) -> float:
    try:
        return formats.parse_stamp(str(value))
    except (ValueError, OverflowError):
        raise refused(f"{path} needs a date such as 2025-01-31T12:00:00Z, not {value!r}.") from None
