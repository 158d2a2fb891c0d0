"""Routes under /pools (Qarnot API: qarnot-api.md 3.1)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from starlette.routing import BaseRoute

from airflow_qarnot_pool.local.http.routes_common import collection_routes, output_routes
from airflow_qarnot_pool.local.http.routing import (
    Call,
    Raw,
    created,
    route,
)
from airflow_qarnot_pool.local.schemas import requests, responses, scaling
from airflow_qarnot_pool.local.schemas.errors import ApiError

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.backend.backend import Backend


async def check_buckets(backend: Backend, buckets: list[str]) -> None:
    """Check that the buckets exist. Raises ApiError 404 for the first that does not."""
    if buckets and (missing := await asyncio.to_thread(backend.storage.missing, buckets)):
        raise ApiError(404, f"No such bucket: {missing}")


def routes(backend: Backend) -> list[BaseRoute]:

    def show(call: Call) -> Any:
        return responses.POOL.full(backend, backend.pools.find(call.id))

    async def create(call: Call) -> Raw:
        creation = requests.read_pool(call.json, backend.settings.profiles, backend.readings)
        await check_buckets(backend, creation.buckets)
        backend.touch()
        return created("pools", backend.pools.create(creation).uuid)

    async def clone(call: Call) -> Raw:
        pool = backend.pools.find(call.id)
        if not pool.is_open and backend.readings.clone_of_closed == "no":
            raise ApiError(400, f"Invalid operation: the pool is {pool.state}")
        source = {**responses.POOL.full(backend, pool), "shortname": None}
        # The secrets are copied, not the text that hides them.
        source["constants"] = [{"key": k, "value": v} for k, v in pool.constants.items()]
        creation = requests.read_pool(call.json or {}, backend.settings.profiles, backend.readings, source)
        creation.spec["labels"] = {
            "replaced": creation.spec["labels"],
            "merged": {**source["labels"], **creation.spec["labels"]},
            "kept": source["labels"],
        }[backend.readings.labels_of_copies]
        await check_buckets(backend, creation.buckets)
        backend.touch()
        return created("pools", backend.pools.create(creation).uuid)

    def synchronize(call: Call) -> None:
        pool = backend.pools.find(call.id)
        if not pool.is_open:
            raise ApiError(400, f"Invalid operation: the pool is {pool.state}")
        if not pool.nodes and backend.readings.resync_without_nodes == "400":
            raise ApiError(400, "Invalid operation: the pool has no nodes")
        if backend.readings.resync_copies == "copied":
            backend.spawn(backend.nodes.synchronize(pool))

    def check_scaling(call: Call) -> None:
        _, problems = scaling.read_scaling(call.json)
        if problems:
            raise ApiError(400, "One or more validation errors occurred.", problems)

    def add(method: str, path: str, handler: Any) -> BaseRoute:
        return route(backend, method, path, handler)

    find = backend.pools.find
    return [
        *collection_routes(backend, "pools", backend.pools.store, responses.POOL),
        add("POST", "/pools", create),
        add("GET", "/pools/{u}", show),
        add("PUT", "/pools/{u}", lambda call: backend.pools.update(find(call.id), call.json)),
        add("PATCH", "/pools/{u}", synchronize),
        add("DELETE", "/pools/{u}", lambda call: backend.pools.delete(find(call.id))),
        add("POST", "/pools/{u}/close", lambda call: backend.pools.close(find(call.id))),
        add("POST", "/pools/{u}/clone", clone),
        add("GET", "/pools/{u}/scaling", lambda call: responses.scaling(find(call.id)) or {"policies": []}),
        add("PUT", "/pools/{u}/scaling", lambda call: backend.pools.set_scaling(find(call.id), call.json)),
        add("POST", "/sanity-checks/pools/scaling", check_scaling),
        add(
            "GET",
            "/pools/{u}/tasks",
            lambda call: [responses.TASK.full(backend, task) for task in find(call.id).tasks.values()],
        ),
        add(
            "GET",
            "/pools/{u}/jobs",
            lambda call: [
                responses.JOB.full(backend, j) for j in backend.jobs.store if j.pool is find(call.id)
            ],
        ),
        *output_routes(backend, "pools", find),
    ]
