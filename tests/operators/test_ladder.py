"""Lost nodes are replaced within one try, on the next rung of the ladder, against the local Qarnot."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.models import Task
from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec
from airflow_qarnot_pool.decorators.qarnot import qarnot_task
from airflow_qarnot_pool.exceptions import (
    QarnotInvalidSpecError,
    QarnotNodeLostError,
    QarnotPoolEndedError,
    QarnotTaskFailedError,
    QarnotWaitTimeoutError,
)
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.bases.warm_up import scaling_to_zero
from airflow_qarnot_pool.operators.pool import QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.ownership.ladder import Climb
from airflow_qarnot_pool.ownership.xcoms import WORK_KEY
from airflow_qarnot_pool.version_compat import TaskDeferred
from tests.crash.children import eventually, made_for
from tests.harness import FakeTI, defer, fire, resume, run

LADDER = ("Flex", "Flex", "OnDemand")
task = partial(QarnotRunTaskOperator, task_id="task", log_output=False)
create = partial(QarnotCreatePoolOperator, task_id="create")


def with_ladder(command: str, ladder: tuple[str, ...] = LADDER, **more: Any) -> Callable[..., Any]:
    return partial(task, command=command, task_spec={"ladder": ladder, **more})


def step(make: Callable[[], Any], deferred: TaskDeferred, context: Any) -> Any:
    """Resume once: the result, or the next deferral."""
    event, operator = fire(deferred), make()
    operator._wait_before_deferring = lambda *_: None
    try:
        return operator.resume_execution(
            deferred.method_name, {"event": event}, {**context, "task": operator}
        )
    except TaskDeferred as again:
        return again


def busy(qarnot: LocalQarnot, uuid: str) -> list[str]:
    """The nodes on which instances of a Qarnot task run."""
    return [node["id"] for node in qarnot.nodes() if any(one["task"] == uuid for one in node["running"])]


def lose(qarnot: LocalQarnot, uuid: str) -> None:
    """Lose the node of a Qarnot task, once it runs."""
    qarnot.kill_node(eventually(lambda: busy(qarnot, uuid), say="its node")[0])


def starts(folder: Path) -> int:
    """How often a command started, which writes a line to a file."""
    return len((folder / "ran").read_text().split()) if (folder / "ran").exists() else 0


def kinds(client: QarnotClient, run_id: str) -> list[tuple[str | None, str | None, str]]:
    """Scheduling type (None on a pool), pool and state of each Qarnot task of the work, oldest first."""
    made = made_for(client.tasks, run_id, role="")
    return [(None if one.pool else str(one.scheduling_type).lower(), one.pool, one.state) for one in made]


def test_lost_nodes_climb_the_ladder_within_one_try(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str, tmp_path: Path
) -> None:
    make = with_ladder(
        f"sh -c 'echo start >> {tmp_path}/ran; until test -e {tmp_path}/go; do sleep 0.02; done'"
    )
    deferred, context = defer(make, ti := FakeTI(run_id=run_id))
    for losses in range(2):
        eventually(lambda: starts(tmp_path) == losses + 1, say="the start of the command")  # noqa: B023
        lose(qarnot, ti.xcoms["qarnot_task"])
        deferred = step(make, deferred, context)
    (tmp_path / "go").touch()
    result = step(make, deferred, context)
    assert result["state"] == "Success"
    assert kinds(client, run_id) == [
        ("flex", None, "Failure"),
        ("flex", None, "Failure"),
        ("ondemand", None, "Success"),
    ]
    names = [one.shortname for one in made_for(client.tasks, run_id)]
    assert [name.rsplit("-", 1)[1] for name in names] == ["1", "2", "3"]
    assert starts(tmp_path) == 3
    assert ti.xcoms[WORK_KEY] > 0


def test_a_try_has_as_many_generations_as_rungs_and_a_retry_starts_on_the_last(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str
) -> None:
    make = with_ladder("sleep 600", ("Flex", "OnDemand"))
    ti = FakeTI(run_id=run_id, max_tries=1)
    for _ in range(2):
        deferred, context = defer(make, ti)
        lose(qarnot, ti.xcoms["qarnot_task"])
        deferred = step(make, deferred, context)
        lose(qarnot, ti.xcoms["qarnot_task"])
        with pytest.raises(QarnotNodeLostError):
            step(make, deferred, context)
        ti.try_number += 1
    assert [kind for kind, _, _ in kinds(client, run_id)] == ["flex", "ondemand", "ondemand", "ondemand"]


def test_a_failed_command_is_no_loss(client: QarnotClient, run_id: str) -> None:
    make = with_ladder("sh -c 'exit 3'")
    with pytest.raises(QarnotTaskFailedError):
        run(make, FakeTI(run_id=run_id))
    assert kinds(client, run_id) == [("flex", None, "Failure")]


@pytest.mark.parametrize(("seconds", "kind"), [(100, "flex"), (3_000, "ondemand")])
def test_the_last_rung_is_next_if_a_loss_could_break_the_deadline(
    client: QarnotClient, run_id: str, seconds: float, kind: str
) -> None:
    """The work took *seconds* in an earlier run. Twice that, and two boots, have to fit into the hour."""
    earlier = FakeTI(run_id="earlier", xcoms={WORK_KEY: seconds})
    make = partial(with_ladder("true"), wait_timeout=timedelta(hours=1))
    assert run(make, FakeTI(run_id=run_id, others=[earlier]))["state"] == "Success"
    assert kinds(client, run_id) == [(kind, None, "Success")]


@pytest.mark.parametrize("moment", ["unanswered", "died"])
def test_a_crash_around_a_submission_finds_the_same_generation_on_the_same_rung(
    qarnot: LocalQarnot,
    client: QarnotClient,
    run_id: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    make = with_ladder(f"sh -c 'until test -e {tmp_path}/go; do sleep 0.02; done'", ("Flex", "OnDemand"))
    deferred, context = defer(make, ti := FakeTI(run_id=run_id, max_tries=2))
    lose(qarnot, ti.xcoms["qarnot_task"])
    if moment == "unanswered":
        qarnot.faults([{"kind": "lost", "method": "POST", "path": "/tasks$", "times": 1}])
        deferred = step(make, deferred, context)
        (tmp_path / "go").touch()
        result = step(make, deferred, context)
    else:
        with monkeypatch.context() as dying:
            dying.setattr("airflow_qarnot_pool.ownership.xcoms.push", lambda *_: sys.exit())
            with pytest.raises(SystemExit):
                step(make, deferred, context)
        (tmp_path / "go").touch()
        ti.try_number = 2
        result = run(make, ti)
    assert result["state"] == "Success"
    assert kinds(client, run_id) == [("flex", None, "Failure"), ("ondemand", None, "Success")]


def test_a_worker_that_dies_before_the_submission_is_followed_on_the_same_rung(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str
) -> None:
    """The next try has its own deadline and counts the losses of the lineage, not its own."""
    make = with_ladder("sleep 600", ("Flex", "OnDemand"))
    _, _ = defer(make, ti := FakeTI(run_id=run_id, max_tries=1))
    lose(qarnot, ti.xcoms["qarnot_task"])
    eventually(lambda: kinds(client, run_id)[0][2] == "Failure", say="the loss")
    ti.try_number = 2
    defer(make, ti)
    assert [kind for kind, _, _ in kinds(client, run_id)] == ["flex", "ondemand"]
    client.tasks.abort(ti.xcoms["qarnot_task"])


def test_on_a_pool_the_last_rung_has_nodes_of_its_own(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str, tmp_path: Path
) -> None:
    pool = client.pools.create(PoolSpec(name="p", instance_count=1, constants={"OF_THE_POOL": "yes"}))
    make = partial(
        with_ladder(
            f"sh -c 'until test -e {tmp_path}/go; do sleep 0.02; done; echo $OF_THE_POOL > {tmp_path}/seen'",
            ("Flex", "OnDemand"),
        ),
        qarnot_pool=pool,
    )
    deferred, context = defer(make, ti := FakeTI(run_id=run_id))
    assert list(deferred.trigger.serialize()[1]["pools"]) == [pool]
    lose(qarnot, ti.xcoms["qarnot_task"])
    deferred = step(make, deferred, context)
    # Its pool has no say any more.
    assert "pools" not in deferred.trigger.serialize()[1]
    client.pools.delete(pool)
    (tmp_path / "go").touch()
    assert step(make, deferred, context)["pool"] is None
    assert kinds(client, run_id) == [(None, pool, "Failure"), ("ondemand", None, "Success")]
    assert (tmp_path / "seen").read_text() == "yes\n"


@pytest.mark.parametrize(
    ("kind", "is_warm", "leaves"), [("Flex", False, True), ("Flex", True, False), ("OnDemand", False, False)]
)
def test_near_the_deadline_only_a_cold_pool_of_other_nodes_is_left(
    client: QarnotClient, run_id: str, kind: str, is_warm: bool, leaves: bool
) -> None:
    size: dict[str, Any] = {"scaling": scaling_to_zero(1, timedelta(minutes=5))}
    if is_warm:
        size = {"instance_count": 1}
    pool = client.pools.create(PoolSpec(name="p", scheduling_type=kind, **size))
    if is_warm:
        eventually(lambda: client.pools.get(pool).ready_slots, say="its node")
    earlier = FakeTI(run_id="earlier", xcoms={WORK_KEY: 3_000.0})
    make = partial(
        with_ladder("true", ("Flex", "OnDemand")), qarnot_pool=pool, wait_timeout=timedelta(hours=1)
    )
    assert run(make, FakeTI(run_id=run_id, others=[earlier]))["pool"] == (None if leaves else pool)
    client.pools.delete(pool)


def test_a_task_whose_pool_has_secrets_stays_on_it(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    constants = {"QARNOT_SECRET__KEY": "s3cret"}
    pool = client.pools.create(PoolSpec(name="p", instance_count=1, constants=constants))
    make = partial(with_ladder("sleep 600", ("Flex", "OnDemand")), qarnot_pool=pool)
    deferred, context = defer(make, ti := FakeTI(run_id=run_id))
    lose(qarnot, ti.xcoms["qarnot_task"])
    step(make, deferred, context)
    assert [place for _, place, _ in kinds(client, run_id)] == [pool, pool]
    assert "secret constants (QARNOT_SECRET__KEY) cannot be read back" in capsys.readouterr().out
    client.pools.delete(pool)


def test_a_task_that_gets_no_node_in_its_time_climbs(
    client: QarnotClient, run_id: str, qarnot: LocalQarnot
) -> None:
    """``max_time_queue`` is the user's word for a queue that is too long."""
    pool = client.pools.create(PoolSpec(name="p", instance_count=1))
    client.tasks.create(TaskSpec(name="it has the node", command="sleep 600", pool=pool))
    make = partial(with_ladder("true", ("Flex", "OnDemand"), max_time_queue=1), qarnot_pool=pool)
    assert run(make, FakeTI(run_id=run_id))["state"] == "Success"
    assert kinds(client, run_id) == [(None, pool, "Failure"), ("ondemand", None, "Success")]
    client.pools.delete(pool)


