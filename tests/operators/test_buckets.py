"""Buckets in and out: of tasks, of pools, of pools that run."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.specs import ResourceBucket
from airflow_qarnot_pool.exceptions import QarnotBucketNotFoundError
from airflow_qarnot_pool.hooks.storage import QarnotStorageHook
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.pool import QarnotCreatePoolOperator, QarnotUpdatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from tests.harness import FakeTI, run

pytest.importorskip("boto3")
task = partial(QarnotRunTaskOperator, task_id="work", log_output=False)


@pytest.fixture
def storage(qarnot: LocalQarnot) -> QarnotStorageHook:
    return QarnotStorageHook()


def files(storage: QarnotStorageHook, bucket: str, prefix: str = "") -> dict[str, bytes]:
    return {one.key: storage.read(bucket, one.key) for one in storage.list(bucket, prefix)}


def test_results_go_below_a_prefix_as_far_as_they_are_wanted(pool: str, storage: QarnotStorageHook) -> None:
    result = run(
        partial(
            task,
            qarnot_pool=pool,
            command="sh -c 'mkdir deep; echo 1 > a.csv; echo 2 > deep/b.csv; echo 3 > c.log'",
            result_bucket="results-in",
            task_spec={"results_prefix": "day/", "results_whitelist": r"\.csv$"},
        )
    )
    assert result["result_bucket"] == "results-in"
    assert files(storage, "results-in") == {"day/a.csv": b"1\n", "day/deep/b.csv": b"2\n"}


@pytest.mark.parametrize(
    ("bucket", "seen"),
    [
        ("inputs", ["./day1/a", "./day1/deep/b", "./day2/a", "./other"]),
        (ResourceBucket(bucket="inputs", prefix="day1/"), ["./day1/a", "./day1/deep/b"]),
        (ResourceBucket(bucket="inputs", prefix="day1/", strip_prefix="day1/"), ["./a", "./deep/b"]),
        ({"bucket": "inputs", "prefix": "day2/", "strip_prefix": "day2/"}, ["./a"]),
    ],
    ids=["whole", "prefix", "stripped", "as a dict"],
)
def test_resources_are_all_of_a_bucket_or_what_is_below_a_prefix(
    pool: str, client: QarnotClient, storage: QarnotStorageHook, bucket: Any, seen: list[str]
) -> None:
    for key in ("day1/a", "day1/deep/b", "day2/a", "other"):
        storage.upload("inputs", key.encode(), key=key)
    result = run(
        partial(task, qarnot_pool=pool, command="sh -c 'find . -type f | sort'", resource_buckets=[bucket]),
        FakeTI(run_id=f"resources-{seen}"),
    )
    assert client.tasks.stdout(result["uuid"], 0).split() == seen


def test_a_resource_bucket_must_be_there(pool: str) -> None:
    with pytest.raises(QarnotBucketNotFoundError, match="no-such-bucket"):
        run(partial(task, qarnot_pool=pool, command="true", resource_buckets=["no-such-bucket"]))


def test_new_files_reach_the_nodes_of_a_pool_that_runs(
    client: QarnotClient, storage: QarnotStorageHook
) -> None:
    storage.upload("models", b"one\n", key="v1/model")
    pool = run(
        partial(
            QarnotCreatePoolOperator,
            task_id="open",
            instance_count=1,
            resource_buckets=[ResourceBucket(bucket="models", prefix="v1/", strip_prefix="v1/")],
        )
    )

    def sees(moment: str, **spec: bool) -> str:
        made = partial(task, qarnot_pool=pool, command="sh -c 'cat /job/model'", task_spec=spec)
        return client.tasks.stdout(run(made, FakeTI(run_id=moment))["uuid"], 0)

    assert sees("before") == "one\n"
    storage.upload("models", b"two\n", key="v1/model")
    assert sees("changed in the bucket only") == "one\n"
    update = partial(QarnotUpdatePoolOperator, task_id="update", qarnot_pool=pool, sync_resources=True)
    assert run(update) == pool
    assert sees("after", wait_for_pool_resources_synchronization=True) == "two\n"
    client.pools.delete(pool)
