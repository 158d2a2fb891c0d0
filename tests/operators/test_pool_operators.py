"""Pool operators against the local Qarnot."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial
from typing import Any
from unittest import mock

import pytest
from airflow.sdk import DAG, XComArg

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec
from airflow_qarnot_pool.exceptions import (
    QarnotBucketNotFoundError,
    QarnotCredentialsError,
    QarnotInvalidSpecError,
    QarnotNotFoundError,
    QarnotPoolEndedError,
    QarnotQuotaError,
    QarnotRefusedError,
    QarnotUnavailableError,
    QarnotWaitTimeoutError,
)
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.pool import (
    QarnotClosePoolOperator,
    QarnotCreatePoolOperator,
    QarnotDeletePoolOperator,
    QarnotUpdatePoolOperator,
)
from airflow_qarnot_pool.operators.reap import QarnotReapOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.sensors.pool import QarnotPoolSensor
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup
from tests.harness import FakeTI, again, airflow_says, defer, fire, kill, resume, run
from tests.operators.conftest import connect

create = partial(QarnotCreatePoolOperator, task_id="create")
NO_NODE = {"type": "Fixed", "slotsCount": 0, "name": "none"}
MODES = pytest.mark.parametrize("deferrable", [True, False], ids=["deferred", "on the worker"])


def pools_made(qarnot: LocalQarnot) -> int:
    return sum(one["method"] == "POST" and one["path"] == "/pools" for one in qarnot.requests())


@MODES
def test_create_waits_until_the_pool_is_ready(
    qarnot: LocalQarnot, client: QarnotClient, deferrable: bool
) -> None:
    ti = FakeTI(task_id="create", run_id=f"ready-{deferrable}")
    uuid = run(partial(create, instance_count=2, slots_per_node=2, deferrable=deferrable), ti)
    pool = client.pools.get(uuid)
    assert pool.state == "FullyExecuting"
    assert pool.slots_per_node == 2
    assert ti.xcoms["qarnot_pool"] == uuid
    assert ti.xcoms["_link_QarnotPoolLink"] == f"https://console.example/pools/{uuid}"
    client.pools.delete(uuid)


@MODES
@pytest.mark.parametrize("ready_when", ["PartiallyExecuting", "Submitted", 1, "2"])
def test_ready_is_what_the_author_says(
    qarnot: LocalQarnot, client: QarnotClient, deferrable: bool, ready_when: Any
) -> None:
    ti = FakeTI(task_id="create", run_id=f"when-{deferrable}-{ready_when}")
    uuid = run(partial(create, instance_count=2, ready_when=ready_when, deferrable=deferrable), ti)
    if str(ready_when).isdigit():
        assert client.pools.get(uuid).ready_slots >= int(ready_when)
    client.pools.delete(uuid)


def test_every_field_reaches_the_server(qarnot: LocalQarnot, client: QarnotClient) -> None:
    uuid = run(
        partial(
            create,
            pool_spec={
                "name": "all of it",
                "constants": {"A": "1"},
                "tags": ["mine"],
                "elastic": {"max_total_slots": "3", "resize_period": timedelta(seconds=90)},
                "preparationTask": {"commandLine": "true"},
                "labels": {"team": "x"},
            },
        ),
        FakeTI(run_id="fields"),
    )
    pool = client.pools.get(uuid)
    assert pool.name == "all of it"
    assert pool.constants == {"A": "1"}
    assert pool.elastic is not None
    assert (pool.elastic.is_elastic, pool.elastic.max_total_slots) == (True, 3)
    assert pool.preparation_command == "true"
    assert "mine" in pool.tags
    assert len(pool.tags) == 4
    assert pool.labels["team"] == "x"
    assert pool.labels["airflow.task_id"] == "task"
    assert pool.auto_delete_on_completion is False
    assert pool.completion_ttl == timedelta(days=7)
    client.pools.delete(uuid)


def test_without_waiting_one_request_does(qarnot: LocalQarnot, client: QarnotClient) -> None:
    uuid = run(partial(create, wait_for_completion=False), FakeTI(run_id="nowait"))
    assert [one["path"] for one in qarnot.requests()] == ["/pools"]
    client.pools.delete(uuid)


@MODES
def test_a_pool_that_is_not_ready_in_time_is_closed(
    qarnot: LocalQarnot, client: QarnotClient, deferrable: bool
) -> None:
    ti = FakeTI(task_id="create", run_id=f"late-{deferrable}")
    make = partial(
        create,
        pool_spec={"scaling": {"policies": [{"type": "Fixed", "slotsCount": 0, "name": "none"}]}},
        ready_when=1,
        wait_timeout=timedelta(seconds=0.6),
        deferrable=deferrable,
    )
    with pytest.raises(QarnotWaitTimeoutError, match="wait_timeout"):
        run(make, ti)
    assert client.pools.get(ti.xcoms["qarnot_pool"]).state in ("Closing", "Closed")


@MODES
def test_a_pool_that_ends_before_it_is_ready_says_so(
    qarnot: LocalQarnot, client: QarnotClient, deferrable: bool
) -> None:
    ti = FakeTI(task_id="create", run_id=f"ended-{deferrable}")
    make = partial(create, ready_when=2, instance_count=2, deferrable=deferrable)
    if deferrable:
        deferred, context = defer(make, ti)
        client.pools.close(ti.xcoms["qarnot_pool"])
        with pytest.raises(QarnotPoolEndedError, match="Clos"):
            resume(make, deferred, context)
    else:
        # A try that finds its own pool ending takes the next generation instead.
        first = run(partial(make, wait_for_completion=False), ti)
        client.pools.close(first)
        ti.try_number = 2
        second = run(make, ti)
        assert second != first
        assert client.pools.get(second).shortname == client.pools.get(first).shortname[:-1] + "2"
        client.pools.delete(second)


def test_a_managed_pool_warms_up_all_its_slots_and_cools_down(
    qarnot: LocalQarnot, client: QarnotClient
) -> None:
    ti = FakeTI(task_id="create", run_id="managed")
    uuid = run(partial(create, instance_count=3, keep_warm=timedelta(minutes=5)), ti)
    pool = client.pools.get(uuid)
    assert pool.ready_slots == 3
    assert pool.scaling is not None
    assert pool.scaling.to_json()["policies"][0] | {"enabledPeriods": None} == {
        "type": "ManagedTasksQueue",
        "minTotalSlots": 0,
        "maxTotalSlots": 3,
        "minIdleSlots": 0,
        "minIdleTimeSeconds": 300,
        "scalingFactor": 1,
        "name": "keep-warm",
        "enabledPeriods": None,
    }
    assert_it_cools_down(qarnot, client, uuid)
    client.pools.delete(uuid)


def assert_it_cools_down(qarnot: LocalQarnot, client: QarnotClient, pool: str) -> None:
    (warm_up,) = client.pools.tasks(pool)
    while (state := client.tasks.get(warm_up.uuid).state) != "Cancelled":
        assert state == "PendingCancel"  # its processes end in real time, which the clock does not hasten
    qarnot.advance_clock(3600)
    assert client.pools.get(pool).ready_slots == 0


def test_a_managed_pool_that_is_ready_cools_down_though_its_setup_never_resumes(
    qarnot: LocalQarnot, client: QarnotClient
) -> None:
    """Airflow skips a setup that waits for a worker, and its teardown, if the DAG run is marked failed."""
    make = partial(create, instance_count=1, keep_warm=timedelta(minutes=5))
    deferred, context = defer(make, FakeTI(task_id="create", run_id="never-resumed"))
    event = fire(deferred)
    assert event["status"] == "met"
    assert_it_cools_down(qarnot, client, event["uuid"])
    qarnot.clear_requests()
    assert make().execute_complete(context, event) == event["uuid"]
    assert not [one for one in qarnot.requests() if one["method"] != "GET"], "the warm-up has ended"
    client.pools.delete(event["uuid"])


@pytest.mark.parametrize("answer", ["status", "reset"])
def test_a_ready_pool_stays_though_its_warm_up_cannot_be_aborted(
    qarnot: LocalQarnot, client: QarnotClient, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    """The sleep ends by itself."""
    monkeypatch.setattr("airflow_qarnot_pool.api.transport.MAX_WAIT", 0.01)
    qarnot.faults([{"method": "POST", "path": "/abort$", "times": 99, "kind": answer, "status": 503}])
    ti = FakeTI(task_id="create", run_id=f"no-abort-{answer}")
    uuid = run(partial(create, instance_count=1, keep_warm=timedelta(minutes=5)), ti)
    assert client.pools.get(uuid).ready_slots == 1
    qarnot.faults([])
    client.pools.delete(uuid)


@MODES
def test_the_warm_up_waits_for_room_under_the_quota_of_tasks(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, monkeypatch: pytest.MonkeyPatch, deferrable: bool
) -> None:
    monkeypatch.setattr("airflow_qarnot_pool.triggers.quota.TRY_AGAIN_AFTER", 0.3)
    for leftover in client.tasks.list():
        client.tasks.delete(leftover.uuid)
    holder = client.tasks.create(TaskSpec(name="holder", pool=pool, command="sleep 60"))
    make = partial(
        create,
        instance_count=1,
        keep_warm=timedelta(minutes=5),
        deferrable=deferrable,
        wait_for_quota=timedelta(minutes=5),
    )
    ti = FakeTI(task_id="create", run_id=f"warm-up-room-{deferrable}")
    qarnot.set_account(maxTask=1)
    try:
        refused = FakeTI(task_id="create", run_id=f"no-wait-{deferrable}")
        with pytest.raises(QarnotQuotaError):
            run(partial(make, wait_for_quota=None), refused)
        assert client.pools.get(refused.xcoms["qarnot_pool"]).state in ("Closing", "Closed")
        made = pools_made(qarnot)
        if deferrable:
            deferred, context = defer(make, ti)
            assert deferred.method_name == "warm_up_with_room"
            client.tasks.delete(holder)
            uuid = resume(make, deferred, context)
        else:
            waits = mock.Mock(side_effect=lambda *_: client.tasks.delete(holder))
            with mock.patch.object(QarnotCreatePoolOperator, "_wait_for_room", waits):
                uuid = run(make, ti)
            assert waits.called
        assert pools_made(qarnot) == made + 1
        assert client.pools.get(uuid).ready_slots == 1
        client.pools.delete(uuid)
    finally:
        qarnot.set_account(maxTask=100000)


def test_a_kill_while_the_warm_up_waits_for_room_closes_the_pool(
    qarnot: LocalQarnot, client: QarnotClient, pool: str
) -> None:
    for leftover in client.tasks.list():
        client.tasks.delete(leftover.uuid)
    client.tasks.create(TaskSpec(name="holder", pool=pool, command="sleep 60"))
    make = partial(
        create, instance_count=1, keep_warm=timedelta(minutes=5), wait_for_quota=timedelta(minutes=5)
    )
    ti = FakeTI(task_id="create", run_id="warm-up-killed")
    qarnot.set_account(maxTask=1)
    try:
        deferred, _ = defer(make, ti)
    finally:
        qarnot.set_account(maxTask=100000)
    uuid = ti.xcoms["qarnot_pool"]
    with airflow_says("success"):
        asyncio.run(kill(again(deferred.trigger)))
    assert client.pools.get(uuid).state not in ("Closing", "Closed")
    with airflow_says("failed"):
        asyncio.run(kill(again(deferred.trigger)))
    assert client.pools.get(uuid).state in ("Closing", "Closed")


def test_update_changes_what_is_given_and_keeps_our_tags(qarnot: LocalQarnot, client: QarnotClient) -> None:
    uuid = run(
        partial(
            create,
            pool_spec={"constants": {"A": "1"}, "tags": ["old"], "elastic": {"max_total_slots": 2}},
        ),
        FakeTI(run_id="update"),
    )
    before = client.pools.get(uuid)
    run(
        partial(
            QarnotUpdatePoolOperator,
            task_id="update",
            qarnot_pool={"uuid": uuid},
            elastic={"max_total_slots": 5},
            constants={"B": "2"},
            tags=["new"],
            sync_resources=True,
        )
    )
    after = client.pools.get(uuid)
    assert after.constants == {"A": "1", "B": "2"}
    assert after.elastic is not None
    assert after.elastic.max_total_slots == 5
    assert set(before.tags) - set(after.tags) == {"old"}
    assert "new" in after.tags
    client.pools.close(uuid)
    with pytest.raises(QarnotPoolEndedError, match="cannot be changed"):
        run(partial(QarnotUpdatePoolOperator, task_id="update", qarnot_pool=uuid, tags=[]))


@MODES
def test_close_waits_for_closed_and_may_be_repeated(
    qarnot: LocalQarnot, client: QarnotClient, pool: str, deferrable: bool
) -> None:
    close = partial(
        QarnotClosePoolOperator,
        task_id="close",
        qarnot_pool=client.pools.get(pool).shortname,
        wait_for_completion=True,
        deferrable=deferrable,
    )
    assert run(close) == pool
    assert client.pools.get(pool).state == "Closed"
    assert run(close) == pool


def test_a_closing_task_is_a_teardown_unless_it_has_a_trigger_rule() -> None:
    close = partial(QarnotClosePoolOperator, task_id="close", qarnot_pool="p")
    assert close().is_teardown
    assert not close(trigger_rule="all_success").is_teardown
    with DAG("d", schedule=None, default_args={"trigger_rule": "none_failed"}):
        given = close()
    assert (given.is_teardown, given.trigger_rule) == (False, "none_failed")


@pytest.mark.parametrize("named_by", ["its output", "a template"])
@pytest.mark.parametrize("made", [True, False], ids=["a pool was made", "none was made"])
def test_close_ends_the_pool_of_a_setup_that_returned_nothing(
    qarnot: LocalQarnot, client: QarnotClient, named_by: str, made: bool
) -> None:
    """As when the setup was marked success by hand while it waited. Another run's pool stays."""
    ti = FakeTI(task_id="create", run_id=f"marked-{named_by}-{made}")
    never = partial(create, pool_spec={"scaling": {"policies": [NO_NODE]}}, ready_when=1)
    other = FakeTI(task_id="create", run_id=f"another than {ti.run_id}")
    defer(never, other)
    if made:
        defer(never, ti)
    with DAG("dag", schedule=None):
        setup = create(instance_count=1)
        template = "{{ ti.xcom_pull('create') }}"
        close = QarnotClosePoolOperator(
            task_id="close", qarnot_pool=setup.output if named_by == "its output" else template
        )
        setup >> close
    assert close.upstream_task_ids == {"create"}
    close.qarnot_pool = None if named_by == "its output" else "None"  # as Airflow renders it
    closed = run(lambda: close, FakeTI(task_id="close", run_id=ti.run_id))
    if made:
        assert closed == ti.xcoms["qarnot_pool"]
        assert client.pools.get(closed).state in ("Closing", "Closed")
    else:
        assert closed is None
    assert client.pools.get(other.xcoms["qarnot_pool"]).state not in ("Closing", "Closed")
    client.pools.delete(other.xcoms["qarnot_pool"])


