"""Parameters that an operator, sensor, group or decorator does not take, and durations in every form."""

from __future__ import annotations

import warnings
from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator, TaskGroup

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.api.fields import SYNONYMS, normalise, wire_fields
from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec
from airflow_qarnot_pool.decorators.qarnot import _QarnotDecoratedOperator, qarnot_task
from airflow_qarnot_pool.operators.cost_report import QarnotCostReportOperator
from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.reap import QarnotReapOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.parameters.dag_warnings import QarnotDefaultArgsWarning
from airflow_qarnot_pool.parameters.unknown import (
    _misspelt,
    _only_fields,
    _parameters,
    _warn_of_misspelt,
)
from airflow_qarnot_pool.parameters.validation import as_duration
from airflow_qarnot_pool.sensors.pool import QarnotPoolSensor
from airflow_qarnot_pool.sensors.task import QarnotTaskSensor
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup
from tests.parameters.test_validation import CASES, NEEDS, _function, _operators, make, sample

OPERATORS = _operators()
SENSORS = (QarnotPoolSensor, QarnotTaskSensor)


def author_wrote(operator: Any) -> str:
    return "@task.qarnot" if operator is _QarnotDecoratedOperator else operator.__name__


def refused(build: Any) -> QarnotInvalidSpecError:
    with DAG("d", schedule=None), pytest.raises(QarnotInvalidSpecError) as caught:
        build()
    return caught.value


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda one: one.__name__)
def test_the_refusal_names_the_operator_that_the_author_wrote(operator: Any) -> None:
    needs = NEEDS.get(operator.__name__, {})
    error = refused(lambda: make(operator, **needs, no_such_thing="a value"))
    assert error.field == "no_such_thing"
    assert f"no_such_thing is not a parameter of {author_wrote(operator)}" in str(error)
    assert "qarnot_conn_id" in str(error), "it says what there is"
    assert "a value" not in str(error), "it may be a secret"
    if operator is not _QarnotDecoratedOperator:
        error = refused(lambda: operator.partial(task_id="t", no_such_thing=1))
        assert f"Task 't' of DAG 'd': no_such_thing is not a parameter of {operator.__name__}" in str(error)


MEANT = [
    (QarnotRunTaskOperator, "instances", "instance_count"),
    (QarnotRunTaskOperator, "env_vars", "constants"),
    (QarnotRunTaskOperator, "env", "constants"),
    (QarnotRunTaskOperator, "nodes", "instance_count"),
    (QarnotRunTaskOperator, "timeout", "wait_timeout"),
    (QarnotRunTaskOperator, "comand", "command"),
    (QarnotRunTaskOperator, "results_bucket", "result_bucket"),
    (QarnotRunTaskOperator, "qarnotPool", "qarnot_pool"),
    (QarnotRunTasksOperator, "bash_command", "command"),
    (QarnotRunTasksOperator, "timeout", "wait_timeout"),
    (QarnotCreatePoolOperator, "instances", "instance_count"),
    (QarnotCreatePoolOperator, "nodes", "instance_count"),
    (QarnotCreatePoolOperator, "timeout", "wait_timeout"),
    (QarnotCreatePoolOperator, "keepwarm", "keep_warm"),
    (QarnotClosePoolOperator, "pool_id", "qarnot_pool"),
    (QarnotClosePoolOperator, "timeout", "wait_timeout"),
    (QarnotPoolSensor, "states", "target_states"),
    (QarnotPoolSensor, "target_state", "target_states"),
    (QarnotTaskSensor, "task_uuid", "qarnot_task"),
    (QarnotReapOperator, "idle_timout", "idle_timeout"),
    (QarnotCostReportOperator, "perod", "period"),
    (_QarnotDecoratedOperator, "env_vars", "constants"),
    (_QarnotDecoratedOperator, "environmnt", "environment"),
    (_QarnotDecoratedOperator, "retry_dely", "retry_delay"),
]


