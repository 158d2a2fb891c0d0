"""Parameters that contradict each other, or name nothing, are refused by name when the DAG is parsed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_qarnot_pool.api.specs import HardwareConstraint
from airflow_qarnot_pool.exceptions import QarnotInvalidSpecError
from airflow_qarnot_pool.hooks.qarnot import QarnotHook
from airflow_qarnot_pool.operators.cost_report import QarnotCostReportOperator
from airflow_qarnot_pool.operators.pool import QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.reap import QarnotReapOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.sensors.pool import QarnotPoolSensor
from airflow_qarnot_pool.sensors.task import QarnotTaskSensor

MINIMUM = HardwareConstraint.minimum_cores(8)
GPU, NO_GPU = HardwareConstraint.gpu(), HardwareConstraint.no_gpu()
CASES = [
    (QarnotCreatePoolOperator, {"warm_up": "maybe"}, "warm_up"),
    (QarnotCreatePoolOperator, {"warm_up": 3}, "warm_up"),
    (
        QarnotCreatePoolOperator,
        {"pool_spec": {"hardware_constraints": [GPU, NO_GPU]}},
        "hardware_constraints",
    ),
    (
        QarnotCreatePoolOperator,
        {
            "pool_spec": {
                "hardware_constraints": [
                    HardwareConstraint.minimum_cores(8),
                    HardwareConstraint.maximum_cores(4),
                ]
            }
        },
        "hardware_constraints",
    ),
    (
        QarnotCreatePoolOperator,
        {"pool_spec": {"constants": {"DOCKER_SRV": "javascript:alert(1)"}}},
        "constants",
    ),
    (QarnotRunTaskOperator, {"command": "x", "constants": {"DOCKER_SRV": "ftp://registry"}}, "constants"),
    (QarnotCostReportOperator, {"since": "2026-02-01", "until": "2026-01-01"}, "since"),
    (QarnotCostReportOperator, {"since": "2026-01-01", "until": "2026-01-01"}, "since"),
    (QarnotCostReportOperator, {"period": timedelta(days=10**6)}, "period"),
    *(
        (operator, {needed: "x", "target_states": value}, "target_states")
        for operator, needed in ((QarnotPoolSensor, "qarnot_pool"), (QarnotTaskSensor, "qarnot_task"))
        for value in (5, True, 1.5, object())
    ),
    *(
        (operator, {"qarnot_conn_id": value, **needs}, "qarnot_conn_id")
        for operator, needs in (
            (QarnotCreatePoolOperator, {}),
            (QarnotReapOperator, {}),
            (QarnotPoolSensor, {"qarnot_pool": "p"}),
        )
        for value in ("", " ", None, 5)
    ),
]


@pytest.mark.parametrize(("operator", "given", "field"), CASES)
def test_meaningless_parameters_are_refused_when_the_dag_is_parsed(
    operator: Any, given: dict[str, Any], field: str
) -> None:
    with DAG("d", schedule=None), pytest.raises(QarnotInvalidSpecError, match=field) as caught:
        operator(task_id="t", **given)
    assert caught.value.field == field


def test_a_template_result_names_a_connection_or_is_refused() -> None:
    with DAG("d", schedule=None):
        operator = QarnotCreatePoolOperator(task_id="t", qarnot_conn_id="{{ x }}")
    operator.qarnot_conn_id = ""
    with pytest.raises(QarnotInvalidSpecError, match="qarnot_conn_id is not the id of a connection, got ''"):
        _ = operator.hook
    with DAG("e", schedule=None):
        made = QarnotReapOperator(task_id="a")
        QarnotPoolSensor(task_id="t", qarnot_pool="p", qarnot_conn_id=made.output)
    assert QarnotHook().qarnot_conn_id == "qarnot_default"


@pytest.mark.parametrize(
    "server",
    [
        "https://registry.example",
        "http://r:5000/v2/",
        "HTTPS://R",
        "registry.example",
        "localhost:5000",
        "https://[::1]:5000",
    ],
)
def test_servers_of_registries_pass(server: str) -> None:
    with DAG("d", schedule=None):
        QarnotRunTaskOperator(task_id="t", command="x", constants={"DOCKER_SRV": server})


def test_constraints_that_a_machine_can_meet_pass() -> None:
    least, most = HardwareConstraint.minimum_cores(4), HardwareConstraint.maximum_cores(8)
    with DAG("d", schedule=None):
        QarnotCreatePoolOperator(task_id="t", pool_spec={"hardware_constraints": [least, most, GPU]})
