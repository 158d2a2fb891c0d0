"""Simulate on the cheapest nodes, and be done in time all the same.

The nodes of the first two Qarnot tasks are Flex. If both are lost, or another loss could break the deadline, the next
one is OnDemand. Each of them starts with the files of the last snapshot, and no retry of Airflow is used up.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG

from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator

#: Stands for a simulation. It continues after the last day that it finds.
SIMULATE = """sh -c '
day=$(cat day 2>/dev/null || echo 0)
while [ $day -lt 3 ]; do
    day=$((day + 1))
    echo "the weather of day $day" > weather-$day.txt
    echo $day > day.new && mv day.new day
done'"""

with DAG(
    "qarnot_ladder",
    description="Cheap nodes first, sure ones in the end",
    doc_md=__doc__,
    schedule=None,
    catchup=False,
    tags=["qarnot"],
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
) as dag:
    QarnotRunTaskOperator(
        task_id="simulate",
        image="alpine",
        command=SIMULATE,
        result_bucket="qarnot-ladder",
        wait_timeout=timedelta(hours=2),
        task_spec={
            "ladder": ["Flex", "Flex", "OnDemand"],
            "snapshot_every": timedelta(minutes=10),
            "results_whitelist": r"\.txt$",
        },
    )
