"""Routes of the account, its costs, its secrets and the catalogue (Qarnot API: qarnot-api.md 1.2 and 3.10)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from starlette.routing import BaseRoute

from airflow_qarnot_pool.local.backend.billing import CORES_PER_NODE, EUROS_PER_NODE_SECOND, carbon_facts
from airflow_qarnot_pool.local.backend.models import Pool, Task
from airflow_qarnot_pool.local.http.routing import (
    Call,
    Raw,
    as_json,
    route,
)
from airflow_qarnot_pool.local.schemas import catalogue
from airflow_qarnot_pool.local.schemas.errors import ApiError, missing
from airflow_qarnot_pool.local.schemas.fields import fold

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.backend.backend import Backend

PROJECT = "00000000-0000-4000-8000-000000000001"
ORGANIZATION = "00000000-0000-4000-8000-000000000002"
"""The organization of the project, which the C# SDK cannot read if it is null."""
LARGEST_OFFSET_PAGE = 50


def quotas(backend: Backend) -> dict[str, Any]:
    """Return `{flex, onDemand, reserved}` of the user."""
    limits, nodes = backend.account.limits, backend.meter.up
    flex = {
        "maxInstances": limits.maxInstances,
        "maxCores": limits.maxCores,
        "runningInstancesCount": nodes,
        "runningCoresCount": nodes * CORES_PER_NODE,
    }
    return {"flex": flex, "onDemand": dict.fromkeys(flex, 0), "reserved": []}


async def info(backend: Backend) -> dict[str, Any]:
    """Return GET /info."""
    buckets = await asyncio.to_thread(backend.storage.buckets)
    limits, nodes = backend.account.limits, backend.meter.up
    cores = nodes * CORES_PER_NODE
    return {
        "email": backend.account.email,
        "maxBucket": limits.maxBucket,
        "bucketCount": buckets,
        "quotaBytes": 0,
        "usedQuotaBytes": 0,
        "quotaBytesBucket": 1 << 40,
        "usedQuotaBytesBucket": 0,
        "maxTask": limits.maxTask,
        "taskCount": len(backend.tasks.store),
        "maxRunningTask": limits.maxRunningTask,
        "runningTaskCount": backend.tasks.unfinished,
        "maxJob": limits.maxJob,
        "jobCount": len(backend.jobs.store),
        "maxPool": limits.maxPool,
        "poolCount": len(backend.pools.store),
        "maxRunningPool": limits.maxRunningPool,
        "runningPoolCount": backend.pools.running(),
        "runningInstanceCount": nodes,
        "runningCoreCount": cores,
        "maxInstances": limits.maxInstances,
        "maxCores": limits.maxCores,
        "maxFlexInstances": limits.maxInstances,
        "maxFlexCores": limits.maxCores,
        "runningFlexInstanceCount": nodes,
        "runningFlexCoreCount": cores,
        "maxOnDemandInstances": 0,
        "maxOnDemandCores": 0,
        "runningOnDemandInstanceCount": 0,
        "runningOnDemandCoreCount": 0,
        "defaultScheduling": "Flex",
        "defaultReservedSpecificationKey": None,
        "computingQuotas": {"user": quotas(backend), "organization": None},
        "projects": [
            {
                "uuid": PROJECT,
                "slug": "default",
                "name": "Default",
                "organizationUuid": ORGANIZATION,
                "description": "",
                "isDefault": True,
            }
        ],
    }


def routes(backend: Backend) -> list[BaseRoute]:
    async def show_info(call: Call) -> Any:
        return await info(backend)

    def no_organization(call: Call) -> None:
        raise ApiError(404, "The authenticated user does not inherit organization computing quotas")

    def budgets(call: Call) -> Any:
        if call.id != PROJECT:
            raise missing("project", call.id)
        active_only = (call.query("activeOnly") or "").lower() == "true"
        budgets = [
            budget for budget in backend.account.budgets if not active_only or budget.is_active(backend.now)
        ]
        return {"budgets": [budget.to_json(backend.spent()) for budget in budgets]}

    def constraints(call: Call) -> Any:
        try:
            limit, offset = int(call.query("limit") or LARGEST_OFFSET_PAGE), int(call.query("offset") or 0)
        except ValueError:
            raise ApiError(400, "limit and offset must be whole numbers") from None
        return catalogue.constraints(max(1, min(limit, LARGEST_OFFSET_PAGE)), max(0, offset))

    def add(method: str, path: str, handler: Any) -> BaseRoute:
        return route(backend, method, path, handler)

    return [
        add("GET", "/", lambda call: None),
        add("GET", "/settings", lambda call: {"storage": backend.storage.url}),
        add("GET", "/versions", lambda call: [{"version": "v1", "endOfLife": None}]),
        add("GET", "/info", show_info),
        add("GET", "/quotas/computing-quotas/user", lambda call: quotas(backend)),
        add("GET", "/quotas/computing-quotas/organization", no_organization),
        add("GET", "/profiles", lambda call: list(backend.settings.profiles)),
        add(
            "GET",
            "/profiles/{name}",
            lambda call: catalogue.profile(backend.settings.profiles, call.path("name")),
        ),
        add("GET", "/hardware-constraints", constraints),
        add(
            "GET",
            "/hardware-constraints/cpu-model-constraints/search",
            lambda call: catalogue.cpu_models(call.query("cpuModel") or ""),
        ),
        add("GET", "/credits/v1/accounts/credits", lambda call: {"credits": backend.credits_left()}),
        add("GET", "/credits/v1/projects/{u}/budgets", budgets),
        *_costs(backend),
        *_secrets(backend),
    ]


