from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta

import pytest

from airflow_qarnot_pool.api import models
from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.errors import QarnotProtocolError, QarnotUnknownStateError
from airflow_qarnot_pool.api.models import (
    Account,
    CarbonFacts,
    Pool,
    Profile,
    QuotaUse,
    RemoteError,
    Task,
)
from airflow_qarnot_pool.api.specs import FixedPolicy, HardwareConstraint, OtherPart, RetrySettings
from airflow_qarnot_pool.api.states import Phase, PoolState, TaskState
from airflow_qarnot_pool.costs.limits import CostLimit
from airflow_qarnot_pool.costs.spending import spending_of
from tests.api.conftest import TOKEN
from tests.api.samples import POOL, STATUS, TASK
from tests.api.stub import Reply


@pytest.mark.parametrize(("model", "sample"), [(Pool, POOL), (Task, TASK), (models.Status, STATUS)])
def test_every_field_of_the_samples_is_read(model, sample):
    known = {key.lower() for _, keys, _ in models._readers(model) for key in keys}
    assert [key for key in sample if key.lower() not in known] == []


def test_a_pool():
    pool = Pool.from_json(POOL)
    assert pool.uuid == "62e80aae-d20a-4608-b873-ec8bff991733"
    assert pool.state == PoolState.SUBMITTED == "Submitted"
    assert pool.phase is Phase.TRANSIENT
    assert pool.creation_date == datetime(2025, 1, 1, tzinfo=UTC)
    assert pool.end_date is None
    assert pool.completion_ttl == timedelta(0)
    assert pool.default_resources_cache_ttl == timedelta(days=90)
    assert pool.constants == {"DOCKER_TAG": "latest"}
    assert pool.elastic is not None
    assert not pool.elastic.is_elastic
    assert pool.scaling is None
    assert pool.default_retry == RetrySettings()
    assert (pool.total_slot_capacity, pool.pool_usage, pool.ready_slots) == (2, 0.0, 0)
    assert pool.raw == POOL
    assert pickle.loads(pickle.dumps(pool)) == pool


def test_a_task():
    task = Task.from_json(TASK)
    assert (task.state, task.phase) == (TaskState.SUBMITTED, Phase.TRANSIENT)
    assert task.instances == 4
    assert task.pool is None
    assert task.dependencies == {}
    assert task.upload_results_on_cancellation is None
    assert task.succeeded_instances == task.failed_instances == frozenset()


@pytest.mark.parametrize("model", [Pool, Task])
@pytest.mark.parametrize("spelled", [str, str.upper, lambda key: key[0].upper() + key[1:]])
def test_only_the_uuid_is_needed_whatever_its_case(model, spelled):
    thing = model.from_json({spelled("uuid"): "u", spelled("state"): "closed"})
    assert thing.uuid == "u"
    assert thing.tags == ()
    assert thing.labels == {}
    assert thing.errors == ()
    assert thing.status is None
    assert thing.running_instance_count is None


@pytest.mark.parametrize("model", [Pool, Task])
def test_null_everywhere_is_as_good_as_nothing(model):
    sample = POOL if model is Pool else TASK
    nulls = dict.fromkeys(sample)
    assert model.from_json({**nulls, "uuid": "u"}) == model.from_json({"uuid": "u"})


@pytest.mark.parametrize("model", [Pool, Task])
def test_odd_types_and_unknown_fields_do_no_harm(model):
    sample = POOL if model is Pool else TASK
    for odd in ({"x": [1]}, [1, None, "a"], "text", 3, 71.0, True, []):
        thing = model.from_json(
            {**dict.fromkeys(sample, odd), "uuid": "u", "state": "Closed", "novelty": odd}
        )
        assert thing.uuid == "u"
        repr(thing)


def test_a_count_that_comes_as_a_float_is_a_count():
    assert (
        Pool.from_json(
            {"uuid": "u", "queuedOrRunningTaskInstancesCount": 71.0}
        ).queued_or_running_task_instances_count
        == 71
    )


@pytest.mark.parametrize("data", [None, [], "x", 3, {}, {"name": "n"}])
def test_a_response_without_an_object_or_uuid_is_refused(data):
    with pytest.raises(QarnotProtocolError):
        Pool.from_json(data)


