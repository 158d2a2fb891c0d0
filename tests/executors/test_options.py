"""``[qarnot_executor]`` and ``executor_config``."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.executors.environment import IMAGE
from airflow_qarnot_pool.executors.options import (
    ExecutorOptions,
    PoolOptions,
    TaskConfig,
    read_options,
    task_config,
)


class Conf(dict[tuple[str, str], str]):
    """Airflow's configuration."""

    def get(self, section: str, key: str, *, fallback: Any = None) -> Any:  # type: ignore[override]
        return super().get((section, key), fallback)


def conf(**options: str) -> Conf:
    return Conf({("qarnot_executor", name): value for name, value in options.items()})


def test_the_defaults() -> None:
    options = read_options(Conf())
    assert options == ExecutorOptions(api_url="http://localhost:8080/execution/")
    assert options.pools["airflow"] == PoolOptions()
    spec = options.pools["airflow"].spec().to_json()
    assert spec["profile"] == "docker-network"
    (policy,) = spec["scaling"]["policies"]
    assert (policy["minTotalSlots"], policy["maxTotalSlots"]) == (0, 8)


def test_a_pool_has_the_options_of_the_section_unless_it_has_its_own() -> None:
    options = read_options(
        conf(
            slots="16",
            slots_per_node="4",
            image="airflow:3.3.2",
            keep_warm="120",
            max_cost_per_day="20",
            pools='{"gpu": {"slots": 2, "slots_per_node": 1, "image": "gpu:1", "pool_spec": {"tags": ["gpu"]}}}',
        )
    )
    assert options.pools["airflow"] == PoolOptions(
        slots=16,
        slots_per_node=4,
        image="airflow:3.3.2",
        keep_warm=timedelta(minutes=2),
        max_cost_per_day=20.0,
    )
    assert options.pools["gpu"] == PoolOptions(
        name="gpu",
        slots=2,
        slots_per_node=1,
        image="gpu:1",
        keep_warm=timedelta(minutes=2),
        pool_spec={"tags": ["gpu"]},
        max_cost_per_day=20.0,
    )
    assert options.slots == 18
    assert options.pools["gpu"].spec().tags == ("gpu",)


@pytest.mark.parametrize("text", ['["pandas==2.2.3", "my-lib"]', "pandas==2.2.3\n  my-lib\n\n"])
def test_with_requirements_the_image_needs_only_python(text: str) -> None:
    pool = read_options(conf(requirements=text)).pools["airflow"]
    assert (pool.requirements, pool.image) == (("pandas==2.2.3", "my-lib"), IMAGE)
    assert read_options(conf(requirements=text, image="mine:1")).pools["airflow"].image == "mine:1"
    assert read_options(conf(requirements="[]")).pools["airflow"].requirements == ()
    assert read_options(conf()).pools["airflow"].requirements is None


def test_larger_tasks_have_a_pool_of_as_many_nodes_with_fewer_slots() -> None:
    pool = PoolOptions(slots=16, slots_per_node=8)
    for slots, per_node, size in ((1, 8, 16), (2, 4, 8), (3, 2, 4), (8, 1, 2)):
        spec = pool.spec(slots)
        assert spec.slots_per_node == per_node
        assert spec.scaling is not None
        assert spec.scaling.policies[0].to_json()["maxTotalSlots"] == size


def test_the_address_of_the_api_server_is_airflows_own_unless_nodes_need_another() -> None:
    known = Conf({("core", "execution_api_server_url"): "https://inside/execution/"})
    assert read_options(known).api_url == "https://inside/execution/"
    known["qarnot_executor", "execution_api_server_url"] = "https://outside/execution/"
    assert read_options(known).api_url == "https://outside/execution/"
    assert read_options(Conf({("api", "base_url"): "https://a/b/"})).api_url == "https://a/b/execution/"


INVALID = {
    "slots": (
        {"slots": "many"},
        "[qarnot_executor] slots (or AIRFLOW__QARNOT_EXECUTOR__SLOTS) is not a whole",
    ),
    "no slot": ({"slots": "0"}, "slots"),
    "a node larger than the pool": (
        {"slots": "2", "slots_per_node": "4"},
        "slots_per_node of pool 'airflow'",
    ),
    "image": ({"image": "UPPER CASE"}, "image"),
    "requirements": (
        {"requirements": '["pandas", 1]'},
        "requirements (or AIRFLOW__QARNOT_EXECUTOR__REQUIREMENTS)",
    ),
    "requirements of a pool": ({"pools": '{"gpu": {"requirements": 1}}'}, "is no list of texts, got 1"),
    "keep_warm": ({"keep_warm": "soon"}, "is not a duration"),
    "max_cost_per_day": (
        {"max_cost_per_day": "0"},
        "max_cost_per_day (or AIRFLOW__QARNOT_EXECUTOR__MAX_COST",
    ),
    "max_cost_per_day of a pool": ({"pools": '{"gpu": {"max_cost_per_day": "much"}}'}, "is not a number"),
    "pools": ({"pools": "[]"}, "pools"),
    "not JSON": ({"pools": "{"}, "is not JSON"),
    "an unknown option of a pool": ({"pools": '{"gpu": {"slot": 1}}'}, "Did you mean 'slots'"),
    "a field of no pool": ({"pool_spec": '{"command": "true"}'}, "command"),
    "the name of a pool": ({"pool": "x" * 60}, "pool"),
    "an address": ({"execution_api_server_url": "airflow:8080"}, "is not an address"),
    "environment": ({"environment": '["A=1"]'}, "environment"),
}


@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_option_is_refused_by_name(case: str) -> None:
    given, text = INVALID[case]
    with pytest.raises(QarnotInvalidSpecError) as refusal:
        read_options(conf(**given))
    assert text in str(refusal.value)


OPTIONS = ExecutorOptions(
    pools={
        "airflow": PoolOptions(slots=8, slots_per_node=4, image="airflow:1"),
        "gpu": PoolOptions(name="gpu", image=None),
    }
)
CONFIGS = {
    "none": (None, TaskConfig(image="airflow:1")),
    "slots": ({"slots": 2}, TaskConfig(slots=2, image="airflow:1")),
    "pool": ({"pool": "gpu"}, TaskConfig(pool="gpu")),
    "image": ({"pool": "gpu", "image": "mine:2"}, TaskConfig(pool="gpu", image="mine:2")),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_executor_config(case: str) -> None:
    given, config = CONFIGS[case]
    assert task_config(given, OPTIONS) == config


WRONG = {
    "another executor's": ({"pod_override": object()}, "unknown key, got 'pod_override'"),
    "a misspelt key": ({"slot": 1}, "Did you mean 'slots'"),
    "an unknown pool": ({"pool": "cpu"}, "Give one of airflow, gpu"),
    "a pool that is no name": ({"pool": ["gpu"]}, "names no pool"),
    "more slots than a node has": ({"slots": 5}, "Give at most 4"),
    "slots": ({"slots": "some"}, "executor_config 'slots' is not a whole number"),
    "no slot": ({"slots": 0}, "executor_config 'slots' is"),
    "no pool": ({"pool": ""}, "executor_config 'pool' names no pool of the executor, got ''"),
    "no image": ({"image": ""}, "executor_config 'image'"),
    "image": ({"image": "a@sha256:1"}, "executor_config 'image' names a digest"),
    "no mapping": ("gpu", "executor_config is not JSON"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_executor_config_is_refused_by_name(case: str) -> None:
    given, text = WRONG[case]
    with pytest.raises(QarnotInvalidSpecError) as refusal:
        task_config(given, OPTIONS)
    assert text in str(refusal.value)
