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
ORDERS = {"creationdate": "created", "executiontime": "", "name": "name", "state": "state"}


def _limit(backend: Backend, fields: RequestFields, default: int | None) -> int | None:
    limit = fields.integer("maximumResults", default, minimum=1)
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
    """Return at most `maximumResults` matches in order of creation, in full or with the selected fields.

    A cap cuts the response silently.
    """
    fields = RequestFields(request or {}, "search")
    matches = finder.find(fields.raw("filter"))[: _limit(backend, fields, None)][: backend.search_cap]
    selection = fields.raw("select")
    names = selection if isinstance(selection, list) else fold(selection).get("fields")
    if not names:
        return [body.full(backend, item) for item in matches]
    selected = [name for text in names if (name := body.resolve(str(text)))]
    return [body.chosen(backend, item, selected) for item in matches]


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
        last = _read_token(token)
        follows = operator.lt if backwards else operator.gt
        try:
            matches = [item for item in matches if follows(key(item), last)]
        except TypeError:  # the token of a page in another order
            raise _invalid_token() from None
    data = matches[:limit]
    is_truncated = len(matches) > len(data)
    render = body.brief if brief else body.full
    return {
        "data": [render(backend, item) for item in data],
        "count": len(data),
        "total": total,
        "isTruncated": is_truncated,
        "nextToken": _write_token(key(data[-1])) if is_truncated else None,
    }


def _page_size(backend: Backend, fields: RequestFields) -> int:
    size = _limit(backend, fields, PAGE_SIZE) or PAGE_SIZE
    return min(size, MAX_PAGE_SIZE, backend.search_cap or MAX_PAGE_SIZE)


def _read_order(fields: RequestFields) -> tuple[str, bool]:
    """Return the order of a page, and whether it is descending. Raises ApiError 400."""
    order = (fields.text("orderBy") or "creationDate").lower()
    if order not in ORDERS:
        raise ApiError(
            400, "One or more validation errors occurred.", {"orderBy": [f"Unknown order: {order}."]}
        )
    return order, (fields.text("orderType") or "ASC").upper() == "DESC"


def _write_token(key: tuple[Any, int]) -> str:
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode()


def _read_token(token: str) -> tuple[Any, int]:
    try:
        value, seq = json.loads(base64.urlsafe_b64decode(token))
        return value, int(seq)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise _invalid_token() from None


def _invalid_token() -> ApiError:
    return ApiError(400, "One or more validation errors occurred.", {"token": ["The token is not valid."]})
