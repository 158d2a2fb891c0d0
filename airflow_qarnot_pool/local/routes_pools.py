"""/pools and what is below it (Qarnot API: qarnot-api.md 3.1)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from starlette.routing import BaseRoute

from airflow_qarnot_pool.local import bodies, pages, payloads, sizing
from airflow_qarnot_pool.local.errors import ApiError
from airflow_qarnot_pool.local.filters import Finder
from airflow_qarnot_pool.local.routes_common import output_routes, tagged
from airflow_qarnot_pool.local.web import Call, Raw, created, route

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.world import World


async def check_buckets(world: World, buckets: list[str]) -> None:
    """Raises ApiError 404 for the first bucket that does not exist."""
    if buckets and (missing := await asyncio.to_thread(world.storage.missing, buckets)):
        raise ApiError(404, f"No such bucket: {missing}")


def routes(world: World) -> list[BaseRoute]:
    finder = Finder(world, world.pools.store, bodies.POOL)

    def show(call: Call) -> Any:
        return bodies.POOL.full(world, world.pools.find(call.id))

    async def create(call: Call) -> Raw:
        wanted = payloads.read_pool(call.json)
        await check_buckets(world, wanted.buckets)
        world.touch()
        return created("pools", world.pools.create(wanted).uuid)

    async def clone(call: Call) -> Raw:
        pool = world.pools.find(call.id)
        source = {**bodies.POOL.full(world, pool), "shortname": None}
        # The secrets are copied, not the text that hides them.
        source["constants"] = [{"key": k, "value": v} for k, v in pool.constants.items()]
        wanted = payloads.read_pool(call.json or {}, source)
        await check_buckets(world, wanted.buckets)
        world.touch()
        return created("pools", world.pools.create(wanted).uuid)

    def synchronize(call: Call) -> None:
        pool = world.pools.find(call.id)
        if not pool.is_open:
            raise ApiError(400, f"Invalid operation: the pool is {pool.state}")
        world.spawn(world.fleet.synchronize(pool))

    def check_scaling(call: Call) -> None:
        _, problems = sizing.read_scaling(call.json)
        if problems:
            raise ApiError(400, "One or more validation errors occurred.", problems)

    def add(method: str, path: str, handler: Any) -> BaseRoute:
        return route(world, method, path, handler)

    find = world.pools.find
    return [
        add("GET", "/pools", lambda call: tagged(world, world.pools.store, bodies.POOL.full, call.tags)),
        add("POST", "/pools", create),
        add("GET", "/pools/summaries", lambda c: tagged(world, world.pools.store, bodies.POOL.brief, c.tags)),
        add("POST", "/pools/search", lambda call: pages.search(world, finder, bodies.POOL, call.json)),
        add("POST", "/pools/paginate", lambda c: pages.page(world, finder, bodies.POOL, c.json, brief=False)),
        add(
            "POST",
            "/pools/summaries/paginate",
            lambda call: pages.page(world, finder, bodies.POOL, call.json, brief=True),
        ),
        add("GET", "/pools/{u}", show),
        add("PUT", "/pools/{u}", lambda call: world.pools.update(find(call.id), call.json)),
        add("PATCH", "/pools/{u}", synchronize),
        add("DELETE", "/pools/{u}", lambda call: world.pools.delete(find(call.id))),
        add("POST", "/pools/{u}/close", lambda call: world.pools.close(find(call.id))),
        add("POST", "/pools/{u}/clone", clone),
        add("GET", "/pools/{u}/scaling", lambda call: bodies.scaling(find(call.id)) or {"policies": []}),
        add("PUT", "/pools/{u}/scaling", lambda call: world.pools.set_scaling(find(call.id), call.json)),
        add("POST", "/sanity-checks/pools/scaling", check_scaling),
        add(
            "GET",
            "/pools/{u}/tasks",
            lambda call: [bodies.TASK.full(world, task) for task in find(call.id).tasks.values()],
        ),
        add(
            "GET",
            "/pools/{u}/jobs",
            lambda call: [bodies.JOB.full(world, j) for j in world.jobs.store if j.pool is find(call.id)],
        ),
        *output_routes(world, "pools", lambda key: (find(key).output, lambda i: i in find(key).nodes)),
    ]
