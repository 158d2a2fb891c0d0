"""What every refusal says: the parameter, the problem, the value, and what to write instead."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.errors import QarnotError, QarnotInvalidSpecError, QarnotRefusedError
from airflow_qarnot_pool.api.resource import with_rejected_values
from airflow_qarnot_pool.api.specs import PoolSpec, RetrySettings, TaskSpec
from airflow_qarnot_pool.exceptions import QarnotTaskFailedError
from airflow_qarnot_pool.operators.pool import QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup
from tests.harness import FakeTI, run
from tests.parameters.test_validation import NEEDS, _operators, make
from tools.docstrings import parameters

#: A value for each parameter that no operator can take, if it has one.
BAD: dict[str, Any] = {
    "cancel_on_kill": "never",
    "group_by": "dag",
    "commands": "echo",
    "constants": "A=b",
    "deferrable": "maybe",
    "elastic": 5,
    "estimated_cost": -1,
    "delete_finished_after": "soon",
    "grace_period": "soon",
    "idle_timeout": "soon",
    "image": "No Image",
    "instance_count": "many",
    "keep_warm": "soon",
    "log_output": "sometimes",
    "max_cost": "much",
    "max_in_flight": 0,
    "max_run_cost": -1,
    "max_rows": 0,
    "accept_passed": "no",
    "period": "soon",
    "pool_spec": ["image"],
    "qarnot_pool": 5.5,
    "qarnot_task": 5.5,
    "ready_slots": "many",
    "ready_when": "Warm",
    "report_cost": "no",
    "report_only": "perhaps",
    "environment": 5,
    "resource_buckets": 5,
    "result_bucket": ["b"],
    "scaling": 5,
    "serializer": "xml",
    "shared": "a b",
    "since": "yesterday",
    "slots_per_node": 0,
    "sync_resources": "yes",
    "tags": 5,
    "target_states": "Happy",
    "task_spec": ["job"],
    "timeout": "soon",
    "until": "tomorrow",
    "wait_for_completion": "no",
    "wait_for_quota": "soon",
    "wait_timeout": "soon",
    "warm_up": "perhaps",
}
CASES = [
    pytest.param(operator, name, id=f"{operator.__name__}-{name}")
    for operator in _operators()
    for name in BAD
    if name in operator.template_fields or name == "deferrable"  # type: ignore[attr-defined]
    if name in parameters(operator)
]


@pytest.mark.parametrize(("operator", "name"), CASES)
def test_a_refusal_names_parameter_and_value_and_says_what_to_write(operator: Any, name: str) -> None:
    needs = {key: one for key, one in NEEDS.get(operator.__name__, {}).items() if key != name}
    with DAG("d", schedule=None), pytest.raises(QarnotInvalidSpecError) as caught:
        make(operator, **needs, **{name: BAD[name]})
    error, said = caught.value, str(caught.value)
    assert said.startswith(name) or f" {name}" in said or name == "target_states"
    assert error.field is not None
    assert error.field.startswith(name)
    assert error.remedy, said
    assert said.endswith(".")
    assert "?." not in said
    assert "Spec." not in said, "the author wrote no specification"
    value = BAD[name][0] if isinstance(BAD[name], list) else BAD[name]
    assert str(value) in said


def test_no_message_ends_with_two_marks() -> None:
    for message in ("What is it?", "What is it?.", "It is.", "It is", "Stop!"):
        assert str(QarnotError(message)).rstrip()[-2:] not in ("?.", "!.", "..")


@pytest.mark.parametrize(
    "value", [2, "2", 2.0, {"max_per_instance_retries": 2}, RetrySettings(max_per_instance_retries=2)]
)
def test_retries_of_qarnot_are_a_number_or_a_mapping(value: Any) -> None:
    with DAG("d", schedule=None):
        one = QarnotRunTaskOperator(task_id="t", command="c", task_spec={"retry": value})
    assert one._spec(one._given(), None).retry == RetrySettings(max_per_instance_retries=2)
    spec = TaskSpec.from_mapping({"name": "n", "command": "c", "retry": value})
    assert spec.retry == RetrySettings(max_per_instance_retries=2)
    assert PoolSpec.from_mapping({"name": "n", "default_retry": value}).default_retry == spec.retry


@pytest.mark.parametrize("value", ["many", -1, True, [2], 1.5])
def test_invalid_retries_say_that_a_number_works(value: Any) -> None:
    with pytest.raises(QarnotInvalidSpecError) as caught:
        QarnotRunTaskOperator(task_id="t", command="c", task_spec={"retry": value})
    assert str(caught.value).startswith(
        f"Task 't': retry is neither a number of retries nor a mapping, got {value!r}."
    )
    assert "number" in str(caught.value.remedy)


def test_a_missing_command_is_no_question() -> None:
    for build in (
        partial(QarnotRunTaskOperator, task_id="t"),
        partial(QarnotRunTasksOperator, task_id="t", commands=[{}]),
    ):
        with pytest.raises(QarnotInvalidSpecError, match=r"command is missing\. Give ") as caught:
            build()
        assert "?" not in str(caught.value)


def test_a_misspelt_command_of_an_item_is_named() -> None:
    with pytest.raises(QarnotInvalidSpecError, match=r"commands\[0\]: command is missing.*instead of comand"):
        QarnotRunTasksOperator(task_id="t", commands=[{"comand": "true"}])


@pytest.mark.parametrize("make", [QarnotRunTaskOperator, QarnotCreatePoolOperator], ids=["task", "pool"])
def test_the_threshold_of_cost_warnings_is_an_option_and_no_parameter(make: Any) -> None:
    with pytest.raises(QarnotInvalidSpecError, match=r"Set \[qarnot\] cost_warning_threshold"):
        make(task_id="t", cost_warning_threshold=0.5)
    with pytest.raises(QarnotInvalidSpecError, match=r"Set \[qarnot\] cost_warning_threshold"):
        QarnotPoolGroup("g", instance_count=1, cost_warning_threshold=0.5)


def test_a_group_speaks_of_itself() -> None:
    for bad in (
        {"setup_retries": "x"},
        {"shared": "n", "keep_warm": None},
        {"task_id": "x"},
        {"instance_count": "x"},
    ):
        with (
            DAG("d", schedule=None),
            pytest.raises(QarnotInvalidSpecError) as caught,
            QarnotPoolGroup("g", **bad),
        ):
            pass
        assert caught.value.field in bad
        assert caught.value.remedy


# --- What Qarnot refuses


def refused(message: str, **body: Any) -> str:
    error = QarnotRefusedError(status=400, server_message=message, kind="pool", method="POST", path="/pools")
    return str(with_rejected_values(error, PoolSpec, body))


def test_the_values_of_fields_that_qarnot_calls_invalid_are_named() -> None:
    said = refused(
        "Invalid pool file. Invalid fields: profile, instanceCount", profile="no-such", instanceCount=9
    )
    assert "profile is not valid, got 'no-such'; instance_count is not valid, got 9" in said
    assert "(POST /pools answered 400: Invalid pool file. Invalid fields: profile, instanceCount)" in said
    assert said.endswith("Correct it, or leave it out.")


def test_no_constant_and_no_unknown_field_is_shown() -> None:
    for message in ("Invalid fields: constants", "Invalid fields: range-length", "No such thing", ""):
        said = refused(message, constants=[{"key": "A", "value": "hush"}], profile="p")
        assert "hush" not in said
        assert "not valid" not in said


def test_a_server_that_refuses_a_profile_is_quoted_with_it(client: QarnotClient) -> None:
    with pytest.raises(QarnotRefusedError, match="profile is not valid, got 'no-such-profile'"):
        client.pools.create(PoolSpec(name="x", profile="no-such-profile"))
    with pytest.raises(QarnotRefusedError, match="profile is not valid, got 'no-such-profile'"):
        client.tasks.create(TaskSpec(name="x", profile="no-such-profile", command="c"))
    (item,) = client.tasks.create_many([TaskSpec(name="x", profile="no-such-profile", command="c")])
    assert "profile is not valid, got 'no-such-profile'" in str(item.error)
    with pytest.raises(QarnotRefusedError, match="got 'no-such-profile'"):
        run(
            partial(QarnotCreatePoolOperator, task_id="p", pool_spec={"profile": "no-such-profile"}),
            FakeTI(run_id="profile"),
        )


@pytest.mark.usefixtures("qarnot")
def test_a_failure_gives_each_reason_once() -> None:
    work = partial(QarnotRunTaskOperator, task_id="t", command="sh -c 'exit 3'", instance_count=2)
    with pytest.raises(QarnotTaskFailedError) as caught:
        run(work, FakeTI(run_id="once"))
    said = str(caught.value)
    assert said.count("exited with code 3") == 2, "one for each instance"
