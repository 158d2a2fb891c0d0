"""DAGs with ``render_template_as_native_obj=True``: what a template renders to in our parameters."""

from __future__ import annotations

import ast
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from airflow.sdk import DAG
from jinja2 import UndefinedError

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.api.specs import PoolSpec, ResourceBucket, TaskSpec
from airflow_qarnot_pool.decorators.qarnot import _QarnotDecoratedOperator, qarnot_task
from airflow_qarnot_pool.operators.pool import QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from tests.parameters.test_validation import NEEDS, _operators, make

#: Text that Python reads as something else: native rendering makes a number, a list, other quotes of it.
TEXTS = ["20260101", "1.10", "12e4567", "1_000", "True", "None ", "'a b'", "[1, 2]", '{"a": 1}', "0x10"]
OF_THE_FUNCTION = ("op_args", "op_kwargs")
FIELDS = [
    pytest.param(operator, name, id=f"{operator.__name__}-{name}")
    for operator in _operators()
    for name in operator.template_fields  # type: ignore[attr-defined]
    if name not in OF_THE_FUNCTION
]


def rendered(operator: Any, name: str, value: Any, **context: Any) -> Any:
    setattr(operator, name, value)
    operator.render_template_fields(context)
    return getattr(operator, name)


def made(operator: Any) -> Any:
    with DAG("d", schedule=None, render_template_as_native_obj=True):
        return make(operator, **NEEDS.get(operator.__name__, {}))


@pytest.mark.parametrize(("operator", "name"), FIELDS)
def test_text_in_a_native_dag_stays_the_text_it_is_elsewhere(operator: Any, name: str) -> None:
    one = made(operator)
    written = ["{{ it }}", *TEXTS, {"A": "{{ it }}"}, "a{{ it }}", "{{ n }}{{ it }}"]
    for text in TEXTS:
        wanted = [text, *TEXTS, {"A": text}, f"a{text}", f"1{text}"]
        assert rendered(one, name, written, it=text, n=1) == wanted
    assert rendered(one, name, "{{ it }}", it=TEXTS[0]) == TEXTS[0]


@pytest.mark.parametrize(("operator", "name"), FIELDS)
def test_an_expression_in_a_native_dag_keeps_the_object_it_yields(operator: Any, name: str) -> None:
    values = [
        [1, "2"],
        {"a": [1]},
        4,
        0.5,
        True,
        timedelta(minutes=1),
        datetime(2026, 1, 1, tzinfo=UTC),
        None,
    ]
    assert rendered(made(operator), name, [f"{{{{ it[{n}] }}}}" for n in range(8)], it=values) == values
    with pytest.raises(UndefinedError):
        rendered(made(operator), name, "{{ nothing_of_that_name }}")


def test_arguments_of_a_function_are_rendered_as_airflow_does() -> None:
    def function(a: int, b: dict[str, list[int]], c: str) -> int:
        return a

    with DAG("d", schedule=None, render_template_as_native_obj=True):
        operator: Any = qarnot_task(task_id="t", task_spec={"name": "{{ n }}"})(function)(
            "{{ n }}", b={"x": ["{{ n }}"]}, c="-{{ n }}"
        ).operator
    operator.render_template_fields({"n": "4"})
    assert operator.op_args == (4,)
    assert operator.op_kwargs == {"b": {"x": [4]}, "c": -4}
    assert operator.task_spec == {"name": "4"}


def test_mapped_tasks_of_a_native_dag_render_text_too() -> None:
    with DAG("d", schedule=None, render_template_as_native_obj=True):
        mapped = QarnotRunTaskOperator.partial(task_id="t", task_spec={"name": "{{ ds_nodash }}"}).expand(
            command=["x"]
        )
    one: Any = mapped.unmap({"command": "x"})
    one.render_template_fields({"ds_nodash": "20260101"})
    assert one.task_spec == {"name": "20260101"}


def test_parts_of_a_spec_in_a_native_dag_are_text() -> None:
    with DAG("d", schedule=None, render_template_as_native_obj=True):
        operator: Any = QarnotRunTaskOperator(
            task_id="t", command="x", resource_buckets=[ResourceBucket(bucket="b", prefix="{{ ds_nodash }}")]
        )
    operator.render_template_fields({"ds_nodash": "20260101"})
    assert operator.resource_buckets[0].prefix == "20260101"


# --- What is not text, but stands for it