def test_a_function_climbs_as_well(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str, tmp_path: Path
) -> None:
    @qarnot_task(task_spec={"ladder": ["Flex", "OnDemand"]})
    def half(number: int, go: str) -> float:
        import os
        import time

        while not os.path.exists(go):
            time.sleep(0.02)
        return number / 2

    def make() -> Any:
        return half(5, str(tmp_path / "go")).operator

    deferred, context = defer(make, ti := FakeTI(run_id=run_id))
    lose(qarnot, ti.xcoms["qarnot_task"])
    deferred = step(make, deferred, context)
    (tmp_path / "go").touch()
    assert step(make, deferred, context) == 2.5
    assert [kind for kind, _, _ in kinds(client, run_id)] == ["flex", "ondemand"]


def test_an_array_runs_only_its_lost_items_again_and_stays_on_its_pool(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, run_id: str, tmp_path: Path
) -> None:
    @qarnot_task(qarnot_pool=pool, task_spec={"ladder": ["Flex", "OnDemand"]})
    def half(number: int, folder: str) -> float:
        import os
        import time

        with open(os.path.join(folder, f"ran-{number}"), "a") as ran:
            ran.write("x")
        while number == 1 and not os.path.exists(os.path.join(folder, "go")):
            time.sleep(0.02)
        return number / 2

    def make() -> Any:
        return half.partial(folder=str(tmp_path)).array(number=[1, 2]).operator

    deferred, context = defer(make, ti := FakeTI(run_id=run_id))
    eventually((tmp_path / "ran-2").exists, say="the start of item 2")
    eventually(lambda: len(busy(qarnot, ti.xcoms["qarnot_task"])) == 1, say="its end")
    lose(qarnot, ti.xcoms["qarnot_task"])
    deferred = step(make, deferred, context)
    (tmp_path / "go").touch()
    assert step(make, deferred, context) == [0.5, 1.0]
    assert [(place, state) for _, place, state in kinds(client, run_id)] == [
        (pool, "Failure"),
        (pool, "Success"),
    ]
    assert {one.name: one.read_text() for one in tmp_path.glob("ran-*")} == {"ran-1": "xx", "ran-2": "x"}
    # The second Qarnot task had only a part of the work.
    assert WORK_KEY not in ti.xcoms


