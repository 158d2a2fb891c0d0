"""Create, change, close and delete pools."""

from __future__ import annotations

from airflow_qarnot_pool.operators.close_pool import QarnotClosePoolOperator, QarnotDeletePoolOperator
from airflow_qarnot_pool.operators.create_pool import QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.update_pool import QarnotUpdatePoolOperator

__all__ = [
    "QarnotClosePoolOperator",
    "QarnotCreatePoolOperator",
    "QarnotDeletePoolOperator",
    "QarnotUpdatePoolOperator",
]
