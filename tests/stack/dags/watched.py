"""A DAG that waits for files; no run of it starts here, because the scheduler makes none of schedules."""

from __future__ import annotations

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, Asset, AssetWatcher

from airflow_qarnot_pool.triggers.bucket_watcher import QarnotBucketWatcher

watcher = QarnotBucketWatcher(
    qarnot_conn_id="qarnot_files", bucket="stack-inbox", prefix="in/", poll_interval=1, max_items=50
)
inbox = Asset("stack_inbox", watchers=[AssetWatcher(name="new files", trigger=watcher)])

# Watchers of a paused DAG do not run.
with DAG("watched", schedule=[inbox], is_paused_upon_creation=False):
    EmptyOperator(task_id="nothing")
