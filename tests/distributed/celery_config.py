"""Celery's settings of the workers here: what every Airflow task would import by itself is imported once."""

from __future__ import annotations

from airflow.providers.celery.executors.default_celery import DEFAULT_CELERY_CONFIG

CONFIG = {
    **DEFAULT_CELERY_CONFIG,
    "imports": (
        "airflow.dag_processing.dagbag",
        "airflow.sdk.execution_time.task_runner",
        "airflow_qarnot_pool.api.client",
        "airflow_qarnot_pool.hooks.qarnot",
        "airflow_qarnot_pool.operators.pool",
        "airflow_qarnot_pool.operators.task",
        "airflow_qarnot_pool.operators.tasks",
        "airflow_qarnot_pool.task_groups.pool",
    ),
}
