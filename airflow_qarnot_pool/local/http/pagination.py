"""`/search` and `/paginate` (Qarnot API: DataDetail and Page, qarnot-api.md 3.6)."""

from __future__ import annotations

import base64
import json
import operator
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_qarnot_pool.local.backend.models import Remote
from airflow_qarnot_pool.local.http.filters import FilterEvaluator
from airflow_qarnot_pool.local.schemas.errors import ApiError
from airflow_qarnot_pool.local.schemas.fields import RequestFields, fold
from airflow_qarnot_pool.local.schemas.responses import ResponseBody

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.backend.backend import Backend

R = TypeVar("R", bound=Remote)
PAGE_SIZE = 50
"""Objects on a page whose request has no size."""
MAX_PAGE_SIZE = 1000
INSTANCES = "completedInstances"
ORDERS = {"creationdate": "created", "executiontime": "", "name": "name", "state": "state"}


def _limit(backend: Backend, fields: RequestFields, default: int | None) -> int | None:
    limit = fields.integer("maximumResults", default, minimum=1)
    cap = backend.search_cap if backend.refuses_beyond_cap else None
    if fields.bad or (cap is not None and fields.has("maximumResults") and (limit or 0) > cap):
        raise _invalid("maximumResults", "The field maximumResults must be a positive integer.")
    return limit


def search(
    backend: Backend, finder: FilterEvaluator[R], body: ResponseBody[R], request: Any
) -> list[dict[str, Any]]:
    """Return at most `maximumResults` matches in order of creation, in full or with the selected fields.

    A cap cuts the response silently.
    """
    fields = RequestFields(request or {}, "search")
    matches = finder.find(fields.raw("filter"))[: _limit(backend, fields, None)][: backend.search_cap]
    selection = fields.raw("select")
    names = selection if isinstance(selection, list) else fold(selection).get("fields")
    if not names:
        return [_listed(backend, body.full(backend, item)) for item in matches]
    selected = [name for text in names if (name := body.resolve(str(text)))]
    if INSTANCES in selected and backend.readings.instances_in_search == "refused":
        raise _invalid("select", f"{INSTANCES} cannot be selected.")
    return [_listed(backend, body.chosen(backend, item, selected)) for item in matches]


def _listed(backend: Backend, item: dict[str, Any]) -> dict[str, Any]:
    """Return an object as searches and pages show it: perhaps without its finished instances."""
    if backend.readings.instances_in_search != "returned":
        item.pop(INSTANCES, None)
    return item


def page(
    backend: Backend, finder: FilterEvaluator[R], body: ResponseBody[R], request: Any, *, brief: bool
) -> dict[str, Any]:
    """Return one page.

    The token holds the end of the page before, because objects that come or go between two pages must neither hide nor
    repeat others.
    """
    fields = RequestFields(request or {}, "page")
    matches = finder.find(fields.raw("filter"))
    limit = _page_size(backend, fields)
    order, backwards = _read_order(fields)
    total = len(matches)

    def key(item: R) -> tuple[Any, int]:
        attribute = ORDERS[order]
        value = getattr(item, attribute) if attribute else body.value(backend, item, "executionTime")
        return value, item.seq

    if order != "creationdate" or backwards:
        matches.sort(key=key, reverse=backwards)
    if (token := fields.text("token", max_length=10_000)) is not None:
        last = _read_token(backend, token)
        follows = operator.lt if backwards else operator.gt
        try:
            matches = [item for item in matches if follows(key(item), last)]
        except TypeError:  # the token of a page in another order
            raise _invalid("token", "The token is not valid.") from None
    data = matches[:limit]
    is_truncated = len(matches) > len(data)
    render = body.brief if brief else body.full
    return {
        "data": [_listed(backend, render(backend, item)) for item in data],
        "count": len(data),
        "total": total,
        "isTruncated": is_truncated,
        "nextToken": _write_token(backend, key(data[-1])) if is_truncated else None,
    }


def _page_size(backend: Backend, fields: RequestFields) -> int:
    size = _limit(backend, fields, PAGE_SIZE) or PAGE_SIZE
    return min(size, MAX_PAGE_SIZE, backend.search_cap or MAX_PAGE_SIZE)


def _read_order(fields: RequestFields) -> tuple[str, bool]:
    """Return the order of a page, and whether it is descending. Raises ApiError 400."""
    order = (fields.text("orderBy") or "creationDate").lower()
    if order not in ORDERS:
        raise _invalid("orderBy", f"Unknown order: {order}.")
    return order, (fields.text("orderType") or "ASC").upper() == "DESC"


def _write_token(backend: Backend, key: tuple[Any, int]) -> str:
    return base64.urlsafe_b64encode(json.dumps([*key, backend.now]).encode()).decode()


def _read_token(backend: Backend, token: str) -> tuple[Any, int]:
    """Return the key that the page begins after. Raises ApiError 400."""
    try:
        value, seq, written = json.loads(base64.urlsafe_b64decode(token))
        key, age = (value, int(seq)), backend.now - float(written)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise _invalid("token", "The token is not valid.") from None
    if backend.token_seconds is not None and age >= backend.token_seconds:
        raise _invalid("token", "The token has expired.")
    return key


def _invalid(field: str, problem: str) -> ApiError:
    return ApiError(400, "One or more validation errors occurred.", {field: [problem]})
