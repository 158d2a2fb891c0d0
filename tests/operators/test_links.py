"""Links to the Qarnot console: on every operator and sensor, from the first moment, and never lost on the way."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import BaseOperator

import airflow_qarnot_pool
import airflow_qarnot_pool.decorators
import airflow_qarnot_pool.operators
import airflow_qarnot_pool.sensors
from airflow_qarnot_pool.exceptions import QarnotTaskFailedError
from airflow_qarnot_pool.links.qarnot import LINKS
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.pool import (
    QarnotClosePoolOperator,
    QarnotCreatePoolOperator,
    QarnotDeletePoolOperator,
    QarnotUpdatePoolOperator,
)
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.sensors.pool import QarnotPoolSensor
from airflow_qarnot_pool.sensors.task import QarnotTaskSensor
from airflow_qarnot_pool.version_compat import TaskDeferred
from tests.harness import FakeTI, context_of, resume, run
from tests.operators.conftest import connect

POOL, TASK, PAGE = LINKS["pool"], LINKS["task"], LINKS["page"]
#: Airflow's ways to read an XCom.
READS = {"xcom_pull", "axcom_pull", "get_one", "aget_one", "get_all", "aget_all", "get_value", "aget_value"}
#: Those that are about no single pool or task.
WITHOUT = {"QarnotReapOperator", "QarnotCostReportOperator"}


def all_operators() -> list[type]:
    found = set()
    for package in (
        airflow_qarnot_pool.operators,
        airflow_qarnot_pool.sensors,
        airflow_qarnot_pool.decorators,
    ):
        for module in pkgutil.iter_modules(package.__path__):
            for one in vars(importlib.import_module(f"{package.__name__}.{module.name}")).values():
                if (
                    isinstance(one, type)
                    and issubclass(one, BaseOperator)
                    and one.__module__.startswith("airflow_q")
                ):
                    found.add(one)
    bases = {base for one in found for base in one.__mro__[1:]}
    public = {one for one in found if one not in bases or not one.__name__.startswith("_")}
    named = [one for one in public if one.__name__.startswith("Qarnot") or one not in bases]
    return sorted(named, key=lambda one: one.__name__)


@pytest.mark.parametrize("operator", all_operators(), ids=lambda one: one.__name__)
def test_every_operator_and_sensor_has_links(operator: Any) -> None:
    if operator.__name__ in WITHOUT or operator.__name__ in ("QarnotOperator", "QarnotSensor"):
        return
    assert any(link in (POOL, TASK) for link in operator.operator_extra_links)


CASES = {
    "create": (lambda pool, task: QarnotCreatePoolOperator(task_id="t", instance_count=1), "pool"),
    "update": (
        lambda pool, task: QarnotUpdatePoolOperator(task_id="t", qarnot_pool=pool, tags=["x"]),
        "pool",
    ),
    "close": (lambda pool, task: QarnotClosePoolOperator(task_id="t", qarnot_pool=pool), "pool"),
    "delete": (lambda pool, task: QarnotDeletePoolOperator(task_id="t", qarnot_pool=pool), "pool"),
    "run": (
        lambda pool, task: QarnotRunTaskOperator(task_id="t", qarnot_pool=pool, command="true"),
        "pool task",
    ),
    "run many": (
        lambda pool, task: QarnotRunTasksOperator(task_id="t", qarnot_pool=pool, commands=["true"]),
        "pool",
    ),
    "pool sensor": (
        lambda pool, task: QarnotPoolSensor(task_id="t", qarnot_pool=pool, target_states="Closed"),
        "pool",
    ),
    "task sensor": (
        lambda pool, task: QarnotTaskSensor(task_id="t", qarnot_task=task, target_states="Success"),
        "task",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_links_are_there_when_the_first_slice_ends(case: str, client: Any, pool: str) -> None:
    """Also when it ends by deferring."""
    from airflow_qarnot_pool.api.specs import TaskSpec

    task = client.tasks.create(TaskSpec(name="x", pool=pool, command="sleep 30", image="i"))
    make, kinds = CASES[case]
    operator, ti = make(pool, task), FakeTI(task_id="t", run_id=case)
    with suppress(TaskDeferred):
        operator.execute(context_of(operator, ti))
    early = {key: value for key, value in ti.xcoms.items() if key.startswith("_link")}
    ti.end_slice(operator)
    for kind in kinds.split():
        link = ti.xcoms[LINKS[kind].xcom_key]
        assert link.startswith(f"https://console.example/{kind}s/")
        # Pushed while it ran, not only at its end: a long wait on the worker shows it, too.
        assert early[LINKS[kind].xcom_key] == link
        if kind == "pool":
            uuid = link.rpartition("/")[2]
            assert ti.xcoms[PAGE.xcom_key] == f"plugin/qarnot-pools#pool=qarnot_default/{uuid}"
    if case != "create" and "pool" in kinds:
        assert ti.xcoms[POOL.xcom_key].endswith(pool)


@pytest.mark.usefixtures("defers_at_once")
def test_links_survive_the_deferral_and_a_slice_that_fails_at_once(client: Any, pool: str) -> None:
    def make() -> QarnotRunTaskOperator:
        return QarnotRunTaskOperator(task_id="t", qarnot_pool=pool, command="true")

    operator, ti = make(), FakeTI(task_id="t", run_id="survives")
    context = context_of(operator, ti)
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(context)
    ti.end_slice(operator)
    links = {link.xcom_key: ti.xcoms[link.xcom_key] for link in (POOL, PAGE, TASK)}
    resume(make, deferred.value, context)
    ti.end_slice(make())  # the resumed operator is a new object: the pool is none of what it was told
    assert {key: ti.xcoms[key] for key in links} == links
    ti.end_slice(make())  # one that failed before it knew anything
    assert {key: ti.xcoms[key] for key in links} == links


def test_a_mapped_task_keeps_its_own_link_and_not_the_list_of_all(client: Any, pool: str) -> None:
    """Airflow answers a pull that names no map index with the values of all mapped task instances."""

    def make() -> QarnotRunTaskOperator:
        return QarnotRunTaskOperator(task_id="t", qarnot_pool=pool, command="true")

    tis = [FakeTI(task_id="t", run_id="mapped", map_index=index) for index in range(4)]
    for ti in tis:
        ti.others = [other for other in tis if other is not ti]
        run(make, ti)
        ti.end_slice(make())  # a slice that failed before it knew anything
    assert [ti.xcoms[POOL.xcom_key] for ti in tis] == [f"https://console.example/pools/{pool}"] * 4
    for ti in tis:
        assert ti.xcoms[TASK.xcom_key] == f"https://console.example/tasks/{ti.xcoms['qarnot_task']}"


def test_a_stored_link_that_is_no_text_is_no_link(client: Any, pool: str) -> None:
    operator = QarnotRunTaskOperator(task_id="t", qarnot_pool=pool, command="true")
    ti = FakeTI(task_id="t", xcoms={POOL.xcom_key: ["https://console.example/pools/x"], PAGE.xcom_key: 1})
    assert ti.end_slice(operator) == {POOL.xcom_key: "", PAGE.xcom_key: "", TASK.xcom_key: ""}


class Asked(FakeTI):
    """Records the keys of the XComs that are read."""

    def xcom_pull(self, *args: Any, **kwargs: Any) -> Any:
        self.pulled = [*getattr(self, "pulled", []), kwargs["key"]]
        return super().xcom_pull(*args, **kwargs)


def test_a_task_without_a_pool_asks_for_no_link_to_one(client: Any) -> None:
    """Airflow logs an error for each read of an XCom that is not there."""
    operator, ti = QarnotRunTaskOperator(task_id="t", command="true"), Asked(task_id="t")
    ti.end_slice(operator)
    assert ti.pulled == [TASK.xcom_key]


def test_a_local_qarnot_has_links_only_to_the_pools_page(
    server: LocalQarnot, client: Any, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(server, monkeypatch, console_url="")
    operator = QarnotRunTaskOperator(task_id="t", qarnot_pool=pool, command="false", deferrable=False)
    ti = Asked(task_id="t", run_id="no-console")
    with pytest.raises(QarnotTaskFailedError) as failed:
        operator.execute(context_of(operator, ti))
    assert not [key for key in ti.xcoms if key.startswith("_link")]
    assert "See " not in str(failed.value)
    assert "http" not in str(failed.value)
    pulled = list(getattr(ti, "pulled", []))
    page = f"plugin/qarnot-pools#pool=qarnot_default/{pool}"
    assert ti.end_slice(operator) == {POOL.xcom_key: "", PAGE.xcom_key: page, TASK.xcom_key: ""}
    assert getattr(ti, "pulled", []) == pulled


def test_every_xcom_that_the_provider_reads_is_read_by_task_key_and_map_index() -> None:
    """All reads are in one module, so that no other has to think of it."""
    package = Path(airflow_qarnot_pool.__file__).parent
    readers: dict[str, list[list[str | None]]] = {}
    # The local Qarnot has no XComs. It reads headers of requests with a `get_all`.
    paths = (path for path in package.rglob("*.py") if package / "local" not in path.parents)
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            call = node.func if isinstance(node, ast.Call) else None
            if isinstance(call, ast.Attribute) and call.attr in READS:
                names = sorted(one.arg or "**" for one in node.keywords)
                readers.setdefault(str(path.relative_to(package)), []).append([call.attr, *names])
    assert readers == {
        "ownership/xcoms.py": [
            ["xcom_pull", "key", "map_indexes", "task_ids"],
            ["xcom_pull", "include_prior_dates", "key", "map_indexes", "task_ids"],
            ["get_one", "**", "key"],
            ["get_one", "**", "include_prior_dates", "key"],
            ["get_all", "**", "key"],
        ]
    }


def test_only_results_go_through_the_xcom_backend() -> None:
    """What the provider stores for itself goes around it, by one module."""
    package = Path(airflow_qarnot_pool.__file__).parent
    writers = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("xcom_push", "axcom_push")
    }
    assert writers == {"ownership/xcoms.py", "operators/task.py", "operators/teardown_cost.py"}