# --- pools


def pools(client: QarnotClient, run_id: str) -> list[tuple[str, bool]]:
    """Scheduling type of each pool, oldest first, and whether it is open."""
    made = made_for(client.pools, run_id)
    return [
        ((one.scheduling_type or "").lower(), one.state not in ("Closing", "Closed", "Failure"))
        for one in made
    ]


@pytest.mark.parametrize("keep_warm", [None, 60])
def test_a_pool_that_does_not_become_ready_is_replaced_on_the_next_rung(
    qarnot: LocalQarnot,
    client: QarnotClient,
    run_id: str,
    monkeypatch: pytest.MonkeyPatch,
    keep_warm: int | None,
) -> None:
    open_next = QarnotCreatePoolOperator._open_next

    def open_next_with_nodes(*args: Any) -> str:
        qarnot.withhold_nodes(False)
        return open_next(*args)

    monkeypatch.setattr(QarnotCreatePoolOperator, "_open_next", open_next_with_nodes)
    # The first pool gets no time at all.
    name = "airflow_qarnot_pool.operators.create_pool.share_of_wait"
    monkeypatch.setattr(name, lambda deadline, rungs, now: now)
    qarnot.withhold_nodes(True)
    make = partial(
        create,
        instance_count=1,
        keep_warm=keep_warm,
        wait_timeout=60,
        pool_spec={"ladder": ["Flex", "OnDemand"]},
    )
    uuid = run(make, FakeTI(run_id=run_id, task_id="create"))
    assert pools(client, run_id) == [("flex", False), ("ondemand", True)]
    assert client.pools.get(uuid).ready_slots == 1
    # Its own warm-up has booted it, and has ended.
    warm_ups = ["Cancelled"] if keep_warm else []
    eventually(lambda: [one.state for one in client.pools.tasks(uuid)] == warm_ups, say="its end")
    client.pools.delete(uuid)


