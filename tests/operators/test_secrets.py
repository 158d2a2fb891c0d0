"""Secret constants that stand in a DAG as they are: in the request, and nowhere that Airflow stores or shows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.execution_time.task_runner import _serialize_rendered_fields
from airflow.serialization import serialized_objects

from airflow_qarnot_pool.operators.pool import QarnotCreatePoolOperator, QarnotUpdatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.parameters.templating import reveal_secrets

#: Its name before Airflow 3.2.
SERIALIZER: Any = getattr(serialized_objects, "DagSerialization", serialized_objects.SerializedDAG)
SECRET = "literally-a-secret"
CONSTANTS = {"QARNOT_SECRET__TOKEN": SECRET, "DOCKER_REGISTRY_PASSWORD": SECRET, "OPEN": "to all"}
PLACES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "pool_spec": (QarnotCreatePoolOperator, {"pool_spec": {"constants": CONSTANTS}}),
    "update": (QarnotUpdatePoolOperator, {"qarnot_pool": "p", "constants": CONSTANTS}),
    "task": (QarnotRunTaskOperator, {"command": "true", "constants": CONSTANTS}),
    "task_spec": (QarnotRunTaskOperator, {"command": "true", "task_spec": {"constants": CONSTANTS}}),
    "many": (QarnotRunTasksOperator, {"commands": ["true"], "constants": CONSTANTS}),
    "one of many": (QarnotRunTasksOperator, {"commands": [{"command": "true", "constants": CONSTANTS}]}),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_literal_secret_is_not_in_the_serialized_dag_and_reaches_the_task(place: str) -> None:
    make, parameters = PLACES[place]
    with DAG("dag", schedule=None) as dag:
        operator = make(task_id="work", **parameters)
    stored = json.dumps(SERIALIZER.to_dict(dag), default=str)
    assert SECRET not in stored
    assert "to all" in stored
    operator.render_template_fields({"task": operator})
    rendered = [reveal_secrets(getattr(operator, name)) for name in operator.template_fields]
    # What is sent is made of what was rendered.
    assert SECRET in json.dumps(rendered, default=str)
    assert SECRET not in json.dumps(_serialize_rendered_fields(operator))
    # OpenLineage may send all attributes but Airflow's copy of the arguments.
    sent = {name: value for name, value in vars(operator).items() if not name.endswith("__init_kwargs")}
    assert SECRET not in str(sent)


def test_a_literal_secret_of_a_mapped_task_is_not_in_the_serialized_dag() -> None:
    with DAG("dag", schedule=None) as dag:
        mapped = QarnotRunTaskOperator.partial(task_id="work", constants=CONSTANTS).expand(command=["true"])
    assert SECRET not in json.dumps(SERIALIZER.to_dict(dag), default=str)
    operator = mapped.unmap({"command": "true"})
    operator.render_template_fields({"task": operator})
    assert reveal_secrets(operator.constants) == CONSTANTS
    assert SECRET not in str(operator.constants)


def test_a_literal_secret_is_checked_like_any_constant() -> None:
    with pytest.raises(Exception, match="2048"):
        QarnotRunTaskOperator(task_id="work", command="true", constants={"QARNOT_SECRET__X": "x" * 3000})


def test_a_template_is_stored_as_it_is() -> None:
    with DAG("dag", schedule=None) as dag:
        QarnotRunTaskOperator(
            task_id="work", command="true", constants={"QARNOT_SECRET__X": "{{ conn.vault.password }}"}
        )
    assert "conn.vault.password" in json.dumps(SERIALIZER.to_dict(dag), default=str)
