"""The page for a browser: an HTML file without data, and the facts that its script asks for with the token."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.responses import Response
from starlette.types import Scope

from airflow_qarnot_pool.local.backend.models import Instance, Output, Pool, Remote, Task
from airflow_qarnot_pool.local.http.progress import summary
from airflow_qarnot_pool.local.http.routing import Call
from airflow_qarnot_pool.local.processes import output

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.backend.backend import Backend

T = TypeVar("T", bound=Remote)
MAX_ROWS = 500
"""Maximum number of pools, of tasks and of instances that the page shows."""
MAX_TEXT = 500
MAX_OUTPUT = 1 << 16
"""Maximum number of characters of a stream that the page shows, from its end."""


# ---- the file ------------------------------------------------------------------------------------


def is_wanted(scope: Scope) -> bool:
    """Return whether a browser asks for `/` to show it. A client of the API sends a token."""
    headers = dict(scope["headers"])
    accepts_html = b"text/html" in headers.get(b"accept", b"")
    is_root = scope["path"] == "/" and scope["method"] in ("GET", "HEAD")
    return is_root and accepts_html and b"authorization" not in headers


def response() -> Response:
    """Return the page. Its policy allows its script and its style, and requests to this server."""
    html = Path(__file__).with_name("page.html").read_text()
    hashes = {}
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        hashes[tag] = f"{tag}-src 'sha256-{digest}'"
    policy = (
        "default-src 'none'",
        *hashes.values(),
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    headers = {
        "Content-Security-Policy": "; ".join(policy),
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    return Response(html, media_type="text/html; charset=utf-8", headers=headers)


# ---- the facts -----------------------------------------------------------------------------------


def _newest(items: list[Any]) -> list[Any]:
    return items[: -MAX_ROWS - 1 : -1]


def _common(item: Remote, show_time: Any) -> dict[str, Any]:
    error = item.errors[0]["message"][:MAX_TEXT] if item.errors else ""
    return {
        "uuid": item.uuid,
        "name": item.name[:MAX_TEXT],
        "state": item.state,
        "created": show_time(item.created),
        "error": error,
    }


def _pool(backend: Backend, pool: Pool) -> dict[str, Any]:
    return {
        **_common(pool, backend.shown_time.show),
        "isOpen": pool.is_open,
        "up": sum(node.slots for node in pool.nodes.values() if node.up is not None),
        "slots": max(pool.slots, pool.target) if pool.is_open else 0,
        "queued": pool.waiting,
        "running": pool.running,
        "euros": pool.meter.credits(backend.now),
    }


def _task(backend: Backend, task: Task) -> dict[str, Any]:
    return {
        **_common(task, backend.shown_time.show),
        "pool": task.pool.name[:MAX_TEXT] if task.pool else "",
        "total": len(task.instances),
        "queued": task.waiting + task.placed,
        "running": task.running + task.uploading,
        "succeeded": len(task.succeeded),
        "failed": len(task.failed),
        "cancelled": len(task.cancelled),
    }


def _instance(instance: Instance, errors: dict[int, str]) -> dict[str, Any]:
    return {
        "id": instance.id,
        "state": instance.phase.value,
        "attempts": instance.attempts,
        "node": instance.node.id if instance.node else "",
        "error": errors.get(instance.id, ""),
    }


def _instances(task: Task) -> list[dict[str, Any]]:
    errors = {
        done["instanceId"]: str(done["error"]["message"])[:MAX_TEXT]
        for done in task.completed
        if done["error"] is not None
    }
    return [_instance(one, errors) for one in list(task.instances.values())[:MAX_ROWS]]


def _matching(items: Iterable[T], text: str) -> list[T]:
    """Return the items that have a text in their name, uuid, shortname or a tag, in any case."""
    if not (text := text.strip().lower()):
        return list(items)
    return [one for one in items if text in "\n".join((one.name, one.uuid, one.shortname, *one.tags)).lower()]


def _output(found: Output | None) -> dict[str, str]:
    return {name: output.read_all(found, name)[-MAX_OUTPUT:] if found else "" for name in output.STREAMS}


def facts(backend: Backend, call: Call) -> dict[str, Any]:
    """Return everything that the page shows: the pools, and the tasks, instances and output that are selected.

    An object that has been deleted is left out. The first instance is selected by default.
    """
    text = call.query("find") or ""
    pool = backend.pools.store.get(call.query("pool") or "")
    task = backend.tasks.store.get(call.query("task") or "")
    tasks = _matching(backend.tasks.store if pool is None else pool.tasks.values(), text)
    pools = sorted(_matching(backend.pools.store, text), key=lambda one: (one.is_open, one.seq))
    found: dict[str, Any] = {
        "summary": summary(backend),
        "credits": backend.credits_left(),
        "pools": [_pool(backend, one) for one in _newest(pools)],
        "tasks": [_task(backend, one) for one in _newest(tasks)],
        "counts": {"pools": len(pools), "tasks": len(tasks)},
    }
    if task is not None:
        number = call.query("instance") or ""
        is_known = number.isdecimal() and len(number) < 10 and int(number) in task.instances
        chosen = int(number) if is_known else min(task.instances)
        found |= {
            "instances": _instances(task),
            "instance": chosen,
            "command": task.constants.get("DOCKER_CMD", "")[:MAX_OUTPUT],
            "output": _output(task.output.get(chosen)),
        }
    return found