def test_a_wait_for_room_for_the_warm_up_keeps_the_rung_and_the_deadline(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_qarnot_pool.triggers.quota.TRY_AGAIN_AFTER", 0.3)
    # A pool that is not on the last rung gets no time at all.
    monkeypatch.setattr(
        "airflow_qarnot_pool.operators.create_pool.share_of_wait", lambda deadline, rungs, now: now
    )
    open_next, boot = QarnotCreatePoolOperator._open_next, QarnotCreatePoolOperator._boot
    deadlines: list[Any] = []

    def open_next_without_room(*args: Any) -> str:
        qarnot.withhold_nodes(False)
        refuse = {"kind": "status", "status": 403, "method": "POST", "path": "/tasks$"}
        qarnot.faults([{**refuse, "message": "The quota of tasks is reached"}])
        return open_next(*args)

    def boot_until(
        self: Any, context: Any, uuid: str, deadline: Any = None, *args: Any, **options: Any
    ) -> Any:
        deadlines.append(deadline)
        return boot(self, context, uuid, deadline, *args, **options)

    monkeypatch.setattr(QarnotCreatePoolOperator, "_open_next", open_next_without_room)
    qarnot.withhold_nodes(True)
    make = partial(
        create,
        instance_count=1,
        keep_warm=60,
        wait_timeout=600,
        wait_for_quota=600,
        pool_spec={"ladder": ["Flex", "OnDemand"]},
    )
    deferred, context = defer(make, FakeTI(run_id=run_id, task_id="create"))
    while deferred.method_name != "warm_up_with_room":
        deferred = step(make, deferred, context)
    qarnot.faults([])
    deferred.trigger.resume_state["seconds_left"] -= 500
    monkeypatch.setattr(QarnotCreatePoolOperator, "_boot", boot_until)
    monkeypatch.setattr(QarnotCreatePoolOperator, "_open_next", open_next)
    uuid = resume(make, deferred, context)
    assert pools(client, run_id) == [("flex", False), ("ondemand", True)]
    assert deadlines[0] is not None
    assert deadlines[0] < datetime.now(UTC) + timedelta(seconds=100)
    client.pools.delete(uuid)


def test_a_pool_that_fails_is_replaced_while_its_ladder_has_rungs(client: QarnotClient, run_id: str) -> None:
    make = partial(
        create,
        instance_count=1,
        pool_spec={"preparation_command": "false", "ladder": ["Flex", "Flex", "OnDemand"]},
    )
    with pytest.raises(QarnotPoolEndedError):
        run(make, FakeTI(run_id=run_id, task_id="create"))
    assert pools(client, run_id) == [("flex", False), ("flex", False), ("ondemand", False)]


def test_the_last_pool_has_the_whole_rest_of_the_wait(
    qarnot: LocalQarnot, client: QarnotClient, run_id: str
) -> None:
    qarnot.withhold_nodes(True)
    make = partial(
        create,
        instance_count=1,
        wait_timeout=1,
        deferrable=False,
        pool_spec={"ladder": ["Flex", "OnDemand"]},
    )
    with pytest.raises(QarnotWaitTimeoutError):
        run(make, FakeTI(run_id=run_id, task_id="create"))
    qarnot.withhold_nodes(False)
    assert pools(client, run_id) == [("flex", False), ("ondemand", False)]


# --- without a server


@pytest.mark.parametrize(("count", "stored"), [(1, 60.0), (2, None)])
def test_the_rest_of_the_work_is_no_estimate_of_all_of_it(count: int, stored: float | None) -> None:
    """After a loss, of several instances only those run again that have not succeeded."""
    operator = task(command="c", instance_count=count, task_spec={"ladder": LADDER})
    operator._climb = Climb(losses=1, executed=3600)
    instance = {"instanceId": 0, "state": "Success", "execTimeSec": 60}
    ended = Task.from_json({"uuid": "u", "state": "Success", "completedInstances": [instance]})
    assert not operator._is_to_be_replaced({"ti": (ti := FakeTI(run_id="r"))}, ended)
    assert ti.xcoms.get(WORK_KEY) == stored


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "one rung": (
        with_ladder("c", ("Flex",)),
        "ladder has a single rung, got 'Flex'. Give it as scheduling_type",
    ),
    "an unknown rung": (with_ladder("c", ("Flex", "Spot")), r"ladder \[1\] is not known, got 'Spot'"),
    "a word": (with_ladder("c", "Flex"), "ladder is not a list, got 'Flex'"),  # type: ignore[arg-type]
    "too many rungs": (with_ladder("c", ("Flex",) * 11), "ladder has 11 items. Give at most 10"),
    "a scheduling type": (
        with_ladder("c", scheduling_type="Flex"),
        "ladder is given together with scheduling_type",
    ),
    "no wait": (
        partial(with_ladder("c"), wait_for_completion=False),
        "ladder has no effect without a wait",
    ),
    "many commands": (
        lambda: QarnotRunTasksOperator(task_id="t", commands=["c"], task_spec={"ladder": LADDER}),
        "ladder is a parameter of one command",
    ),
    "a shared pool": (
        lambda: create(shared="all", pool_spec={"ladder": LADDER}),
        "ladder is for a pool of one DAG run that is waited for, got shared='all'",
    ),
    "a pool that is not waited for": (
        lambda: create(wait_for_completion=False, pool_spec={"ladder": LADDER}),
        "got wait_for_completion=False",
    ),
}


@pytest.mark.parametrize(("make", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_a_ladder_that_nothing_would_climb_is_refused_first(make: Callable[[], Any], named: str) -> None:
    with pytest.raises(QarnotInvalidSpecError, match=named):
        make()


def test_a_ladder_may_be_a_template() -> None:
    assert task(command="c", task_spec={"ladder": "{{ params.ladder }}"})
    assert task(command="c", task_spec={"ladder": "['Flex', 'OnDemand']"})
