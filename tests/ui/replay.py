"""The static page and a server that answers with what a test has put there, without Airflow and Qarnot.

The page cannot see the difference: same paths, same policy, same JSON. Time is the server's, so it can be made to pass.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from airflow_qarnot_pool.plugins.listing import found_in, words_of
from airflow_qarnot_pool.plugins.routes import HEADERS
from tests.conftest import ROOT

STATIC = ROOT / "airflow_qarnot_pool" / "plugins" / "static"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
#: Airflow's page around the frame, as 3.1 and 3.2 make it.
OUTER = """<!doctype html><html class="{theme}"><head><title>Airflow</title></head>
<body style="margin:0;background-color:{colour}"><iframe src="/qarnot-pools/{query}" title="Qarnot pools"
sandbox="allow-scripts allow-same-origin allow-forms" style="border:0;width:100%;height:100vh;display:block"></iframe>
</body></html>"""
COLOURS = {"light": "rgb(250,250,250)", "dark": "rgb(15,23,42)"}
START = 1_790_000_000.0


def iso(seconds: float) -> str:
    """Return epoch seconds as the server writes instants."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def uuid_of(n: int) -> str:
    return f"{n:08x}-1111-4111-8111-{n:012x}"


def row(n: int = 1, **more: Any) -> dict[str, Any]:
    """Return a busy pool with nothing wrong."""
    run_id = f"scheduled__2026-09-{n % 28 + 1:02d}T00:00:00+00:00"
    link = f"dags/frames_{n % 5}/runs/{run_id.replace(':', '%3A').replace('+', '%2B')}"
    return {
        "uuid": uuid_of(n),
        "connection": "qarnot_default",
        "name": f"frames.render.open_pool_{n}",
        "shortname": f"airflow-{n}",
        "created": iso(START - 7200 - n),
        "ended": None,
        "state": "FullyExecuting",
        "phase": "open",
        "word": "busy",
        "rank": 99,
        "severity": "",
        "warnings": [],
        "errors": [],
        "ready": 8,
        "wanted": 8,
        "max_slots": 8,
        "follows_load": False,
        "busy": 3,
        "queued": 5,
        "idle_since": None,
        "tasks": {"queued": 5, "running": 3, "succeeded": 12, "failed": 0, "cancelled": 0},
        "owner": {
            "kind": "run",
            "dag_id": f"frames_{n % 5}",
            "run_id": run_id,
            "task_id": "render.open_pool",
            "shared": None,
            "run_state": "running",
            "link": link,
            "over": False,
        },
        "users": [],
        "user_count": 1,
        "dag_ids": [f"frames_{n % 5}"],
        "task_ids": ["render.frame"],
        "has_more": False,
        "tags": [f"team-{n % 3}"],
        "figures": {
            "euros": 0.5 + n / 100,
            "energy_wh": 120.5,
            "carbon_g": 6.1,
            "saved_g": 9.2,
            "saved_percent": 55.0,
            "datacenter": "Conventional datacenter",
            "per_hour": 2.88,
        },
        "limit": {"max_cost": 5.0, "max_run_cost": None},
        "closed_by": None,
        "closes_when_idle": False,
        "idle_close_by": None,
        "console": f"https://console.example/pools/{uuid_of(n)}",
        "closable": True,
        "resizable": True,
        "idle_closable": True,
        **more,
    }


def wrong(n: int, rank: int, kind: str, text: str, **more: Any) -> dict[str, Any]:
    """Return a pool with a warning."""
    warnings = [{"kind": kind, "text": text, "since": iso(START - 900)}]
    return row(n, rank=rank, severity=kind, warnings=warnings, **more)


def failed(n: int = 60, **more: Any) -> dict[str, Any]:
    ended = {
        "phase": "failed",
        "word": "failed",
        "state": "Failure",
        "ended": iso(START - 900),
        "closable": False,
    }
    gone = {"ready": 0, "wanted": 0, "busy": 0, "queued": 0, "resizable": False, "idle_closable": False}
    return wrong(n, 0, "failed", "The pool failed: GHX0782I: No node is left", **{**ended, **gone, **more})


def task(n: int, group: str = "succeeded", **more: Any) -> dict[str, Any]:
    states = {"succeeded": "Success", "failed": "Failure", "running": "FullyExecuting", "queued": "Submitted"}
    link = f"dags/frames/runs/r/tasks/render.frame/mapped/{n}"
    return {
        "uuid": uuid_of(100_000 + n),
        "name": f"frame-{n}",
        "state": states[group],
        "group": group,
        "instances": 1,
        "failed_instances": int(group == "failed"),
        "created": iso(START - 3600 + n),
        "ended": None,
        "seconds": 80.0,
        "warm_up": False,
        "dag_id": "frames",
        "run_id": "r",
        "task_id": "render.frame",
        "map_index": str(n),
        "link": link,
        "log": f"{link}?try_number=1",
        "error": "E1: Command exited with 1" if group == "failed" else None,
        **more,
    }