@pytest.mark.parametrize(
    ("operator", "name", "meant"), MEANT, ids=[f"{author_wrote(one)}-{name}" for one, name, _ in MEANT]
)
def test_the_refusal_says_which_parameter_is_meant(operator: Any, name: str, meant: str) -> None:
    needs = NEEDS.get(operator.__name__, {})
    error = refused(lambda: make(operator, **needs, **{name: 1}))
    assert (error.field, error.remedy) == (name, f"Did you mean {meant!r}?")


@pytest.mark.filterwarnings("ignore:Task .* was never mapped")
@pytest.mark.parametrize(
    "expand",
    [
        lambda partial: partial.expand(comands=["a", "b"]),
        lambda partial: partial.expand_kwargs([{"command": "a"}, {"comands": "b"}]),
    ],
    ids=["expand", "expand_kwargs"],
)
def test_a_misspelt_parameter_to_map_over_gets_a_suggestion(expand: Any) -> None:
    error = refused(lambda: expand(QarnotRunTaskOperator.partial(task_id="t")))
    assert str(error).startswith("Task 't' of DAG 'd': comands is not a parameter of QarnotRunTaskOperator")
    assert error.remedy == "Did you mean 'command'?"


def test_a_mapped_task_keeps_what_airflow_makes_of_it() -> None:
    with DAG("d", schedule=None):
        by_values = QarnotRunTaskOperator.partial(task_id="a").expand(command=["a"], pool=["default_pool"])
        rows = [{"command": "a"}, {"command": "b", "instance_count": 2}]
        by_rows = QarnotRunTaskOperator.partial(task_id="b").expand_kwargs(rows)
        from_a_task = QarnotRunTaskOperator.partial(task_id="c").expand_kwargs(by_rows.output)
    assert [task.is_mapped for task in (by_values, by_rows, from_a_task)] == [True] * 3


@pytest.mark.parametrize(
    ("operator", "name", "meant"),
    [
        (QarnotRunTasksOperator, "cmds", "commands"),
        (QarnotPoolSensor, "pool_id", "qarnot_pool"),
        (QarnotTaskSensor, "task_uuid", "qarnot_task"),
    ],
)
def test_a_required_parameter_of_another_name_is_told_its_name(operator: Any, name: str, meant: str) -> None:
    """Airflow itself says only that one is missing."""
    error = refused(lambda: operator(task_id="t", **{name: "x"}))
    assert (error.field, error.remedy) == (name, f"Did you mean {meant!r}?")


@pytest.mark.parametrize("name", ["instances", "nodes", "timeout", "slots_per_nodes"])
def test_a_group_is_what_the_refusal_names(name: str) -> None:
    error = refused(lambda: QarnotPoolGroup("g", **{name: 1}))
    assert f"{name} is not a parameter of QarnotPoolGroup." in str(error)
    assert "Did you mean" in str(error)
    assert "Operator" not in str(error)
    assert "setup_retries" in str(refused(lambda: QarnotPoolGroup("g", no_such_thing=1)))


def test_a_mapped_function_is_refused_when_the_dag_is_parsed() -> None:
    error = refused(lambda: qarnot_task(env_vars={})(_function))
    assert "env_vars is not a parameter of @task.qarnot" in str(error)
    with DAG("d", schedule=None):
        qarnot_task(queue="q", retries=3, constants={"A": "b"}, task_id="t")(_function)()


@pytest.mark.parametrize("name", ["labels", "scheduling_type", "projectUuid"])
def test_fields_of_a_specification_are_told_where_they_go(name: str) -> None:
    for operator, spec in ((QarnotCreatePoolOperator, "pool_spec"), (QarnotRunTaskOperator, "task_spec")):
        needs = NEEDS.get(operator.__name__, {})
        assert (
            refused(lambda o=operator, n=needs: make(o, **n, **{name: {}})).remedy
            == f"Give {spec}={{{name!r}: ...}}."
        )
    assert "pool_spec" in str(refused(lambda: QarnotPoolGroup("g", **{name: {}})))


