"""The companion DAG that opens a shared pool ahead of the runs of another DAG: what it is made from, and refusals."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.sdk import DAG, Asset
from airflow.sdk.definitions._internal.contextmanager import DagContext
from airflow.serialization import serialized_objects

from airflow_qarnot_pool.exceptions import QarnotInvalidSpecError
from airflow_qarnot_pool.operators.open_ahead import QarnotOpenAheadOperator
from airflow_qarnot_pool.operators.pool import QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.task_groups.ahead import open_ahead
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup
from airflow_qarnot_pool.timetables.ahead import AheadTimetable

SERIALIZER: Any = getattr(serialized_objects, "DagSerialization", serialized_objects.SerializedDAG)
START = datetime(2026, 1, 1, tzinfo=UTC)
SPEC = {"image": "alpine", "constants": {"A": "b", "QARNOT_SECRET__KEY": "s3cret"}}


def dag_with(schedule: Any = "0 3 * * *", shared: str | None = "nightly", **group: Any) -> DAG:
    group = {"shared": shared, "instance_count": 4, **group}
    dag = DAG("nightly", schedule=schedule, start_date=START, tags=["t"])
    with dag, QarnotPoolGroup("nodes", **group):
        QarnotRunTaskOperator(task_id="work", command="true")
    return dag


def test_the_companion_opens_the_pool_of_the_group() -> None:
    dag = dag_with(slots_per_node=2, pool_spec=SPEC, keep_warm=timedelta(minutes=4), max_cost=5)
    companion = open_ahead(dag, lead=600, boot_time=90)
    (opener,) = companion.tasks
    assert isinstance(opener, QarnotOpenAheadOperator)
    original: Any = dag.get_task("nodes.open_pool")
    assert opener._spec(opener._given()).fingerprint() == original._spec(original._given()).fingerprint()
    assert opener._awaited() == original._awaited(), "both share one warm-up"
    assert (opener.for_dag_id, opener.lead, opener.boot_time) == (
        "nightly",
        timedelta(minutes=10),
        timedelta(seconds=90),
    )
    assert original.opened_ahead_by == companion.dag_id == "nightly.open_ahead"
    assert (companion.fileloc, companion.tags, companion.catchup) == (dag.fileloc, {"t"}, False)


def test_airflow_finds_the_companion_and_stores_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DagContext, "current_autoregister_module_name", __name__)
    monkeypatch.setattr(DagContext, "autoregistered_dags", set())
    companion = open_ahead(dag_with(pool_spec=SPEC))
    assert (companion, sys.modules[__name__]) in DagContext.autoregistered_dags
    text = str(stored := SERIALIZER.to_dict(companion))
    assert "s3cret" not in text
    timetable = SERIALIZER.from_dict(stored).timetable
    assert isinstance(timetable, AheadTimetable)
    assert timetable.lead == timedelta(minutes=30)


def two_pools() -> DAG:
    with DAG("d", schedule="@daily", start_date=START) as dag:
        for name in ("a", "b"):
            QarnotCreatePoolOperator(task_id=name, shared=name, instance_count=1)
    return dag


def test_one_of_several_pools_is_named() -> None:
    dag = two_pools()
    assert open_ahead(dag, shared="b").get_task("open_pool").shared == "b"
    assert dag.get_task("a").opened_ahead_by is None


IMAGE = {"image": "{{ var.value.image }}"}
SCALING = {"scaling": {"policies": [{"type": "Fixed", "slotsCount": 1, "name": "one"}]}}
#: DAGs and parameters that are refused: the parameter that the error names, and a part of its text.
REFUSED: dict[str, tuple[Any, dict[str, Any], str, str]] = {
    "no shared pool": (lambda: dag_with(shared=None), {}, "shared", "opens a shared pool, got none"),
    "another name": (dag_with, {"shared": "daily"}, "shared", "opens the shared pool 'daily', got none"),
    "two pools": (two_pools, {}, "shared", "got a, b"),
    "a template": (lambda: dag_with(instance_count="{{ params.n }}"), {}, "instance_count", "got a template"),
    "a template in a field": (
        lambda: dag_with(pool_spec=IMAGE),
        {},
        "pool_spec",
        "template",
    ),
    "no warm-up": (
        lambda: dag_with(warm_up=False),
        {},
        "warm_up",
        "must be True for a pool that is opened ahead",
    ),
    "scaling": (
        lambda: dag_with(instance_count=None, pool_spec=SCALING),
        {},
        "keep_warm",
        "must be a duration",
    ),
    "assets": (lambda: dag_with([Asset("raw")]), {}, "dag", "its runs follow assets"),
    "a delta": (lambda: dag_with(timedelta(hours=1)), {}, "dag", "counts from the run before"),
    "no DAG": (lambda: "nightly", {}, "dag", "must be a DAG, got str"),
    "a long lead": (dag_with, {"lead": timedelta(days=1)}, "lead", "at most 6:00:00, got"),
    "no lead": (dag_with, {"lead": 0}, "lead", "must be a duration of more than 0, got 0"),
    "no duration": (dag_with, {"boot_time": "soon"}, "boot_time", "must be a duration"),
}


@pytest.mark.parametrize(("make", "given", "field", "text"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_opened_ahead_is_refused_by_name(
    make: Any, given: dict[str, Any], field: str, text: str
) -> None:
    with pytest.raises(QarnotInvalidSpecError, match=text) as caught:
        open_ahead(make(), **given)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"linger": -1}, "linger must be an amount in euros, got -1"),
        ({"linger": float("nan")}, "got nan"),
        ({"linger": "{{ x }}"}, "got '{{ x }}'"),
        ({"linger": True}, "got True"),
        ({"linger": 0.1, "shared": None}, "linger is for shared pools only"),
    ],
)
def test_a_wrong_linger_is_refused_by_name(given: dict[str, Any], text: str) -> None:
    with pytest.raises(QarnotInvalidSpecError, match=text) as caught:
        dag_with(**given)
    assert caught.value.field == "linger"
