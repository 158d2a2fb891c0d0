"""Which nodes the next generation gets, without a server."""

from __future__ import annotations

import random
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_qarnot_pool.api.models import Task
from airflow_qarnot_pool.api.specs import PoolSpec, ResourceBucket, TaskSpec
from airflow_qarnot_pool.ownership.ladder import (
    BOOT_SECONDS,
    Climb,
    Estimate,
    is_lost,
    on_rung,
    pool_on_rung,
    rung_of_task,
    share_of_wait,
    without_pool,
    work_of,
)

LADDER = ("Flex", "Flex", "OnDemand")
PREEMPTED = {"code": "X", "message": "Node n1 was preempted while the instance ran"}
EXIT_1 = {"code": "X", "message": "The command exited with code 1"}


def spec(every: float | None = 600, ladder: tuple[str, ...] = LADDER, **fields: Any) -> TaskSpec:
    if every:
        fields |= {"snapshot_every": every, "result_bucket": "b"}
    return TaskSpec(name="n", command="c", ladder=ladder, **fields)


def task(
    *errors: dict[str, str] | None, executed: float = 0.0, state: str = "Failure", **fields: Any
) -> Task:
    """A Qarnot task with one instance for each of *errors*; None: it succeeded."""
    completed = [
        {
            "instanceId": number,
            "state": "Failure" if error else "Success",
            "error": error,
            "execTimeSec": executed,
        }
        for number, error in enumerate(errors)
    ]
    raw = {"uuid": "u", "state": state, "completedInstances": completed, **fields}
    # Instances that failed in the queue are in these ranges, too.
    status = {"executionTimeSec": executed, "failedRange": "0", "executedRange": "0"}
    return Task.from_json({**raw, "status": status})


def queued(seconds: int) -> dict[str, Any]:
    """The fields of a Qarnot task that failed after *seconds* in the queue, where it may be for 60."""
    dates = {
        "creationDate": "2026-01-01T00:00:00Z",
        "endDate": f"2026-01-01T00:{seconds // 60:02}:{seconds % 60:02}Z",
    }
    return {"maxTimeQueueSeconds": 60, **dates}


#: Errors, and whether they tell the loss of a node.
TEXTS = {
    "The node is unreachable": True,
    "Preempted, exit code 143": True,
    "Process 'node server.js' was killed": False,
    "Node.js was killed": False,
    "node was killed, exit code 137": False,
    "node: killed, out of memory": False,
}

LOSSES: dict[str, tuple[Task, bool]] = {
    "preempted": (task(PREEMPTED), True),
    "one of two": (task(PREEMPTED, None), True),
    "one preempted, one failed": (task(PREEMPTED, EXIT_1), False),
    "its command failed": (task(EXIT_1), False),
    "succeeded": (task(None, state="Success"), False),
    "cancelled": (task(PREEMPTED, state="Cancelled"), False),
    "it runs": (task(state="FullyExecuting"), False),
    "no node in its time": (task(**queued(60)), True),
    "it failed earlier, such as an image that is missing": (task(**queued(30)), False),
    "no date says how long it was queued": (task(maxTimeQueueSeconds=60), False),
    **{text: (task({"code": "X", "message": text}), is_loss) for text, is_loss in TEXTS.items()},
    "nothing ran, for another reason": (task(), False),
    "it ran, and nothing says why it failed": (task(executed=5, **queued(60)), False),
}


@pytest.mark.parametrize(("ended", "expected"), LOSSES.values(), ids=LOSSES.keys())
def test_what_counts_as_a_loss(ended: Task, expected: bool) -> None:
    assert is_lost(ended) is expected


HOUR = 3600.0
LOST = task(PREEMPTED, executed=1000)
#: Ladder, interval, earlier generations, estimate, and the index of the rung.
RUNGS: dict[str, tuple[TaskSpec, list[Task], Estimate | None, int]] = {
    "first": (spec(), [], None, 0),
    "one loss": (spec(), [LOST], None, 1),
    "two": (spec(), [LOST, LOST], None, 2),
    "more than rungs": (spec(), [LOST] * 9, None, 2),
    "a failure of the command is no loss": (spec(), [task(EXIT_1), LOST], None, 1),
    "one that was cancelled is none": (spec(), [task(PREEMPTED, state="Cancelled")], None, 0),
    # 3600 s of work, 600 s that a loss costs, two boots of 300 s.
    "time for a loss": (spec(), [], Estimate(work=HOUR, left=4800), 0),
    "one second too little": (spec(), [], Estimate(work=HOUR, left=4799), 2),
    # 1000 s were executed, and at least 400 s of them are in a snapshot.
    "a snapshot saved work": (spec(), [LOST], Estimate(work=HOUR, left=4400), 1),
    "and saved no more than that": (spec(), [LOST], Estimate(work=HOUR, left=4399), 2),
    "an estimate that was too low": (
        spec(),
        [task(PREEMPTED, executed=9e9)],
        Estimate(work=HOUR, left=1800),
        1,
    ),
    "and too little time for one interval": (
        spec(),
        [task(PREEMPTED, executed=9e9)],
        Estimate(work=HOUR, left=1799),
        2,
    ),
    "an interval that is longer than the work": (spec(9000), [], Estimate(work=HOUR, left=7800), 0),
    "Qarnot raised the interval": (
        spec(),
        [task(PREEMPTED, executed=1000, snapshotInterval=900)],
        # 100 s saved, 3500 s left to do, 900 s at risk, and two boots.
        Estimate(work=HOUR, left=4999),
        2,
    ),
    "without snapshots everything is at risk": (spec(None), [], Estimate(work=HOUR, left=7800), 0),
    "and a loss saves nothing": (spec(None), [LOST], Estimate(work=HOUR, left=7799), 2),
}


