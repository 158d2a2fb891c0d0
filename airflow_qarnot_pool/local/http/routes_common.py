"""Routes common to pools, tasks and jobs."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.routing import BaseRoute

from airflow_qarnot_pool.local.backend.models import Output, Pool, Remote, Task
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


def find_output(owner: Pool | Task, number: str) -> Output | None:
    """Return the output of an instance (or pool node), or None if it has none yet. Raises ApiError 404."""
    instances: Collection[int] = owner.nodes if isinstance(owner, Pool) else owner.instances
    if not re.fullmatch(r"[0-9]{1,9}", number) or not (
        int(number) in owner.output or int(number) in instances
    ):
        raise ApiError(404, f"No such instance: {number}")
    return owner.output.get(int(number))


def output_routes(backend: Backend, kind: str, find: Callable[[str], Pool | Task]) -> list[BaseRoute]:
    """Return routes of stdout and stderr, of all instances or of one, in full (GET) or new output (POST)."""

    def both(stream: str, method: str) -> list[BaseRoute]:
        is_new = method == "POST"
        read = output.read_new if is_new else output.read_all
        read_aggregated = output.read_new_aggregated if is_new else output.read_all_aggregated

        def owner(call: Call) -> Pool | Task:
            found = find(call.id)
            if is_new or backend.readings.output_cursor == "GET moves it":
                backend.note(found)  # its cursor moves
            return found

        def of_instance(call: Call) -> Raw:
            files = find_output(owner(call), call.path("i"))
            if files is None:
                return text("")
            if backend.readings.output_cursor == "POST repeats":
                return text(output.read_all(files, stream))
            content = read(files, stream)
            if backend.readings.output_cursor == "GET moves it":
                output.read_new(files, stream)
            return kept(call.id, call.path("i"), content)

        def of_all(call: Call) -> Raw:
            return kept(call.id, "", read_aggregated(owner(call).output, stream))

        def kept(id: str, instance: str, content: str) -> Raw:
            """Return the output, or none if the service loses that of a finished task once it was read."""
            is_over = getattr(find(id), "is_finished", False)
            if is_new or not is_over or backend.readings.output_kept == "kept":
                return text(content)
            place = (id, stream, instance)
            content = "" if place in lost else content
            lost.add(place)
            return text(content)

        path = f"/{kind}/{{u}}/{stream}"
        return [
            route(backend, method, path, of_all),
            route(backend, method, f"{path}/{{i}}", of_instance),
        ]

    lost: set[tuple[str, str, str]] = set()

    return [one for stream in output.STREAMS for method in ("GET", "POST") for one in both(stream, method)]
