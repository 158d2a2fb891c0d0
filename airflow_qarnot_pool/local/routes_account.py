"""The account and the catalogues (Qarnot API: qarnot-api.md 1.2 and 3.10)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from starlette.routing import BaseRoute

from airflow_qarnot_pool.local.billing import CORES_PER_NODE
from airflow_qarnot_pool.local.http import Call, route

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.world import World

PROJECT = "00000000-0000-4000-8000-000000000001"


async def info(world: World) -> dict[str, Any]:
    """GET /info."""
    buckets = await asyncio.to_thread(world.storage.buckets)
    limits, nodes = world.account.limits, world.meter.up
    cores = nodes * CORES_PER_NODE
    quota = {
        "maxInstances": limits.maxInstances,
        "maxCores": limits.maxCores,
        "runningInstancesCount": nodes,
        "runningCoresCount": cores,
    }
    none = {"maxInstances": 0, "maxCores": 0, "runningInstancesCount": 0, "runningCoresCount": 0}
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
        "computingQuotas": {"user": {"flex": quota, "onDemand": none, "reserved": []}, "organization": None},
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

    def add(method: str, path: str, handler: Any) -> BaseRoute:
        return route(world, method, path, handler)

    return [
        add("GET", "/", lambda call: None),
        add("GET", "/settings", lambda call: {"storage": world.storage.url}),
        add("GET", "/versions", lambda call: [{"version": "v1", "endOfLife": None}]),
        add("GET", "/info", show_info),
    ]