VALUES: list[tuple[Any, str]] = [
    (20260101, "20260101"),
    (1.5, "1.5"),
    (True, "true"),
    (date(2026, 1, 2), "2026-01-02"),
    (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02 00:00:00+00:00"),
    (Decimal("1.10"), "1.10"),
    (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
]
TEXT_FIELDS = [
    "name",
    "profile",
    "image",
    "command",
    "result_bucket",
    "results_prefix",
    "results_whitelist",
    "results_blacklist",
    "snapshot_bucket",
    "snapshot_prefix",
    "targeted_reservation_name",
]


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        pytest.param(field, value, text, id=f"{field}-{type(value).__name__}")
        for field in TEXT_FIELDS
        for value, text in VALUES
        if (field != "image" or text.isalnum()) and not (field.endswith("_bucket") and " " in text)
    ],
)
def test_numbers_dates_and_flags_are_text_where_text_is_wanted(field: str, value: Any, text: str) -> None:
    given = {"name": "n", "command": "c", "scheduling_type": "Reserved", field: value}
    if field == "targeted_reservation_name":
        given["scheduling_type"] = "Reserved"
    else:
        del given["scheduling_type"]
    if field.startswith("results_"):
        given["result_bucket"] = "b"
    if field.startswith("snapshot_"):
        given["snapshot_bucket"] = given.get("snapshot_bucket", "b")
    assert getattr(TaskSpec.from_mapping(given), field) == text


@pytest.mark.parametrize(("value", "text"), VALUES, ids=[type(value).__name__ for value, _ in VALUES])
def test_they_are_text_in_lists_and_mappings_too(value: Any, text: str) -> None:
    named = "b" if " " in text else value
    spec = PoolSpec.from_mapping(
        {
            "name": "n",
            "tags": [value],
            "constants": {"A": value},
            "labels": {"a": value},
            "resource_buckets": [{"bucket": named, "prefix": value, "strip_prefix": value}],
        }
    )
    assert (spec.tags, spec.constants, spec.labels) == ((text,), {"A": text}, {"a": text})
    (bucket,) = spec.resource_buckets
    assert isinstance(bucket, ResourceBucket)
    assert (bucket.bucket, bucket.prefix, bucket.strip_prefix) == ("b" if named == "b" else text, text, text)
    (bare,) = PoolSpec.from_mapping({"name": "n", "resource_buckets": [named]}).resource_buckets
    assert bare == ResourceBucket(bucket=bucket.bucket)


@pytest.mark.parametrize("value", [["a"], {"a": 1}, object(), b"a"])
def test_a_value_that_is_not_text_is_refused_if_text_is_needed(value: Any) -> None:
    with pytest.raises(QarnotInvalidSpecError, match="name"):
        TaskSpec.from_mapping({"name": value, "command": "c"})


def test_ranges_take_a_number() -> None:
    assert TaskSpec.from_mapping({"name": "n", "command": "c", "ranges": 5}).instance_ids() == {5}


@pytest.mark.parametrize("written", [repr, str], ids=["as Python writes it", "as text"])
def test_commands_and_specs_that_a_template_yields_as_text_are_read(written: Any) -> None:
    commands = [["echo", "a b"], "echo c", {"command": "echo d", "instance_count": 2}]
    with DAG("d", schedule=None):
        operator: Any = QarnotRunTasksOperator(task_id="t", commands="{{ it }}", task_spec="{{ spec }}")
    job = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
    operator.render_template_fields({"it": written(commands), "spec": written({"job": job})})
    specs = operator._specs(operator.commands, operator._given(), None)
    assert [one.command for one in specs] == ["echo 'a b'", "echo c", "echo d"]
    assert {one.job for one in specs} == {job}
    assert ast.literal_eval(str(commands)) == commands


def test_a_free_form_spec_that_is_no_mapping_is_refused_by_name() -> None:
    for name in ("pool_spec",):
        with DAG("d", schedule=None), pytest.raises(QarnotInvalidSpecError) as caught:
            QarnotCreatePoolOperator(task_id="t", **{name: ["image"]})
        assert caught.value.field == name


def test_the_name_of_a_shared_pool_may_be_a_number() -> None:
    with DAG("d", schedule=None):
        operator = QarnotCreatePoolOperator(task_id="t", shared=20260101)
    assert operator.shared == "20260101"


def test_only_the_functions_own_arguments_are_left_to_airflow() -> None:
    assert set(_QarnotDecoratedOperator.rendered_by_airflow) == set(OF_THE_FUNCTION)
