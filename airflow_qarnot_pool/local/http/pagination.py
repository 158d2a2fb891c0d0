"""`/search` and `/paginate` (Qarnot API: DataDetail and Page, qarnot-api.md 3.6)."""

from __future__ import annotations

import base64
import json
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
"""Of a page that names no size."""
LARGEST_PAGE = 1000
ORDERS = {"creationdate": "created", "executiontime": "", "name": "name", "state": "state"}


def _limit(backend: Backend, fields: RequestFields, default: int | None) -> int | None:
    limit = fields.integer("maximumResults", default, least=1)
    cap = backend.search_cap if backend.refuses_beyond_cap else None
    if fields.bad or (cap is not None and fields.has("maximumResults") and (limit or 0) > cap):
        raise ApiError(
            400,
            "One or more validation errors occurred.",
            {"maximumResults": ["The field maximumResults must be a positive integer."]},
        )
    return limit


def search(
    backend: Backend, finder: FilterEvaluator[R], body: ResponseBody[R], request: Any
) -> list[dict[str, Any]]:
    """At most `maximumResults` matches in order of creation, whole or the selected fields of them.

    A cap cuts the answer without a word.
    """
    fields = RequestFields(request or {}, "search")
    found = finder.find(fields.raw("filter"))[: _limit(backend, fields, None)][: backend.search_cap]
    wanted = fields.raw("select")
    names = wanted if isinstance(wanted, list) else fold(wanted).get("fields")
    if not names:
        return [body.full(backend, item) for item in found]
    chosen = [name for text in names if (name := body.resolve(str(text)))]
    return [body.chosen(backend, item, chosen) for item in found]


def page(
    backend: Backend, finder: FilterEvaluator[R], body: ResponseBody[R], request: Any, *, brief: bool
) -> dict[str, Any]:
    """One page. The token says where the page before it ended, so objects that come or go between two pages
    neither hide nor repeat others."""
    fields = RequestFields(request or {}, "page")
    found = finder.find(fields.raw("filter"))
    limit = _limit(backend, fields, PAGE_SIZE) or PAGE_SIZE
    limit = min(limit, LARGEST_PAGE, backend.search_cap or LARGEST_PAGE)
    order = (fields.text("orderBy") or "creationDate").lower()
    backwards = (fields.text("orderType") or "ASC").upper() == "DESC"
    if order not in ORDERS:
        raise ApiError(
            400, "One or more validation errors occurred.", {"orderBy": [f"Unknown order: {order}."]}
        )
    total = len(found)

    def key(item: R) -> tuple[Any, int]:
        if order == "executiontime":
            return body.value(backend, item, "executionTime"), item.seq
        return getattr(item, ORDERS[order]), item.seq

    if order != "creationdate" or backwards:
        found.sort(key=key, reverse=backwards)
    if (token := fields.text("token", longest=10_000)) is not None:
        last = _read_token(token)
        found = [item for item in found if (key(item) < last if backwards else key(item) > last)]
    data = found[:limit]
    more = len(found) > len(data)
    render = body.brief if brief else body.full
    return {
        "data": [render(backend, item) for item in data],
        "count": len(data),
        "total": total,
        "isTruncated": more,
        "nextToken": _write_token(key(data[-1])) if more else None,
    }


def _write_token(key: tuple[Any, int]) -> str:
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode()


def _read_token(token: str) -> tuple[Any, int]:
    try:
        value, seq = json.loads(base64.urlsafe_b64decode(token))
        return value, int(seq)
    except (ValueError, TypeError):
        raise ApiError(
            400, "One or more validation errors occurred.", {"token": ["The token is not valid."]}
        ) from None