@pytest.mark.parametrize(("ladder", "earlier", "estimate", "expected"), RUNGS.values(), ids=RUNGS.keys())
def test_the_rung_of_the_next_generation(
    ladder: TaskSpec, earlier: list[Task], estimate: Estimate | None, expected: int
) -> None:
    assert rung_of_task(ladder, earlier, estimate) == expected


@pytest.mark.parametrize("every", [600.0, None])
def test_no_pattern_of_losses_breaks_a_deadline_that_one_loss_could_not(every: float | None) -> None:
    """Boots and delays are as long as the reserve for them allows, and losses come at any time."""
    chance, climbed = random.Random(7), set()
    for _ in range(1000):
        work, ladder = chance.uniform(60, 20_000), ("Flex",) * chance.randint(1, 4) + ("OnDemand",)
        least = work + BOOT_SECONDS  # what OnDemand needs from the start
        deadline = least * chance.uniform(1.0, 4.0)
        now = saved = 0.0
        lost: list[Task] = []
        while True:
            index = rung_of_task(spec(every, ladder), lost, Estimate(work=work, left=deadline - now))
            boot = chance.uniform(0, BOOT_SECONDS)
            rest = work - saved
            life = chance.expovariate(1 / work) if ladder[index] == "Flex" else rest
            if life >= rest:
                assert now + boot + rest <= deadline + 1e-6
                climbed.add(index == len(ladder) - 1)
                break
            now += BOOT_SECONDS + life  # the boot, and the time until the loss is seen
            # Snapshots come at an interval from the submission, and the last one is at most that old.
            if every:
                saved += max(0.0, life - chance.uniform(0, every))
            lost.append(task(PREEMPTED, executed=life))
    assert climbed == {True, False}


def test_a_rung_is_the_type_of_the_nodes() -> None:
    assert on_rung(spec(), 2).to_json()["schedulingType"] == "OnDemand"
    assert spec().to_json()["schedulingType"] == "Flex"  # outside of the operators, which do not climb
    pool = spec(pool="6ba7b812-9dad-41d1-80b4-00c04fd430c8")
    assert "schedulingType" not in on_rung(pool, 0).to_json()


def test_all_rungs_are_one_request_for_a_retry() -> None:
    one = TaskSpec(name="n", command="c", ladder=LADDER)
    assert (
        one.fingerprint()
        == TaskSpec(name="m", command="c", ladder=["flex", "flex", "ondemand"]).fingerprint()
    )
    other = TaskSpec(name="n", command="c", ladder=LADDER[1:])
    plain = TaskSpec(name="n", command="c")
    assert len({one.fingerprint(), other.fingerprint(), plain.fingerprint()}) == 3


def test_a_task_that_leaves_its_pool_has_its_container_and_its_files() -> None:
    pool = PoolSpec(
        name="p",
        profile="docker-network",
        image="alpine:3",
        constants={"A": "pool", "B": "pool"},
        resource_buckets=["data"],
        hardware_constraints=[{"discriminator": "SSDHardwareConstraint"}],
        scheduling_type="Flex",
        instance_count=4,
    )
    own = spec(pool="6ba7b812-9dad-41d1-80b4-00c04fd430c8", constants={"B": "task"}, resource_buckets=["in"])
    made = without_pool(own, pool, "OnDemand").to_json()
    constants = {one["key"]: one["value"] for one in made["constants"]}
    assert "poolUuid" not in made
    assert (made["schedulingType"], made["profile"]) == ("OnDemand", "docker-network")
    assert (constants["A"], constants["B"], constants["DOCKER_REPO"]) == ("pool", "task", "library/alpine")
    assert [one["bucketName"] for one in made["advancedResourceBuckets"]] == ["data", "in"]
    assert made["hardwareConstraints"] == [{"discriminator": "SSDHardwareConstraint"}]
    assert made["instanceCount"] == 1
    # Its own image replaces that of the pool.
    imaged = without_pool(own.with_values(image="debian:12"), pool, "OnDemand").to_json()
    assert {one["value"] for one in imaged["constants"] if one["key"] == "DOCKER_REPO"} == {"library/debian"}
    assert [one["bucketName"] for one in made["advancedResourceBuckets"]] == [
        one.bucket for one in (ResourceBucket(bucket="data"), ResourceBucket(bucket="in"))
    ]


def test_a_pool_climbs_by_the_pools_that_did_not_become_ready() -> None:
    pool = PoolSpec(name="p", ladder=LADDER)
    kinds = [pool_on_rung(pool, count).to_json()["schedulingType"] for count in range(5)]
    assert kinds == ["Flex", "Flex", "OnDemand", "OnDemand", "OnDemand"]


def test_rungs_share_the_time_until_the_deadline() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert share_of_wait(now + timedelta(minutes=30), 3, now) == now + timedelta(minutes=10)
    assert share_of_wait(None, 3, now) is None


def test_the_losses_of_a_try_survive_a_deferral() -> None:
    def after(lost: Iterable[Task]) -> Climb:
        climb = Climb()
        for one in lost:
            climb = Climb.from_json(climb.after(one).to_json())
        return climb

    assert after([LOST, LOST]) == Climb(losses=2, executed=2000.0)


def test_the_work_is_that_of_the_longest_instance() -> None:
    assert work_of(task(None, None, executed=30, state="Success")) == 30
    assert work_of(task(executed=7, state="Success")) == 7
    assert work_of(Task.from_json({"uuid": "u", "state": "Success"})) == 0
