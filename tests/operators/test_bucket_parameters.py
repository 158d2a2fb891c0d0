"""Buckets, prefixes and patterns of operators: refused when the DAG is parsed, or when they are rendered."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_qarnot_pool.decorators import qarnot as decorator
from airflow_qarnot_pool.exceptions import QarnotInvalidSpecError
from airflow_qarnot_pool.hooks.storage import QarnotStorageHook
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.pool import QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup
from tests.harness import FakeTI, run


def function() -> int:
    return 1


BAD = [
    ({"result_bucket": "b/out"}, "results_prefix='out/'"),
    ({"result_bucket": "qarnot://conn@b/"}, "Write 'b'"),
    ({"resource_buckets": ["bucket/path"]}, "'prefix': 'path'"),
    ({"resource_buckets": ["qarnot://conn@b/"]}, "Write 'b'"),
    ({"task_spec": {"results_prefix": "out/"}}, "result_bucket"),
    ({"task_spec": {"results_whitelist": "png$"}}, "result_bucket"),
    ({"task_spec": {"resultsWhitelist": "png$"}}, "result_bucket"),
    ({"result_bucket": "b", "task_spec": {"results_whitelist": "*.png"}}, "regular expression"),
    ({"task_spec": {"resultBucket": "b/out"}}, "results_prefix='out/'"),
    ({"task_spec": {"results_blacklist": "tmp$"}}, "result_bucket"),
]


@pytest.mark.parametrize(("given", "remedy"), BAD)
def test_invalid_buckets_are_refused_when_the_dag_is_parsed(given: dict[str, Any], remedy: str) -> None:
    makers = [
        partial(QarnotRunTaskOperator, task_id="t", command="true"),
        partial(QarnotRunTasksOperator, task_id="t", commands=["true"]),
    ]
    for make in makers:
        with DAG("d", schedule=None), pytest.raises(QarnotInvalidSpecError) as caught:
            make(**given)
        assert remedy in str(caught.value)
    own = {**given, **given.get("task_spec", {})}
    own.pop("task_spec", None)
    for command in ("true", "{{ x }}"):
        with DAG("d", schedule=None), pytest.raises(QarnotInvalidSpecError) as caught:
            QarnotRunTasksOperator(task_id="t", commands=["{{ x }}", {"command": command, **own}])
        assert remedy in str(caught.value)
        assert "commands[1]" in str(caught.value)
    if "resource_buckets" in given:
        for resources in (given["resource_buckets"], ["{{ x }}", *given["resource_buckets"]]):
            with DAG("d", schedule=None), pytest.raises(QarnotInvalidSpecError) as caught:
                QarnotCreatePoolOperator(task_id="p", resource_buckets=resources)
            assert remedy in str(caught.value)
        with DAG("d", schedule=None), pytest.raises(QarnotInvalidSpecError) as caught:
            QarnotPoolGroup("g", **given).__enter__()
        assert remedy in str(caught.value)


def test_a_payload_bucket_is_checked_like_any_other() -> None:
    with (
        DAG("d", schedule=None),
        pytest.raises(QarnotInvalidSpecError, match="payload_bucket is a path, got 'b/out'"),
    ):
        decorator.qarnot_task(payload_bucket="b/out")(function)()


@pytest.mark.parametrize(
    "given",
    [
        {"result_bucket": "{{ x }}", "task_spec": {"results_prefix": "out/", "results_whitelist": "png$"}},
        {"task_spec": {"resultBucket": "{{ x }}", "resultsBucketPrefix": "out/"}},
        {"result_bucket": "b", "task_spec": {"results_whitelist": "{{ x }}"}},
        {"task_spec": {"results_prefix": "{{ x }}"}},
        {"task_spec": {"schedulingType": "{{ x }}", "targeted_reservation_name": "r"}},
        {"task_spec": {"job": "{{ x }}", "dependencies": ["6ba7b810-9dad-41d1-80b4-00c04fd430c8"]}},
    ],
)
def test_a_template_is_no_missing_value(given: dict[str, Any]) -> None:
    with DAG("d", schedule=None):
        QarnotRunTaskOperator(task_id="t", command="true", **given)
        QarnotRunTasksOperator(
            task_id="ts", commands=["true", {"command": "x", "results_cache_ttl": "{{ x }}"}], **given
        )


@pytest.mark.parametrize(("given", "remedy"), BAD)
def test_an_invalid_template_result_is_refused_before_anything_is_submitted(
    qarnot: LocalQarnot, pool: str, given: dict[str, Any], remedy: str
) -> None:
    make = partial(QarnotRunTaskOperator, task_id="t", qarnot_pool=pool, command="true")

    def rendered() -> Any:
        operator = make()
        for name, value in given.items():
            setattr(operator, name, value)
        return operator

    before = len(qarnot.requests())
    with pytest.raises(QarnotInvalidSpecError) as caught:
        run(rendered, FakeTI(run_id="rendered"))
    assert remedy in str(caught.value)
    assert [one for one in qarnot.requests()[before:] if one["method"] == "POST"] == []


@pytest.mark.parametrize("name", ["b/out", "qarnot://conn@b/", "a b", ""])
def test_the_storage_hook_takes_names_of_buckets_only(qarnot: LocalQarnot, tmp_path: Any, name: str) -> None:
    storage = QarnotStorageHook()
    for call in (
        partial(storage.upload, name, b"x", key="k"),
        partial(storage.list, name),
        partial(storage.download, name, tmp_path),
        partial(storage.read, name, "k"),
    ):
        with pytest.raises(QarnotInvalidSpecError) as caught:
            call()
        assert caught.value.field == "bucket"
        assert caught.value.remedy
    assert qarnot.requests() == []


def test_the_storage_hook_takes_regular_expressions_only(qarnot: LocalQarnot, tmp_path: Any) -> None:
    for whitelist in ("*.png", "(", r"\p{L}"):
        with pytest.raises(QarnotInvalidSpecError, match="regular expression") as caught:
            QarnotStorageHook().download("bucket", tmp_path, whitelist=whitelist)
        assert caught.value.field == "whitelist"