def detail(pool: dict[str, Any], bars: int = 40, **more: Any) -> dict[str, Any]:
    """Return *pool* in full, of two hours, with *bars* instances on its slots."""
    created = START - 7200
    tasks = [task(0, "failed"), task(1, "running"), task(2, "queued"), *(task(n) for n in range(3, 20))]
    slots = [[created, 8, 0], *([created + 240 + 60 * i, 8, 6 + i % 3] for i in range(100))]
    work = [[created + 70 + 60 * i, 3 + i % 6, 100 - i] for i in range(100)]
    each = 6800 * 8 / bars
    gantt = [
        [
            i % 8,
            created + 240 + each * (i // 8),
            created + 240 + each * (i // 8 + 0.9),
            "succeeded",
            i % 20,
            0,
            True,
        ]
        for i in range(bars)
    ]
    gantt[-1][2:4] = [None, "running"]
    gantt[-2][3] = "failed"
    errors = [
        {
            "of": "task",
            "text": "E1: Command exited with 1\n" + "Traceback line\n" * 30,
            "count": 3,
            "first": iso(START - 3000),
            "last": iso(START - 600),
            "tasks": [
                {key: tasks[0][key] for key in ("uuid", "name", "task_id", "map_index", "link", "log")}
            ],
        }
    ]
    return {
        "row": pool,
        "timeline": [
            {"state": "Submitted", "at": iso(created)},
            {"state": "FullyDispatched", "at": iso(created + 60)},
            {"state": "FullyExecuting", "at": iso(created + 240)},
        ],
        "boot": [
            {"phase": "accepted", "at": iso(created), "seconds": 0.0},
            {"phase": "placed", "at": iso(created + 60), "seconds": 60.0},
            {"phase": "all nodes", "at": iso(created + 240), "seconds": 180.0},
        ],
        "use": {"node_seconds": 56000.0, "idle_node_seconds": 9000.0},
        "nodes": [
            {
                "id": n,
                "phase": "execution",
                "since": iso(created + 240),
                "cpu_percent": 88.0,
                "memory_mb": 2048.0,
                "model": "AMD Ryzen 7",
            }
            for n in range(8)
        ],
        "events": [
            {"at": iso(START - 900), "kind": "lost", "text": "Node 3 was lost"},
            {"at": iso(START - 880), "kind": "up", "text": "Node 3 is up"},
        ],
        "errors": errors,
        "tasks": tasks,
        "task_count": 20,
        "pictures": {
            "from": created,
            "until": None,
            "slots": {"points": slots, "gaps": [[START - 900, START - 600]], "cut": False},
            "work": {"points": work, "cut": False},
            "cost": {"points": [[created + 600 * i, 0.25 * i] for i in range(12)], "gaps": [], "cut": False},
            "gantt": {
                "nodes": 4,
                "slots_per_node": 2,
                "lanes": 8,
                "bars": gantt,
                "tasks": tasks,
                "total": bars,
                "cut": False,
            },
        },
        **more,
    }


class Replay:
    """The server. A test changes :attr:`rows`, :attr:`details` and the rest; each request sees what is there."""

    def __init__(self) -> None:
        handler = type("Handler", (_Handler,), {"replay": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.theme = "light"
        self.reset()

    def __enter__(self) -> Replay:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def reset(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.details: dict[str, dict[str, Any]] = {}
        self.every = 0.1
        #: Whether the server has been restarted, and has read nothing yet.
        self.is_new = False
        #: Age of the data of the connection.
        self.age = 1.0
        #: Clear it, and nobody who reads is answered.
        self.may_read = threading.Event()
        self.may_read.set()
        self.now = START
        #: Seconds that pass with each request of a list or a pool.
        self.step = 0.0
        self.requests = 0
        self.error: str | None = None
        #: What the rows leave out, by uuid.
        self.left_out: dict[str, str] = {}
        #: Whether a pool in full is still on its way from Qarnot.
        self.is_fetching = False
        self.posts: list[tuple[str, Any]] = []
        #: What a POST answers, by the last part of its path.
        self.refusals: dict[str, tuple[int, str]] = {}
        #: What the preview of a close has besides.
        self.preview: dict[str, Any] = {}
        #: Clear it to hold back what is refused.
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.output: dict[str, Any] = {
            "stdout": {"text": "frame 1 of 10\n", "cut": False},
            "stderr": {"text": "warning: slow disk\n", "cut": True},
        }
        #: Called before each answer, with the number of the request.
        self.change: Callable[[int], None] = lambda n: None

    def show(self, rows: Iterable[dict[str, Any]]) -> None:
        self.rows = list(rows)

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        parts = [unquote(part) for part in path.strip("/").split("/")][1:]
        if method == "POST":
            self.posts.append((path, body))
            if parts[-1] in self.refusals:
                status, text = self.refusals[parts[-1]]
                self.may_answer.wait(30)
                return status, {"detail": text}
            return 200, {"closed": True, "already": False, "message": "Qarnot closes the pool"}
        if parts[-1] == "close":
            return 200, self._preview(parts[-2])
        if parts[-1] == "output":
            return 200, {
                "now": self.now,
                "age": 0.0,
                "error": None,
                "refreshing": False,
                "output": self.output,
            }
        if parts[-1] == "history":
            return 200, self._history()
        self.may_read.wait(30)
        self.requests += 1
        self.change(self.requests)
        self.now += self.step
        have = query.get("have", [""])[0]
        if parts[-1] != "pools":
            return 200, self._pool(parts[-1], have)
        return 200, self._list(have, words_of(query.get("search", [""])[0]))

    def _list(self, have: str, words: list[str]) -> str:
        rows = json.dumps([] if self.is_new else self.rows)
        version = f"v{hash(rows)}"
        connection = {
            "id": "qarnot_default",
            "age": None if self.is_new else self.age,
            "error": self.error,
            "refreshing": self.is_new,
            "may_edit": True,
        }
        head = {"now": self.now, "every": self.every, "version": version}
        head |= {"known": not self.is_new, "refreshing": self.is_new}
        is_new = have != version
        head |= {"connections": [connection], "full": is_new, "gone": []}
        head["found"] = found_in(self.left_out, words)
        return f'{json.dumps(head)[:-1]}, "pools": {rows if is_new else "[]"}}}'

    def _pool(self, uuid: str, have: str) -> dict[str, Any]:
        found = None if self.is_new else self.details.get(uuid)
        version = f"v{hash(json.dumps(found))}"
        head = {
            "now": self.now,
            "every": self.every,
            "age": None if self.is_fetching or self.is_new else self.age,
            "error": self.error,
            "refreshing": self.is_fetching or self.is_new,
            "may_edit": True,
            "version": version,
        }
        if have == version:
            return {**head, "pool": None, "unchanged": True}
        return {**head, "pool": found, "unchanged": False}

    def _preview(self, uuid: str) -> dict[str, Any]:
        pool = next(each for each in self.rows if each["uuid"] == uuid)
        user = {key: pool["owner"][key] for key in ("dag_id", "run_id", "run_state", "link")}
        return {
            "name": pool["name"],
            "word": pool["word"],
            "ready": pool["ready"],
            "queued": 5,
            "running": 3,
            "users": [{**user, "unfinished": 8, "holds": True}],
            "user_count": 1,
            "closable": pool["closable"],
            "text": "8 unfinished Qarnot tasks of 1 DAG run are cancelled. Their Airflow tasks fail or are retried.",
            **self.preview,
        }

    def _history(self) -> dict[str, Any]:
        start = self.now - 86400
        points = [[start + 600 * i, 3 + i % 3, 24, 20, 5 + i % 15, i % 40, 3 + i / 50] for i in range(144)]
        gaps = [[start + 30000, start + 33000]]
        opened = [[start + 3600 * i, 3 + i % 3] for i in range(24)]
        one = {
            "id": "qarnot_default",
            "age": 1.0,
            "error": self.error,
            "refreshing": False,
            "from": start,
            "points": points,
            "gaps": gaps,
            "cut": False,
            "open": opened,
        }
        return {"now": self.now, "every": self.every, "connections": [one]}


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent: a page that is left gives up its requests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    replay: Replay

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/blank":
            self._send(200, b"<!doctype html><title>blank</title>", "text/html", {})
        elif not url.path.startswith("/qarnot-pools/"):
            query = f"?{url.query}" if url.query else ""
            theme = self.replay.theme
            page = OUTER.format(theme=theme, colour=COLOURS[theme], query=query.replace("&", "&amp;"))
            self._send(200, page.encode(), "text/html", {})
        elif url.path.startswith("/qarnot-pools/api/"):
            self._answer("GET", None)
        else:
            name = url.path.removeprefix("/qarnot-pools/").removeprefix("static/") or "index.html"
            file = STATIC / name
            self._send(200, file.read_bytes(), TYPES[file.suffix], HEADERS)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer("POST", json.loads(body) if body else None)

    def _answer(self, method: str, body: Any) -> None:
        url = urlsplit(self.path)
        path = url.path.removeprefix("/qarnot-pools")
        status, answer = self.replay.answer(method, path, parse_qs(url.query), body)
        text = answer if isinstance(answer, str) else json.dumps(answer)
        self._send(status, text.encode(), "application/json", HEADERS)

    def _send(self, status: int, body: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {
            **headers,
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
