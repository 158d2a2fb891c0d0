"""Read connections from triggers."""

from __future__ import annotations

from airflow.sdk import BaseHook

from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings


async def read_settings(conn_id: str) -> ConnectionSettings:
    """Return the current settings of a connection."""
    return ConnectionSettings.of(await BaseHook.aget_connection(conn_id))
