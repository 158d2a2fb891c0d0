"""Routes under /_local: faults, request log, account, nodes, clock and searches (docs/local.md)."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from starlette.routing import BaseRoute

from airflow_qarnot_pool.local.backend.billing import (
    EUROS_PER_NODE_SECOND,
    OVERRUN_POLICIES,
    AccountLimits,
    ProjectBudget,
)
from airflow_qarnot_pool.local.backend.models import Node
from airflow_qarnot_pool.local.http import page
from airflow_qarnot_pool.local.http.faults import Faults, RequestLog
from airflow_qarnot_pool.local.http.routing import Call, route
from airflow_qarnot_pool.local.schemas.errors import ApiError, missing
from airflow_qarnot_pool.local.schemas.formats import parse_stamp

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.backend.backend import Backend

LIMIT_NAMES = tuple(field.name for field in fields(AccountLimits))


def _number(value: Any, name: str, minimum: float = 0.0) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not minimum <= value < 1e12:
        raise ApiError(400, f"{name} must be a number of at least {minimum:g}, not {value!r}")
    return float(value)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ApiError(400, "A JSON object is expected")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ApiError(400, "A JSON list is expected")
    return value


def _budget(backend: Backend, body: Any) -> ProjectBudget:
    """Read a budget in the form of the API. Its given consumption is added to the spending from now on."""
    budget = _object(body)
    times: dict[str, float | None] = {}
    for name in ("startDateUtc", "expirationDateUtc"):
        try:
            times[name] = parse_stamp(budget[name]) if budget.get(name) else None
        except (ValueError, TypeError, AttributeError):
            raise ApiError(400, f"{name} must be a time, not {budget[name]!r}") from None
    policy = budget.get("budgetOverrunPolicy", OVERRUN_POLICIES[0])
    if policy not in OVERRUN_POLICIES:
        raise ApiError(400, f"budgetOverrunPolicy is one of {', '.join(OVERRUN_POLICIES)}, not {policy!r}")
    return ProjectBudget(
        uuid=str(budget.get("uuid") or backend.identity()[0]),
        alias=str(budget.get("alias") or ""),
        total=_number(budget.get("totalAmountInCents"), "totalAmountInCents"),
        consumed=_number(budget.get("consumedAmountInCents", 0), "consumedAmountInCents"),
        begins=times["startDateUtc"],
        expires=times["expirationDateUtc"],
        policy=policy,
        archived=bool(budget.get("isArchived")),
        spent=backend.spent(),
    )


def get_account(backend: Backend) -> dict[str, Any]:
    """Return limits, credit and the cost of every pool so far. Seconds are node-seconds of virtual time."""
    now, limits = backend.now, backend.account.limits
    return {
        **{name: getattr(limits, name) for name in LIMIT_NAMES},
        "credits": round(backend.credits_left(), 8),
        "budgets": [budget.to_json(backend.spent()) for budget in backend.account.budgets],
        "eurosPerNodeSecond": EUROS_PER_NODE_SECOND,
        **backend.meter.summary(now),
        "pools": {
            pool.uuid: {"shortname": pool.shortname, "state": pool.state, **pool.meter.summary(now)}
            for pool in backend.pools.store
        },
    }


def set_account(backend: Backend, body: Any) -> None:
    changes = _object(body)
    if unknown := set(changes) - {*LIMIT_NAMES, "credits", "budgets", "billsDeleted"}:
        raise ApiError(400, f"Unknown limits: {', '.join(sorted(unknown))}")
    for name, value in changes.items():
        if name == "credits":
            backend.account.set_credits(_number(value, name, -1e9), backend.spent())
        elif name == "billsDeleted":
            backend.account.bills_deleted = bool(value)
        elif name == "budgets":
            backend.account.budgets = tuple(_budget(backend, budget) for budget in _list(value))
        else:
            setattr(backend.account.limits, name, None if value is None else int(_number(value, name)))


def get_clock(backend: Backend) -> dict[str, Any]:
    return {"now": backend.now, "speed": backend.clock.speed, "shown": backend.shown_now()}


def set_clock(backend: Backend, body: Any) -> dict[str, Any]:
    changes = _object(body)
    if unknown := set(changes) - {"speed", "advance_seconds", "step_seconds", "skew"}:
        raise ApiError(400, f"Unknown clock settings: {', '.join(sorted(unknown))}")
    if "speed" in changes:
        backend.clock.set_speed(_number(changes["speed"], "speed"))
    if "advance_seconds" in changes:
        backend.clock.advance(_number(changes["advance_seconds"], "advance_seconds"))
    if "step_seconds" in changes:
        backend.shown_time.step(backend.now, _number(changes["step_seconds"], "step_seconds", -1e9))
    if "skew" in changes:
        _skew(backend, _object(changes["skew"]))
    return get_clock(backend)


def _skew(backend: Backend, settings: dict[str, Any]) -> None:
    """Show wrong times of one object, or of each new one whose number *every* divides, as with several clocks."""
    if unknown := set(settings) - {"seconds", "uuid", "every"}:
        raise ApiError(400, f"Unknown skew settings: {', '.join(sorted(unknown))}")
    seconds = _number(settings.get("seconds"), "seconds", -1e9)
    if (uuid := settings.get("uuid")) is None:
        every = int(_number(settings.get("every", 1), "every", 1))
        backend.pools.store.skew_new(seconds, every)
        backend.tasks.store.skew_new(seconds, every)
    elif (pool := backend.pools.store.get(str(uuid))) is not None:
        backend.pools.store.skew(pool, seconds)
    elif (task := backend.tasks.store.get(str(uuid))) is not None:
        backend.tasks.store.skew(task, seconds)
    else:
        raise missing("object", str(uuid))


def set_nodes(backend: Backend, body: Any) -> None:
    changes = _object(body)
    if set(changes) != {"withheld"} or not isinstance(changes["withheld"], bool):
        raise ApiError(400, 'Nodes take {"withheld": true} or {"withheld": false}')
    backend.nodes.withhold(changes["withheld"])


def get_searches(backend: Backend) -> dict[str, Any]:
    return {
        "cap": backend.search_cap,
        "refuses": backend.refuses_beyond_cap,
        "lag_seconds": backend.search_lag,
        "token_seconds": backend.token_seconds,
    }


def set_searches(backend: Backend, body: Any) -> dict[str, Any]:
    changes = _object(body)
    if unknown := changes.keys() - get_searches(backend).keys():
        raise ApiError(400, f"Unknown search settings: {', '.join(sorted(unknown))}")
    if "cap" in changes:
        cap = changes["cap"]
        backend.search_cap = None if cap is None else int(_number(cap, "cap", 1))
    if "refuses" in changes:
        backend.refuses_beyond_cap = bool(changes["refuses"])
    if "lag_seconds" in changes:
        backend.lag_searches(_number(changes["lag_seconds"], "lag_seconds"))
    if "token_seconds" in changes:
        seconds = changes["token_seconds"]
        backend.token_seconds = None if seconds is None else _number(seconds, "token_seconds")
    return get_searches(backend)


def set_readings(backend: Backend, body: Any) -> dict[str, Any]:
    readings, unknown = backend.readings.with_answers(_object(body))
    if unknown:
        raise ApiError(400, "; ".join(unknown))
    backend.readings = readings
    return asdict(readings)


def describe_node(node: Node) -> dict[str, Any]:
    return {
        "id": node.id,
        "pool": node.pool.uuid if node.pool else None,
        "task": node.instance.task.uuid if node.instance else None,
        "number": node.number,
        "slots": node.slots,
        "state": "up" if node.up is not None else "booting" if node.placed else "asked",
        "upSince": node.up,
        "running": [{"task": i.task.uuid, "instance": i.id, "directory": i.directory} for i in node.running],
    }


def routes(backend: Backend, faults: Faults, log: RequestLog) -> list[BaseRoute]:
    def kill(call: Call) -> None:
        node = backend.nodes.by_id.get(call.id)
        if node is None:
            raise missing("node", call.id)
        backend.nodes.lose(node)

    def add(method: str, path: str, handler: Any) -> BaseRoute:
        return route(backend, method, f"/_local{path}", handler)

    return [
        add("PUT", "/faults", lambda call: faults.replace(call.json)),
        add("DELETE", "/faults", lambda call: faults.replace([])),
        add("GET", "/requests", lambda call: log.body()),
        add("DELETE", "/requests", lambda call: log.clear()),
        add("GET", "/account", lambda call: get_account(backend)),
        add("PUT", "/account", lambda call: set_account(backend, call.json)),
        add("GET", "/nodes", lambda call: [describe_node(node) for node in backend.nodes.by_id.values()]),
        add("POST", "/nodes/{u}/kill", kill),
        add("PUT", "/nodes", lambda call: set_nodes(backend, call.json)),
        add("GET", "/page", lambda call: page.facts(backend, call)),
        add("GET", "/tasks", lambda call: backend.tasks.history()),
        add("GET", "/clock", lambda call: get_clock(backend)),
        add("PUT", "/clock", lambda call: set_clock(backend, call.json)),
        add("GET", "/readings", lambda call: asdict(backend.readings)),
        add("PUT", "/readings", lambda call: set_readings(backend, call.json)),
        add("GET", "/searches", lambda call: get_searches(backend)),
        add("PUT", "/searches", lambda call: set_searches(backend, call.json)),
    ]
