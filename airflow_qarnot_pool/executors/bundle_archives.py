"""Archives of DAG bundles in buckets: their names, and how a pool brings them to its nodes.

:mod:`airflow_qarnot_pool.executors.bundle` makes them.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_qarnot_pool.api.errors import QarnotError

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.specs import ResourceBucket

log = logging.getLogger(__name__)

#: Folder of the archives in the bucket, and on a node. It is no part of a bundle.
ARCHIVES = "airflow-qarnot-bundles/"
#: The class of a Qarnot bundle in the configuration.
BUNDLE_CLASS = "airflow_qarnot_pool.executors.bundle.QarnotDagBundle"
#: Setting of the nodes with the DAG bundles.
BUNDLES = "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST"


def source_prefix(folder: str) -> str:
    """Return the prefix of the keys below *folder* of a bucket; "" for the whole bucket."""
    return f"{folder.strip('/')}/" if folder.strip("/") else ""


def archives_folder(name: str, prefix: str) -> str:
    """Return the folder of the archives of a bundle. It differs between two deployments that share bucket and name.

    :param prefix: folder of the DAG files in the bucket.
    """
    return f"{ARCHIVES}{name}/{hashlib.sha256(source_prefix(prefix).encode()).hexdigest()[:8]}/"


def archive_key(folder: str, version: str) -> str:
    """Return the key of the archive of a version, which is also its path below the resources of a pool."""
    return f"{folder}{version}.tar.gz"


def bundle_resources(config_list: str | None) -> list[ResourceBucket]:
    """Return the resources of a pool that bring all versions of the Qarnot bundles of a deployment.

    :param config_list: the option ``[dag_processor] dag_bundle_config_list``.
    """
    from airflow_qarnot_pool.api.specs import ResourceBucket

    return [
        ResourceBucket(bucket=bundle["kwargs"]["bucket"], prefix=_folder_of(bundle))
        for bundle in bundles_of(config_list)
        if is_qarnot_bundle(bundle)
    ]


def archive_of(name: str, version: str | None, config_list: str | None) -> str | None:
    """Return the archive that the nodes need for a bundle, or None if it is no Qarnot bundle with a version."""
    if not version:
        return None
    ours = (each for each in bundles_of(config_list) if each.get("name") == name and is_qarnot_bundle(each))
    return next((archive_key(_folder_of(bundle), version) for bundle in ours), None)


def _folder_of(bundle: Mapping[str, Any]) -> str:
    return archives_folder(bundle["name"], str(bundle["kwargs"].get("prefix", "")))


class BroughtArchives:
    """The archives that pools were asked to bring to their nodes. A pool is asked once for each."""

    def __init__(self) -> None:
        self._brought: dict[str, set[str]] = {}

    def bring(self, client: QarnotClient, pool: str, archives: Iterable[str]) -> None:
        """Ask Qarnot to copy the resources of *pool* to its nodes again if they may lack one of *archives*.

        An error changes nothing for the tasks, because a node downloads an archive that it lacks.

        :param pool: uuid of the pool.
        """
        brought = self._brought.setdefault(pool, set())
        new = set(archives) - brought
        if not new:
            return
        try:
            client.pools.sync_resources(pool)
        except QarnotError as error:
            # A pool without nodes refuses it. Nodes that boot later bring everything.
            log.info("Pool %s does not copy %s to its nodes: %s", pool, ", ".join(sorted(new)), error)
        brought |= new


def holds_logs(bucket: str, prefix: str, log_folder: str | None) -> bool:
    """Return whether logs of tasks are stored among DAG files, where each of them would be a new version.

    :param prefix: folder of the DAG files in *bucket*.
    :param log_folder: the option ``[logging] remote_base_log_folder``.
    """
    parts = urlsplit(log_folder or "")
    return (
        parts.scheme == "qarnot"
        and parts.netloc.rpartition("@")[2] == bucket
        and source_prefix(parts.path).startswith(source_prefix(prefix))
    )


def bundles_of(config_list: str | None) -> list[dict[str, Any]]:
    """Return the bundles of a deployment. Airflow itself refuses an invalid list."""
    try:
        bundles = json.loads(config_list or "[]")
    except ValueError:
        return []
    return [bundle for bundle in bundles if isinstance(bundle, dict)] if isinstance(bundles, list) else []


def is_qarnot_bundle(bundle: Mapping[str, Any]) -> bool:
    """Return whether an entry of that option is a bundle of this module."""
    classpath, kwargs = str(bundle.get("classpath")), bundle.get("kwargs")
    return classpath == BUNDLE_CLASS and isinstance(kwargs, dict) and "bucket" in kwargs
