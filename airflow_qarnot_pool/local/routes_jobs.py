"""/jobs (Qarnot API: qarnot-api.md 3.9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.routing import BaseRoute

from airflow_qarnot_pool.local import bodies, pages
from airflow_qarnot_pool.local.fields import Fields
from airflow_qarnot_pool.local.filters import Finder
from airflow_qarnot_pool.local.routes_common import tagged
from airflow_qarnot_pool.local.web import Call, created, route

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.world import World


def routes(world: World) -> list[BaseRoute]:
    finder = Finder(world, world.jobs.store, bodies.JOB)
    find = world.jobs.find

    def update(call: Call) -> None:
        job, fields = find(call.id), Fields(call.json, "job")
        tags = fields.tags() if fields.has("tags") else None
        fields.check()
        if tags is not None:
            world.jobs.store.retag(job, tags)

    def delete(call: Call) -> None:
        world.jobs.delete(find(call.id), force=(call.query("force") or "").lower() == "true")

    def add(method: str, path: str, handler: Any) -> BaseRoute:
        return route(world, method, path, handler)

    return [
        add("GET", "/jobs", lambda call: tagged(world, world.jobs.store, bodies.JOB.full, call.tags)),
        add("POST", "/jobs", lambda call: created("jobs", world.jobs.create(call.json).uuid)),
        add("POST", "/jobs/search", lambda call: pages.search(world, finder, bodies.JOB, call.json)),
        add("POST", "/jobs/paginate", lambda c: pages.page(world, finder, bodies.JOB, c.json, brief=False)),
        add("GET", "/jobs/{u}", lambda call: bodies.JOB.full(world, find(call.id))),
        add("PUT", "/jobs/{u}", update),
        add("DELETE", "/jobs/{u}", delete),
        add("POST", "/jobs/{u}/terminate", lambda call: world.jobs.terminate(find(call.id))),
        add(
            "GET",
            "/jobs/{u}/tasks",
            lambda call: [bodies.TASK.full(world, task) for task in find(call.id).tasks.values()],
        ),
    ]
