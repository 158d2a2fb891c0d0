"""The account, what it costs, its secrets, and the catalogue (Qarnot API: qarnot-api.md 1.2 and 3.10)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from starlette.routing import BaseRoute

from airflow_qarnot_pool.local import catalogue
from airflow_qarnot_pool.local.billing import CORES_PER_NODE, carbon_facts
from airflow_qarnot_pool.local.errors import ApiError, missing
from airflow_qarnot_pool.local.fields import PROFILES, fold
from airflow_qarnot_pool.local.model import Pool, Task
from airflow_qarnot_pool.local.web import Call, Raw, as_json, route

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.world import World

PROJECT = "00000000-0000-4000-8000-000000000001"
LARGEST_OFFSET_PAGE = 50


def quotas(world: World) -> dict[str, Any]:
    """`{flex, onDemand, reserved}` of the user."""
    limits, nodes = world.account.limits, world.meter.up
    flex = {
        "maxInstances": limits.maxInstances,
        "maxCores": limits.maxCores,
        "runningInstancesCount": nodes,
        "runningCoresCount": nodes * CORES_PER_NODE,
    }
    return {"flex": flex, "onDemand": dict.fromkeys(flex, 0), "reserved": []}


async def info(world: World) -> dict[str, Any]:
    """GET /info."""
    buckets = await asyncio.to_thread(world.storage.buckets)
    limits, nodes = world.account.limits, world.meter.up
    cores = nodes * CORES_PER_NODE
    return {
        "email": world.account.email,
        "maxBucket": limits.maxBucket,
        "bucketCount": buckets,
        "quotaBytes": 0,
        "usedQuotaBytes": 0,
        "quotaBytesBucket": 1 << 40,
        "usedQuotaBytesBucket": 0,
        "maxTask": limits.maxTask,
        "taskCount": len(world.tasks.store),
        "maxRunningTask": limits.maxRunningTask,
        "runningTaskCount": world.tasks.unfinished,
        "maxJob": limits.maxJob,
        "jobCount": len(world.jobs.store),
        "maxPool": limits.maxPool,
        "poolCount": len(world.pools.store),
        "maxRunningPool": limits.maxRunningPool,
        "runningPoolCount": world.pools.running(),
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
        "computingQuotas": {"user": quotas(world), "organization": None},
        "projects": [
            {
                "uuid": PROJECT,
                "slug": "default",
                "name": "Default",
                "organizationUuid": None,
                "description": "",
                "isDefault": True,
            }
        ],
    }


def routes(world: World) -> list[BaseRoute]:
    async def show_info(call: Call) -> Any:
        return await info(world)

    def no_organization(call: Call) -> None:
        raise ApiError(404, "The authenticated user does not inherit organization computing quotas")

    def budgets(call: Call) -> Any:
        if call.id != PROJECT:
            raise missing("project", call.id)
        active_only = (call.query("activeOnly") or "").lower() == "true"
        found = [one for one in world.account.budgets if not active_only or one.is_active(world.now)]
        return {"budgets": [one.to_json(world.spent()) for one in found]}

    def constraints(call: Call) -> Any:
        try:
            limit, offset = int(call.query("limit") or LARGEST_OFFSET_PAGE), int(call.query("offset") or 0)
        except ValueError:
            raise ApiError(400, "limit and offset must be whole numbers") from None
        return catalogue.constraints(max(1, min(limit, LARGEST_OFFSET_PAGE)), max(0, offset))

    def add(method: str, path: str, handler: Any) -> BaseRoute:
        return route(world, method, path, handler)

    return [
        add("GET", "/", lambda call: None),
        add("GET", "/settings", lambda call: {"storage": world.storage.url}),
        add("GET", "/versions", lambda call: [{"version": "v1", "endOfLife": None}]),
        add("GET", "/info", show_info),
        add("GET", "/quotas/computing-quotas/user", lambda call: quotas(world)),
        add("GET", "/quotas/computing-quotas/organization", no_organization),
        add("GET", "/profiles", lambda call: list(PROFILES)),
        add("GET", "/profiles/{name}", lambda call: catalogue.profile(call.path("name"))),
        add("GET", "/hardware-constraints", constraints),
        add(
            "GET",
            "/hardware-constraints/cpu-model-constraints/search",
            lambda call: catalogue.cpu_models(call.query("cpuModel") or ""),
        ),
        add("GET", "/credits/v1/accounts/credits", lambda call: {"credits": world.credits_left()}),
        add("GET", "/credits/v1/projects/{u}/budgets", budgets),
        *_costs(world),
        *_secrets(world),
    ]


def _costs(world: World) -> list[BaseRoute]:
    """Credits and carbon facts of pools and tasks. A task on a pool costs nothing: its nodes are the pool's."""

    def both(kind: str, find: Any) -> list[BaseRoute]:
        def node_seconds(call: Call) -> float:
            item: Pool | Task = find(call.id)
            return 0.0 if isinstance(item, Task) and item.pool else item.meter.node_seconds(world.now)

        def credits(call: Call) -> dict[str, float]:
            account = world.account
            if kind == "pools" and account.bills_deleted and call.id in account.deleted:
                return {"credits": account.deleted[call.id]}
            item: Pool | Task = find(call.id)
            return {"credits": 0.0 if isinstance(item, Task) and item.pool else item.meter.credits(world.now)}

        def carbon(call: Call) -> Any:
            return carbon_facts(node_seconds(call), call.query("comparisonDatacenter"))

        return [
            route(world, "GET", f"/credits/v1/{kind}/{{u}}/credits", credits),
            *(
                route(world, "GET", f"/carbon/v1/{name}/{{u}}/carbon-facts", carbon)
                for name in (kind, kind.capitalize())
            ),
        ]

    return [*both("pools", world.pools.find), *both("tasks", world.tasks.find)]


def _secrets(world: World) -> list[BaseRoute]:
    """Secrets are kept; no instance is given them."""

    def found(call: Call) -> str:
        key = call.path("key")
        if key not in world.secrets:
            raise ApiError(404, f"Secret {key} doesn't exist")
        return key

    def value(call: Call) -> str:
        text = fold(call.json).get("value")
        if not isinstance(text, str):
            raise ApiError(400, "A secret needs a value")
        return text

    def create(call: Call) -> Raw:
        key = call.path("key")
        if key in world.secrets:
            raise ApiError(409, f"Secret {key} already exists")
        world.secrets[key] = value(call)
        return Raw(status_code=201)

    def update(call: Call) -> Raw:
        world.secrets[found(call)] = value(call)
        return Raw(status_code=204)

    def delete(call: Call) -> Raw:
        del world.secrets[found(call)]
        return Raw(status_code=204)

    def search(call: Call) -> Raw:
        prefix = call.path("key")
        prefix += "/" if prefix and not prefix.endswith("/") else ""
        inside = [key.removeprefix(prefix) for key in sorted(world.secrets) if key.startswith(prefix)]
        # One level: what lies deeper shows as a folder.
        return as_json(
            {"keys": list(dict.fromkeys(k.partition("/")[0] + k.partition("/")[1] for k in inside))}
        )

    path = "/secrets-manager/data/{key:path}"
    return [
        route(world, "GET", path, lambda call: {"value": world.secrets[found(call)]}),
        route(world, "PUT", path, create),
        route(world, "PATCH", path, update),
        route(world, "DELETE", path, delete),
        route(world, "GET", "/secrets-manager/search/{key:path}", search),
        route(world, "GET", "/secrets-manager/search", lambda call: {"keys": sorted(world.secrets)}),
    ]
