"""Send requests to Airflow from triggers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from airflow.sdk import BaseHook

from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings

T = TypeVar("T")

#: Maximum seconds for a response from Airflow.
AIRFLOW_TIMEOUT = 30.0


async def read_settings(conn_id: str) -> ConnectionSettings:
    """Return the current settings of a connection."""
    return ConnectionSettings.of(await finished(BaseHook.aget_connection(conn_id)))


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
