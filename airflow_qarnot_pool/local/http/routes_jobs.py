"""Routes under /jobs (Qarnot API: qarnot-api.md 3.9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.routing import BaseRoute

from airflow_qarnot_pool.local.http.routes_common import collection_routes
from airflow_qarnot_pool.local.http.routing import Call, created, route
from airflow_qarnot_pool.local.schemas import responses
from airflow_qarnot_pool.local.schemas.fields import RequestFields

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.backend.backend import Backend


def routes(backend: Backend) -> list[BaseRoute]:
    find = backend.jobs.find

    def update(call: Call) -> None:
        job, fields = find(call.id), RequestFields(call.json, "job")
        tags = fields.tags() if fields.has("tags") else None
        fields.check()
        if tags is not None:
            backend.jobs.store.retag(job, tags)

    def delete(call: Call) -> None:
        backend.jobs.delete(find(call.id), force=(call.query("force") or "").lower() == "true")

    def add(method: str, path: str, handler: Any) -> BaseRoute:
        return route(backend, method, path, handler)

    return [
        *collection_routes(backend, "jobs", backend.jobs.store, responses.JOB, has_summaries=False),
        add("POST", "/jobs", lambda call: created("jobs", backend.jobs.create(call.json).uuid)),
        add("GET", "/jobs/{u}", lambda call: responses.JOB.full(backend, find(call.id))),
        add("PUT", "/jobs/{u}", update),
        add("DELETE", "/jobs/{u}", delete),
        add("POST", "/jobs/{u}/terminate", lambda call: backend.jobs.terminate(find(call.id))),
        add(
            "GET",
            "/jobs/{u}/tasks",
            lambda call: [responses.TASK.full(backend, task) for task in find(call.id).tasks.values()],
        ),
    ]
