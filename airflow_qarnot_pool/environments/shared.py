"""Bring several environments to the nodes of one shared pool.

The resources of a pool are fixed when it is created. So a shared pool brings all files of one folder, and a DAG run
with another environment puts its archive beside the others and asks Qarnot to copy the resources again. Nothing is
replaced: each archive has the hash of its content in its name, and each call names its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from airflow_qarnot_pool.api import states
from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError, QarnotRefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Pool
    from airflow_qarnot_pool.api.specs import PoolSpec, ResourceBucket
    from airflow_qarnot_pool.environments.storage import EnvironmentStorage

log = logging.getLogger(__name__)

#: Start of the names of the folders, by which they are told from resources of the user.
FOLDERS = "airflow-qarnot-shared-pools/"


def folder_for(namespace: str, name: str, archive: str) -> str:
    """Return the folder of a shared pool that is created with *archive*.

    It depends on the archive, because a new pool must not bring the archives of all pools before it.
    """
    digest = hashlib.sha256(json.dumps([namespace, name, archive]).encode()).hexdigest()[:32]
    return f"{FOLDERS}{digest}/"


def resource_for(bucket: str, folder: str) -> ResourceBucket:
    """Return the resource that brings all files of *folder*."""
    from airflow_qarnot_pool.api.specs import ResourceBucket

    return ResourceBucket(bucket=bucket, prefix=folder, strip_prefix=folder)


def comparable(spec: PoolSpec) -> PoolSpec:
    """Return *spec* with the same folder whatever its environment is. Users of a shared pool may have several."""
    resources = [
        resource_for(one.bucket, FOLDERS) if _is_folder(one) else one
        for one in cast("Sequence[ResourceBucket]", spec.resource_buckets or ())
    ]
    return replace(spec, resource_buckets=resources) if resources else spec


def bring(
    client: QarnotClient, storage: EnvironmentStorage, pool: Pool, archive: str, own_folder: str = ""
) -> None:
    """Bring *archive* to the nodes of a shared pool that may have been created with another one.

    Qarnot tasks that are submitted after this wait for the copies, because the pool says so.

    :param own_folder: the folder of a pool that is created with *archive*, which has it from its start.
    """
    folders = [
        str(one.prefix) for one in pool.resource_buckets if one.bucket == storage.bucket and _is_folder(one)
    ]
    if not folders:
        raise QarnotInvalidSpecError(
            f"environment cannot be brought to shared pool {pool.uuid}, which was created without one",
            field="environment",
            remedy="Give all users of the pool an environment, or share another name.",
        )
    if folders[0] == own_folder:
        return
    storage.copy(archive, folders[0])
    try:
        client.pools.sync_resources(pool.uuid)
    except QarnotRefusedError:
        current = client.pools.find(pool.uuid)
        if current is not None and states.accepts_tasks(current.state) and current.ready_slots:
            raise
        # It has no nodes that miss the archive. Nodes that boot later get all files of the folder.
    else:
        log.info("Pool %s brings environment %s to its nodes", pool.uuid, archive)


def has_environments(pool: Pool) -> bool:
    """Return whether *pool* is shared, and brings environments to its nodes."""
    return any(map(_is_folder, pool.resource_buckets))


def _is_folder(resource: ResourceBucket) -> bool:
    return str(resource.prefix or "").startswith(FOLDERS)