def test_a_pool_that_comes_from_nowhere_is_refused(qarnot: LocalQarnot) -> None:
    close = QarnotClosePoolOperator(task_id="close", qarnot_pool="{{ params.pool }}")
    close.qarnot_pool = "None"
    with pytest.raises(QarnotInvalidSpecError, match="marked success by hand"):
        run(lambda: close)


def test_a_task_or_a_group_stands_for_its_pool() -> None:
    with DAG("dag", schedule=None):
        setup = create(instance_count=1)
        with QarnotPoolGroup("group") as group:
            pass
        takers = [
            QarnotClosePoolOperator(task_id="a", qarnot_pool=setup),
            QarnotPoolSensor(task_id="b", qarnot_pool=setup),
            QarnotRunTaskOperator(task_id="c", qarnot_pool=setup, command="true"),
            QarnotRunTaskOperator.partial(task_id="d", qarnot_pool=setup).expand(command=["true"]),
        ]
        in_group = QarnotRunTaskOperator(task_id="e", qarnot_pool=group, command="true")
    assert [one.upstream_task_ids for one in takers] == [{"create"}] * 4
    assert in_group.upstream_task_ids == {"group.open_pool"}
    assert isinstance(takers[2].qarnot_pool, XComArg)
    with pytest.raises(QarnotInvalidSpecError, match=r"qarnot_pool must be .*, got 7"):
        QarnotClosePoolOperator(task_id="f", qarnot_pool=7)


