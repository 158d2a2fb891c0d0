"""Pools of the executor: made when the first task needs them, and shared by all schedulers of a deployment.

A pool is a shared pool (:mod:`airflow_qarnot_pool.ownership.shared_pool`) whose name has a digest of its specification.
So all schedulers find the same one, and other options give another pool. The old one scales to zero, and the reaper
closes it. A pool without work has no nodes and costs nothing, so nothing closes it otherwise.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_qarnot_pool.api import filters, states
from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.executors.bundle_archives import BUNDLES, bundle_resources
from airflow_qarnot_pool.executors.environment import Preparations, archive_of
from airflow_qarnot_pool.ownership.claim import ClaimRequest, claim
from airflow_qarnot_pool.ownership.identity import EXECUTOR_LABEL, OWNER_TAG, TaskInstanceIdentity, digest

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.executors.options import ExecutorOptions, TaskConfig
    from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings

log = logging.getLogger(__name__)


def pool_tag(namespace: str, name: str) -> str:
    """Return the tag of all pools of Qarnot that have the name *name* in the options of the executor."""
    return f"airflow-executor-pool:{digest(namespace, name)}"


class PoolKey(NamedTuple):
    """A pool of the executor: its name, and the slots of its tasks."""

    name: str
    slots: int = 1

    @classmethod
    def of(cls, config: TaskConfig) -> PoolKey:
        """Return the pool of a task."""
        return cls(config.pool, config.slots)


def missing_namespace(settings: ConnectionSettings) -> QarnotInvalidSpecError | None:
    """Return an error if the connection has no explicit namespace."""
    if settings.namespace_is_explicit:
        return None
    return QarnotInvalidSpecError(
        "The pool of QarnotExecutor needs an explicit namespace: without one another deployment may share it",
        field="namespace",
        remedy=f"Set it in the connection {settings.conn_id!r}, or as [qarnot] namespace.",
    )


def shared_identity(namespace: str, key: PoolKey, fingerprint: str) -> TaskInstanceIdentity:
    """Return the identity of a pool, which is the same in each scheduler of the deployment."""
    sized = f"{key.name}-{key.slots}" if key.slots > 1 else key.name
    return TaskInstanceIdentity(
        namespace=namespace,
        dag_id="",
        run_id="",
        task_id="",
        map_index=-1,
        run_started="",
        max_tries=0,
        try_number=1,
        retries=0,
        shared=f"{sized}-{fingerprint[:8]}",
    )


class ExecutorPools:
    """The uuids of the pools, claimed at the first need."""

    def __init__(self, options: ExecutorOptions, pause: Callable[[float], Any] = time.sleep) -> None:
        self._options = options
        self._pause = pause
        self._uuids: dict[PoolKey, str] = {}
        self._archives: dict[PoolKey, str | None] = {}
        self._environments = Preparations()

    def uuid_of(self, client: QarnotClient, settings: ConnectionSettings, key: PoolKey) -> str:
        """Return the uuid of a pool, which is created if there is none.

        :raises QarnotInvalidSpecError: the connection has no explicit namespace.
        :raises QarnotError: Qarnot refuses the pool, or is not available.
        """
        if key not in self._uuids:
            self._uuids[key] = self._claim(client, settings, key)
        return self._uuids[key]

    def archive_of(self, key: PoolKey) -> str | None:
        """Return the archive with the environment that a claimed pool brings, or None."""
        return self._archives.get(key)

    def forget_if_closed(self, client: QarnotClient, key: PoolKey) -> bool:
        """Forget a pool that accepts no tasks any more, and return whether it does not."""
        uuid = self._uuids.get(key)
        pool = client.pools.find(uuid) if uuid is not None else None
        if pool is not None and states.accepts_tasks(pool.state):
            return False
        self._uuids.pop(key, None)
        return True

    def _claim(self, client: QarnotClient, settings: ConnectionSettings, key: PoolKey) -> str:
        if (error := missing_namespace(settings)) is not None:
            raise error
        pool = self._options.pools[key.name]
        spec = pool.spec(key.slots)
        added = bundle_resources(self._options.node_environment.get(BUNDLES))
        if pool.requirements is not None:
            added.append(self._environments.get(settings, pool.requirements))
        if added:
            spec = replace(spec, resource_buckets=[*spec.resource_buckets, *added])
        spec = replace(spec, tags=(*spec.tags, pool_tag(settings.namespace, key.name)))
        self._archives[key] = archive_of(added)
        fingerprint = spec.fingerprint()
        identity = shared_identity(settings.namespace, key, fingerprint)
        request = ClaimRequest(
            resource=client.pools,
            spec=spec,
            identity=identity,
            pause=self._pause,
            labels={EXECUTOR_LABEL: key.name},
            fingerprint=fingerprint,
            make_room=lambda error: delete_closed(client, identity.owner),
        )
        claimed = claim(request)
        log.info("QarnotExecutor uses pool %s (%s, %s)", claimed.uuid, key.name, claimed.decision)
        return claimed.uuid


def delete_closed(client: QarnotClient, owner: str) -> int:
    """Delete closed generations of a pool, which count against the account's quota, and return their number.

    The newest is kept if there are others, because another scheduler may count the next generation from it.
    """
    closed = [
        pool
        for pool in client.pools.iterate(filters.equal("Tags", OWNER_TAG + owner))
        if pool.phase is states.Phase.TERMINAL
    ]
    closed.sort(key=lambda pool: str(pool.creation_date))
    deleted = closed[:-1] or closed
    for pool in deleted:
        client.pools.delete(pool.uuid)
    return len(deleted)
