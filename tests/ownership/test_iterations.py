"""Iterations of a loop have identities of their own: stub contexts, as no released Airflow of ours has loops."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from unittest import mock
from uuid import UUID

import pytest

from airflow_qarnot_pool.exceptions import QarnotInvalidSpecError
from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity
from airflow_qarnot_pool.ownership.liveness import task_instance_state
from airflow_qarnot_pool.triggers.base import own_xcom, store_xcom
from tests.harness import life_of

FIRST, SECOND = UUID(int=1), UUID(int=2)


def ti(**fields: Any) -> SimpleNamespace:
    plain = {
        "dag_id": "dag",
        "run_id": "run",
        "task_id": "task",
        "map_index": -1,
        "try_number": 1,
        "max_tries": 0,
    }
    return SimpleNamespace(**{**plain, **fields})


def identity(context: dict[str, Any] | None = None, **fields: Any) -> TaskInstanceIdentity:
    run = SimpleNamespace(start_date=datetime(2026, 1, 1, tzinfo=UTC))
    return TaskInstanceIdentity.of({"ti": ti(**fields), "dag_run": run, **(context or {})}, "test")  # type: ignore[arg-type]


def in_loop(index: int, region: UUID = FIRST, **fields: Any) -> TaskInstanceIdentity:
    """As Airflow 3.4 places a task of a loop."""
    loop = SimpleNamespace(index=index, max_iterations=9, region_id=region)
    return identity({"loop": loop}, **{"region_id": region, "region_index": index, **fields})


ITERATIONS = {
    "a loop of Airflow 3.4": (in_loop(1), in_loop(2)),
    "a loop without regions": tuple(identity({"loop": SimpleNamespace(index=n)}) for n in (1, 2)),
    "the first and the second of a loop that counts from 0": tuple(
        identity({"loop": SimpleNamespace(index=n)}) for n in (0, 1)
    ),
    "copies of a mapped task in a loop": tuple(
        in_loop(n, map_index=3, region_index=3, region_id=UUID(int=10 + n)) for n in (1, 2)
    ),
    "a rerun of a loop, which counts its tries from 1 again": (in_loop(2), in_loop(2, SECOND)),
    "elements of AIP-104": (identity(index=0), identity(index=1)),
    "a task instance that names its iteration": (identity(iteration=1), identity(iteration=2)),
    "a loop that is a mapping": tuple(identity({"loop": {"index": n}}) for n in (0, 1)),
    "a context that names its iteration": (identity({"iteration": 1}), identity({"iteration": 2})),
    "an iteration and none": (identity(loop_index=0), identity()),
}


@pytest.mark.parametrize(("one", "other"), ITERATIONS.values(), ids=ITERATIONS.keys())
def test_iterations_are_kept_apart(one: TaskInstanceIdentity, other: TaskInstanceIdentity) -> None:
    assert one.owner != other.owner
    assert one.lineage != other.lineage
    assert one.shortname(1) != other.shortname(1)


@pytest.mark.parametrize("one", [in_loop(2), identity(index=0), identity(iteration=7)])
def test_a_retry_stays_in_its_iteration(one: TaskInstanceIdentity) -> None:
    again = dataclasses.replace(one, try_number=2)
    assert (again.owner, again.lineage) == (one.owner, one.lineage)
    assert TaskInstanceIdentity.from_kwargs(one.to_kwargs()) == one


NOTHING_NEW = {
    "outside of a loop": {"region_id": UUID(int=0), "region_index": -1},
    "not set": {"region_id": None, "region_index": None, "index": None, "loop_index": -1},
    "what is no coordinate": {"rendered_map_index": "lion", "is_mapped": True, "hostname": "worker-3"},
}


@pytest.mark.parametrize("fields", NOTHING_NEW.values(), ids=NOTHING_NEW.keys())
def test_without_a_loop_the_identity_is_as_before(fields: dict[str, Any]) -> None:
    assert identity(**fields) == identity()
    assert identity().iteration == ""


def test_a_mapped_task_outside_of_a_loop_is_told_by_its_map_index() -> None:
    assert identity(map_index=3, region_id=FIRST, region_index=3) == identity(map_index=3)


def test_the_task_instance_of_this_airflow_has_no_coordinate_that_is_unknown() -> None:
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    plain = ti(map_index=3)
    real = RuntimeTaskInstance.model_construct(**vars(plain), rendered_map_index="3", is_mapped=True)
    run = SimpleNamespace(start_date=None)
    assert TaskInstanceIdentity.of({"ti": real, "dag_run": run}, "test").iteration == ""  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lane_index", 3),
        ("shard", 0),
        ("element", "b"),
        ("batch_index", 1),
        ("loop_id", FIRST),
        ("inner_loop", 2),
    ],
)
def test_a_coordinate_that_is_not_known_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(QarnotInvalidSpecError, match=rf"ti\.{name} \({value}\).*Upgrade airflow-qarnot-pool"):
        identity(**{name: value})
    with pytest.raises(QarnotInvalidSpecError, match=rf"context\.{name} \({value}\)") as caught:
        identity({name: value})
    assert caught.value.field == name


def test_the_context_of_this_airflow_has_no_coordinate_that_is_unknown() -> None:
    from airflow.sdk import Context

    names = Context.__annotations__.keys() - {"ti", "dag_run"}
    assert "map_index_template" in names
    assert identity({name: None if name == "loop" else "text" for name in names}) == identity()


def test_a_property_is_a_coordinate_too() -> None:
    class Instance(SimpleNamespace):
        @property
        def sweep_index(self) -> int:
            return 4

    run = SimpleNamespace(start_date=None)
    with pytest.raises(QarnotInvalidSpecError, match=r"ti\.sweep_index \(4\)"):
        TaskInstanceIdentity.of({"ti": Instance(**vars(ti())), "dag_run": run}, "test")  # type: ignore[arg-type]


@pytest.mark.parametrize("loop", [SimpleNamespace(number=1), SimpleNamespace(index=None), object()])
def test_a_loop_without_a_number_is_refused_by_name(loop: Any) -> None:
    with pytest.raises(QarnotInvalidSpecError, match=r"loop\.index"):
        identity({"loop": loop})


def test_a_coordinate_of_another_form_is_refused_by_name() -> None:
    with pytest.raises(QarnotInvalidSpecError, match=r"ti\.index must be .* got \(1, 2\)"):
        identity(index=(1, 2))


def test_airflow_is_not_asked_about_an_iteration_that_it_cannot_tell_from_others() -> None:
    """Its answer would be about another iteration, so the guard of a trigger ends nothing on it."""
    iteration = life_of(iteration="loop.index=2")
    with mock.patch(
        "airflow.sdk.execution_time.task_runner.RuntimeTaskInstance.get_task_states",
        side_effect=AssertionError,
    ):
        with pytest.raises(LookupError, match=r"loop\.index=2"):
            task_instance_state(iteration)
        with pytest.raises(LookupError):
            asyncio.run(own_xcom(iteration, "key"))
        with pytest.raises(LookupError):
            asyncio.run(store_xcom(iteration, "key", 1))
