"""Airflow's object storage in Qarnot's buckets: ``ObjectStoragePath("qarnot://qarnot_default@bucket/key")``.

Airflow imports ``schemes`` and ``get_fs`` from here (provider metadata, ``filesystems``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_qarnot_pool.fs.filesystem import QarnotFileSystem

schemes = ["qarnot"]


def get_fs(conn_id: str | None = None, storage_options: Mapping[str, Any] | None = None) -> QarnotFileSystem:
    """Return the file system of a connection of type ``qarnot``; default: ``qarnot_default``."""
    from airflow_qarnot_pool.fs.filesystem import QarnotFileSystem

    return QarnotFileSystem(**{"conn_id": conn_id, **(storage_options or {})})
