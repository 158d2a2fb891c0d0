"""Routes that pools, tasks and jobs have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.routing import BaseRoute

from airflow_qarnot_pool.local import output
from airflow_qarnot_pool.local.errors import ApiError
from airflow_qarnot_pool.local.model import Output, Remote
from airflow_qarnot_pool.local.store import Store
from airflow_qarnot_pool.local.web import Call, Raw, route, text

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.world import World

R = TypeVar("R", bound=Remote)
Outputs = tuple[dict[int, Output], Callable[[int], bool]]


def tagged(world: World, store: Store[R], render: Callable[[World, R], Any], tags: list[str]) -> list[Any]:
    """A list, or the part of it that has any of the tags. A tag that matches nothing as it is may be several,
    joined by commas."""
    if not tags:
        return [render(world, item) for item in store]
    wanted = [tag for given in tags for tag in ([given] if store.tagged(given) else given.split(","))]
    found = {item.seq: item for tag in wanted for item in store.tagged(tag)}
    return [render(world, found[seq]) for seq in sorted(found)]


def output_routes(world: World, kind: str, find: Callable[[str], Outputs]) -> list[BaseRoute]:
    """stdout and stderr, of all instances or of one, whole (GET) or fresh (POST).

    :param find: key -> (outputs by instance id, does this instance exist).
    """

    def one(call: Call, stream: str, read: Callable[[Output, str], str]) -> Raw:
        outputs, exists = find(call.id)
        number = call.path("i")
        if not number.isdigit() or not (int(number) in outputs or exists(int(number))):
            raise ApiError(404, f"No such instance: {number}")
        found = outputs.get(int(number))
        return text(read(found, stream) if found else "")

    def both(stream: str) -> list[BaseRoute]:
        path = f"/{kind}/{{u}}/{stream}"
        return [
            route(world, "GET", path, lambda call: text(output.whole_aggregated(find(call.id)[0], stream))),
            route(world, "POST", path, lambda call: text(output.fresh_aggregated(find(call.id)[0], stream))),
            route(world, "GET", f"{path}/{{i}}", lambda call: one(call, stream, output.whole)),
            route(world, "POST", f"{path}/{{i}}", lambda call: one(call, stream, output.fresh)),
        ]

    return [*both("stdout"), *both("stderr")]
