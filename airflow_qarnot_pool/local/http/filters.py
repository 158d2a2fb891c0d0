"""The filter language of `/search` and `/paginate` (Qarnot API: qarnot-api.md 3.6), answered from indexes.

A filter is compiled once into a predicate; apart from that, the parts of it that an index can answer narrow
down the candidates, so that asking for one uuid, one tag or "what changed since" never looks at everything.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from airflow_qarnot_pool.local.backend.models import Remote, Task
from airflow_qarnot_pool.local.backend.store import Store
from airflow_qarnot_pool.local.schemas import formats
from airflow_qarnot_pool.local.schemas.errors import ApiError
from airflow_qarnot_pool.local.schemas.fields import fold
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
        """What matches, in order of creation. :param node: a filter or None. Raises ApiError 400."""
        store = self._store.searched()
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
            tests = [self._compile(one, depth + 1) for one in inner]
            gather = all if kind == "and" else any
            return lambda item: gather(test(item) for test in tests)
        return self._leaf(kind, fields)

    def _leaf(self, kind: str, fields: dict[str, Any]) -> Test:
        path = fields.get("field")
        if not isinstance(path, str) or self._body.resolve(path) is None:
            raise refused(f"Unknown field: {path}.")
        if kind in ("in", "notin"):
            test = self._any_of(path, _values(fields))
            return test if kind == "in" else lambda item: not test(item)
        if "value" not in fields and "values" not in fields:
            if kind in ("equal", "notequal"):
                return lambda item: (self._get(path, item) is None) == (kind == "equal")
            raise refused(f"{path} needs a value.")
        value = fields.get("value", fields.get("values"))
        if isinstance(value, list):
            raise refused(f"{path} needs a single value.")
        if kind in ("equal", "notequal"):
            test = self._any_of(path, [value])
            return test if kind == "equal" else lambda item: not test(item)
        if kind == "like":
            return self._like(path, str(value))
        if kind in _ORDER:
            return self._ordered(path, _ORDER[kind], value)
        raise refused(f"Unknown operator: {fields.get('operator')}.")

    def _get(self, path: str, item: R) -> Any:
        return self._body.value(self._backend, item, path)

    def _moment(self, path: str) -> Callable[[R], float] | None:
        """The getter of a date field: whole seconds, as clients are shown them."""
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
            found = self._get(path, item)
            if isinstance(found, list):
                return any(_text(one) in texts for one in found)
            if isinstance(found, (int, float)) and not isinstance(found, bool):
                return found in numbers
            return found is not None and _text(found) in texts

        return test

    def _like(self, path: str, pattern: str) -> Test:
        if len(pattern) > 1 and pattern.startswith("/") and pattern.endswith("/"):
            pattern = pattern[1:-1]
        try:
            expression = re.compile(pattern)
        except re.error:
            raise refused(f"Not a regular expression: {pattern}.") from None

        def test(item: R) -> bool:
            found = self._get(path, item)
            return any(
                expression.search(_text(one)) for one in (found if isinstance(found, list) else [found])
            )

        return test

    def _ordered(self, path: str, compare: Callable[[Any, Any], bool], value: Any) -> Test:
        if moment := self._moment(path):
            limit = _moment(path, value)
            return lambda item: compare(moment(item), limit)
        number = _number(value)

        def test(item: R) -> bool:
            found = self._get(path, item)
            if isinstance(found, (int, float)) and not isinstance(found, bool):
                return number is not None and compare(found, number)
            return isinstance(found, str) and compare(found, _text(value))

        return test

    # ---- indexes ----

    def _candidates(self, store: Store[R], node: Any) -> Collection[R] | None:
        """A superset of what matches, from an index; None = no index helps."""
        fields = fold(node)
        kind, inner = str(fields.get("operator", "")).lower(), fields.get("filters")
        if kind in ("and", "or") and isinstance(inner, list):
            found = [self._candidates(store, one) for one in inner]
            if kind == "and":
                return min((one for one in found if one is not None), key=len, default=None)
            if not found or any(one is None for one in found):
                return None
            return {item.uuid: item for one in found if one is not None for item in one}.values()
        field = str(fields.get("field", "")).lower()
        if kind in ("equal", "in"):
            return self._keyed(store, field, [str(v) for v in _values(fields)])
        if field == "statetransitiontime" and kind in ("greaterthan", "greaterthanorequal"):
            return store.moved_since(math.floor(_moment(field, fields.get("value"))))
        return None

    def _keyed(self, store: Store[R], field: str, values: list[str]) -> Collection[R] | None:
        if field == "uuid":
            return {item.uuid: item for v in values if (item := store.get(v))}.values()
        if field == "shortname":
            return [item for v in dict.fromkeys(values) for item in store.named(v)]
        if field == "tags" and len(values) == 1:
            return store.tagged(values[0])
        if field == "tags":
            return {item.uuid: item for v in values for item in store.tagged(v)}.values()
        if field == "pooluuid" and store is self._store:
            # The same object type as R: only tasks have the field.
            pools = [pool for v in values if (pool := self._backend.pools.store.get(v))]
            owned: list[Any] = [task for pool in pools for task in pool.tasks.values()]
            known = len(pools) == len(set(values))
            return owned if known and all(isinstance(item, Task) for item in owned) else None
        return None


def _values(fields: dict[str, Any]) -> list[Any]:
    """`values` (OpenAPI, C#) or `value` (Python SDK) of In and NotIn, one or many."""
    found = fields.get("values", fields.get("value"))
    return found if isinstance(found, list) else [] if found is None else [found]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _moment(path: str, value: Any) -> float:
    try:
        return formats.parse_stamp(str(value))
    except (ValueError, OverflowError):
        raise refused(f"{path} needs a date such as 2025-01-31T12:00:00Z, not {value!r}.") from None