def _costs(backend: Backend) -> list[BaseRoute]:
    """Return routes of credits and carbon facts. A task on a pool costs nothing, because the pool costs."""

    def both(kind: str, find: Any) -> list[BaseRoute]:
        def node_seconds(call: Call) -> float:
            item: Pool | Task = find(call.id)
            return 0.0 if isinstance(item, Task) and item.pool else item.meter.node_seconds(backend.now)

        def check_known(call: Call, item: Pool | Task) -> None:
            """Check that the costs of an object are known. Raises ApiError 404."""
            known = backend.readings.costs_at_first == "credits 0, carbon facts 200"
            if not known and not node_seconds(call):
                raise missing("costs", item.uuid)

        def credits(call: Call) -> dict[str, float]:
            account = backend.account
            bills_deleted = account.bills_deleted and backend.readings.credits_of_deleted == "reported"
            if kind == "pools" and bills_deleted and call.id in account.deleted:
                return {"credits": account.deleted[call.id]}
            item: Pool | Task = find(call.id)
            if isinstance(item, Task) and item.pool:
                return {"credits": _share_of(item)}
            check_known(call, item)
            return {"credits": item.meter.credits(backend.now)}

        def _share_of(task: Task) -> float:
            """Return the credits of a task on a pool."""
            if backend.readings.credits_of_tasks == "not reported":
                raise missing("credits", task.uuid)
            return EUROS_PER_NODE_SECOND if backend.readings.credits_of_tasks == "its own" else 0.0

        def carbon(call: Call) -> Any:
            check_known(call, find(call.id))
            keys = backend.readings.carbon_keys
            return carbon_facts(node_seconds(call), call.query("comparisonDatacenter"), keys)

        return [
            route(backend, "GET", f"/credits/v1/{kind}/{{u}}/credits", credits),
            *(
                route(backend, "GET", f"/carbon/v1/{name}/{{u}}/carbon-facts", carbon)
                for name in (kind, kind.capitalize())
            ),
        ]

    return [*both("pools", backend.pools.find), *both("tasks", backend.tasks.find)]


def _secrets(backend: Backend) -> list[BaseRoute]:
    """Return routes of secrets."""

    def existing_key(call: Call) -> str:
        key = call.path("key")
        if key not in backend.secrets:
            raise ApiError(404, f"Secret {key} doesn't exist")
        return key

    def value(call: Call) -> str:
        text = fold(call.json).get("value")
        if not isinstance(text, str) or "\0" in text:
            raise ApiError(400, "A secret needs a value, which is text without a null character")
        return text

    def create(call: Call) -> Raw:
        key = call.path("key")
        if key in backend.secrets:
            raise ApiError(409, f"Secret {key} already exists")
        backend.secrets[key] = value(call)
        return Raw(status_code=201)

    def update(call: Call) -> Raw:
        backend.secrets[existing_key(call)] = value(call)
        return Raw(status_code=204)

    def delete(call: Call) -> Raw:
        del backend.secrets[existing_key(call)]
        return Raw(status_code=204)

    def search(call: Call) -> Raw:
        prefix = call.path("key")
        prefix += "/" if prefix and not prefix.endswith("/") else ""
        inside = [key.removeprefix(prefix) for key in sorted(backend.secrets) if key.startswith(prefix)]
        # One level: what lies deeper shows as a folder.
        return as_json(
            {"keys": list(dict.fromkeys(k.partition("/")[0] + k.partition("/")[1] for k in inside))}
        )

    path = "/secrets-manager/data/{key:path}"
    return [
        route(backend, "GET", path, lambda call: {"value": backend.secrets[existing_key(call)]}),
        route(backend, "PUT", path, create),
        route(backend, "PATCH", path, update),
        route(backend, "DELETE", path, delete),
        route(backend, "GET", "/secrets-manager/search/{key:path}", search),
        route(backend, "GET", "/secrets-manager/search", lambda call: {"keys": sorted(backend.secrets)}),
    ]
