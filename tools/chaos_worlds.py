"""The worlds of ``make chaos``: conditions under which processes are killed. They can be combined.

A world prepares each local Qarnot when it starts, and strikes it again and again while runs are at work.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_qarnot_pool.local import LocalQarnot
    from tools.chaos import Chaos

#: Seconds between two strikes of a world.
STRIKE_EVERY = 0.4
#: Quotas of each account: 2 runs at a time with a pool, up to 6 Qarnot tasks and a warm-up each.
MAX_TASKS, MAX_POOLS = 4, 3
#: Endpoints on which a request may fail for a moment, with what answers.
ENDPOINTS = (
    ("POST", "/tasks/search$"),
    ("POST", "/pools/search$"),
    ("POST", "/(tasks|pools)/paginate$"),
    ("GET", "/tasks/[0-9a-f-]{36}$"),
    ("GET", "/pools/[0-9a-f-]{36}$"),
    ("POST", "/tasks/[0-9a-f-]{36}/abort$"),
    ("POST", "/pools/[0-9a-f-]{36}/close$"),
    ("GET", "/tasks/[0-9a-f-]{36}/std(out|err)"),
)
ANSWERS = (
    {"kind": "status", "status": 403, "message": "Forbidden"},
    {"kind": "proxy", "status": 404},
    {"kind": "proxy", "status": 502},
    {"kind": "status", "status": 500},
    {"kind": "status", "status": 503},
)


def _nothing(qarnot: LocalQarnot) -> None:
    """Prepare nothing."""


@dataclass(frozen=True)
class World:
    """One condition.

    :param prepare: called with each local Qarnot before the first run.
    :param strike: called every :data:`STRIKE_EVERY` seconds with one local Qarnot; returns whether it did something.
    """

    name: str
    prepare: Callable[[LocalQarnot], Any] = _nothing
    strike: Callable[[Chaos, str, LocalQarnot], bool] | None = None


def _quota(qarnot: LocalQarnot) -> None:
    qarnot.set_account(maxTask=MAX_TASKS, maxPool=MAX_POOLS)


def _step_clock(chaos: Chaos, name: str, qarnot: LocalQarnot) -> bool:
    if chaos.random.random() < 0.5:
        qarnot.step_clock(chaos.random.choice((-120.0, -5.0, 5.0, 120.0)))
    return True


def _skew_clock(qarnot: LocalQarnot) -> None:
    qarnot.skew_clock(3600.0, every=5)


def _stray(chaos: Chaos, name: str, qarnot: LocalQarnot) -> bool:
    """Let one endpoint refuse the next request or two."""
    method, path = chaos.random.choice(ENDPOINTS)
    answer = chaos.random.choice(ANSWERS)
    qarnot.faults([{"method": method, "path": path, "times": chaos.random.randint(1, 2), **answer}])
    return True


def _others(chaos: Chaos, name: str, qarnot: LocalQarnot) -> bool:
    """A person aborts a Qarnot task or closes a pool in the console; a node is lost."""
    deed = chaos.random.choice((_abort_task, _close_pool, _lose_node))
    return deed(chaos, name, qarnot)


def _abort_task(chaos: Chaos, name: str, qarnot: LocalQarnot) -> bool:
    return any(chaos.task_cancelled(run) for run in chaos.runs_on(name))


def _close_pool(chaos: Chaos, name: str, qarnot: LocalQarnot) -> bool:
    """Close the pool of a run, which then clears the setup, as its user would."""
    for run in chaos.runs_on(name):
        if run.create.state == "success" and run.close.state is None and chaos.task_cleared(run):
            with suppress(RuntimeError):
                qarnot.call("POST", f"/pools/{run.create.result}/close")
            return True
    return False


def _lose_node(chaos: Chaos, name: str, qarnot: LocalQarnot) -> bool:
    up = [node for node in qarnot.nodes() if node["state"] == "up"]
    if not up:
        return False
    with suppress(RuntimeError):
        qarnot.kill_node(chaos.random.choice(up)["id"])
    return True


def _freeze(chaos: Chaos, name: str, qarnot: LocalQarnot) -> bool:
    return chaos.freeze_one()


def _withhold_nodes(chaos: Chaos, name: str, qarnot: LocalQarnot) -> bool:
    qarnot.withhold_nodes(True)
    chaos.after(STRIKE_EVERY / 2, lambda: qarnot.withhold_nodes(False))
    return True


WORLDS = {
    world.name: world
    for world in (
        World("quota", prepare=_quota),
        World("cap", prepare=lambda qarnot: qarnot.cap_searches(2)),
        World("clock", prepare=_skew_clock, strike=_step_clock),
        World("stray", strike=_stray),
        World("lag", prepare=lambda qarnot: qarnot.lag_searches(0.5)),
        World("others", strike=_others),
        World("frozen", strike=_freeze),
        World("nodes", strike=_withhold_nodes),
    )
}


def chosen(names: str) -> list[tuple[World, ...]]:
    """The runs that ``WORLD=`` asks for: ``quota+lag`` combines two, ``a,b`` is one after the other.

    ``all`` is each world alone, and then all of them at once; nothing is the plain world.

    :raises ValueError: there is no such world.
    """
    if names == "all":
        return [*((world,) for world in WORLDS.values()), tuple(WORLDS.values())]
    return [_combined(part.split("+")) for part in names.split(",")] if names else [()]


def _combined(names: Iterable[str]) -> tuple[World, ...]:
    names = list(names)
    if unknown := [name for name in names if name not in WORLDS]:
        raise ValueError(f"WORLD has no {', '.join(unknown)}; there are {', '.join(WORLDS)}, and all")
    return tuple(WORLDS[name] for name in names)


def label(worlds: Iterable[World]) -> str:
    """The name of a combination."""
    names = [world.name for world in worlds]
    return "all at once" if len(names) == len(WORLDS) else "+".join(names) or "plain"


def seed_of(seed: int, worlds: Iterable[World]) -> random.Random:
    """Each combination has its own sequence, which does not depend on the others."""
    return random.Random(f"{seed} {label(worlds)}")
