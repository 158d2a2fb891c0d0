"""``QarnotRunTaskOperator`` against the local Qarnot."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from airflow.sdk import DAG, TaskGroup

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.models import Account
from airflow_qarnot_pool.decorators.qarnot import qarnot_task
from airflow_qarnot_pool.exceptions import (
    QarnotDeletedError,
    QarnotInvalidSpecError,
    QarnotNodeLostError,
    QarnotNotFoundError,
    QarnotPoolEndedError,
    QarnotQuotaError,
    QarnotTaskCancelledError,
    QarnotTaskFailedError,
    QarnotWaitTimeoutError,
)
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.logs.writer import OUTPUT_DEADLINE
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup
from airflow_qarnot_pool.triggers import quota
from airflow_qarnot_pool.waiting.conditions import EndReason, WaitResult
from tests.crash.children import eventually
from tests.harness import FakeTI, defer, resume, run
from tests.operators.conftest import WAITS

task = partial(QarnotRunTaskOperator, task_id="work")
MODES = pytest.mark.parametrize("deferrable", [True, False], ids=["deferred", "on the worker"])


@WAITS
def test_a_finished_task_returns_a_small_dict_and_its_output_is_logged(
    qarnot: LocalQarnot,
    client: QarnotClient,
    pool: str,
    deferrable: bool,
    run_id: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ti = FakeTI(run_id=run_id)
    result = run(
        partial(
            task,
            qarnot_pool=pool,
            command="sh -c 'echo out $INSTANCE_ID of $COLOUR; echo err >&2'",
            constants={"COLOUR": "green"},
            instance_count=3,
            deferrable=deferrable,
        ),
        ti,
    )
    logged = capsys.readouterr().out
    json.dumps(result)
    assert {**result, "uuid": "", "created": "", "ended": "", "wall_seconds": 0, "execution_seconds": 0} == {
        "uuid": "",
        "name": "adhoc_airflow.work",
        "state": "Success",
        "pool": pool,
        "instances": 3,
        "succeeded": 3,
        "failed": 0,
        "created": "",
        "ended": "",
        "wall_seconds": 0,
        "execution_seconds": 0,
        "result_bucket": None,
    }
    assert result["uuid"] == ti.xcoms["qarnot_task"]
    assert ti.xcoms["_link_QarnotTaskLink"].endswith(f"/tasks/{result['uuid']}")
    for instance in range(3):
        assert f"[stdout {instance}] out {instance} of green" in logged
    assert "[stderr 0] err" in logged


@WAITS
@pytest.mark.parametrize("kind", ["status", "reset", "garbage"])
def test_an_outage_ends_no_wait(
    qarnot: LocalQarnot, pool: str, monkeypatch: pytest.MonkeyPatch, deferrable: bool, run_id: str, kind: str
) -> None:
    """One that outlasts a request with all its retries; the poller, which waits longer each time, makes none."""
    monkeypatch.setattr("airflow_qarnot_pool.api.transport.MAX_WAIT", 0.01)
    path = "^/tasks/search$" if deferrable else "^/tasks/[^/]+$"
    qarnot.faults([{"path": path, "times": 2 if deferrable else 9, "kind": kind, "status": 503}])
    make = partial(task, qarnot_pool=pool, command="true", deferrable=deferrable)
    assert run(make, FakeTI(run_id=run_id))["state"] == "Success"


def test_an_output_that_cannot_be_had_delays_no_end_for_long(
    qarnot: LocalQarnot, pool: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next stage starts only then."""
    monkeypatch.setattr("airflow_qarnot_pool.logs.writer.OUTPUT_DEADLINE", 0.2)
    qarnot.faults([{"path": "^/tasks/[^/]+/std(out|err)$", "kind": "status", "status": 503}])
    make = partial(task, qarnot_pool=pool, command="true", deferrable=False)
    began = time.monotonic()
    assert run(make, FakeTI(run_id="no-output"))["state"] == "Success"
    assert time.monotonic() - began < OUTPUT_DEADLINE
    assert capsys.readouterr().out.count("could not be fetched") == 2


@WAITS
def test_a_failed_task_raises_with_what_is_needed_to_mend_it(
    qarnot: LocalQarnot, pool: str, deferrable: bool, run_id: str
) -> None:
    make = partial(
        task,
        qarnot_pool=pool,
        command="sh -c 'echo the disk is full >&2; test $INSTANCE_ID -ne 1'",
        instance_count=3,
        deferrable=deferrable,
    )
    with pytest.raises(QarnotTaskFailedError) as caught:
        run(make, FakeTI(run_id=run_id))
    text = str(caught.value)
    assert "instance 1 failed" in text
    assert "1> the disk is full" in text
    assert "0> the disk is full" not in text
    assert "https://console.example/tasks/" in text


