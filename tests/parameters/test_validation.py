"""What holds for every parameter of every operator and sensor: ``default_args``, templates, refusals, words."""

from __future__ import annotations

import importlib
import json
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.api.specs import ResourceBucket
from airflow_qarnot_pool.decorators.qarnot import _QarnotDecoratedOperator, qarnot_task
from airflow_qarnot_pool.get_provider_info import get_provider_info
from airflow_qarnot_pool.operators.cost_report import QarnotCostReportOperator
from airflow_qarnot_pool.operators.pool import QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.ownership.identity import DEFAULT_KEEP_WARM
from airflow_qarnot_pool.parameters.configuration import default_poll_interval
from airflow_qarnot_pool.sensors.pool import QarnotPoolSensor
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup
from tools import examples
from tools.docstrings import meanings, parameters, undocumented

NO_NUMBERS = [0, -1, float("nan"), float("inf"), float("-inf"), True, "often", ""]
#: What makes an operator valid where the parameter under test does not.
NEEDS = {
    "QarnotRunTaskOperator": {"command": "true"},
    "QarnotRunTasksOperator": {"commands": ["true"]},
    "QarnotRunArrayOperator": {"commands": ["true"]},
    "QarnotUpdatePoolOperator": {"qarnot_pool": "p", "tags": ["t"]},
    "QarnotClosePoolOperator": {"qarnot_pool": "p", "shared": "s"},
    "QarnotDeletePoolOperator": {"qarnot_pool": "p"},
    "QarnotPoolSensor": {"qarnot_pool": "p"},
    "QarnotTaskSensor": {"qarnot_task": "t"},
}
#: Parameters that an operator takes and decides by itself.
DECIDED = {
    ("QarnotClosePoolOperator", "cancel_on_kill"): "a kill of the teardown ends nothing",
    ("_QarnotDecoratedOperator", "python_callable"): "is what is decorated",
}


def _operators() -> list[type[BaseOperator]]:
    info, found = get_provider_info(), []
    for entry in [*info["operators"], *info["sensors"]]:
        for module in map(importlib.import_module, entry["python-modules"]):
            found += [
                one
                for one in vars(module).values()
                if isinstance(one, type) and issubclass(one, BaseOperator) and _is_of(one, module)
            ]
    return [*found, _QarnotDecoratedOperator]


def _is_of(operator: type, module: Any) -> bool:
    """Whether DAGs import *operator* from *module*, which may have it from one that is not for DAGs."""
    return operator.__name__ in getattr(module, "__all__", ()) or operator.__module__ == module.__name__


CASES = [
    pytest.param(operator, name, id=f"{operator.__name__}-{name}")
    for operator in _operators()
    for name in parameters(operator)
    if (operator.__name__, name) not in DECIDED
]
NOT_TEMPLATED = [
    case for case in CASES if case.values[1] not in getattr(case.values[0], "template_fields", ())
]


def _function() -> int:
    return 1


def make(operator: type, **given: Any) -> Any:
    """An operator with *given* and what it cannot do without."""
    if operator is _QarnotDecoratedOperator:
        return qarnot_task(task_id="t", **given)(_function)().operator
    return operator(task_id="t", **given)


def sample(operator: type, name: str) -> Any:
    """Return the value of a parameter that the reference shows, which is not the default."""
    if name in ("op_args", "op_kwargs"):
        return {"op_args": (), "op_kwargs": {}}[name]
    text = examples.example(operator.__name__, name)
    assert text, f"{name} has no example in tools/examples.py"
    return examples.evaluate(text)


@pytest.mark.parametrize(("operator", "name"), CASES)
def test_default_args_reach_it(operator: Any, name: str) -> None:
    value = sample(operator, name)
    given = {key: one for key, one in NEEDS.get(operator.__name__, {}).items() if key != name}
    if name == "shared":
        given.pop("qarnot_pool", None)
    if name in ("op_args", "op_kwargs"):
        return  # a call gives them
    with DAG("d", schedule=None, default_args={name: value}):
        assert getattr(make(operator, **given), name) == value
    with DAG("d", schedule=None):
        assert getattr(make(operator, **given, **{name: value}), name) == value


@pytest.mark.parametrize(("operator", "name"), NOT_TEMPLATED)
def test_a_template_where_none_can_be_is_refused_by_name(operator: Any, name: str) -> None:
    given = {key: one for key, one in NEEDS.get(operator.__name__, {}).items() if key != name}
    with DAG("d", schedule=None), pytest.raises(QarnotInvalidSpecError, match=name) as caught:
        make(operator, **given, **{name: "{{ params.it }}"})
    assert caught.value.field == name


@pytest.mark.parametrize("operator", _operators(), ids=lambda one: one.__name__)
def test_every_parameter_is_explained(operator: Any) -> None:
    missing = [name for name in undocumented(operator) if (operator.__name__, name) not in DECIDED]
    known = meanings(qarnot_task) if operator is _QarnotDecoratedOperator else {}
    assert [one for one in missing if one not in known and not one.startswith("op_")] == []


# --- The group


