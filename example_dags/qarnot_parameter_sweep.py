"""Try many parameters on a warm pool, and pick the best.

One Airflow task runs a command for each learning rate. Each command writes its loss as JSON to the file named by
`QARNOT_RETURN_FILE`. The next Airflow task gets the values of all commands in their order. A command that exits with 99
is skipped.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param, task

from airflow_qarnot_pool.operators.tasks import QarnotRunTasksOperator
from airflow_qarnot_pool.task_groups.pool import QarnotPoolGroup

#: Stands for a training program. It needs a shell and awk, and refuses a rate of 0.
TRAIN = """sh -c 'test "$RATE" = 0 && exit 99
awk -v rate="$RATE" "BEGIN { print (rate - 0.3) ^ 2 }" > "$QARNOT_RETURN_FILE"'"""

with DAG(
    "qarnot_parameter_sweep",
    description="Many commands with a value each, in one Airflow task",
    doc_md=__doc__,
    schedule=None,
    catchup=False,
    tags=["qarnot"],
    params={"rates": Param([0, 0.1, 0.2, 0.4], type="array", title="Learning rates to try")},
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
) as dag:

    @task
    def items(params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """Return what differs from command to command."""
        assert params is not None
        return [{"constants": {"RATE": str(rate)}} for rate in params["rates"]]

    @task
    def best(trained: Any, params: dict[str, Any] | None = None) -> dict[str, float]:
        """Return the rate with the smallest loss."""
        assert params is not None
        losses = [
            {"rate": params["rates"][one["item"]], "loss": one["value"]}
            for one in trained["results"]
            if one["state"] == "Success"
        ]
        return min(losses, key=lambda one: one["loss"])

    listed = items()
    with QarnotPoolGroup("nodes", instance_count=2) as nodes:
        train = QarnotRunTasksOperator(
            task_id="train",
            image="alpine",
            command=TRAIN,
            commands=listed,
            task_spec={"return_file": True, "skip_on_exit_code": 99},
        )
    listed >> nodes
    best(train.output)