def test_a_command_that_needs_a_shell_says_so_when_it_fails(qarnot: LocalQarnot, pool: str) -> None:
    with pytest.raises(QarnotTaskFailedError, match=r"has '\|', which only a shell knows"):
        run(partial(task, qarnot_pool=pool, command="cat nothing | sort"), FakeTI(run_id="no-shell"))


def test_a_lost_node_is_no_failure_of_the_command(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    make = partial(task, qarnot_pool=pool, command="sleep 600")
    deferred, context = defer(make, ti := FakeTI(run_id="node-lost"))
    uuid = ti.xcoms["qarnot_task"]
    deadline = time.monotonic() + 30
    while not (nodes := [one for one in qarnot.nodes() if any(i["task"] == uuid for i in one["running"])]):
        assert time.monotonic() < deadline, "it was never started"
        time.sleep(0.02)
    qarnot.kill_node(nodes[0]["id"])
    with pytest.raises(QarnotNodeLostError, match="instance 0 failed"):
        resume(make, deferred, context)


def test_a_task_is_deleted_that_is_gone_since_the_last_poll_saw_its_deletion(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_qarnot_pool.waiting.polling.CONFIRM_AFTER", ())
    make = partial(task, qarnot_pool=pool, command="sleep 600")
    deferred, context = defer(make, FakeTI(run_id="gone-meanwhile"))
    uuid = deferred.trigger.uuid
    client.tasks.delete(uuid)
    eventually(lambda: client.tasks.find(uuid) is None)
    seen = WaitResult(
        ending=EndReason.IMPOSSIBLE,
        uuid=uuid,
        state="PendingDelete",
        resume_state=deferred.trigger.resume_state,
    )
    with pytest.raises(QarnotDeletedError, match=f"{uuid} was deleted before its end was seen"):
        make().resume_execution(deferred.method_name, {"event": seen.to_event()}, context)


def test_a_retry_policy_can_tell_the_errors_apart() -> None:
    sdk = pytest.importorskip("airflow.sdk")
    if not hasattr(sdk, "ExceptionRetryPolicy"):
        pytest.skip("retry_policy is of Airflow 3.3")
    policy = sdk.ExceptionRetryPolicy(
        rules=[
            sdk.RetryRule(
                exception=[QarnotNodeLostError], action=sdk.RetryAction.RETRY, reason="not its fault"
            ),
            sdk.RetryRule(exception=[QarnotTaskFailedError], action=sdk.RetryAction.FAIL, reason="its fault"),
        ]
    )
    task(command="true", retry_policy=policy)
    decide = partial(policy.evaluate, try_number=1, max_tries=2)
    assert decide(QarnotNodeLostError("x")).action is sdk.RetryAction.RETRY
    assert decide(QarnotTaskFailedError("x")).action is sdk.RetryAction.FAIL


def test_a_list_of_words_needs_no_quoting(qarnot: LocalQarnot, client: QarnotClient, pool: str) -> None:
    result = run(
        partial(task, qarnot_pool=pool, command=["echo", "two words", "it's"]), FakeTI(run_id="words")
    )
    assert client.tasks.stdout(result["uuid"]) == "0> two words it's\n"


def test_remote_retries_are_the_servers(qarnot: LocalQarnot, client: QarnotClient, pool: str) -> None:
    with pytest.raises(QarnotTaskFailedError):
        run(
            partial(task, qarnot_pool=pool, command="false", task_spec={"retry": "2"}),
            ti := FakeTI(run_id="retries"),
        )
    (instance,) = client.tasks.get(ti.xcoms["qarnot_task"]).completed_instances
    assert instance.execution_attempt_count == 3


def test_ranges_choose_the_instances(qarnot: LocalQarnot, client: QarnotClient, pool: str) -> None:
    result = run(
        partial(task, qarnot_pool=pool, command="sh -c 'echo $INSTANCE_ID'", task_spec={"ranges": "2,5-6"}),
        FakeTI(run_id="r"),
    )
    assert result["instances"] == 3
    assert sorted(client.tasks.stdout(result["uuid"]).split()) == ["2", "2>", "5", "5>", "6", "6>"]


def test_without_a_pool_it_gets_nodes_of_its_own(qarnot: LocalQarnot) -> None:
    result = run(partial(task, command="echo cold"), FakeTI(run_id="cold"))
    assert (result["state"], result["pool"]) == ("Success", None)


ONE = partial(QarnotRunTaskOperator, task_id="w", command="true")
MANY = partial(QarnotRunTasksOperator, task_id="w", commands=["true"])
ALL_HAVE = (
    "image",
    "constants",
    "resource_buckets",
    "result_bucket",
    "registry_conn_id",
    "max_cost",
    "task_spec",
)
SPEC_FILLED = ("name", "profile", "results_prefix", "results_whitelist", "retry", "tags", "labels", "ranges")
FILLED = [
    *((ONE, name) for name in (*ALL_HAVE, "command", "instance_count")),
    *((MANY, name) for name in (*ALL_HAVE, "max_in_flight")),
]


@pytest.mark.parametrize("rendered", ["", " ", "None", None])
@pytest.mark.parametrize(("make", "name"), FILLED)
def test_a_parameter_that_renders_to_nothing_is_refused(
    qarnot: LocalQarnot, make: Any, name: str, rendered: Any
) -> None:
    operator = make(**{"qarnot_pool": "p", name: "{{ params.it }}"})
    setattr(operator, name, rendered)
    with pytest.raises(QarnotInvalidSpecError, match=f"{name} is empty") as refused:
        run(lambda: operator)
    assert refused.value.field == name
    assert qarnot.requests() == []


@pytest.mark.parametrize("rendered", ["", " ", "None", None])
@pytest.mark.parametrize("name", SPEC_FILLED)
@pytest.mark.parametrize("make", [ONE, MANY])
def test_a_field_of_a_spec_that_renders_to_nothing_is_refused(
    qarnot: LocalQarnot, make: Any, name: str, rendered: Any
) -> None:
    operator = make(task_spec={name: "{{ params.it }}"})
    operator.task_spec = {name: rendered}
    with pytest.raises(QarnotInvalidSpecError, match=f"{name} is empty") as refused:
        run(lambda: operator)
    assert refused.value.field == name
    assert qarnot.requests() == []
    with pytest.raises(QarnotInvalidSpecError, match=f"{name} is empty"):
        make(task_spec={name: ""})


@pytest.mark.parametrize("rendered", ["", "soon"])
@pytest.mark.parametrize("name", ["wait_timeout", "wait_for_quota", "defer_after", "max_cost"])
@pytest.mark.parametrize("make", [ONE, MANY])
def test_a_wait_or_limit_that_renders_to_nonsense_is_refused_before_anything_is_submitted(
    qarnot: LocalQarnot, make: Any, name: str, rendered: str
) -> None:
    """The Qarnot task would run without its limit, and nothing would wait for it."""
    operator = make(**{name: "{{ params.it }}"})
    setattr(operator, name, rendered)
    with pytest.raises(QarnotInvalidSpecError, match=name) as refused:
        run(lambda: operator)
    assert refused.value.field == name
    assert qarnot.requests() == []


@pytest.mark.parametrize("spec", ["{{ params.spec }}", {"results_prefix": "{{ ds }}/"}])
def test_a_spec_may_be_a_template(spec: Any) -> None:
    with DAG("d", schedule=None):
        operator = ONE(result_bucket="b", task_spec=spec)
    rendered = {"params": {"spec": {"resultsBucketPrefix": "day/"}}, "ds": "day"}
    operator.render_template_fields(rendered)
    assert operator._spec(operator._given_now(), None).results_prefix == "day/"


def test_a_command_of_no_words_is_refused(qarnot: LocalQarnot) -> None:
    operator = ONE(command="{{ params.it }}")
    operator.command = []
    with pytest.raises(QarnotInvalidSpecError, match="command is empty"):
        run(lambda: operator)
    assert qarnot.requests() == []


@pytest.mark.parametrize(("make", "name"), FILLED)
def test_an_empty_parameter_is_refused_when_the_dag_is_parsed(make: Any, name: str) -> None:
    with pytest.raises(QarnotInvalidSpecError, match=f"{name} is empty"):
        make(**{name: ""})


@pytest.mark.parametrize("name", ["max_cost", "result_bucket", "command"])
def test_a_row_of_a_mapped_task_that_is_empty_is_refused(qarnot: LocalQarnot, name: str) -> None:
    with DAG("d") as dag:
        fixed = {} if name == "command" else {"command": "true"}
        QarnotRunTaskOperator.partial(task_id="w", **fixed).expand(**{name: [""]})
    with pytest.raises(QarnotInvalidSpecError, match=f"{name} is empty"):
        run(lambda: dag.get_task("w").unmap({name: ""}), FakeTI(task_id="w", map_index=0))
    assert qarnot.requests() == []


@pytest.mark.parametrize("mapped", [False, True])
def test_a_limit_that_is_the_groups_and_renders_to_nothing_is_none_for_no_task(
    qarnot: LocalQarnot, mapped: bool
) -> None:
    with DAG("d") as dag, QarnotPoolGroup("g", prefix_group_id=False, max_cost="{{ params.it }}"):
        if mapped:
            QarnotRunTaskOperator.partial(task_id="w").expand(command=["true"])
        else:
            QarnotRunTaskOperator(task_id="w", command="true")
    operator = dag.get_task("w").unmap({"command": "true"}) if mapped else dag.get_task("w")
    operator.qarnot_pool, operator.max_cost = "p", ""
    with pytest.raises(QarnotInvalidSpecError, match="max_cost is empty"):
        run(lambda: operator)
    assert qarnot.requests() == []


NO_POOL = {"qarnot_pool": None}
MAPPED = {
    "rows": lambda: QarnotRunTaskOperator.partial(task_id="w", command="true").expand_kwargs([NO_POOL]),
    "many": lambda: QarnotRunTasksOperator.partial(task_id="w", commands=["true"]).expand_kwargs([NO_POOL]),
    "values": lambda: QarnotRunTaskOperator.partial(task_id="w", command="true").expand(qarnot_pool=[None]),
}


@pytest.mark.parametrize("inside", [False, True], ids=["by itself", "in a group"])
@pytest.mark.parametrize("build", MAPPED.values(), ids=MAPPED)
def test_a_mapped_task_whose_row_has_no_pool_boots_no_nodes_of_its_own(
    qarnot: LocalQarnot, build: Any, inside: bool
) -> None:
    with DAG("d") as dag, QarnotPoolGroup("g", prefix_group_id=False) if inside else nullcontext():
        build()
    with pytest.raises(QarnotInvalidSpecError, match="qarnot_pool must be a uuid") as refused:
        run(lambda: dag.get_task("w").unmap(NO_POOL), FakeTI(task_id="w", map_index=0))
    assert refused.value.field == "qarnot_pool"
    assert qarnot.requests() == []


def one() -> int:
    return 1


def test_none_for_a_pool_is_refused_when_the_dag_is_parsed_unless_a_group_has_one() -> None:
    for make in (
        partial(QarnotRunTaskOperator, command="true"),
        partial(QarnotRunTasksOperator, commands=["true"]),
        lambda **given: qarnot_task(**given)(one)(),
    ):
        with DAG("d"), pytest.raises(QarnotInvalidSpecError, match=r"qarnot_pool must be .* got None"):
            make(task_id="w", qarnot_pool=None)
    with DAG("d"), QarnotPoolGroup("g") as group, TaskGroup("nested"):
        made = QarnotRunTaskOperator(task_id="w", command="true", qarnot_pool=None)
    assert made.qarnot_pool.operator is group.open_pool


def test_without_waiting_one_request_does(qarnot: LocalQarnot, client: QarnotClient, pool: str) -> None:
    qarnot.clear_requests()
    result = run(
        partial(task, qarnot_pool=pool, command="sleep 60", wait_for_completion=False),
        FakeTI(run_id="nowait"),
    )
    assert [one["path"] for one in qarnot.requests()] == ["/tasks"]
    client.tasks.abort(result["uuid"])


@WAITS
def test_a_task_that_takes_too_long_is_aborted(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, deferrable: bool, run_id: str
) -> None:
    ti = FakeTI(run_id=run_id)
    make = partial(
        task, qarnot_pool=pool, command="sleep 60", wait_timeout=timedelta(seconds=0.8), deferrable=deferrable
    )
    with pytest.raises(QarnotWaitTimeoutError, match="wait_timeout"):
        run(make, ti)
    assert client.tasks.get(ti.xcoms["qarnot_task"]).state in ("PendingCancel", "Cancelled")


def test_a_task_may_outlive_its_wait(qarnot: LocalQarnot, client: QarnotClient, pool: str) -> None:
    make = partial(
        task,
        qarnot_pool=pool,
        command="sleep 60",
        wait_timeout=timedelta(seconds=0.5),
        cancel_on_kill=False,
    )
    with pytest.raises(QarnotWaitTimeoutError, match="continues"):
        run(make, ti := FakeTI(run_id="outlive"))
    assert client.tasks.get(ti.xcoms["qarnot_task"]).state not in ("PendingCancel", "Cancelled")
    client.tasks.abort(ti.xcoms["qarnot_task"])


def test_one_cancelled_by_somebody_else_is_named_so(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    make = partial(task, qarnot_pool=pool, command="sleep 60")
    deferred, context = defer(make, FakeTI(run_id="cancelled"))
    client.tasks.abort(context["ti"].xcoms["qarnot_task"])
    with pytest.raises(QarnotTaskCancelledError):
        resume(make, deferred, context)


def test_one_whose_pool_was_closed_says_so(qarnot: LocalQarnot, client: QarnotClient, pool: str) -> None:
    make = partial(task, qarnot_pool=pool, command="sleep 60")
    deferred, context = defer(make, FakeTI(run_id="pool-closed"))
    client.pools.close(pool)
    with pytest.raises(QarnotTaskCancelledError, match=f"its pool {pool} is Clos"):
        resume(make, deferred, context)


def test_one_that_is_deleted_meanwhile_is_gone_and_no_success(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    make = partial(task, qarnot_pool=pool, command="sleep 60")
    deferred, context = defer(make, FakeTI(run_id="gone"))
    client.tasks.delete(context["ti"].xcoms["qarnot_task"])
    with pytest.raises(QarnotDeletedError):
        resume(make, deferred, context)


def test_a_closed_pool_takes_no_task_and_the_error_says_so(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    client.pools.close(pool)
    with pytest.raises(QarnotPoolEndedError, match="takes no more tasks"):
        run(partial(task, qarnot_pool=pool, command="true"), FakeTI(run_id="closed"))


def test_an_unknown_shortname_is_named(qarnot: LocalQarnot) -> None:
    with pytest.raises(QarnotNotFoundError, match="no-such-pool"):
        run(partial(task, qarnot_pool="no-such-pool", command="true"), FakeTI(run_id="unknown"))


def test_an_unknown_pool_is_refused(qarnot: LocalQarnot) -> None:
    unknown = "62e80aae-d20a-4608-b873-ec8bff991733"
    with pytest.raises(QarnotNotFoundError, match=unknown):
        run(partial(task, qarnot_pool=unknown, command="true"), FakeTI(run_id="unknown-uuid"))


def test_results_land_in_their_bucket(qarnot: LocalQarnot, pool: str) -> None:
    boto3 = pytest.importorskip("boto3")
    result = run(
        partial(
            task,
            qarnot_pool=pool,
            command="sh -c 'echo 42 > answer.txt; echo no > scratch.tmp'",
            result_bucket="answers",
            task_spec={"results_prefix": "run-1/", "results_whitelist": r".*\.txt"},
        ),
        FakeTI(run_id="results"),
    )
    assert result["result_bucket"] == "answers"
    s3 = boto3.client(
        "s3",
        endpoint_url=qarnot.storage_url,
        aws_access_key_id=qarnot.email,
        aws_secret_access_key=qarnot.token,
        region_name="default",
    )
    keys = [one["Key"] for one in s3.list_objects_v2(Bucket="answers")["Contents"]]
    assert keys == ["run-1/answer.txt"]


def test_the_registry_login_comes_from_a_connection(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    login = {"conn_type": "docker", "login": "me", "password": "registry-secret", "host": "registry.example"}
    monkeypatch.setenv("AIRFLOW_CONN_REGISTRY", json.dumps(login))
    ti = FakeTI(run_id="registry")
    operator = task(qarnot_pool=pool, command="true", image="team/tool:1", registry_conn_id="registry")
    result = run(lambda: operator, ti)
    constants = client.tasks.get(result["uuid"]).constants
    assert constants["DOCKER_REGISTRY_LOGIN"] == "me"
    assert constants["DOCKER_REGISTRY_PASSWORD"] == "registry-secret"
    assert constants["DOCKER_SRV"] == "https://registry.example"
    shown = json.dumps(
        [ti.xcoms, result, {name: str(getattr(operator, name)) for name in operator.template_fields}]
    )
    assert "registry-secret" not in shown + capsys.readouterr().out


def test_only_what_did_not_succeed_runs_again(qarnot: LocalQarnot, client: QarnotClient, pool: str) -> None:
    make = partial(
        task,
        qarnot_pool=pool,
        command="sh -c 'test $INSTANCE_ID -ne 1 -a $INSTANCE_ID -ne 3'",
        instance_count=5,
    )
    ti = FakeTI(run_id="partial", max_tries=1)
    with pytest.raises(QarnotTaskFailedError):
        run(make, ti)
    with pytest.raises(QarnotTaskFailedError):
        run(make, FakeTI(run_id="partial", max_tries=1, try_number=2, xcoms=(second := {})))
    assert client.tasks.get(second["qarnot_task"]).ranges == "1,3"


@MODES
def test_a_reached_quota_fails_or_waits(
    qarnot: LocalQarnot,
    client: QarnotClient,
    pool: str,
    deferrable: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quota, "TRY_AGAIN_AFTER", 0.5)
    for leftover in client.tasks.list():
        client.tasks.delete(leftover.uuid)
    holder = run(
        partial(task, qarnot_pool=pool, command="sleep 60", wait_for_completion=False),
        FakeTI(run_id=f"holder-{deferrable}"),
    )
    # Finished ones that may be deleted make room by themselves; the one that runs does not.
    qarnot.set_account(maxTask=1)
    try:
        make = partial(task, qarnot_pool=pool, command="true", deferrable=deferrable)
        with pytest.raises(QarnotQuotaError):
            run(make, FakeTI(run_id=f"quota-{deferrable}"))
        with pytest.raises(QarnotQuotaError):
            run(
                partial(make, wait_for_quota=timedelta(seconds=0.5)),
                FakeTI(run_id=f"quota-short-{deferrable}"),
            )
        if deferrable:
            waiting = partial(make, wait_for_quota=timedelta(minutes=1))
            deferred, context = defer(waiting, FakeTI(run_id="quota-wait"))
            assert deferred.method_name == "execute_with_quota_room"
            client.tasks.delete(holder["uuid"])
            assert resume(waiting, deferred, context)["state"] == "Success"
    finally:
        qarnot.set_account(maxTask=100000)
        if client.tasks.find(holder["uuid"]):
            client.tasks.delete(holder["uuid"])


@pytest.mark.parametrize(
    ("before", "now", "free"),
    [
        ({"taskCount": 5, "runningTaskCount": 2}, {"taskCount": 5, "runningTaskCount": 2}, False),
        ({"taskCount": 5, "runningTaskCount": 2}, {"taskCount": 5, "runningTaskCount": 1}, True),
        ({"taskCount": 5, "runningTaskCount": 2}, {"taskCount": 4, "runningTaskCount": 2}, True),
        ({"taskCount": 5, "runningTaskCount": 2}, {"taskCount": 6, "runningTaskCount": 3}, False),
        ({}, {}, False),
    ],
)
def test_room_comes_when_something_ends_or_goes(
    before: dict[str, int], now: dict[str, int], free: bool
) -> None:
    assert quota.has_more_room(Account.from_json(before), Account.from_json(now), "task") is free


BAD_AT_PARSE: dict[str, tuple[dict[str, Any], str]] = {
    "no command": ({"command": None}, "command"),
    "negative count": ({"instance_count": -1}, "instance_count"),
    "count and ranges": ({"instance_count": 2, "task_spec": {"ranges": "0-1"}}, "ranges"),
    "nonsense ranges": ({"task_spec": {"ranges": "5-2"}}, "ranges"),
    "profile with a pool": ({"qarnot_pool": "x", "task_spec": {"profile": "docker-batch"}}, "profile"),
    "profile with a pool that is not known yet": (
        {"qarnot_pool": "{{ ti.xcom_pull('create') }}", "task_spec": {"profile": "docker-batch"}},
        "profile",
    ),
    "the command twice": ({"constants": {"DOCKER_CMD": "true"}}, "DOCKER_CMD"),
    "eight tags": ({"task_spec": {"tags": [str(n) for n in range(8)]}}, "tags"),
    "slots of a pool": ({"slots_per_node": 2}, "slots_per_node"),
    "field of task_spec": ({"labels": {}}, "task_spec=.*labels"),
    "scaling": ({"task_spec": {"scaling": {}}}, "scaling"),
    "image": ({"image": "UPPER CASE"}, "image"),
    "retries": ({"task_spec": {"retry": "-2"}}, "retry"),
}


@pytest.mark.parametrize(("parameters", "named"), BAD_AT_PARSE.values(), ids=BAD_AT_PARSE.keys())
def test_bad_input_is_refused_when_the_dag_is_parsed(parameters: dict[str, Any], named: str) -> None:
    with pytest.raises(QarnotInvalidSpecError, match=named):
        task(**{"command": "true", **parameters})