@pytest.mark.parametrize("where", ["dag", "group"])
@pytest.mark.parametrize(
    "name", [one for one in parameters(QarnotCreatePoolOperator) if one != "wait_for_completion"]
)
def test_default_args_reach_the_setup_of_a_group(where: str, name: str) -> None:
    value = sample(QarnotCreatePoolOperator, name)
    of_dag, of_group = ({name: value}, {}) if where == "dag" else ({}, {name: value})
    with DAG("d", schedule=None, default_args=of_dag), QarnotPoolGroup("g", default_args=of_group) as group:
        pass
    assert getattr(group.open_pool, name) == value


def test_default_args_reach_the_teardown_of_a_group() -> None:
    defaults = {"qarnot_conn_id": "another", "deferrable": False, "retries": 9}
    with DAG("d", schedule=None, default_args=defaults), QarnotPoolGroup("g") as group:
        pass
    assert {name: getattr(group.close_pool, name) for name in defaults} == defaults


def _name(group: QarnotPoolGroup) -> str:
    """Return the name of the pool that a group creates."""
    assert group.open_pool is not None
    return group.open_pool._spec(group.open_pool._given()).name


def test_the_pool_of_a_group_is_named_after_it_or_its_shared_name_or_as_its_spec_says() -> None:
    scaled = {"scaling": {"policies": [{"name": "p", "type": "Fixed", "slotsCount": 1}]}}
    with DAG("d", schedule=None):
        groups = [
            QarnotPoolGroup("plain"),
            QarnotPoolGroup("other", pool_spec={"tags": ["t"]}),
            QarnotPoolGroup("scaled", pool_spec=scaled),
            QarnotPoolGroup("sharer", shared="nightly"),
            QarnotPoolGroup("named", pool_spec={"Name": "mine"}, shared="weekly"),
        ]
        for group in groups:
            with group:
                pass
    assert [_name(group) for group in groups] == ["d.plain", "d.other", "d.scaled", "nightly", "mine"]
    assert [group.open_pool.keep_warm is None for group in groups if group.open_pool] == [
        False,
        False,
        True,
        False,
        False,
    ]


def test_a_spec_of_a_group_replaces_that_of_default_args_with_its_scaling() -> None:
    defaults = {"pool_spec": {"elastic": {"max_total_slots": 1}}}
    with DAG("d", schedule=None, default_args=defaults):
        groups = [QarnotPoolGroup("scaled"), QarnotPoolGroup("warm", pool_spec={"tags": ["t"]})]
        for group in groups:
            with group:
                pass
    scaled, warm = (group.open_pool for group in groups)
    assert scaled is not None
    assert warm is not None
    assert (scaled.keep_warm, warm.keep_warm) == (None, DEFAULT_KEEP_WARM)


def test_a_keep_warm_beside_the_scaling_of_a_spec_is_refused() -> None:
    for spec in ({"elastic": {"max_total_slots": 1}}, {"elasticProperty": {"maxTotalSlots": 1}}):
        with (
            DAG("d", schedule=None),
            pytest.raises(
                QarnotInvalidSpecError, match="keep_warm is given together with elastic or scaling"
            ),
            QarnotPoolGroup("g", keep_warm=timedelta(minutes=2), pool_spec=spec),
        ):
            pass


def test_parameters_of_a_group_come_before_default_args() -> None:
    defaults = {"keep_warm": timedelta(minutes=1), "pool_spec": {"name": "of all"}}
    with DAG("d", schedule=None, default_args=defaults):
        with QarnotPoolGroup("g", keep_warm=timedelta(minutes=2), pool_spec={"name": "of this"}) as group:
            pass
        with QarnotPoolGroup("h", keep_warm=None) as fixed:
            pass
    assert group.open_pool is not None
    assert (group.open_pool.keep_warm, _name(group)) == (timedelta(minutes=2), "of this")
    assert _name(fixed) == "of all"
    assert fixed.open_pool is not None
    assert fixed.open_pool.keep_warm is None


@pytest.mark.parametrize("name", ["keep_warm", "report_cost", "shared", "setup_retries"])
def test_a_group_refuses_by_name(name: str) -> None:
    with DAG("d", schedule=None), pytest.raises(QarnotInvalidSpecError) as caught:
        QarnotPoolGroup("g", **{name: [] if name == "shared" else "{{ params.it }}"}).__enter__()
    assert caught.value.field == name


# --- Parts of specifications