ELSEWHERE = [
    (QarnotRunTaskOperator, "name", "Give task_spec={'name': ...}."),
    (QarnotRunTaskOperator, "tags", "Give task_spec={'tags': ...}."),
    (QarnotRunTaskOperator, "ranges", "Give task_spec={'ranges': ...}."),
    (QarnotRunTasksOperator, "profile", "Give task_spec={'profile': ...}."),
    (QarnotRunTaskOperator, "results_prefix", "Give task_spec={'results_prefix': ...}."),
    (QarnotRunTaskOperator, "result_prefix", "Did you mean task_spec={'results_prefix': ...}?"),
    (QarnotRunTaskOperator, "remote_retries", "Give task_spec={'retry': ...}."),
    (_QarnotDecoratedOperator, "remote_retries", "Give task_spec={'retry': ...}."),
    (_QarnotDecoratedOperator, "result_bucket", "Give task_spec={'result_bucket': ...}."),
    (QarnotCreatePoolOperator, "elastic", "Give pool_spec={'elastic': ...}."),
    (QarnotCreatePoolOperator, "constants", "Give pool_spec={'constants': ...}."),
    (QarnotCreatePoolOperator, "env_vars", "Give pool_spec={'constants': ...}."),
    (QarnotCreatePoolOperator, "remote_retries", "Give pool_spec={'default_retry': ...}."),
    (QarnotPoolGroup, "scaling", "Give pool_spec={'scaling': ...}."),
    (QarnotRunTaskOperator, "poll_interval", "Set poll_interval in the connection"),
    (QarnotCreatePoolOperator, "poke_interval", "Set poll_interval in the connection"),
    (QarnotPoolSensor, "poll_interval", "Set poll_interval in the connection"),
    (QarnotRunTaskOperator, "max_run_cost", "QarnotCreatePoolOperator that creates the pool"),
]


@pytest.mark.parametrize(
    ("operator", "name", "remedy"),
    ELSEWHERE,
    ids=[f"{author_wrote(one)}-{name}" for one, name, _ in ELSEWHERE],
)
def test_the_refusal_says_where_a_parameter_is(operator: Any, name: str, remedy: str) -> None:
    if operator is QarnotPoolGroup:
        error = refused(lambda: QarnotPoolGroup("g", **{name: 1}))
    else:
        error = refused(lambda: make(operator, **NEEDS.get(operator.__name__, {}), **{name: 1}))
    assert error.field == name
    assert remedy in str(error.remedy)


# --- default_args, of which Airflow ignores what no operator has


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("results_prefix", "Give task_spec={'results_prefix': ...} there."),
        ("resultsWhitelist", "Give task_spec={'resultsWhitelist': ...} there."),
        ("preparation_command", "Give pool_spec={'preparation_command': ...} there."),
        ("hardware_constraints", "Give pool_spec={'hardware_constraints': ...} or task_spec="),
    ],
)
def test_a_field_of_a_spec_in_default_args_is_refused_by_name(name: str, remedy: str) -> None:
    def in_a_group() -> None:
        with QarnotPoolGroup("g", default_args={name: "x"}):
            pass

    def mapped_in_a_group() -> None:
        with TaskGroup("g", default_args={name: "x"}):
            QarnotRunTaskOperator.partial(task_id="t").expand(command=["true"])

    builds: list[Any] = [in_a_group, mapped_in_a_group]
    for operator in OPERATORS:
        needs = NEEDS.get(operator.__name__, {})
        builds.append(lambda o=operator, n=needs: make(o, **n, default_args={name: "x"}))
    for build in builds:
        error = refused(build)
        assert error.field == name
        assert remedy in str(error.remedy)
    for operator in OPERATORS:
        with DAG("d", schedule=None, default_args={name: "x"}), pytest.raises(QarnotInvalidSpecError):
            make(operator, **NEEDS.get(operator.__name__, {}))


