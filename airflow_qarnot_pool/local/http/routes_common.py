"""Routes common to pools, tasks and jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.routing import BaseRoute

from airflow_qarnot_pool.local.backend.models import Output, Remote
from airflow_qarnot_pool.local.backend.store import Store
from airflow_qarnot_pool.local.http.routing import (
    Call,
    Raw,
    route,
    text,
)
from airflow_qarnot_pool.local.processes import output
from airflow_qarnot_pool.local.schemas.errors import ApiError

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
    wanted = [tag for given in tags for tag in ([given] if store.tagged(given) else given.split(","))]
    found = {item.seq: item for tag in wanted for item in store.tagged(tag)}
    return [render(backend, found[seq]) for seq in sorted(found)]


def output_routes(backend: Backend, kind: str, find: Callable[[str], Outputs]) -> list[BaseRoute]:
    """Return routes of stdout and stderr, of all instances or of one, in full (GET) or new output (POST).

    :param find: returns for a key the outputs by instance id, and a test whether an instance exists.
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
            route(backend, "GET", path, lambda call: text(output.whole_aggregated(find(call.id)[0], stream))),
            route(
                backend, "POST", path, lambda call: text(output.fresh_aggregated(find(call.id)[0], stream))
            ),
            route(backend, "GET", f"{path}/{{i}}", lambda call: one(call, stream, output.whole)),
            route(backend, "POST", f"{path}/{{i}}", lambda call: one(call, stream, output.fresh)),
        ]

    return [*both("stdout"), *both("stderr")]