def test_closing_what_is_gone_is_fine(qarnot: LocalQarnot) -> None:
    gone = "62e80aae-d20a-4608-b873-ec8bff991733"
    assert run(partial(QarnotClosePoolOperator, task_id="close", qarnot_pool=gone)) == gone
    run(partial(QarnotDeletePoolOperator, task_id="delete", qarnot_pool=gone))


def test_delete_closes_and_deletes(qarnot: LocalQarnot, client: QarnotClient) -> None:
    uuid = client.pools.create(PoolSpec(name="x"))
    run(partial(QarnotDeletePoolOperator, task_id="delete", qarnot_pool=uuid))
    found = client.pools.find(uuid)
    assert found is None or found.state == "PendingDelete"


BAD_AT_PARSE: dict[str, tuple[dict[str, Any], str]] = {
    "negative count": ({"instance_count": -1}, "instance_count"),
    "count that is no number": ({"instance_count": "many"}, "instance_count"),
    "result bucket of a pool": ({"result_bucket": "out"}, "result_bucket to the task"),
    "field of pool_spec": ({"labels": {}}, "pool_spec=.*labels"),
    "size that is empty": ({"instance_count": ""}, "instance_count"),
    "result bucket on a pool": ({"pool_spec": {"result_bucket": "out"}}, "result_bucket"),
    "eleven tags": ({"pool_spec": {"tags": [str(n) for n in range(11)]}}, "tags"),
    "eight tags": ({"pool_spec": {"tags": [str(n) for n in range(8)]}}, "tags"),
    "eight tags in the API's case": ({"pool_spec": {"Tags": [str(n) for n in range(8)]}}, "tags"),
    "bad shortname": ({"pool_spec": {"shortname": "not ok!"}}, "shortname"),
    "elastic and scaling": (
        {
            "pool_spec": {
                "elastic": {"max_total_slots": 1},
                "scaling": {"policies": [{"type": "Fixed", "slotsCount": 1, "name": "a"}]},
            }
        },
        "elastic",
    ),
    "keep_warm and elastic": (
        {"keep_warm": timedelta(1), "pool_spec": {"elastic": {"max_total_slots": 1}}},
        "keep_warm",
    ),
    "keep_warm and elastic by the API's name": (
        {"keep_warm": timedelta(1), "pool_spec": {"elasticProperty": {"max_total_slots": 1}}},
        "keep_warm",
    ),
    "misspelled field": ({"pool_spec": {"slots_pr_node": 2}}, "slots_pr_node"),
    "a field twice": ({"instance_count": 1, "pool_spec": {"instance_count": 2}}, "instance_count"),
    "a field twice, by the API's name": (
        {"instance_count": 1, "pool_spec": {"instanceCount": 2}},
        "instance_count is given as a parameter and in pool_spec",
    ),
    "a name twice": ({"pool_spec": {"name": "a", "Name": "b"}}, "^Task 'create': name is given twice"),
    "unknown state": ({"ready_when": "Warm"}, "Warm"),
    "more slots than there are": ({"instance_count": 2, "ready_when": 3}, "ready_when"),
    "poll interval": ({"poll_interval": 1}, "Set poll_interval in the connection"),
    "wait timeout": ({"wait_timeout": -60}, "wait_timeout"),
    "a literal beside a template": (
        {"pool_spec": {"name": "{{ run_id }}", "profile": ""}, "instance_count": 2},
        "profile is empty",
    ),
}