def test_an_unknown_state_is_kept_and_raises_when_asked_about():
    pool = Pool.from_json({"uuid": "u", "shortname": "s", "state": "Levitating"})
    assert pool.state == "Levitating"
    with pytest.raises(QarnotUnknownStateError, match="pool 's' is in the unknown state 'Levitating'"):
        _ = pool.phase
    assert Pool.from_json({"uuid": "u", "state": "fullyexecuting"}).state == PoolState.FULLY_EXECUTING


def test_status_and_running_instances():
    task = Task.from_json({**TASK, "state": "PartiallyExecuting", "status": STATUS})
    assert task.status is not None
    assert task.status.execution_time == timedelta(seconds=3.5)
    assert task.status.environment_time_sec == 2.0
    (instance,) = task.status.running_instances
    assert (instance.instance_id, instance.phase, instance.core_count) == (2, "execution", 8)
    assert instance.active_forwards[0].forwarder_port == 4000
    assert instance.vpn_connections[0].vpn_name == "v"
    assert task.status.running is not None
    assert task.status.running.running_core_count_by_cpu_model[0].running_core_count == 8
    assert task.succeeded_instances == {0, 1}
    assert task.failed_instances == {3}
    assert models.Status.from_json({}).running_instances == ()


def test_completed_instances_count_for_more_than_ranges():
    failed = {"instanceId": 1, "state": "Failure", "error": {"code": "E1", "message": "exit", "debug": "d"}}
    done = {"instanceId": 0, "state": "Success", "wallTimeSec": 1.5, "execTimeSec": 1, "peakMemoryMB": 3}
    task = Task.from_json({**TASK, "completedInstances": [done, failed], "status": STATUS})
    assert task.succeeded_instances == {0}
    assert task.failed_instances == {1}
    assert task.completed_instances[1].error == RemoteError(code="E1", message="exit", debug="d")
    assert str(task.completed_instances[1].error) == "E1: exit"
    assert task.completed_instances[0].wall_time == timedelta(seconds=1.5)


def test_an_instance_that_failed_first_and_succeeded_then_has_succeeded():
    tries = [{"instanceId": 0, "state": "Failure"}, {"instanceId": 0, "state": "Success"}]
    task = Task.from_json({**TASK, "completedInstances": tries})
    assert task.succeeded_instances == {0}
    assert task.failed_instances == frozenset()


def test_the_number_of_instances_of_a_task_with_ranges():
    assert Task.from_json({"uuid": "u", "instanceCount": 0, "advancedRanges": "0-2,7"}).instances == 4
    assert Task.from_json({"uuid": "u", "instanceCount": 0, "totalInstanceCount": 4}).instances == 4
    assert Task.from_json({"uuid": "u"}).instances is None


@pytest.mark.parametrize(
    ("fields", "slots"),
    [
        ({}, 0),
        ({"runningInstanceCount": 3}, 3),
        ({"runningInstanceCount": None, "status": {"instanceCount": 2}}, 2),
        ({"runningInstanceCount": 0, "status": {"instanceCount": 2}}, 0),
    ],
)
def test_ready_slots(fields, slots):
    assert Pool.from_json({"uuid": "u", **fields}).ready_slots == slots


def test_scaling_is_read_without_being_judged():
    scaling = {
        "policies": [
            {
                "type": "Fixed",
                "slotsCount": 2,
                "name": "f",
                "enabledPeriods": [{"type": "Always", "name": "a"}],
            },
            {"type": "Quantum", "name": "q", "spin": 1},
            {"type": "ManagedTasksQueue", "name": "bad", "minTotalSlots": 9, "maxTotalSlots": 1},
        ],
        "activePolicyName": "f",
    }
    pool = Pool.from_json({"uuid": "u", "scaling": scaling})
    assert pool.scaling is not None
    assert pool.scaling.active_policy_name == "f"
    fixed, quantum, bad = pool.scaling.policies
    assert isinstance(fixed, FixedPolicy)
    assert quantum == OtherPart("Quantum", "q", {"type": "Quantum", "name": "q", "spin": 1})
    assert isinstance(bad, OtherPart)
    assert pool.scaling.to_json() == {"policies": scaling["policies"]}
    for nothing in (None, [], {}):
        assert Pool.from_json({"uuid": "u", "scaling": {"policies": nothing}}).scaling is None