@pytest.mark.filterwarnings("ignore:Task .* was never mapped")
def test_names_that_other_operators_have_pass_in_default_args() -> None:
    shared = {"name": "n", "labels": {}, "tags": [], "image": "alpine", "poll_interval": 3, "elastic": None}
    with DAG("d", schedule=None, default_args={**shared, "owner": "me", "no_such_thing": 1}):
        QarnotRunTaskOperator(task_id="t", command="true")
        QarnotRunTaskOperator.partial(task_id="m").expand(command=["true"])
        with QarnotPoolGroup("g", instance_count=1):
            pass


def test_no_parameter_of_ours_is_refused_in_default_args() -> None:
    known = {str(case.values[1]) for case in CASES} | {*_parameters(BaseOperator)}
    assert {one for one in known if normalise(one) in _only_fields()} == set()


@pytest.mark.parametrize("name", ["instance_cuont", "instanceCount", "comand", "wait_timout", "retry_dealy"])
def test_a_misspelt_name_in_default_args_is_warned_of_once(name: str) -> None:
    _warn_of_misspelt.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with DAG("d", schedule=None, default_args={name: 1}):
            QarnotRunTaskOperator(task_id="a", command="true")
            QarnotRunTaskOperator(task_id="b", command="true")
            QarnotRunTaskOperator.partial(task_id="m").expand(command=["true"])
    (warning,) = [one for one in caught if one.category is QarnotDefaultArgsWarning]
    assert warning.filename == __file__, "the line of the author"
    assert f"{name} in default_args is not a parameter of any operator" in str(warning.message)
    assert "Did you mean '" in str(warning.message)


def test_a_name_that_another_operator_has_is_not_misspelt() -> None:
    class Other(BaseOperator):
        def __init__(self, *, instances_count: int = 1, **kwargs: Any) -> None:
            super().__init__(**kwargs)

    _warn_of_misspelt.cache_clear()
    with warnings.catch_warnings(), DAG("d", schedule=None, default_args={"instances_count": 1}):
        warnings.simplefilter("error", QarnotDefaultArgsWarning)
        QarnotRunTaskOperator(task_id="t", command="true")
        Other(task_id="other")


#: Names in ``default_args`` of published DAGs, most of them of operators of other providers.
IN_DAGS = (
    *(
        "aws_conn_id",
        "catchup",
        "conn_id",
        "databricks_conn_id",
        "deferrable",
        "do_xcom_push",
        "email",
        "env_vars",
    ),
    *(
        "env",
        "gcp_conn_id",
        "get_logs",
        "google_cloud_conn_id",
        "http_conn_id",
        "image_pull_policy",
        "in_cluster",
    ),
    *(
        "image_pull_secrets",
        "is_delete_operator_pod",
        "job_name",
        "labels",
        "location",
        "namespace",
        "network_mode",
    ),
    *(
        "on_finish_action",
        "poll_interval",
        "polling_interval",
        "postgres_conn_id",
        "project_id",
        "provide_context",
    ),
    *(
        "region",
        "service_account_name",
        "sla",
        "snowflake_conn_id",
        "startup_timeout_seconds",
        "task_concurrency",
    ),
    *("timeout", "wait_until_finished", "warehouse", "write_disposition", "working_dir", "xcom_push"),
)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda one: one.__name__)
def test_names_that_dags_have_are_not_misspelt(operator: Any) -> None:
    names = {*IN_DAGS, *(str(case.values[1]) for case in CASES)} - _parameters(operator)
    assert {name: meant for name in names if (meant := _misspelt(name, operator))} == {}


def test_specifications_know_the_same_words() -> None:
    for spec in (PoolSpec, TaskSpec):
        for name, meant in (
            ("nodes", "instance_count"),
            ("env_vars", "constants"),
            ("instances", "instance_count"),
        ):
            with pytest.raises(QarnotInvalidSpecError, match=f"Did you mean '{meant}'"):
                spec.from_mapping({"name": "n", name: 1})


def test_every_synonym_is_written_as_it_is_looked_up() -> None:
    assert [one for one in SYNONYMS if one != normalise(one)] == []
    known = {str(case.values[1]) for case in CASES}
    known |= {field.name for spec in (PoolSpec, TaskSpec) for field, _ in wire_fields(spec)}
    assert {one for meant in SYNONYMS.values() for one in meant} <= known