@pytest.mark.parametrize(("parameters", "named"), BAD_AT_PARSE.values(), ids=BAD_AT_PARSE.keys())
def test_bad_input_is_refused_when_the_dag_is_parsed(parameters: dict[str, Any], named: str) -> None:
    with pytest.raises(Exception, match=named):
        create(**parameters)


def test_templates_wait_until_the_task_runs(qarnot: LocalQarnot) -> None:
    operator = create(
        instance_count="{{ params.size }}", pool_spec={"tags": "{{ params.tags }}"}, ready_when="{{ 1 }}"
    )
    operator.instance_count = "minus one"
    operator.pool_spec = {"tags": ["a"]}
    operator.ready_when = "1"
    with pytest.raises(QarnotInvalidSpecError, match="instance_count"):
        run(lambda: operator)
    assert qarnot.requests() == []


FILLED = (
    "instance_count",
    "slots_per_node",
    "resource_buckets",
    "max_cost",
    "max_run_cost",
    "estimated_cost",
    "pool_spec",
)
SPEC_FILLED = ("name", "profile", "elastic", "scaling", "constants", "tags", "image", "preparationTask")


@pytest.mark.parametrize("rendered", ["", " ", "None", None])
@pytest.mark.parametrize("name", FILLED)
def test_a_parameter_that_renders_to_nothing_is_refused(
    qarnot: LocalQarnot, name: str, rendered: Any
) -> None:
    operator = create(**{"instance_count": 2, name: "{{ params.it }}"})
    setattr(operator, name, rendered)
    with pytest.raises(QarnotInvalidSpecError, match=f"{name} is empty") as refused:
        run(lambda: operator)
    assert refused.value.field == name
    assert qarnot.requests() == []