def test_secrets_that_the_server_echoes_are_not_shown():
    pool = Pool.from_json(
        {"uuid": "u", "constants": [{"key": "DOCKER_REGISTRY_PASSWORD", "value": "hunter2"}]}
    )
    assert "hunter2" not in repr(pool)
    task = Task.from_json({"uuid": "u", "constants": [{"key": "QARNOT_SECRET__A", "value": "hunter2"}]})
    assert "hunter2" not in repr(task)


def test_hardware_constraints_of_a_newer_api_are_kept():
    items = [{"discriminator": "GpuHardwareConstraint"}, {"discriminator": "Odd", "x": 1}]
    first, second = Pool.from_json({"uuid": "u", "hardwareConstraints": items}).hardware_constraints
    assert first == HardwareConstraint.gpu()
    assert second.to_json() == items[1]


def test_the_account():
    account = Account.from_json(
        {
            "email": "a@b.c",
            "maxPool": 50,
            "poolCount": 3,
            "computingQuotas": {
                "user": {
                    "flex": {"maxInstances": 64, "runningCoresCount": 8},
                    "onDemand": {},
                    "reserved": [],
                },
                "organization": {"name": "org", "reserved": [{"machineKey": "k", "reservationName": "r"}]},
            },
            "projects": [{"uuid": "p", "slug": "s", "isDefault": True}],
        }
    )
    assert (account.email, account.max_pool, account.pool_count, account.max_task) == ("a@b.c", 50, 3, None)
    assert account.user_quotas.flex == QuotaUse(max_instances=64, running_cores=8)
    assert account.organization_quotas.reserved[0].reservation_name == "r"
    assert account.projects[0].is_default
    assert Account.from_json({}).user_quotas.flex is None


def test_carbon_facts_in_both_spellings():
    ours = {
        "total_consumed_energy_Wh": 1.5,
        "qarnot_carbon_footprint": 2,
        "PUE": 1.1,
        "equivalent_datacenter_name": "d",
    }
    theirs = {
        "totalConsumedEnergyWh": 1.5,
        "carbonFootprintC02Eq": 2,
        "pue": 1.1,
        "comparisonDataCenterName": "d",
    }
    assert CarbonFacts.from_json(ours) == CarbonFacts.from_json(theirs)
    assert CarbonFacts.from_json(ours).total_consumed_energy_wh == 1.5
    assert CarbonFacts.from_json({}).pue is None


def test_a_profile():
    profile = Profile.from_json(
        {
            "name": "docker-batch",
            "constants": [{"name": "DOCKER_CMD", "value": "", "description": "d"}],
            "licenses": [],
        }
    )
    assert profile.constants[0].name == "DOCKER_CMD"
    assert profile.constants[0].value == ""


def test_errors_in_one_line():
    errors = [{"code": "GHX0782I", "message": "The task was cancelled"}, {"message": "b"}]
    assert Pool.from_json({"uuid": "u", "errors": errors}).error_text == "GHX0782I: The task was cancelled; b"


NO_FIGURES = ["NaN", "Infinity", "-Infinity", float("nan"), float("inf"), 10**400]


@pytest.mark.parametrize("value", NO_FIGURES, ids=lambda value: str(value)[:9])
def test_a_number_that_is_not_finite_is_unknown(value):
    assert CarbonFacts.from_json({"PUE": value}).pue is None
    assert models.Budget.from_json({"remainingAmountInCents": value}).remaining_cents is None
    assert models.RunningInstance.from_json({"executionTimeSec": value}).execution_time is None


def test_nor_is_a_time_that_is_too_long():
    assert models.RunningInstance.from_json({"executionTimeSec": 1e300}).execution_time is None


@pytest.mark.parametrize("value", NO_FIGURES, ids=lambda value: str(value)[:9])
def test_a_cost_that_is_no_number_slips_past_no_limit(stub, value):
    """It is an error, which the watch tells: compared with a limit, NaN would be below any."""
    stub.default = Reply(200, {"credits": value})
    with QarnotClient(stub.url, TOKEN, retries=0) as client:
        for ask in (client.account.credits, lambda: spending_of(client, CostLimit(uuid="u", max_cost=1.0))):
            with pytest.raises(QarnotProtocolError, match="invalid `credits` value"):
                ask()
