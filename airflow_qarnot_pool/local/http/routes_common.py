"""Routes common to pools, tasks and jobs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.routing import BaseRoute

from airflow_qarnot_pool.local.backend.models import Output, Remote
from airflow_qarnot_pool.local.backend.store import Store
from airflow_qarnot_pool.local.http import pagination
from airflow_qarnot_pool.local.http.filters import FilterEvaluator
from airflow_qarnot_pool.local.http.routing import Call, Raw, route, text
from airflow_qarnot_pool.local.processes import output
from airflow_qarnot_pool.local.schemas.errors import ApiError
from airflow_qarnot_pool.local.schemas.responses import ResponseBody

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.backend.backend import Backend

R = TypeVar("R", bound=Remote)
Outputs = tuple[dict[int, Output], Callable[[int], bool]]


def tagged(
    backend: Backend, store: Store[R], render: Callable[[Backend, R], Any], tags: list[str]
) -> list[Any]:
    """Return all objects, or those with any of the tags.

    A tag without a match may be several tags joined by commas.
    """
    if not tags:
        return [render(backend, item) for item in store]
    names = [name for tag in tags for name in ([tag] if store.tagged(tag) else tag.split(","))]
    items = {item.seq: item for name in names for item in store.tagged(name)}
    return [render(backend, items[seq]) for seq in sorted(items)]


def collection_routes(
    backend: Backend, kind: str, store: Store[R], body: ResponseBody[R], *, has_summaries: bool = True
) -> list[BaseRoute]:
    """Return routes that list, search and page objects of one kind. They come before routes of single objects."""
    evaluator = FilterEvaluator(backend, store, body)

    def add(method: str, path: str, handler: Callable[[Call], Any]) -> BaseRoute:
        return route(backend, method, f"/{kind}{path}", handler)

    def page(call: Call, *, brief: bool) -> dict[str, Any]:
        return pagination.page(backend, evaluator, body, call.json, brief=brief)

    summaries = [
        add("GET", "/summaries", lambda call: tagged(backend, store, body.brief, call.tags)),
        add("POST", "/summaries/paginate", lambda call: page(call, brief=True)),
    ]
    return [
        add("GET", "", lambda call: tagged(backend, store, body.full, call.tags)),
        add("POST", "/search", lambda call: pagination.search(backend, evaluator, body, call.json)),
        add("POST", "/paginate", lambda call: page(call, brief=False)),
        *(summaries if has_summaries else []),
    ]


def output_routes(backend: Backend, kind: str, find: Callable[[str], Outputs]) -> list[BaseRoute]:
    """Return routes of stdout and stderr, of all instances or of one, in full (GET) or new output (POST).

    :param find: returns for a key the outputs by instance id, and a test whether an instance exists.
    """

    def of_instance(call: Call, stream: str, read: Callable[[Output, str], str]) -> Raw:
        outputs, exists = find(call.id)
        number = call.path("i")
        if not re.fullmatch(r"[0-9]{1,9}", number) or not (int(number) in outputs or exists(int(number))):
            raise ApiError(404, f"No such instance: {number}")
        output_files = outputs.get(int(number))
        return text(read(output_files, stream) if output_files else "")

    def both(stream: str) -> list[BaseRoute]:
        path = f"/{kind}/{{u}}/{stream}"
        return [
            route(
                backend, "GET", path, lambda call: text(output.read_all_aggregated(find(call.id)[0], stream))
            ),
            route(
                backend, "POST", path, lambda call: text(output.read_new_aggregated(find(call.id)[0], stream))
            ),
            route(backend, "GET", f"{path}/{{i}}", lambda call: of_instance(call, stream, output.read_all)),
            route(backend, "POST", f"{path}/{{i}}", lambda call: of_instance(call, stream, output.read_new)),
        ]

    return [*both("stdout"), *both("stderr")]