def test_templates_in_parts_of_a_spec_are_rendered() -> None:
    bucket = ResourceBucket(bucket="inputs", prefix="{{ ds }}/", strip_prefix="{{ ds }}/")
    plain = ResourceBucket(bucket="others")
    with DAG("d", schedule=None):
        operator = QarnotRunTaskOperator(task_id="t", command="true", resource_buckets=[bucket, plain])
    operator.render_template_fields({"ds": "2026-01-02"})  # type: ignore[typeddict-item]
    rendered, same = operator.resource_buckets  # type: ignore[misc]
    assert isinstance(rendered, ResourceBucket)
    assert (rendered.bucket, rendered.prefix, rendered.strip_prefix) == (
        "inputs",
        "2026-01-02/",
        "2026-01-02/",
    )
    assert same is plain
    assert bucket.prefix == "{{ ds }}/"


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "True", "often", "1e9"])
@pytest.mark.parametrize(
    "ask",
    [
        lambda: QarnotRunTaskOperator(task_id="x", command="true"),
        lambda: QarnotPoolSensor(task_id="x", qarnot_pool="x"),
        default_poll_interval,
    ],
    ids=["operator", "sensor", "at run time"],
)
def test_a_bad_option_is_refused_by_name_as_the_parameter_is(
    ask: Any, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 or -1 would ask the service hundreds of times a second, and nan or inf never again."""
    monkeypatch.setenv("AIRFLOW__QARNOT__POLL_INTERVAL", value)
    with pytest.raises(
        QarnotInvalidSpecError, match=r"\[qarnot\] poll_interval .*AIRFLOW__QARNOT__POLL_INTERVAL"
    ):
        ask()


@pytest.mark.parametrize("option", ["min_poll_interval", "defer_after"])
@pytest.mark.parametrize(
    "make",
    [partial(QarnotRunTaskOperator, command="true"), partial(QarnotPoolSensor, qarnot_pool="x")],
    ids=["operator", "sensor"],
)
def test_every_bad_option_of_a_wait_is_refused_at_parse(
    make: Any, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"AIRFLOW__QARNOT__{option.upper()}", "often")
    with pytest.raises(QarnotInvalidSpecError, match=rf"\[qarnot\] {option} "):
        make(task_id="x")


@pytest.mark.parametrize("value", [10**5000, -(10**5000), "9" * 5000], ids=["int", "negative", "text"])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (partial(QarnotRunTaskOperator, command="true"), "wait_timeout"),
        (partial(QarnotRunTaskOperator, command="true"), "instance_count"),
        (partial(QarnotRunTaskOperator, command="true"), "max_cost"),
        (QarnotCreatePoolOperator, "slots_per_node"),
        (QarnotCreatePoolOperator, "ready_when"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_number_of_thousands_of_digits_is_refused_by_name(make: Any, name: str, value: Any) -> None:
    with pytest.raises(QarnotInvalidSpecError, match=name) as caught:
        make(task_id="x", **{name: value})
    assert caught.value.field == name
    assert len(str(caught.value)) < 1000


def test_an_option_that_is_not_set_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__QARNOT__POLL_INTERVAL", "")
    assert default_poll_interval() == 15.0
    monkeypatch.setenv("AIRFLOW__QARNOT__POLL_INTERVAL", " 2.5 ")
    assert default_poll_interval() == 2.5


@pytest.mark.parametrize(
    ("extra", "seconds"), [({}, 7.0), ({"poll_interval": 2}, 2.0), ({"poll_interval": "PT1M"}, 60)]
)
def test_a_connection_has_its_own_poll_interval_or_that_of_the_configuration(
    extra: dict[str, Any], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = {"conn_type": "qarnot", "password": "token", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_QARNOT_DEFAULT", json.dumps(connection))
    monkeypatch.setenv("AIRFLOW__QARNOT__POLL_INTERVAL", "7")
    assert QarnotRunTaskOperator(task_id="x", command="true")._poll_interval == seconds


@pytest.mark.parametrize("value", [0, -1, "nan", "inf", True, "often", 1e9])
def test_a_poll_interval_of_a_connection_that_is_none_is_refused_by_name(
    value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = {"conn_type": "qarnot", "password": "token", "extra": {"poll_interval": value}}
    monkeypatch.setenv("AIRFLOW_CONN_QARNOT_DEFAULT", json.dumps(connection))
    with pytest.raises(QarnotInvalidSpecError, match="'qarnot_default', field 'poll_interval'"):
        _ = QarnotRunTaskOperator(task_id="x", command="true")._poll_interval


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (partial(QarnotPoolSensor, qarnot_pool="x"), "ready_slots"),
        (partial(QarnotCreatePoolOperator, instance_count=1), "ready_when"),
        (QarnotCostReportOperator, "max_rows"),
        (partial(QarnotRunTasksOperator, commands=["true"]), "max_in_flight"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_number_of_things_or_seconds_takes_what_is_none(make: Any, name: str, value: Any) -> None:
    if (name, value) == ("ready_when", ""):
        return  # left out
    expected = "is no state" if (name, value) == ("ready_when", "often") else name
    with pytest.raises(QarnotInvalidSpecError, match=expected):
        make(task_id="x", **{name: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [("pools_page_refresh", one) for one in ("0", "-1", "nan", "inf", "True", "often")]
    + [("pools_page_connections", ", ,")],
)
def test_a_bad_option_of_the_pools_page_is_refused_by_name(
    option: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_qarnot_pool.plugins.routes import make_app

    monkeypatch.setenv(f"AIRFLOW__QARNOT__{option.upper()}", value)
    with pytest.raises(QarnotInvalidSpecError, match=rf"\[qarnot\] {option} "):
        make_app()
