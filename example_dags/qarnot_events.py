"""A DAG run for new files in a bucket.

The watcher reports new files below `words/` to the asset. Airflow starts a run for them, which gets their keys from the
events. One poll of the bucket serves all watchers, and no worker waits. A run that is triggered by hand takes the keys
of its form.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Asset, AssetWatcher, Param, task

from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup
from airflow_qarnot_pool.triggers.bucket_watcher import QarnotBucketWatcher

inbox = Asset(
    "qarnot_inbox",
    watchers=[AssetWatcher(name="new files", trigger=QarnotBucketWatcher(bucket="inbox", prefix="words/"))],
)


@task
def arrived(params: Any = None, triggering_asset_events: Any = None) -> list[dict[str, str]]:
    """Return the constants of a Qarnot task for each new file."""
    events = [event for events in triggering_asset_events.values() for event in events]
    keys = [file["key"] for event in events for file in event.extra["payload"]["files"]]
    return [{"KEY": key} for key in keys or params["keys"]]


with DAG(
    "qarnot_events",
    description="Runs for new files in a bucket",
    doc_md=__doc__,
    schedule=[inbox],
    catchup=False,
    tags=["qarnot"],
    params={
        "keys": Param(["words/a.txt"], type="array", title="Keys for a run by hand", items={"type": "string"})
    },
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
) as dag:
    new_files = arrived()
    with QarnotPoolGroup("nodes", instance_count=2) as nodes:
        QarnotRunTaskOperator.partial(task_id="process", command="""sh -c 'echo "processing $KEY"'""").expand(
            constants=new_files
        )
    new_files >> nodes
