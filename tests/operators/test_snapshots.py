"""Snapshots of Qarnot tasks, and retries that start with the files of the last one, against the local Qarnot."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.specs import ResourceBucket, TaskSpec
from airflow_qarnot_pool.api.tasks import TaskResource
from airflow_qarnot_pool.decorators.qarnot import qarnot_task
from airflow_qarnot_pool.exceptions import (
    QarnotInvalidSpecError,
    QarnotNodeLostError,
    QarnotNotFoundError,
    QarnotRefusedError,
    QarnotUnavailableError,
)
from airflow_qarnot_pool.hooks.storage import QarnotStorageHook
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.bases.snapshots import resuming, with_place
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from tests.harness import FakeTI, defer, resume, run

pytest.importorskip("boto3")
task = partial(QarnotRunTaskOperator, task_id="work", log_output=False)
#: Writes a file and hangs. With the file of a snapshot, it shows it and ends.
WORK = """sh -c 'if [ -e deep/step ]; then cat deep/step; echo 2 > last; exit; fi
mkdir deep; echo 1 > deep/step; sleep 600'"""


def until(look: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + 30
    while not (found := look()):
        assert time.monotonic() < deadline, f"not seen: {what}"
        time.sleep(0.02)
    return found


@pytest.fixture
def storage(qarnot: LocalQarnot) -> QarnotStorageHook:
    return QarnotStorageHook()


def keys(storage: QarnotStorageHook, bucket: str) -> list[str]:
    try:
        return [one.key for one in storage.list(bucket)]
    except QarnotNotFoundError:
        return []


def lose_node(qarnot: LocalQarnot, uuid: str) -> None:
    """Lose the node of a running Qarnot task."""
    (node,) = [one for one in qarnot.nodes() if any(busy["task"] == uuid for busy in one["running"])]
    qarnot.kill_node(node["id"])


def of_run(qarnot: LocalQarnot, run_id: str) -> list[dict[str, Any]]:
    """Every Qarnot task that a DAG run made, oldest first."""
    return [one for one in qarnot.task_history() if one["labels"].get("airflow.run_id") == run_id]


def test_a_retry_starts_with_the_last_snapshot_of_a_lost_task(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, storage: QarnotStorageHook, run_id: str
) -> None:
    make = partial(
        task,
        qarnot_pool=pool,
        command=WORK,
        result_bucket="resumed",
        wait_timeout=60,
        task_spec={"snapshot_every": 1, "snapshot_bucket": "kept", "snapshot_prefix": "here"},
    )
    deferred, context = defer(make, ti := FakeTI(run_id=run_id, max_tries=1))
    first = ti.xcoms["qarnot_task"]
    (key,) = until(lambda: keys(storage, "kept"), "a snapshot")
    assert key.startswith("here/")
    assert key.endswith("/deep/step")
    lose_node(qarnot, first)
    with pytest.raises(QarnotNodeLostError):
        resume(make, deferred, context)

    ti.try_number = 2
    result = run(make, ti)
    assert client.tasks.stdout(result["uuid"]) == "0> 1\n"
    # A file that was complete before the snapshot is a result as well.
    assert keys(storage, "resumed") == ["deep/step", "last"]
    assert [one["uuid"] for one in of_run(qarnot, run_id)] == [first, result["uuid"]]


def test_a_retry_by_qarnot_starts_with_it_as_well(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, storage: QarnotStorageHook, run_id: str
) -> None:
    storage.upload("again", b"", key="so that the bucket exists")
    make = partial(
        task,
        qarnot_pool=pool,
        command=WORK,
        result_bucket="again",
        wait_timeout=60,
        task_spec={"snapshot_every": timedelta(seconds=1), "retry": 1},
    )
    deferred, context = defer(make, ti := FakeTI(run_id=run_id))
    uuid = ti.xcoms["qarnot_task"]
    until(lambda: any(key.startswith("airflow-snapshots/") for key in keys(storage, "again")), "a snapshot")
    lose_node(qarnot, uuid)
    assert resume(make, deferred, context)["uuid"] == uuid
    assert client.tasks.stdout(uuid) == "0> 1\n"
    assert len(of_run(qarnot, run_id)) == 1


def test_a_retry_adopts_a_task_whose_snapshots_were_never_asked_for(
    qarnot: LocalQarnot,
    client: QarnotClient,
    pool: str,
    storage: QarnotStorageHook,
    run_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first try dies after the creation, and before there is a bucket for snapshots."""
    make = partial(
        task,
        qarnot_pool=pool,
        command="sleep 600",
        task_spec={"snapshot_every": 7, "snapshot_bucket": "unasked"},
    )
    ti = FakeTI(run_id=run_id, max_tries=2)
    with monkeypatch.context() as dying:
        dying.setattr(TaskResource, "snapshot_every", lambda *_, **__: sys.exit())
        with pytest.raises(SystemExit):
            run(make, ti)
    storage.upload("unasked", b"", key="now there is a bucket")
    for ti.try_number in (2, 3):
        defer(make, ti)
    (only,) = of_run(qarnot, run_id)
    found = client.tasks.get(only["uuid"])
    assert found.snapshot_interval is not None
    assert found.snapshot_interval.total_seconds() == 7
    asked = [one["path"] for one in qarnot.requests() if one["path"].endswith("/snapshot/periodic")]
    assert asked == [f"/tasks/{only['uuid']}/snapshot/periodic"]  # the third try saw that they are taken
    client.tasks.abort(only["uuid"])


def test_a_refusal_of_the_snapshots_ends_the_task(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, run_id: str
) -> None:
    qarnot.faults([{"kind": "status", "path": "/snapshot/periodic$", "status": 400, "message": "too often"}])
    make = partial(
        task, qarnot_pool=pool, command="sleep 600", result_bucket="bucket", task_spec={"snapshot_every": 1}
    )
    with pytest.raises(
        QarnotRefusedError, match=r"snapshot_every is refused by Qarnot, got 0:00:01.*too often"
    ):
        run(make, FakeTI(run_id=run_id))
    (only,) = of_run(qarnot, run_id)
    until(lambda: client.tasks.get(only["uuid"]).state == "Cancelled", "the end of the task")


@pytest.mark.parametrize("problem", ["ended", "unavailable"])
def test_snapshots_that_cannot_be_taken_fail_no_work(
    pool: str, run_id: str, client: QarnotClient, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    def refuse(tasks: TaskResource, uuid: str, *_: Any, **__: Any) -> None:
        if problem == "unavailable":
            raise QarnotUnavailableError("no response")
        until(lambda: client.tasks.get(uuid).state == "Success", "its end")
        raise QarnotRefusedError("the task is Success")

    monkeypatch.setattr(TaskResource, "snapshot_every", refuse)
    make = partial(
        task, qarnot_pool=pool, command="true", result_bucket="bucket", task_spec={"snapshot_every": 1}
    )
    assert run(make, FakeTI(run_id=run_id))["state"] == "Success"


def test_a_function_has_snapshots_as_well(pool: str, run_id: str, qarnot: LocalQarnot) -> None:
    @qarnot_task(qarnot_pool=pool, task_spec={"snapshot_every": 60, "result_bucket": "functions"})
    def half(number: int) -> float:
        return number / 2

    assert run(lambda: half(5).operator, FakeTI(run_id=run_id)) == 2.5
    asked = [one["path"] for one in qarnot.requests() if one["path"].endswith("/snapshot/periodic")]
    assert len(asked) == 1


# --- without a server


def test_the_place_belongs_to_one_lineage() -> None:
    spec = TaskSpec(name="n", command="c", result_bucket="r", resource_buckets=["in"], snapshot_every=60)
    one, other = (with_place(spec, lineage) for lineage in ("l1", "l2"))
    assert one.snapshot_bucket == "r"
    assert one.snapshot_prefix == "airflow-snapshots/l1/airflow-snapshot/"
    assert other.snapshot_prefix == "airflow-snapshots/l2/airflow-snapshot/"
    assert resuming(one).resource_buckets == (
        ResourceBucket(bucket="in"),
        ResourceBucket(bucket="r", prefix=one.snapshot_prefix, strip_prefix="airflow-snapshots/l1/"),
    )
    own = spec.with_values(snapshot_bucket="s", snapshot_prefix="my/")
    assert (
        json.loads(json.dumps(with_place(own, "l").to_json()))["snapshotBucketPrefix"]
        == "my/l/airflow-snapshot/"
    )
    assert with_place(own, "l").snapshot_bucket == "s"


SPEC = {"snapshot_every": 60}
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no bucket": (
        lambda: task(command="c", task_spec=SPEC),
        "snapshot_every is given without snapshot_bucket",
    ),
    "instances": (
        lambda: task(command="c", instance_count=2, result_bucket="b", task_spec=SPEC),
        "snapshot_every is given for several instances",
    ),
    "no command": (
        lambda: task(constants={"DOCKER_CMD": "c"}, result_bucket="b", task_spec=SPEC),
        "snapshot_every is given without a command",
    ),
    "no interval": (
        lambda: task(command="c", result_bucket="b", task_spec={"snapshot_every": 0}),
        "snapshot_every is shorter than a second, got 0:00:00",
    ),
    "many commands": (
        lambda: QarnotRunTasksOperator(task_id="t", commands=["c"], result_bucket="b", task_spec=SPEC),
        "snapshot_every is a parameter of one command",
    ),
    "an item": (
        lambda: QarnotRunTasksOperator(task_id="t", commands=[{"command": "c", **SPEC}], result_bucket="b"),
        r"commands\[0\]: snapshot_every is a parameter of one command",
    ),
    "an array": (
        lambda: qarnot_task(task_spec={**SPEC, "result_bucket": "b"})(_function).array(number=[1, 2]),
        "snapshot_every is not a parameter of an array",
    ),
}


def _function(number: int) -> int:
    return number


@pytest.mark.parametrize(("make", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_snapshots_that_cannot_be_resumed_are_refused_first(make: Callable[[], Any], named: str) -> None:
    with pytest.raises(QarnotInvalidSpecError, match=named):
        make()