@pytest.mark.parametrize("name", ["wait_timeout", "wait_for_quota", "max_cost", "max_run_cost"])
def test_a_wait_or_limit_that_renders_to_nonsense_is_refused_before_the_pool_is_created(
    qarnot: LocalQarnot, name: str
) -> None:
    operator = create(**{name: "{{ params.it }}"})
    setattr(operator, name, "soon")
    with pytest.raises(QarnotInvalidSpecError, match=name):
        run(lambda: operator)
    assert qarnot.requests() == []


@pytest.mark.parametrize("name", FILLED)
def test_an_empty_parameter_is_refused_when_the_dag_is_parsed(name: str) -> None:
    with pytest.raises(QarnotInvalidSpecError, match=f"{name} is empty"):
        create(**{"instance_count": 2, name: ""})
    assert getattr(create(**{name: None}), name) is None, "None says what leaving it out says"


@pytest.mark.parametrize("rendered", ["", " ", "None", None])
@pytest.mark.parametrize("name", SPEC_FILLED)
def test_a_field_of_a_spec_that_renders_to_nothing_is_refused(
    qarnot: LocalQarnot, name: str, rendered: Any
) -> None:
    field = "preparation_command" if name == "preparationTask" else name
    operator = create(instance_count=None, pool_spec={name: "{{ params.it }}"})
    operator.pool_spec = {name: rendered}
    with pytest.raises(QarnotInvalidSpecError, match=f"{field} is empty") as refused:
        run(lambda: operator)
    assert refused.value.field == field
    assert qarnot.requests() == []
    with pytest.raises(QarnotInvalidSpecError, match=f"{field} is empty"):
        create(instance_count=None, pool_spec={name: ""})
    assert create(instance_count=None, pool_spec={name: None})._given() == {}, (
        "None says what leaving it out says"
    )


