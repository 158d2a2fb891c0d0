"""Routes under /tasks (Qarnot API: qarnot-api.md 3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.routing import BaseRoute

from airflow_qarnot_pool.local.backend import attempt, snapshots
from airflow_qarnot_pool.local.backend.models import Task
from airflow_qarnot_pool.local.backend.store import Store
from airflow_qarnot_pool.local.http.routes_common import collection_routes, output_routes
from airflow_qarnot_pool.local.http.routes_pools import check_buckets
from airflow_qarnot_pool.local.http.routing import (
    Call,
    Raw,
    as_json,
    created,
    route,
)
from airflow_qarnot_pool.local.schemas import requests, responses, resubmission
from airflow_qarnot_pool.local.schemas.errors import ApiError

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.backend.backend import Backend


def _forwards(task: Task) -> dict[str, Any]:
    """Return the forwarded ports by instance. There are none, and a task that asks for some is told so."""
    if task.spec["forcedNetworkRules"]:
        raise ApiError(400, requests.NO_FORWARD)
    return {str(instance): {} for instance in task.instances}


def _with_uuids(backend: Backend, body: Any) -> Any:
    """Return the body with uuids in place of shortnames, where those may stand for a uuid."""
    stores: tuple[tuple[str, str, Store[Any]], ...] = (
        (backend.readings.shortname_in_pool_uuid, "poolUuid", backend.pools.store),
        (backend.readings.names_as_uuids, "jobUuid", backend.jobs.store),
    )
    for reading, name, store in stores:
        if reading == "yes" and isinstance(body, dict) and (named := store.find(str(body.get(name)))):
            body = {**body, name: named.uuid}
    return body


def _bulk_status(backend: Backend, results: list[dict[str, Any]]) -> int:
    """Return the status of a bulk creation. Raises ApiError 400 in place of a list, if that is the reading."""
    failed = [result for result in results if result["statusCode"] != 200]
    if not failed:
        return 200
    if len(failed) < len(results) or backend.readings.bulk_all_fail == "207 list":
        return 207
    if backend.readings.bulk_all_fail == "400 message":
        raise ApiError(400, str(failed[0]["message"]))
    return 400


def routes(backend: Backend) -> list[BaseRoute]:
    find = backend.tasks.find

    async def create_one(body: Any) -> str:
        creation = requests.read_task(_with_uuids(backend, body), backend.readings)
        await check_buckets(backend, creation.buckets)
        backend.touch()
        return backend.tasks.create(creation).uuid

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
        return as_json(results, _bulk_status(backend, results))

    def synchronize(call: Call) -> None:
        task = find(call.id)
        if not task.running:
            raise ApiError(400, f"Invalid operation: the task is {task.state}")
        backend.spawn(attempt.synchronize(backend, task))

    def repeat(kind: str) -> BaseRoute:
        async def again(call: Call) -> Raw:
            creation = resubmission.creation(backend, find(call.id), kind, call.json)
            await check_buckets(backend, creation.buckets)
            backend.touch()
            return created("tasks", backend.tasks.create(creation).uuid)

        return add("POST", f"/tasks/{{u}}/{kind}", again)

    def add(method: str, path: str, handler: Any) -> BaseRoute:
        return route(backend, method, path, handler)

    return [
        *collection_routes(backend, "tasks", backend.tasks.store, responses.TASK),
        add("POST", "/tasks", create),
        add("GET", "/tasks/{u}", lambda call: responses.TASK.full(backend, find(call.id))),
        add("PUT", "/tasks/{u}", lambda call: backend.tasks.update(find(call.id), call.json)),
        add("PATCH", "/tasks/{u}", synchronize),
        add("DELETE", "/tasks/{u}", lambda call: backend.tasks.delete(find(call.id))),
        add("POST", "/tasks/{u}/abort", lambda call: backend.tasks.abort(find(call.id))),
        *(repeat(kind) for kind in resubmission.KINDS),
        add("POST", "/tasks/{u}/snapshot", lambda c: {"id": snapshots.take(backend, find(c.id), c.json)}),
        add("POST", "/tasks/{u}/snapshot/periodic", lambda c: snapshots.repeat(backend, find(c.id), c.json)),
        add("GET", "/tasks/{u}/snapshot/{id}", lambda c: snapshots.find(find(c.id), c.path("id"))),
        add("GET", "/network/tasks/{u}/port-forward", lambda call: _forwards(find(call.id))),
        *output_routes(backend, "tasks", find),
    ]
