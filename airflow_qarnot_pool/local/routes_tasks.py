"""/tasks and what is below it (Qarnot API: qarnot-api.md 3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.routing import BaseRoute

from airflow_qarnot_pool.local import attempt, bodies, pages, payloads, repeats, snapshots
from airflow_qarnot_pool.local.errors import ApiError
from airflow_qarnot_pool.local.fields import MAX_TASK_CONSTANTS, Fields, keep_secrets
from airflow_qarnot_pool.local.filters import Finder
from airflow_qarnot_pool.local.routes_common import output_routes, tagged
from airflow_qarnot_pool.local.routes_pools import check_buckets
from airflow_qarnot_pool.local.web import Call, Raw, as_json, created, route

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.world import World


def routes(world: World) -> list[BaseRoute]:
    finder = Finder(world, world.tasks.store, bodies.TASK)
    find = world.tasks.find

    async def create_one(body: Any) -> str:
        wanted = payloads.read_task(body)
        await check_buckets(world, wanted.buckets)
        world.touch()
        return world.tasks.create(wanted).uuid

    async def create(call: Call) -> Raw:
        body = call.json
        if not isinstance(body, list):
            return created("tasks", await create_one(body))
        results: list[dict[str, Any]] = []
        for item in body:
            try:
                results.append({"statusCode": 200, "uuid": await create_one(item), "message": None})
            except ApiError as error:
                results.append({"statusCode": error.status, "uuid": None, "message": error.message})
        failed = any(result["statusCode"] != 200 for result in results)
        return as_json(results, 207 if failed else 200)

    def update(call: Call) -> None:
        task = find(call.id)
        fields = Fields(call.json, "task")
        constants = fields.constants(MAX_TASK_CONSTANTS) if fields.has("constants") else None
        tags = fields.tags() if fields.has("tags") else None
        fields.check()
        if constants is not None:
            task.constants = keep_secrets(constants, task.constants)
        if tags is not None:
            world.tasks.store.retag(task, tags)
        task.modified = world.now

    def synchronize(call: Call) -> None:
        task = find(call.id)
        if not task.running:
            raise ApiError(400, f"Invalid operation: the task is {task.state}")
        world.spawn(attempt.synchronize(world, task))

    def repeat(kind: str) -> BaseRoute:
        async def again(call: Call) -> Raw:
            wanted = repeats.creation(world, find(call.id), kind, call.json)
            await check_buckets(world, wanted.buckets)
            world.touch()
            return created("tasks", world.tasks.create(wanted).uuid)

        return add("POST", f"/tasks/{{u}}/{kind}", again)

    def add(method: str, path: str, handler: Any) -> BaseRoute:
        return route(world, method, path, handler)

    return [
        add("GET", "/tasks", lambda call: tagged(world, world.tasks.store, bodies.TASK.full, call.tags)),
        add("POST", "/tasks", create),
        add("GET", "/tasks/summaries", lambda c: tagged(world, world.tasks.store, bodies.TASK.brief, c.tags)),
        add("POST", "/tasks/search", lambda call: pages.search(world, finder, bodies.TASK, call.json)),
        add("POST", "/tasks/paginate", lambda c: pages.page(world, finder, bodies.TASK, c.json, brief=False)),
        add(
            "POST",
            "/tasks/summaries/paginate",
            lambda call: pages.page(world, finder, bodies.TASK, call.json, brief=True),
        ),
        add("GET", "/tasks/{u}", lambda call: bodies.TASK.full(world, find(call.id))),
        add("PUT", "/tasks/{u}", update),
        add("PATCH", "/tasks/{u}", synchronize),
        add("DELETE", "/tasks/{u}", lambda call: world.tasks.delete(find(call.id))),
        add("POST", "/tasks/{u}/abort", lambda call: world.tasks.abort(find(call.id))),
        *(repeat(kind) for kind in repeats.KINDS),
        add("POST", "/tasks/{u}/snapshot", lambda c: {"id": snapshots.take(world, find(c.id), c.json)}),
        add("POST", "/tasks/{u}/snapshot/periodic", lambda c: snapshots.repeat(world, find(c.id), c.json)),
        add("GET", "/tasks/{u}/snapshot/{id}", lambda c: snapshots.find(find(c.id), c.path("id"))),
        add("GET", "/network/tasks/{u}/port-forward", lambda c: {str(i): {} for i in find(c.id).instances}),
        *output_routes(world, "tasks", lambda key: (find(key).output, lambda i: i in find(key).instances)),
    ]