@pytest.mark.parametrize("name", ["elastic", "scaling", "constants", "tags"])
def test_an_update_that_renders_to_nothing_is_refused(qarnot: LocalQarnot, name: str) -> None:
    operator = QarnotUpdatePoolOperator(task_id="u", qarnot_pool="p", **{name: "{{ params.it }}"})
    setattr(operator, name, "")
    with pytest.raises(QarnotInvalidSpecError, match=f"{name} is empty"):
        run(lambda: operator)
    assert qarnot.requests() == []


@pytest.mark.parametrize("rendered", ["", "None", None, "perhaps"])
def test_a_reaper_that_is_told_neither_to_report_only_nor_to_close_does_neither(
    qarnot: LocalQarnot, rendered: Any
) -> None:
    operator = QarnotReapOperator(task_id="r", report_only="{{ params.it }}")
    operator.report_only = rendered
    with pytest.raises(QarnotInvalidSpecError, match="report_only must be True or False"):
        run(lambda: operator)
    assert qarnot.requests() == []
    with pytest.raises(QarnotInvalidSpecError, match="report_only"):
        QarnotReapOperator(task_id="r", report_only=rendered)


def test_an_unknown_profile_is_the_servers_refusal(qarnot: LocalQarnot) -> None:
    with pytest.raises(QarnotRefusedError, match="profile"):
        run(partial(create, pool_spec={"profile": "docker-botch"}), FakeTI(run_id="profile"))


