"""Send requests to Airflow from triggers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from airflow.sdk import BaseHook

from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings

T = TypeVar("T")

log = logging.getLogger(__name__)

#: Maximum seconds for a response from Airflow.
AIRFLOW_TIMEOUT = 30.0
#: The settings of each connection that this process has read last.
_last_read: dict[str, ConnectionSettings] = {}


async def read_settings(conn_id: str) -> ConnectionSettings:
    """Return the current settings of a connection, or those of the last read while it cannot be read.

    Airflow's own API may be down for a while, or the secrets backend, which Airflow reports as a connection that is not
    found.
    """
    try:
        connection = await finished(BaseHook.aget_connection(conn_id))
    except Exception as error:
        if conn_id not in _last_read:
            raise
        log.warning("Could not read connection %s again: %s", conn_id, error)
        return _last_read[conn_id]
    _last_read[conn_id] = settings = ConnectionSettings.of(connection)
    return settings


async def in_thread(call: Callable[[], T]) -> T:
    """Run *call*, which sends a request to Airflow, outside the event loop."""
    from asgiref.sync import sync_to_async

    run: Callable[[], Coroutine[Any, Any, T]] = sync_to_async(call)
    return await finished(run())


async def finished(request: Coroutine[Any, Any, T]) -> T:
    """Return the result of *request*. A caller that is cancelled waits until the request has finished.

    ``asgiref`` returns from a cancelled call at once, although its thread still sends. ``dag.test()`` runs the next
    task in the same process meanwhile. The request would then replace that task's channel to its supervisor.
    """
    task = asyncio.ensure_future(request)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=AIRFLOW_TIMEOUT)
        raise
