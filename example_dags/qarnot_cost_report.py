"""Report the cost of yesterday's pools by DAG, task and tag, every morning.

The XCom of the task has data for a dashboard, and a table in Markdown and HTML. Send the table with any mail or chat
operator, for example Airflow's `EmailOperator(html_content="{{ ti.xcom_pull('report')['html'] }}")`.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import DAG, task

from airflow_qarnot_pool.operators.cost_report import QarnotCostReportOperator

with DAG(
    "qarnot_cost_report",
    description="Cost of yesterday's pools",
    doc_md=__doc__,
    schedule="0 6 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["qarnot"],
    default_args={"retries": 2, "retry_delay": timedelta(minutes=5)},
) as dag:
    report = QarnotCostReportOperator(task_id="report", period=timedelta(days=1))

    @task
    def tell(found: Any) -> None:
        """Log the report. Replace this with a mail."""
        print(found["markdown"])

    tell(report.output)