def test_an_unknown_bucket_is_named(qarnot: LocalQarnot) -> None:
    with pytest.raises(QarnotBucketNotFoundError, match="no-such-bucket"):
        run(partial(create, resource_buckets=["no-such-bucket"]), FakeTI(run_id="bucket"))


def test_a_wrong_token_points_at_the_connection(server: LocalQarnot, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(server, monkeypatch)
    value = __import__("os").environ["AIRFLOW_CONN_QARNOT_DEFAULT"].replace(server.token, "wrong-token")
    monkeypatch.setenv("AIRFLOW_CONN_QARNOT_DEFAULT", value)
    with pytest.raises(QarnotCredentialsError, match="connection") as caught:
        run(create)
    assert "wrong-token" not in str(caught.value)


def test_an_unreachable_host_is_named(server: LocalQarnot, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(server, monkeypatch, retries=0)
    value = __import__("os").environ["AIRFLOW_CONN_QARNOT_DEFAULT"].replace(server.url, "http://127.0.0.1:9")
    monkeypatch.setenv("AIRFLOW_CONN_QARNOT_DEFAULT", value)
    with pytest.raises(QarnotUnavailableError, match="cannot be reached"):
        run(create)


@pytest.mark.parametrize("ref", ["", "None", None, {}, {"name": "x"}])
def test_an_empty_reference_is_refused_by_name(qarnot: LocalQarnot, ref: Any) -> None:
    with pytest.raises(QarnotInvalidSpecError, match="qarnot_pool"):
        run(partial(QarnotClosePoolOperator, task_id="close", qarnot_pool=ref))
    assert qarnot.requests() == []


def test_an_unknown_pool_is_named(qarnot: LocalQarnot) -> None:
    with pytest.raises(QarnotNotFoundError, match="nobody"):
        run(partial(QarnotUpdatePoolOperator, task_id="update", qarnot_pool="nobody", tags=[]))


def test_a_lost_answer_makes_no_second_pool(qarnot: LocalQarnot, client: QarnotClient) -> None:
    qarnot.faults([{"method": "POST", "path": "^/pools$", "times": 1, "kind": "lost"}])
    uuid = run(create, FakeTI(run_id="lost"))
    assert pools_made(qarnot) == 1
    assert client.pools.get(uuid).state == "FullyExecuting"
    client.pools.delete(uuid)


def test_a_task_on_the_pool_is_not_needed_for_readiness(qarnot: LocalQarnot, client: QarnotClient) -> None:
    uuid = run(create, FakeTI(run_id="busy"))
    client.tasks.create(TaskSpec(name="t", pool=uuid, command="sleep 30"))
    assert run(create, FakeTI(run_id="busy", try_number=2)) == uuid
    client.pools.delete(uuid)