# --- Airflow's own ``pool``


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda one: one.__name__)
def test_a_qarnot_pool_in_the_place_of_airflows_is_told_its_parameter(operator: Any) -> None:
    def with_pool(pool: Any) -> Any:
        return make(operator, **NEEDS.get(operator.__name__, {}), pool=pool)

    with DAG("d", schedule=None):
        create = QarnotCreatePoolOperator(task_id="create")
        for pool in (create.output, create, "{{ params.pool }}", "0f0e0d0c-0000-4000-8000-00000000000f"):
            with pytest.raises(QarnotInvalidSpecError, match="pool of task slots") as caught:
                with_pool(pool)
            assert caught.value.field == "pool"
            takes = "qarnot_pool" in operator.template_fields
            assert ("qarnot_pool" in str(caught.value.remedy)) is takes
    with DAG("e", schedule=None):
        assert with_pool("slots").pool == "slots"


def test_so_is_the_group() -> None:
    def build() -> None:
        create = QarnotCreatePoolOperator(task_id="create")
        QarnotPoolGroup("g", pool=create.output)

    assert refused(build).field == "pool"


# --- Durations


DURATIONS = [case for case in CASES if isinstance(sample(*case.values), timedelta)]
#: Those that decide what the DAG is, and so must be known when it is parsed.
KNOWN_AT_PARSE = {"keep_warm"}
#: Those of at least two days.
LONG = {"delete_environments_after"}


@pytest.mark.parametrize(("operator", "name"), DURATIONS)
def test_a_duration_is_a_timedelta_or_seconds_everywhere(operator: Any, name: str) -> None:
    minutes = 3 * 24 * 60 if name in LONG else 2
    hours = f"{minutes // 60:02}:{minutes % 60:02}:00"
    for value in (
        timedelta(minutes=minutes),
        minutes * 60,
        minutes * 60.0,
        f"{minutes * 60}",
        hours,
        f"PT{minutes}M",
    ):
        with DAG("d", schedule=None):
            one = make(operator, **NEEDS.get(operator.__name__, {}), **{name: value})
        assert as_duration(name, getattr(one, name)) == timedelta(minutes=minutes)
    for value in (
        -1,
        True,
        float("nan"),
        float("inf"),
        "soon",
        [],
        timedelta(seconds=-1),
        {},
        1e12,
        timedelta.max,
    ):
        error = refused(lambda v=value: make(operator, **NEEDS.get(operator.__name__, {}), **{name: v}))
        assert error.field == name
        assert str(error).startswith(f"Task 't' of DAG 'd': {name} must be a duration")
        assert "timedelta" in str(error.remedy)


@pytest.mark.parametrize(("operator", "name"), DURATIONS)
def test_a_duration_may_come_of_a_template(operator: Any, name: str) -> None:
    needs = NEEDS.get(operator.__name__, {})
    if name in KNOWN_AT_PARSE:
        assert refused(lambda: make(operator, **needs, **{name: "{{ params.it }}"})).field == name
        return
    for native, value in ((False, 120), (True, 120), (True, timedelta(minutes=2))):
        with DAG("d", schedule=None, render_template_as_native_obj=native):
            one = make(operator, **needs, **{name: "{{ it }}"})
        one.render_template_fields({"it": value})
        assert as_duration(name, getattr(one, name)) == timedelta(minutes=2)


def test_a_group_takes_seconds() -> None:
    with (
        DAG("d", schedule=None),
        QarnotPoolGroup("g", keep_warm=90, wait_timeout=600) as group,
    ):
        pass
    assert group.open_pool is not None
    assert group.open_pool.keep_warm == timedelta(seconds=90)


@pytest.mark.parametrize("sensor", SENSORS, ids=lambda one: one.__name__)
def test_a_sensor_waits_as_long_as_wait_timeout_says(sensor: Any) -> None:
    with DAG("d", schedule=None):
        assert make(sensor, **NEEDS[sensor.__name__], wait_timeout=90).timeout == 90
