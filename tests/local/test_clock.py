"""Pools on the virtual clock: growth, cooling down, policies, prices. The clock stands still unless it is told to
move, so every number here is exact; the processes are real."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from airflow_qarnot_pool.api import models as api
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.local.backend.preemption import Preemption
from airflow_qarnot_pool.ownership.ladder import is_node_loss

from .conftest import Http, until

BOOT = 60


def early(nodes: int) -> float:
    """Node-seconds of nodes ordered together before the last of them is up: they come one after the other,
    over the last quarter of the boot time."""
    return BOOT / 4 * (nodes - 1) / 2


DAY = 86_400
WEEK = 7 * DAY


class World:
    """A server whose clock stands still, and what these tests do with it."""

    def __init__(self, server: LocalQarnot) -> None:
        self.server, self.http = server, Http(server)

    def pool(self, **body: Any) -> str:
        answer = self.http("POST", "/pools", {"name": "p", "profile": "docker-batch", **body})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["uuid"])

    def scaled(self, *policies: dict[str, Any], **body: Any) -> str:
        return self.pool(scaling={"policies": list(policies)}, **body)

    def task(self, pool: str | None, command: str = "true", count: int = 1, **body: Any) -> str:
        where = {"poolUuid": pool} if pool else {"profile": "docker-batch"}
        constants = [{"key": "DOCKER_CMD", "value": command}]
        answer = self.http(
            "POST", "/tasks", {"name": "t", "instanceCount": count, "constants": constants, **where, **body}
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["uuid"])

    def look(self, kind: str, uuid: str) -> dict[str, Any]:
        found: dict[str, Any] = self.http("GET", f"/{kind}/{uuid}").json()
        return found

    def slots(self, pool: str) -> tuple[int, int]:
        """(slots up, slots up or booting)."""
        found = self.look("pools", pool)
        return found["runningInstanceCount"], found["totalSlotCapacity"]

    def task_is(self, task: str, *states: str) -> dict[str, Any]:
        until(lambda: self.look("tasks", task)["state"] in states, f"task in {states}")
        return self.look("tasks", task)

    def bill(self, pool: str) -> dict[str, Any]:
        found: dict[str, Any] = self.server.get_account()["pools"][pool]
        return found

    def advance_to(self, weekday: int, hour: float) -> None:
        """To a day (0 = Monday) of this or next week, at an hour UTC."""
        now = self.server.get_clock()["now"]
        monday = now - datetime.fromtimestamp(now, UTC).weekday() * DAY - now % DAY
        moment = monday + weekday * DAY + hour * 3600
        self.server.advance_clock((moment - now) % WEEK)


@pytest.fixture
def world(private: Callable[..., LocalQarnot]) -> World:
    return World(private(boot_seconds=BOOT, close_seconds=5, speed=0))


def queue(**changes: Any) -> dict[str, Any]:
    base = {
        "type": "ManagedTasksQueue",
        "minTotalSlots": 0,
        "maxTotalSlots": 4,
        "minIdleTimeSeconds": 300,
        "scalingFactor": 1,
        "name": "queue",
        "enabledPeriods": [{"type": "Always", "name": "always"}],
    }
    return {**base, **changes}


def weekly(days: list[str], start: str, end: str) -> list[dict[str, Any]]:
    return [{"type": "Weekly", "name": "w", "days": days, "startTimeUtc": start, "endTimeUtc": end}]


def test_a_managed_pool_costs_nothing_boots_on_demand_and_cools_down(world: World) -> None:
    pool = world.scaled(queue())
    world.server.advance_clock(BOOT)
    assert world.look("pools", pool)["state"] == "FullyExecuting"  # it has all it wants: nothing
    world.server.advance_clock(DAY)
    assert world.bill(pool)["nodeSeconds"] == 0

    task = world.task(pool, count=3)
    assert world.slots(pool) == (0, 3)  # all at once, not in 90 s
    assert world.look("pools", pool)["state"] == "PartiallyExecuting"
    world.server.advance_clock(BOOT)
    world.task_is(task, "Success")
    assert world.look("pools", pool)["state"] == "FullyExecuting"

    world.server.advance_clock(200)
    world.task_is(world.task(pool), "Success")  # at once, on a warm node, which is idle from here on
    world.server.advance_clock(99)
    assert world.slots(pool) == (3, 3)
    world.server.advance_clock(1)
    assert world.slots(pool) == (1, 1)
    world.server.advance_clock(200)
    assert world.slots(pool) == (0, 0)
    assert world.look("pools", pool)["state"] == "FullyExecuting"
    cost = world.bill(pool)
    assert cost["idleNodeSeconds"] == 300 + 300 + 500
    assert cost["busyNodeSeconds"] == early(3)  # tasks started while the clock was being moved

    world.server.advance_clock(WEEK)
    assert world.bill(pool)["nodeSeconds"] == 1100 + early(3)
    late = world.task(pool)
    world.server.advance_clock(BOOT)
    world.task_is(late, "Success")


def test_growth_by_a_share_every_90_seconds(world: World) -> None:
    pool = world.scaled(queue(maxTotalSlots=8, scalingFactor=0.25))
    world.task(pool, "sleep 600", 20)
    sizes = [world.slots(pool)[1]]
    for _ in range(5):
        world.server.advance_clock(89)
        sizes.append(world.slots(pool)[1])
        world.server.advance_clock(1)
        sizes.append(world.slots(pool)[1])
    assert sizes == [2, 2, 4, 4, 6, 6, 8, 8, 8, 8, 8]


def test_the_minimum_is_there_without_demand_and_stays(world: World) -> None:
    pool = world.scaled(queue(minTotalSlots=1, minIdleSlots=2))
    world.server.advance_clock(BOOT)
    assert world.slots(pool) == (2, 2)
    busy = world.task(pool, "sleep 600", 1)
    world.task_is(busy, "FullyExecuting")
    assert world.slots(pool) == (2, 3)  # two idle ones beside the busy one
    world.http("POST", f"/tasks/{busy}/abort")
    world.task_is(busy, "Cancelled")
    world.server.advance_clock(DAY)
    assert world.slots(pool) == (2, 2)


def test_policies_of_the_week_start_and_end_on_the_second(world: World) -> None:
    days = ["monday", "tuesday", "wednesday", "thursday", "friday"]
    office = {
        "type": "Fixed",
        "slotsCount": 3,
        "name": "office",
        "enabledPeriods": weekly(days, "08:00:00", "18:00:00"),
    }
    world.advance_to(6, 12)  # Sunday noon
    pool = world.scaled(office, queue(name="rest"))

    def policy() -> str:
        return str(world.http("GET", f"/pools/{pool}/scaling").json()["activePolicyName"])

    assert (policy(), world.slots(pool)) == ("rest", (0, 0))
    world.server.advance_clock(20 * 3600 - 1)
    assert (policy(), world.slots(pool)) == ("rest", (0, 0))
    world.server.advance_clock(1)
    assert (policy(), world.slots(pool)) == ("office", (0, 3))
    world.server.advance_clock(10 * 3600 - 1)
    assert (policy(), world.slots(pool)) == ("office", (3, 3))
    world.server.advance_clock(1)
    assert policy() == "rest"
    assert world.slots(pool) == (0, 0)  # idle since the morning, longer than its minimum
    a_day = 3 * (10 * 3600 - BOOT) + early(3)
    assert world.bill(pool)["nodeSeconds"] == a_day
    world.server.advance_clock(WEEK)  # five working days, in one call
    assert world.bill(pool)["nodeSeconds"] == 6 * a_day


def test_a_period_over_midnight_and_over_the_end_of_the_week(world: World) -> None:
    nights = weekly(["sunday"], "22:00:00", "02:00:00")
    world.advance_to(6, 12)
    pool = world.scaled({"type": "Fixed", "slotsCount": 1, "name": "night", "enabledPeriods": nights})
    assert world.http("GET", f"/pools/{pool}/scaling").json()["activePolicyName"] is None
    assert world.slots(pool) == (0, 0)  # no active policy: nothing is wanted
    world.server.advance_clock(10 * 3600)
    assert world.slots(pool) == (0, 1)
    world.server.advance_clock(4 * 3600 - 1)
    assert world.slots(pool) == (1, 1)
    world.server.advance_clock(1)
    assert world.slots(pool) == (0, 0)
    world.server.advance_clock(WEEK)
    assert world.bill(pool)["nodeSeconds"] == 2 * (4 * 3600 - BOOT)


def test_an_elastic_pool_grows_at_once_and_shrinks_on_its_period(world: World) -> None:
    pool = world.pool(elasticProperty={"isElastic": True, "maxTotalSlots": 5, "resizePeriod": 90})
    first = world.task(pool)
    assert world.slots(pool) == (0, 1)
    world.server.advance_clock(BOOT)
    world.task_is(first, "Success")
    second = world.task(pool, "sleep 600", 7)
    assert world.slots(pool) == (1, 5)
    world.server.advance_clock(BOOT)
    world.task_is(second, "PartiallyExecuting")
    assert world.slots(pool) == (5, 5)
    world.http("POST", f"/tasks/{second}/abort")
    world.task_is(second, "Cancelled")
    until(lambda: not any(node["running"] for node in world.server.nodes()))
    # The pool was made 120 s ago: the next multiple of 90 is 60 s away.
    world.server.advance_clock(59)
    assert world.slots(pool) == (5, 5)
    world.server.advance_clock(1)
    assert world.slots(pool) == (0, 0)
    cost = world.bill(pool)["nodeSeconds"]
    assert cost == 120 + 4 * 60 + early(4)
    world.server.advance_clock(WEEK)
    assert world.bill(pool)["nodeSeconds"] == cost


def test_a_busy_node_is_not_let_go(world: World) -> None:
    pool = world.scaled(queue(minIdleTimeSeconds=0, maxTotalSlots=2))
    task = world.task(pool, "sleep 600", 2)
    world.server.advance_clock(BOOT)
    world.task_is(task, "FullyExecuting")
    world.server.advance_clock(DAY)
    assert world.slots(pool) == (2, 2)
    smaller = {"policies": [{"type": "Fixed", "slotsCount": 0, "name": "none"}]}
    assert world.http("PUT", f"/pools/{pool}/scaling", smaller).status_code == 200
    assert world.slots(pool) == (2, 2)
    world.http("POST", f"/tasks/{task}/abort")
    world.task_is(task, "Cancelled")
    until(lambda: world.slots(pool) == (0, 0))
    bill = world.bill(pool)
    assert bill["nodeSeconds"] == bill["busyNodeSeconds"] == 2 * DAY + early(2)


def test_slots_of_one_node_are_billed_once(world: World) -> None:
    pool = world.scaled(queue(maxTotalSlots=8), multiSlotsSettings={"slotsPerNode": 4})
    task = world.task(pool, "sleep 600", 3)
    world.server.advance_clock(BOOT)
    world.task_is(task, "FullyExecuting")
    assert world.slots(pool) == (4, 4)  # whole nodes
    world.server.advance_clock(100)
    bill = world.bill(pool)
    assert (bill["nodeSeconds"], bill["busyNodeSeconds"], bill["busySlotSeconds"]) == (100, 100, 300)


def test_a_fixed_pool_with_an_incomplete_last_node(world: World) -> None:
    pool = world.pool(instanceCount=6, multiSlotsSettings={"slotsPerNode": 4})
    world.server.advance_clock(BOOT)
    assert world.slots(pool) == (6, 6)
    assert sorted(node["slots"] for node in world.server.nodes()) == [2, 4]


def test_boot_and_closing_cost_what_they_last(world: World) -> None:
    pool = world.pool(instanceCount=2)
    world.server.advance_clock(BOOT + 100)
    world.http("POST", f"/pools/{pool}/close")
    assert world.look("pools", pool)["state"] == "Closing"
    world.server.advance_clock(5)
    assert world.look("pools", pool)["state"] == "Closed"
    assert world.bill(pool)["nodeSeconds"] == 2 * 105 + early(2)


def test_a_pool_closed_while_it_boots_never_costs(world: World) -> None:
    pool = world.pool(instanceCount=4)
    world.server.advance_clock(BOOT / 2)
    world.http("POST", f"/pools/{pool}/close")
    world.server.advance_clock(WEEK)
    assert world.bill(pool)["nodeSeconds"] == 0
    assert world.server.nodes() == []


def test_a_task_without_a_pool_pays_for_its_own_nodes(world: World, tmp_path: Path) -> None:
    go = tmp_path / "go"
    task = world.task(None, f"sh -c 'while ! test -e {go}; do sleep 0.02; done'", 2)
    world.server.advance_clock(BOOT)
    world.task_is(task, "FullyExecuting")
    world.server.advance_clock(50)
    go.touch()
    world.task_is(task, "Success")
    world.server.advance_clock(WEEK)
    account = world.server.get_account()
    assert account["nodeSeconds"] == 100
    assert world.http("GET", f"/credits/v1/tasks/{task}/credits").json()["credits"] == pytest.approx(0.01)
    assert world.server.nodes() == []


def test_a_pool_that_is_deleted_is_pending_until_nothing_of_it_runs(world: World, tmp_path: Path) -> None:
    pool = world.pool(instanceCount=1)
    world.server.advance_clock(BOOT)
    task = world.task(pool, "sleep 600")
    world.task_is(task, "FullyExecuting")
    world.http("DELETE", f"/pools/{pool}")
    assert world.look("pools", pool)["state"] == "PendingDelete"
    world.task_is(task, "Cancelled")
    world.server.advance_clock(5)
    assert world.http("GET", f"/pools/{pool}").status_code == 404
    assert world.server.nodes() == []


def test_a_clone_answers_as_the_pool_it_was_made_from(world: World) -> None:
    week = weekly(["thursday"], "19:30:00", "23:59:59") + weekly(["friday"], "00:00:00", "10:00:00")
    fixed = {
        "type": "Fixed",
        "slotsCount": 19,
        "name": "default",
        "enabledPeriods": [{"type": "Always", "name": "a"}],
    }
    first = world.pool(tags=["updated"], constants=[{"key": "DOCKER_WORKDIR", "value": "${DOCKER_WORKDIR}"}])
    policies = [queue(enabledPeriods=week, minIdleSlots=1), fixed]
    assert world.http("PUT", f"/pools/{first}/scaling", {"policies": policies}).status_code == 200
    second = world.http("POST", f"/pools/{first}/clone", {"name": "clone"}).json()["uuid"]
    own = {
        "creationDate",
        "lastModified",
        "stateTransitionTime",
        "previousStateTransitionTime",
        "uuid",
        "name",
    }
    own |= {"shortname", "status", "state", "previousState", "executionTime", "wallTime"}
    bodies = [world.look("pools", pool) for pool in (first, second)]
    stripped = [[(key, value) for key, value in body.items() if key not in own] for body in bodies]
    assert stripped[0] == stripped[1]  # the order of keys too


# ---- node loss -----------------------------------------------------------------------------------


def test_a_lost_node_fails_its_instances_and_is_replaced(world: World) -> None:
    pool = world.pool(instanceCount=2)
    world.server.advance_clock(BOOT)
    task = world.task(pool, "sleep 600", 2)
    world.task_is(task, "FullyExecuting")
    victim = world.server.nodes()[0]
    world.server.kill_node(victim["id"])
    assert world.slots(pool) == (1, 2)
    assert world.look("pools", pool)["state"] == "PartiallyExecuting"
    until(lambda: world.look("tasks", task)["completedInstances"])
    (lost,) = world.look("tasks", task)["completedInstances"]
    assert (lost["state"], lost["error"]["code"]) == ("Failure", "LOCAL_NODE_LOST")
    assert lost["instanceId"] == victim["running"][0]["instance"]
    world.server.advance_clock(BOOT)
    assert world.look("pools", pool)["state"] == "FullyExecuting"
    with pytest.raises(RuntimeError, match="No such node"):
        world.server.kill_node(victim["id"])


def test_an_instance_of_a_lost_node_runs_again_where_retries_allow_it(world: World, tmp_path: Path) -> None:
    pool = world.pool(instanceCount=1)
    world.server.advance_clock(BOOT)
    script = f"sh -c 'echo x >> {tmp_path}/tries; test $(wc -l < {tmp_path}/tries) -ge 2 || sleep 600'"
    task = world.task(pool, script, retrySettings={"maxPerInstanceRetries": 1})
    until(lambda: (tmp_path / "tries").exists() and (tmp_path / "tries").read_text())
    world.server.kill_node(world.server.nodes()[0]["id"])
    until(lambda: world.look("tasks", task)["runningInstanceCount"] == 0)
    world.server.advance_clock(BOOT)
    found = world.task_is(task, "Success")
    assert found["completedInstances"][0]["executionAttemptCount"] == 2
    assert (tmp_path / "tries").read_text() == "x\nx\n"


def test_losing_a_node_that_boots(world: World) -> None:
    pool = world.pool(instanceCount=1)
    alone = world.task(None)
    retried = world.task(None, retrySettings={"maxTotalRetries": 1})
    world.server.advance_clock(BOOT / 2)
    for node in world.server.nodes():
        world.server.kill_node(node["id"])
    assert world.look("tasks", alone)["state"] == "Failure"
    assert world.look("tasks", alone)["completedInstances"][0]["error"]["code"] == "LOCAL_NODE_LOST"
    world.server.advance_clock(BOOT)
    assert world.look("pools", pool)["state"] == "FullyExecuting"
    world.task_is(retried, "Success")


def test_flex_nodes_are_preempted_at_times_that_the_seed_decides(private: Callable[..., LocalQarnot]) -> None:
    world = World(private(boot_seconds=BOOT, speed=0, preempt="7:60"))
    lifetime = Preemption(7, 60).lifetime("node-000001")
    flex = world.pool(instanceCount=1)
    world.server.advance_clock(BOOT)
    task = world.task(flex, "sleep 600")
    world.task_is(task, "FullyExecuting")
    world.server.advance_clock(lifetime - 0.01)
    assert [node["id"] for node in world.server.nodes()] == ["node-000001"]
    world.server.advance_clock(0.02)
    found = world.task_is(task, "Failure")
    (instance,) = found["completedInstances"]
    message = "Node node-000001 was preempted while the instance ran"
    assert (instance["error"]["code"], instance["error"]["message"]) == ("LOCAL_NODE_LOST", message)
    assert is_node_loss(api.Task.from_json(found))
    assert [node["id"] for node in world.server.nodes()] == ["node-000002"]
    alone = world.task(None, "sleep 600")
    reserved = world.pool(instanceCount=1, schedulingType="OnDemand")
    world.server.advance_clock(BOOT)
    world.task_is(alone, "FullyExecuting")
    world.server.advance_clock(DAY)
    world.task_is(alone, "Failure")
    kept = [node["id"] for node in world.server.nodes() if node["pool"] == reserved]
    assert kept == ["node-000004"]


@pytest.mark.parametrize("text", ["", "x", "7:", "7:0", "7:-1", "7:nan", "7:1e9", "1.5"])
def test_bad_preemption(text: str) -> None:
    with pytest.raises(ValueError):
        Preemption.parse(text)


def test_preemption_of_the_same_seed_is_the_same() -> None:
    names = [f"node-{number:06d}" for number in range(2000)]
    seven, eight = ([Preemption.parse(f"{seed}:2").lifetime(name) for name in names] for seed in (7, 8))
    assert seven == [Preemption(7, 2.0).lifetime(name) for name in names] != eight
    assert 1600 < sum(seven) / len(seven) < 2000  # two an hour
    assert Preemption.parse("7") == Preemption(7, 1.0)


# ---- the clock itself ----------------------------------------------------------------------------


def test_speed(private: Callable[..., LocalQarnot]) -> None:
    world = World(private(boot_seconds=3600))
    pool = world.pool(instanceCount=1)
    assert world.server.set_speed(100_000)["speed"] == 100_000
    until(lambda: world.look("pools", pool)["state"] == "FullyExecuting")


@pytest.mark.parametrize(
    "body", [{"speed": -1}, {"advance_seconds": "x"}, {"advance_seconds": -5}, {"hurry": 1}, []]
)
def test_bad_clock_settings(server: LocalQarnot, body: Any) -> None:
    assert World(server).http("PUT", "/_local/clock", body).status_code == 400
